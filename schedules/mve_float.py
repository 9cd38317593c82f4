# SPDX-License-Identifier: Apache-2.0
"""Schedules for floats on Arm Helium (MVE), whose vectors hold four.

A hidden layer keeps a block of outputs in vector registers and walks down the inputs: a scalar of x meets a vector of
weights, `vfma.f32 q, q, r`. A head has few outputs, so a vector holds four inputs of one output instead.
Weights lie in the order they are consumed in.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from schedules import mve_intrinsics as mve
from schedules import portable
from schedules.kernels import ArgMax, Clamp, DenseFloat, DenseHead, Layout
from schedules.knobs import Choices, Knobs, Rule
from schedules.patterns import largest_divisor, registered

LANES = 4
# Eight vector registers: sums, and one at least for weights on their way.
MOST_SUMS = 6
# A vector load reaches 508 bytes before and behind its pointer, so one pointer covers a window of 64 vectors.
WINDOW = 64
REACH = 127  # floats
# The bias lies one float off the outputs: LLVM would else compute each address once for both, and keep them in registers
# that it has not got. P1, P2 and P3 whole: 2,776, 3,700 and 42,168 instructions without it, 2,721, 3,579 and 41,700 with it.
BIAS_ORIGIN = 1
# Outputs of a head that are finished one by one without a loop.
FEW = 8


def dense_knobs(kernel: DenseFloat) -> Knobs:
    """`vectors` of outputs in a block; `unrolled` inputs to an iteration; `step` inputs loaded together."""
    n_out, n_in = kernel.weight.shape
    # a block costs a load and a multiply-add a vector, and half a load of x, for every input
    vectors = sorted(range(1, MOST_SUMS + 1), key=lambda v: (-(-n_out // (LANES * v)) * (4 * v + 1), v))[:3]
    window = WINDOW // vectors[0]
    unrolled = dict.fromkeys(_unrolled(n_in, n) for n in (window, window // 2, 2 * window))
    return {"vectors": tuple(vectors), "unrolled": tuple(unrolled), "step": (2, 4, 1)}


def dense_layout(kernel: DenseFloat, choices: Choices) -> Layout:
    n_out, n_in = kernel.weight.shape
    lanes = LANES * choices["vectors"]
    middle = _middle(lanes * choices["unrolled"])
    return Layout(-(-n_out // lanes), 1, 1, lanes, n_in, 1, origin=middle, bias_origin=BIAS_ORIGIN)


def schedule_dense(schedule: Schedule, kernel: DenseFloat, layout: Layout, choices: Choices) -> None:
    accumulate, activate = schedule.get_sblock("accumulate"), schedule.get_sblock("activate")
    block, lane, inputs = schedule.get_loops(accumulate)
    unrolled = choices["unrolled"]
    step = largest_divisor(unrolled, choices["step"])
    outer, middle, inner = schedule.split(inputs, [None, unrolled // step, step])
    schedule.reorder(block, outer, middle, inner, lane)
    schedule.reverse_compute_at(activate, block)
    vector_out, lanes_out = schedule.split(schedule.get_loops(activate)[-1], [None, LANES])
    schedule.vectorize(lanes_out)
    schedule.unroll(vector_out)
    schedule.unroll(middle)
    start = schedule.decompose_reduction(accumulate, outer)
    vector, lanes = schedule.split(schedule.get_loops(start)[-1], [None, LANES])
    schedule.vectorize(lanes)
    schedule.unroll(vector)
    schedule.tensorize(inner if step > 1 else lane, _outputs_in_lanes(step, choices["vectors"]))


def head_layout(kernel: DenseHead, _: Choices) -> Layout:
    n_out, n_in = kernel.weight.shape
    # as many rows as registers hold, and the same number in every block where that can be
    rows = next((n for n in range(MOST_SUMS, 2, -1) if n_out % n == 0), min(n_out, MOST_SUMS))
    window = LANES * rows * _head_unrolled(rows, n_in)
    return Layout(-(-n_out // rows), 1, 1, rows, -(-n_in // LANES), LANES, origin=_middle(window))


def schedule_head(schedule: Schedule, kernel: DenseHead, layout: Layout, _: Choices) -> None:
    n_out, n_in = kernel.weight.shape
    if n_in >= LANES:
        accumulate = schedule.get_sblock("accumulate")
        block, row, chunk, lane = schedule.get_loops(accumulate)
        outer, inner = schedule.split(chunk, [None, _head_unrolled(layout.lanes, n_in)])
        schedule.reorder(block, outer, inner, row, lane)
        schedule.unroll(inner)
        start = schedule.decompose_reduction(accumulate, outer)
        *_, rows, lanes = schedule.get_loops(start)
        schedule.vectorize(lanes)
        schedule.unroll(rows)
        schedule.tensorize(row if layout.lanes > 1 else lane, _inputs_in_lanes(layout.lanes))
    for name in ("total",) if isinstance(kernel.answer, ArgMax) else ("total", "answer"):
        if n_out <= FEW:
            schedule.unroll(schedule.get_loops(schedule.get_sblock(name))[-1])


def schedule_clamp(schedule: Schedule, kernel: Clamp, layout: Layout, _: Choices) -> None:
    (i,) = schedule.get_loops(schedule.get_sblock("clamp"))
    if layout.lanes % LANES == 0:
        _outer, lanes = schedule.split(i, [None, LANES])
        schedule.vectorize(lanes)


def _unrolled(inputs: int, wanted: int) -> int:
    """A divisor of `inputs`, the largest up to `wanted`; but where that is a small one, as of 17 or 37, a larger one."""
    divisor = largest_divisor(inputs, wanted)
    if 4 * divisor >= min(inputs, wanted):
        return divisor
    return next((d for d in range(wanted, 3 * wanted) if inputs % d == 0), divisor)


def _head_unrolled(rows: int, inputs: int) -> int:
    """Chunks of inputs whose weights fill a window."""
    return _unrolled(max(1, inputs // LANES), WINDOW // rows)


def _middle(window: int) -> int:
    """Where to point in a window of floats so that both its ends are within reach."""
    return min(REACH, window // 2 - 1)


def _outputs_in_lanes(inputs: int, vectors: int) -> str:
    """acc = fma(x[k], weight[k], acc) over `inputs`, for vectors of outputs: `vfma.f32 q, q, r`.

    The scalars come first, so that two of them are one `ldrd`; the fence keeps the next ones' loads behind, because LLVM
    would else hoist more than there are registers, and spill. The bias is where the sums began: it is not read here, but a
    reduction goes on listing it.
    """
    n = LANES * vectors

    def function(vector: bool) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("outputs_in_lanes")
            x = T.arg("x", T.Buffer((inputs,), "float32", offset_factor=1))
            weight = T.arg("weight", T.Buffer((inputs, n), "float32", offset_factor=1))
            bias = T.arg("bias", T.Buffer((n,), "float32", offset_factor=1))
            acc = T.arg("acc", T.Buffer((n,), "float32", offset_factor=1))
            with T.sblock("root"):
                T.reads(acc[0:n], bias[0:n], x[0:inputs], weight[0:inputs, 0:n])
                T.writes(acc[0:n])
                if vector:
                    scalars = [T.bind(x[k]) for k in range(inputs)]
                    for k, scalar in enumerate(scalars):
                        for start in range(0, n, LANES):
                            _accumulate(T.broadcast(scalar, LANES), weight.vload([k, start], "float32x4"), acc, [start])
                    T.evaluate(mve.fence(0))
                else:
                    with T.grid(*([inputs] * (inputs > 1)), n) as loops, T.sblock("accumulate"):
                        l = T.axis.spatial(n, loops[1] if inputs > 1 else loops)
                        k = T.axis.reduce(inputs, loops[0]) if inputs > 1 else 0
                        T.reads(acc[l], bias[l], x[k], weight[k, l])
                        T.writes(acc[l])
                        T.buffer_store(acc, T.fma(x[k], weight[k, l], acc[l]), [l])
        return builder.get()

    return registered(f"mve_outputs_in_lanes_{inputs}_{vectors}", function)


def _inputs_in_lanes(rows: int) -> str:
    """acc[row] = fma(x, weight[row], acc[row]) in four lanes: a `vfma.f32` a row, on one load of x."""

    def function(vector: bool) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("inputs_in_lanes")
            x = T.arg("x", T.Buffer((LANES,), "float32", offset_factor=1))
            weight = T.arg("weight", T.Buffer((rows, LANES), "float32", offset_factor=1))
            acc = T.arg("acc", T.Buffer((rows, LANES), "float32", offset_factor=1))
            with T.sblock("root"):
                T.reads(acc[0:rows, 0:LANES], x[0:LANES], weight[0:rows, 0:LANES])
                T.writes(acc[0:rows, 0:LANES])
                if vector:
                    inputs = T.bind(x.vload([0], "float32x4"))
                    for row in range(rows):
                        _accumulate(inputs, weight.vload([row, 0], "float32x4"), acc, [row, 0])
                    T.evaluate(mve.fence(0))
                else:
                    with T.grid(*([rows] * (rows > 1)), LANES) as loops, T.sblock("accumulate"):
                        row = T.axis.spatial(rows, loops[0]) if rows > 1 else 0
                        l = T.axis.spatial(LANES, loops[1] if rows > 1 else loops)
                        T.reads(acc[row, l], x[l], weight[row, l])
                        T.writes(acc[row, l])
                        T.buffer_store(acc, T.fma(x[l], weight[row, l], acc[row, l]), [row, l])
        return builder.get()

    return registered(f"mve_inputs_in_lanes_{rows}", function)


def _accumulate(x: Any, weight: Any, acc: Any, start: list[int]) -> None:
    """Four lanes of acc, from `start`: one `vfma.f32`."""
    *rows, column = start
    T.buffer_store(acc, T.fma(x, weight, acc.vload(start, "float32x4")), [*rows, T.ramp(column, 1, LANES)])


CLAMP = Rule(portable.observation_layout, schedule_clamp)
DENSE = Rule(dense_layout, schedule_dense, dense_knobs)
