# SPDX-License-Identifier: Apache-2.0
"""Schedules for Arm Helium (MVE), as on Cortex-M55 and M85: one rule a kind of kernel.

Why tensorize: LLVM does not find the multiply-accumulate-across, the rounding narrow or the byte gather by itself. The
patterns below are built from the same expressions as the descriptions, so a rule that fires is a rule that computes the
same thing; TVM refuses the others.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from schedules import mve_elementwise, mve_float, portable
from schedules import mve_intrinsics as mve
from schedules.arithmetic import interpolate
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
    QuantizeInt16,
    interpolates,
)
from schedules.knobs import ROLLED, Choices, Knobs, Rule
from schedules.patterns import dot_products, largest_divisor, registered

# A vector load reaches 508 bytes before and behind its pointer, so one pointer covers a window of 1,024 bytes; one that
# widens bytes to int16 reaches 127.
REACH_BYTES = {"int8": 508, "int16": 127}
# Codes in a vector, and in one of a wide layer.
VECTOR = {"int8": 16, "int16": 8}
WIDE_LANES = 8
# x stays in four vector registers; the other four hold weights and results.
RESIDENT_CHUNKS = 4
# Chunks of eight outputs that fill a window.
WINDOW_CHUNKS = {"int8": 8, "int16": 4}
# Chunks of eight outputs that are written out: a loop over more of them costs instructions, its unrolling flash.
STREAMED_CHUNKS = 32
# Blocks of a wide layer in one iteration: a loop costs instructions, its unrolling flash.
BLOCKS_AT_ONCE = 2
# The dot product accumulates in even core registers, of which eight exist.
HEAD_LANES = 8


def dense_codes_knobs(kernel: DenseCodes) -> Knobs:
    """`joint`: eight outputs at a time past x in memory, rather than four past x in registers, which takes few inputs;
    `kept`: vectors of x in registers even so; `across`: a wide layer's sums across a vector of inputs, rather than along
    the outputs; `loops`: the low-overhead kind, which keeps a register from the sums."""
    n_in = kernel.weight.shape[1]
    if kernel.wide:
        return {"across": (1, 0) if 5 < n_in <= WIDE_LANES else (0,), "loops": (1, 0)}
    chunks = -(-n_in // VECTOR[kernel.reads])
    if chunks <= RESIDENT_CHUNKS:
        return {"joint": (0, 1), "kept": (0, 1, 2, 3, 4), "loops": (1, 0)}
    return {"joint": (1,), "kept": (4, 3, 2, 1, 0), "loops": (0, 1)}


def dense_codes_layout(kernel: DenseCodes, choices: Choices) -> Layout:
    (n_out, n_in), vector = kernel.weight.shape, VECTOR[kernel.reads]
    odd = _odd(kernel, bool(not kernel.wide and choices["joint"]))
    blocks = -(-n_out // (8 * odd))
    if kernel.wide:
        if choices["across"]:
            return Layout(blocks, odd, 2, 4, 1, WIDE_LANES, origin=8 * WIDE_LANES)
        return Layout(blocks, odd, 2, 4, n_in, 1)
    if not choices["joint"]:
        if choices["kept"]:
            raise ValueError("past x in registers, nothing is left to keep")
        row = max(vector, -(-n_in // 4) * 4)
        return Layout(blocks, odd, 2, 4, 1, row, origin=_middle(16 * row, kernel.reads))
    chunks = -(-n_in // vector)
    chunks = -(-chunks // _pieces(chunks)) * _pieces(chunks)
    origin = _windows(chunks // _pieces(chunks), kernel.reads)[0][1]
    return Layout(blocks, odd, 2, 4, chunks, vector, origin=origin, joint=True)


def _odd(kernel: DenseCodes, joint: bool) -> int:
    """1 for blocks of eight outputs, 2 for sixteen, which cost less an output but pad more. Eight that are summed jointly
    narrow as well as sixteen; a table takes sixteen codes at once. Eight of int16 fill a vector."""
    if kernel.writes == "int16":
        return 1
    if kernel.table is not None:
        return 2
    eights = -(-len(kernel.bias) // 8)
    return 1 if joint or 8 * (eights + eights % 2) > 9 * eights else 2


def dense_codes_attributes(choices: Choices) -> tuple[str, ...]:
    return () if choices["loops"] else ("-lob",)


def dense_head_layout(kernel: DenseHead, choices: Choices) -> Layout:
    n_out, n_in = kernel.weight.shape
    if kernel.floating:
        return mve_float.head_layout(kernel, choices)
    lanes, vector = n_out if n_out <= HEAD_LANES else 4, VECTOR[kernel.reads]
    chunks = -(-n_in // vector)
    chunks = -(-chunks // 4) * 4 if chunks > 2 * RESIDENT_CHUNKS else chunks
    origin = _middle(vector * lanes * min(chunks, 4), kernel.reads)
    return Layout(-(-n_out // lanes), 1, 1, lanes, chunks, vector, origin=origin)


def _middle(window_bytes: int, codes: str) -> int:
    """Where to point in a window so that both its ends are within reach."""
    return min(REACH_BYTES[codes], window_bytes // 2 - 4)


def schedule_observation(schedule: Schedule, kernel: Quantize, layout: Layout, _: Choices) -> None:
    (i,) = schedule.get_loops(schedule.get_sblock("quantize"))
    if layout.lanes > 1:  # the last vector is cut short by a mask
        _outer, lanes = schedule.split(i, [None, 4])
        schedule.vectorize(lanes)


def schedule_dense_codes(schedule: Schedule, kernel: DenseCodes, layout: Layout, choices: Choices) -> None:
    accumulate, scale, narrow = (schedule.get_sblock(name) for name in ("accumulate", "scale", "narrow"))
    block, odd, pair, lane, chunk, k = schedule.get_loops(accumulate)
    unrolled: tuple[Any, ...]
    along = kernel.wide and not choices["across"]
    if along:
        schedule.reorder(block, odd, pair, chunk, k, lane)
        first, scale_at, dots, unrolled = chunk, pair, None, (odd, pair, chunk, k)
        schedule.vectorize(lane)
        if layout.blocks > BLOCKS_AT_ONCE:
            rolled, block = schedule.split(block, [None, largest_divisor(layout.blocks, BLOCKS_AT_ONCE)])
            schedule.annotate(rolled, ROLLED, 1)
            unrolled = (block, *unrolled)
    elif not layout.joint:
        schedule.reorder(block, odd, pair, chunk, lane, k)
        first, scale_at, dots, unrolled = chunk, pair, lane, (odd, pair, chunk)
    else:
        outer, inner = schedule.split(chunk, [_pieces(layout.chunks), None])
        schedule.reorder(block, odd, outer, inner, pair, lane, k)
        first, scale_at, dots, unrolled = outer, odd, inner, ()
    schedule.reverse_compute_at(scale, scale_at, preserve_unit_loops=True)
    schedule.reverse_compute_at(narrow, block, preserve_unit_loops=True)
    if interpolates(kernel):
        schedule.reverse_compute_at(schedule.get_sblock("interpolate"), block, preserve_unit_loops=True)
    for loop in unrolled:
        schedule.unroll(loop)
    start = schedule.decompose_reduction(accumulate, first)
    if along:
        schedule.vectorize(schedule.get_loops(scale)[-1])
    elif layout.joint:
        for loop in (*schedule.get_loops(start)[-2:], schedule.get_loops(scale)[-2]):
            schedule.unroll(loop)
        schedule.tensorize(dots, _joint_dots(layout.chunks // _pieces(layout.chunks), choices["kept"], kernel.reads))
    else:
        schedule.unroll(schedule.get_loops(start)[-1])
        rows = _wide_dots(layout.lanes) if kernel.wide else _row_dots(layout.lanes, layout.chunk, kernel.reads)
        schedule.tensorize(dots, rows)
    if not along:
        _schedule_scale(schedule, kernel)
    _schedule_narrow(schedule, kernel, layout)


def _schedule_scale(schedule: Schedule, kernel: DenseCodes) -> None:
    loop = schedule.get_loops(schedule.get_sblock("scale"))[-1]
    if isinstance(kernel, DenseInt16) and kernel.multiplier is not None and not kernel.in_high_word:
        schedule.unroll(loop)
    else:
        schedule.tensorize(loop, _scale4(kernel))


def _schedule_narrow(schedule: Schedule, kernel: DenseCodes, layout: Layout) -> None:
    loops = schedule.get_loops(schedule.get_sblock("narrow"))
    if layout.odd == 2:
        schedule.tensorize(loops[-3], _narrow16(kernel))
    else:
        schedule.tensorize(loops[-2], _narrow8(kernel))
    if interpolates(kernel):
        loops = schedule.get_loops(schedule.get_sblock("interpolate"))[-2:]
        if _steep(kernel):
            for loop in loops:
                schedule.unroll(loop)
        else:
            schedule.tensorize(loops[0], _interpolate8())


def schedule_dense_head(schedule: Schedule, kernel: DenseHead, layout: Layout, choices: Choices) -> None:
    if kernel.floating:
        mve_float.schedule_head(schedule, kernel, layout, choices)
        return
    accumulate = schedule.get_sblock("accumulate")
    block, lane, chunk, k = schedule.get_loops(accumulate)
    outer, inner = schedule.split(chunk, [None, largest_divisor(layout.chunks, 4)])
    schedule.reorder(block, outer, inner, lane, k)
    schedule.unroll(inner)
    start = schedule.decompose_reduction(accumulate, outer)
    schedule.unroll(schedule.get_loops(start)[-1])
    dots = _dots(layout.lanes, layout.chunks > RESIDENT_CHUNKS, kernel.reads)
    schedule.tensorize(lane if layout.lanes > 1 else k, dots)
    for name in ("total",) if isinstance(kernel.answer, ArgMax) else ("total", "answer"):
        if len(kernel.bias) <= HEAD_LANES:
            schedule.unroll(schedule.get_loops(schedule.get_sblock(name))[-1])


def _pieces(chunks: int) -> int:
    return -(-chunks // STREAMED_CHUNKS)


def _windows(chunks: int, codes: str) -> list[tuple[range, int]]:
    """The chunks of eight outputs in windows as equal as can be, and where in its window a pointer points."""
    n = -(-chunks // WINDOW_CHUNKS[codes])
    bounds = [chunks * i // n for i in range(n + 1)]
    chunk_bytes = 8 * VECTOR[codes]
    return [
        (range(start, end), _middle(chunk_bytes * (end - start), codes)) for start, end in itertools.pairwise(bounds)
    ]


def _vector_of(weight: Any, at: list[Any], codes: str) -> Any:
    """As many weights as there are codes in a vector, as wide as these: `vldrb.s16` under int16."""
    row = weight.vload(at, f"int8x{VECTOR[codes]}")
    return row if codes == "int8" else T.Cast(f"{codes}x{VECTOR[codes]}", row)


def _dots(lanes: int, fenced: bool, codes: str) -> str:
    """acc[l] + sum of a vector of products, for each of `lanes` outputs: a `vmladava` each, on one load of x.

    `fenced` keeps the loads of the next chunk behind this one's: LLVM would else hoist more of them than there are
    registers, and spill.
    """
    vector = VECTOR[codes]

    def fast(x: Any, weight: Any, acc: Any) -> None:
        for l in range(lanes):
            value = mve.vmladava(acc[l], x.vload([0], f"{codes}x{vector}"), _vector_of(weight, [l, 0], codes))
            T.buffer_store(acc, value, [l])
        if fenced:
            T.evaluate(mve.fence(acc[0]))

    return dot_products(f"mve_dots_{codes}_{lanes}_{int(fenced)}", lanes, vector, fast, codes)


def _row_dots(lanes: int, n_in: int, codes: str) -> str:
    """acc[l] + sum of `n_in` products, for each of `lanes` outputs whose rows lie one behind the other.

    A last vector that would reach past its row starts earlier instead, and what it repeats of x is zero there.
    """
    vector = VECTOR[codes]
    starts = [min(start, n_in - vector) for start in range(0, n_in, vector)]

    def vector_of_x(x: Any, start: int, done: int) -> Any:
        loaded = x.vload([start], f"{codes}x{vector}")
        if start == done:
            return loaded
        ones = [tirx.const(-1 if start + i >= done else 0, codes) for i in range(vector)]
        return T.bind(T.bitwise_and(loaded, tirx.Shuffle(ones, list(range(vector)))))

    def fast(x: Any, weight: Any, acc: Any) -> None:
        for index, start in enumerate(starts):
            loaded = vector_of_x(x, start, vector * index)
            for l in range(lanes):
                T.buffer_store(acc, mve.vmladava(acc[l], loaded, _vector_of(weight, [l, start], codes)), [l])

    return dot_products(f"mve_row_dots_{codes}_{lanes}_{n_in}", lanes, n_in, fast, codes)


def _wide_dots(lanes: int) -> str:
    """acc[l] + sum of eight products of 14-bit codes and 16-bit weights, for each of `lanes` outputs."""

    def fast(x: Any, weight: Any, acc: Any) -> None:
        codes = T.bind(T.Cast("int16x8", x.vload([0], "int32x8")))
        for l in range(lanes):
            T.buffer_store(acc, mve.vmladava(acc[l], codes, weight.vload([l, 0], "int16x8")), [l])

    return dot_products(f"mve_wide_dots_{lanes}", lanes, WIDE_LANES, fast, codes="int32", weights="int16")


def _joint_dots(chunks: int, kept: int, codes: str) -> str:
    """acc[p, l] + sum of `chunks` vectors of products, for the eight outputs of a joint pair, window by window of weights.

    A window's place is hidden from LLVM: it would else address all of them from the first, by an addition a load. The last
    `kept` chunks of x are loaded before any fence: LLVM then does so before the loop over blocks, and keeps them.
    """
    vector = VECTOR[codes]

    def dots(x: Any, weight: Any, acc: Any) -> None:
        def vector_of_x(c: int) -> Any:
            return x.vload([c, 0], f"{codes}x{vector}")

        in_register = {c: T.bind(vector_of_x(c)) for c in range(chunks)[max(0, chunks - kept) :]}
        for window, reach in _windows(chunks, codes):
            # in words, because a vector of bytes is loaded by words where these are known to be aligned
            middle = T.bind(mve.opaque((weight.elem_offset + 8 * vector * window.start + reach) // 4))
            shape = (len(window), 2, 4, vector)
            near = T.decl_buffer(shape, "int8", data=weight.data, elem_offset=middle * 4 - reach)
            for c in window:
                loaded = in_register.get(c, vector_of_x(c))
                for p, l in itertools.product(range(2), range(4)):
                    row = _vector_of(near, [c - window.start, p, l, 0], codes)
                    T.buffer_store(acc, mve.vmladava(acc[p, l], loaded, row), [p, l])
                T.evaluate(mve.fence(acc[0, 0]))  # no load of the next chunk before: registers are few

    def function(replaced: bool) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("joint_dots")
            x = T.arg("x", T.Buffer((chunks, vector), codes, offset_factor=1))
            weight = T.arg("weight", T.Buffer((chunks, 2, 4, vector), "int8", offset_factor=1))
            acc = T.arg("acc", T.Buffer((2, 4), "int32", offset_factor=1))
            with T.sblock("root"):
                T.reads(acc[0:2, 0:4], x[0:chunks, 0:vector], weight[0:chunks, 0:2, 0:4, 0:vector])
                T.writes(acc[0:2, 0:4])
                if replaced:
                    dots(x, weight, acc)
                else:
                    with T.grid(chunks, 2, 4, vector) as loops, T.sblock("accumulate"):
                        p, l, c, k = T.axis.remap("SSRR", [loops[1], loops[2], loops[0], loops[3]])
                        product = T.Cast("int32", x[c, k]) * T.Cast("int32", weight[c, p, l, k])
                        T.buffer_store(acc, acc[p, l] + product, [p, l])
        return builder.get()

    return registered(f"mve_joint_dots_{codes}_{chunks}_{kept}", function)


def _scale4(kernel: DenseCodes) -> str:
    """Four accumulators biased and multiplied: `vadd`, `vqrdmulh` and, where negatives show, `vqdmlah`."""
    per_output = 1 if kernel.multiplier is None else 2

    def vector_value(acc: Any, requant: Any) -> Any:
        # element by element: read as a vector, LLVM would keep the accumulators in one between two windows
        value = tirx.Shuffle([acc[0], acc[1], acc[2], acc[3]], list(range(4))) + requant.vload([0, 0], "int32x4")
        if kernel.multiplier is None:
            return value
        multiplier = requant.vload([1, 0], "int32x4")
        if isinstance(kernel, DenseInt16):
            return (mve.vqdmulh if kernel.narrowing else mve.vqrdmulh)(value, multiplier)
        value = mve.vqrdmulh(value, multiplier)
        return value if kernel.hides_negatives else mve.ties_away(T.bind(value))

    def function(vector: bool) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("scale4")
            acc = T.arg("acc", T.Buffer((4,), "int32", offset_factor=1))
            requant = T.arg("requant", T.Buffer((per_output, 4), "int32", offset_factor=1))
            scaled = T.arg("scaled", T.Buffer((4,), "int32", offset_factor=1))
            with T.sblock("root"):
                T.reads(acc[0:4], requant[0:per_output, 0:4])
                T.writes(scaled[0:4])
                if vector:
                    T.buffer_store(scaled, vector_value(acc, requant), [T.ramp(0, 1, 4)])
                else:
                    with T.serial(4) as i, T.sblock("scale"):
                        v = T.axis.spatial(4, i)
                        T.buffer_store(scaled, kernel.scale(acc[v], lambda j: requant[j, v]), [v])
        return builder.get()

    rounding = f"int16_{int(kernel.narrowing > 0)}" if isinstance(kernel, DenseInt16) else int(kernel.hides_negatives)
    return registered(f"mve_scale4_{per_output}_{rounding}", function)


def _half(scaled: Any, odd: int, shift: int, zero_point: int) -> Any:
    """A pair of vectors of scaled accumulators, shifted and saturated into the even and odd lanes of one of int16."""
    even_lanes, odd_lanes = (scaled.vload([odd, pair, 0], "int32x4") for pair in (0, 1))
    half = mve.narrow_to_int16(T.reinterpret("int16x8", even_lanes), even_lanes, shift, 0)
    half = mve.narrow_to_int16(half, odd_lanes, shift, 1)
    return T.bind(mve.vqadd16(half, T.broadcast(T.int16(zero_point), 8)) if zero_point else half)


def _bounded(codes: Any, kernel: DenseCodes, lanes: int) -> Any:
    ends = np.iinfo(kernel.writes)
    if kernel.low > ends.min:
        codes = T.max(codes, T.broadcast(tirx.const(kernel.low, kernel.writes), lanes))
    if kernel.high < ends.max:
        codes = T.min(codes, T.broadcast(tirx.const(kernel.high, kernel.writes), lanes))
    return codes


def _narrow16(kernel: DenseCodes) -> str:
    """Sixteen scaled accumulators to sixteen codes in natural order: `vqrshrn`, `vqmovn`, and the table's `vldrb`."""
    has_table = kernel.table is not None
    unsigned = (kernel.zero_point, kernel.low, kernel.high) == (-128, -128, 127)

    def vector_value(scaled: Any, table: Any) -> Any:
        halves = [_half(scaled, odd, kernel.shift, 0 if unsigned else kernel.zero_point) for odd in (0, 1)]
        codes = mve.narrow_to_int8(T.reinterpret("int8x16", halves[0]), halves[0], int(unsigned), 0)
        codes = mve.narrow_to_int8(codes, halves[1], int(unsigned), 1)
        # 0..255 to -128..127
        codes = T.bitwise_xor(codes, T.broadcast(T.int8(-128), 16)) if unsigned else _bounded(codes, kernel, 16)
        return codes if table is None else mve.gather_bytes(T.address_of(table[0]), codes)

    def function(vector: bool) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("narrow16")
            scaled = T.arg("scaled", T.Buffer((2, 2, 4), "int32", offset_factor=1))
            table = T.arg("table", T.Buffer((256,), "int8", offset_factor=1)) if has_table else None
            out = T.arg("out", T.Buffer((4, 2, 2), "int8", offset_factor=1))
            reads = [scaled[0:2, 0:2, 0:4], *([] if table is None else [table[0:256]])]
            with T.sblock("root"):
                T.reads(*reads)
                T.writes(out[0:4, 0:2, 0:2])
                if vector:
                    T.buffer_store(out, vector_value(scaled, table), [0, 0, T.ramp(0, 1, 16)])
                else:
                    with T.grid(2, 2, 4) as (i, j, k), T.sblock("narrow"):
                        o, p, l = T.axis.remap("SSS", [i, j, k])
                        if table is not None:
                            T.reads(scaled[o, p, l], table[0:256])
                            T.writes(out[l, p, o])
                        T.buffer_store(out, kernel.narrow(scaled[o, p, l], table), [l, p, o])
        return builder.get()

    limits = f"{kernel.shift}_{kernel.zero_point}_{kernel.low}_{kernel.high}_{int(has_table)}".replace("-", "m")
    return registered(f"mve_narrow16_{limits}", function)


def _narrow8(kernel: DenseCodes) -> str:
    """Eight scaled accumulators to eight codes in natural order: `vqrshrn`, and for int8 `vqmovn` and a store of every
    other byte."""

    def vector_value(scaled: Any) -> Any:
        half = _half(scaled, 0, kernel.narrowing, kernel.zero_point)
        if kernel.writes == "int16":
            return _bounded(half, kernel, 8)
        codes = T.reinterpret("int16x8", mve.narrow_to_int8(T.reinterpret("int8x16", half), half, 0, 0))
        return _bounded(T.Cast("int8x8", codes), kernel, 8)

    def function(vector: bool) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("narrow8")
            scaled = T.arg("scaled", T.Buffer((1, 2, 4), "int32", offset_factor=1))
            out = T.arg("out", T.Buffer((4, 2, 1), kernel.writes, offset_factor=1))
            with T.sblock("root"):
                T.reads(scaled[0:1, 0:2, 0:4])
                T.writes(out[0:4, 0:2, 0:1])
                if vector:
                    T.buffer_store(out, vector_value(scaled), [0, 0, T.ramp(0, 1, 8)])
                else:
                    with T.grid(2, 4) as (i, j), T.sblock("narrow"):
                        p, l = T.axis.remap("SS", [i, j])
                        T.buffer_store(out, kernel.narrow(scaled[0, p, l], None), [l, p, 0])
        return builder.get()

    limits = f"{kernel.writes}_{kernel.narrowing}_{kernel.zero_point}_{kernel.low}_{kernel.high}".replace("-", "m")
    return registered(f"mve_narrow8_{limits}", function)


def _steep(kernel: DenseCodes) -> bool:
    """Whether neighbours in the table lie further apart than int16 can say."""
    assert kernel.table is not None
    return bool(np.abs(np.diff(kernel.table.astype(np.int32))).max() >= 2**15)


def _interpolate8() -> str:
    """Eight codes read between entries a and b: a + (b - a) f / 2^8, ties up, is `vqrdmulh.s16` of b - a and 2^7 f."""

    def vector_value(codes: Any, table: Any) -> Any:
        entry = T.bind(mve.shift_right_unsigned(T.bitwise_xor(codes, T.broadcast(T.int16(-32768), 8)), 8))
        fraction = mve.shift_right_unsigned(T.shift_left(codes, T.broadcast(T.int16(8), 8)), 1)
        below, above = (T.bind(mve.gather_halves(T.address_of(table[i]), entry)) for i in (0, 1))
        return below + mve.vqrdmulh(above - below, fraction, "int16x8")

    def function(vector: bool) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("interpolate8")
            codes = T.arg("codes", T.Buffer((4, 2, 1), "int16", offset_factor=1))
            table = T.arg("table", T.Buffer((257,), "int16", offset_factor=1))
            out = T.arg("out", T.Buffer((4, 2, 1), "int16", offset_factor=1))
            with T.sblock("root"):
                T.reads(codes[0:4, 0:2, 0:1], table[0:257])
                T.writes(out[0:4, 0:2, 0:1])
                if vector:
                    loaded = T.bind(codes.vload([0, 0, 0], "int16x8"))
                    T.buffer_store(out, vector_value(loaded, table), [0, 0, T.ramp(0, 1, 8)])
                else:
                    with T.grid(2, 4) as (i, j), T.sblock("interpolate"):
                        p, l = T.axis.remap("SS", [i, j])
                        T.reads(codes[l, p, 0], table[0:257])
                        T.writes(out[l, p, 0])
                        value = interpolate(table, T.Cast("int32", codes[l, p, 0]))
                        T.buffer_store(out, T.Cast("int16", value), [l, p, 0])
        return builder.get()

    return registered("mve_interpolate8", function)


_CODES = Rule(dense_codes_layout, schedule_dense_codes, dense_codes_knobs, dense_codes_attributes)
_HEAD = Rule(dense_head_layout, schedule_dense_head)
_OBSERVATIONS = Rule(portable.observation_layout, schedule_observation)

RULES: dict[type, Rule] = {
    **portable.EVERYWHERE,
    **mve_elementwise.RULES,
    Quantize: _OBSERVATIONS,
    QuantizeInt16: _OBSERVATIONS,
    Clamp: mve_float.CLAMP,
    DenseCodes: _CODES,
    DenseInt16: _CODES,
    DenseHead: _HEAD,
    HeadOfInt16: _HEAD,
    DenseFloat: mve_float.DENSE,
}
