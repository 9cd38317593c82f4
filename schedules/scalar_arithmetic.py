# SPDX-License-Identifier: Apache-2.0
"""The law's arithmetic for accumulators known to be small, in the words that become the fewest instructions.

LLVM knows no bound of an accumulator, so it cannot find these forms itself. And it branches on a maximum or minimum
where a core has no conditional move (Thumb-1, RISC-V): the masks below keep the count of instructions the same for
every observation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from schedules.kernels import DenseCodes, DenseHead, Quantize


def largest_accumulator(kernel: DenseCodes | DenseHead) -> int:
    """The largest magnitude that bias and products can sum up to, for codes of int8, int16 or of 14 bits and a sign."""
    code = 1 << 14 if kernel.weight.dtype == np.int16 else -int(np.iinfo(kernel.reads).min)
    products = code * np.abs(kernel.weight.astype(np.int64)).sum(1)
    return int((np.abs(kernel.bias.astype(np.int64)) + products).max())


def high_by_doubling(value: Any, multiplier: Any) -> Any:
    """round(value * multiplier / 2^31), ties up, for |value| < 2^30: the high word of 2 value * multiplier.

    Doubled unsigned: LLVM would move a signed doubling behind the multiplication, where it takes two words.
    """
    doubled = T.reinterpret("int32", T.shift_left(T.reinterpret("uint32", value), T.uint32(1)))
    product = T.bind(T.Cast("int64", doubled) * T.Cast("int64", multiplier))
    half = T.reinterpret("int32", T.shift_right(T.Cast("uint32", product), T.uint32(31)))
    return T.Cast("int32", T.shift_right(product, T.int64(32))) + half


def high_by_halves(value: Any, multiplier: Any) -> Any:
    """round(value * multiplier / 2^31), ties up, for |value| < 2^28, of products that fit 32 bits.

    With value = 2^15 v + w, |w| <= 2^14, and multiplier = 2^16 m + n, the product is
    2^31 v m + 2^15 (v n + 2 w m) + w n; what w n has below 2^15 cannot change the rounding.
    """
    w = T.bind(T.shift_right(T.shift_left(value, T.int32(17)), T.int32(17)))
    v = T.bind(T.shift_right(value - w, T.int32(15)))
    m = T.bind(T.shift_right(multiplier, T.int32(16)))
    n = T.bind(T.bitwise_and(multiplier, T.int32(0xFFFF)))
    middle = v * n + w * m * T.int32(2) + T.shift_right(w * n, T.int32(15)) + T.int32(1 << 15)
    return v * m + T.shift_right(middle, T.int32(16))


def rounded_code(kernel: DenseCodes, scaled: Any) -> Any:
    """round(scaled / 2^shift) + zero_point with one sum, for |scaled| <= 2^30."""
    rounding = ((1 << kernel.shift) >> 1) + kernel.zero_point * (1 << kernel.shift)
    return T.shift_right(scaled + T.int32(rounding), T.int32(kernel.shift))


def clamp_by_masks(value: Any, low: int, high: int) -> Any:
    """max(min(value, high), low) without a branch, for |value| <= 2^31 - 129."""
    over = T.bind(T.int32(high) - value)
    value = T.bind(value + T.bitwise_and(over, T.shift_right(over, T.int32(31))))
    under = T.bind(T.int32(low) - value)
    return value + T.bitwise_and(under, T.bitwise_not(T.shift_right(under, T.int32(31))))


def has_integer_code(kernel: Quantize) -> bool:
    """Whether `integer_code` is exact for the scales: normal numbers, too small to make anything of a subnormal."""
    doubled: np.ndarray = (2 * kernel.inverse_scale).astype(np.float32)
    return bool(np.all((doubled >= 2.0**-126) & (doubled < 2.0**100)))


def integer_code(observation: Any, doubled_inverse_scale: Any) -> Any:
    """`Quantize`'s round(observation * inverse_scale) from the bits of two floats, or what is past 2^18 where it is.

    With significands of 24 bits, their product p in [2^46, 2^48) and the sum of the exponents E, the float product is
    p * 2^(E - 46) rounded to 24 bits. Below 2^20 it has bits behind the point, so that whether a tie went to even
    cannot be seen in its whole part: half a last place is added, and the rest shifted out.
    """
    x, y = (T.bind(T.reinterpret("int32", value)) for value in (observation, doubled_inverse_scale))
    significands = [T.Cast("int64", (x_or_y & T.int32(0x7FFFFF)) | T.int32(0x800000)) for x_or_y in (x, y)]
    product = T.bind(T.Cast("int32", T.shift_right(significands[0] * significands[1], T.int64(18))))  # in [2^28, 2^30)
    exponents = [T.shift_right(x_or_y, T.int32(23)) & T.int32(255) for x_or_y in (x, y)]
    shift = T.bind(T.int32(28 + 2 * 127) - exponents[0] - exponents[1])
    rounded = T.bind(product + T.shift_left(T.int32(16), T.shift_right(product, T.int32(29))))
    doubled = T.shift_right(rounded, clamp_by_masks(shift, 8, 31))
    magnitude = T.bind(T.shift_right(doubled + T.int32(1), T.int32(1)))
    sign = T.bind(T.shift_right(T.bitwise_xor(x, y), T.int32(31)))
    return T.bitwise_xor(magnitude, sign) - sign
