# SPDX-License-Identifier: Apache-2.0
"""Make a quantised model an integer policy, at the scales and with the codes of its own.

    obs -> quantize -> dequantize -> matmul(dequantize(w)) -> add(dequantize(b)) -> quantize -> dequantize
        -> tanh -> quantize -> dequantize -> matmul -> add -> quantize -> dequantize                     becomes
    obs -> tinyrl.quantize -> matmul(int8) -> add(int32) -> tinyrl.requantize -> tinyrl.lookup
        -> matmul(int8) -> add(int32) -> astype -> multiply -> minimum -> maximum

    dequantize -> add(dequantize) -> nn.relu -> quantize          becomes   tinyrl.add

* Weights, zero points and multipliers are the file's. A bias, int32 or float, is one at scale_x * scale_w.
* What lies between two codes of a layer's output is a table of 256, or a clamp where the table is that of a clamp: a ReLU.
* A continuous action is read off the accumulators: its own codes' rounding is left out, what they clip is kept, so that
  it lies within half a step of the model's. An arg max reads accumulators where they are of one scale, which differs on ties
  of codes only; else it reads the codes, and so does a squashed action whose sums are coarse. A softmax reads codes, and its
  answers are steps of 1/256.
* Affine maps before the first pair fold into its scale; a mean that is no whole number of codes shifts the grid, by half a
  step at most, and the first bias takes that in.

Source: ONNX Runtime's static quantiser for the form; `fixedpoint.py` is the law: a code can be one off ONNX Runtime's,
which rescales in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Var

from .anchor_merges import AnchorMerges
from .canonicalize_clip import CanonicalizeClip
from .dataflow import LAYOUT_OPS, bindings, definitions, dtype_of, known, op_name, shape_of, without_twins
from .evaluate import evaluate_expr
from .fixedpoint import ZERO_POINT_MAX
from .fuse_dense import FuseDense
from .head import Decision, Probabilities
from .network import (
    Binding,
    Features,
    Function,
    Layer,
    Map,
    Merge,
    Network,
    Node,
    UnsupportedGraph,
    elementwise,
    read_features,
    read_network,
    read_nodes,
)
from .qdq import Grid, Pair, pairs
from .remove_qdq import RemoveQdq
from .write_int8 import INT32_MAX, Codes, Writer, merge_factors, multipliers, saturation

# Kernels round |accumulator| + half a code: an accumulator keeps to half of int32.
LARGEST_SUM = 2**30
# A sum's codes are at most so many times finer than those of what is added.
FINEST_SUM = 2.0**12
# 16 bits hold so many steps of each of 256 codes, and an int8 weight makes them.
CODE_STEPS = 127
_TINY = 2.0**-126
_CLAMPS = ("nn.relu", "clip")
_ALL_CODES = np.arange(-128.0, 128.0)
_WHOLE = "a policy is compiled to integers as a whole: quantise every layer, or none"


@tvm.transform.module_pass(opt_level=0, name="LowerQdq")
class LowerQdq:
    """quantize -> dequantize -> matmul -> add becomes matmul(int8) -> add(int32) -> tinyrl.requantize."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        module = without_twins(module)  # ONNX Runtime gives every reader a dequantize of its own
        policy = tvm.transform.Sequential([RemoveQdq(), CanonicalizeClip(), FuseDense(), AnchorMerges()])(module)
        nodes = _read_nodes(module)  # first: it says best what is wrong
        written = _Own(read_network(policy), read_features(policy), nodes).write()
        module = module.clone()
        module[module.get_global_var("main")] = written
        return relax.transform.DeadCodeElimination(["main"])(module)


@dataclass(frozen=True)
class _Written:
    """How the file has a node's codes: its sums, kept to `clamp`, are written at `output`, and `table` (256,) makes other
    codes of these. Of the last layer `output` may be missing."""

    output: Grid | None
    clamp: tuple[float, float] = (-np.inf, np.inf)
    table: np.ndarray | None = None

    @property
    def bounds(self) -> tuple[int, int, np.ndarray | None]:
        """The least code and the greatest, and the table, unless that is the one of a clamp."""
        assert self.output is not None
        low, high = (int(end) for end in self.output.codes(np.array(self.clamp)))
        table = self.table
        if table is not None and np.array_equal(table, np.clip(_ALL_CODES, table.min(), table.max())):
            low, high = (int(np.clip(end, table.min(), table.max())) for end in (low, high))
            return low, high, None
        return low, high, table


@dataclass(frozen=True)
class _Layer:
    """A dense layer between codes, as the file has it.

    weight_int8 (n_in, n_out) less its zero point, at weight_scale (n_out,), bias (n_out,) float.
    """

    weight_int8: np.ndarray
    weight_scale: np.ndarray
    bias: np.ndarray
    input: Grid
    written: _Written

    @property
    def scale(self) -> np.ndarray:
        """What one step of an accumulator stands for, (n_out,)."""
        return self.weight_scale * self.input.scale

    @property
    def largest_sums(self) -> np.ndarray:
        """What an accumulator reaches at most, (n_out,)."""
        bias = self.bias / self.scale - self.input.zero_point * self.weight_int8.sum(0)
        return 128 * np.abs(self.weight_int8).sum(0) + np.abs(bias)


@dataclass(frozen=True)
class _Merge:
    """A sum, a difference or a product of two tensors of codes."""

    operator: str
    inputs: tuple[Grid, Grid]
    written: _Written


@dataclass(frozen=True)
class _Map:
    """Other codes (256,) of a tensor's codes."""

    table: np.ndarray


_Coded = tuple[Node, _Layer | _Merge | _Map]


def _read_nodes(module: tvm.IRModule) -> list[_Coded]:
    scales = _weight_scales(module)
    fused = tvm.transform.Sequential([FuseDense(), AnchorMerges()])(module)
    line = list(bindings(fused["main"]))
    nodes, _ = read_nodes(line)
    coded = pairs(fused)
    ones = _anchors(nodes, len(scales))
    remaining = iter(scales)
    last = nodes[-1]
    own = next((pair.grid for pair in coded.values() if pair.source.same_as(last.function.source)), None)
    grids: dict[Var | None, Grid] = {None: _observed_at(line, coded)}
    result: list[_Coded] = []
    for node in nodes:
        source = grids[node.sources[0]]
        if node is last or (node.function.result in last.sources and last in ones):
            written = _Written(own)  # the model's last codes are those that a layer of ones reads
        elif node in ones:
            function = node.function  # of observations, which have codes already
            written = _Written(source, table=_table(source, function, coded) if function.body else None)
        elif not isinstance(node, Map):
            written = _output(node.function, coded)
        if isinstance(node, Layer):
            scale = np.full(len(node.bias), 1 / CODE_STEPS) if node in ones else next(remaining)
            result.append((node, _Layer(_codes_of(node.weight, scale), scale, node.bias, source, written)))
        elif isinstance(node, Merge):
            result.append((node, _Merge(node.operator, (source, grids[node.sources[1]]), written)))
        else:
            result.append((node, _Map(_table(source, node.function, coded))))
        pair = coded.get(node.function.result)
        grids[node.function.result] = pair.grid if pair else written.output or source
    return result


def _anchors(nodes: Sequence[Node], n_products: int) -> list[Layer]:
    """The layers of ones that AnchorMerges put in, where there are more layers than the file has products."""
    layers = [node for node in nodes if isinstance(node, Layer)]
    read = {source for node in nodes if not isinstance(node, Layer) for source in node.sources}
    written = {node.function.result for node in nodes if isinstance(node, Merge)}
    ones = [
        layer
        for layer in layers
        if np.array_equal(layer.weight, np.eye(len(layer.weight))) and not layer.bias.any()
        if (layer.source is None and (layer.function.body or layer.function.result in read))
        or (layer is nodes[-1] and layer.source in written)
    ]
    if len(layers) == n_products:
        return []
    if len(layers) != n_products + len(ones):
        raise UnsupportedGraph(f"{n_products} matrix products are {len(layers)} layers; {_WHOLE}")
    return ones


def _weight_scales(module: tvm.IRModule) -> list[np.ndarray]:
    """The scale an output (n_out,) of every dense layer's weights, in order."""
    values, result = definitions(module["main"]), []
    for value in values.values():
        if op_name(value) != "matmul":
            continue
        scales = _scale_of_each(value.args[1], values)
        if scales is None or scales.ndim != 2:
            raise UnsupportedGraph(f"a dense layer has weights without int8 codes; {_WHOLE}")
        if np.any(scales != scales[:1]):
            raise UnsupportedGraph("weights are quantised per input; quantise them per tensor or per output channel")
        result.append(scales[0])
    return result


def _scale_of_each(weight: relax.Expr, values: Mapping[Var, relax.Expr]) -> np.ndarray | None:
    """The scale of every element of `weight`; None where it is not int8 codes, at most moved about."""
    value: relax.Expr = values.get(weight)
    if op_name(value) in ("permute_dims", *LAYOUT_OPS):
        inner = _scale_of_each(value.args[0], values)
        return inner if inner is None else evaluate_expr(value, {value.args[0]: inner[np.newaxis]}, np.float64)[0]
    if op_name(value) != "dequantize" or dtype_of(value.args[0]) not in ("int8", "uint8"):
        return None
    scale: np.ndarray = known(value.args[1]).astype(np.float64)
    along = [1] * len(shape_of(value))
    along[int(value.attrs.axis)] = -1
    return np.broadcast_to(scale.reshape(along) if scale.size > 1 else scale.reshape(()), shape_of(value))


def _codes_of(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    codes = np.rint(weight / scale)
    if np.any(np.abs(codes - weight / scale) > 1e-3):
        raise UnsupportedGraph("weights are rescaled after they were quantised; quantise them as the layer takes them")
    if codes.min() < -128 or codes.max() > 127:
        raise UnsupportedGraph(
            "weights less their zero point need more than 8 bits; quantise them with weight_type=QuantType.QInt8"
        )
    return codes


def _observed_at(line: Sequence[Binding], coded: Mapping[Var, Pair]) -> Grid:
    start = next(i for i, (_, value) in enumerate(line) if op_name(value) == "matmul")
    grids = {coded[var].grid for var, _ in line[:start] if var in coded}
    if not grids:
        raise UnsupportedGraph(f"the first layer reads observations without codes; {_WHOLE}")
    if len(grids) > 1:
        raise UnsupportedGraph(
            "the observation has codes of several scales on its way to the first layer; quantise the layers alone, "
            "with op_types_to_quantize=['Gemm', 'MatMul', 'Add']"
        )
    return grids.pop()


def _output(function: Function, coded: Mapping[Var, Pair]) -> _Written:
    """The codes of a hidden node's sums, what the sums are clamped to before, and the table behind."""
    body, at = function.body, [i for i, (var, _) in enumerate(function.body) if var in coded]
    if not at or function.result not in coded:
        raise UnsupportedGraph(f"a dense layer reads another's output without codes; {_WHOLE}")
    first, _ = body[at[0]]
    before = tuple(binding for binding in body[: at[0]] if op_name(binding[1]) != "quantize")
    names = [op_name(value) for _, value in before]
    clamp = Function(function.source, before)
    if not set(names) <= {*_CLAMPS} or not coded[first].source.same_as(clamp.result):
        raise UnsupportedGraph(f"'{' -> '.join(names)}' reads a dense layer's output without codes; {_WHOLE}")
    low, high = clamp(np.array([-np.inf, np.inf]))
    grid = coded[first].grid
    if at[-1] == at[0]:
        return _Written(grid, (low, high))
    return _Written(grid, (low, high), _table(grid, Function(first, body[at[0] + 1 :]), coded))


def _table(grid: Grid, function: Function, coded: Mapping[Var, Pair]) -> np.ndarray:
    """The codes (256,) of a function that ends in a pair, of codes on `grid`."""
    end = coded.get(function.result)
    if end is None:
        raise UnsupportedGraph(f"'{' -> '.join(function.operators)}' is read without codes; {_WHOLE}")
    stop = next(
        i
        for i, (_, value) in enumerate(function.body)
        if op_name(value) == "quantize" and value.args[0].same_as(end.source)
    )
    # in float32, as the model says: a leaky ReLU has ties, and their rounding is the arithmetic's
    values = elementwise(function.source, function.body[:stop])(grid.values(_ALL_CODES), np.float32)
    if not np.isfinite(values).all():
        raise UnsupportedGraph("an activation is not finite over the codes it is read at; it has no table")
    return end.grid.codes(values)


def _rounded_once(real: np.ndarray) -> tuple[np.ndarray, int]:
    """(multiplier (n,) int32, right shift), without a shift where every multiplier has 18 bits then.

    A shift is a second rounding, which sends as many codes elsewhere as it is short: one of a hundred for a shift of 6.
    """
    if real.min() < 2.0**-13:
        return multipliers(real)
    return np.minimum(np.rint(np.ldexp(real, 31)), INT32_MAX).astype(np.int32), 0


def _on_observations(features: Features, first: _Layer) -> tuple[tuple[np.ndarray, np.ndarray, int, int], _Layer]:
    """How raw observations are quantised (inverse scale, zero point, low, high), and the first layer as one of these."""
    grid, reads = first.input, (features.matrix != 0).astype(np.float64)
    if np.any(reads.sum(0) != 1) or np.any(reads.sum(1) > 1):
        raise UnsupportedGraph("what is quantised first mixes observations; every code must be one observation's")
    slope, mean = features.matrix.sum(1), features.bias / grid.scale
    with np.errstate(over="ignore"):
        inverse = (np.where(slope == 0, 1.0, slope) / grid.scale).astype(np.float32)
    # half a float32's range to either side, for kernels double it and Helium takes what is not normal for zero
    normal = (np.abs(inverse) >= _TINY) & (np.abs(inverse) < 2.0**127)
    if not normal.all() or np.abs(mean).max() > ZERO_POINT_MAX - 129:
        raise UnsupportedGraph("an observation is scaled or shifted so far that its codes leave float32")
    zero_point = (grid.zero_point + reads @ np.rint(mean)).astype(np.int32)
    low, high = (int(end) for end in grid.codes(np.array([features.low, features.high])))
    # what of a mean is no whole number of codes moves no code, but every sum
    bias = first.bias + (mean - np.rint(mean)) @ first.weight_int8 * first.scale
    return (inverse, zero_point, low, high), replace(first, weight_int8=reads @ first.weight_int8, bias=bias)


def _check_sums(layer: _Layer) -> None:
    least, most, largest = layer.scale.min(), layer.scale.max(), layer.largest_sums.max()
    if least < _TINY or most > 2.0**90:
        raise UnsupportedGraph(
            f"a layer's int32 sums have steps of {least:g} to {most:g}, which leaves float32; calibrate it again"
        )
    if largest > LARGEST_SUM:
        raise UnsupportedGraph(
            f"a layer's int32 sums reach {largest:,.0f}, {LARGEST_SUM:,} is the most; calibrate with rows that move it"
        )


def _check_codes(layer: _Layer) -> None:
    _check_fineness(layer.scale.max(), layer.written)


def _check_fineness(scale: float, written: _Written, most: float = 1.0) -> None:
    if written.output is None:
        raise UnsupportedGraph("the last layer's output has no codes, and its head needs them; quantise it as well")
    finer = scale / written.output.scale
    if finer > most:
        raise UnsupportedGraph(
            f"a layer's codes are {finer:.3g} times finer than its sums; calibrate with rows that move it"
        )


class _Own(Writer):
    """Writes layers at the scales they came with."""

    def __init__(self, network: Network, features: Features, nodes: Sequence[_Coded]) -> None:
        super().__init__(network)
        self.nodes: list[_Coded] = []
        for node, coded in nodes:
            if isinstance(coded, _Layer) and node.sources == (None,):
                self.quantize, of_observations = _on_observations(features, coded)
                self.nodes.append((node, of_observations))
            else:
                self.nodes.append((node, coded))
        last = self.nodes[-1][1]
        assert isinstance(last, _Layer)
        self.last = last
        # here, for a builder that is left open complains on stderr
        for _, coded in self.nodes:
            if isinstance(coded, _Layer):
                _check_sums(coded)
                if coded is not last or self.reads_codes:
                    _check_codes(coded)
            elif isinstance(coded, _Merge):
                x, y = (grid.scale for grid in coded.inputs)
                if coded.operator == "multiply":
                    _check_fineness(x * y, coded.written)
                else:
                    _check_fineness(x + y, coded.written, FINEST_SUM)

    @property
    def reach(self) -> float:
        """How far the last layer's outputs reach."""
        last = self.last
        return float(np.abs(last.written.output.ends if last.written.output else last.scale * last.largest_sums).max())

    @property
    def reads_codes(self) -> bool:
        """Whether the head tells more from the last layer's codes than from its sums."""
        last, action = self.last, self.action
        if isinstance(action, Probabilities):
            return True
        if isinstance(action, Decision):  # sums of several scales cannot be compared
            runs = [] if action.positive else np.split(last.scale, np.cumsum(action.runs)[:-1])
            return any(bool(np.any(run != run[0])) for run in runs)
        # a function's table has an entry every 256 steps of sums, or every two codes
        output = last.written.output
        coarsest = 2 * output.scale if output else saturation(action.function, self.reach) / 64
        return bool(action.function.body) and bool(256 * last.scale.max() > coarsest)

    def answer(self, observations: Var) -> relax.Expr:
        inverse = self.quantize[0]
        codes = self.call("tinyrl.quantize", observations, *self.quantize, dtype="int8", n=len(inverse))
        written: dict[Var | None, Var] = {None: codes}
        for node, coded in self.nodes[:-1]:
            of = [written[source] for source in node.sources]
            if isinstance(coded, _Layer):
                codes = self.codes(of[0], coded)
            elif isinstance(coded, _Merge):
                codes = self.merged(of[0], of[1], coded)
            else:
                codes = self.through(coded.table, of[0])
            written[node.function.result] = codes
        codes, action = written[self.nodes[-1][0].sources[0]], self.action
        if isinstance(action, Probabilities):
            assert self.last.written.output is not None
            scales = [self.last.written.output.scale] * len(action.runs)
            return self.probabilities(self.codes(codes, self.last), action.runs, scales)
        if self.reads_codes:
            return self.read_off(*self.sums_of_codes(codes, self.last), self.reach)
        return self.read_off(self.sums(codes, self.last), self.last.scale, self.reach)

    def codes(self, codes: Var, layer: _Layer) -> Var:
        """A layer's codes, through its table."""
        grid = layer.written.output
        assert grid is not None
        how = (self.sums(codes, layer), *_rounded_once(layer.scale / grid.scale), grid.zero_point)
        return self.bounded("tinyrl.requantize", how, layer.written)

    def merged(self, x: Var, y: Var, merge: _Merge) -> Var:
        grid, (of_x, of_y) = merge.written.output, merge.inputs
        assert grid is not None
        read = (x, y, of_x.zero_point, of_y.zero_point)
        if merge.operator == "multiply":
            (multiplier,), shift = multipliers(np.array([of_x.scale * of_y.scale / grid.scale]))
            return self.bounded("tinyrl.multiply", (*read, int(multiplier), shift, grid.zero_point), merge.written)
        (first, second), shift = merge_factors(of_x.scale / grid.scale, of_y.scale / grid.scale)
        second = -second if merge.operator == "subtract" else second
        return self.bounded("tinyrl.add", (*read, first, second, shift, grid.zero_point), merge.written)

    def bounded(self, name: str, how: tuple[Any, ...], written: _Written) -> Var:
        """Codes that `name` makes, between the bounds and through the table."""
        low, high, table = written.bounds
        codes = self.call(name, *how, low, high, dtype="int8", n=shape_of(how[0])[1])
        return codes if table is None else self.through(table, codes)

    def through(self, table: np.ndarray, codes: Var) -> Var:
        return self.call("tinyrl.lookup", codes, table.astype(np.int8), dtype="int8", n=shape_of(codes)[1])

    def sums(self, codes: Var, layer: _Layer) -> Var:
        read = Codes(codes, np.asarray(layer.input.scale), np.asarray(float(layer.input.zero_point)))
        return self.accumulate(read, layer.weight_int8 * layer.scale, layer.bias, layer.scale)

    def sums_of_codes(self, codes: Var, layer: _Layer) -> tuple[Var, np.ndarray]:
        """The last layer's codes as accumulators, CODE_STEPS to a code, and the scale of these."""
        n, grid = len(layer.scale), layer.written.output
        assert grid is not None
        read = Codes(self.codes(codes, layer), np.asarray(grid.scale), np.asarray(float(grid.zero_point)))
        scale = np.full(n, grid.scale / CODE_STEPS)
        return self.accumulate(read, np.eye(n) * grid.scale, np.zeros(n), scale), scale
