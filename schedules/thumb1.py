# SPDX-License-Identifier: Apache-2.0
"""Schedules for Cortex-M0: eight registers, and no load of a signed byte but at a sum of two of them.

ldr w; sxtb a, w; lsl b, w, #16; asr b, b, #24; ...    the weights of four rows for one input
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from schedules.mve_intrinsics import fence
from schedules.patterns import registered
from schedules.scalar import Core
from schedules.scalar_arithmetic import clamp_by_masks, high_by_halves

WORD_ROWS = 4


def dots(rows: int, codes: str) -> str | None:
    """acc[row] + input * weight, for four rows whose weights are a word.

    The fences keep the products of the next input behind this one's: LLVM would else sum row by row, and spill.
    """
    if codes != "int8" or rows != WORD_ROWS:
        return None

    def function(fast: bool) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("dots")
            x = T.arg("x", T.Buffer((1,), "int8", offset_factor=1))
            weight = T.arg("weight", T.Buffer((rows, 1), "int8", offset_factor=1))
            acc = T.arg("acc", T.Buffer((rows,), "int32", offset_factor=1))
            with T.sblock("root"):
                T.reads(acc[0:rows], x[0], weight[0:rows, 0])
                T.writes(acc[0:rows])
                if fast:
                    code = T.bind(T.Cast("int32", x[0]))
                    word = T.bind(T.reinterpret("int32", weight.vload([0, 0], "int8x4")))
                    for row in range(rows):
                        T.buffer_store(acc, acc[row] + code * _signed_byte(word, row), [row])
                    for row in range(rows):
                        T.evaluate(fence(acc[row]))
                else:
                    with T.serial(rows) as i, T.sblock("accumulate"):
                        row = T.axis.spatial(rows, i)
                        T.buffer_store(acc, acc[row] + T.Cast("int32", x[0]) * T.Cast("int32", weight[row, 0]), [row])
        return builder.get()

    return registered(f"thumb1_dots_{rows}", function)


def _signed_byte(word: Any, index: int) -> Any:
    upmost = T.shift_left(word, T.int32(24 - 8 * index)) if index < 3 else word
    return T.shift_right(upmost, T.int32(24))


CORTEX_M0 = Core(
    "thumb1", rows=(4, 2, 3), unroll=(8, 4, 16, 2), high=high_by_halves, reach=1 << 28, clamp=clamp_by_masks, dots=dots
)
