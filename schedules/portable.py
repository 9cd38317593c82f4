# SPDX-License-Identifier: Apache-2.0
"""The C twin's schedules: one output at a time, or a few, so that nothing but accumulators is kept between steps."""

from __future__ import annotations

from tvm.s_tir import Schedule

from schedules.elementwise import AddCodes, Elementwise, MapCodes, MapFloat, MergeFloat, MultiplyCodes
from schedules.kernels import (
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
from schedules.knobs import Choices, Rule
from schedules.softmax import Softmax, SoftmaxCodes, SoftmaxInt16

SIDE_BY_SIDE = 4  # outputs of a float layer


def dense_layout(kernel: DenseCodes | DenseHead | DenseFloat, _: Choices) -> Layout:
    """Natural order; padded only where floats are taken several at a time."""
    n_out, n_in = kernel.weight.shape
    if isinstance(kernel, DenseCodes) and not kernel.wide:
        return Layout(n_out, 1, 1, 1, 1, n_in)
    if isinstance(kernel, DenseHead) and kernel.floating:  # sums in four lanes
        return Layout(n_out, 1, 1, 1, -(-n_in // 4), 4)
    if isinstance(kernel, DenseFloat):
        return Layout(-(-n_out // SIDE_BY_SIDE), 1, 1, SIDE_BY_SIDE, n_in, 1)
    return Layout(n_out, 1, 1, 1, n_in, 1)


def observation_layout(kernel: Quantize | Clamp, _: Choices) -> Layout:
    n = len(kernel.inverse_scale if isinstance(kernel, Quantize) else kernel.low)
    return Layout(1, 1, 1, n, 1, n)


def softmax_layout(kernel: Softmax | SoftmaxCodes | SoftmaxInt16, _: Choices) -> Layout:
    return Layout(1, 1, 1, kernel.n, 1, kernel.n)


def elements_layout(kernel: Elementwise, _: Choices) -> Layout:
    return Layout(kernel.n, 1, 1, 1, kernel.n, 1)


def schedule_elementwise(schedule: Schedule, kernel: Elementwise, layout: Layout, _: Choices) -> None:
    """One after the other, as described."""


def schedule_softmax(
    schedule: Schedule, kernel: Softmax | SoftmaxCodes | SoftmaxInt16, layout: Layout, _: Choices
) -> None:
    """One after the other, as described: each reads what all before it add up to."""


def schedule_observation(schedule: Schedule, kernel: Quantize | Clamp, layout: Layout, _: Choices) -> None:
    """One after the other, as described."""


def schedule_dense_codes(schedule: Schedule, kernel: DenseCodes, layout: Layout, _: Choices) -> None:
    accumulate, scale, narrow = (schedule.get_sblock(name) for name in ("accumulate", "scale", "narrow"))
    *_, output, chunk, _ = schedule.get_loops(accumulate)
    schedule.reverse_compute_at(scale, output)
    schedule.reverse_compute_at(narrow, output)
    if interpolates(kernel):
        schedule.reverse_compute_at(schedule.get_sblock("interpolate"), output)
    schedule.decompose_reduction(accumulate, chunk)


def schedule_dense_head(schedule: Schedule, kernel: DenseHead, layout: Layout, _: Choices) -> None:
    if kernel.floating and kernel.weight.shape[1] < 4:
        return
    accumulate = schedule.get_sblock("accumulate")
    schedule.decompose_reduction(accumulate, schedule.get_loops(accumulate)[2])


def schedule_dense_float(schedule: Schedule, kernel: DenseFloat, layout: Layout, _: Choices) -> None:
    """A few outputs side by side: a sum waits for its last step, and a rounding in double takes several times as long."""
    accumulate = schedule.get_sblock("accumulate")
    _, lane, inputs = schedule.get_loops(accumulate)
    outer, inner = schedule.split(lane, [None, SIDE_BY_SIDE])
    schedule.reorder(inputs, inner)
    schedule.reverse_compute_at(schedule.get_sblock("activate"), outer)
    schedule.decompose_reduction(accumulate, inputs)
    schedule.unroll(inner)


# of every family: a head's few numbers fill no vector
SOFTMAX: dict[type, Rule] = {
    kind: Rule(softmax_layout, schedule_softmax) for kind in (Softmax, SoftmaxCodes, SoftmaxInt16)
}

# of every family that has no dot products of 16 bits: its own compiler makes of these what it can
INT16: dict[type, Rule] = {
    QuantizeInt16: Rule(observation_layout, schedule_observation),
    DenseInt16: Rule(dense_layout, schedule_dense_codes),
    HeadOfInt16: Rule(dense_layout, schedule_dense_head),
}
ELEMENTWISE: dict[type, Rule] = {
    kind: Rule(elements_layout, schedule_elementwise)
    for kind in (AddCodes, MultiplyCodes, MapCodes, MergeFloat, MapFloat)
}
EVERYWHERE = {**SOFTMAX, **INT16, **ELEMENTWISE}

RULES: dict[type, Rule] = {
    **EVERYWHERE,
    Quantize: Rule(observation_layout, schedule_observation),
    Clamp: Rule(observation_layout, schedule_observation),
    DenseCodes: Rule(dense_layout, schedule_dense_codes),
    DenseHead: Rule(dense_layout, schedule_dense_head),
    DenseFloat: Rule(dense_layout, schedule_dense_float),
}
