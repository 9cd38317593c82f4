# SPDX-License-Identifier: Apache-2.0
"""What a float32 policy must answer, bit for bit on every core: the sums of `schedules/kernels.py`, step by step in numpy.

    hidden layer   sum = bias;  sum = fma(x[k], weight[k], sum) for k in order
    head           four such sums from 0, the input k in the sum k mod 4;  ((s0 + s1) + (s2 + s3)) + bias
    sum, product   of two tensors: rounded once an element
    softmax        the steps of `schedules/softmax.py`, e[0] + e[1] + ... in order
    fma(a, b, c)   a b + c, rounded to float32 once

Why steps and not a matrix product: rounding depends on the order, and numpy's order on the machine.
Sources: S. Boldo, G. Melquiond, Emulation of FMA and correctly rounded sums, IEEE Transactions on Computers 57(4), 2008
(rounding to odd first); D. E. Knuth, The Art of Computer Programming, volume 2, section 4.2.2 (the error of a sum).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tvm.ir import Var

    from relay_passes.head import Continuous, Decision, Head
    from relay_passes.network import Network, Node

F32 = np.float32
Values = np.ndarray | np.floating
SMALLEST_NORMAL = F32(2.0**-126)


@dataclass(frozen=True)
class Float32:
    """Float32 arithmetic as IEEE 754 has it, or, `flushes`, as Helium has it: what is below 2^-126 counts as zero."""

    flushes: bool

    def fma(self, a: Values, b: Values, c: Values) -> np.ndarray:
        product = self._given(a).astype(np.float64) * self._given(b).astype(np.float64)  # exact: 48 bits of 53
        addend: np.ndarray = self._given(c).astype(np.float64)
        with np.errstate(invalid="ignore"):  # an infinity has no error, and needs none
            total = product + addend
            back = total - product
            error = (product - (total - back)) + (addend - back)
        # rounded to odd, a sum keeps on which side of a float32, or of halfway between two, it lies
        bits = total.view(np.int64)
        odd = np.where(
            (error != 0) & (bits & 1 == 0) & np.isfinite(total), np.where((error > 0) == (total > 0), 1, -1), 0
        )
        with np.errstate(over="ignore", under="ignore"):
            return self._given((bits + odd).view(np.float64).astype(F32))

    def add(self, a: Values, b: Values) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return self._given(self._given(a) + self._given(b))

    def multiply(self, a: Values, b: Values) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return self._given(self._given(a) * self._given(b))

    def _given(self, value: Values) -> np.ndarray:
        values: np.ndarray = np.asarray(value, F32)
        return np.where(np.abs(values) < SMALLEST_NORMAL, F32(0), values) if self.flushes else values


def answers(network: Network, action: Head, rows: np.ndarray, arithmetic: Float32) -> np.ndarray:
    """The actions (n, n_actions) float32 or int32 for observations (n, n_obs); NaN or -1 where a number on the way is not
    finite."""
    from relay_passes.head import Decision, Probabilities

    values: dict[Var | None, np.ndarray] = {None: _clipped(rows.astype(F32), *network.limits)}
    finite = np.isfinite(values[None]).all(axis=1)
    for node in network.nodes[:-1]:
        x = forward(node, [values[source] for source in node.sources], arithmetic)
        values[node.function.result] = x
        finite &= np.isfinite(x).all(axis=1)
    x = head(network.last.weight, network.last.bias, values[network.last.source], arithmetic)
    finite &= np.isfinite(x).all(axis=1)
    if isinstance(action, Decision):
        return np.where(finite[:, None], _decided(x, action), np.int32(-1))
    if isinstance(action, Probabilities):
        x = softmax(_continuous(x, action.logits, arithmetic), action.runs, arithmetic)
    else:
        x = _continuous(x, action, arithmetic)
    return np.where(finite[:, None] & np.isfinite(x).all(axis=1, keepdims=True), x, F32(np.nan))


def _clipped(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """To limits (n_obs,), infinite where there are none."""
    largest = np.finfo(F32).max
    return np.clip(x, np.clip(low, -largest, largest).astype(F32), np.clip(high, -largest, largest).astype(F32))


def forward(node: Node, operands: Sequence[np.ndarray], arithmetic: Float32) -> np.ndarray:
    """What a node makes of rows (n, n_in) of each of its sources."""
    from relay_passes.lower_dense import FLOAT_FUNCTIONS
    from relay_passes.network import Layer, Merge

    x = operands[0]
    if isinstance(node, Layer):
        x = dense(node.weight, node.bias, x, arithmetic)
    elif isinstance(node, Merge):
        x = merged(node.operator, x, operands[1], arithmetic)
    return activated(FLOAT_FUNCTIONS[node.function.operators], x, arithmetic)


def merged(operator: str, x: np.ndarray, y: np.ndarray, arithmetic: Float32) -> np.ndarray:
    if operator == "multiply":
        return arithmetic.multiply(x, y)
    return arithmetic.add(x, -y if operator == "subtract" else y)


def dense(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, arithmetic: Float32) -> np.ndarray:
    """weight (n_in, n_out), x (n, n_in)."""
    total = np.broadcast_to(bias.astype(F32), (len(x), len(bias)))
    for k, row in enumerate(weight.astype(F32)):
        total = arithmetic.fma(x[:, k, None], row, total)
    return total


def head(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, arithmetic: Float32) -> np.ndarray:
    lanes: list[np.ndarray] = [np.zeros((len(x), len(bias)), F32) for _ in range(4)]
    for k, row in enumerate(weight.astype(F32)):
        lanes[k % 4] = arithmetic.fma(x[:, k, None], row, lanes[k % 4])
    total = arithmetic.add(arithmetic.add(lanes[0], lanes[1]), arithmetic.add(lanes[2], lanes[3]))
    return arithmetic.add(total, bias.astype(F32))


def _decided(x: np.ndarray, head: Decision) -> np.ndarray:
    if head.positive:
        return (x > 0).astype(np.int32)
    runs = np.split(x, np.cumsum(head.runs)[:-1], axis=1)
    return np.stack([run.argmax(axis=1) for run in runs], axis=1).astype(np.int32)


def _continuous(x: np.ndarray, head: Continuous, arithmetic: Float32) -> np.ndarray:
    from relay_passes.lower_dense import FLOAT_FUNCTIONS

    scale: np.ndarray | None = head.scale.astype(F32) if np.any(head.scale != 1) else None
    offset: np.ndarray | None = head.offset.astype(F32) if np.any(head.offset) else None
    x = affine(activated(FLOAT_FUNCTIONS[head.function.operators], x, arithmetic), scale, offset, arithmetic)
    if head.high is not None:
        x = np.minimum(x, head.high.astype(F32))
    return x if head.low is None else np.maximum(x, head.low.astype(F32))


def affine(x: np.ndarray, scale: np.ndarray | None, offset: np.ndarray | None, arithmetic: Float32) -> np.ndarray:
    if scale is not None and offset is not None:
        return arithmetic.fma(x, scale, offset)
    if scale is not None:
        return arithmetic.multiply(x, scale)
    return x if offset is None else arithmetic.add(x, offset)


def activated(activation: str, x: np.ndarray, arithmetic: Float32) -> np.ndarray:
    if activation == "relu":
        return np.maximum(x, F32(0))
    if activation == "tanh":
        return tanh(x, arithmetic)
    if activation == "sigmoid":
        half = F32(0.5)
        return arithmetic.fma(tanh(arithmetic.multiply(x, half), arithmetic), half, half)
    assert activation == "identity", activation
    return x


def tanh(x: np.ndarray, arithmetic: Float32) -> np.ndarray:
    """As `schedules/arithmetic.py` describes it: x P(x²) / Q(x²), the quotient from two steps towards 1 / Q."""
    from schedules.arithmetic import TANH_LIMIT, TANH_P, TANH_Q

    fma, one = arithmetic.fma, F32(1)
    x = np.clip(x, F32(-TANH_LIMIT), F32(TANH_LIMIT))
    square = arithmetic.multiply(x, x)
    numerator = fma(arithmetic.multiply(x, square), _polynomial(TANH_P[1:], square, arithmetic), x)
    negative = _polynomial([-c for c in TANH_Q], square, arithmetic)
    return np.clip(arithmetic.multiply(numerator, reciprocal(negative, arithmetic)), -one, one)


def reciprocal(negative: np.ndarray, arithmetic: Float32) -> np.ndarray:
    """-1 / negative, a number below zero: a guess from its bits, and two of the steps that cube the error."""
    from schedules.arithmetic import RECIPROCAL_BITS

    fma, one = arithmetic.fma, F32(1)
    r = (np.int32(RECIPROCAL_BITS) - negative.view(np.int32)).view(F32)
    for _ in range(2):
        error = fma(negative, r, one)
        r = fma(r, fma(error, error, error), r)
    return r


def softmax(x: np.ndarray, runs: Sequence[int], arithmetic: Float32) -> np.ndarray:
    """As `schedules/softmax.py` describes it; not a number where a logit is none that is finite."""
    from schedules.softmax import EXP, LN_2, LOG2_E

    parts = []
    for logits in np.split(x, np.cumsum(runs)[:-1], axis=1):
        with np.errstate(invalid="ignore"):
            y = -np.minimum(np.abs(arithmetic.add(logits, -logits.max(axis=1, keepdims=True))), F32(64))
        finite = np.isfinite(logits).all(axis=1, keepdims=True)
        y = np.where(finite, y, F32(0))
        k = np.trunc(arithmetic.fma(y, F32(LOG2_E), F32(-0.5)))
        r = arithmetic.fma(k, F32(-LN_2[1]), arithmetic.fma(k, F32(-LN_2[0]), y))
        power = np.ldexp(_polynomial(EXP, r, arithmetic), k.astype(np.int32))
        total: np.ndarray = np.zeros((len(x), 1), F32)
        for column in power.T:
            total = arithmetic.add(total, column[:, None])
        part = arithmetic.multiply(power, reciprocal(-total, arithmetic))
        parts.append(np.where(finite, part, F32(np.nan)))
    return np.concatenate(parts, axis=1)


def _polynomial(coefficients: Sequence[float], x: np.ndarray, arithmetic: Float32) -> np.ndarray:
    result = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = arithmetic.fma(result, x, F32(coefficient))
    return result
