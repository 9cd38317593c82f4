# SPDX-License-Identifier: Apache-2.0
"""CanonicalizeClip: every spelling of a clamp that TVM's ONNX importer has becomes one."""

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relay_passes.canonicalize_clip import CanonicalizeClip
from relay_passes.evaluate import evaluate

ROWS = (np.random.default_rng(0).standard_normal((64, 4)) * 3).astype(np.float32)
LOWS = np.array([[-1, -2, -3, 0]], np.float32)
HIGHS = np.array([[1, 2, 3, 4]], np.float32)


def check(before: tvm.IRModule, expected: tvm.IRModule) -> None:
    text = before.script()
    after = CanonicalizeClip()(before)
    tvm.ir.assert_structural_equal(after, expected)
    relax.analysis.well_formed(after)
    np.testing.assert_array_equal(evaluate(after, ROWS), evaluate(before, ROWS))
    assert before.script() == text


def imported(*nodes: onnx.NodeProto, opset: int = 17, **constants: object) -> tvm.IRModule:
    tensors = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph(list(nodes), "g", [x], [y], tensors)
    module = from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))
    module["main"] = module["main"].without_attr("num_input")
    return module


@I.ir_module
class Clip:
    @R.function
    def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
        with R.dataflow():
            gv = R.clip(x, -1.0, 2.0)
            R.output(gv)
        return gv


@I.ir_module
class Relu:
    @R.function
    def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
        with R.dataflow():
            gv = R.nn.relu(x)
            R.output(gv)
        return gv


@pytest.mark.parametrize(
    "module",
    [
        imported(helper.make_node("Clip", ["x", "lo", "hi"], ["y"]), lo=-1, hi=2),
        imported(helper.make_node("Clip", ["x"], ["y"], min=-1.0, max=2.0), opset=6),
        imported(
            helper.make_node("Max", ["x", "lo"], ["m"]),
            helper.make_node("Min", ["m", "hi"], ["y"]),
            lo=-1,
            hi=[[2] * 4],
        ),
        imported(
            helper.make_node("Min", ["hi", "x"], ["m"]), helper.make_node("Clip", ["m", "lo"], ["y"]), lo=-1, hi=2
        ),
    ],
    ids=["Clip", "Clip with attributes", "Max of Min", "Clip of Min"],
)
def test_every_spelling_becomes_clip(module):
    check(module, Clip)


def test_a_lower_bound_of_zero_is_a_relu():
    check(imported(helper.make_node("Clip", ["x", "lo"], ["y"]), lo=0), Relu)


def test_a_clamp_that_others_read_stays_what_they_read():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.clip(x, -1.0, 6.0)
                b = R.nn.relu(a)
                c = R.add(a, b)
                R.output(c)
            return c

    check(Before, Before)


def test_a_lone_bound_leaves_the_other_end_open():
    after = CanonicalizeClip()(imported(helper.make_node("Clip", ["x", "", "hi"], ["y"]), hi=2))
    (binding,) = after["main"].body.blocks[0].bindings
    assert [bound.value for bound in binding.value.args[1:]] == [-np.inf, 2.0]
    np.testing.assert_array_equal(evaluate(after, ROWS), np.minimum(ROWS, 2))


def test_a_nan_bound_is_no_bound():
    check(imported(helper.make_node("Clip", ["x", "lo", "hi"], ["y"]), lo=0, hi=np.nan), Relu)


def test_clamps_of_clamps_become_one():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.nn.relu(x)
                b = R.clip(a, -1.0, 6.0)
                c = R.minimum(R.const(5.0, "float32"), b)
                R.output(c)
            return c

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                gv = R.clip(x, 0.0, 5.0)
                R.output(gv)
            return gv

    check(Before, Expected)


def test_crossed_bounds_keep_their_order():
    # ONNX: min above max gives max everywhere
    after = CanonicalizeClip()(imported(helper.make_node("Clip", ["x", "lo", "hi"], ["y"]), lo=3, hi=-1))
    np.testing.assert_array_equal(evaluate(after, ROWS), np.full_like(ROWS, -1))


def test_a_bound_beyond_the_clamp_before_it_wins():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.clip(x, -1.0, 1.0)
                b = R.maximum(a, R.const(2.0, "float32"))
                R.output(b)
            return b

    np.testing.assert_array_equal(evaluate(CanonicalizeClip()(Before), ROWS), np.full_like(ROWS, 2))


def test_bounds_of_each_feature_become_maximum_and_minimum():
    before = imported(
        helper.make_node("Max", ["x", "lo"], ["m"]), helper.make_node("Min", ["m", "hi"], ["y"]), lo=LOWS, hi=HIGHS[0]
    )

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                lv = R.maximum(x, R.const(LOWS))
                gv = R.minimum(lv, R.const(HIGHS))
                R.output(gv)
            return gv

    check(before, Expected)


def test_the_maximum_of_two_activations_is_no_clamp():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.tanh(x)
                b = R.maximum(x, a)
                R.output(b)
            return b

    check(Before, Before)


def test_a_bound_that_widens_the_tensor_is_no_clamp():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((4, 4), "float32"):
            with R.dataflow():
                gv = R.maximum(x, R.const(np.eye(4, dtype="float32")))
                R.output(gv)
            return gv

    check(Before, Before)


def test_a_function_that_is_no_plain_maximum_is_left_alone():
    @I.ir_module
    class Before:
        @T.prim_func(private=True, s_tir=True)
        def maximum(x: T.Buffer((1, 4), "float32"), low: T.Buffer((), "float32"), y: T.Buffer((1, 4), "float32")):
            for i, j in T.grid(1, 4):
                with T.sblock("y"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    y[vi, vj] = T.max(x[vi, 3 - vj], low[()])

        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            cls = Before
            with R.dataflow():
                gv = R.call_tir(cls.maximum, (x, R.const(0.0, "float32")), out_ty=R.Tensor((1, 4), "float32"))
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(CanonicalizeClip()(Before), Before)
    with pytest.raises(ValueError, match="cannot evaluate a call of 'maximum': give its meaning in `calls`"):
        evaluate(Before, ROWS)
