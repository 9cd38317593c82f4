# SPDX-License-Identifier: Apache-2.0
"""What a kernel is asked in a trial, and what it must answer.

Integer kernels follow `relay_passes/fixedpoint.py` bit for bit. Float kernels are computed in float64 and may differ by
what float32 can lose in any order of summation: enough to reject a wrong schedule, and a policy's parity is judged bit
for bit when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relay_passes import fixedpoint
from schedules import Kernel
from schedules import kernels as k

UNIT_ROUNDOFF = 2.0**-24
FUNCTION_ERROR = 1e-6  # our float32 tanh and sigmoid; measured 3.3e-7
# QuantizeInt8 leaves no accumulator nearer to int32's end than this; what comes nearer is not asked.
LARGEST = 2**31 - 1 - 2**15
WIDE_LIMIT = 2**14 - 1  # codes of a wide first layer
FLOAT_FUNCTIONS = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 0.5 + 0.5 * np.tanh(0.5 * x),
}


@dataclass(frozen=True, eq=False)
class Exam:
    """`questions` (n, n_in) in the kernel's own dtype, `answers` (n, n_answers) likewise; `bounds` of the same shape say
    how far an answer may be off, None for bit for bit."""

    questions: np.ndarray
    answers: np.ndarray
    bounds: np.ndarray | None


def exam(kernel: Kernel, n_rows: int, seed: int = 0) -> Exam:
    """`n_rows` questions, the extremes first. Fewer when the answers to most are not certain."""
    rng = np.random.default_rng(seed)
    questions = _questions(kernel, 8 * n_rows, rng)
    answers, bounds, certain = _answers(kernel, questions)
    kept = np.flatnonzero(certain)[:n_rows]
    assert len(kept), f"no question to {kernel.summary} has a certain answer"
    return Exam(questions[kept], answers[kept], None if bounds is None else bounds[kept].astype(np.float32))


def _questions(kernel: Kernel, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, n_in): all at the low end, all at the high, both by turns, zeros, then random ones."""
    if isinstance(kernel, k.Quantize):
        return _observations(kernel, n, rng)
    if isinstance(kernel, k.Clamp):
        span = np.clip(kernel.high.astype(np.float64) - kernel.low, 1.0, 1e6)
        middle = np.clip((kernel.high.astype(np.float64) + kernel.low) / 2, -1e6, 1e6)
        return _with_ends(middle + span * rng.normal(size=(n, len(span))), 1e30).astype(np.float32)
    n_in = kernel.weight.shape[1]
    if kernel.weight.dtype == np.float32:
        return _with_ends(rng.normal(size=(n, n_in)), 10.0).astype(np.float32)
    wide = isinstance(kernel, k.DenseCodes) and kernel.wide
    limit = WIDE_LIMIT if wide else 127
    codes = rng.integers(-limit, limit + 1, (n, n_in))
    if wide:
        codes[n // 2 :] //= 16  # a policy's codes are mostly small, and large ones all saturate
    codes = _with_ends(codes, limit)
    if not wide:
        codes[0] = -128
    return codes.astype(np.int32 if wide else np.int8)


def _observations(kernel: k.Quantize, n: int, rng: np.random.Generator) -> np.ndarray:
    """Some beyond the codes, some at a tie between two of them, and what no integer can hold."""
    zero_point = 0 if kernel.zero_point is None else kernel.zero_point
    span = kernel.high - kernel.low
    codes = rng.uniform(kernel.low - 0.1 * span, kernel.high + 0.1 * span, (n, len(kernel.inverse_scale)))
    codes[1::2] = np.floor(codes[1::2]) + 0.5
    inverse: np.ndarray = np.maximum(kernel.inverse_scale.astype(np.float64), 1e-30)
    return np.clip(_with_ends((codes - zero_point) / inverse, 1e30), -1e30, 1e30).astype(np.float32)


def _with_ends(rows: np.ndarray, end: float) -> np.ndarray:
    rows[0], rows[1], rows[2], rows[3] = -end, end, 0, 0
    rows[2, ::2], rows[2, 1::2] = end, -end
    return rows


def _answers(kernel: Kernel, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Answers, bounds or None, and which rows (n,) have certain answers."""
    everything: np.ndarray = np.ones(len(x), bool)
    if isinstance(kernel, k.Quantize):
        return _codes_of(kernel, x), None, everything
    if isinstance(kernel, k.Clamp):
        return np.clip(x, kernel.low, kernel.high), None, everything
    if isinstance(kernel, k.DenseFloat):
        exact, bound = _float_dense(kernel.weight, kernel.bias, x)
        exact, bound = _activated(kernel.activation, exact, bound)
        return exact.astype(np.float32), bound, everything
    if isinstance(kernel, k.DenseHead) and kernel.floating:
        return _float_head(kernel, x)
    accumulator = x.astype(np.int64) @ kernel.weight.astype(np.int64).T + kernel.bias
    certain = (np.abs(accumulator) <= LARGEST).all(axis=1)
    accumulator = np.where(certain[:, np.newaxis], accumulator, 0).astype(np.int32)
    if isinstance(kernel, k.DenseCodes):
        return _codes(kernel, accumulator), None, certain
    return _read_off(kernel.answer, accumulator), None, certain


def _codes_of(kernel: k.Quantize, x: np.ndarray) -> np.ndarray:
    zero_point = 0 if kernel.zero_point is None else kernel.zero_point
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.clip((x * kernel.inverse_scale).astype(np.float64), -(2.0**40), 2.0**40)
    away = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)  # exact: a float32 and one half fit a float64
    return np.clip(away + zero_point, kernel.low, kernel.high).astype(kernel.dtype)


def _codes(kernel: k.DenseCodes, accumulator: np.ndarray) -> np.ndarray:
    if kernel.multiplier is None:
        value = fixedpoint.shift_right(accumulator.astype(np.int64), kernel.shift)
    else:
        value = fixedpoint.requantize(accumulator, kernel.multiplier, -kernel.shift).astype(np.int64)
    codes = np.clip(value + kernel.zero_point, kernel.low, kernel.high).astype(np.int8)
    return codes if kernel.table is None else fixedpoint.lookup(codes, kernel.table)


def _read_off(answer: k.Answer, accumulator: np.ndarray) -> np.ndarray:
    if isinstance(answer, k.Positive):
        return (accumulator > 0).astype(np.int32)
    if isinstance(answer, k.ArgMax):
        return np.stack([fixedpoint.argmax(run) for run in _runs(answer, accumulator)], axis=1)
    assert isinstance(answer, k.ToFloat | k.ThroughTable)
    if isinstance(answer, k.ThroughTable):
        value = fixedpoint.requantize(accumulator, answer.multiplier, -answer.shift)
        accumulator = fixedpoint.interpolate(np.clip(value, -32768, 32767), answer.table) + answer.offset
    return _bounded(answer, fixedpoint.dequantize(accumulator, answer.scale)).astype(np.float32)


def _float_dense(weight: np.ndarray, bias: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight @ x + bias in float64, and how far float32 may be from it in any order."""
    rows: np.ndarray = x.astype(np.float64)
    columns: np.ndarray = weight.astype(np.float64).T
    n = (len(columns) + 2) * UNIT_ROUNDOFF
    return rows @ columns + bias, n / (1 - n) * (np.abs(rows) @ np.abs(columns) + np.abs(bias))


def _activated(activation: str, exact: np.ndarray, bound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return FLOAT_FUNCTIONS[activation](exact), bound + FUNCTION_ERROR * (activation in {"tanh", "sigmoid"})


def _float_head(kernel: k.DenseHead, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    exact, bound = _float_dense(kernel.weight, kernel.bias, x)
    answer = kernel.answer
    if isinstance(answer, k.Positive):
        return (exact > 0).astype(np.int32), None, (np.abs(exact) > bound).all(axis=1)
    if isinstance(answer, k.ArgMax):
        runs = _runs(answer, exact)
        clear = [_margin(run) > 2 * b.max(axis=1) for run, b in zip(runs, _runs(answer, bound), strict=True)]
        return np.stack([run.argmax(axis=1) for run in runs], axis=1).astype(np.int32), None, np.all(clear, axis=0)
    assert isinstance(answer, k.Activate)
    exact, bound = _activated(answer.activation, exact, bound)
    scale = np.float64(1) if answer.scale is None else answer.scale.astype(np.float64)
    offset = np.float64(0) if answer.offset is None else answer.offset.astype(np.float64)
    exact = exact * scale + offset
    bound = bound * np.abs(scale) + 4 * UNIT_ROUNDOFF * (np.abs(exact) + np.abs(offset))
    return _bounded(answer, exact).astype(np.float32), bound, np.ones(len(x), bool)


def _runs(answer: k.ArgMax, values: np.ndarray) -> list[np.ndarray]:
    return np.split(values, np.cumsum(answer.runs)[:-1], axis=1)


def _margin(run: np.ndarray) -> np.ndarray:
    if run.shape[1] == 1:
        return np.full(len(run), np.inf)
    best = np.sort(run, axis=1)
    return best[:, -1] - best[:, -2]


def _bounded(answer: k.ToFloat | k.ThroughTable | k.Activate, values: np.ndarray) -> np.ndarray:
    low = -np.inf if answer.low is None else answer.low
    high = np.inf if answer.high is None else answer.high
    return np.maximum(np.minimum(values, high), low)
