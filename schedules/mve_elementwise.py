# SPDX-License-Identifier: Apache-2.0
"""Schedules for tensors element by element on Arm Helium (MVE): four codes as words, or four floats; sixteen codes for a
table alone. Codes of 16 bits through a table are taken one by one.

What is computed past the last element goes to the workspace's padding, so that no vector is cut short by a mask.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from schedules import mve_intrinsics as mve
from schedules import portable
from schedules.elementwise import AddCodes, Elementwise, MapCodes, MapFloat, MergeFloat, MultiplyCodes
from schedules.kernels import Layout
from schedules.knobs import ROLLED, Choices, Rule
from schedules.patterns import registered

WORDS, BYTES = 4, 16


def elements_layout(kernel: Elementwise, _: Choices) -> Layout:
    if not isinstance(kernel, MergeFloat | MapFloat) and kernel.dtype == "int16" and kernel.table is not None:
        return portable.elements_layout(kernel, _)
    lanes = BYTES if _looks_up(kernel) else WORDS
    blocks = -(-kernel.n // lanes)
    return Layout(blocks, 1, 1, lanes, blocks, lanes)


def schedule_elementwise(schedule: Schedule, kernel: Elementwise, layout: Layout, _: Choices) -> None:
    (i,) = schedule.get_loops(schedule.get_sblock("merge"))
    vectors, lanes = schedule.split(i, [None, layout.lanes])
    if layout.blocks > 1:  # written out, LLVM would begin them all before it ends the first, and spill
        schedule.annotate(vectors, ROLLED, 1)
    if isinstance(kernel, MergeFloat | MapFloat):
        schedule.vectorize(lanes)
    elif layout.lanes > 1:
        schedule.tensorize(lanes, _of_codes(kernel, layout.lanes))


def _looks_up(kernel: Elementwise) -> bool:
    return isinstance(kernel, MapCodes) and kernel.dtype == "int8"


def _of_codes(kernel: AddCodes | MultiplyCodes | MapCodes, lanes: int) -> str:
    """The next codes: `vldrb` or `vldrh` and the arithmetic in words, through the table by gathers."""

    def vector_value(sources: list[Any], table: Any) -> Any:
        if _looks_up(kernel):
            return mve.gather_bytes(T.address_of(table[0]), sources[0].vload([0], "int8x16"))
        words = [T.Cast("int32x4", source.vload([0], f"{kernel.dtype}x4")) for source in sources]
        if isinstance(kernel, MultiplyCodes):
            high = mve.vqrdmulh(kernel.product(*words), T.broadcast(T.int32(kernel.multiplier), WORDS))
            code = kernel.narrowed(T.bind(high))
        else:
            code = kernel.code(*words)
        if table is not None:
            code = mve.gather_words(T.address_of(table[0]), T.bitwise_and(code, T.broadcast(T.int32(255), WORDS)))
        return T.Cast(f"{kernel.dtype}x4", code)

    def function(vector: bool) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("elements")
            names = ("x", "y")[: kernel.sources]
            sources = [T.arg(name, T.Buffer((lanes,), kernel.dtype, offset_factor=1)) for name in names]
            table = None
            if kernel.table is not None:
                table = T.arg("table", T.Buffer(kernel.table.shape, str(kernel.table.dtype), offset_factor=1))
            out = T.arg("out", T.Buffer((lanes,), kernel.dtype, offset_factor=1))
            whole = [] if table is None else [table[0 : table.shape[0]]]
            with T.sblock("root"):
                T.reads(*(source[0:lanes] for source in sources), *whole)
                T.writes(out[0:lanes])
                if vector:
                    T.buffer_store(out, vector_value(sources, table), [T.ramp(0, 1, lanes)])
                else:
                    with T.serial(lanes) as i, T.sblock("merge"):
                        v = T.axis.spatial(lanes, i)
                        T.reads(*(source[v] for source in sources), *whole)
                        T.writes(out[v])
                        T.buffer_store(out, kernel.value([source[v] for source in sources], table, called=True), [v])
        return builder.get()

    return registered(f"mve_{kernel.code_name}", function)


RULES: dict[type, Rule] = {
    kind: Rule(elements_layout, schedule_elementwise)
    for kind in (AddCodes, MultiplyCodes, MapCodes, MergeFloat, MapFloat)
}
