# SPDX-License-Identifier: Apache-2.0
"""PartitionCmsisNN: dense layers become calls of CMSIS-NN where these compute the same, and stay ours where not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from test_lower_dense import integers
from test_quantize_int8 import policy, random_weights, rows_for
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes import FoldLut, LowerDense, PartitionCmsisNN, QuantizeInt8, QuantizeInt16, fixedpoint
from relay_passes.dataflow import bindings, constant, known
from relay_passes.lower_dense import call_arguments, call_name
from relay_passes.partition_cmsis_nn import OF_INT16, PER_CHANNEL, PER_TENSOR, PREFIX, SOFTMAX_INT16, offloads

RNG = np.random.default_rng(0)
W = RNG.integers(-127, 128, (3, 4)).astype(np.int8)
WIDE = W.astype(np.int16)
B = RNG.integers(-999, 1000, 3).astype(np.int32)
M = np.array([2**30, 2**29 + 1, 7], np.int32)
TABLE = np.arange(-128, 128).astype(np.int8)
NO_TABLE, NO_MULTIPLIER = np.zeros(0, np.int8), np.zeros(0, np.int32)


def layer(weight: np.ndarray, multiplier: np.ndarray, shift: int, table: np.ndarray, codes: str) -> tvm.IRModule:
    """A lowered `main` of one dense layer."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4), codes))
    with builder.function("main", [x]):
        with builder.dataflow():
            arrays = [relax.const(values) for values in (weight, B, multiplier)]
            numbers = [relax.prim_value(number) for number in (shift, -3, -128, 100)]
            call = op.call_dps_packed(
                "tinyrl.dense_codes",
                [x, *arrays, *numbers, relax.const(table)],
                out_ty=relax.TensorType((1, 3), "int8"),
            )
            output = builder.emit_output(call)
        builder.emit_func_output(output)
    return builder.get()


def test_a_layer_that_is_to_stay_ours_stays() -> None:
    module = layer(W, M, 5, NO_TABLE, "int8")
    (offload,) = offloads(module)
    assert offload.function == PER_CHANNEL
    kept = PartitionCmsisNN([dataclasses.replace(offload, function=None)])(module)
    tvm.ir.assert_structural_equal(kept, module)
    tvm.ir.assert_structural_equal(PartitionCmsisNN([offload])(module), PartitionCmsisNN()(module))


def test_a_layer_with_a_multiplier_an_output_is_called_per_channel() -> None:
    shifts = np.full(3, -5, np.int32)

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4), "int8")) -> R.Tensor((1, 3), "int8"):
            with R.dataflow():
                y = R.call_dps_packed(
                    "cmsis_nn.arm_fully_connected_per_channel_s8",
                    (
                        x, R.const(W), R.const(B), R.const(M), R.const(shifts),
                        R.prim_value(-3), R.prim_value(-128), R.prim_value(100), R.const(TABLE),
                    ),
                    out_ty=R.Tensor((1, 3), "int8"),
                )  # fmt: skip
                R.output(y)
            return y

    before = layer(W, M, 5, TABLE, "int8")
    tvm.ir.assert_structural_equal(PartitionCmsisNN()(before), Expected, map_free_vars=True)
    (decided,) = offloads(before)
    assert (decided.kernel, decided.function) == ("dense 4 -> 3", PER_CHANNEL)
    assert decided.reason == "every output has a multiplier; a table in C follows"


def test_one_multiplier_is_called_per_tensor() -> None:
    for multiplier, shift, expected in (
        (np.full(3, 2**30 + 9, np.int32), 4, (2**30 + 9, -4)),
        (NO_MULTIPLIER, 6, (2**25, 0)),
    ):
        before = layer(W, multiplier, shift, NO_TABLE, "int8")
        ((_, call),) = bindings(PartitionCmsisNN()(before)["main"])
        assert call_name(call) == PREFIX + PER_TENSOR
        _, _, _, given_multiplier, given_shift, *_ = call_arguments(call)
        assert (constant(given_multiplier).tolist(), constant(given_shift).tolist()) == ([expected[0]], [expected[1]])
        assert offloads(before)[0].reason == "one multiplier serves every output"


def test_a_wide_layer_stays_ours() -> None:
    before = layer(WIDE, M, 5, NO_TABLE, "int32")
    tvm.ir.assert_structural_equal(PartitionCmsisNN()(before), before)
    (decided,) = offloads(before)
    assert decided.function is None
    assert decided.reason == "its weights have 16 bits, CMSIS-NN's int8 kernels take 8"


def test_heads_and_the_quantisation_of_observations_stay_ours() -> None:
    before = LowerDense()(integers(sizes=(10, 16, 12, 5)))
    after = PartitionCmsisNN()(before)
    names = [call_name(value) for _, value in bindings(after["main"])]
    assert [name.partition(".")[0] for name in names] == ["tinyrl", "cmsis_nn", "cmsis_nn", "tinyrl"]
    assert [offload.function is None for offload in offloads(before)] == [True, False, False, True]


def test_a_softmax_is_called_with_what_ours_takes() -> None:
    before = LowerDense()(integers(lambda emit, x: op.nn.softmax(x, axis=1), sizes=(10, 16, 5)))
    *_, layer_before, (_, ours) = bindings(before["main"])
    *_, layer_after, (_, theirs) = bindings(PartitionCmsisNN()(before)["main"])
    assert (call_name(ours), call_name(theirs)) == ("tinyrl.softmax", "cmsis_nn.arm_softmax_s8")
    assert (call_name(layer_before[1]), call_name(layer_after[1])) == ("tinyrl.dense_codes", PREFIX + PER_CHANNEL)
    for mine, given_to_it in zip(call_arguments(ours)[1:], call_arguments(theirs)[1:], strict=True):
        np.testing.assert_array_equal(known(mine), known(given_to_it))
    assert offloads(before)[-1].reason == "it reads codes; C makes floats of the codes it gives"


@pytest.mark.parametrize(("n", "function"), [(8, SOFTMAX_INT16), (9, None)])
def test_a_softmax_of_int16_is_called_where_no_sum_can_round_up(n: int, function: str | None) -> None:
    weights = random_weights((10, 16, n))
    module = policy(weights, head=lambda emit, x: op.nn.softmax(x, axis=1))
    before = LowerDense()(FoldLut()(QuantizeInt16(rows_for(weights), one_multiplier=True)(module)))
    *_, (_, layer_after), (_, theirs) = bindings(PartitionCmsisNN()(before)["main"])
    *_, (_, ours) = bindings(before["main"])
    assert call_name(layer_after) == PREFIX + OF_INT16
    assert offloads(before)[-1].function == function
    if function is None:
        assert call_name(theirs) == "tinyrl.softmax_int16"
        return
    assert call_name(theirs) == PREFIX + SOFTMAX_INT16
    for mine, given_to_it in zip(call_arguments(ours)[1:], call_arguments(theirs)[1:], strict=True):
        np.testing.assert_array_equal(known(mine), known(given_to_it))


@given(st.integers(-(2**30), 2**30), st.integers(1, 16))
def test_a_shift_alone_is_a_multiplier_that_rounds_once(accumulator: int, shift: int) -> None:
    sums = np.array([accumulator], np.int64)
    assert fixedpoint.requantize(sums, 2 ** (31 - shift), 0) == fixedpoint.shift_right(sums, shift)


def test_the_quantiser_leaves_no_wide_layer_where_none_is_allowed() -> None:
    weights = random_weights((4, 16, 2))
    module = policy(weights, op.nn.relu, None)
    lowered = {
        wide: LowerDense()(FoldLut()(QuantizeInt8(rows_for(weights), wide_first_layer=wide)(module)))
        for wide in (True, False)
    }
    assert [offload.function is None for offload in offloads(lowered[True])] == [True, True, True]
    assert [offload.function is None for offload in offloads(lowered[False])] == [True, False, True]
