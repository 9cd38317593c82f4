# SPDX-License-Identifier: Apache-2.0
"""Hand what CMSIS-NN computes bit for bit over to it, layers and a softmax; the rest stays with kernels of our own.

    tinyrl.dense_codes(x, weight, bias, multiplier, shift, zero_point, low, high, table)                   becomes
    cmsis_nn.arm_fully_connected_per_channel_s8(x, weight, bias, multiplier, shift, output_offset, low, high, table)
    cmsis_nn.arm_fully_connected_s8(...)                                     where one multiplier serves every output

    tinyrl.dense_int16(the same)     becomes     cmsis_nn.arm_fully_connected_s16(...), for which one has to serve

    tinyrl.softmax(codes, runs, multiplier, shift, least_difference)      becomes   cmsis_nn.arm_softmax_s8(the same)
    tinyrl.softmax_int16(codes, runs, multiplier, shift, two tables)      becomes   cmsis_nn.arm_softmax_s16(the same)
    tinyrl.add_codes(...), tinyrl.multiply_int16(...)      become   cmsis_nn.arm_elementwise_add_s8(the same), ..._mul_s16

multiplier and shift are what `arm_nn_requantize` takes, (n_out,) int32 or (1,): a shift to the right is negative there.
A table is left to C behind the call: codes to codes; so is the last step of a softmax, from codes to floats.

* A layer without multipliers rounds once, with ties up: acc * 2^(31 - s) under CMSIS-NN's doubling high multiply is just
  that, and no shift follows. Of int16 codes, whose multipliers CMSIS-NN cuts to 15 bits, it is 2^30 and the shift 1 - s.
* Zero points of inputs are in our biases already, so that the kernel sums, bias + input_offset * sum(weight), are the bias.

Source: CMSIS-NN Include/arm_nnfunctions.h at 99f736a; `fixedpoint.requantize` is the arithmetic of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Var
from tvm.relax import op

from .dataflow import bindings, dtype_of, known, rewrite_main, shape_of
from .lower_dense import call_arguments, call_name

PREFIX = "cmsis_nn."
PER_TENSOR, PER_CHANNEL = "arm_fully_connected_s8", "arm_fully_connected_per_channel_s8"
OF_INT16 = "arm_fully_connected_s16"
SOFTMAX, SOFTMAX_INT16 = "arm_softmax_s8", "arm_softmax_s16"
# A sum of more numbers can round up to the next power of two, which arm_softmax_s16 takes for the one before.
LONGEST_RUN_INT16 = 8
# the operator and the codes of ours that each computes
ELEMENTWISE = {
    "arm_elementwise_add_s8": ("add", "codes"),
    "arm_elementwise_add_s16": ("add", "int16"),
    "arm_elementwise_mul_s8": ("multiply", "codes"),
    "arm_elementwise_mul_s16": ("multiply", "int16"),
}


@dataclass(frozen=True)
class Offload:
    """Where a kernel of the policy runs: `function` of CMSIS-NN, or None for one of our own; and why."""

    kernel: str
    function: str | None
    reason: str


def offloads(module: tvm.IRModule) -> tuple[Offload, ...]:
    """What PartitionCmsisNN does with each kernel call of a lowered `main`, in calling order."""
    calls = [(var, value) for var, value in bindings(module["main"]) if call_name(value)]
    return tuple(_offload(call_name(value), var, call_arguments(value)) for var, value in calls)


@tvm.transform.module_pass(opt_level=0, name="PartitionCmsisNN")
class PartitionCmsisNN:
    """tinyrl.dense_codes becomes cmsis_nn.arm_fully_connected_*, tinyrl.softmax cmsis_nn.arm_softmax_*; after LowerDense.
    `decided` is what `offloads` gave, less those that are to stay ours; without it every layer goes that can."""

    def __init__(self, decided: Sequence[Offload] | None = None) -> None:
        self.decided = decided

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        calls = [var for var, value in bindings(module["main"]) if call_name(value)]
        decided = dict(zip(calls, self.decided or offloads(module), strict=True))

        def replace(var: Var, value: relax.Expr) -> relax.Expr | None:
            function = decided[var].function if call_name(value) else None
            return _call(function, var, call_arguments(value)) if function else None

        return rewrite_main(module, replace)


def _offload(name: str, result: Var, arguments: Sequence[relax.Expr]) -> Offload:
    kind, n = name.removeprefix("tinyrl."), shape_of(result)[-1]
    if kind == "quantize":
        return Offload(f"quantize {n}", None, "it reads float observations, CMSIS-NN reads codes")
    if kind in ("softmax", "softmax_int16"):
        runs, function = known(arguments[1]), SOFTMAX if kind == "softmax" else SOFTMAX_INT16
        if function == SOFTMAX_INT16 and runs.max() > LONGEST_RUN_INT16:
            return Offload(
                f"softmax {n}", None, f"of {runs.max()} numbers {function} doubles a sum that it has no bit for"
            )
        calls = "" if len(runs) == 1 else f", a call for each of {len(runs)}"
        return Offload(f"softmax {n}", function, f"it reads codes{calls}; C makes floats of the codes it gives")
    if kind.startswith("map_"):
        return Offload(f"function of {n}", None, "CMSIS-NN has no table of codes")
    for function, (operator, of) in ELEMENTWISE.items():
        if kind == f"{operator}_{of}":
            table = "; a table in C follows" if known(arguments[-1]).size else ""
            verb = "sum" if operator == "add" else "product"
            return Offload(f"{verb} of {n}", function, f"two tensors of one scale each{table}")
    return _offload_dense(kind, arguments)


def _offload_dense(kind: str, arguments: Sequence[relax.Expr]) -> Offload:
    n_out, n_in = shape_of(arguments[1])
    kernel = f"dense {n_in} -> {n_out}"
    if kind not in ("dense_codes", "dense_int16"):
        return Offload(kernel, None, "the action is made of its int32 sums, of which CMSIS-NN gives codes alone")
    if known(arguments[1]).dtype != np.int8:
        return Offload(kernel, None, "its weights have 16 bits, CMSIS-NN's int8 kernels take 8")
    multiplier, _ = _requantization(arguments)
    table = "; a table in C follows" if known(arguments[-1]).size else ""
    int16 = kind == "dense_int16"
    if len(multiplier) == 1:
        return Offload(kernel, OF_INT16 if int16 else PER_TENSOR, f"one multiplier serves every output{table}")
    if int16:
        return Offload(kernel, None, f"every output has a multiplier, {OF_INT16} takes one")
    return Offload(kernel, PER_CHANNEL, f"every output has a multiplier{table}")


def _requantization(arguments: Sequence[relax.Expr]) -> tuple[np.ndarray, np.ndarray]:
    """(multiplier, shift) int32 as `arm_nn_requantize` takes them, (n_out,), or (1,) where they are all the same."""
    multiplier, shift = known(arguments[3]), int(arguments[4].value)
    if dtype_of(arguments[0]) == "int16":
        # 15 bits behind the point as the upper ones of 31; the shift is one of products then, by 15 bits more
        multiplier, shift = (
            (multiplier << 16, shift - 15) if multiplier.size else (np.array([2**30], np.int32), shift - 1)
        )
    elif not multiplier.size:
        assert shift >= 1, "a layer without multipliers is shifted"
        multiplier, shift = np.array([2 ** (31 - shift)], np.int32), 0
    if np.all(multiplier == multiplier[0]):
        multiplier = multiplier[:1]
    return multiplier, np.full(len(multiplier), -shift, np.int32)


def _call(function: str, result: Var, arguments: Sequence[relax.Expr]) -> relax.Expr:
    if function in (SOFTMAX, SOFTMAX_INT16) or function in ELEMENTWISE:
        return op.call_dps_packed(PREFIX + function, list(arguments), out_ty=result.ty)
    x, weight, bias, _, _, *rest = arguments
    multiplier, shift = (relax.const(values) for values in _requantization(arguments))
    return op.call_dps_packed(
        PREFIX + function,
        [x, weight, bias, multiplier, shift, *rest],
        out_ty=result.ty,
    )
