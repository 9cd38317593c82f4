# SPDX-License-Identifier: Apache-2.0
"""QuantizeInt16: what its graph is made of, what it is for, and that no policy, however odd its numbers, overflows it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policies import clipped, compile_model, dense_policy, save
from quantised_models import quantised
from test_quantize_int8 import HEADS, MAGNITUDES, layers, names, policy, random_weights, rows_for, squash
from tvm.relax import op

from relay_passes import FoldLut, QuantizeInt8, QuantizeInt16, oracle, quantize_int16
from relay_passes.dataflow import bindings, constant
from relay_passes.evaluate import evaluate
from relay_passes.lower_dense import call_arguments, call_name
from relay_passes.network import UnsupportedGraph
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.pipeline import compile_policy

# What a requantised accumulator may add to before it is shifted.
ROUNDING = 2**15
INT32_MAX = 2**31 - 1


def int16(module: tvm.IRModule, rows: np.ndarray, **how: Any) -> tvm.IRModule:
    return FoldLut()(QuantizeInt16(rows, **how)(module))


def calls(module: tvm.IRModule, name: str) -> list[list[Any]]:
    """The arguments of every call of `name`, behind its input."""
    found = [call_arguments(value)[1:] for _, value in bindings(module["main"]) if call_name(value) == name]
    return [[constant(a) if constant(a) is not None else int(a.value) for a in arguments] for arguments in found]


# ---- what the graph is made of ----


def test_a_relu_is_a_clamp_behind_a_shift() -> None:
    weights = random_weights((4, 16, 12, 3))
    graph = int16(policy(weights), rows_for(weights))
    assert names(graph) == [
        "tinyrl.quantize",
        *("matmul", "add", "tinyrl.shift"),  # 14-bit codes under 16-bit weights
        *("matmul", "add", "tinyrl.shift"),
        *("matmul", "add", "astype", "multiply"),
    ]
    assert [tuple(how[1:]) for how in calls(graph, "tinyrl.shift")] == 2 * [(0, 0, 32767)]
    (wide, *narrow) = [weight for weight, _ in layers(graph)]
    assert wide.dtype == np.int32 and 127 < np.abs(wide).max() <= 32767
    assert all(weight.dtype == np.int16 and np.abs(weight).max() <= 127 for weight in narrow)


def test_any_other_function_is_interpolated() -> None:
    weights = random_weights((20, 16, 12, 3))
    graph = int16(policy(weights, [op.tanh, op.sigmoid]), rows_for(weights))
    assert names(graph) == [
        "tinyrl.quantize",
        *("matmul", "add", "tinyrl.requantize_int16", "tinyrl.interpolate"),
        *("matmul", "add", "tinyrl.requantize_int16", "tinyrl.interpolate"),
        *("matmul", "add", "astype", "multiply"),
    ]
    for multiplier, shift, *_ in calls(graph, "tinyrl.requantize_int16"):
        assert 2**14 <= multiplier.max() < 2**15
        assert len(set(multiplier)) > 1  # one an output
        assert 8 <= shift <= 46


@pytest.mark.parametrize("activation", [op.nn.relu, op.tanh])
def test_one_multiplier_serves_all_where_it_has_to(activation: Any) -> None:
    weights = random_weights((4, 16, 12, 3))
    module, rows = policy(weights, activation), rows_for(weights)
    graph = int16(module, rows, one_multiplier=True)
    assert all(weight.dtype == np.int16 for weight, _ in layers(graph))
    assert all(len(set(multiplier)) == 1 for multiplier, *_ in calls(graph, "tinyrl.requantize_int16"))
    exact = evaluate(module, rows, dtype=np.float64)[:, 0]
    assert np.abs(oracle.answers(graph, rows)[:, 0] - exact).max() < 0.05 * np.abs(exact).max()


def test_an_output_that_needs_one_has_a_multiplier() -> None:
    """Units whose next weights are as large as their own are small: scales a power of two apart are coarse for one side."""
    rng = np.random.default_rng(0)
    size = 10.0 ** rng.uniform(-2, 2, 24)
    weights = random_weights((20, 24, 3))
    weights[0] = (weights[0][0] * np.where(rng.random((20, 24)) < 0.1, 1.0, 0.02), weights[0][1])
    weights[0] = (weights[0][0] * size, weights[0][1] * size)
    weights[1] = (weights[1][0] / size[:, np.newaxis] ** 1.5, weights[1][1])
    module, rows = policy(weights), rows_for(weights)
    exact = evaluate(module, rows, dtype=np.float64)[:, 0]
    error = np.abs(oracle.answers(int16(module, rows), rows)[:, 0] - exact).max()
    assert error < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize(("activation", "error"), [(op.tanh, 5e-4), (op.sigmoid, 2e-4), (op.nn.silu, 1.5e-3)])
def test_257_values_with_lines_between_them_are_as_close_as_is_said(activation: Any, error: float) -> None:
    """On the identity, whose weights are exact: what is left are lines, and half a code of an observation, 2.4e-4."""
    weights = [(np.eye(1), np.zeros(1)), (np.eye(1), np.zeros(1))]
    module, rows = policy(weights, activation), np.linspace(-8, 8, 4001, dtype=np.float32)[:, np.newaxis]
    exact = evaluate(module, rows, dtype=np.float64)[:, 0]
    graph = int16(module, rows, one_multiplier=True)
    assert np.abs(oracle.answers(graph, rows)[:, 0] - exact).max() < error


def test_an_activation_without_end_is_refused() -> None:
    weights = random_weights((3, 4, 2))
    with pytest.raises(UnsupportedGraph, match="an activation is not finite on the observations calibrated with"):
        int16(policy(weights, op.log), rows_for(weights))


def test_observations_keep_twice_the_range_that_was_seen() -> None:
    weights = random_weights((20, 16, 2))
    module, rows = policy(weights), rows_for(weights)
    graph = int16(module, rows)
    exact, answers = evaluate(module, 1.9 * rows, dtype=np.float64)[:, 0], oracle.answers(graph, 1.9 * rows)[:, 0]
    assert np.abs(answers - exact).max() < 0.02 * np.abs(exact).max()
    far = [np.full((1, 20), size, np.float32) for size in (1e5, 1e20, 3e38)]
    np.testing.assert_array_equal(oracle.answers(graph, far[0]), oracle.answers(graph, far[1]))
    np.testing.assert_array_equal(oracle.answers(graph, far[0]), oracle.answers(graph, far[2]))


@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0])
def test_observations_far_from_zero_are_as_good_as_near_ones(offset: float) -> None:
    """In deviations; the layer takes them off again, as a normalisation does that was folded into it."""
    weights = random_weights((20, 24, 3))
    means = offset * np.random.default_rng(1).normal(size=20)
    weights[0] = (weights[0][0], weights[0][1] - means @ weights[0][0])
    module, rows = policy(weights), rows_for(weights) + means.astype(np.float32)
    exact = evaluate(module, rows, dtype=np.float64)[:, 0]
    error = np.abs(oracle.answers(int16(module, rows), rows)[:, 0] - exact).mean()
    assert error < 0.01 * exact.std()


def softmax(emit: Any, x: Any) -> Any:
    return op.nn.softmax(x, axis=1)


@pytest.mark.parametrize("one_multiplier", [False, True])
def test_a_softmax_reads_int16_codes_of_which_the_last_lies_over_what_was_seen(one_multiplier: bool) -> None:
    weights = random_weights((20, 16, 5))
    module, rows = policy(weights, head=softmax), rows_for(weights)
    graph = int16(module, rows, one_multiplier=one_multiplier)
    assert names(graph)[-4:] == ["matmul", "add", "tinyrl.requantize_int16", "tinyrl.softmax_int16"]
    ((multiplier, _, *bounds),) = calls(graph, "tinyrl.requantize_int16")
    assert bounds == [0, -32768, 32767]
    assert 2**14 <= multiplier.max() < 2**15
    assert (len(set(multiplier)) == 1) == one_multiplier
    exact = evaluate(module, rows, dtype=np.float64)
    assert np.abs(oracle.answers(graph, rows) - exact).max() < 0.02


def test_no_code_is_spent_on_logits_that_have_no_probability() -> None:
    """One of them 1,000 below: codes over all would be 0.03 apart, and e^0.015 is 1.5 percent."""
    rng = np.random.default_rng(0)
    weights = [(np.eye(12)[:, :3], np.zeros(3)), (np.eye(3), np.array([0, 0, -1000.0]))]
    rows = rng.uniform(0, 1, (256, 12)).astype(np.float32)
    module = policy(weights, head=softmax)
    exact = evaluate(module, rows, dtype=np.float64)
    answers = oracle.answers(int16(module, rows), rows)
    np.testing.assert_array_equal(answers[:, 2], 0)
    assert np.abs(answers - exact).max() < 3e-4


# ---- what it is for ----


@pytest.mark.parametrize("n_obs", [4, 12], ids=["wide", "narrow"])
def test_a_regulator_that_acts_on_small_deviations_is_served_where_int8_fails(n_obs: int, tmp_path: Path) -> None:
    """Calibrated over +-10, asked within +-0.02, at a gain that makes the whole action of it: for int8 that is one code."""
    rng = np.random.default_rng(0)
    sizes = (n_obs, 24, 24, 1)
    weights = [(rng.normal(size=(n_out, n_in)) * np.sqrt(2 / n_in), np.zeros(n_out))
               for n_in, n_out in itertools.pairwise(sizes)]  # fmt: skip
    weights[-1] = (40 * weights[-1][0], weights[-1][1])
    model = dense_policy(sizes, weights=weights, head=clipped(-1, 1))
    calibration = rng.uniform(-10, 10, (512, n_obs)).astype(np.float32)
    near = rng.uniform(-0.02, 0.02, (256, n_obs)).astype(np.float32)
    error = {}
    for precision in ("int8", "int16"):
        made = compile_model(
            model, tmp_path, precision=precision, target="portable", calibration=calibration, vectors=near
        )
        vectors = made.library.vectors()
        error[precision] = float(np.sqrt(np.mean((vectors["expected"] - vectors["float_action"]) ** 2)))
    assert error["int8"] > 0.25
    assert error["int16"] < 0.08


# ---- odd numbers ----


def test_dead_units_and_constant_features_do_no_harm() -> None:
    weights = random_weights((12, 16, 8, 3))
    weights[0][0][:, :5] = 0
    weights[0][1][:6] = [0, -1, 1, -1e-9, 3, -1e3]
    weights[1][0][:, 0] = 0
    weights[1][1][0] = 0
    rows = rows_for(weights)
    rows[:, 0], rows[:, 1], rows[:, 2] = 0, 7.5, -100
    rows[:, 3] = 1000 + 1e-3 * rows[:, 3]
    for activation in (op.nn.relu, op.tanh):
        module = policy(weights, activation)
        exact = evaluate(module, rows, dtype=np.float64)[:, 0]
        assert np.abs(oracle.answers(int16(module, rows), rows)[:, 0] - exact).max() < 0.03 * np.abs(exact).max()


def test_a_policy_of_zeros_answers_zero() -> None:
    for sizes in ((3, 4, 2), (12, 4, 2), (3, 2)):
        weights = [(np.zeros((a, b)), np.zeros(b)) for a, b in itertools.pairwise(sizes)]
        rows = rows_for(weights)
        for activation in (op.nn.relu, op.tanh):
            np.testing.assert_array_equal(oracle.answers(int16(policy(weights, activation), rows), rows)[:, 0], 0.0)


def worst_sums(module: tvm.IRModule) -> float:
    """The largest accumulator any codes at all could reach, on the way as well as at the end."""
    ((*_, first),) = calls(module, "tinyrl.quantize")
    limits = [16383 if first == 16383 else 32768] + 9 * [32768]
    return max(
        float((np.abs(bias.astype(np.float64)) + np.abs(weight.astype(np.float64)).sum(0) * limit).max())
        for (weight, bias), limit in zip(layers(module), limits, strict=False)
    )


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    n_obs=st.sampled_from([1, 3, 8, 9, 40]),
    hidden=st.lists(st.sampled_from([1, 5, 17, 64]), max_size=2),
    activation=st.sampled_from([op.nn.relu, op.tanh, op.sigmoid, op.nn.silu, lambda x: op.clip(x, 0, 6)]),
    head=st.one_of(HEADS, st.just(softmax)),
    weight_size=st.lists(MAGNITUDES, min_size=3, max_size=3),
    bias_size=st.lists(MAGNITUDES, min_size=3, max_size=3),
    row_size=st.sampled_from([0.0, 1e-41, 1e-20, 1e-3, 1.0, 255.0, 1e6]),
    offset=st.sampled_from([0.0, 1.0, -1e3, 1e6]),
    uneven=st.booleans(),
    one_multiplier=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_no_accumulator_overflows_whatever_the_weights(
    n_obs, hidden, activation, head, weight_size, bias_size, row_size, offset, uneven, one_multiplier, seed
) -> None:
    rng = np.random.default_rng(seed)
    weights = random_weights((n_obs, *hidden, 3), seed)
    weights = [(w * size, b * other) for (w, b), size, other in zip(weights, weight_size, bias_size, strict=False)]
    if uneven:
        units = [10.0 ** rng.integers(-6, 4, (2, len(bias))) for _, bias in weights]
        features = [rng.choice([0.0, 1e-3, 1.0], (len(weight), 1)) for weight, _ in weights]
        weights = [(w * f * u[0], b * u[1]) for (w, b), f, u in zip(weights, features, units, strict=True)]
    module = policy(weights, activation, head)
    rows = (rows_for(weights, 64, seed) * row_size + offset).astype(np.float32)
    integers = int16(module, rows, one_multiplier=one_multiplier)
    assert worst_sums(integers) <= INT32_MAX - ROUNDING
    for multiplier, shift, *_ in calls(integers, "tinyrl.requantize_int16"):
        assert 0 <= multiplier.min() and multiplier.max() < 2**15 and 8 <= shift <= 46
    assert all(0 <= shift <= 15 for shift, *_ in calls(integers, "tinyrl.shift"))
    outside = np.concatenate([rows, rows * 1e3, -rows, np.zeros((1, n_obs)), np.full((1, n_obs), 3e38)])
    answers = oracle.answers(integers, outside.astype(np.float32))  # OverflowError would fail here
    assert np.isfinite(answers).all()


def test_an_accumulator_that_could_overflow_has_coarser_weights() -> None:
    """1,000 weights all alike: 127 each would reach 2^32."""
    weights = [(np.ones((1000, 2)), np.zeros(2)), (np.ones((2, 1)), np.zeros(1))]
    graph = int16(policy(weights), rows_for(weights))
    (weight, _), _ = layers(graph)
    assert 32 <= np.abs(weight).max() < 64
    assert worst_sums(graph) <= INT32_MAX - ROUNDING


def test_a_squashed_action_is_finer_than_int8s() -> None:
    """The same 257 entries, read at codes that end where 16 bits see no more of it rather than 8."""
    weights = [(np.eye(1), np.zeros(1))]
    module, rows = policy(weights, head=squash), np.linspace(-8, 8, 4001, dtype=np.float32)[:, np.newaxis]
    exact = evaluate(module, rows, dtype=np.float64)[:, 0]
    int8 = FoldLut()(QuantizeInt8(rows)(module))
    errors = [float(np.abs(oracle.answers(graph, rows)[:, 0] - exact).max()) for graph in (int16(module, rows), int8)]
    assert errors[0] < 4e-4
    assert errors[1] > 20 * errors[0]


def test_multipliers_are_what_cmsis_nn_makes_of_its_own() -> None:
    rng = np.random.default_rng(0)
    for real in (*rng.uniform(1e-6, 0.5, 2000), 0.5, 2.0**-9, np.nextafter(0.25, 0)):
        (multiplier,), shift = quantize_int16.multipliers(np.array([real]))
        assert 2**14 <= multiplier < 2**15
        assert abs(float(multiplier) * 2.0**-shift - real) <= real * 2.0**-14


# ---- asking for it ----


def test_int16_is_refused_where_it_has_no_ranges_or_the_file_has_its_own(tmp_path: Path) -> None:
    model = dense_policy((4, 8, 2))
    with pytest.raises(
        TinyrlError, match="int16 needs the ranges of observations; give some of a rollout with --calib"
    ):
        compile_policy(save(model, tmp_path), target="host", precision="int16")
    message = "'policy.onnx' is quantised to int8 .QDQ. and has no 16-bit codes; compile the model it was made of"
    with pytest.raises(TinyrlError, match=message):
        compile_model(quantised(model), tmp_path, precision="int16", target="host")
