# SPDX-License-Identifier: Apache-2.0
"""Read what follows the last dense layer: a decision, numbers, or probabilities.

argmax(x, axis=1)                                    Decision(runs=(n,))
concat(argmax(slice(x)), ...)                        Decision(runs=(n1, n2, ...))
greater(x, 0)                                        Decision(runs=(n,), positive=True)
minimum(maximum(f(x) * scale + offset, low), high)   Continuous(f, scale, offset, low, high), any of them absent
softmax(x)                                           Probabilities(runs=(n,), logits=Continuous(...))
concat(softmax(slice(x)), ...)                       Probabilities(runs=(n1, n2, ...), logits=Continuous(...))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.ir import Tuple, TupleGetItem, Var

from .dataflow import constant, dtype_of, op_name, shape_of
from .evaluate import evaluate_expr
from .network import Binding, Function, Network, UnsupportedGraph, elementwise


@dataclass(frozen=True)
class Decision:
    """The first largest of each run of outputs; or, `positive`, whether each output is above zero."""

    runs: tuple[int, ...]
    positive: bool = False


@dataclass(frozen=True)
class Continuous:
    """clip(function(x) * scale + offset, low, high): arrays (n,) float64, bounds or None."""

    function: Function
    scale: np.ndarray
    offset: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


@dataclass(frozen=True)
class Probabilities:
    """The softmax of each run of `logits`, which `row` holds."""

    runs: tuple[int, ...]
    logits: Continuous
    row: Var


Head = Decision | Continuous | Probabilities


_SPLITS = ("split", "strided_slice")


def read_head(network: Network) -> Head:
    """The head of a network. Raises UnsupportedGraph."""
    n = len(network.last.bias)
    body = without_reshapes(network.head)
    if any(op_name(value) == "nn.softmax" for _, value in body):
        return _probabilities(network, body, n)
    decision = read_decision(body, n)
    if decision is None:
        return _continuous(body, network.last.function.result, n)
    if not _decides(network, decision, n):
        raise UnsupportedGraph(f"arg max of slices of {n} outputs; every output must take part, once and in order")
    return decision


def without_reshapes(body: Sequence[Binding]) -> list[Binding]:
    """A batch of one has one order of elements, whatever its shape."""
    return [(var, value) for var, value in body if not _is_reshape(value)]


def read_decision(body: Sequence[Binding], n: int) -> Decision | None:
    """The decision made of `n` outputs, None where they are numbers. Raises UnsupportedGraph."""
    names = [op_name(value) for _, value in body]
    if names == ["argmax"]:
        return Decision((n,))
    if names == ["greater"] and np.all(constant(body[0][1].args[1]) == 0):
        return Decision((n,), positive=True)
    return Decision(_runs(body, n)) if "argmax" in names else None


def split_bounds(body: Sequence[Binding], n: int) -> tuple[list[Binding], np.ndarray | None, np.ndarray | None]:
    """`body` without the clamps at its end, and their lower and upper bounds (n,)."""
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    steps = list(body)
    while steps:
        _, value = steps[-1]
        name = op_name(value)
        bound = constant(value.args[1]) if len(value.args) > 1 else None
        if name == "clip":
            low = _tighter(np.maximum, low, np.full(n, float(value.args[1].value)))
            high = _tighter(np.minimum, high, np.full(n, float(value.args[2].value)))
        elif name == "maximum" and bound is not None:
            low = _tighter(np.maximum, low, np.broadcast_to(bound.reshape(-1), n))
        elif name == "minimum" and bound is not None:
            high = _tighter(np.minimum, high, np.broadcast_to(bound.reshape(-1), n))
        else:
            break
        steps.pop()
    return steps, low, high


def _is_reshape(value: relax.Expr) -> bool:
    """A batch of one has one order of elements."""
    return op_name(value) in ("reshape", "squeeze", "expand_dims", "flatten")


def _runs(body: Sequence[Binding], n: int) -> tuple[int, ...]:
    """Lengths of the slices that are argmaxed in turn; together they must be the whole."""
    extents = []
    for _, value in body:
        if op_name(value) == "argmax":
            extents.append(shape_of(value.args[0])[1])
        elif op_name(value) not in (*_SPLITS, "concat") and not isinstance(value, Tuple | TupleGetItem):
            raise UnsupportedGraph(f"'{op_name(value)}' among the actions of several spaces cannot be compiled")
    if sum(extents) != n:
        raise UnsupportedGraph(f"arg max of {sum(extents)} of {n} outputs; every output must take part, in order")
    return tuple(extents)


def _decides(network: Network, decision: Decision, n: int) -> bool:
    """Whether the head makes this decision of random outputs: runs are lengths, and say nothing of order."""
    rows = np.random.default_rng(0).normal(size=(64, n))
    values = {network.last.function.result: rows[:, np.newaxis]}
    for var, value in network.head:
        values[var] = evaluate_expr(value, values, np.float64)
    runs = np.split(rows, np.cumsum(decision.runs)[:-1], axis=1)
    wanted = rows > 0 if decision.positive else np.stack([run.argmax(1) for run in runs], axis=1)
    return np.array_equal(values[network.head[-1][0]].reshape(64, -1), wanted)


def _probabilities(network: Network, body: Sequence[Binding], n: int) -> Probabilities:
    names = [op_name(value) for _, value in body]
    begin = next(i for i, name in enumerate(names) if name in _SPLITS or name == "nn.softmax")
    runs: list[int] = []
    for _, value in body[begin:]:
        name = op_name(value)
        if name == "nn.softmax":
            run = shape_of(value)[value.attrs.axis]
            runs += [run] * (int(np.prod(shape_of(value))) // run)
        elif name not in (*_SPLITS, "concat") and not isinstance(value, Tuple | TupleGetItem):
            raise UnsupportedGraph(f"'{name}' after a softmax cannot be compiled; probabilities are the action itself")
    row = body[begin - 1][0] if begin else network.last.function.result
    if not _is_softmax(network, row, tuple(runs), n):
        raise UnsupportedGraph(
            f"softmax of slices of {n} outputs; every output must take part, once and in order, and no other way"
        )
    return Probabilities(tuple(runs), _continuous(body[:begin], network.last.function.result, n), row)


def _is_softmax(network: Network, row: Var, runs: tuple[int, ...], n: int) -> bool:
    """Whether the head makes probabilities of these runs of random numbers: runs are lengths, and say nothing of order."""
    if sum(runs) != n:
        return False
    rows = np.random.default_rng(0).normal(size=(64, n))
    values = {row: rows.reshape(64, *shape_of(row))}
    at = next((i for i, (var, _) in enumerate(network.head) if var.same_as(row)), -1)
    for var, value in network.head[at + 1 :]:
        values[var] = evaluate_expr(value, values, np.float64)
    powers = [np.exp(run) for run in np.split(rows, np.cumsum(runs)[:-1], axis=1)]
    wanted = np.concatenate([power / power.sum(1, keepdims=True) for power in powers], axis=1)
    return np.allclose(values[network.head[-1][0]].reshape(64, -1), wanted)


def _continuous(body: Sequence[Binding], last: Var, n: int) -> Continuous:
    if body and dtype_of(body[-1][0]) == "bool":
        decides = " -> ".join(op_name(value) for _, value in body)
        raise UnsupportedGraph(
            f"'{decides}' of the last layer's output cannot be compiled; of decisions by sign there is: > 0"
        )
    scale, offset = np.ones(n), np.zeros(n)
    # from the end: bounds, then a per-action sum, then a per-action product; the rest is one function of every output
    steps, low, high = split_bounds(body, n)
    if steps and op_name(steps[-1][1]) == "add" and (values := constant(steps[-1][1].args[1])) is not None:
        offset = np.broadcast_to(values.reshape(-1), n).astype(np.float64)
        steps, lower, upper = split_bounds(steps[:-1], n)  # a product is clipped where a sum is, `offset` before it
        low = low if lower is None else _tighter(np.maximum, low, lower + offset)
        high = high if upper is None else _tighter(np.minimum, high, upper + offset)
    if steps and op_name(steps[-1][1]) == "multiply" and (values := constant(steps[-1][1].args[1])) is not None:
        scale = np.broadcast_to(values.reshape(-1), n).astype(np.float64)
        steps.pop()
    return Continuous(elementwise(last, steps), scale, offset, low, high)


def _tighter(choose: np.ufunc, bound: np.ndarray | None, other: np.ndarray) -> np.ndarray:
    return other if bound is None else choose(bound, other)
