# SPDX-License-Identifier: Apache-2.0
"""Read `main`, as FuseDense leaves it, as the chain of dense layers a feed-forward policy is.

    inputs -> prelude -> (dense -> function)* -> dense -> head

`prelude` joins, permutes, scales and clips the observations (VecNormalize, say), a `function` is an elementwise function
of one tensor (an activation, in however many operators it is written), `head` makes the action of the last layer's output.

Why: quantising and lowering need a layer together with what follows it; the graph says so only indirectly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """The policy is no chain of dense layers; the message names the operator that breaks it."""


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


@dataclass(frozen=True)
class Layer:
    """weight (n_in, n_out) and bias (n_out,) float32, then an elementwise function."""

    weight: np.ndarray
    bias: np.ndarray
    function: Function


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
class Chain:
    """`layers[-1].function` is the identity: what follows the last dense layer is the head.

    The first layer reads the joined observations in the order of main's inputs, clipped to `limits` (low, high), each
    (n_obs,) float64, infinite where nothing is clipped.
    """

    inputs: tuple[Var, ...]
    limits: tuple[np.ndarray, np.ndarray]
    layers: tuple[Layer, ...]
    head: tuple[Binding, ...]
    output: Var

    @property
    def last(self) -> Var:
        """The last dense layer's output, which the head reads."""
        return self.layers[-1].function.result


def read_chain(module: tvm.IRModule) -> Chain:
    """The chain of `main`. Raises UnsupportedGraph."""
    main = module["main"]
    line = list(bindings(main))
    layers, head = read_layers(line)
    layers[0], limits = _on_observations(layers[0], read_features(module))
    return Chain(tuple(main.params), limits, tuple(layers), tuple(head), main.body.body)


def read_layers(line: Sequence[Binding]) -> tuple[list[Layer], list[Binding]]:
    """The dense layers, the first of them one of its features, and what follows the last. Raises UnsupportedGraph."""
    starts = _starts(line)
    ends = [*starts[1:], len(line)]
    layers: list[Layer] = []
    for start, end in zip(starts, ends, strict=True):
        _, matmul = line[start]
        if start + 1 >= end or op_name(line[start + 1][1]) != "add":
            raise UnsupportedGraph("a matmul without a bias; run FuseDense first")
        total, add = line[start + 1]
        bias = constant(add.args[1])
        if bias is None or not add.args[0].same_as(line[start][0]):
            raise UnsupportedGraph(f"'{total.name}' adds something computed to a dense layer; {_ONLY_CHAINS}")
        body = tuple(line[start + 2 : end]) if end < len(line) else ()
        if layers and not matmul.args[0].same_as(layers[-1].function.result):
            raise UnsupportedGraph(f"'{line[start][0].name}' reads an earlier layer; {_ONLY_CHAINS}")
        layers.append(Layer(known(matmul.args[1]), bias.reshape(-1), elementwise(total, body)))
    return layers, list(line[starts[-1] + 2 :])


def _starts(line: Sequence[Binding]) -> list[int]:
    starts = [i for i, (_, value) in enumerate(line) if _is_dense(value)]
    if not starts:
        raise UnsupportedGraph("the policy has no dense layer; there is nothing to compile")
    return starts


# A product of two observations would pass for one of these; the probes tell.
_LINEAR = (
    *("reshape", "flatten", "squeeze", "expand_dims", "permute_dims", "nn.batch_flatten", "broadcast_to", "astype"),
    *("concat", "stack", "split", "strided_slice", "take", "mean", "sum"),
    *("add", "subtract", "multiply", "divide", "negative", "matmul"),
)
_ONLY_CHAINS = "policies are compiled as one chain of dense layers"


def _is_dense(value: relax.Expr) -> bool:
    return op_name(value) == "matmul" and constant(value.args[1]) is not None


def elementwise(source: Var, body: Sequence[Binding]) -> Function:
    """`body` as one function of `source`. Raises UnsupportedGraph where it looks at more than one element."""
    known = {source}
    for var, value in body:
        name = op_name(value)
        if name not in ELEMENTWISE and name not in _WITH_ATTRIBUTES:
            raise UnsupportedGraph(f"'{name or value}' after a dense layer cannot be compiled; {_ONLY_CHAINS}")
        if not set(variables(value)) <= known or any(_size(arg) > 1 for arg in value.args):
            raise UnsupportedGraph(f"'{name}' after a dense layer mixes features; {_ONLY_CHAINS}")
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
    start = _starts(line)[0]
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


def _on_observations(layer: Layer, features: Features) -> tuple[Layer, tuple[np.ndarray, np.ndarray]]:
    """The first layer as one of raw observations, and the limits these are clipped to.

    A clip of features is one of single observations, if every feature is made of one.
    """
    matrix, bias = features.matrix, features.bias
    low, high = np.full(len(matrix), -np.inf), np.full(len(matrix), np.inf)
    if np.isfinite([features.low, features.high]).any():
        if np.any((matrix != 0).sum(0) != 1) or np.any((matrix != 0).sum(1) > 1):
            raise UnsupportedGraph("a clip before the first layer mixes observations; only single ones can be clipped")
        feature_of = np.abs(matrix).argmax(0)
        slopes = matrix[feature_of, np.arange(matrix.shape[1])]
        ends = np.sort([(end - bias) / slopes for end in (features.low, features.high)], axis=0)
        low[feature_of], high[feature_of] = ends
    weight = matrix @ layer.weight.astype(np.float64)
    total = bias @ layer.weight.astype(np.float64) + layer.bias
    return Layer(weight.astype(np.float32), total.astype(np.float32), layer.function), (low, high)


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
