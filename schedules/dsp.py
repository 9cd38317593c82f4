# SPDX-License-Identifier: Apache-2.0
"""Schedules for Arm cores with the DSP extension (Cortex-M4, M7, M33): two products to an instruction, `smlad`.

ldr x; sxtb16 even, x; sxtb16 odd, x, ror #8                                   four codes, for all rows of a block
ldr w; sxtb16 e, w; sxtb16 o, w, ror #8; smlad acc, e, even; smlad acc, o, odd    four weights of a row
ldrd x, y; pkhbt even, x, y, lsl #16; pkhtb odd, y, x, asr #16                    four codes of int16
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from schedules import dsp_intrinsics as dsp
from schedules.arithmetic import clamp
from schedules.mve_intrinsics import fence
from schedules.patterns import dot_products
from schedules.scalar import Core


def dots(rows: int, codes: str) -> str:
    """acc[row] + the products of a chunk of inputs and a row's weights, for every row of a block.

    The fence keeps codes from being widened once for all blocks: LLVM would keep them on the stack, a word for every two.
    """
    wide = codes == "int32"
    chunk, weights = (2, "int16") if wide else (4, "int8")

    def pairs_of(x: Any) -> list[Any]:
        """Pairs of int16 in int32, in the order of the weights' bytes."""
        if wide:
            return [T.bind(dsp.halves(x[0], x[1]))]
        if codes == "int16":
            low, high = (T.bind(T.reinterpret("int32", x.vload([at], "int16x2"))) for at in (0, 2))
            return [T.bind(dsp.halves(low, high)), T.bind(dsp.upper_halves(low, high))]
        word = T.bind(T.reinterpret("int32", x.vload([0], "int8x4")))
        return [T.bind(dsp.even_bytes(word)), T.bind(dsp.odd_bytes(word))]

    def words(x: Any, weight: Any) -> tuple[list[Any], list[list[Any]]]:
        """The pairs of the codes, and those of each row's weights."""
        pairs = pairs_of(x)
        if wide:
            return pairs, [[T.reinterpret("int32", weight.vload([row, 0], "int16x2"))] for row in range(rows)]
        loaded = [T.bind(T.reinterpret("int32", weight.vload([row, 0], "int8x4"))) for row in range(rows)]
        return pairs, [[dsp.even_bytes(word), dsp.odd_bytes(word)] for word in loaded]

    def fast(x: Any, weight: Any, acc: Any) -> None:
        pairs, weight_pairs = words(x, weight)
        for row in range(rows):
            value = acc[row]
            for left, right in zip(pairs, weight_pairs[row], strict=True):
                value = dsp.smlad(right, left, value)
            T.buffer_store(acc, value, [row])
        if not wide:
            T.evaluate(fence(acc[0]))

    return dot_products(f"dsp_dots_{codes}_{rows}", rows, chunk, fast, codes, weights)


CORTEX_M4 = Core(
    "dsp",
    rows=(4, 5, 3, 2),
    unroll=(16, 8, 4, 32),
    high=dsp.high_by_smmulr,
    reach=1 << 30,
    clamp=clamp,
    chunk=4,
    wide_chunk=2,
    dots=dots,
    int16=True,
    float_rows=(8, 4, 12, 16),
    float_unroll=(4, 2, 8),
)
