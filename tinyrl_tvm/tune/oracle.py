# SPDX-License-Identifier: Apache-2.0
"""What a kernel is asked in a trial, and what it must answer, bit for bit.

Integer kernels follow `relay_passes/fixedpoint.py`, float kernels `tinyrl_tvm/float_oracle.py`: the order of their sums is
the kernel's, whatever the schedule. What is not asked: where an integer comes near int32's end, and where a float on the
way is past float32, or below 2^-126, which some cores take for zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relay_passes import fixedpoint
from schedules import Kernel
from schedules import kernels as k
from tinyrl_tvm import float_oracle
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.float_oracle import Float32

# QuantizeInt8 leaves no accumulator nearer to int32's end than this; what comes nearer is not asked.
LARGEST = 2**31 - 1 - 2**15
WIDE_LIMIT = 2**14 - 1  # codes of a wide first layer


@dataclass(frozen=True, eq=False)
class Exam:
    """`questions` (n, n_in) in the kernel's own dtype, `answers` (n, n_answers) likewise."""

    questions: np.ndarray
    answers: np.ndarray


def exam(kernel: Kernel, n_rows: int, seed: int = 0) -> Exam:
    """`n_rows` questions, the extremes first. Fewer when the answers to most are not certain; raises TinyrlError when
    none is."""
    rng = np.random.default_rng(seed)
    questions = _questions(kernel, 8 * n_rows, rng)
    answers, certain = _answers(kernel, questions)
    kept = np.flatnonzero(certain)[:n_rows]
    if not len(kept):
        raise TinyrlError(
            f"no question to '{kernel.summary}' has a certain answer: a number on the way is past 3.4e38, or below 1.2e-38, "
            "which some cores take for zero; name other --tasks"
        )
    return Exam(questions[kept], answers[kept])


def _questions(kernel: Kernel, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, n_in): all at the low end, all at the high, both by turns, zeros, then random ones."""
    if isinstance(kernel, k.Quantize):
        return _observations(kernel, n, rng)
    if isinstance(kernel, k.Clamp):
        span = np.clip(kernel.high.astype(np.float64) - kernel.low, 1.0, 1e6)
        middle = np.clip((kernel.high.astype(np.float64) + kernel.low) / 2, -1e6, 1e6)
        return _with_ends(middle + span * rng.normal(size=(n, len(span))), 1e30).astype(np.float32)
    if isinstance(kernel, k.Softmax):
        return _with_ends(4 * rng.normal(size=(n, kernel.n)), 1e30).astype(np.float32)
    if isinstance(kernel, k.SoftmaxCodes | k.SoftmaxInt16):
        least, most = (-128, 127) if isinstance(kernel, k.SoftmaxCodes) else (-(2**15), 2**15 - 1)
        return _with_ends(rng.integers(least, most + 1, (n, kernel.n)), most).astype(
            np.int8 if most == 127 else np.int16
        )
    assert not isinstance(kernel, k.Elementwise)  # no task: they have nothing to choose
    n_in = kernel.weight.shape[1]
    if isinstance(kernel, k.DenseFloat) or kernel.weight.dtype == np.float32:
        return _with_ends(rng.normal(size=(n, n_in)), 10.0).astype(np.float32)
    wide = isinstance(kernel, k.DenseCodes) and kernel.wide
    dtype = np.dtype("int32" if wide else kernel.reads)
    limit = WIDE_LIMIT if wide else int(np.iinfo(dtype).max)
    codes = rng.integers(-limit, limit + 1, (n, n_in))
    if dtype != np.int8:
        codes[n // 2 :] //= 16  # a policy's codes are mostly small, and large ones all saturate
    codes = _with_ends(codes, limit)
    if not wide:
        codes[0] = -limit - 1
    return codes.astype(dtype)


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


def _answers(kernel: Kernel, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers, and which rows (n,) have certain ones."""
    everything: np.ndarray = np.ones(len(x), bool)
    if isinstance(kernel, k.Quantize):
        return _codes_of(kernel, x), everything
    if isinstance(kernel, k.Clamp):
        return np.clip(x, kernel.low, kernel.high), everything
    if isinstance(kernel, k.SoftmaxCodes | k.SoftmaxInt16):
        return _probabilities(kernel, x), everything
    if isinstance(kernel, k.Softmax | k.DenseFloat) or (isinstance(kernel, k.DenseHead) and kernel.floating):
        (answers, finite), (flushed, _) = (_of_floats(kernel, x, Float32(flushes)) for flushes in (False, True))
        return answers, finite & (answers.view(np.int32) == flushed.view(np.int32)).all(axis=1)
    assert not isinstance(kernel, k.Elementwise)
    accumulator = x.astype(np.int64) @ kernel.weight.astype(np.int64).T + kernel.bias
    certain = (np.abs(accumulator) <= LARGEST).all(axis=1)
    accumulator = np.where(certain[:, np.newaxis], accumulator, 0).astype(np.int32)
    if isinstance(kernel, k.DenseCodes):
        return _codes(kernel, accumulator), certain
    return _read_off(kernel.answer, accumulator), certain


def _probabilities(kernel: k.SoftmaxCodes | k.SoftmaxInt16, x: np.ndarray) -> np.ndarray:
    if isinstance(kernel, k.SoftmaxCodes):
        scalings = zip(_runs(kernel, x), kernel.multiplier, kernel.shift, kernel.least_difference, strict=True)
        steps: list[np.ndarray] = [fixedpoint.softmax_int8(*scaling).astype(np.float32) + 128 for scaling in scalings]
        return np.concatenate(steps, axis=1) / 256
    tables, how = (kernel.powers, kernel.inverses), zip(_runs(kernel, x), kernel.multiplier, kernel.shift, strict=True)
    return np.concatenate([fixedpoint.softmax_int16(*run, *tables) for run in how], axis=1).astype(np.float32) / 32768


def _codes_of(kernel: k.Quantize, x: np.ndarray) -> np.ndarray:
    zero_point = 0 if kernel.zero_point is None else kernel.zero_point
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.clip((x * kernel.inverse_scale).astype(np.float64), -(2.0**40), 2.0**40)
    away = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)  # exact: a float32 and one half fit a float64
    return np.clip(away + zero_point, kernel.low, kernel.high).astype(kernel.dtype)


def _codes(kernel: k.DenseCodes, accumulator: np.ndarray) -> np.ndarray:
    if isinstance(kernel, k.DenseInt16):
        product: np.ndarray = accumulator.astype(np.int64) * (1 if kernel.multiplier is None else kernel.multiplier)
        codes = np.clip(fixedpoint.shift_right(product, kernel.shift), kernel.low, kernel.high).astype(np.int16)
        return codes if kernel.table is None else fixedpoint.interpolate(codes, kernel.table)
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


def _of_floats(
    kernel: k.Softmax | k.DenseFloat | k.DenseHead, x: np.ndarray, arithmetic: Float32
) -> tuple[np.ndarray, np.ndarray]:
    """Answers, and which rows (n,) stay finite on the way."""
    if isinstance(kernel, k.Softmax):
        return float_oracle.softmax(x, kernel.runs, arithmetic), np.isfinite(x).all(axis=1)
    if isinstance(kernel, k.DenseFloat):
        total = float_oracle.dense(kernel.weight.T, kernel.bias, x, arithmetic)
        return float_oracle.activated(kernel.activation, total, arithmetic), np.isfinite(total).all(axis=1)
    total = float_oracle.head(kernel.weight.T, kernel.bias, x, arithmetic)
    finite = np.isfinite(total).all(axis=1)
    answer = kernel.answer
    if isinstance(answer, k.Positive):
        return (total > 0).astype(np.int32), finite
    if isinstance(answer, k.ArgMax):
        return np.stack([run.argmax(axis=1) for run in _runs(answer, total)], axis=1).astype(np.int32), finite
    assert isinstance(answer, k.Activate)
    value = float_oracle.activated(answer.activation, total, arithmetic)
    value = float_oracle.affine(value, answer.scale, answer.offset, arithmetic)
    return _bounded(answer, value), finite & np.isfinite(value).all(axis=1)


def _runs(answer: k.ArgMax | k.Softmax | k.SoftmaxCodes | k.SoftmaxInt16, values: np.ndarray) -> list[np.ndarray]:
    return np.split(values, np.cumsum(answer.runs)[:-1], axis=1)


def _bounded(answer: k.ToFloat | k.ThroughTable | k.Activate, values: np.ndarray) -> np.ndarray:
    if answer.high is not None:
        values = np.minimum(values, answer.high)
    return values if answer.low is None else np.maximum(values, answer.low)
