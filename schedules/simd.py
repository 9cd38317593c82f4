# SPDX-License-Identifier: Apache-2.0
"""Schedules for a C compiler that vectorises: GCC and clang at -O3 for x86-64 and AArch64, clang for wasm32 with SIMD.

    codes   a block of rows, one dot product a row on 16-bit copies of the codes, then the block requantised in one loop
    floats  a block of outputs as lanes: acc[lane] += x[k] * weight[k][lane], so that each keeps its order of accumulation

Why: a compiler vectorises an inner loop of constant length whose sums are integers, or whose lanes are independent. A
float dot product it must leave alone, and products of bytes it multiplies in 32 bits; 16-bit products summed in pairs are
what SSE2 (`pmaddwd`) and wasm (`i32x4.dot_i16x8_s`) have an instruction for.

Why C for wasm too: kernels of TVM's own LLVM 22 with the same instruction, four rows at a time, ran 1 to 4 % faster in
node 20 (a layer of 64x64 181 ns for 187, of 256x256 2.36 us for 2.45), and would be a second text beside the C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from schedules import portable
from schedules.arithmetic import doubling_high_multiply_unsigned, ties_away
from schedules.kernels import Clamp, DenseCodes, DenseFloat, DenseHead, Layout, Quantize
from schedules.knobs import Choices, Knobs, Rule
from schedules.patterns import dot_products, largest_divisor, registered

DOTS = "tinyrl_dots"
# Sums of a block of rows, kept on the stack: 256 bytes of it, and long loops over them.
MOST_ROWS = 64
# A dot product takes whole vectors: 16 codes are one of SSE2's, NEON's or wasm's.
CHUNK = 16
# Observations of a wide layer, 14-bit codes: up to here its inner loop is written out.
MOST_UNROLLED = 8


def dense_codes_layout(kernel: DenseCodes, _: Choices) -> Layout:
    n_out, n_in = kernel.weight.shape
    lanes = _lanes(n_out, MOST_ROWS)
    blocks = -(-n_out // lanes)
    return Layout(blocks, 1, 1, lanes, n_in, 1) if kernel.wide else Layout(blocks, 1, 1, lanes, 1, _whole_chunks(n_in))


def dense_head_layout(kernel: DenseHead, choices: Choices) -> Layout:
    if kernel.floating:  # its four lanes are a vector already
        return portable.dense_layout(kernel, choices)
    n_out, n_in = kernel.weight.shape
    return Layout(1, 1, 1, n_out, 1, _whole_chunks(n_in))


def dense_float_layout(kernel: DenseFloat, choices: Choices) -> Layout:
    n_out, n_in = kernel.weight.shape
    lanes = _lanes(n_out, choices["lanes"])
    return Layout(-(-n_out // lanes), 1, 1, lanes, n_in, 1)


def schedule_dense_codes(schedule: Schedule, kernel: DenseCodes, layout: Layout, _: Choices) -> None:
    accumulate, scale, narrow = (schedule.get_sblock(name) for name in ("accumulate", "scale", "narrow"))
    block, _odd, _pair, lane, chunk, k = schedule.get_loops(accumulate)
    if kernel.wide:
        if layout.chunks <= MOST_UNROLLED:
            schedule.unroll(chunk)
        else:
            schedule.reorder(chunk, k, lane)
    else:
        schedule.reorder(chunk, lane, k)
    schedule.reverse_compute_at(scale, block)
    schedule.reverse_compute_at(narrow, block)
    schedule.decompose_reduction(accumulate, chunk)
    if not kernel.wide:
        schedule.tensorize(lane if layout.lanes > 1 else k, _dots(layout.lanes, layout.chunk))
    if kernel.multiplier is not None:
        schedule.tensorize(schedule.get_loops(scale)[1], _scale(kernel, layout.lanes))


def schedule_dense_head(schedule: Schedule, kernel: DenseHead, layout: Layout, choices: Choices) -> None:
    if kernel.floating:
        portable.schedule_dense_head(schedule, kernel, layout, choices)
        return
    accumulate = schedule.get_sblock("accumulate")
    lane, chunk, k = schedule.get_loops(accumulate)[1:]
    schedule.reorder(chunk, lane, k)
    schedule.decompose_reduction(accumulate, chunk)
    schedule.tensorize(lane if layout.lanes > 1 else k, _dots(layout.lanes, layout.chunk))


def schedule_dense_float(schedule: Schedule, kernel: DenseFloat, layout: Layout, choices: Choices) -> None:
    """`step` inputs to a round of the lanes."""
    accumulate = schedule.get_sblock("accumulate")
    block, lane, inputs = schedule.get_loops(accumulate)
    schedule.reverse_compute_at(schedule.get_sblock("activate"), block)
    outer, inner = schedule.split(inputs, [None, largest_divisor(layout.chunks, choices["step"])])
    schedule.reorder(outer, lane, inner)
    schedule.unroll(inner)
    schedule.decompose_reduction(accumulate, outer)


def _lanes(n_out: int, most: int) -> int:
    """Lanes of a block, a multiple of four: of the wide ones, those that pad the least."""
    if n_out <= most:
        return -(-n_out // 4) * 4
    return min(range(most, most // 2, -4), key=lambda lanes: -n_out % lanes)


def _whole_chunks(n_in: int) -> int:
    return -(-n_in // CHUNK) * CHUNK


def _dots(lanes: int, n_in: int) -> str:
    """sums[l] + weight[l] . x, for each of `lanes` rows: a call of the function that the printed C defines."""

    def call(x: Any, weight: Any, acc: Any) -> None:
        arrays = (T.address_of(acc[0]), T.address_of(x[0]), T.address_of(weight[0, 0]))
        T.evaluate(T.call_extern("int32", DOTS, *arrays, lanes, n_in))

    return dot_products(f"simd_dots_{lanes}_{n_in}", lanes, n_in, call)


def _scale(kernel: DenseCodes, lanes: int) -> str:
    """Accumulators biased and multiplied, by a product of unsigned numbers: that is the one SSE2 has (`pmuludq`)."""

    def value(acc: Any, requant: Callable[[int], Any]) -> Any:
        high = T.bind(doubling_high_multiply_unsigned(acc + requant(0), requant(1)))
        return high if kernel.hides_negatives else ties_away(high)

    def function(unsigned: bool) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("scale")
            acc = T.arg("acc", T.Buffer((lanes,), "int32", offset_factor=1))
            requant = T.arg("requant", T.Buffer((2, lanes), "int32", offset_factor=1))
            scaled = T.arg("scaled", T.Buffer((lanes,), "int32", offset_factor=1))
            with T.sblock("root"):
                T.reads(acc[0:lanes], requant[0:2, 0:lanes])
                T.writes(scaled[0:lanes])
                with T.serial(lanes) as i, T.sblock("scale"):
                    v = T.axis.spatial(lanes, IRBuilder.name("l", i))
                    of = value if unsigned else kernel.scale
                    T.buffer_store(scaled, of(acc[v], lambda j: requant[j, v]), [v])
        return builder.get()

    return registered(f"simd_scale_{lanes}_{int(kernel.hides_negatives)}", function)


def _rules(lanes: tuple[int, ...], step: tuple[int, ...]) -> dict[type, Rule]:
    def float_knobs(_: DenseFloat) -> Knobs:
        return {"lanes": lanes, "step": step}

    return {
        **portable.EVERYWHERE,
        Quantize: Rule(portable.observation_layout, portable.schedule_observation),
        Clamp: Rule(portable.observation_layout, portable.schedule_observation),
        DenseCodes: Rule(dense_codes_layout, schedule_dense_codes),
        DenseHead: Rule(dense_head_layout, schedule_dense_head),
        DenseFloat: Rule(dense_float_layout, schedule_dense_float, float_knobs),
    }


# GCC keeps 32 lanes in registers when a round of them is one input, and writes out loops of 16 before it vectorises them;
# what clang makes of 32 for wasm stays in memory. 256x256 floats: 3.4 us with GCC (16 lanes: 20); in node 2.7 (32: 6.3).
RULES = _rules(lanes=(32, 16), step=(1, 2, 4))
WASM_RULES = _rules(lanes=(16, 32), step=(2, 1, 4))
