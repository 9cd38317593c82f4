# SPDX-License-Identifier: Apache-2.0
"""Instructions of Arm's DSP extension as TVM expressions, each with the instruction it becomes.

Source: Armv7-M Architecture Reference Manual; LLVM's IntrinsicsARM.td for the argument orders.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target.codegen import llvm_lookup_intrinsic_id

_SMLAD = llvm_lookup_intrinsic_id("llvm.arm.smlad")
_SXTB16 = llvm_lookup_intrinsic_id("llvm.arm.sxtb16")
_QADD = llvm_lookup_intrinsic_id("llvm.arm.qadd")


def smlad(left: Any, right: Any, accumulator: Any) -> Any:
    """`smlad`: accumulator + the products of the low and of the high halves, int16 each."""
    return T.call_llvm_pure_intrin(_SMLAD, left, right, accumulator, dtype="int32")


def even_bytes(word: Any) -> Any:
    """`sxtb16`: bytes 0 and 2 as two int16."""
    return T.call_llvm_pure_intrin(_SXTB16, word, dtype="int32")


def odd_bytes(word: Any) -> Any:
    """`sxtb16 ..., ror #8`: bytes 1 and 3 as two int16."""
    bits = T.reinterpret("uint32", word)
    rotated = T.bitwise_or(T.shift_right(bits, T.uint32(8)), T.shift_left(bits, T.uint32(24)))
    return even_bytes(T.reinterpret("int32", rotated))


def halves(low: Any, high: Any) -> Any:
    """`pkhbt`: the low halves of two int32 as two int16."""
    return T.bitwise_or(T.bitwise_and(low, T.int32(0xFFFF)), T.shift_left(high, T.int32(16)))


def upper_halves(low: Any, high: Any) -> Any:
    """`pkhtb`: the high halves of two int32 as two int16."""
    lowered = T.reinterpret("int32", T.shift_right(T.reinterpret("uint32", low), T.uint32(16)))
    return T.bitwise_or(lowered, T.bitwise_and(high, T.int32(-(1 << 16))))


def high_by_smmulr(value: Any, multiplier: Any) -> Any:
    """`qadd; smmulr`: round(value * multiplier / 2^31), ties up, for |value| < 2^30.

    Doubled by `qadd` because LLVM would move a plain doubling behind the multiplication; it finds `smmulr` by itself.
    """
    doubled = T.call_llvm_pure_intrin(_QADD, value, value, dtype="int32")
    product = T.Cast("int64", doubled) * T.Cast("int64", multiplier)
    return T.Cast("int32", T.shift_right(product + T.int64(1 << 31), T.int64(32)))
