# SPDX-License-Identifier: Apache-2.0
"""The law for int8 and int16: what every kernel, on every target, must compute to the last bit. Plain numpy, no TVM.

    code        = saturate(round(observation * inverse_scale) + zero_point)             quantize_observation
    accumulator = weight @ code + bias                      (n, k) @ (k,) + (n,)        dense_int8
    value       = accumulator * multiplier * 2^(shift - 31)                             requantize
    code'       = clamp(value + zero_point), perhaps through a table                    clamp_int8, lookup, interpolate
    action      = float32(accumulator) * scale, or the index of the largest             dequantize, argmax
    probability = (code + 128) / 256                                                    softmax_int8

and for int16, codes of 16 bits under weights of 8:

    code'       = clamp(accumulator * multiplier * 2^(shift - 15)), perhaps interpolated     requantize_int16
    probability = code / 32768                                                               softmax_int16

Why one file: schedules, emitted C and tests compare themselves with it by `==`: a rounding is spelled here or nowhere.

Integers come as any integer dtype and are checked by value; they leave in the dtype the docstring names. Leading axes
are samples. A wrong kind of number raises TypeError, one out of range ValueError, an accumulator that does not fit
OverflowError.

Source: TFLite `QuantizeMultiplier` and `MultiplyByQuantizedMultiplier` (tflite/kernels/internal/), gemmlowp
`SaturatingRoundingDoublingHighMul` and `RoundingDivideByPOT` (fixedpoint/fixedpoint.h), CMSIS-NN `arm_nn_requantize`
(Include/arm_nnsupportfunctions.h at 99f736a), LiteRT `FullyConnectedPerChannel` (the overload with float scales, in
reference/integer_ops/fully_connected.h beside the first). For softmax TFLite `PreprocessSoftmaxScaling`, gemmlowp
`exp_on_negative_values` and `one_over_one_plus_x_for_x_in_0_1` (fixedpoint/fixedpoint.h), CMSIS-NN `arm_softmax_s8`. For
int16 CMSIS-NN `REDUCE_MULTIPLIER` and `arm_nn_requantize_s64`, TFLite `MultiplyByQuantizedMultiplier(int64_t, ...)`; for
its softmax CMSIS-NN `arm_softmax_s16`, TFLite `gen_lut` and `SoftmaxPrepare`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
SHIFT_MIN, SHIFT_MAX = -31, 30  # what arm_nn_requantize accepts
SHIFT_MAX_INT16 = 7  # what arm_nn_requantize_s64 accepts, from -31
SOFTMAX_MOST = 255  # numbers in a run of a softmax: of more the sum leaves the bits that arm_softmax_s8 has for it
SOFTMAX_REACH = 10  # logits this far below the largest have no probability in int16
ZERO_POINT_MAX = 2**18 + 128  # kernels clip a product at 2^19 codes, which must be past every code for any zero point


def quantize_multiplier(real: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Write a scale as an integer: real = multiplier * 2^(shift - 31), multiplier in [2^30, 2^31); shift > 0 is left.

    real float64 (...) -> multiplier int32 (...), shift int32 (...). Zero, and what is too small for a shift of -31,
    becomes (0, 0). ValueError: negative, not finite, or 2^30 and above.
    Source: TFLite `QuantizeMultiplier`. The multiplier rounds half away from zero, like its `TfLiteRound`.
    """
    real = _scales(real)
    fraction, shift = np.frexp(real)  # fraction in [0.5, 1)
    multiplier = _nearest_away(fraction * 2.0**31)
    carried = multiplier == 2**31  # 0.99999999999 rounds up to 1: one bit too many for int32
    multiplier, shift = np.where(carried, 2**30, multiplier), shift + carried
    if np.any(shift > SHIFT_MAX):
        raise ValueError(f"a scale of {np.max(real):g} needs a left shift over {SHIFT_MAX}; have: scales below 2^30")
    representable = (shift >= SHIFT_MIN) & (real > 0)
    return np.where(representable, multiplier, 0).astype(np.int32), np.where(representable, shift, 0).astype(np.int32)


def common_shift_multipliers(real: np.ndarray) -> tuple[np.ndarray, int]:
    """Write the scales of a layer with one shift, its largest channel's: real = multiplier * 2^(shift - 31).

    real float64 (n,) -> multiplier int32 (n,), in [0, 2^31), and shift. A channel 2^d times smaller than the largest
    keeps 31 - d bits. The pairs stay legal for `requantize` and `arm_nn_requantize`, which ask for no normalisation.
    ValueError: empty, and as `quantize_multiplier`.

    Why: the device's rounding shift is then an immediate, and folds into the narrowing instruction (vqrshrn).
    """
    real = _scales(real)
    if not real.size:
        raise ValueError("no scales given; a layer has at least one channel")
    shift = int(quantize_multiplier(real.max())[1])
    return _nearest_away(np.ldexp(real, 31 - shift)).astype(np.int32), shift


def requantize(
    accumulator: np.ndarray,
    multiplier: np.ndarray | int,
    shift: np.ndarray | int,
    rounding: Literal["double", "single"] = "double",
) -> np.ndarray:
    """accumulator * multiplier * 2^(shift - 31), rounded: int32 (..., n), per layer () or per channel (n,) -> int32.

    "double" is the device: `arm_nn_requantize` as it is built by default, and gemmlowp. The product rounds to Q31 with
    ties up, then the right shift rounds with ties away from zero. (gemmlowp nudges a negative product by 1 - 2^30 and
    lets C's division truncate: the same number as ties up.)
    "single" is LiteRT's reference kernels: the product rounds once, ties away from zero, as their C `round`. They keep
    the scale in float64 where we have Q31, so they can part from us within |accumulator| * 2^(shift - 32) of a tie.
    It is not TFLITE_SINGLE_ROUNDING or CMSIS_NN_USE_SINGLE_ROUNDING: those send ties up.

    Where C has no answer: a left shift under "double" drops the bits above 31, as Helium's vshl does (in C the overflow
    of `val * (1 << shift)` is undefined); -2^31 times -2^31 saturates, as vqrdmulh and gemmlowp do (CMSIS-NN's scalar
    code excludes that multiplier); under "single" what a left shift made too large for int32 saturates.
    ValueError: beyond int32, a shift outside [-31, 30], an unknown rounding.
    """
    accumulator = _integers("accumulator", accumulator, INT32_MIN, INT32_MAX)
    multiplier = _integers("multiplier", multiplier, INT32_MIN, INT32_MAX)
    shift = _integers("shift", shift, SHIFT_MIN, SHIFT_MAX)
    if rounding == "single":
        nearest = shift_right(accumulator * multiplier, 31 - shift, ties="away")
        return np.clip(nearest, INT32_MIN, INT32_MAX).astype(np.int32)
    if rounding != "double":
        raise ValueError(f"no rounding '{rounding}'; have: double, single")
    shifted = (accumulator << np.maximum(shift, 0)).astype(np.int32).astype(np.int64)
    high = np.minimum(shift_right(shifted * multiplier, 31), INT32_MAX)
    return shift_right(high, np.maximum(-shift, 0), ties="away").astype(np.int32)


def reduce_multiplier(multiplier: np.ndarray | int) -> np.ndarray:
    """The upper 16 bits of a multiplier, in [0, 2^15): int32 (...) -> int32 (...). Ties up; no carry into a 17th bit.

    Source: CMSIS-NN `REDUCE_MULTIPLIER`; TFLite has the same inside `MultiplyByQuantizedMultiplier`.
    """
    multiplier = _integers("multiplier", multiplier, 0, INT32_MAX)
    return np.minimum(shift_right(multiplier, 16), 2**15 - 1).astype(np.int32)


def requantize_int16(accumulator: np.ndarray, multiplier: np.ndarray | int, shift: np.ndarray | int) -> np.ndarray:
    """accumulator * multiplier * 2^(shift - 15), rounded once with ties up: (..., n) of at most 48 bits, multiplier in
    [0, 2^15), per layer () or per channel (n,) -> int32 (..., n).

    `arm_nn_requantize_s64` shifts in two steps, floor(floor(2 x) + 1) / 2), which is the same number; so is TFLite's, where
    15 - shift is the right shift. OverflowError: a value of 2^30 or more, of which CMSIS-NN would drop bits.
    """
    accumulator = _integers("accumulator", accumulator, -(2**47), 2**47 - 1)
    multiplier = _integers("multiplier", multiplier, 0, 2**15 - 1)
    shift = _integers("shift", shift, SHIFT_MIN, SHIFT_MAX_INT16)
    value = shift_right(accumulator * multiplier, 15 - shift)
    if value.size and (value.min() < -(2**30) or value.max() >= 2**30):
        raise OverflowError(f"a requantised accumulator spans {value.min():,} to {value.max():,}; have: 31 bits")
    return value.astype(np.int32)


def dense_int8(codes: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Accumulators weight @ codes + bias: int8 or int16 (..., k), int8 or int16 (n, k), int32 (n,) -> int32 (..., n).

    An input's zero point is the bias's business: bias - zero_point * weight.sum(1). Sums are taken in int64.
    OverflowError: a sum beyond int32. (Partial sums are not looked at: of int8 it takes k > 131,000 to overflow one.)
    Source: the TFLite 8-bit quantisation specification; weights are symmetric, so they have no zero point.
    """
    codes = _integers("codes", codes, -(2**15), 2**15 - 1)
    weight = _integers("weight", weight, -(2**15), 2**15 - 1)
    bias = _integers("bias", bias, INT32_MIN, INT32_MAX)
    if weight.ndim != 2 or codes.shape[-1:] != weight.shape[1:] or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"codes {codes.shape}, weight {weight.shape} and bias {bias.shape} do not fit; have: (..., k), (n, k), (n,)"
        )
    accumulator = codes @ weight.T + bias
    if np.any(accumulator != accumulator.astype(np.int32)):
        raise OverflowError(f"an accumulator reaches {np.abs(accumulator).max():,}; int32 ends at {INT32_MAX:,}")
    return accumulator.astype(np.int32)


def clamp_int8(value: np.ndarray, zero_point: np.ndarray | int, low: int = -128, high: int = 127) -> np.ndarray:
    """clamp(value + zero_point, low, high): int32 (...) -> int8 (...). A fused ReLU is low = zero_point.

    The sum is exact, it does not wrap: a kernel adds after narrowing with saturation, or knows its accumulators' range.
    """
    value = _integers("value", value, INT32_MIN, INT32_MAX)
    zero_point = _integers("zero_point", zero_point, -128, 127)
    if not -128 <= low <= high <= 127:
        raise ValueError(f"a clamp of {low} to {high} is not a range of int8, -128 to 127")
    return np.clip(value + zero_point, low, high).astype(np.int8)


def quantize_observation(
    observation: np.ndarray,
    inverse_scale: np.ndarray | float,
    zero_point: np.ndarray | int = 0,
    bits: Literal[8, 16] = 8,
) -> np.ndarray:
    """saturate(round(observation * inverse_scale) + zero_point): float32 (..., n), (n,), int32 (n,) -> int8 or int16.

    `inverse_scale` is codes per observation unit, one a feature. The product is one float32 multiplication, never fused
    with the sum; it rounds half away from zero; one too large for float32 saturates, as the device's conversion does.
    A zero point may be no code itself: a feature that is always near 1000 has zero far outside its range.
    ValueError: NaN or infinite (the device refuses them before this point), a zero point beyond ZERO_POINT_MAX.
    Source: TFLite `AffineQuantize`, with the division replaced by a multiplication: cores have no vector divide.
    """
    if bits not in (8, 16):
        raise ValueError(f"no code of {bits} bits; have: 8, 16")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    zero_point = _integers("zero_point", zero_point, -ZERO_POINT_MAX, ZERO_POINT_MAX)
    observation = np.asarray(observation, np.float32)
    inverse_scale = np.asarray(inverse_scale, np.float32)
    if not (np.isfinite(observation).all() and np.isfinite(inverse_scale).all()):
        raise ValueError("an observation or inverse scale is NaN or infinite")
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.clip(observation * inverse_scale, INT32_MIN, -INT32_MIN)  # both ends are float32 numbers
    return np.clip(_nearest_away(scaled) + zero_point, low, high).astype(np.int8 if bits == 8 else np.int16)


def add_codes(
    x: np.ndarray, y: np.ndarray, zero_points: tuple[int, int], factors: tuple[int, int], shift: int
) -> np.ndarray:
    """((x - zero_x) * factor_x + (y - zero_y) * factor_y) / 2^shift to the nearest integer, ties away from zero: int8 or
    int16 (...) twice, factors that keep the sum within int32 -> int32 (...).

    `arm_elementwise_add_s8` and `_s16` with even factors: codes shifted to the left by 20 or 15 bits under multipliers
    factor * 2^11 or 2^16 are products without a rounding, and half their even sum has none either.
    """
    first, second = (_integers("codes", codes, -(2**15), 2**15 - 1) for codes in (x, y))
    total = (first - zero_points[0]) * factors[0] + (second - zero_points[1]) * factors[1]
    return shift_right(_integers("sum", total, INT32_MIN, INT32_MAX), shift, ties="away").astype(np.int32)


def lookup(codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[code + 128]: int8 (...), int8 (256,) -> int8 (...). Any activation of one int8 variable is such a table."""
    codes = _integers("codes", codes, -128, 127)
    return _table(table, 256, np.int8)[codes + 128].astype(np.int8)


def interpolate(code: np.ndarray, table: np.ndarray) -> np.ndarray:
    """A line between two entries: int16 (...), int16 (257,) -> int16 (...). All of it fits int32.

    The high byte + 128 picks entry a and its successor b, the low byte f of 256 lies between them:
    (a * (256 - f) + b * f + 128) >> 8, which is half up.
    """
    code = _integers("code", code, -(2**15), 2**15 - 1)
    table = _table(table, 257, np.int16)
    entry, fraction = (code >> 8) + 128, code & 255
    return shift_right(table[entry] * (256 - fraction) + table[entry + 1] * fraction, 8).astype(np.int16)


def dequantize(accumulator: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    """float32(accumulator) * scale: int32 (..., n), float32 () or (n,) in units a step -> float32 (..., n).

    Two roundings, both to nearest even: the conversion (exact below 2^24) and the one product.
    """
    accumulator = _integers("accumulator", accumulator, INT32_MIN, INT32_MAX)
    return accumulator.astype(np.float32) * np.asarray(scale, np.float32)


def argmax(accumulator: np.ndarray) -> np.ndarray:
    """Index of the largest along the last axis, the first of equals: int32 (..., n) -> int32 (...)."""
    return np.argmax(_integers("accumulator", accumulator, INT32_MIN, INT32_MAX), axis=-1).astype(np.int32)


def softmax_scaling(scale: float) -> tuple[int, int, int]:
    """(multiplier, shift, least difference) with which `softmax_int8` reads codes of `scale`.

    Differences from the largest code become numbers of 26 bits behind the point; one below the least is e^-31 and no
    probability. Scales are kept to what a shift to the left can write: any other answers the same.
    Source: TFLite `PreprocessSoftmaxScaling` and `CalculateInputRadius`, five integer bits.
    """
    multiplier, shift = quantize_multiplier(float(np.clip(scale, 2.0**-25, 15.9)) * 2.0**26)
    return int(multiplier), int(shift), -int(31 * 2**26 // 2 ** int(shift))


def softmax_int8(codes: np.ndarray, multiplier: int, shift: int, least_difference: int) -> np.ndarray:
    """Probabilities of 256 steps: int8 (..., n) -> int8 (..., n), a probability of 1 being 127, of 0 -128; n <= 255.

    exp of the differences from the largest, to 31 bits, summed to 19; 1 / sum by three of Newton's steps.
    Source: `arm_softmax_s8`; every product rounds to Q31 with ties up, every shift with ties away from zero.
    """
    difference = _below_largest(_integers("codes", codes, -128, 127))
    near = difference >= least_difference
    powers = _exp_q31(_product_q31(np.where(near, difference, 0) << shift, multiplier))
    powers = np.where(near, powers, 0)
    total = shift_right(powers, 12, ties="away").sum(-1, keepdims=True)
    headroom = 31 - np.floor(np.log2(total)).astype(np.int64)  # total < 2^27: exact
    inverse = _inverse_q31((total << headroom) - 2**31)
    steps = shift_right(_product_q31(inverse, powers), 35 - headroom, ties="away")
    return np.clip(steps - 128, -128, 127).astype(np.int8)


def softmax_int16_scaling(scale: float) -> tuple[int, int]:
    """(multiplier, shift) with which `softmax_int16` reads codes of `scale`: differences become parts of 10 / 65535.

    Scales are kept to what can be shifted: 65535 codes by 15 bits to the left fit an int32, so that one of 5 or more counts
    as nearly 5; below the least all codes are alike.
    Source: TFLite `SoftmaxPrepare`.
    """
    multiplier, shift = quantize_multiplier(float(np.clip(scale, 2.0**-30, 4.99)) * 65535 / SOFTMAX_REACH)
    return int(multiplier), int(shift)


@functools.cache
def softmax_int16_tables() -> tuple[np.ndarray, np.ndarray]:
    """exp(x) for x in [-10, 0], and 1 / (1 + x) for x in [0, 1], both (513,) int16: the numbers times 32768, 1 as 32767.

    The first entry of exp is 0, where TFLite's is 2: it stands for all that lies further below, which adds up to nothing.
    """
    powers, inverses = _knots(np.exp, -float(SOFTMAX_REACH), 0.0), _knots(lambda x: 1 / (1 + x), 0.0, 1.0)
    powers[0] = 0
    return powers, inverses


def _knots(function: Callable[[np.ndarray], np.ndarray], first: float, last: float) -> np.ndarray:
    """513 values to draw lines between, each moved by half of what the line behind it is off in its middle: TFLite
    `gen_lut`."""
    at = np.linspace(first, last, 513)
    exact = function(at) * 2.0**15
    middle = _nearest_away(function((at[:-1] + at[1:]) / 2) * 2.0**15)
    values = _nearest_away(exact)
    off = _nearest_away((exact[1:] + values[:-1]) / 2) - middle
    values[:-1] -= _nearest_away(off / 2)
    return np.minimum(values, 2**15 - 1).astype(np.int16)


def softmax_int16(
    codes: np.ndarray, multiplier: int, shift: int, powers: np.ndarray, inverses: np.ndarray
) -> np.ndarray:
    """Probabilities of 32768 steps: int16 (..., n), int16 (513,) twice -> int32 (..., n); n <= 255.

    exp of the differences from the largest, on a line between two of `powers`, and likewise 1 / sum of `inverses`.
    Source: `arm_softmax_s16`, which writes a probability of one, 32768, as -32768. A sum that rounds up to the next power of
    two is taken for what is just below, as in TFLite; `arm_softmax_s16` takes it for the power of two before, and doubles
    the row. It is one of 2^18 - 1 or more, for which it takes nine numbers.
    """
    if not SHIFT_MIN <= shift <= 15:
        raise ValueError(f"a shift of {shift} under a softmax; have: {SHIFT_MIN} to 15")
    difference = _below_largest(_integers("codes", codes, -(2**15), 2**15 - 1))
    scaled: np.ndarray = requantize(difference, multiplier, shift).astype(np.int64)
    power = _on_a_line(_table(powers, 513, np.int16), np.maximum(scaled + 65535, 0))
    total = power.sum(-1, keepdims=True)
    doubled = np.floor(np.log2(total)).astype(np.int64) - 14  # 32762 <= total < 2^23
    fraction: np.ndarray = shift_right(total << (16 - doubled), 14) - 2**16
    inverse = _on_a_line(_table(inverses, 513, np.int16), np.minimum(fraction, 65535))
    return shift_right(power * inverse, 14 + doubled).astype(np.int32)


def _on_a_line(table: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Between two of 513 entries: of 16 bits the upper nine pick, the lower seven weigh; ties up."""
    entry, part = place >> 7, place & 127
    line: np.ndarray = table[entry] + shift_right((table[entry + 1] - table[entry]) * part, 7)
    return line


def _below_largest(codes: np.ndarray) -> np.ndarray:
    """The differences from the largest of each run (..., n)."""
    if not 1 <= codes.shape[-1] <= SOFTMAX_MOST:
        raise ValueError(f"a softmax of {codes.shape[-1]} numbers; have: 1 to {SOFTMAX_MOST}")
    below: np.ndarray = codes - codes.max(-1, keepdims=True)
    return below


def _exp_q31(value: np.ndarray) -> np.ndarray:
    """exp(value / 2^26) in Q31 for value <= 0: a cubic on a quarter, and a constant for each bit of the quarters before."""
    part = (value & (2**24 - 1)) - 2**24
    quarters = part - value
    x = (part << 5) + 2**28  # about -1/8
    square = _product_q31(x, x)
    cubic = shift_right(_product_q31(square, square), 2, ties="away") + _product_q31(square, x)
    series = x + shift_right(_product_q31(cubic, 715827883) + square, 1, ties="away")
    result: np.ndarray = 1895147668 + _product_q31(series, 1895147668)
    for bit, constant in enumerate((1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242), start=24):
        result = np.where(quarters >> bit & 1, _product_q31(result, constant), result)
    return np.where(value == 0, INT32_MAX, result)


def _inverse_q31(fraction: np.ndarray) -> np.ndarray:
    """1 / (1 + fraction / 2^31) in Q31, for 0 <= fraction < 2^31."""
    half = (fraction + 2**31) >> 1
    x: np.ndarray = 1515870810 + _product_q31(half, -1010580540)
    for _ in range(3):
        error: np.ndarray = 2**29 - _product_q31(half, x)
        x = x + np.clip(_product_q31(x, error) << 2, INT32_MIN, INT32_MAX)
    return np.minimum(x << 1, INT32_MAX)


def _product_q31(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    return shift_right(a * b, 31)


def shift_right(value: np.ndarray, bits: np.ndarray | int, ties: Literal["up", "away"] = "up") -> np.ndarray:
    """value / 2^bits to the nearest integer. The only rounding of integers in this file."""
    bits = np.asarray(bits, np.int64)
    half = (np.int64(1) << bits) >> 1  # 0 for no shift
    if ties == "away":
        half = half - ((value < 0) & (bits > 0))  # a negative tie falls just short, and the shift floors it
    return (value + half) >> bits


def _nearest_away(value: np.ndarray) -> np.ndarray:
    """The nearest integer, ties away from zero, as int64. The only rounding of floats in this file.

    Python's and numpy's round send ties to even; floor(value + 0.5) is wrong next to 0.5, where the sum itself rounds.
    """
    value = np.asarray(value, np.float64)
    whole = np.trunc(value)
    return (whole + np.where(np.abs(value - whole) >= 0.5, np.sign(value), 0.0)).astype(np.int64)


def _scales(real: np.ndarray | float) -> np.ndarray:
    scales = np.asarray(real, np.float64)
    if not np.all(np.isfinite(scales) & (scales >= 0)):
        raise ValueError("a scale is negative or not finite")
    return scales


def _integers(name: str, given: np.ndarray | int, low: int, high: int) -> np.ndarray:
    """The values as int64, in which no product or sum of this file overflows."""
    values = np.asarray(given)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {values.dtype}; have: integers")
    if values.size and not (low <= values.min() and values.max() <= high):
        raise ValueError(f"{name} spans {values.min():,} to {values.max():,}; have: {low:,} to {high:,}")
    return values.astype(np.int64)


def _table(given: np.ndarray, length: int, dtype: type[np.signedinteger]) -> np.ndarray:
    table = _integers("table", given, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    if table.shape != (length,):
        raise ValueError(f"table has shape {table.shape}; have: ({length},)")
    return table
