# SPDX-License-Identifier: Apache-2.0
"""Read `main`, as FuseDense leaves it, as the network of layers a feed-forward policy is.

    inputs -> prelude -> node -> ... -> node -> head        a node reads the observations, or what nodes before it give:

    Layer     function(x @ weight + bias)
    Merge     function(x + y), function(x - y) or function(x * y): a skip connection, a gate
    Map       function(x), where something else reads x as well

`prelude` joins, permutes, scales and clips the observations (VecNormalize, say), a `function` is an elementwise function
of one tensor (an activation, in however many operators it is written), `head` makes the action of the last node's output.
Observations are read by layers alone, and the last node is one: AnchorMerges sees to that.

Why: quantising and lowering need a layer together with what follows it; the graph says so only indirectly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Tuple, TupleGetItem, Var

from .dataflow import bindings, constant, known, op_name, shape_of, variables
from .evaluate import ELEMENTWISE, evaluate_expr

Binding = tuple[Var, relax.Expr]

# Elementwise operators that `evaluate` keeps with those that look at attributes.
_WITH_ATTRIBUTES = ("clip", "nn.leakyrelu", "nn.softplus", "nn.selu", "astype", "quantize", "dequantize")


@tvm_ffi.register_error  # or it would leave a pass as a RuntimeError
class UnsupportedGraph(ValueError):
    """The policy is no network of the layers that are compiled; the message names the operator that breaks it."""


@dataclass(frozen=True)
class Function:
    """An elementwise function of `source`, bound in `body`; the empty body is the identity."""

    source: Var
    body: tuple[Binding, ...]

    @property
    def result(self) -> Var:
        return self.body[-1][0] if self.body else self.source

    @property
    def operators(self) -> tuple[str, ...]:
        return tuple(op_name(value) for _, value in self.body)

    def __call__(self, values: np.ndarray, dtype: type[np.floating] = np.float64) -> np.ndarray:
        """The function of each of `values` (n,), computed in `dtype`."""
        rows = {self.source: np.asarray(values, dtype).reshape(-1, 1, 1)}
        with np.errstate(all="ignore"):  # exp of a large number is infinite on the way to a finite answer
            for var, value in self.body:
                rows[var] = evaluate_expr(value, rows, dtype)
        return np.broadcast_to(rows[self.result].reshape(-1), np.shape(values))


@dataclass(frozen=True, eq=False)
class Layer:
    """weight (n_in, n_out) and bias (n_out,) float32, then an elementwise function. It reads `source`, or the observations
    where that is None."""

    weight: np.ndarray
    bias: np.ndarray
    function: Function
    source: Var | None = None

    @property
    def sources(self) -> tuple[Var | None, ...]:
        return (self.source,)


@dataclass(frozen=True, eq=False)
class Merge:
    """Two tensors (n,), element by element, then an elementwise function; `operator` is a key of MERGES."""

    operator: str
    function: Function
    sources: tuple[Var, Var]


@dataclass(frozen=True, eq=False)
class Map:
    """An elementwise function of a tensor that others read as it is."""

    function: Function

    @property
    def sources(self) -> tuple[Var, ...]:
        return (self.function.source,)


Node = Layer | Merge | Map
MERGES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
}


@dataclass(frozen=True)
class Features:
    """What the first layer reads: clip(observations @ matrix + bias, low, high), the inputs joined in main's order.

    matrix (n_obs, n_features), bias (n_features,); low and high are numbers, infinite where nothing is clipped.
    """

    matrix: np.ndarray
    bias: np.ndarray
    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True)
class Network:
    """Every node follows what it reads. The last is a layer whose function is the identity: what follows it is the head.

    Layers that read the observations read them joined in the order of main's inputs and clipped to `limits` (low, high),
    each (n_obs,) float64, infinite where nothing is clipped.
    """

    inputs: tuple[Var, ...]
    limits: tuple[np.ndarray, np.ndarray]
    nodes: tuple[Node, ...]
    head: tuple[Binding, ...]
    output: Var

    @property
    def last(self) -> Layer:
        """The layer that the head reads."""
        node = self.nodes[-1]
        assert isinstance(node, Layer)
        return node


def read_network(module: tvm.IRModule) -> Network:
    """The network of `main`. Raises UnsupportedGraph."""
    main = module["main"]
    nodes, head = read_nodes(list(bindings(main)))
    features = read_features(module)
    limits = _limits(features)
    of_observations = (_on_observations(node, features) for node in nodes)
    return Network(tuple(main.params), limits, tuple(of_observations), tuple(head), main.body.body)


def read_nodes(line: Sequence[Binding]) -> tuple[list[Node], list[Binding]]:
    """The nodes, of which those that read the observations are ones of their features, and what follows the last. Raises
    UnsupportedGraph."""
    return _Reader(line).read()


class _Reader:
    """Reads the nodes off a line of bindings.

    Every tensor behind the features is an elementwise function of one `root`: of a layer's sum, of a merge, or of the
    features themselves. What computes it is in the root's region.
    """

    def __init__(self, line: Sequence[Binding]) -> None:
        self.line, self.first = line, first_layer(line)
        self.features: Var = line[self.first][1].args[0]
        self.place = {var: index for index, (var, _) in enumerate(line)}
        self.roots: dict[Var, Var] = {}
        self.regions: dict[Var, list[Binding]] = {}

    def read(self) -> tuple[list[Node], list[Binding]]:
        starts = self.starts()
        self.check(self.line[self.first : starts[-1]])
        read = {var for start in starts for var in variables(self.line[start][1])}
        placed = [node for start in starts for node in self.with_functions(*self.node(start), read)]
        nodes = [node for _, node in sorted(placed, key=lambda node: node[0])]
        if not isinstance(nodes[-1], Layer) or any(self.features in node.sources for node in nodes):
            raise UnsupportedGraph("a merge of observations, or at the end; run AnchorMerges first")
        return nodes, list(self.line[starts[-1] + 2 :])

    def starts(self) -> list[int]:
        """Where nodes begin; on the way every tensor gets its root."""
        starts = []
        self.begin(self.features)
        for index, (var, value) in enumerate(self.line):
            if is_dense(value):
                self.begin(self.sum_of(index))
                starts.append(index)
            elif self.is_merge(value):
                self.begin(var)
                starts.append(index)
            elif var not in self.roots and (root := self.root_of(value)) is not None:
                self.roots[var] = root
                self.regions[root].append((var, value))
        return starts

    def begin(self, root: Var) -> None:
        self.roots[root], self.regions[root] = root, []

    def sum_of(self, index: int) -> Var:
        """The sum behind the product at `index`."""
        product, _ = self.line[index]
        if index + 1 == len(self.line) or op_name(self.line[index + 1][1]) != "add":
            raise UnsupportedGraph("a matmul without a bias; run FuseDense first")
        total, add = self.line[index + 1]
        if constant(add.args[1]) is None or not add.args[0].same_as(product):
            raise UnsupportedGraph(f"'{total.name}' adds something computed to a dense layer; {_ONLY_LAYERS}")
        return total

    def is_merge(self, value: relax.Expr) -> bool:
        if op_name(value) not in MERGES or not all(isinstance(arg, Var) for arg in value.args):
            return False
        x, y = value.args
        if x not in self.roots or y not in self.roots or self.roots[x].same_as(self.roots[y]):
            return False
        return shape_of(x) == shape_of(y) == shape_of(value)

    def root_of(self, value: relax.Expr) -> Var | None:
        """The root of an elementwise function of one tensor, None for anything else."""
        if not _is_elementwise(value) or any(_size(arg) > 1 for arg in value.args):
            return None
        roots = {self.roots.get(var) for var in variables(value)}
        return roots.pop() if len(roots) == 1 else None

    def check(self, line: Sequence[Binding]) -> None:
        for var, value in line:
            if is_dense(value):
                if value.args[0] not in self.roots:
                    self.refuse_other_way(var)
            elif var not in self.roots and constant(value) is None:
                roots = {self.roots.get(read) for read in variables(value)}
                if None in roots:
                    self.refuse_other_way(var)
                if _is_elementwise(value) and len(roots) > 1:
                    raise UnsupportedGraph(
                        f"'{op_name(value)}' of two layers' outputs cannot be compiled; "
                        f"of tensors of one shape there are: {', '.join(MERGES)}"
                    )
                elementwise(self.features, [(var, value)])

    def refuse_other_way(self, var: Var) -> NoReturn:
        first, _ = self.line[self.first]
        raise UnsupportedGraph(
            f"'{var.name}' reads the observation in another way than '{first.name}' does; {_ONLY_LAYERS}"
        )

    def node(self, start: int) -> tuple[int, Node]:
        """The node that begins at `start`, without its function, and where its root is."""
        var, value = self.line[start]
        if not is_dense(value):
            return start, Merge(op_name(value), Function(var, ()), tuple(value.args))
        total, add = self.line[start + 1]
        source = None if value.args[0].same_as(self.features) else value.args[0]
        return start + 1, Layer(known(value.args[1]), known(add.args[1]).reshape(-1), Function(total, ()), source)

    def with_functions(self, place: int, node: Node, read: set[Var]) -> list[tuple[int, Node]]:
        """`node` with the function that all who read it share, and a map for every other function of it that is `read`."""
        root = node.function.source
        region = self.regions[root]
        tensors = [root, *(var for var, _ in region)]
        results = [var for var in tensors if var in read] or [root]
        for shared in reversed(tensors):
            bodies = [_between(region, shared, result) for result in results]
            if None not in bodies:
                break
        own = _between(region, root, shared)
        maps = [Map(elementwise(shared, body)) for body in bodies if body]
        return [
            (place, replace(node, function=elementwise(root, own or ()))),
            *((self.place[m.function.result], m) for m in maps),
        ]


def _between(region: Sequence[Binding], source: Var, result: Var) -> tuple[Binding, ...] | None:
    """What of `region` computes `result` of `source`; None where it takes more than that."""
    body, wanted = [], {result} - {source}
    for var, value in reversed(region):
        if var in wanted:
            body.append((var, value))
            wanted = wanted - {var} | set(variables(value)) - {source}
    return None if wanted else tuple(reversed(body))


def last_merge(line: Sequence[Binding]) -> Var | None:
    """The last merge, if no layer follows it. Raises UnsupportedGraph."""
    var, value = line[_Reader(line).starts()[-1]]
    return None if is_dense(value) else var


def first_layer(line: Sequence[Binding]) -> int:
    """Where the product of the first layer is. Raises UnsupportedGraph."""
    for index, (_, value) in enumerate(line):
        if is_dense(value):
            return index
    raise UnsupportedGraph("the policy has no dense layer; there is nothing to compile")


# A product of two observations would pass for one of these; the probes tell.
_LINEAR = (
    *("reshape", "flatten", "squeeze", "expand_dims", "permute_dims", "nn.batch_flatten", "broadcast_to", "astype"),
    *("concat", "stack", "split", "strided_slice", "take", "mean", "sum"),
    *("add", "subtract", "multiply", "divide", "negative", "matmul"),
)
_ONLY_LAYERS = (
    "policies are compiled as dense layers, elementwise functions, and sums and products of two layers' outputs"
)


def is_dense(value: relax.Expr) -> bool:
    return op_name(value) == "matmul" and constant(value.args[1]) is not None


def _is_elementwise(value: relax.Expr) -> bool:
    return op_name(value) in ELEMENTWISE or op_name(value) in _WITH_ATTRIBUTES


def elementwise(source: Var, body: Sequence[Binding]) -> Function:
    """`body` as one function of `source`. Raises UnsupportedGraph where it looks at more than one element."""
    known = {source}
    for var, value in body:
        name = op_name(value)
        if not _is_elementwise(value):
            raise UnsupportedGraph(f"'{name or 'a tuple'}' after a dense layer cannot be compiled; {_ONLY_LAYERS}")
        if not set(variables(value)) <= known or any(_size(arg) > 1 for arg in value.args):
            raise UnsupportedGraph(f"'{name}' after a dense layer mixes features; {_ONLY_LAYERS}")
        known.add(var)
    return Function(source, tuple(body))


def _size(arg: relax.Expr) -> int:
    values = constant(arg)
    return 1 if values is None else int(values.size)


def read_features(module: tvm.IRModule) -> Features:
    """What `main`'s first layer reads of the observations. Raises UnsupportedGraph.

    What joins, flattens, permutes and scales the observations is affine; its matrix is read off its values at zero and at
    the unit vectors.
    """
    main = module["main"]
    line = list(bindings(main))
    start = first_layer(line)
    prelude, features = line[:start], line[start][1].args[0]
    lengths = [int(np.prod(shape_of(param))) for param in main.params]
    n = sum(lengths)
    if any("int" in str(param.ty.dtype) for param in main.params):
        raise UnsupportedGraph("the observation is an integer (a Discrete space); only Box observations are compiled")
    clip = prelude.pop()[1] if prelude and op_name(prelude[-1][1]) == "clip" else None
    evaluate = _prelude(main.params, lengths, prelude, features if clip is None else clip.args[0])
    points = np.concatenate([np.zeros((1, n)), np.eye(n), np.random.default_rng(0).normal(scale=100.0, size=(8, n))])
    values = evaluate(points)
    bias, matrix = values[0], values[1 : n + 1] - values[0]
    names = ", ".join(sorted({op_name(value) or "a tuple" for _, value in prelude}))
    linear = all(op_name(value) in _LINEAR or isinstance(value, Tuple | TupleGetItem) for _, value in prelude)
    if not linear or not np.allclose(points @ matrix + bias, values, rtol=1e-6, atol=1e-6):
        raise UnsupportedGraph(f"the observation goes through {names} before the first layer, which is not affine")
    if clip is None:
        return Features(matrix, bias)
    return Features(matrix, bias, float(clip.args[1].value), float(clip.args[2].value))


def _limits(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """What raw observations are clipped to. A clip of features is one of single observations, if every feature is made of
    one."""
    matrix, bias = features.matrix, features.bias
    low, high = np.full(len(matrix), -np.inf), np.full(len(matrix), np.inf)
    if np.isfinite([features.low, features.high]).any():
        if np.any((matrix != 0).sum(0) != 1) or np.any((matrix != 0).sum(1) > 1):
            raise UnsupportedGraph("a clip before the first layer mixes observations; only single ones can be clipped")
        feature_of = np.abs(matrix).argmax(0)
        slopes = matrix[feature_of, np.arange(matrix.shape[1])]
        ends = np.sort([(end - bias) / slopes for end in (features.low, features.high)], axis=0)
        low[feature_of], high[feature_of] = ends
    return low, high


def _on_observations(node: Node, features: Features) -> Node:
    """A layer that reads the features as one of raw observations."""
    if not isinstance(node, Layer) or node.source is not None:
        return node
    weight = features.matrix @ node.weight.astype(np.float64)
    total = features.bias @ node.weight.astype(np.float64) + node.bias
    return replace(node, weight=weight.astype(np.float32), bias=total.astype(np.float32))


def _prelude(
    params: Sequence[Var], lengths: list[int], prelude: list[Binding], features: relax.Expr
) -> Callable[[np.ndarray], np.ndarray]:
    def evaluate(points: np.ndarray) -> np.ndarray:
        parts = np.split(points, np.cumsum(lengths)[:-1], axis=1)
        values = {p: part.reshape(len(points), *shape_of(p)) for p, part in zip(params, parts, strict=True)}
        for var, value in prelude:
            values[var] = evaluate_expr(value, values, np.float64)
        return values[features].reshape(len(points), -1)

    return evaluate
