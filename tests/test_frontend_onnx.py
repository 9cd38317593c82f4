# SPDX-License-Identifier: Apache-2.0
"""An .onnx file becomes a Policy that answers as ONNX Runtime does, or one sentence that says what to do."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import tvm
from onnx import helper, numpy_helper
from tvm import relax

from tinyrl_tvm.errors import TinyrlError, UnsupportedOp
from tinyrl_tvm.frontends.onnx import load
from tinyrl_tvm.frontends.onnx.file import MAX_MODEL_BYTES, OPSETS
from tinyrl_tvm.frontends.onnx.operators import SUPPORTED_OPS
from tinyrl_tvm.policy import Policy, TensorSpec, c_names

FIXTURES = Path(__file__).parent / "fixtures"
POLICIES = Path(__file__).parent.parent / "benchmarks" / "policies"
SUPPORTED = ", ".join(sorted(SUPPORTED_OPS))

# file -> the action's name, shape and type, and how many outputs are imported
EXPORTS: dict[Path, tuple[TensorSpec, int]] = {
    FIXTURES / "ppo_discrete_legacy.onnx": (TensorSpec("56", (), "int64"), 3),
    FIXTURES / "ppo_discrete_dynamo_dynamic.onnx": (TensorSpec("view", (), "int64"), 3),
    FIXTURES / "ppo_continuous_legacy.onnx": (TensorSpec("53", (2,), "float32"), 3),
    FIXTURES / "ppo_action_dynamo.onnx": (TensorSpec("argmax", (), "int64"), 1),
    FIXTURES / "ppo_logits_legacy.onnx": (TensorSpec("19", (3,), "float32"), 1),
    FIXTURES / "sac_legacy.onnx": (TensorSpec("55", (2,), "float32"), 1),
    FIXTURES / "sac_external_dynamo.onnx": (TensorSpec("tanh", (2,), "float32"), 1),
    POLICIES / "cartpole.onnx": (TensorSpec("56", (), "int64"), 3),
    POLICIES / "pendulum.onnx": (TensorSpec("31", (1,), "float32"), 1),
    POLICIES / "P1.onnx": (TensorSpec("action", (2,), "float32"), 1),
    POLICIES / "P2.onnx": (TensorSpec("action", (1,), "float32"), 1),
    POLICIES / "P3.onnx": (TensorSpec("action", (4,), "float32"), 1),
}

# What the small graphs of this file are made of: 3 observations, 8 hidden units, an action 1 wide or 4 wide.
_random = np.random.default_rng(0)
WEIGHTS: dict[str, np.ndarray] = {
    "w_hidden": _random.normal(size=(3, 8)).astype(np.float32),
    "w_mean": _random.normal(size=(8, 1)).astype(np.float32),
    "w_wide": _random.normal(size=(8, 4)).astype(np.float32),
    "w_state": _random.normal(size=(3, 8)).astype(np.float32),
    "w_other": _random.normal(size=(8, 4)).astype(np.float32),
    "w_value": _random.normal(size=(8, 1)).astype(np.float32),
    "w_critic": _random.normal(size=(4, 8)).astype(np.float32),
    "log_std": np.full(1, -0.5, np.float32),
    "half": np.float32(0.5),
    "low": np.float32(-1),
    "high": np.float32(1),
    "axis": np.array([1], np.int64),
    "flat": np.array([-1, 1], np.int64),
}
# The pieces Stable-Baselines3 writes; every graph below is put together from them.
HIDDEN = "t = MatMul(obs, w_hidden) hidden = Tanh(t)"
ONE_WIDE = f"{HIDDEN} mean = MatMul(hidden, w_mean) action = Reshape(mean, flat)"
VALUE = "v = MatMul(obs, w_state) vt = Tanh(v) value = MatMul(vt, w_value)"
LOG_PROB = "d = Sub(mean, mean) p = Mul(d, d) n = Sub(p, log_std) log_prob = ReduceSum<keepdims = 0>(n, axis)"
DISCRETE = f"{HIDDEN} logits = MatMul(hidden, w_wide) probs = Softmax(logits) a = ArgMax<axis = 1, keepdims = 0>(probs)"


def small_model(outputs: str, body: str, inputs: str = "float[1,3] obs", opset: int = 17) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}, "my.own": 1]> policy ({inputs}) => ({outputs}) {{ {body} }}'
    )
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    model.graph.initializer.extend(numpy_helper.from_array(WEIGHTS[name], name) for name in sorted(used & set(WEIGHTS)))
    return model


def saved(model: onnx.ModelProto, folder: Path, name: str = "policy.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def compiled(policy: Policy) -> Callable[..., list[np.ndarray]]:
    """TVM's own virtual machine, so that what is measured is the import and not one of our passes."""
    machine = relax.VirtualMachine(relax.build(policy.module, tvm.target.Target("llvm")), tvm.cpu())

    def answers(*inputs: np.ndarray) -> list[np.ndarray]:
        returned = machine["main"](*map(tvm.runtime.tensor, inputs))
        return [one.numpy() for one in (returned if hasattr(returned, "__len__") else [returned])]

    return answers


def random_inputs(policy: Policy, rng: np.random.Generator) -> list[np.ndarray]:
    return [
        rng.normal(0, 2, (1, *spec.shape)).astype(np.float32)
        if spec.dtype == "float32"
        else rng.integers(0, 3, (1, *spec.shape)).astype(spec.dtype)
        for spec in policy.inputs
    ]


def assert_answers_as_onnx_runtime(path: Path, policy: Policy, names: list[str]) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers, rng = compiled(policy), np.random.default_rng(1)
    for _ in range(32):
        inputs = random_inputs(policy, rng)
        feed = {spec.name: rows for spec, rows in zip(policy.inputs, inputs, strict=True)}
        for name, ours, theirs in zip(names, answers(*inputs), session.run(names, feed), strict=True):
            assert ours.shape == theirs.shape, name
            assert ours.dtype == theirs.dtype, name
            # Two float32 libraries add in different orders: 256 terms of size 1 differ by at most 256 * 2**-24.
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5, err_msg=name)


# ---- exports of Stable-Baselines3 ----


@pytest.mark.parametrize("path", EXPORTS, ids=lambda path: path.stem)
def test_import_answers_as_onnx_runtime(path: Path) -> None:
    action, n_outputs = EXPORTS[path]
    policy = load(path)
    assert policy.action == action
    names = [value.name for value in onnx.load(path).graph.output]
    assert len(names) == n_outputs  # the critic is imported too: PruneCritic reports what it saves
    assert names[policy.action_index] == action.name
    assert_answers_as_onnx_runtime(path, policy, names)


@pytest.mark.parametrize("path", EXPORTS, ids=lambda path: path.stem)
def test_observation_is_described_and_named_as_in_the_file(path: Path) -> None:
    policy = load(path)
    (value,) = onnx.load(path).graph.input
    n_obs = value.type.tensor_type.shape.dim[1].dim_value
    assert policy.inputs == (TensorSpec(value.name, (n_obs,), "float32"),)
    assert policy.source == path.name
    assert policy.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_dynamic_batch_becomes_one_and_is_noted() -> None:
    assert load(FIXTURES / "ppo_discrete_dynamo_dynamic.onnx").notes == (
        "batch axis 'batch' of input 'input' set to 1",
    )


def test_fixed_batch_of_one_needs_no_note() -> None:
    assert load(FIXTURES / "ppo_discrete_legacy.onnx").notes == ()


def test_external_weights_are_noted_with_their_hash() -> None:
    name = "sac_external_dynamo.onnx.data"
    digest = hashlib.sha256((FIXTURES / name).read_bytes()).hexdigest()
    assert load(FIXTURES / "sac_external_dynamo.onnx").notes == (f"weights read from '{name}', SHA-256 {digest}",)


def test_import_of_the_module_loads_neither_onnx_nor_tvm() -> None:
    code = "import sys, tinyrl_tvm.frontends.onnx; print({'onnx', 'tvm', 'torch', 'numpy'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"


@pytest.mark.parametrize("sample", ["ppo_sampling_legacy", "sac_sampling_legacy"])
def test_sampling_export_is_refused_with_how_to_export(sample: str) -> None:
    operator, node = {
        "ppo_sampling_legacy": ("Multinomial", "/policy/Multinomial"),
        "sac_sampling_legacy": ("RandomNormalLike", "/policy/actor/RandomNormalLike"),
    }[sample]
    with pytest.raises(UnsupportedOp) as caught:
        load(FIXTURES / f"{sample}.onnx")
    assert str(caught.value) == (
        f"'{sample}.onnx' samples its action, with {operator} at node '{node}', so the same observation gives "
        "different answers; export it again with deterministic=True"
    )


def test_documented_export_of_newer_torch_is_mended(tmp_path: Path) -> None:
    """Converted down to opset 17, it carries a flag of opset 18 that ONNX Runtime refuses."""
    model = small_model("float[1,1] logsum", f"{DISCRETE} logsum = ReduceLogSumExp<axes = [-1], keepdims = 1>(logits)")
    (node,) = (node for node in model.graph.node if node.op_type == "ReduceLogSumExp")
    clean = saved(model, tmp_path, "clean.onnx")
    node.attribute.append(helper.make_attribute("noop_with_empty_axes", 0))
    assert_answers_as_onnx_runtime(clean, load(saved(model, tmp_path)), ["logsum"])


def test_flag_that_changes_the_answer_is_not_mended(tmp_path: Path) -> None:
    model = small_model("float[1,1] logsum", f"{DISCRETE} logsum = ReduceLogSumExp<axes = [-1], keepdims = 1>(logits)")
    (node,) = (node for node in model.graph.node if node.op_type == "ReduceLogSumExp")
    node.attribute.append(helper.make_attribute("noop_with_empty_axes", 1))
    with pytest.raises(TinyrlError, match=r"^ONNX Runtime cannot read 'policy.onnx': .*noop_with_empty_axes"):
        load(saved(model, tmp_path))


# ---- which output is the action ----

FOUND = {
    "actor alone": ("float[1,1] action", ONE_WIDE, "action"),
    "one-wide action, its value, and a log-probability": (
        "float[1,1] value, float[1,1] action, float[1] log_prob",
        f"{ONE_WIDE} {VALUE} {LOG_PROB}",
        "action",
    ),
    "one-wide action and value on a shared trunk": (
        "float[1,1] value, float[1,1] action, float[1] log_prob",
        f"{ONE_WIDE} value = MatMul(hidden, w_value) {LOG_PROB}",
        "action",
    ),
    "clipped action, judged before the clip": (
        "float[1] log_prob, float[1,1] value, float[1,1] clipped",
        f"{ONE_WIDE} clipped = Clip(action, low, high) {VALUE} {LOG_PROB}",
        "clipped",
    ),
    "squashed action, judged after the squashing": (
        "float[1] log_prob, float[1,1] value, float[1,1] squashed",
        f"{HIDDEN} raw = MatMul(hidden, w_mean) mean = Tanh(raw) squashed = Reshape(mean, flat) {VALUE} {LOG_PROB}",
        "squashed",
    ),
    "wide action beside its value": (
        "float[1,1] value, float[1,4] action",
        f"{HIDDEN} action = MatMul(hidden, w_wide) {VALUE}",
        "action",
    ),
    "arg-max beside the logits, their softmax, a value and a log-probability": (
        "float[1,4] logits, float[1,4] probs, float[1,1] value, float[1] log_prob, int64[1] a",
        f"{DISCRETE} {VALUE} i = Unsqueeze(a, axis) g = GatherElements<axis = 1>(probs, i) l = Log(g) "
        "log_prob = Squeeze(l, axis)",
        "a",
    ),
    "arg-max beside a value": ("float[1,1] value, int64[1] a", f"{DISCRETE} {VALUE}", "a"),
    "action beside its Q-value": (
        "float[1,1] q, float[1,1] action",
        f"{ONE_WIDE} both = Concat<axis = 1>(obs, action) c = MatMul(both, w_critic) r = Relu(c) "
        "q = MatMul(r, w_value)",
        "action",
    ),
    "one-wide action beside a hidden layer": ("float[1,8] hidden, float[1,1] action", ONE_WIDE, "action"),
    "one-wide action beside the rescaled observation": (
        "float[1,3] seen, float[1,1] action",
        f"{ONE_WIDE} seen = Mul(obs, half)",
        "action",
    ),
    "one-wide action beside a constant": (
        "float[1] std, float[1,1] action",
        f"{ONE_WIDE} std = Exp(log_std)",
        "action",
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_action_is_found_by_structure(case: str, tmp_path: Path) -> None:
    outputs, body, action = FOUND[case]
    model = small_model(outputs, body)
    for orders in (list(model.graph.output), list(model.graph.output)[::-1]):
        del model.graph.output[:]
        model.graph.output.extend(orders)
        policy = load(saved(model, tmp_path))
        names = [value.name for value in orders]
        assert policy.action.name == action
        assert names[policy.action_index] == action
        assert policy.notes == ()
    assert_answers_as_onnx_runtime(tmp_path / "policy.onnx", policy, names)


AMBIGUOUS = {
    "one-wide action and value, no log-probability": (
        "float[1,1] action, float[1,1] value",
        f"{ONE_WIDE} {VALUE}",
        "2 outputs that could be the action, 'action', 'value'",
    ),
    "mean and state-dependent deviation": (
        "float[1,4] mu, float[1,4] log_dev",
        f"{HIDDEN} mu = MatMul(hidden, w_wide) log_dev = MatMul(vt, w_other) {VALUE}",
        "2 outputs that could be the action, 'mu', 'log_dev'",
    ),
    "mean and its squashed copy": (
        "float[1,4] mu, float[1,4] squashed, float[1,1] value",
        f"{HIDDEN} mu = MatMul(hidden, w_wide) squashed = Tanh(mu) {VALUE}",
        "3 outputs that could be the action, 'mu', 'squashed', 'value'",
    ),
    "a discrete and a continuous action": (
        "int64[1] a, float[1,4] torques",
        f"{DISCRETE} {VALUE} torques = MatMul(vt, w_other)",
        "2 outputs that could be the action, 'a', 'torques'",
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_action_is_never_guessed(case: str, tmp_path: Path) -> None:
    outputs, body, said = AMBIGUOUS[case]
    model = small_model(outputs, _in_order(body))
    path = saved(model, tmp_path)
    first, second, *_ = (value.name for value in model.graph.output)
    with pytest.raises(TinyrlError) as caught:
        load(path)
    assert str(caught.value) == f"'policy.onnx' has {said}; say which, as in --output '{first}'"
    assert load(path, output=first).action.name == first
    assert load(path, output=second).action.name == second
    assert load(path, output=second).action_index == 1


def _in_order(body: str) -> str:
    """The critic's hidden layer before what uses it: ONNX nodes come in topological order."""
    return f"{VALUE} {body.replace(VALUE, '')}"


def test_output_overrides_what_the_structure_says(tmp_path: Path) -> None:
    path = saved(
        small_model("float[1,1] value, float[1,4] action", f"{HIDDEN} action = MatMul(hidden, w_wide) {VALUE}"),
        tmp_path,
    )
    assert load(path, output="value").action == TensorSpec("value", (1,), "float32")


def test_unknown_output_is_answered_with_a_guess(tmp_path: Path) -> None:
    path = saved(
        small_model("float[1,1] value, float[1,4] action", f"{HIDDEN} action = MatMul(hidden, w_wide) {VALUE}"),
        tmp_path,
    )
    with pytest.raises(TinyrlError) as caught:
        load(path, output="acton")
    assert str(caught.value) == "no output 'acton'; have: action, value. Did you mean 'action'?"


# ---- what is imported beside the action ----


def test_critic_with_an_unknown_operator_is_left_out_and_noted(tmp_path: Path) -> None:
    body = f"{HIDDEN} action = MatMul(hidden, w_wide) [critic] value = my.own.Critic(obs)"
    policy = load(saved(small_model("float[1,4] action, float[1,1] value", body), tmp_path), output="action")
    assert policy.notes[0].startswith("left out 'value': ")
    assert "my.own:Critic" in policy.notes[0]
    assert policy.action_index == 0


def test_critic_that_samples_is_left_out_and_noted(tmp_path: Path) -> None:
    body = f"{ONE_WIDE} [dice] e = RandomNormalLike(mean) noisy = Add(mean, e)"
    policy = load(saved(small_model("float[1,1] noisy, float[1,1] action", body), tmp_path), output="action")
    assert policy.notes == ("left out 'noisy': TVM cannot import RandomNormalLike at node 'dice'",)
    assert policy.action_index == 0


def test_critic_that_sees_more_than_the_actor_is_left_out_and_noted(tmp_path: Path) -> None:
    body = f"{HIDDEN} action = MatMul(hidden, w_wide) s = MatMul(state, w_hidden) value = MatMul(s, w_value)"
    model = small_model("float[1,4] action, float[1,1] value", body, inputs="float[1,3] state, float[1,3] obs")
    policy = load(saved(model, tmp_path))
    assert [spec.name for spec in policy.inputs] == ["obs"]
    assert policy.notes == ("left out 'value': it needs 'state', which the action does not",)


def test_several_observations_stay_in_the_order_of_the_file(tmp_path: Path) -> None:
    body = f"obs = Sub(target, joints) {ONE_WIDE}"
    path = saved(small_model("float[1,1] action", body, inputs="float[1,3] joints, float[1,3] target"), tmp_path)
    policy = load(path)
    assert [spec.name for spec in policy.inputs] == ["joints", "target"]
    assert_answers_as_onnx_runtime(path, policy, ["action"])


def test_numbered_observation_is_an_integer(tmp_path: Path) -> None:
    body = (
        "depth = Constant<value = int64 {3}>() on = Constant<value = int64[2] {0, 1}>() "
        f"hot = OneHot(n, depth, on) obs = Cast<to = 1>(hot) {ONE_WIDE}"
    )
    path = saved(small_model("float[1,1] action", body, inputs="int64[1] n"), tmp_path)
    policy = load(path)
    assert policy.inputs == (TensorSpec("n", (), "int64"),)
    assert_answers_as_onnx_runtime(path, policy, ["action"])


# ---- types, sets of operators, names ----


@pytest.mark.parametrize("wide", ["double", "float16"])
def test_other_float_types_become_float32_and_are_noted(wide: str, tmp_path: Path) -> None:
    model = small_model("float[1,1] action", ONE_WIDE)
    path = saved(model, tmp_path, "float32.onnx")
    kind = {"double": onnx.TensorProto.DOUBLE, "float16": onnx.TensorProto.FLOAT16}[wide]
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    policy = load(saved(model, tmp_path))
    assert policy.notes == ({"double": "float64", "float16": "float16"}[wide] + " computed as float32",)
    assert policy.inputs[0].dtype == policy.action.dtype == "float32"
    expected = compiled(load(path))(np.ones((1, 3), np.float32))[0]
    # float16 weights carry 11 bits, and the 8 products of the last layer are of size 1
    tolerance = {"double": 1e-6, "float16": 8 * 2**-10}[wide]
    np.testing.assert_allclose(compiled(policy)(np.ones((1, 3), np.float32))[0], expected, atol=tolerance)


def test_a_mask_too_large_for_float32_stays_finite(tmp_path: Path) -> None:
    model = small_model("double[1,3] action", "action = Add(obs, mask)", inputs="double[1,3] obs")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, -1e300, 0]), "mask"))
    (action,) = compiled(load(saved(model, tmp_path)))(np.zeros((1, 3), np.float32))
    assert action.tolist() == [[0, float(np.finfo(np.float32).min), 0]]


# How each operator is called, on x (1, 4), y (1, 4) positive, b (1, 4) of bool and n (1,) of integers.
CALLS = {
    "(x)": "Neg Abs Sign Exp Erf Floor Ceil Round Relu LeakyRelu Elu Selu Gelu Mish HardSwish HardSigmoid Sigmoid "
    "Softplus Softsign Tanh Identity IsNaN Flatten",
    "(y)": "Sqrt Log Reciprocal",
    "(x, y)": "Add Sub Mul Div Sum Mean Min Max Equal Greater GreaterOrEqual Less LessOrEqual",
    "(b, b)": "And Or",
    "<axis = 1>(x)": "Softmax LogSoftmax ArgMax ArgMin",
    "(x, axes)": "ReduceSum ReduceMean ReduceMax ReduceMin ReduceSumSquare ReduceLogSumExp",
    "(x, first)": "Squeeze Unsqueeze",
}
OPERATORS: dict[str, str] = {f"{op}_": f"{op}{call}" for call, ops in CALLS.items() for op in ops.split()} | {
    "Not_": "Not(b)",
    "Where_": "Where(b, x, y)",
    "Pow_": "Pow(y, two)",
    "PRelu_": "PRelu(x, y4)",
    "Clip_": "Clip(x, minus, plus)",
    "Gemm_": "Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, y4)",
    "MatMul_": "MatMul(x, w)",
    "BatchNormalization_": "BatchNormalization(x, y4, y4, y4, y4)",
    "LayerNormalization_": "LayerNormalization(x, y4, y4)",
    "Cast_": "Cast<to = 7>(x)",
    "Reshape_": "Reshape(x, shape)",
    "Transpose_": "Transpose<perm = [1, 0]>(x)",
    "Expand_": "Expand(x, tall)",
    "Concat_": "Concat<axis = 1>(x, y)",
    "Split_": "Split<axis = 1, num_outputs = 2>(x)",
    "Slice_": "Slice(x, one, three, axes)",
    "Gather_": "Gather<axis = 1>(x, one)",
    "OneHot_": "OneHot(n, depth, on)",
    "QuantizeLinear_": "QuantizeLinear(x, plus, middle)",
    "DequantizeLinear_": "DequantizeLinear(QuantizeLinear_, plus, middle)",
}
OPERANDS = {
    "w": _random.normal(size=(4, 4)).astype(np.float32),
    "y4": _random.uniform(0.5, 1.5, 4).astype(np.float32),
    "two": np.float32(2),
    "minus": np.float32(-0.5),
    "plus": np.float32(0.5),
    "axes": np.array([1], np.int64),
    "first": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "three": np.array([3], np.int64),
    "shape": np.array([2, 2], np.int64),
    "tall": np.array([3, 4], np.int64),
    "depth": np.int64(4),
    "on": np.array([0, 1], np.int64),
    "middle": np.array(3, np.int8),
}


def test_every_supported_operator_answers_as_onnx_runtime(tmp_path: Path) -> None:
    """One graph with an output an operator; each in turn is asked for as the action."""
    assert {name.removesuffix("_") for name in OPERATORS} | {"Constant"} == SUPPORTED_OPS
    calls = "".join(f"{name}{', rest' if name == 'Split_' else ''} = {call} " for name, call in OPERATORS.items())
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> all (float[1,4] x) => (float y) '
        f"{{ small = Abs(x) c = Constant<value = float {{0.5}}>() y = Add(small, c) b = Greater(x, y) "
        f"n = ArgMax<axis = 1, keepdims = 0>(y) {calls} }}"
    )
    names = [*OPERATORS, "y"]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in OPERANDS.items())
    model = onnx.shape_inference.infer_shapes(model)
    path = saved(model, tmp_path)
    for name in OPERATORS:
        assert load(path, output=name).notes == ()
    assert_answers_as_onnx_runtime(path, load(path, output="y"), names)


@pytest.mark.parametrize("opset", [OPSETS[0], 11, 13, 18, 21, OPSETS[1]])
def test_every_opset_answers_alike(opset: int, tmp_path: Path) -> None:
    head = "logits = MatMul(both, w_wide) a = ArgMax<axis = 1, keepdims = 0>(logits)"
    body = f"{HIDDEN} r = Relu(t) both = Add(hidden, r) {head}"
    path = saved(small_model("int64[1] a, float[1,4] logits", body, opset=opset), tmp_path)
    assert_answers_as_onnx_runtime(path, load(path), ["a", "logits"])


STRANGE_NAMES = ["float", "*/ evil();", 'a"b', "line\nbreak", "obs[0]", "obs.0", "observación", "", "9"]


@pytest.mark.parametrize("name", [name for name in STRANGE_NAMES if name])
def test_names_may_be_anything(name: str, tmp_path: Path) -> None:
    model = small_model("float[1,1] action", ONE_WIDE)
    model.graph.input[0].name = name
    model.graph.node[0].input[0] = name
    path = saved(model, tmp_path)
    policy = load(path)
    assert policy.inputs == (TensorSpec(name, (3,), "float32"),)
    assert str(policy.module["main"].params[0].name).isidentifier()
    assert_answers_as_onnx_runtime(path, policy, ["action"])


def test_an_input_renamed_to_the_name_of_an_inner_tensor_stays_itself(tmp_path: Path) -> None:
    model = small_model(
        "float[1,1] action", "h_idden = Identity(h) " + ONE_WIDE.replace("obs", "h_idden"), inputs="float[1,3] h"
    )
    for node in model.graph.node:
        node.input[:] = ["h.idden" if name == "h" else name for name in node.input]
    model.graph.input[0].name = "h.idden"  # becomes h_idden, which is taken
    path = saved(model, tmp_path)
    assert_answers_as_onnx_runtime(path, load(path), ["action"])


def test_c_names_are_identifiers_and_differ_even_in_capitals() -> None:
    assert c_names(["obs", "Obs", "obs", "obs_2", "action", "action"]) == [
        "obs",
        "Obs_2",
        "obs_3",
        "obs_2_2",
        "action",
        "action_2",
    ]
    assert c_names(STRANGE_NAMES) == [
        "tensor_float",
        "evil",
        "a_b",
        "line_break",
        "obs_0",
        "obs_0_2",
        "observacion",
        "tensor",
        "tensor_9",
    ]
    assert c_names(["_hidden", "__x", "PI", "x__y", "Class", "workspace", "int8_t"]) == [
        "hidden",
        "x",
        "pi",
        "x_y",
        "tensor_Class",
        "tensor_workspace",
        "tensor_int8_t",
    ]
    (long,) = c_names(["x" * 500])
    assert len(long) <= 64


# ---- what is refused, and how it is said ----


def refusal(path: Path, output: str | None = None) -> str:
    with pytest.raises(TinyrlError) as caught:
        load(path, output)
    assert "\n" not in str(caught.value)
    return str(caught.value)


NOT_MODELS = {
    b"": "'policy.onnx' is empty; export the policy with torch.onnx.export",
    b"hello, this is no model": "'policy.onnx' is not an ONNX file; export the policy with torch.onnx.export",
    b"PK\x03\x04rest": "'policy.onnx' is not an ONNX file but a zip archive, such as model.save() writes; "
    "export the policy with torch.onnx.export",
    b"version https://git-lfs.github.com/spec/v1\n": "'policy.onnx' is not an ONNX file but a Git LFS pointer to one, "
    "which `git lfs pull` replaces; export the policy with torch.onnx.export",
}


@pytest.mark.parametrize("content", NOT_MODELS, ids=["empty", "text", "zip", "git-lfs"])
def test_what_is_not_onnx_is_said_to_be_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "policy.onnx").write_bytes(content)
    assert refusal(tmp_path / "policy.onnx") == NOT_MODELS[content]


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9, 0.999])
def test_truncated_file_is_said_to_be_so(keep: float, tmp_path: Path) -> None:
    whole = (FIXTURES / "ppo_discrete_legacy.onnx").read_bytes()
    n_bytes = int(len(whole) * keep)
    (tmp_path / "policy.onnx").write_bytes(whole[:n_bytes])
    assert refusal(tmp_path / "policy.onnx") == (
        f"'policy.onnx' is an ONNX file cut short or damaged ({n_bytes:,} B); copy or export it again"
    )


def test_damaged_names_are_said_to_be_so(tmp_path: Path) -> None:
    content = (
        saved(small_model("float[1,1] action", ONE_WIDE), tmp_path).read_bytes().replace(b"w_hidden", b"w_h\xff\xfeden")
    )
    (tmp_path / "policy.onnx").write_bytes(content)
    assert "cut short or damaged" in refusal(tmp_path / "policy.onnx")


def test_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    assert refusal(path) == f"cannot read '{path}': No such file or directory; give the path of an .onnx file"
    assert refusal(tmp_path) == f"cannot read '{tmp_path}': Is a directory; give the path of an .onnx file"


def test_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "policy.onnx").open("wb") as file:
        file.truncate(MAX_MODEL_BYTES + 1)  # a hole: nothing is written
    assert refusal(tmp_path / "policy.onnx") == "'policy.onnx' is over 256 MiB, too much for a microcontroller"


@pytest.mark.parametrize("opset", [OPSETS[0] - 1, 99])
def test_opset_out_of_range_is_named(opset: int, tmp_path: Path) -> None:
    path = saved(small_model("float[1,1] action", ONE_WIDE), tmp_path)
    model = onnx.load(path)
    model.opset_import[0].version = opset
    assert refusal(saved(model, tmp_path)) == (
        f"'policy.onnx' is of ONNX opset {opset}, {OPSETS[0]} to {OPSETS[1]} can be read; "
        "export it again with opset_version=18"
    )


def external(folder: Path, location: str) -> Path:
    """A copy of the fixture whose weights are said to be in `location`."""
    model = onnx.load(FIXTURES / "sac_external_dynamo.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return saved(model, folder)


def test_external_data_in_a_folder_beside_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    shutil.copy(FIXTURES / "sac_external_dynamo.onnx.data", tmp_path / "weights" / "w.bin")
    (tmp_path / "link.bin").symlink_to("weights/w.bin")
    for location in ("weights/w.bin", "link.bin"):
        assert load(external(tmp_path, location)).action == load(FIXTURES / "sac_external_dynamo.onnx").action


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    assert refusal(external(tmp_path, "w.bin")) == (
        "'policy.onnx' keeps weights in 'w.bin', which is missing; copy that file beside the model"
    )


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../w.bin", "a/../../w.bin", "C:\\w.bin", "..\\w.bin", "link.bin", "\0", "dir/w.bin"]
)
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(FIXTURES / "sac_external_dynamo.onnx.data", tmp_path / "w.bin")
    (folder / "link.bin").symlink_to("../w.bin")
    (folder / "dir").symlink_to("..")
    assert refusal(external(folder, location)) == (
        f"'policy.onnx' keeps weights in {location!r}, which is outside the model's own folder; "
        "export it again into one folder"
    )


def test_truncated_external_data_is_said_to_be_so(tmp_path: Path) -> None:
    content = (FIXTURES / "sac_external_dynamo.onnx.data").read_bytes()
    (tmp_path / "w.bin").write_bytes(content[:100])
    said = refusal(external(tmp_path, "w.bin"))
    assert said.startswith("'policy.onnx' keeps weight 'policy.")
    assert said.endswith("' in 'w.bin', which is cut short or damaged (100 B); copy or export both files again")


def test_external_data_cannot_be_claimed_many_times_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (FIXTURES / "sac_external_dynamo.onnx.data").read_bytes()
    (tmp_path / "w.bin").write_bytes(content)
    monkeypatch.setattr("tinyrl_tvm.frontends.onnx.file.MAX_MODEL_BYTES", 2**20 - 1)
    path = external(tmp_path, "w.bin")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer.extend(list(model.graph.initializer) * (2**20 // len(content) + 1))
    assert (
        refusal(saved(model, tmp_path))
        == "the weights of 'policy.onnx' need over 0 MiB, too much for a microcontroller"
    )


UNSUPPORTED = {
    "recurrent": "[/lstm/LSTM] t = LSTM(obs, w_hidden, w_hidden) action = Identity(t)",
    "image": "[/cnn/Conv] t = Conv(obs, w_hidden) action = Identity(t)",
    "own": "[/own] action = my.own.Relu(obs)",
    "unheard of": "[/new] action = Frobnicate(obs)",
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_operator_that_cannot_be_compiled_is_named_with_its_node(case: str, tmp_path: Path) -> None:
    operator, node = {
        "recurrent": ("LSTM", "/lstm/LSTM"),
        "image": ("Conv", "/cnn/Conv"),
        "own": ("my.own.Relu", "/own"),
        "unheard of": ("Frobnicate", "/new"),
    }[case]
    path = saved(
        small_model("float[1,3] action", UNSUPPORTED[case].replace("[/", '["/').replace("] ", '"] ')), tmp_path
    )
    with pytest.raises(UnsupportedOp) as caught:
        load(path)
    why = {
        "recurrent": "policies are feed-forward networks of dense layers; recurrent networks are refused",
        "image": "policies are feed-forward networks of dense layers; convolutional networks are refused",
    }.get(case, f"supported: {SUPPORTED}")
    assert str(caught.value) == f"{operator} at node '{node}' of 'policy.onnx' cannot be compiled; {why}"


def test_operator_that_every_candidate_needs_comes_before_the_choice(tmp_path: Path) -> None:
    """A recurrent export has its states among the outputs: naming one would not help."""
    body = '["/lstm"] t, state = LSTM(obs, w_hidden, w_hidden) action = Tanh(t)'
    path = saved(small_model("float[1,1,3] action, float[1,1,3] state", body), tmp_path)
    assert refusal(path).startswith(
        "LSTM at node '/lstm' of 'policy.onnx' cannot be compiled; policies are feed-forward"
    )


def test_operator_that_one_candidate_needs_does_not_hide_the_choice(tmp_path: Path) -> None:
    body = f'{HIDDEN} action = MatMul(hidden, w_wide) ["/det"] strange = Atan(action)'
    path = saved(small_model("float[1,4] action, float[1,4] strange", body), tmp_path)
    assert "has 2 outputs that could be the action" in refusal(path)
    assert load(path, output="action").notes == ()


SHAPES = {
    "float[3] obs": "has shape (3), without a batch axis; export it again with a dummy observation of shape (1, 3)",
    "float[] obs": "has shape (), without a batch axis; export it again with a dummy observation of shape (1)",
    "float[7,3] obs": "has shape (7, 3), a fixed batch of 7; export it again with a batch of 1 or a dynamic one",
    "float[1,n] obs": "has shape (1, n); every axis but the first needs a fixed size: "
    "export it again without dynamic axes",
    "float obs": "has no shape; export it again with a dummy observation of shape (1, n_obs)",
}


@pytest.mark.parametrize("inputs", SHAPES)
def test_input_shape_that_cannot_be_compiled_is_named(inputs: str, tmp_path: Path) -> None:
    model = small_model("float y", "y = Tanh(obs)", inputs=inputs.replace("[]", ""))
    if inputs == "float[] obs":
        model.graph.input[0].type.tensor_type.shape.SetInParent()
    if inputs == "float obs":
        model.graph.input[0].type.tensor_type.ClearField("shape")
    said = refusal(saved(model, tmp_path))
    assert said.removeprefix("input 'obs' of 'policy.onnx' ") == SHAPES[inputs]


def test_input_type_that_cannot_be_compiled_is_named(tmp_path: Path) -> None:
    model = small_model("float[1,3] y", "y = Cast<to = 1>(obs)", inputs="uint64[1,3] obs")
    assert refusal(saved(model, tmp_path)) == (
        "input 'obs' of 'policy.onnx' is uint64, have: float32, int64, int32, int16, int8, uint8, bool; "
        "cast the observation before the export"
    )


def test_action_that_depends_on_nothing_is_refused(tmp_path: Path) -> None:
    path = saved(small_model("float[1] std, float[1] other", "std = Exp(log_std) other = Neg(std)"), tmp_path)
    assert refusal(path) == "no output of 'policy.onnx' depends on an input, but 'std', 'other' exist; export the actor"
    assert refusal(path, "std") == "output 'std' of 'policy.onnx' depends on no input; try another --output"


def test_diverged_weights_are_refused(tmp_path: Path) -> None:
    model = small_model("float[1,1] action", ONE_WIDE)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "w_mean")
    tensor.CopyFrom(numpy_helper.from_array(np.full((8, 1), np.nan, np.float32), "w_mean"))
    assert refusal(saved(model, tmp_path)) == (
        "weight 'w_mean' of 'policy.onnx' contains NaN, so the training diverged; export an earlier checkpoint"
    )


def test_diverged_weights_of_the_critic_do_not_matter(tmp_path: Path) -> None:
    model = small_model("float[1,4] action, float[1,1] value", f"{HIDDEN} action = MatMul(hidden, w_wide) {VALUE}")
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "w_value")
    tensor.CopyFrom(numpy_helper.from_array(np.full((8, 1), np.nan, np.float32), "w_value"))
    assert load(saved(model, tmp_path)).action.name == "action"


def test_graph_that_onnx_runtime_refuses_is_said_to_be_so(tmp_path: Path) -> None:
    said = refusal(saved(small_model("float[1,1] action", "action = MatMul(obs, w_mean)"), tmp_path))
    assert said.startswith("ONNX Runtime cannot read 'policy.onnx': ")
    assert said.endswith("; export it again with opset_version=18")


def test_names_in_messages_stay_on_one_line_and_short(tmp_path: Path) -> None:
    model = small_model("float[1,3] action", "action = Det(obs)")
    model.graph.node[0].name = "*/\n" + "x" * 1000
    said = refusal(saved(model, tmp_path))
    assert said.startswith("Det at node '*/\\nxxx")
    assert len(said) < len(SUPPORTED) + 200


# ---- the records ----


def made(**changes: Any) -> Policy:
    policy = load(POLICIES / "P1.onnx")
    fields = {
        name: getattr(policy, name) for name in ("module", "inputs", "action", "action_index", "source", "sha256")
    }
    return Policy(**{**fields, **changes})


def test_records_refuse_bad_values_at_birth() -> None:
    for arguments in (("", (1,), "float32"), ("x", (0,), "float32"), ("x", (1,), "float64"), ("x", ("n",), "float32")):
        with pytest.raises(ValueError, match=r"needs a|is float64"):
            TensorSpec(*arguments)
    with pytest.raises(ValueError, match="main takes 1 tensors, 0 are described"):
        made(inputs=())
    with pytest.raises(ValueError, match="action index -1 is negative"):
        made(action_index=-1)
    with pytest.raises(ValueError, match="is not a SHA-256"):
        made(sha256="cafe")
    assert made().notes == ()


def test_length_counts_the_numbers_of_one_sample() -> None:
    assert [TensorSpec("x", shape, "float32").length for shape in ((), (4,), (2, 3))] == [1, 4, 6]
