# SPDX-License-Identifier: Apache-2.0
"""LowerDense: a policy becomes calls of kernels and nothing else, each with all it needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from test_quantize_int8 import (
    arg_max,
    arg_max_of,
    clip,
    greater,
    names,
    policy,
    random_weights,
    rows_for,
    squash,
    unscaled,
)
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes import FoldLut, LowerDense, QuantizeInt8, QuantizeInt16, fixedpoint, quantize_int8
from relay_passes.dataflow import bindings, constant, shape_of
from relay_passes.lower_dense import call_arguments, call_name
from relay_passes.network import UnsupportedGraph

F = np.float32
W1, B1, W2, B2 = (np.random.default_rng(0).standard_normal(shape).astype(F) for shape in ((4, 6), (6,), (6, 2), (2,)))
NONE = np.zeros(0, F)


def integers(head: Any = None, sizes: tuple[int, ...] = (6, 16, 12, 5), activation: Any = op.tanh) -> tvm.IRModule:
    weights = random_weights(sizes)
    return FoldLut()(QuantizeInt8(rows_for(weights))(policy(weights, activation, head)))


def arguments(module: tvm.IRModule, index: int) -> list[Any]:
    """Of the kernel call at `index`: arrays, numbers and names; None for what is computed."""
    value = list(bindings(module["main"]))[index][1]
    return [
        constant(arg) if constant(arg) is not None else getattr(arg, "value", None) for arg in call_arguments(value)
    ]


# ---- float ----


def test_float_layers_and_their_functions_are_kernels():
    @I.ir_module
    class Before:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 2), "float32"):
            with R.dataflow():
                a = R.matmul(obs, R.const(W1))
                b = R.add(a, R.const(B1))
                c = R.tanh(b)
                d = R.matmul(c, R.const(W2))
                e = R.add(d, R.const(B2))
                R.output(e)
            return e

    w1, w2 = np.ascontiguousarray(W1.T), np.ascontiguousarray(W2.T)

    @I.ir_module
    class Expected:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 2), "float32"):
            with R.dataflow():
                c = R.call_dps_packed(
                    "tinyrl.dense_float",
                    (obs, R.const(w1), R.const(B1), R.str("tanh")),
                    out_ty=R.Tensor((1, 6), "float32"),
                )
                e = R.call_dps_packed(
                    "tinyrl.head_float",
                    (c, R.const(w2), R.const(B2), R.str("identity"), *[R.const(NONE)] * 4),
                    out_ty=R.Tensor((1, 2), "float32"),
                )
                R.output(e)
            return e

    text = Before.script()
    after = LowerDense()(Before)
    tvm.ir.assert_structural_equal(after, Expected)
    relax.analysis.well_formed(after)
    assert Before.script() == text


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        (None, ["identity", None, None, None, None]),
        (squash, ["tanh", None, None, None, None]),
        (unscaled([1, 2], [3, 4]), ["tanh", [1, 2], [3, 4], None, None]),
        (clip(-1, 1), ["identity", None, None, [-1, -1], [1, 1]]),
    ],
    ids=["numbers", "squashed", "unscaled", "clipped"],
)
def test_a_float_head_carries_what_follows_it(head: Any, tail: list[Any]) -> None:
    after = LowerDense()(policy(random_weights((4, 6, 2)), op.nn.relu, head))
    assert names(after) == ["tinyrl.dense_float", "tinyrl.head_float"]
    _, weight, bias, *rest = arguments(after, 1)
    assert (weight.shape, bias.shape) == ((2, 6), (2,))
    for given, wanted in zip(rest, tail, strict=True):
        if isinstance(wanted, str):
            assert given == wanted
        else:
            np.testing.assert_array_equal(given, np.array([] if wanted is None else wanted, F))


def test_an_activation_without_a_float_kernel_says_what_to_do() -> None:
    message = (
        "the activation nn.gelu has no float32 kernel; have: none, nn.relu, tanh, sigmoid. "
        "int8 compiles any elementwise activation: try --precision int8 with --calibration"
    )
    with pytest.raises(UnsupportedGraph) as raised:
        LowerDense()(policy(random_weights((4, 6, 2)), op.nn.gelu))
    assert str(raised.value) == message


# ---- integers ----


@pytest.mark.parametrize(
    ("head", "kernel"),
    [
        (None, "tinyrl.head_scale"),
        (clip(-1, 1), "tinyrl.head_scale"),
        (squash, "tinyrl.head_table"),
        (unscaled([1] * 5, [2] * 5), "tinyrl.head_table"),
        (arg_max, "tinyrl.head_decision"),
        (arg_max_of(2, 3), "tinyrl.head_decision"),
        (greater, "tinyrl.head_decision"),
    ],
    ids=["numbers", "clipped", "squashed", "unscaled", "arg max", "several", "greater"],
)
def test_an_int8_policy_is_kernels_and_nothing_else(head: Any, kernel: str) -> None:
    after = LowerDense()(integers(head))
    assert names(after) == ["tinyrl.quantize", "tinyrl.dense_codes", "tinyrl.dense_codes", kernel]
    relax.analysis.well_formed(after)


def test_a_wide_layer_has_16_bit_weights_and_no_multiplier() -> None:
    after = LowerDense()(integers())
    _, weight, bias, multiplier, shift, zero, low, high, table = arguments(after, 1)
    assert (weight.dtype, weight.shape, bias.dtype) == (np.int16, (16, 6), np.int32)
    assert multiplier.size == 0
    assert 1 <= int(shift) <= 16
    assert (int(zero), int(low), int(high), table.shape) == (0, -128, 127, (256,))


def test_a_layer_of_bytes_has_a_multiplier_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_int8, "SHIFT_ERROR", 0.0)
    after = LowerDense()(integers(activation=op.nn.relu))
    _, weight, _, multiplier, shift, zero, _, _, table = arguments(after, 2)
    assert (weight.dtype, weight.shape, multiplier.shape) == (np.int8, (12, 16), (12,))
    assert 0 <= int(shift) <= 16
    assert (int(zero), table.size) == (-128, 0)


@pytest.mark.parametrize(("head", "runs", "n"), [(arg_max, [5], 1), (arg_max_of(2, 3), [2, 3], 2), (greater, [0], 5)])
def test_a_decision_says_its_runs(head: Any, runs: list[int], n: int) -> None:
    for module in (integers(head), policy(random_weights((6, 16, 5)), op.tanh, head)):
        after = LowerDense()(module)
        *_, (_, last) = bindings(after["main"])
        np.testing.assert_array_equal(arguments(after, -1)[-1], runs)
        assert shape_of(last) == (1, n)
        assert str(last.ty.dtype) == "int32"


def test_several_inputs_stay_apart_for_the_shell_to_join() -> None:
    weights = random_weights((9, 8, 2))
    module = policy(weights, op.nn.relu, inputs=[(4,), (5,)])
    after = LowerDense()(module)
    assert names(after) == ["tinyrl.dense_float", "tinyrl.head_float"]
    assert [param.name for param in after["main"].params] == ["obs0", "obs1"]
    rows = rows_for(weights)
    after = LowerDense()(FoldLut()(QuantizeInt8(rows[:, :4], rows[:, 4:])(module)))
    assert next(name for name in names(after) if name.startswith("tinyrl")) == "tinyrl.quantize"


def test_a_policy_without_a_dense_layer_is_refused() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                gv = R.tanh(obs)
                R.output(gv)
            return gv

    with pytest.raises(UnsupportedGraph, match="the policy has no dense layer; there is nothing to compile"):
        LowerDense()(Module)


# ---- probabilities ----


def softmax(emit: Any, x: relax.Expr) -> relax.Expr:
    return op.nn.softmax(x, axis=1)


def test_probabilities_of_floats_are_a_kernel_behind_the_head():
    before = policy(random_weights((4, 6)), head=softmax)
    *_, (row, head), (_, call) = bindings(LowerDense()(before)["main"])
    assert [call_name(head), call_name(call)] == ["tinyrl.head_float", "tinyrl.softmax_float"]
    x, runs = call_arguments(call)
    assert x.same_as(row)
    assert constant(runs).tolist() == [6]


def test_probabilities_of_codes_are_a_kernel_behind_a_layer():
    *_, (row, layer), (_, call) = bindings(LowerDense()(integers(softmax))["main"])
    assert [call_name(layer), call_name(call)] == ["tinyrl.dense_codes", "tinyrl.softmax"]
    x, runs, multiplier, shift, least_difference = call_arguments(call)
    assert x.same_as(row)
    assert constant(runs).tolist() == [5]
    assert all(constant(array).shape == (1,) for array in (multiplier, shift, least_difference))


def test_probabilities_of_int16s_codes_are_a_kernel_behind_a_layer_of_them():
    weights = random_weights((6, 16, 5))
    graph = FoldLut()(QuantizeInt16(rows_for(weights))(policy(weights, head=softmax)))
    *_, (row, layer), (_, call) = bindings(LowerDense()(graph)["main"])
    assert [call_name(layer), call_name(call)] == ["tinyrl.dense_int16", "tinyrl.softmax_int16"]
    x, runs, *scaling, powers, inverses = call_arguments(call)
    assert x.same_as(row)
    assert constant(runs).tolist() == [5]
    assert all(constant(array).shape == (1,) for array in scaling)
    for table, wanted in zip((powers, inverses), fixedpoint.softmax_int16_tables(), strict=True):
        np.testing.assert_array_equal(constant(table), wanted)
