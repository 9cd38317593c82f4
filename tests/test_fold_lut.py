# SPDX-License-Identifier: Apache-2.0
"""FoldLut: a function of codes becomes a table that is right at every code, however the function was written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import tvm
from onnx import TensorProto, helper
from policies import OPSET, Graph, activate, dense_policy, observations_for, reference_answers, save, squashed, unscaled
from test_quantize_int8 import int8_answers, names, policy, random_weights, rows_for
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes import FoldLut, QuantizeInt8, oracle
from relay_passes.dataflow import bindings, known
from relay_passes.evaluate import evaluate
from relay_passes.fixedpoint import interpolate
from relay_passes.lower_dense import call_arguments, call_name
from relay_passes.report import run_passes
from tinyrl_tvm.frontends import onnx as frontend
from tinyrl_tvm.pipeline import float_passes

F, I8 = np.float32, np.int8


def table_of(module: tvm.IRModule, name: str) -> np.ndarray:
    value = next(value for _, value in bindings(module["main"]) if call_name(value) == name)
    return known(call_arguments(value)[1])


def test_dequantize_tanh_quantize_is_one_table():
    @I.ir_module
    class Before:
        @R.function
        def main(codes: R.Tensor((1, 4), "int8")) -> R.Tensor((1, 4), "int8"):
            with R.dataflow():
                x = R.dequantize(codes, R.const(F(0.02)), R.const(I8(3)), out_dtype="float32")
                y = R.tanh(x)
                z = R.quantize(y, R.const(F(1 / 127)), R.const(I8(0)), out_dtype="int8")
                R.output(z)
            return z

    codes = np.arange(-128, 128)
    table = np.rint(np.tanh((codes - 3) * float(F(0.02))) * 127).astype(np.int8)

    @I.ir_module
    class Expected:
        @R.function
        def main(codes: R.Tensor((1, 4), "int8")) -> R.Tensor((1, 4), "int8"):
            with R.dataflow():
                z = R.call_dps_packed("tinyrl.lookup", [codes, R.const(table)], out_ty=R.Tensor((1, 4), "int8"))
                R.output(z)
            return z

    text = Before.script()
    after = FoldLut()(Before)
    tvm.ir.assert_structural_equal(after, Expected)
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(FoldLut()(after), Expected)
    assert Before.script() == text


def test_a_float_tanh_is_nobodys_table():
    @I.ir_module
    class Floats:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                y = R.tanh(x)
                z = R.multiply(y, R.const(F(2)))
                w = R.add(z, R.const(F(1)))
                R.output(w)
            return w

    tvm.ir.assert_structural_equal(FoldLut()(Floats), Floats)


def test_a_relu_needs_no_table():
    weights = random_weights((9, 16, 3))
    before = QuantizeInt8(rows_for(weights))(policy(weights))
    tvm.ir.assert_structural_equal(FoldLut()(before), before)


def test_folding_changes_no_answer_of_a_hidden_layer():
    """The table is the function at each code, so the graph before it, evaluated in float64, says the same."""
    weights = random_weights((9, 16, 3))
    rows = rows_for(weights)
    before = QuantizeInt8(rows)(policy(weights, op.tanh))
    wanted = evaluate(before, rows, calls=oracle.LAW, dtype=np.float64)
    np.testing.assert_allclose(oracle.answers(FoldLut()(before), rows), wanted, rtol=1e-6)


# ---- activations as exporters write them, in one operator or in nine ----

ACTIVATIONS = [
    *("Tanh", "Sigmoid", "Silu", "Elu", "Selu", "LeakyRelu", "Softplus", "Softsign", "HardSigmoid", "HardSwish"),
    *("Gelu", "Mish", "Erf", "Abs", "Square", "Identity"),
]


def exact(activation: str, x: np.ndarray) -> np.ndarray:
    """By ONNX Runtime, in float32."""
    graph = Graph()
    graph.add("Identity", activate(graph, "x", activation), output="y")
    described = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [len(x)]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "activation", described[:1], described[1:], graph.constants),
        ir_version=9,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.astype(np.float32)})[0].astype(np.float64)


def float_graph(model, folder) -> tvm.IRModule:
    imported = frontend.load(save(model, folder))
    module, _ = run_passes(imported.module, float_passes(imported))
    return module


# FuseDense leaves nothing of the identity, of a hard sigmoid a clip at zero, which codes do by themselves, and moves the
# factor of a Selu into the layer behind it
IN_ONE_PIECE = [name for name in ACTIVATIONS if name not in ("Identity", "HardSigmoid", "Selu")]


@pytest.mark.parametrize("activation", IN_ONE_PIECE)
def test_every_entry_of_a_table_is_the_function_to_half_a_step(activation, tmp_path):
    model = dense_policy((12, 16, 3), activation=activation)
    rows = observations_for(model)
    before = QuantizeInt8(rows)(float_graph(model, tmp_path))
    line = [value for _, value in bindings(before["main"])]
    ops = names(before)
    scale_in, zero_in = (float(known(arg)) for arg in line[ops.index("dequantize")].args[1:3])
    scale_out, zero_out = (float(known(arg)) for arg in line[ops.index("quantize")].args[1:3])
    table = table_of(FoldLut()(before), "tinyrl.lookup").astype(np.float64)
    x = (np.arange(-128, 128) - zero_in) * scale_in
    wanted = exact(activation, x)
    within = (wanted >= (-129 - zero_out) * scale_out) & (wanted <= (128 - zero_out) * scale_out)
    assert within.sum() > 250
    # half a step, and what ONNX Runtime's float32 and its approximations are off
    assert np.abs((table - zero_out) * scale_out - wanted)[within].max() <= 0.5 * scale_out * (1 + 1e-3) + 1e-5


@pytest.mark.parametrize(
    "spread", [squashed, lambda name: unscaled([-2, -1, 0], [2, 5, 0.1], name)], ids=["plain", "unscaled"]
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_head_of_any_function_is_near_it(activation, spread, tmp_path):
    """Functions that end in a sum, a product or a clip of their own are told from the head's."""
    model = dense_policy((8, 32, 3), activation="Tanh", head=spread(activation))
    rows = observations_for(model)
    after = FoldLut()(QuantizeInt8(rows)(float_graph(model, tmp_path)))
    wanted = reference_answers(model, rows)
    error = np.abs(oracle.answers(after, rows) - wanted)
    assert error.max() < 0.03 * np.ptp(wanted)
    assert not {"dequantize", "quantize"} & set(names(after))


# ---- the interpolated table ----


def head_policy(scale, offset, low=None, high=None) -> tuple[tvm.IRModule, np.ndarray]:
    weights = random_weights((6, 32, len(scale)))
    arrays = [None if a is None else relax.const(np.array(a, np.float32)) for a in (scale, offset, low, high)]

    def head(emit: Callable[[relax.Expr], relax.Expr], x: relax.Expr) -> relax.Expr:
        value = op.add(emit(op.multiply(emit(op.tanh(x)), arrays[0])), arrays[1])
        if arrays[3] is not None:
            value = op.minimum(emit(value), arrays[3])
        return value if arrays[2] is None else op.maximum(emit(value), arrays[2])

    return policy(weights, op.tanh, head), rows_for(weights)


def test_a_squashed_action_ends_in_one_product_of_floats():
    """
    requantize -> dequantize -> tanh -> multiply -> add -> minimum -> maximum       becomes
    requantize -> interpolate -> add -> astype -> multiply -> minimum -> maximum
    """
    module, rows = head_policy([2, 3], [0.5, -1], [-1, -2], [1, 2])
    before = QuantizeInt8(rows)(module)
    after = FoldLut()(before)
    ends = ["multiply", "add", "minimum", "maximum"]
    assert names(before)[-7:] == ["tinyrl.requantize", "dequantize", "tanh", *ends]
    assert names(after)[-7:] == ["tinyrl.requantize", "tinyrl.interpolate", "add", "astype", "multiply", *ends[2:]]
    relax.analysis.well_formed(after)


def test_a_line_between_entries_is_a_ten_thousandth_from_tanh():
    """A chord of tanh over 1/256 of -4..4 is off by at most (8/256)^2 / 8 * 0.77 = 9.4e-5; 16 bits add 1.5e-5 each way."""
    module, rows = head_policy([1, 1], [0, 0])
    before = QuantizeInt8(rows)(module)
    table = table_of(FoldLut()(before), "tinyrl.interpolate")
    values = [
        value for (_, value), name in zip(bindings(before["main"]), names(before), strict=True) if name == "dequantize"
    ]
    scale = float(known(values[-1].args[1]))  # the last is the head's
    assert scale * 32767 <= 4
    codes = np.arange(-32768, 32768)
    entry = np.abs(np.tanh(scale * 256.0 * np.arange(-128, 129))).max() / 32767
    assert np.abs(interpolate(codes, table) * entry - np.tanh(codes * scale)).max() < 1.3e-4


@pytest.mark.parametrize(
    ("scale", "offset"),
    [
        ([1, 1], [0, 0]),
        ([2, 0], [1, 5]),  # a space whose low is its high
        ([0, 0], [0, 0]),
        ([1e-6, 1], [1000, -1000]),  # moves less than a float32 beside its offset can
        ([-3, 1e-12], [0, 1]),  # upside down; all but constant
        ([1e6, 1e-6], [-1e6, 0]),
    ],
)
def test_a_product_and_a_sum_of_any_size_are_folded(scale, offset):
    module, rows = head_policy(scale, offset)
    error = np.abs(int8_answers(module, rows) - evaluate(module, rows, dtype=np.float64))
    # the policy's own error, and steps of 2^-30 of the offset, of which a table's value is at most 2^15
    bound = 0.03 * np.abs(scale) + 2.0**-14 * np.abs(offset)
    assert (error <= bound).all()


def test_bounds_hold_to_the_last_bit():
    module, rows = head_policy([2, 3], [0.1, -0.1], [-0.3, -np.inf], [0.7, 0.2])
    answers = int8_answers(module, rows)
    assert answers[:, 0].min() == np.float32(-0.3)
    assert answers[:, 0].max() == np.float32(0.7)
    assert answers[:, 1].max() == np.float32(0.2)
