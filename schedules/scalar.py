# SPDX-License-Identifier: Apache-2.0
"""Schedules for cores that compute one number at a time: Cortex-M3, RISC-V without vectors, and what others build on.

Rows of a weight are taken several at a time, so that an input is loaded once for all of them, and several inputs to an
iteration, so that addresses are offsets inside instructions. Weights lie in flash in the order they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from schedules import portable
from schedules.arithmetic import clamp, ties_away
from schedules.kernels import (
    ArgMax,
    Clamp,
    DenseCodes,
    DenseFloat,
    DenseHead,
    DenseInt16,
    HeadOfInt16,
    Layout,
    Quantize,
    interpolates,
)
from schedules.knobs import Choices, Knobs, Rule
from schedules.patterns import largest_divisor, registered
from schedules.scalar_arithmetic import (
    clamp_by_masks,
    has_integer_code,
    high_by_doubling,
    integer_code,
    largest_accumulator,
    rounded_code,
)

Dense = DenseCodes | DenseHead | DenseFloat

# A wide layer has few inputs: they stay in registers from one block of rows to the next.
RESIDENT_INPUTS = 8
# Answers beyond these are computed in a loop.
UNROLLED_ANSWERS = 8


@dataclass(frozen=True)
class Core:
    """What a family has: the knobs' options, and its words for the arithmetic.

    `high(value, multiplier)` is the doubling high multiply for accumulators below `reach`, at most 2^30;
    `clamp(value, low, high)` bounds a code. `dots(rows, codes)` names the pattern that multiplies `chunk` inputs
    (`wide_chunk` wide ones, which are "int32") with the rows of a block; without one they are multiplied one by one. Layers
    of int16 codes run as the C twin does unless a core has their `int16` dots. Without `float_rows`
    a core has no unit for floats, and float layers run as the C twin does.
    """

    name: str
    rows: tuple[int, ...]
    unroll: tuple[int, ...]
    high: Callable[[Any, Any], Any]
    reach: int
    clamp: Callable[[Any, int, int], Any]
    chunk: int = 1
    wide_chunk: int = 1
    dots: Callable[[int, str], str | None] = lambda rows, codes: None
    int16: bool = False
    float_rows: tuple[int, ...] = ()
    float_unroll: tuple[int, ...] = ()

    @property
    def rules(self) -> dict[type, Rule]:
        codes = Rule(self.dense_layout, self.schedule_dense_codes, self.knobs)
        head = Rule(self.dense_layout, self.schedule_dense_head, self.knobs)
        int16: dict[type, Rule] = {DenseInt16: codes, HeadOfInt16: head} if self.int16 else {}
        return {
            **portable.EVERYWHERE,
            **int16,
            Quantize: Rule(portable.observation_layout, self.schedule_quantize),
            Clamp: Rule(portable.observation_layout, portable.schedule_observation),
            DenseCodes: codes,
            DenseHead: head,
            DenseFloat: Rule(self.dense_layout, self.schedule_dense_float, self.knobs),
        }

    def knobs(self, kernel: Dense) -> Knobs:
        """`rows` to a block, and `unroll`: chunks of inputs to an iteration. Either is the most there may be."""
        if _floating(kernel):
            return {"rows": self.float_rows, "unroll": self.float_unroll} if self._blocks_of_floats(kernel) else {}
        if _wide(kernel):
            return {"rows": self.rows}
        return {"rows": self.rows, "unroll": self.unroll}

    def dense_layout(self, kernel: Dense, choices: Choices) -> Layout:
        n_out, n_in = kernel.weight.shape
        if _floating(kernel):
            if not self._blocks_of_floats(kernel):
                return portable.dense_layout(kernel, choices)
            blocks, rows = _evenly(n_out, choices["rows"])
            return Layout(blocks, 1, 1, rows, n_in, 1)
        # a block of codes has two rows at least: one would have no loop for a pattern to match
        blocks, rows = _evenly(n_out if isinstance(kernel, DenseHead) else max(n_out, 2), choices["rows"])
        chunk = self.wide_chunk if _wide(kernel) else self.chunk
        chunks = -(-n_in // chunk)
        if not _wide(kernel):
            iterations, unrolled = _evenly(chunks, choices["unroll"])
            chunks = iterations * unrolled
        return Layout(blocks, 1, 1, rows, chunks, chunk)

    def schedule_quantize(self, schedule: Schedule, kernel: Quantize, layout: Layout, _: Choices) -> None:
        if not self.float_rows and layout.lanes > 1 and has_integer_code(kernel):
            (loop,) = schedule.get_loops(schedule.get_sblock("quantize"))
            schedule.tensorize(loop, self._quantize(kernel, layout.lanes))

    def schedule_dense_codes(self, schedule: Schedule, kernel: DenseCodes, layout: Layout, choices: Choices) -> None:
        scale, narrow = (schedule.get_sblock(name) for name in ("scale", "narrow"))
        block = schedule.get_loops(schedule.get_sblock("accumulate"))[0]
        schedule.reverse_compute_at(scale, block, preserve_unit_loops=True)
        schedule.reverse_compute_at(narrow, block, preserve_unit_loops=True)
        self._schedule_dots(schedule, kernel, layout, choices)
        scale_row, narrow_row = (schedule.get_loops(sblock)[-1] for sblock in (scale, narrow))
        small = largest_accumulator(kernel) < self.reach
        if small and _rounds_high(kernel):
            schedule.tensorize(scale_row, self._scale(kernel, layout.lanes))
        else:
            schedule.unroll(scale_row)
        if not isinstance(kernel, DenseInt16):
            schedule.tensorize(narrow_row, self._narrow(kernel, layout.lanes, small))
            return
        schedule.unroll(narrow_row)
        if interpolates(kernel):
            schedule.reverse_compute_at(schedule.get_sblock("interpolate"), block, preserve_unit_loops=True)
            schedule.unroll(schedule.get_loops(schedule.get_sblock("interpolate"))[-1])

    def schedule_dense_head(self, schedule: Schedule, kernel: DenseHead, layout: Layout, choices: Choices) -> None:
        if kernel.floating:
            portable.schedule_dense_head(schedule, kernel, layout, choices)
            return
        block = schedule.get_loops(schedule.get_sblock("accumulate"))[0]
        self._schedule_dots(schedule, kernel, layout, choices)
        if len(kernel.bias) <= UNROLLED_ANSWERS:
            schedule.unroll(block)
            for name in ("total",) if isinstance(kernel.answer, ArgMax) else ("total", "answer"):
                schedule.unroll(schedule.get_loops(schedule.get_sblock(name))[-1])

    def schedule_dense_float(self, schedule: Schedule, kernel: DenseFloat, layout: Layout, choices: Choices) -> None:
        """An accumulator a row of a block; products are summed in the order of the inputs, whatever the choices."""
        if not self._blocks_of_floats(kernel):
            portable.schedule_dense_float(schedule, kernel, layout, choices)
            return
        accumulate, activate = schedule.get_sblock("accumulate"), schedule.get_sblock("activate")
        block, lane, inputs = schedule.get_loops(accumulate)
        schedule.reverse_compute_at(activate, block)
        outer, inner = schedule.split(inputs, [None, largest_divisor(layout.chunks, choices["unroll"])])
        schedule.reorder(outer, inner, lane)
        schedule.unroll(inner)
        schedule.unroll(lane)
        start = schedule.decompose_reduction(accumulate, outer)
        schedule.unroll(schedule.get_loops(start)[-1])
        if kernel.activation in ("identity", "relu"):  # a tanh is too long to repeat
            schedule.unroll(schedule.get_loops(activate)[-1])

    def _blocks_of_floats(self, kernel: Dense) -> bool:
        return bool(self.float_rows) and isinstance(kernel, DenseFloat)

    def _schedule_dots(
        self, schedule: Schedule, kernel: DenseCodes | DenseHead, layout: Layout, choices: Choices
    ) -> None:
        accumulate = schedule.get_sblock("accumulate")
        *_, lane, chunk, k = schedule.get_loops(accumulate)
        at_most = RESIDENT_INPUTS if _wide(kernel) else choices["unroll"]
        outer, inner = schedule.split(chunk, [None, _evenly(layout.chunks, at_most)[1]])
        dots = self.dots(layout.lanes, "int32" if _wide(kernel) else kernel.reads)
        if dots is None or layout.chunk == 1:
            schedule.reorder(outer, inner, k, lane)
            schedule.unroll(k)
        else:
            schedule.reorder(outer, inner, lane, k)
        schedule.unroll(inner)
        start = schedule.decompose_reduction(accumulate, outer)
        schedule.unroll(schedule.get_loops(start)[-1])
        if dots is None:
            schedule.unroll(lane)
        else:
            schedule.tensorize(lane if layout.lanes > 1 else k, dots)

    def _quantize(self, kernel: Quantize, n: int) -> str:
        """All observations to codes, without a float instruction."""
        has_zero = kernel.zero_point is not None

        def function(fast: bool) -> tirx.PrimFunc:
            with IRBuilder() as builder, T.prim_func(s_tir=True):
                T.func_name("quantize")
                x, scale = (T.arg(name, T.Buffer((n,), "float32", offset_factor=1)) for name in ("obs", "scale"))
                zero = T.arg("zero_point", T.Buffer((n,), "int32", offset_factor=1)) if has_zero else None
                y = T.arg("codes", T.Buffer((n,), kernel.dtype, offset_factor=1))
                with T.sblock("root"):
                    T.reads(x[0:n], scale[0:n], *([] if zero is None else [zero[0:n]]))
                    T.writes(y[0:n])
                    with T.serial(n) as i:
                        if fast:
                            code = integer_code(x[i], scale[i]) + (T.int32(0) if zero is None else zero[i])
                            code = self.clamp(T.bind(code), kernel.low, kernel.high)
                            T.buffer_store(y, T.Cast(kernel.dtype, code), [i])
                        else:
                            with T.sblock("quantize"):
                                v = T.axis.spatial(n, i)
                                code = kernel.code(x[v], scale[v], None if zero is None else zero[v])
                                T.buffer_store(y, T.Cast(kernel.dtype, code), [v])
            return builder.get()

        limits = f"{n}_{kernel.low}_{kernel.high}_{int(has_zero)}".replace("-", "m")
        return registered(f"{self.name}_quantize_{limits}", function)

    def _scale(self, kernel: DenseCodes, rows: int) -> str:
        """A block's accumulators, biased and multiplied."""
        ties_up = kernel.hides_negatives or isinstance(kernel, DenseInt16)

        def function(fast: bool) -> tirx.PrimFunc:
            with IRBuilder() as builder, T.prim_func(s_tir=True):
                T.func_name("scale")
                acc = T.arg("acc", T.Buffer((rows,), "int32", offset_factor=1))
                requant = T.arg("requant", T.Buffer((2, rows), "int32", offset_factor=1))
                scaled = T.arg("scaled", T.Buffer((rows,), "int32", offset_factor=1))
                with T.sblock("root"):
                    T.reads(acc[0:rows], requant[0:2, 0:rows])
                    T.writes(scaled[0:rows])
                    if fast:
                        for row in range(rows):
                            high = T.bind(self.high(T.bind(acc[row] + requant[0, row]), requant[1, row]))
                            T.buffer_store(scaled, high if ties_up else ties_away(high), [row])
                    else:
                        with T.serial(rows) as i, T.sblock("scale"):
                            v = T.axis.spatial(rows, i)
                            T.buffer_store(scaled, kernel.scale(acc[v], lambda j: requant[j, v]), [v])
            return builder.get()

        return registered(f"{self.name}_scale_{rows}_{int(ties_up)}", function)

    def _narrow(self, kernel: DenseCodes, rows: int, small: bool) -> str:
        """A block's codes, perhaps through the table."""
        has_table = kernel.table is not None

        def code(scaled: Any) -> Any:
            if small:
                return self.clamp(T.bind(rounded_code(kernel, scaled)), kernel.low, kernel.high)
            return kernel.code(scaled)

        def value(scaled: Any, table: Any) -> Any:
            if table is None:
                return T.Cast("int8", code(scaled))
            return table[T.bitwise_and(code(scaled), T.int32(255))]

        def function(fast: bool) -> tirx.PrimFunc:
            with IRBuilder() as builder, T.prim_func(s_tir=True):
                T.func_name("narrow")
                scaled = T.arg("scaled", T.Buffer((1, 1, rows), "int32", offset_factor=1))
                table = T.arg("table", T.Buffer((256,), "int8", offset_factor=1)) if has_table else None
                out = T.arg("out", T.Buffer((rows, 1, 1), "int8", offset_factor=1))
                reads = [scaled[0:1, 0:1, 0:rows], *([] if table is None else [table[0:256]])]
                with T.sblock("root"):
                    T.reads(*reads)
                    T.writes(out[0:rows, 0:1, 0:1])
                    if fast:
                        for row in range(rows):
                            T.buffer_store(out, value(scaled[0, 0, row], table), [row, 0, 0])
                    else:
                        with T.grid(rows) as i, T.sblock("narrow"):
                            v = T.axis.spatial(rows, i)
                            if table is not None:
                                T.reads(scaled[0, 0, v], table[0:256])
                                T.writes(out[v, 0, 0])
                            T.buffer_store(out, kernel.narrow(scaled[0, 0, v], table), [v, 0, 0])
            return builder.get()

        limits = f"{kernel.shift}_{kernel.zero_point}_{kernel.low}_{kernel.high}_{int(has_table)}_{int(small)}"
        return registered(f"{self.name}_narrow_{rows}_{limits}".replace("-", "m"), function)


def _rounds_high(kernel: DenseCodes) -> bool:
    """Whether `scale` is a rounded high word of a product."""
    if kernel.multiplier is None or kernel.multiplier.size == 1:
        return False
    return not isinstance(kernel, DenseInt16) or (kernel.in_high_word and not kernel.narrowing)


def _wide(kernel: Dense) -> bool:
    return isinstance(kernel, DenseCodes) and kernel.wide


def _floating(kernel: Dense) -> bool:
    return isinstance(kernel, DenseFloat) or (isinstance(kernel, DenseHead) and kernel.floating)


def _evenly(n: int, at_most: int) -> tuple[int, int]:
    """n in as few parts of at most `at_most` as there can be, and the size of the largest: 9 by 4 are 3 of 3."""
    parts = -(-n // at_most)
    return parts, -(-n // parts)


CORTEX_M3 = Core("scalar", rows=(4, 5, 6, 3), unroll=(8, 16, 4, 2), high=high_by_doubling, reach=1 << 30, clamp=clamp)
RV32 = Core("rv32", rows=(8, 4, 6, 2), unroll=(2, 4, 1, 8), high=high_by_doubling, reach=1 << 30, clamp=clamp_by_masks)
