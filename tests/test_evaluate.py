# SPDX-License-Identifier: Apache-2.0
"""evaluate: every row gets what the module does to its batch of one."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relay_passes.evaluate import constants_of, evaluate

POLICIES = Path(__file__).parent.parent / "benchmarks" / "policies"
RNG = np.random.default_rng(0)
ROWS = (RNG.standard_normal((64, 4)) * 3).astype(np.float32)
ROWS[:3] = [[0, 0, 0, 0], [0.5, -0.5, 1.5, 2.5], [20, -20, 90, -90]]


# ---- against ONNX Runtime, one operator at a time ----


def node(op: str, *constants: object, opset: int = 17, before: bool = False, **attributes: object) -> tuple:
    """`op` of x and `constants`; of `constants` and x when `before`."""
    return op, constants, opset, before, attributes


F = np.float32
OPERATORS = {
    "LeakyRelu": node("LeakyRelu", alpha=0.1),
    "Elu": node("Elu"),
    "Selu": node("Selu"),
    "Sigmoid": node("Sigmoid"),
    "HardSigmoid": node("HardSigmoid"),
    "HardSwish": node("HardSwish"),
    "Softplus": node("Softplus"),
    "Softsign": node("Softsign"),
    "Mish": node("Mish", opset=18),
    "Gelu": node("Gelu", opset=20),
    "Gelu with tanh": node("Gelu", opset=20, approximate="tanh"),
    "PRelu": node("PRelu", np.full((4,), 0.2, F)),
    "Relu": node("Relu"),
    "Tanh": node("Tanh"),
    "Exp": node("Exp"),
    "Erf": node("Erf"),
    "Round": node("Round"),
    "Sign": node("Sign"),
    "Abs": node("Abs"),
    "Floor": node("Floor"),
    "Ceil": node("Ceil"),
    "Neg": node("Neg"),
    "Clip": node("Clip", F(-1), F(2)),
    "Max": node("Max", F(-1)),
    "Min": node("Min", np.ones((1, 4), F)),
    "Softmax": node("Softmax", axis=1),
    "LogSoftmax": node("LogSoftmax", axis=1),
    "LayerNormalization": node("LayerNormalization", np.full(4, 2, F), np.ones(4, F)),
    "BatchNormalization": node("BatchNormalization", *(np.full(4, value, F) for value in (2, 1, 0.5, 3))),
    "Gemm": node("Gemm", RNG.random((3, 4), F), RNG.random(3, F), alpha=0.5, beta=2.0, transB=1),
    "MatMul": node("MatMul", RNG.random((4, 3), F)),
    "Pow": node("Pow", F(2)),
    "Div": node("Div", F(3)),
    "Sub from a constant": node("Sub", np.arange(4, dtype=F), before=True),
    "Greater": node("Greater", F(0)),
    "Where": node("Where", np.array([[True, False, True, False]]), np.ones((1, 4), F), before=True),
    "ReduceSum": node("ReduceSum", np.array([1]), keepdims=0),
    "ReduceMean": node("ReduceMean", axes=[1]),
    "ReduceMax": node("ReduceMax", axes=[1]),
    "ReduceLogSumExp": node("ReduceLogSumExp", axes=[1]),
    "ArgMax": node("ArgMax", axis=1, keepdims=1),
    "ArgMin": node("ArgMin", axis=1, keepdims=0),
    "Flatten": node("Flatten"),
    "Reshape": node("Reshape", np.array([2, 2])),
    "Squeeze": node("Squeeze", np.array([0])),
    "Unsqueeze": node("Unsqueeze", np.array([1])),
    "Transpose": node("Transpose", perm=[1, 0]),
    "Expand": node("Expand", np.array([3, 4])),
    "Gather": node("Gather", np.array([0, 2, -1]), axis=1),
    "Slice": node("Slice", np.array([3]), np.array([-5]), np.array([1]), np.array([-2])),
    "Concat": node("Concat", np.ones((1, 2), F), axis=1),
    "Identity": node("Identity"),
    "Cast": node("Cast", to=TensorProto.INT32),
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_is_what_onnx_runtime_makes_of_it(operator):
    op, constants, opset, before, attributes = OPERATORS[operator]
    names = [f"c{i}" for i in range(len(constants))]
    graph = helper.make_graph(
        [helper.make_node(op, [*names, "x"] if before else ["x", *names], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, constants, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = np.stack([session.run(None, {"x": row[None]})[0] for row in ROWS])
    got = evaluate(from_onnx(model), ROWS)
    # Two libraries' exp and tanh differ in the last bits; log and subtraction carry that on.
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=2e-6, atol=2e-6)


# ---- whole policies ----


@pytest.mark.parametrize("name", ["P1", "P2", "P3"])
def test_a_policy_answers_as_recorded(name):
    with np.load(POLICIES / f"{name}.npz", allow_pickle=False) as arrays:
        observations, expected = arrays["observations"], arrays["expected"]
    module = from_onnx(onnx.load(POLICIES / f"{name}.onnx"))
    # `expected` is float32 arithmetic in another order of summation: 256 terms, 2^-24 each.
    np.testing.assert_allclose(evaluate(module, observations), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(evaluate(module, observations, dtype=np.float64), expected, rtol=1e-5, atol=1e-5)


@I.ir_module
class Shapes:
    """Operators that look at axes, in a batch of one."""

    @R.function
    def main(x: R.Tensor((1, 4), "float32"), frames: R.Tensor((1, 2, 3), "float32")) -> R.Tuple(
        R.Tensor((1, 10), "float32"), R.Tensor((), "int64"), R.Tensor((1, 3), "float32")
    ):
        with R.dataflow():
            row = R.squeeze(x, axis=[0])
            best = R.argmax(row, axis=0)
            hot = R.one_hot(best, R.prim_value(T.float32(1)), R.prim_value(T.float32(0)), depth=4, axis=-1)
            hot_row = R.expand_dims(hot, axis=[0])
            flat = R.reshape(frames, R.shape([1, 6]))
            joined = R.concat((hot_row, flat), axis=1)
            parts = R.split(frames, 2, axis=1)
            first = parts[0]
            column = R.permute_dims(first, axes=[0, 2, 1])
            widened = R.broadcast_to(column, R.shape([1, 3, 4]))
            total = R.matmul(widened, row)
            gv = (joined, best, total)
            R.output(gv)
        return gv


def test_many_rows_are_as_many_single_rows():
    frames = RNG.standard_normal((64, 2, 3)).astype(np.float32)
    together = evaluate(Shapes, ROWS, frames)
    for i in range(len(ROWS)):
        alone = evaluate(Shapes, ROWS[i : i + 1], frames[i : i + 1])
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0], many[i], rtol=1e-6, atol=1e-6)
    assert [array.shape for array in together] == [(64, 10), (64,), (64, 3)]


def test_a_compiled_module_gives_the_same():
    machine = relax.VirtualMachine(tvm.compile(Shapes, "llvm"), tvm.cpu())
    frames = RNG.standard_normal((1, 2, 3)).astype(np.float32)
    want = machine["main"](tvm.runtime.tensor(ROWS[3:4]), tvm.runtime.tensor(frames))
    for got, array in zip(evaluate(Shapes, ROWS[3:4], frames), want, strict=True):
        np.testing.assert_allclose(got.reshape(array.shape), array.numpy(), rtol=1e-6, atol=1e-6)


def test_float64_is_computed_in_float64():
    @I.ir_module
    class Third:
        @R.function
        def main(x: R.Tensor((1, 1), "float32")) -> R.Tensor((1, 1), "float32"):
            with R.dataflow():
                gv = R.divide(x, R.const(3.0, "float32"))
                R.output(gv)
            return gv

    one = np.ones((1, 1), np.float32)
    assert evaluate(Third, one).dtype == np.float32
    assert evaluate(Third, one, dtype=np.float64).item() == 1 / 3


# ---- integers ----


def integer_matmul(k: int, weight: np.ndarray) -> tvm.IRModule:
    x = relax.Var("x", relax.TensorType((1, k), "int8"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            gv = builder.emit_output(relax.op.matmul(x, relax.const(weight), out_dtype="int32"))
        builder.emit_func_output(gv)
    return builder.get()


def test_an_integer_matmul_is_exact():
    weight = RNG.integers(-128, 128, (300, 5), dtype=np.int8)
    rows = RNG.integers(-128, 128, (50, 300), dtype=np.int8)
    got = evaluate(integer_matmul(300, weight), rows)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, rows.astype(np.int64) @ weight.astype(np.int64))


def test_an_integer_matmul_that_overflows_is_refused():
    k = 2**31 // 128**2
    rows, weight = np.full((1, k), -128, np.int8), np.full((k, 1), -128, np.int8)
    with pytest.raises(OverflowError, match="a matmul overflows int32: its sums reach"):
        evaluate(integer_matmul(k, weight), rows)
    rows[0, 0] = 0
    assert evaluate(integer_matmul(k, weight), rows).item() == 2**31 - 128**2


def test_integers_divide_towards_zero():
    @I.ir_module
    class Divide:
        @R.function
        def main(x: R.Tensor((1, 2), "int32")) -> R.Tensor((1, 2), "int32"):
            with R.dataflow():
                gv = R.divide(x, R.const(2, "int32"))
                R.output(gv)
            return gv

    np.testing.assert_array_equal(evaluate(Divide, np.array([[-3, 3]], np.int32)), [[-1, 1]])


def test_quantize_saturates_and_dequantize_comes_back():
    @I.ir_module
    class Quantize:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                q = R.quantize(x, R.const(0.5, "float32"), R.const(3, "int8"), axis=1, out_dtype="int8")
                gv = R.dequantize(q, R.const(0.5, "float32"), R.const(3, "int8"), axis=1)
                R.output(gv)
            return gv

    got = evaluate(Quantize, np.array([[0.5, 0.75, 1000, -1000]], np.float32))
    np.testing.assert_array_equal(got, [[0.5, 1.0, (127 - 3) / 2, (-128 - 3) / 2]])  # 1.5 steps: ties to even


# ---- calls by name ----


@I.ir_module
class Calls:
    @R.function
    def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
        with R.dataflow():
            a = R.call_pure_packed(
                "tinyrl.scale", x, R.const([1.0, 2.0, 3.0, 4.0]), R.prim_value(10), ty_args=R.Tensor((1, 4), "float32")
            )
            gv = R.call_dps_packed("tinyrl.shift", (a, R.prim_value(1)), out_ty=R.Tensor((1, 4), "float32"))
            R.output(gv)
        return gv


def test_calls_take_rows_constants_and_numbers():
    seen = []

    def scale(rows, factors, times):
        seen.append((rows.shape, factors.shape, times))
        return rows * factors * times

    got = evaluate(Calls, ROWS, calls={"tinyrl.scale": scale, "tinyrl.shift": lambda rows, by: rows + by})
    np.testing.assert_array_equal(got, ROWS * np.arange(1, 5, dtype=np.float32) * 10 + 1)
    assert seen == [((64, 4), (4,), 10)]


def test_a_call_without_a_meaning_is_refused_by_name():
    with pytest.raises(ValueError, match=r"cannot evaluate a call of 'tinyrl.scale': give its meaning in `calls`"):
        evaluate(Calls, ROWS)


def test_a_call_that_answers_in_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"expected rows for a tensor of shape \(1, 4\), got an array of shape \(64,\)"
    ):
        evaluate(Calls, ROWS, calls={"tinyrl.scale": lambda rows, *_: rows[:, 0]})


# ---- what the caller may ask ----


def test_watch_sees_every_input_and_every_tensor():
    module = from_onnx(onnx.load(POLICIES / "P1.onnx"))
    rows, seen = np.zeros((3, 4), np.float32), {}
    answer = evaluate(module, rows, watch=lambda var, values: seen.update({var.name: values}))
    assert next(iter(seen)) == "obs"
    assert seen["obs"].shape == (3, 4)
    np.testing.assert_array_equal(list(seen.values())[-1], answer)
    assert len(seen) == 1 + len(module["main"].body.blocks[0].bindings)


def test_an_operator_without_a_meaning_is_refused_by_name():
    @I.ir_module
    class Sort:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                gv = R.sort(x, axis=1)
                R.output(gv)
            return gv

    with pytest.raises(ValueError, match="cannot evaluate 'sort'"):
        evaluate(Sort, ROWS)


def test_wrong_inputs_are_refused():
    module = from_onnx(onnx.load(POLICIES / "P1.onnx"))
    with pytest.raises(ValueError, match="main takes 1 inputs, got 0"):
        evaluate(module)
    with pytest.raises(
        ValueError, match=r"expected rows for a tensor of shape \(1, 4\), got an array of shape \(2, 3\)"
    ):
        evaluate(module, np.zeros((2, 3), np.float32))


def test_constants_are_what_no_input_reaches():
    @I.ir_module
    class Folded:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((4,), "float32"):
            with R.dataflow():
                n = R.shape_to_tensor(R.shape_of(x))
                last = R.take(n, R.const(1, "int64"), axis=0)
                m = R.astype(last, "float32")
                row = R.squeeze(x, axis=[0])
                _huge = R.zeros(R.shape([100000, 100000]), "float32")
                gv = R.multiply(row, m)
                R.output(gv)
            return gv

    known = constants_of(Folded)
    assert {var.name: value.tolist() for var, value in known.items()} == {"n": [1, 4], "last": 4, "m": 4.0}
