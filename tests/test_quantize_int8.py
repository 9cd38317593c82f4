# SPDX-License-Identifier: Apache-2.0
"""QuantizeInt8: what the integer graph is made of, and that no policy, however odd its numbers, overflows it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_policies
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.relax import op

from relay_passes import FoldLut, QuantizeInt8, oracle, quantize_int8
from relay_passes.dataflow import bindings, constant, known, op_name
from relay_passes.evaluate import evaluate
from relay_passes.lower_dense import call_arguments, call_name
from relay_passes.network import UnsupportedGraph
from tinyrl_tvm.pipeline import compile_policy

INT32_MAX = 2**31 - 1
Weights = list[tuple[np.ndarray, np.ndarray]]
Emit = Callable[[relax.Expr], relax.Expr]


def random_weights(sizes: Sequence[int], seed: int = 0) -> Weights:
    """(n_in, n_out) and (n_out,), as torch draws them."""
    rng = np.random.default_rng(seed)
    return [
        (rng.uniform(-1, 1, (n_in, n_out)) * np.sqrt(3 / n_in), rng.uniform(-0.3, 0.3, n_out))
        for n_in, n_out in itertools.pairwise(sizes)
    ]


def policy(
    weights: Weights,
    activation: Callable[..., relax.Expr] | Sequence[Callable[..., relax.Expr]] = op.nn.relu,
    head: Callable[[Emit, relax.Expr], relax.Expr] | None = None,
    inputs: Sequence[tuple[int, ...]] | None = None,
) -> tvm.IRModule:
    """A float policy as FuseDense leaves one."""
    activations = activation if isinstance(activation, Sequence) else [activation] * (len(weights) - 1)
    builder = relax.BlockBuilder()
    shapes = inputs or [(len(weights[0][0]),)]
    params = [relax.Var(f"obs{i}", relax.TensorType((1, *shape), "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", params):
        with builder.dataflow():
            flat = [builder.emit(op.reshape(p, (1, -1))) if len(p.ty.shape.values) > 2 else p for p in params]
            x = flat[0] if len(flat) == 1 else builder.emit(op.concat(flat, axis=1))
            for index, (weight, bias) in enumerate(weights):
                x = builder.emit(op.matmul(x, relax.const(np.asarray(weight, np.float32))))
                total = op.add(x, relax.const(np.asarray(bias, np.float32)))
                if index < len(weights) - 1:
                    x = builder.emit(activations[index](builder.emit(total)))
            output = builder.emit_output(total if head is None else head(builder.emit, builder.emit(total)))
        builder.emit_func_output(output)
    return builder.get()


def rows_for(weights: Weights, n_rows: int = 256, seed: int = 1, scale: Any = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n_rows, len(weights[0][0]))) * scale).astype(np.float32)


def names(module: tvm.IRModule) -> list[str]:
    return [call_name(value) or op_name(value) for _, value in bindings(module["main"])]


def layers(module: tvm.IRModule) -> list[tuple[np.ndarray, np.ndarray]]:
    """The integer weights (n_in, n_out) and biases (n_out,), in order."""
    line = [value for _, value in bindings(module["main"])]
    return [
        (known(value.args[1]), known(line[i + 1].args[1])) for i, value in enumerate(line) if op_name(value) == "matmul"
    ]


def call(module: tvm.IRModule, name: str) -> list[Any]:
    """The arguments of the first call of `name`: arrays and numbers."""
    value = next(value for _, value in bindings(module["main"]) if call_name(value) == name)
    return [int(a.value) if constant(a) is None else known(a) for a in call_arguments(value)[1:]]


def int8_answers(module: tvm.IRModule, calibration: np.ndarray, *rows: np.ndarray) -> np.ndarray:
    return oracle.answers(FoldLut()(QuantizeInt8(calibration)(module)), *(rows or (calibration,)))


def squash(emit: Emit, x: relax.Expr) -> relax.Expr:
    return op.tanh(x)


def unscaled(scale: Sequence[float], offset: Sequence[float]) -> Callable[[Emit, relax.Expr], relax.Expr]:
    def head(emit: Emit, x: relax.Expr) -> relax.Expr:
        spread = emit(op.multiply(emit(op.tanh(x)), relax.const(np.array(scale, np.float32))))
        return op.add(spread, relax.const(np.array(offset, np.float32)))

    return head


def clipped_before_its_sum(emit: Emit, x: relax.Expr) -> relax.Expr:
    spread = emit(op.multiply(emit(op.tanh(x)), relax.const(np.array([2, 5, 0.1, 10], np.float32))))
    return op.add(emit(op.clip(spread, -1.0, 4.0)), relax.const(np.array([0, -5, 3, 1], np.float32)))


def arg_max(emit: Emit, x: relax.Expr) -> relax.Expr:
    return op.argmax(x, axis=1)


def arg_max_of(*runs: int) -> Callable[[Emit, relax.Expr], relax.Expr]:
    def head(emit: Emit, x: relax.Expr) -> relax.Expr:
        ends = np.cumsum(runs)
        parts = [emit(op.strided_slice(x, [1], [int(e - r)], [int(e)])) for r, e in zip(runs, ends, strict=True)]
        return op.concat([emit(op.argmax(part, axis=1, keepdims=True)) for part in parts], axis=1)

    return head


def greater(emit: Emit, x: relax.Expr) -> relax.Expr:
    return op.greater(x, relax.const(np.float32(0)))


def clip(low: float, high: float) -> Callable[[Emit, relax.Expr], relax.Expr]:
    return lambda emit, x: op.clip(x, low, high)


# ---- form ----


def test_few_observations_take_a_wide_layer_and_a_relu_is_a_clamp(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    obs -> matmul -> add -> relu -> matmul -> add -> tanh -> matmul -> add                                  becomes
    obs -> quantize -> matmul -> add -> shift -> matmul -> add -> requantize -> dequantize -> tanh -> quantize
        -> matmul -> add -> astype -> multiply
    """
    monkeypatch.setattr(quantize_int8, "SHIFT_ERROR", 0.0)
    weights = random_weights((8, 16, 16, 3))
    before = policy(weights, [op.nn.relu, op.tanh])
    after = QuantizeInt8(rows_for(weights))(before)
    assert names(after) == [
        *("tinyrl.quantize", "matmul", "add", "tinyrl.shift"),
        *("matmul", "add", "tinyrl.requantize", "dequantize", "tanh", "quantize"),
        *("matmul", "add", "astype", "multiply"),
    ]
    _, low, high = call(after, "tinyrl.shift")[1:]
    assert (low, high) == (-128, 127)
    (wide, _), (first, _), (second, _) = layers(after)
    assert np.abs(wide).max() <= 32767
    assert (first.dtype, second.dtype) == (np.int8, np.int8)
    assert "nn.relu" not in names(after)
    relax.analysis.well_formed(after)


@pytest.mark.parametrize(("n_obs", "form"), [(1, "tinyrl.shift"), (8, "tinyrl.shift"), (9, "tinyrl.requantize")])
def test_nine_observations_are_bytes(n_obs: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_int8, "SHIFT_ERROR", 0.0)
    weights = random_weights((n_obs, 16, 3))
    after = QuantizeInt8(rows_for(weights))(policy(weights))
    assert form in names(after)
    assert {"tinyrl.shift", "tinyrl.requantize"} - {form} not in [set(names(after))]
    low, high = call(after, "tinyrl.quantize")[2:]
    assert (low, high) == ((-16383, 16383) if form == "tinyrl.shift" else (-128, 127))


@pytest.mark.parametrize("activation", [op.nn.relu, op.tanh])
def test_a_shift_alone_requantises_where_the_outputs_hardly_feel_it(
    activation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights((12, 24, 24, 3))
    before, rows = policy(weights, activation), rows_for(weights)
    monkeypatch.setattr(quantize_int8, "SHIFT_ERROR", 0.0)
    multiplied = relative_error(before, rows)
    assert "tinyrl.shift" not in names(QuantizeInt8(rows)(before))
    monkeypatch.setattr(quantize_int8, "SHIFT_ERROR", 10.0)
    assert "tinyrl.requantize" not in names(QuantizeInt8(rows)(before))
    monkeypatch.setattr(quantize_int8, "SHIFT_ERROR", 1.5)
    assert relative_error(before, rows) < 2 * 1.5 * multiplied  # of each of two layers


def test_a_unit_that_seldom_fires_is_not_clipped_at_what_was_seen(tmp_path: Path) -> None:
    """Clipped at what 1,024 rows showed, it took two of these 64 rows off by 0.27, ten times the others' error."""
    path = random_policies.write(tmp_path, (10, 48, 24, 2), "Relu", seed=1)
    vectors = compile_policy(path, target="host", calibration=path.with_suffix(".npz")).library.vectors()
    assert np.abs(vectors["expected"] - vectors["float_action"]).max() < 0.06


def test_a_policy_of_one_layer_is_not_wide() -> None:
    """A head has no codes to shift to."""
    weights = random_weights((4, 3))
    after = QuantizeInt8(rows_for(weights))(policy(weights, head=arg_max))
    assert names(after) == ["tinyrl.quantize", "matmul", "add", "argmax"]
    assert layers(after)[0][0].dtype == np.int8


@pytest.mark.parametrize(
    ("head", "form"),
    [
        (None, ["astype", "multiply"]),
        (arg_max, ["argmax"]),
        (greater, ["greater"]),
        (arg_max_of(2, 1), ["strided_slice", "argmax", "strided_slice", "argmax", "concat"]),
        (clip(-1, 1), ["astype", "multiply", "minimum", "maximum"]),
        (squash, ["tinyrl.requantize", "dequantize", "tanh", "multiply", "add"]),
        (unscaled([1, 2, 3], [0, 1, 2]), ["tinyrl.requantize", "dequantize", "tanh", "multiply", "add"]),
    ],
    ids=["numbers", "arg max", "greater", "several", "clipped", "squashed", "unscaled"],
)
def test_a_head_reads_the_accumulators(head: Any, form: list[str]) -> None:
    weights = random_weights((9, 16, 3))
    after = QuantizeInt8(rows_for(weights))(policy(weights, head=head))
    assert names(after)[-len(form) :] == form
    assert names(after)[-len(form) - 2 : -len(form)] == ["matmul", "add"]


def test_the_caller_keeps_its_float_policy() -> None:
    weights = random_weights((9, 16, 3))
    before = policy(weights, op.tanh)
    text = before.script()
    QuantizeInt8(rows_for(weights))(before)
    assert before.script() == text


# ---- scales ----


def test_a_feature_in_other_units_gives_the_same_integers() -> None:
    """Metres or kilometres: the unit folds into a feature's own scale, and nothing else changes. Powers of two are exact."""
    for n_obs in (4, 12):
        weights = random_weights((n_obs, 16, 3))
        units = np.exp2(np.random.default_rng(0).integers(-10, 11, n_obs))
        (first, bias), *others = weights
        rows = rows_for(weights)
        before = QuantizeInt8(rows)(policy(weights))
        after = QuantizeInt8(rows * units.astype(np.float32))(policy([(first / units[:, None], bias), *others]))
        for (w, b), (w2, b2) in zip(layers(before), layers(after), strict=True):
            np.testing.assert_array_equal(w, w2)
            np.testing.assert_array_equal(b, b2)
        np.testing.assert_array_equal(
            call(before, "tinyrl.quantize")[0] / units, call(after, "tinyrl.quantize")[0].astype(np.float64)
        )


def test_a_shared_scale_would_lose_the_small_feature() -> None:
    """The twin of the law above: with one scale for all, a feature of millimetres among kilometres has one code."""
    weights = [(np.array([[1.0], [1e6]] + 10 * [[0.0]]), np.zeros(1)), (np.ones((1, 1)), np.zeros(1))]
    scale = np.array([1.0, 1e-6, *np.ones(10)])
    module, rows = policy(weights, op.tanh), rows_for(weights, scale=scale)
    error = np.abs(int8_answers(module, rows) - evaluate(module, rows)).max()
    assert error < 0.05  # of a tanh's 2; one scale would miss by 1


def output_scales(real: np.ndarray, integers: np.ndarray) -> np.ndarray:
    """The scale of each output: least squares, exact to the rounding of the weights."""
    integers = integers.astype(np.float64)
    return (real * integers).sum(0) / np.square(integers).sum(0)


def test_arg_max_compares_accumulators_of_one_scale() -> None:
    weights = random_weights((9, 9))
    weights[0] = (weights[0][0] * np.array([1, 100, 1, 1, 0.01, 1, 1, 30, 1]), weights[0][1])
    rows = rows_for(weights)
    for head, runs in ((arg_max, (9,)), (arg_max_of(3, 4, 2), (3, 4, 2))):
        after = QuantizeInt8(rows)(policy(weights, head=head))
        inverse = call(after, "tinyrl.quantize")[0]
        ends = np.cumsum(runs)[:-1]
        real = weights[0][0] / inverse[:, None]
        for w, integers in zip(np.split(real, ends, axis=1), np.split(layers(after)[0][0], ends, axis=1), strict=True):
            used = np.abs(integers).max(0) > 20  # fewer steps do not tell a scale
            scales = output_scales(w[:, used], integers[:, used])
            np.testing.assert_allclose(scales, scales[0], rtol=0.02)


def test_numbers_have_a_scale_an_output() -> None:
    """The twin: a continuous head compares nothing, so a small output keeps all its steps."""
    weights = random_weights((9, 3))
    weights[0] = (weights[0][0] * np.array([1, 1000, 0.001]), np.zeros(3))
    after = QuantizeInt8(rows_for(weights))(policy(weights))
    integers = layers(after)[0][0]
    np.testing.assert_array_equal(np.abs(integers).max(0), [127, 127, 127])


def test_a_decision_by_sign_may_scale_every_output_alone() -> None:
    weights = random_weights((9, 16, 5))
    weights[1] = (weights[1][0] * np.array([1, 1e-4, 1, 1e4, 1]), weights[1][1] * np.array([1, 1e-4, 1, 1e4, 1]))
    module, rows = policy(weights, head=greater), rows_for(weights)
    agreement = (int8_answers(module, rows) == evaluate(module, rows)).mean(0)
    assert agreement.min() > 0.95


# ---- accuracy ----


def relative_error(module: tvm.IRModule, rows: np.ndarray) -> float:
    """Root mean square of the error, over that of the answers."""
    exact = evaluate(module, rows, dtype=np.float64)
    return float(np.sqrt(np.square(int8_answers(module, rows) - exact).mean() / np.square(exact).mean()))


ACTIVATIONS: dict[str, tuple[Callable[..., relax.Expr], float]] = {
    "relu": (op.nn.relu, 0.02),
    "tanh": (op.tanh, 0.02),
    "sigmoid": (op.sigmoid, 0.02),
    "silu": (op.nn.silu, 0.035),
    "gelu": (op.nn.gelu, 0.035),
    "leaky relu": (lambda x: op.nn.leakyrelu(x, 0.1), 0.035),
    "softplus": (op.nn.softplus, 0.035),
    "relu6": (lambda x: op.clip(x, 0, 6), 0.02),
    "hard tanh": (lambda x: op.clip(x, -1, 1), 0.02),
    "abs": (op.abs, 0.035),
    "identity": (lambda x: op.multiply(x, relax.const(np.float32(1))), 0.035),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("n_obs", [5, 20], ids=["wide", "bytes"])
def test_int8_is_near_float_whatever_the_activation(name: str, n_obs: int) -> None:
    """Measured 0.4 to 1.6 % where codes are spent evenly, 2.5 % where a function is one-sided: half of 8 bits a layer."""
    activation, bound = ACTIVATIONS[name]
    for seed in range(3):
        weights = random_weights((n_obs, 64, 48, 6), seed)
        assert relative_error(policy(weights, activation), rows_for(weights, seed=seed)) < bound


@pytest.mark.parametrize(
    "head", [None, squash, clip(-0.5, 0.5), unscaled([2, 5, 0.1, 10], [0, -5, 3, 1]), clipped_before_its_sum]
)
def test_int8_is_near_float_whatever_the_head(head: Any) -> None:
    weights = random_weights((6, 64, 64, 4))
    assert relative_error(policy(weights, op.tanh, head), rows_for(weights)) < 0.02


@pytest.mark.parametrize("head", [arg_max, arg_max_of(3, 2, 1, 4), greater], ids=["discrete", "several", "binary"])
def test_int8_decides_as_float_does_nearly_always(head: Any) -> None:
    """Untrained policies decide by little; a trained one agrees on 99 %."""
    for seed in range(3):
        weights = random_weights((8, 64, 64, 10), seed)
        module, rows = policy(weights, op.nn.relu, head), rows_for(weights, 1000)
        wanted = np.asarray(evaluate(module, rows)).reshape(1000, -1)
        assert (int8_answers(module, rows).reshape(1000, -1) == wanted).mean() > 0.97


def test_several_inputs_are_one_observation() -> None:
    weights = random_weights((13, 16, 4))
    rows = rows_for(weights)
    parts = [rows[:, :3], rows[:, 3:9].reshape(-1, 2, 3), rows[:, 9:]]
    joined, apart = policy(weights), policy(weights, inputs=[(3,), (2, 3), (4,)])
    wanted = int8_answers(joined, rows)
    np.testing.assert_array_equal(oracle.answers(FoldLut()(QuantizeInt8(*parts)(apart)), *parts), wanted)


@pytest.mark.parametrize("n_obs", [3, 12], ids=["wide", "bytes"])
def test_an_observation_past_its_range_saturates(n_obs: int) -> None:
    """It never wraps: what is far outside answers as what is at the end of the codes."""
    weights = random_weights((n_obs, 16, 2))
    module, rows = policy(weights), rows_for(weights)
    integers = FoldLut()(QuantizeInt8(rows)(module))
    reach = np.abs(rows).max(0) * (4 if n_obs <= 8 else 1)
    for sign in (-1, 1):
        far = [np.full((1, n_obs), sign * size, np.float32) for size in (1e5, 1e20, 3e38)]
        answers = [oracle.answers(integers, row) for row in (sign * reach[None].astype(np.float32) * 1.01, *far)]
        for answer in answers[1:]:
            np.testing.assert_array_equal(answer, answers[0])


# ---- odd numbers ----


def test_dead_units_and_constant_features_do_no_harm() -> None:
    weights = random_weights((12, 16, 8, 3))
    weights[0][0][:, :5] = 0
    weights[0][1][:6] = [0, -1, 1, -1e-9, 3, -1e3]  # zero, dead, constant, all but zero, constant, never fires
    weights[1][0][:, 0] = 0
    weights[1][1][0] = 0
    rows = rows_for(weights)
    rows[:, 0], rows[:, 1], rows[:, 2] = 0, 7.5, -100
    rows[:, 3] = 1000 + 1e-3 * rows[:, 3]
    for activation in (op.nn.relu, op.tanh):
        assert relative_error(policy(weights, activation), rows) < 0.03


def test_a_policy_of_zeros_answers_zero() -> None:
    for sizes in ((3, 4, 2), (12, 4, 2), (3, 2)):
        weights = [(np.zeros((a, b)), np.zeros(b)) for a, b in itertools.pairwise(sizes)]
        rows = rows_for(weights)
        for activation in (op.nn.relu, op.tanh):
            np.testing.assert_array_equal(int8_answers(policy(weights, activation), rows), np.zeros((256, 2)))


def test_a_bias_alone_is_answered() -> None:
    weights = [(np.zeros((3, 4)), np.zeros(4)), (np.zeros((4, 2)), np.array([1.5, -300.0]))]
    # int8 products leave the bias at least 28 bits
    np.testing.assert_allclose(int8_answers(policy(weights), rows_for(weights))[0], [1.5, -300.0], rtol=1e-7)


def worst_sums(module: tvm.IRModule) -> list[float]:
    """The largest accumulator any codes at all could reach, layer by layer."""
    limits = [max(-call(module, "tinyrl.quantize")[2], 128)] + 9 * [128]
    return [
        float((np.abs(bias.astype(np.float64)) + np.abs(weight.astype(np.float64)).sum(0) * limit).max())
        for (weight, bias), limit in zip(layers(module), limits, strict=False)
    ]


MAGNITUDES = st.sampled_from([0.0, 1e-30, 1e-12, 1e-4, 0.1, 1.0, 30.0, 1e4, 1e9])
HEADS = st.sampled_from([None, arg_max, greater, squash, clip(-1, 1), unscaled([0.5] * 3, [100.0] * 3)])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    n_obs=st.sampled_from([1, 3, 8, 9, 40]),
    hidden=st.lists(st.sampled_from([1, 5, 17, 64]), max_size=2),
    activation=st.sampled_from([op.nn.relu, op.tanh, op.sigmoid, op.nn.silu, lambda x: op.clip(x, 0, 6)]),
    head=HEADS,
    weight_size=st.lists(MAGNITUDES, min_size=3, max_size=3),
    bias_size=st.lists(MAGNITUDES, min_size=3, max_size=3),
    row_size=st.sampled_from([0.0, 1e-41, 1e-20, 1e-3, 1.0, 255.0, 1e6]),
    offset=st.sampled_from([0.0, 1.0, -1e3, 1e6]),
    uneven=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_no_accumulator_overflows_whatever_the_weights(
    n_obs, hidden, activation, head, weight_size, bias_size, row_size, offset, uneven, seed
) -> None:
    rng = np.random.default_rng(seed)
    weights = random_weights((n_obs, *hidden, 3), seed)
    weights = [(w * size, b * other) for (w, b), size, other in zip(weights, weight_size, bias_size, strict=False)]
    if uneven:  # units and features of very different sizes, and some of none
        units = [10.0 ** rng.integers(-6, 4, (2, len(bias))) for _, bias in weights]
        features = [rng.choice([0.0, 1e-3, 1.0], (len(weight), 1)) for weight, _ in weights]
        weights = [(w * f * u[0], b * u[1]) for (w, b), f, u in zip(weights, features, units, strict=True)]
    module = policy(weights, activation, head)
    rows = (rows_for(weights, 64, seed) * row_size + offset).astype(np.float32)
    integers = QuantizeInt8(rows)(module)
    assert max(worst_sums(integers)) <= INT32_MAX
    outside = np.concatenate([rows, rows * 1e3, -rows, np.zeros((1, n_obs)), np.full((1, n_obs), 3e38)])
    answers = oracle.answers(FoldLut()(integers), outside.astype(np.float32))  # OverflowError would fail here
    assert np.isfinite(answers).all()


# ---- what is no network of layers ----


def test_what_joins_two_layers_is_refused_by_name() -> None:
    builder = relax.BlockBuilder()
    obs = relax.Var("obs", relax.TensorType((1, 4), "float32"))
    square, bias = relax.const(np.eye(4, dtype=np.float32)), relax.const(np.ones(4, np.float32))
    with builder.function("main", [obs]):
        with builder.dataflow():
            a = builder.emit(op.add(builder.emit(op.matmul(obs, square)), bias))
            b = builder.emit(op.nn.relu(a))
            c = builder.emit(op.add(builder.emit(op.matmul(b, square)), bias))
            d = builder.emit(op.divide(c, b))
            output = builder.emit_output(op.add(builder.emit(op.matmul(d, square)), bias))
        builder.emit_func_output(output)
    message = "'divide' of two layers' outputs cannot be compiled; .* there are: add, subtract, multiply"
    with pytest.raises(UnsupportedGraph, match=message):
        QuantizeInt8(np.zeros((2, 4), np.float32))(builder.get())


def test_a_policy_without_a_dense_layer_is_refused() -> None:
    builder = relax.BlockBuilder()
    obs = relax.Var("obs", relax.TensorType((1, 4), "float32"))
    with builder.function("main", [obs]):
        with builder.dataflow():
            output = builder.emit_output(op.nn.relu(obs))
        builder.emit_func_output(output)
    with pytest.raises(UnsupportedGraph, match="the policy has no dense layer; there is nothing to compile"):
        QuantizeInt8(np.zeros((2, 4), np.float32))(builder.get())


def test_slices_out_of_order_are_refused_not_swapped() -> None:
    """`runs` says only how long each slice is: what is read in another order would answer another action."""

    def swapped(emit: Emit, x: relax.Expr) -> relax.Expr:
        late = emit(op.strided_slice(x, [1], [2], [5]))
        early = emit(op.strided_slice(x, [1], [0], [2]))
        parts = [emit(op.argmax(late, axis=1, keepdims=True)), emit(op.argmax(early, axis=1, keepdims=True))]
        return op.concat(parts, axis=1)

    weights = random_weights((9, 5))
    with pytest.raises(UnsupportedGraph, match="in order"):
        QuantizeInt8(rows_for(weights))(policy(weights, head=swapped))
