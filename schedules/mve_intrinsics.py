# SPDX-License-Identifier: Apache-2.0
"""Helium (MVE) instructions as TVM expressions, each with the instruction it becomes.

They are written "impure" (`call_llvm_intrin`), which keeps the program's order: LLVM then sees loads next to their use.
Source: Armv8-M Architecture Reference Manual; LLVM's IntrinsicsARM.td for the argument orders.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.target.codegen import llvm_lookup_intrinsic_id

_VMLADAVA = llvm_lookup_intrinsic_id("llvm.arm.mve.vmldava")
_VQRDMULH = llvm_lookup_intrinsic_id("llvm.arm.mve.vqrdmulh")
_VQDMULH = llvm_lookup_intrinsic_id("llvm.arm.mve.vqdmulh")
_VQDMLAH = llvm_lookup_intrinsic_id("llvm.arm.mve.vqdmlah")
_VSHRN = llvm_lookup_intrinsic_id("llvm.arm.mve.vshrn")
_VQMOVN = llvm_lookup_intrinsic_id("llvm.arm.mve.vqmovn")
_GATHER = llvm_lookup_intrinsic_id("llvm.arm.mve.vldr.gather.offset")
_SPACE = llvm_lookup_intrinsic_id("llvm.arm.space")
_SSAT = llvm_lookup_intrinsic_id("llvm.arm.ssat")
_SADD_SAT = llvm_lookup_intrinsic_id("llvm.sadd.sat")


def _call(intrinsic: int, dtype: str, *arguments: Any) -> Any:
    values = (T.int32(a) if isinstance(a, int) else a for a in arguments)
    return T.call_llvm_intrin(intrinsic, *values, dtype=dtype)


def vmladava(accumulator: Any, codes: Any, weight: Any) -> Any:
    """`vmladava.s8`, `.s16`: accumulator + sum of 16 products of int8 lanes, or 8 of int16."""
    return _call(_VMLADAVA, "int32", 0, 0, 0, accumulator, codes, weight)


def vqrdmulh(value: Any, multiplier: Any, dtype: str = "int32x4") -> Any:
    """`vqrdmulh.s32`: (2 * value * multiplier + 2^31) >> 32, saturated; four int32 lanes, or eight of int16 likewise."""
    return _call(_VQRDMULH, dtype, value, multiplier)


def vqdmulh(value: Any, multiplier: Any) -> Any:
    """`vqdmulh.s32`: 2 * value * multiplier >> 32, saturated; four int32 lanes."""
    return _call(_VQDMULH, "int32x4", value, multiplier)


def ties_away(value: Any) -> Any:
    """`vqdmlah.s32` with 1: value + (value >> 31), so that the rounding shift after it sends ties away from zero."""
    return _call(_VQDMLAH, "int32x4", value, value, 1)


def narrow_to_int16(into: Any, value: Any, shift: int, top: int) -> Any:
    """`vqrshrnb/t.s32` (`vqmovnb/t.s32` for shift 0): rounding shift right, saturated, into the even or odd lanes."""
    if shift == 0:
        return _call(_VQMOVN, "int16x8", into, value, 0, 0, top)
    return _call(_VSHRN, "int16x8", into, value, shift, 1, 1, 0, 0, top)


def narrow_to_int8(into: Any, value: Any, unsigned: int, top: int) -> Any:
    """`vqmovnb/t.s16`, or `vqmovunb/t.s16` which saturates to 0..255."""
    return _call(_VQMOVN, "int8x16", into, value, unsigned, 0, top)


def vqadd16(value: Any, other: Any) -> Any:
    """`vqadd.s16`: saturated sum of eight int16 lanes."""
    return _call(_SADD_SAT, "int16x8", value, other)


def gather_bytes(table: Any, offsets: Any) -> Any:
    """`vldrb.u8 q, [table, offsets]`: sixteen look-ups in one instruction."""
    return _call(_GATHER, "int8x16", table, offsets, 8, 0, 0)


def gather_halves(table: Any, offsets: Any) -> Any:
    """`vldrh.u16 q, [table, offsets, uxtw #1]`: eight look-ups of int16 in one instruction."""
    return _call(_GATHER, "int16x8", table, offsets, 16, 1, 1)


def shift_right_unsigned(value: Any, bits: int) -> Any:
    """`vshr.u16`: eight lanes without a sign."""
    unsigned = T.shift_right(T.reinterpret("uint16x8", value), T.broadcast(tirx.const(bits, "uint16"), 8))
    return T.reinterpret("int16x8", unsigned)


def gather_words(table: Any, offsets: Any) -> Any:
    """`vldrb.s32 q, [table, offsets]`: four look-ups of bytes, widened to words."""
    return _call(_GATHER, "int32x4", table, offsets, 8, 0, 0)


def fence(value: Any) -> Any:
    """No instruction: zero bytes of space with a side effect, which loads are not moved across."""
    return _call(_SPACE, "int32", 0, value)


def opaque(value: Any) -> Any:
    """`ssat` to 32 bits: the int32 itself, which LLVM does not see through."""
    return _call(_SSAT, "int32", value, 32)
