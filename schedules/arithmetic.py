# SPDX-License-Identifier: Apache-2.0
"""The integer arithmetic of the kernels, as TIR expressions. `relay_passes/fixedpoint.py` is the law they follow.

Descriptions and the patterns that tensorize them call the same functions, so the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import ir, tirx
from tvm.script.ir_builder import tirx as T

LOOKUP = "tinyrl_lookup"
INTERPOLATE = "tinyrl.interpolate"


def doubling_high_multiply(value: Any, multiplier: Any) -> Any:
    """round(value * multiplier / 2^31), ties up; multipliers are never negative, so nothing saturates."""
    product = T.Cast("int64", value) * T.Cast("int64", multiplier)
    return T.Cast("int32", T.shift_right(product + T.int64(1 << 30), T.int64(31)))


def high_multiply(value: Any, multiplier: Any) -> Any:
    """floor(value * multiplier / 2^31)."""
    return T.Cast("int32", T.shift_right(T.Cast("int64", value) * T.Cast("int64", multiplier), T.int64(31)))


def doubling_high_multiply_unsigned(value: Any, multiplier: Any) -> Any:
    """The same number, by a product of unsigned numbers, for vectors that have no other.

    value * m = (value + 2^31) * m - 2^31 * m,  and what is taken off is m after the shift
    """
    unsigned = T.Cast("uint32", multiplier)
    product = T.Cast("uint64", T.bitwise_xor(T.Cast("uint32", value), T.uint32(1 << 31))) * T.Cast("uint64", unsigned)
    return T.Cast("int32", T.Cast("uint32", T.shift_right(product + T.uint64(1 << 30), T.uint64(31))) - unsigned)


def rounding_shift_right(value: Any, shift: int) -> Any:
    """(value + 2^(shift-1)) >> shift: ties up."""
    if shift == 0:
        return value
    return T.shift_right(value + T.int32(1 << (shift - 1)), T.int32(shift))


def ties_away(value: Any) -> Any:
    """One less for negatives, so that a rounding shift after it sends their ties away from zero."""
    return value + T.shift_right(value, T.int32(31))


def clamp(value: Any, low: int, high: int) -> Any:
    return T.max(T.min(value, T.int32(high)), T.int32(low))


def round_half_away(doubled: Any) -> Any:
    """Nearest integer of doubled / 2, ties away from zero, from one truncating conversion.

    Why not add one half and truncate: a compiler may contract the product before it into a fused multiply-add, and then
    the device and the host round different numbers. Integers leave it nothing to contract.
    """
    twice = T.Cast("int32", doubled)  # no T.bind: a pattern that has one cannot be matched
    return T.shift_right(twice + T.shift_right(twice, T.int32(31)) + T.int32(1), T.int32(1))


def lookup(table: Any, code: Any) -> Any:
    """table[code as an unsigned byte].

    Why a call and not a subscript: tensorize compares calls argument by argument but subscripts letter by letter, and the
    table read behind a narrowing must match. The C twin defines the function; MVE's schedule replaces it by its gather.
    """
    return T.call_extern("int8", LOOKUP, T.address_of(table[0]), code)


def interpolate(table: Any, code: Any) -> Any:
    """Between two of 257 entries: the code's high byte picks, its low byte weighs; ties up.

    Why an operator of our own: as for `lookup`, the table read must match. `_interpolated` writes it out for every code
    generator, with the code wherever it is needed: it should be a variable or an element of an array.
    """
    return tirx.call_intrin("int32", INTERPOLATE, T.address_of(table[0]), code)


def _interpolated(call: ir.Call) -> Any:
    address, code = call.args
    table = address.args[0].source
    index = T.shift_right(code, T.int32(8)) + T.int32(128)
    fraction = T.bitwise_and(code, T.int32(255))
    below = T.Cast("int32", table[index]) * (T.int32(256) - fraction)
    above = T.Cast("int32", table[index + T.int32(1)]) * fraction
    return T.shift_right(below + above + T.int32(128), T.int32(8))


ir.op._ffi_api.RegisterOp(INTERPOLATE, "a line between two entries of a table")
ir.register_op_attr(INTERPOLATE, "TCallEffectKind", tirx.CallEffectKind.Pure.value)
ir.register_op_attr(INTERPOLATE, "TScriptPrinterName", INTERPOLATE)
tirx.op.register_intrin_lowering(INTERPOLATE, target="default", f=_interpolated)


def add(a: Any, b: Any) -> Any:
    """a + b. Said as a fused multiply-add by one: that no compiler of the C twin may put into another order."""
    return T.fma(a, T.float32(1), b)


# tanh(x) = x P(x²) / Q(x²) for |x| < 9, where float32's tanh is 1: least squares on the relative error, 2e-8 in exact
# arithmetic and 4e-7 in float32. newlib's tanhf alone costs 12,000 instructions in a whole policy.
TANH_LIMIT = 9.0
# Seven digits, because TVM's C target prints no more: both codegens then have the same numbers.
TANH_P = (1.0, 1.338102e-01, 3.495585e-03, 2.060902e-05, 1.335455e-08)
TANH_Q = (1.0, 4.671434e-01, 2.587697e-02, 3.285629e-04, 7.776517e-07)
# The bits of -1/y are about this number less the bits of -y: within 12 % for any y > 0.
RECIPROCAL_BITS = 0x7EF311C7 - 2**31


def tanh(value: Any) -> Any:
    """(x + x³ (P - 1) / x²) / Q: every product that is rounded by itself is of x alone, or of two sums, so that -Ofast
    finds no three factors to multiply in another order."""
    x = T.bind(T.max(T.min(value, T.float32(TANH_LIMIT)), T.float32(-TANH_LIMIT)))
    square = x * x
    numerator = T.fma(x * square, polynomial(TANH_P[1:], square), x)
    denominator = T.bind(polynomial([-c for c in TANH_Q], square))
    quotient = numerator * reciprocal(denominator)
    return T.max(T.min(quotient, T.float32(1)), T.float32(-1))  # rounding may end a step past the limit


def reciprocal(negative: Any) -> Any:
    """-1 / negative, for a number below zero: a guess from its bits, and twice the step that cubes the error.

        error = 1 - y r;  r = r + r (error + error²)

    Why not divide: MVE has no divider, a scalar one takes 14 cycles a number, and -Ofast makes of `/` what it likes.
    """
    r = T.bind(T.reinterpret("float32", T.int32(RECIPROCAL_BITS) - T.reinterpret("int32", negative)))
    for _ in range(2):
        error = T.bind(T.fma(negative, r, T.float32(1)))
        r = T.bind(T.fma(r, T.fma(error, error, error), r))
    return r


def sigmoid(value: Any) -> Any:
    return T.fma(tanh(value * T.float32(0.5)), T.float32(0.5), T.float32(0.5))


def polynomial(coefficients: Sequence[float], x: Any) -> Any:
    result = T.float32(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = T.fma(result, x, T.float32(coefficient))
    return result


def relu(value: Any) -> Any:
    return T.max(value, T.float32(0))


ACTIVATIONS = {"identity": lambda value: value, "relu": relu, "tanh": tanh, "sigmoid": sigmoid}
