# SPDX-License-Identifier: Apache-2.0
"""Models quantised by ONNX Runtime: their integers are kept, their answers are ONNX Runtime's, what is odd is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat
from policies import (
    SANITIZERS,
    arg_max,
    clipped,
    dense_policy,
    greater,
    multi_discrete,
    observations_for,
    reference_answers,
    replay,
    save,
    squashed,
    unscaled,
)
from quantised_models import INT16, UINT8, constant, last_scale, quantised, with_initializer, with_matmuls
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes import JoinBias, LowerQdq, RemoveQdq, oracle
from relay_passes.dataflow import bindings, dtype_of, op_name
from relay_passes.evaluate import evaluate
from relay_passes.lower_dense import call_name
from relay_passes.report import run_passes
from tinyrl_tvm.calibrate import split_inputs
from tinyrl_tvm.device import host, qemu
from tinyrl_tvm.errors import TinyrlError, UnsupportedOp
from tinyrl_tvm.frontends.onnx import load
from tinyrl_tvm.pipeline import compile_policy, integer_passes, quantised_passes, unrounding_passes
from tinyrl_tvm.project import build, create

POLICIES = Path(__file__).parent.parent / "benchmarks" / "policies"


def coded(model: onnx.ModelProto, folder: Path) -> tvm.IRModule:
    """The actor with its codes in place."""
    policy = load(save(model, folder))
    module, _ = run_passes(policy.module, quantised_passes(policy))
    return module


def integers(model: onnx.ModelProto, folder: Path) -> tvm.IRModule:
    module, _ = run_passes(coded(model, folder), integer_passes())
    return module


def answers(model: onnx.ModelProto, folder: Path, rows: np.ndarray) -> np.ndarray:
    """By the oracle: what every target must answer, bit for bit."""
    policy = load(save(model, folder))
    given = oracle.answers(integers(model, folder), *split_inputs(rows, policy.inputs))
    return given.reshape(len(rows), -1)


def names(module: tvm.IRModule) -> list[str]:
    return [call_name(value) or op_name(value) for _, value in bindings(module["main"])]


def codes_of(module: tvm.IRModule, rows: np.ndarray) -> list[np.ndarray]:
    """Every int8 tensor on the way, (n_rows, n)."""
    seen: list[np.ndarray] = []

    def watch(var: Any, values: np.ndarray) -> None:
        if dtype_of(var) == "int8":
            seen.append(values.reshape(len(rows), -1))

    evaluate(module, rows, watch=watch, calls=oracle.LAW)
    return seen


# ---- agreement with ONNX Runtime ----

FORMS: dict[str, dict[str, Any]] = {
    "asymmetric": {},
    "symmetric": {"ActivationSymmetric": True},
    "uint8 activations": {"activations": UINT8},
    "symmetric uint8 activations": {"activations": UINT8, "ActivationSymmetric": True},
    "per channel": {"per_channel": True},
    "per channel, symmetric": {"per_channel": True, "ActivationSymmetric": True},
    "per channel, uint8 activations": {"per_channel": True, "activations": UINT8},
    "float bias": {"QuantizeBias": False},
    "layers alone": {"operators": ["Gemm"]},
    "in ONNX Runtime's own domain": {"UseQDQContribOps": True},
    "a pair for every reader": {"DedicatedQDQPair": True},
}


def reference_policy(name: str) -> tuple[onnx.ModelProto, np.ndarray]:
    if name == "random":
        model = dense_policy((11, 37, 20, 5), activation=["Relu", "Sigmoid"], seed=3)
        return model, observations_for(model, 128)
    model = onnx.load(POLICIES / f"{name}.onnx")
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    with np.load(POLICIES / f"{name}.npz") as arrays:
        return model, arrays["calibration"][:128].astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["P1", "P2", "random"])
def test_an_action_lies_within_half_a_step_of_onnx_runtimes(name: str, form: str, tmp_path: Path) -> None:
    """Of the codes before it at most one in a thousand is another, where ONNX Runtime's float32 rescale rounds otherwise;
    an action then may be one code off, beside the half step that its own rounding took."""
    model, rows = reference_policy(name)
    model = quantised(model, rows, **FORMS[form])
    step = last_scale(model)
    off = np.abs(answers(model, tmp_path, rows) - reference_answers(model, rows)) / step
    assert off.max() <= 1.5
    assert np.mean(off > 0.5 + 1e-3) <= 0.01
    assert off.mean() > 0.05  # the comparison is not of a constant


@pytest.mark.parametrize("name", ["P1", "P2", "random"])
def test_hidden_codes_are_onnx_runtimes(name: str, tmp_path: Path) -> None:
    model, rows = reference_policy(name)
    model = quantised(model, rows)
    ours = codes_of(integers(model, tmp_path), rows)
    theirs = codes_of(coded(model, tmp_path), rows)[: len(ours)]  # by numpy, in float32; the last are the action's
    for mine, other in zip(ours, theirs, strict=True):
        differ = np.abs(mine.astype(int) - other)
        assert differ.max() <= 1
        assert np.mean(differ > 0) <= 1e-3


@pytest.mark.parametrize("form", ["asymmetric", "symmetric", "uint8 activations", "layers alone"])
def test_an_arg_max_of_sums_differs_on_ties_of_codes_only(form: str, tmp_path: Path) -> None:
    model, rows = reference_policy("cartpole")
    model = quantised(model, rows, **FORMS[form])
    ours, theirs = answers(model, tmp_path, rows)[:, 0], reference_answers(model, rows)[:, 0]
    logits = codes_of_logits(coded(model, tmp_path), rows)
    at = np.arange(len(rows))
    np.testing.assert_array_equal(logits[at, ours], logits[at, theirs])
    assert 0 < ours.mean() < 1


def codes_of_logits(module: tvm.IRModule, rows: np.ndarray) -> np.ndarray:
    seen: dict[str, np.ndarray] = {}
    evaluate(module, rows, watch=lambda var, values: seen.update({str(dtype_of(var)): values}))
    return (
        next(values for dtype, values in seen.items() if dtype in ("int8", "uint8")).reshape(len(rows), -1).astype(int)
    )


@pytest.mark.parametrize("form", ["per channel", "per channel, symmetric", "per channel, uint8 activations"])
def test_an_arg_max_of_sums_of_several_scales_reads_the_codes(form: str, tmp_path: Path) -> None:
    model, rows = reference_policy("cartpole")
    model = quantised(model, rows, **FORMS[form])
    assert names(integers(model, tmp_path))[-4:] == ["tinyrl.requantize", "matmul", "add", "argmax"]
    np.testing.assert_array_equal(answers(model, tmp_path, rows), reference_answers(model, rows))


@pytest.mark.parametrize("form", ["asymmetric", "symmetric", "per channel", "uint8 activations"])
def test_a_squashed_action_is_onnx_runtimes(form: str, tmp_path: Path) -> None:
    model, rows = reference_policy("pendulum")
    model = quantised(model, rows, **FORMS[form])
    theirs = reference_answers(model, rows)
    # the codes are those of what tanh reads, and tanh is no steeper than 1
    step = max(float(constant(model, node.input[1])) for node in model.graph.node
               if node.op_type == "QuantizeLinear" and "mu/Gemm" in node.input[0])  # fmt: skip
    off = np.abs(answers(model, tmp_path, rows) - theirs) / step
    assert off.max() <= 1.5
    assert np.mean(off > 0.51) <= 0.02
    assert theirs.std() > 0.1


HEADS: dict[str, tuple[tuple[int, ...], dict[str, Any], float]] = {  # the greatest difference, in steps of the action
    "clipped": ((8, 32, 4), {"head": clipped(-0.5, 0.5)}, 0.6),
    "silu": ((8, 32, 4), {"activation": "Silu"}, 0.6),
    "relu6": ((8, 32, 4), {"activation": "Relu6"}, 0.6),
    "leaky, with ties": ((8, 32, 4), {"activation": "LeakyRelu"}, 0.6),
    "squashed": ((11, 32, 6), {"head": squashed()}, 2),  # rounded before tanh, and behind
    "unscaled": ((8, 32, 4), {"head": unscaled([-2, -1, -3, 0], [2, 1, 4, 10])}, 4),  # rounded five times on the way
    "one layer": ((5, 3), {}, 0.6),
    "matrix": ((6, 32, 4), {"inputs": {"map": (2, 3)}}, 0.6),
    "standardised": ((5, 17, 3), {"normalised": (0.0, [0.1, 0.4, 1.0, 3.0, 0.4], 2.0)}, 0.6),
}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_whatever_the_activation_or_head_the_answers_are_onnx_runtimes(
    name: str, symmetric: bool, tmp_path: Path
) -> None:
    sizes, options, steps = HEADS[name]
    model = dense_policy(sizes, **options)
    rows = observations_for(model, 128)
    model = quantised(model, rows, ActivationSymmetric=symmetric)
    off = np.abs(answers(model, tmp_path, rows) - reference_answers(model, rows)) / last_scale(model)
    assert off.max() <= steps


@pytest.mark.parametrize("head", [multi_discrete(3, 2, 4), greater, arg_max], ids=["several", "binary", "discrete"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_decisions_are_onnx_runtimes_but_for_ties(head: Any, per_channel: bool, tmp_path: Path) -> None:
    model = dense_policy((8, 32, 9), head=head, activation="Tanh", critic=True)
    rows = observations_for(model, 256)
    model = quantised(model, rows, per_channel=per_channel)
    agree = np.mean(answers(model, tmp_path, rows) == reference_answers(model, rows))
    assert agree == 1 if per_channel and head is not greater else agree >= 0.98


def test_a_mean_moves_the_grid_by_half_a_step_at_most(tmp_path: Path) -> None:
    """VecNormalize in front: answers are as near to the float policy's as ONNX Runtime's own."""
    model = dense_policy((5, 17, 3), normalised=(np.linspace(-1, 1, 5), 0.4, 2.0))
    rows = observations_for(model, 256)
    coded_model = quantised(model, rows)
    float_actions = reference_answers(model, rows)
    ours = np.abs(answers(coded_model, tmp_path, rows) - float_actions)
    theirs = np.abs(reference_answers(coded_model, rows) - float_actions)
    assert ours.mean() <= theirs.mean()
    assert ours.max() <= 1.2 * theirs.max()


def test_a_matmul_and_an_add_are_the_layer_that_a_gemm_is(tmp_path: Path) -> None:
    model = dense_policy((6, 16, 12, 3))
    rows = observations_for(model, 256)
    gemm, separate = quantised(model, rows), quantised(with_matmuls(model), rows)
    assert names(integers(separate, tmp_path)) == names(integers(gemm, tmp_path))
    float_actions = reference_answers(model, rows)
    ours = np.abs(answers(separate, tmp_path, rows) - float_actions).mean()
    assert (
        ours < np.abs(reference_answers(separate, rows) - float_actions).mean()
    )  # rounds once where that rounds twice


# ---- the form of the integers ----


def test_layers_are_those_of_our_own_quantiser(tmp_path: Path) -> None:
    model, rows = reference_policy("P2")
    assert names(integers(quantised(model, rows), tmp_path)) == [
        "tinyrl.quantize",
        *("matmul", "add", "tinyrl.requantize", "tinyrl.lookup") * 2,
        *("matmul", "add", "astype", "multiply", "minimum", "maximum"),
    ]


@pytest.mark.parametrize(("form", "left", "table"), [("asymmetric", 0, 0), ("symmetric", 2, 0), ("layers alone", 2, 2)])
def test_a_relu_is_a_clamp_whether_the_quantiser_left_it_or_not(
    form: str, left: int, table: int, tmp_path: Path
) -> None:
    """But between codes of two scales it is a table."""
    model, rows = reference_policy("P1")
    model = quantised(model, rows, **FORMS[form])
    assert [node.op_type for node in model.graph.node].count("Relu") == left
    assert names(integers(model, tmp_path)).count("tinyrl.lookup") == table


def test_weights_and_biases_are_the_files(tmp_path: Path) -> None:
    model, rows = reference_policy("P1")
    model = quantised(model, rows, per_channel=True)
    line = list(bindings(integers(model, tmp_path)["main"]))
    weights = [value.args[1].value.numpy() for _, value in line if op_name(value) == "matmul"]
    for index, weight in enumerate(weights):
        np.testing.assert_array_equal(weight, constant(model, f"w{index}_quantized").T)
    biases = [value.args[1].value.numpy() for _, value in line if op_name(value) == "add"]
    zero_point = int(constant(model, "obs_zero_point"))
    folded = constant(model, "b0_quantized") - zero_point * weights[0].astype(int).sum(0)
    np.testing.assert_array_equal(biases[0], folded)


def test_the_callers_module_stays_as_it_is(tmp_path: Path) -> None:
    module = coded(quantised(dense_policy((6, 16, 3))), tmp_path)
    text = module.script()
    run_passes(module, [LowerQdq()])
    run_passes(module, unrounding_passes())
    assert module.script() == text


# ---- RemoveQdq, JoinBias ----


@I.ir_module
class Coded:
    @R.function
    def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
        with R.dataflow():
            codes = R.quantize(x, R.const(0.5, "float32"), R.const(-128, "int8"), out_dtype="int8", axis=1)
            values = R.dequantize(codes, R.const(0.5, "float32"), R.const(-128, "int8"), axis=1)
            action = R.tanh(values)
            R.output(action)
        return action


def test_a_pair_without_its_rounding_is_a_clip() -> None:
    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                values = R.clip(x, R.prim_value(0.0), R.prim_value(127.5))
                action = R.tanh(values)
                R.output(action)
            return action

    tvm.ir.assert_structural_equal(RemoveQdq()(Coded), Expected)


def test_a_model_without_codes_is_left_alone() -> None:
    @I.ir_module
    class Plain:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                total = R.add(x, R.const(np.ones(4, np.float32)))
                action = R.tanh(total)
                R.output(action)
            return action

    for one in (RemoveQdq(), JoinBias()):
        tvm.ir.assert_structural_equal(one(Plain), Plain)


def test_codes_between_a_product_and_what_is_no_bias_stay(tmp_path: Path) -> None:
    tvm.ir.assert_structural_equal(JoinBias()(Coded), Coded)
    module = coded(quantised(dense_policy((6, 16, 3))), tmp_path)  # a Gemm's codes come after its bias
    tvm.ir.assert_structural_equal(JoinBias()(module), module)


def test_the_float_policy_has_the_relu_that_the_quantiser_dropped(tmp_path: Path) -> None:
    model, rows = reference_policy("P1")
    coded_model = quantised(model, rows)
    assert "Relu" not in {node.op_type for node in coded_model.graph.node}
    module, _ = run_passes(coded(coded_model, tmp_path), unrounding_passes())
    off = np.abs(np.asarray(evaluate(module, rows)) - reference_answers(model, rows))
    assert off.max() < 5 * last_scale(coded_model)  # int8 weights apart, the same policy


# ---- what a user gets ----


def compiled(model: onnx.ModelProto, folder: Path, **options: Any) -> Any:
    return compile_policy(save(model, folder), **{"target": "host", **options})


def rows_file(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "rows.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("form", ["asymmetric", "per channel, symmetric"])
@pytest.mark.parametrize("name", ["P1", "P2", "cartpole", "pendulum", "random"])
def test_parity_on_this_machine(name: str, form: str, tmp_path: Path) -> None:
    model, rows = reference_policy(name)
    done = compiled(quantised(model, rows, **FORMS[form]), tmp_path)
    assert (done.precision, done.reason) == ("int8", "the model brings its own scales")
    assert host.run(done.library).parity == "PASS"


@pytest.mark.parametrize(("name", "form"), [("P1", "symmetric"), ("P2", "per channel"), ("cartpole", "per channel")])
def test_parity_on_a_cortex_m55(name: str, form: str, tmp_path: Path) -> None:
    model, rows = reference_policy(name)
    library = compiled(quantised(model, rows, **FORMS[form]), tmp_path, target="cortex-m55").library
    project = create(library, tmp_path / "project", "baremetal")
    build(project)
    measured = qemu.run(project)
    assert measured.parity == "PASS"
    np.testing.assert_array_equal(measured.actions, library.vectors()["expected"])
    assert "PARITY PASS" in replay(library, tmp_path, "gcc", "-O1", *SANITIZERS)


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m0", "host", "portable"])
def test_extreme_codes_keep_parity(target: str, tmp_path: Path) -> None:
    """Weights of -128, sums past every code, observations past every scale."""
    model = quantised(dense_policy((6, 16, 12, 3), activation=["Relu", "Tanh"]), ActivationSymmetric=True)
    for name in ("c0_quantized", "c2_quantized"):
        weight = constant(model, name)
        model = with_initializer(model, name, np.where(weight < 0, -128, 127).astype(np.int8))
    rows = observations_for(model, 32, scale=10.0)
    rows[0], rows[1] = 3e38, -3e38
    library = compiled(model, tmp_path, target=target, calibration=rows_file(tmp_path, calibration=rows)).library
    assert "PARITY PASS" in replay(library, tmp_path, "gcc", "-O1", *SANITIZERS)


def test_calibration_gives_test_vectors_alone_and_says_so(tmp_path: Path) -> None:
    model = dense_policy((6, 16, 3))
    rows = observations_for(model, 32)
    model = quantised(model, rows)
    plain = compiled(model, tmp_path)
    given = compiled(model, tmp_path, calibration=rows_file(tmp_path, calibration=100 * rows, observations=rows))
    assert "the scales are the model's own; --calibration gives test vectors alone" in given.notes
    assert not any("scales" in note for note in plain.notes)
    np.testing.assert_array_equal(given.library.vectors()["observations"], rows)
    np.testing.assert_array_equal(
        plain.library.files["parameters/policy.params"], given.library.files["parameters/policy.params"]
    )


def test_every_pass_accounts_for_itself(tmp_path: Path) -> None:
    model = quantised(dense_policy((6, 16, 3), head=arg_max, critic=True))
    assert [change.pass_name for change in compiled(model, tmp_path).changes] == [
        *("PruneCritic", "CanonicalizeClip", "SimplifyActionHead", "JoinBias"),
        *("LowerQdq", "FoldLut", "LowerDense"),
    ]


def test_weights_alone_do_not_make_an_integer_policy(tmp_path: Path) -> None:
    """A float policy that stores its weights in 8 bits is one."""
    model = quantised(dense_policy((6, 16, 3)))
    pairs = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    sources = {node.output[0]: pairs[node.input[0]] for node in model.graph.node if node.input[0] in pairs}
    stored = copy.deepcopy(model)
    del stored.graph.node[:]
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" and node.output[0] not in sources:
            node.input[:] = [sources.get(name, name) for name in node.input]
            stored.graph.node.append(node)
    done = compiled(stored, tmp_path)
    assert (done.precision, done.reason) == ("float32", "int8 needs --calibration")


# ---- what is refused ----

SMALL = dense_policy((6, 16, 3))
SMALL_CODED = quantised(SMALL)


def refusal(model: onnx.ModelProto, folder: Path, **options: Any) -> str:
    with pytest.raises(TinyrlError) as raised:
        compiled(model, folder, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_float32_is_refused(tmp_path: Path) -> None:
    assert refusal(SMALL_CODED, tmp_path, precision="float32") == (
        "'policy.onnx' is quantised to int8 (QDQ) and has no float32 weights; compile the model it was made of"
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("t1_scale", v, f"{float(v):g}") for v in map(np.float32, ("nan", "inf", 0.0, -1.0, 1e-40))]
    + [("c0_scale", v, f"{float(v):g}") for v in map(np.float32, ("nan", 0.0, 1e-45))]
    + [("c1_quantized_scale", np.array([np.nan], np.float32), "nan")],
)
def test_a_scale_that_is_none_is_refused_by_node(name: str, value: np.ndarray, said: str, tmp_path: Path) -> None:
    message = refusal(with_initializer(SMALL_CODED, name, np.asarray(value)), tmp_path)
    assert f"Linear at node '{'t1' if name[0] == 't' else name[:2]}" in message
    assert message.endswith(f"has a scale that is {said}; calibrate again, with rows that move every layer")


@pytest.mark.parametrize("extra", [{}, {"UseQDQContribOps": True}])
def test_sixteen_bits_are_refused_by_node(extra: dict[str, Any], tmp_path: Path) -> None:
    message = refusal(quantised(SMALL, activations=INT16, **extra), tmp_path)
    assert message == (
        "QuantizeLinear at node 'obs_QuantizeLinear' of 'policy.onnx' has int16 codes, have: int8, uint8; "
        "quantise with activation_type=QuantType.QInt8"
    )


def test_weights_of_nine_bits_are_refused(tmp_path: Path) -> None:
    assert refusal(quantised(SMALL, activations=UINT8, weights=UINT8), tmp_path) == (
        "'policy.onnx': weights less their zero point need more than 8 bits; "
        "quantise them with weight_type=QuantType.QInt8"
    )


@pytest.mark.parametrize("per_channel", [False, True])
def test_unsigned_weights_about_128_are_int8_ones(per_channel: bool, tmp_path: Path) -> None:
    model = quantised(SMALL, activations=UINT8, weights=UINT8, per_channel=per_channel, WeightSymmetric=True)
    rows = observations_for(SMALL, 64)
    off = np.abs(answers(model, tmp_path, rows) - reference_answers(model, rows)) / last_scale(model)
    assert off.max() <= 0.51


def test_zero_points_of_weights_that_leave_8_bits_are_taken_in(tmp_path: Path) -> None:
    model = quantised(SMALL, per_channel=True)
    weight = np.clip(constant(model, "c0_quantized"), -100, 100)
    model = with_initializer(model, "c0_quantized", weight)
    model = with_initializer(model, "c0_zero_point", np.arange(16, dtype=np.int8))
    rows = observations_for(SMALL, 64)
    off = np.abs(answers(model, tmp_path, rows) - reference_answers(model, rows)) / last_scale(model)
    assert off.max() <= 0.51


@pytest.mark.parametrize("node", ["/Gemm_0", "/Gemm_2"])
def test_a_layer_left_float_is_refused(node: str, tmp_path: Path) -> None:
    message = refusal(quantised(SMALL, leave_out=[node]), tmp_path)
    assert message == (
        "'policy.onnx': a dense layer has weights without int8 codes; "
        "a policy is compiled to integers as a whole: quantise every layer, or none"
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_operators_on_codes_are_refused_with_what_would_do(dynamic: bool, tmp_path: Path) -> None:
    if dynamic:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(with_matmuls(SMALL), tmp_path / "dynamic.onnx")
        model, operator = onnx.load(tmp_path / "dynamic.onnx"), "DynamicQuantizeLinear"
    else:
        model, operator = quantised(SMALL, form=QuantFormat.QOperator), "QGemm"
    message = refusal(model, tmp_path)
    assert message.startswith(f"{operator} at node ")
    assert message.endswith(
        "of 'policy.onnx' computes on codes; quantise the float model with "
        "onnxruntime.quantization.quantize_static(..., quant_format=QuantFormat.QDQ), which can be compiled"
    )


def test_observations_of_several_scales_are_refused_with_what_would_do(tmp_path: Path) -> None:
    model = dense_policy((7, 16, 3), inputs={"joints": (3,), "goal": (4,)})
    message = refusal(quantised(model), tmp_path)
    assert message == (
        "'policy.onnx': the observation has codes of several scales on its way to the first layer; "
        "quantise the layers alone, with op_types_to_quantize=['Gemm', 'MatMul', 'Add']"
    )
    layers = quantised(model, operators=["Gemm", "MatMul", "Add"])
    rows = observations_for(model, 64)
    off = np.abs(answers(layers, tmp_path, rows) - reference_answers(layers, rows)) / last_scale(layers)
    assert off.max() <= 0.6


def test_codes_finer_than_their_sums_are_refused(tmp_path: Path) -> None:
    message = refusal(with_initializer(SMALL_CODED, "t1_scale", np.asarray(1e-9, np.float32)), tmp_path)
    assert "times finer than its sums; calibrate with rows that move it" in message


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ({"obs_scale": 3e38}, "has a scale that is 3e+38; calibrate again"),
        ({"c0_scale": 1e-37, "c1_quantized_scale": 1.0, "t1_scale": 1.0}, "int32 sums have steps of 1e-39"),
        ({"obs_scale": 1e20, "c0_scale": 1e20, "t1_scale": 1e20}, "int32 sums have steps of 1e+40"),
    ],
)
def test_scales_that_float32_has_no_room_for_are_refused(scales: dict[str, float], said: str, tmp_path: Path) -> None:
    model = with_initializer(SMALL_CODED, "obs_scale", np.asarray(0.01, np.float32))
    for name, value in scales.items():
        like = constant(model, name)
        model = with_initializer(model, name, np.full(like.shape, value, np.float32))
    assert said in refusal(model, tmp_path)


def test_a_bias_past_every_sum_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    biases = np.full(16, 2**31 - 1, np.int32)
    message = refusal(with_initializer(SMALL_CODED, "c1_quantized", biases), tmp_path)
    assert "BlockBuilder" not in capfd.readouterr().err
    assert message.startswith("'policy.onnx': a layer's int32 sums reach 2,147,")


def test_an_activation_of_a_float_is_refused(tmp_path: Path) -> None:
    model = quantised(
        dense_policy((6, 16, 3), activation="Tanh"), operators=["Gemm"], OpTypesToExcludeOutputQuantization=["Gemm"]
    )
    assert refusal(model, tmp_path) == (
        "'policy.onnx': 'tanh' reads a dense layer's output without codes; "
        "a policy is compiled to integers as a whole: quantise every layer, or none"
    )


def test_an_arg_max_of_sums_of_several_scales_without_codes_is_refused(tmp_path: Path) -> None:
    model = dense_policy((6, 16, 3), head=arg_max)
    options = {"operators": ["Gemm"], "OpTypesToExcludeOutputQuantization": ["Gemm"]}
    assert refusal(quantised(model, per_channel=True, **options), tmp_path) == (
        "'policy.onnx': the last layer's output has no codes, and its head needs them; quantise it as well"
    )
    rows = observations_for(model, 64)
    per_tensor = quantised(model, **options)
    np.testing.assert_array_equal(answers(per_tensor, tmp_path, rows), reference_answers(per_tensor, rows))


def test_weights_rescaled_behind_their_codes_are_refused(tmp_path: Path) -> None:
    model = copy.deepcopy(SMALL_CODED)
    for node in model.graph.node:
        if node.op_type == "Gemm":
            node.attribute.append(helper.make_attribute("alpha", 0.3))
    assert refusal(model, tmp_path) == (
        "'policy.onnx': weights are rescaled after they were quantised; quantise them as the layer takes them"
    )


def test_constants_may_be_nodes_and_zero_points_missing(tmp_path: Path) -> None:
    model = quantised(SMALL, activations=UINT8)
    model = with_initializer(model, "obs_zero_point", np.array(0, np.uint8))
    rows = observations_for(SMALL, 64)
    wanted = answers(model, tmp_path, rows)
    for node in model.graph.node:
        if "obs_zero_point" in node.input:
            del node.input[2]  # which says 0, of uint8
    for tensor in model.graph.initializer:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    np.testing.assert_array_equal(answers(model, tmp_path, rows), wanted)


def without_node(model: onnx.ModelProto, index: int) -> onnx.ModelProto:
    """The model without its `index`-th node of a pair, whose reader reads what it read."""
    model = copy.deepcopy(model)
    at = [i for i, n in enumerate(model.graph.node) if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    dynamic = [i for i in at if model.graph.node[i].input[0] not in {t.name for t in model.graph.initializer}]
    gone = copy.deepcopy(model.graph.node[dynamic[index]])
    del model.graph.node[dynamic[index]]
    for node in model.graph.node:
        node.input[:] = [gone.input[0] if name == gone.output[0] else name for name in node.input]
    return model


def test_an_action_that_stays_codes_is_refused(tmp_path: Path) -> None:
    model = without_node(SMALL_CODED, -1)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT8
    assert "codes; leave the DequantizeLinear behind it in the model" in refusal(model, tmp_path)


def test_observations_that_come_as_codes_are_refused(tmp_path: Path) -> None:
    model = without_node(SMALL_CODED, 0)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT8
    assert "observations are quantised in the model" in refusal(model, tmp_path)


def test_a_scale_an_activation_channel_is_refused(tmp_path: Path) -> None:
    model = copy.deepcopy(SMALL_CODED)
    many = {
        "t1_scale": np.full(16, constant(model, "t1_scale"), np.float32),
        "t1_zero_point": np.full(16, constant(model, "t1_zero_point"), np.int8),
    }
    for name, values in many.items():
        model = with_initializer(model, name, values)
    assert refusal(model, tmp_path).endswith("has 16 scales for an activation; quantise activations per tensor")


def test_a_scale_an_input_is_refused(tmp_path: Path) -> None:
    model = copy.deepcopy(SMALL_CODED)
    for name, dtype in (("c0_scale", np.float32), ("c0_zero_point", np.int8)):
        model = with_initializer(model, name, (np.full(6, constant(model, name)) * np.arange(1, 7)).astype(dtype))
    (node,) = [node for node in model.graph.node if node.input[0] == "c0_quantized"]
    node.attribute.append(helper.make_attribute("axis", 1))
    assert refusal(model, tmp_path) == (
        "'policy.onnx': weights are quantised per input; quantise them per tensor or per output channel"
    )


def test_a_computed_scale_is_refused(tmp_path: Path) -> None:
    model = copy.deepcopy(SMALL_CODED)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["obs", "axes"], ["seen"], name="seen", keepdims=0))
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.input[:] = ["seen" if name == "obs_scale" else name for name in node.input]
    with pytest.raises(UnsupportedOp, match="computes its scale; quantise statically"):
        compiled(model, tmp_path)
