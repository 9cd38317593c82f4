# SPDX-License-Identifier: Apache-2.0
"""What test vectors expect: int8 to the bit; float32 within a bound that holds in any order, and still catches a mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from policies import compile_model, dense_policy, replay, squashed
from test_quantize_int8 import (
    arg_max,
    arg_max_of,
    clip,
    greater,
    int8_answers,
    policy,
    random_weights,
    rows_for,
    squash,
    unscaled,
)
from tvm import relax
from tvm.relax import op

from relay_passes import FoldLut, QuantizeInt8
from relay_passes.evaluate import evaluate
from tinyrl_tvm.device import qemu
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Vectors
from tinyrl_tvm.project import build, create
from tinyrl_tvm.reference import FUNCTION_ERROR, Expectations, expectations

F = np.float32


def expected_of(module: tvm.IRModule, rows: np.ndarray) -> Expectations:
    return expectations(module, module, "float32", [rows])


# ---- float32: the bound ----


def one_by_one(products: np.ndarray) -> np.ndarray:
    """(n, n_in, n_out) summed in order, rounding at every step: what a loop does."""
    total = np.zeros(products[:, 0].shape, F)
    for k in range(products.shape[1]):
        total = total + products[:, k]
    return total


def fused(products: np.ndarray) -> np.ndarray:
    """As a fused multiply-add: the product is exact, the sum rounds."""
    total = np.zeros(products[:, 0].shape, F)
    for k in range(products.shape[1]):
        total = (total.astype(np.float64) + products[:, k].astype(np.float64)).astype(F)
    return total


def by_halves(products: np.ndarray) -> np.ndarray:
    while products.shape[1] > 1:
        half = products.shape[1] // 2
        rest = products[:, 2 * half :]
        products = np.concatenate([products[:, :half] + products[:, half : 2 * half], rest], axis=1)
    return products[:, 0]


def largest_first(products: np.ndarray) -> np.ndarray:
    order = np.argsort(-np.abs(products), axis=1)
    return one_by_one(np.take_along_axis(products, order, axis=1))


def in_float32(
    weights: Sequence[tuple[np.ndarray, np.ndarray]],
    rows: np.ndarray,
    function: Callable[[np.ndarray], np.ndarray],
    order: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    x = rows
    for index, (weight, bias) in enumerate(weights):
        w, b = weight.astype(F), bias.astype(F)
        kind = np.float64 if order is fused else F
        products = x[:, :, None].astype(kind) * w.astype(kind)
        x = (order(products) + b).astype(F)
        if index < len(weights) - 1:
            x = function(x).astype(F)
    return x


def worst_tanh(x: np.ndarray) -> np.ndarray:
    """As far off as the bound lets a tanh be, upwards."""
    return np.tanh(x.astype(np.float64)) + 0.99 * FUNCTION_ERROR


SHAPES = [(4, 64, 64, 3), (100, 33, 7), (3, 300, 2), (8, *[24] * 9, 4)]


@pytest.mark.parametrize("order", [one_by_one, fused, by_halves, largest_first], ids=lambda order: order.__name__)
@pytest.mark.parametrize("sizes", SHAPES, ids=["usual", "wide", "broad", "ten layers"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_no_order_of_summation_leaves_the_bound(activation: str, sizes: Sequence[int], order: Any) -> None:
    functions = {"relu": (op.nn.relu, lambda x: np.maximum(x, 0)), "tanh": (op.tanh, worst_tanh)}
    ours, theirs = functions[activation]
    for seed in range(2):
        weights, scale = random_weights(sizes, seed), 10.0**seed
        rows = rows_for(weights, 32, seed, scale)
        expected = expected_of(policy(weights, ours), rows)
        error = np.abs(in_float32(weights, rows, theirs, order) - expected.actions)
        assert error.max() <= expected.tolerance


@pytest.mark.parametrize("head", [None, squash, unscaled([2, 5, 0.1], [0, -5, 3]), clip(-0.2, 0.2)])
def test_the_bound_is_small_beside_the_action(head: Any) -> None:
    """A bound that holds is easy; it must also be one that nothing wrong stays within. Measured 1e-4 for two layers of 64."""
    weights = random_weights((8, 64, 64, 3))
    expected = expected_of(policy(weights, op.tanh, head), rows_for(weights))
    assert expected.tolerance < 2e-3 * np.ptp(expected.actions)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_one_wrong_weight_leaves_the_bound(layer: int) -> None:
    weights = random_weights((8, 64, 64, 3))
    rows = rows_for(weights)
    expected = expected_of(policy(weights, op.tanh), rows)
    weights[layer][0][1, 1] += 0.1
    assert np.abs(evaluate(policy(weights, op.tanh), rows) - expected.actions).max() > 3 * expected.tolerance


@pytest.mark.parametrize("activation", ["Tanh", "Sigmoid"])
def test_our_tanh_and_sigmoid_keep_to_their_error_everywhere(activation: str, tmp_path: Path) -> None:
    """A policy that is the function alone, asked 4,096 times; by GCC and clang at their boldest, and by Helium."""
    model = dense_policy((1, 1), weights=[(np.ones((1, 1)), np.zeros(1))], head=squashed(activation))
    edges = [0.0, 1e-45, 1e-30, 8.999, 9.001, 17.9, 18.1, 100.0, 1e10, 3e38]
    points = np.concatenate([np.linspace(-20, 20, 4096 - 2 * len(edges)), edges, np.negative(edges)])
    rows = points.astype(F)[:, None]
    library = compile_model(model, tmp_path, precision="float32", calibration=rows, vectors=rows).library
    function = {"Tanh": np.tanh, "Sigmoid": lambda x: 0.5 + 0.5 * np.tanh(x / 2)}[activation]
    project = create(library, tmp_path / "project", "baremetal")
    build(project)
    assert np.abs(qemu.run(project, rows).actions - function(rows.astype(np.float64))).max() <= FUNCTION_ERROR
    for command in (("gcc", "-O2"), ("gcc", "-Ofast", "-march=native"), ("clang", "-Ofast", "-march=native")):
        vectors = Vectors.of(library)
        exact = function(vectors.observations[vectors.built_in].astype(np.float64))
        assert np.abs(answers_in(replay(library, tmp_path, *command)) - exact).max() <= FUNCTION_ERROR, command


def answers_in(printed: str) -> np.ndarray:
    words = [line.split()[-1] for line in printed.splitlines() if line.startswith("answer")]
    return np.array([np.frombuffer(bytes.fromhex(word), F) for word in words])


# ---- float32: decisions ----


def tied(gap: float) -> tuple[tvm.IRModule, np.ndarray]:
    """Two outputs that differ by `gap`, and a third far below."""
    weights = [(np.zeros((9, 3)), np.array([1.0, 1.0 + gap, -50.0]))]
    return policy(weights, head=arg_max), rows_for(weights, 8)


def test_a_decision_is_expected_to_the_bit() -> None:
    weights = random_weights((8, 64, 5))
    for head in (arg_max, arg_max_of(3, 2), greater):
        expected = expected_of(policy(weights, op.tanh, head), rows_for(weights))
        assert expected.tolerance == 0.0
        assert expected.actions.dtype == np.int32
        np.testing.assert_array_equal(expected.float_actions, expected.actions)


def test_a_tie_that_float32_cannot_tell_is_no_test_vector() -> None:
    message = (
        "on every test vector the two best actions are nearer to each other than float32 can tell; "
        "is the policy trained? give rollout observations with --calibration"
    )
    with pytest.raises(TinyrlError) as raised:
        expected_of(*tied(1e-7))
    assert str(raised.value) == message
    assert len(expected_of(*tied(1e-3)).kept) == 8  # the twin


def test_only_the_rows_in_doubt_are_left_out_and_the_log_says_so() -> None:
    weights = [(np.array([[1.0, -1.0], *8 * [[0.0, 0.0]]]), np.zeros(2))]
    rows = rows_for(weights, 8)
    rows[:3, 0] = [0, 1e-12, -1e-12]
    rows[:3, 1:] = 0
    rows[3:, 0] = 1
    near_zero = expected_of(policy(weights, head=arg_max), rows)
    np.testing.assert_array_equal(near_zero.kept, [1, 2, 3, 4, 5, 6, 7])  # products of 1e-12 are as exact as of 1
    assert near_zero.notes == ("1 test vectors left out: their two best actions are nearer than float32 can tell",)


def test_a_run_of_one_choice_is_never_in_doubt() -> None:
    weights = [(np.zeros((9, 3)), np.array([0.0, 1.0, 2.0]))]
    expected = expected_of(policy(weights, head=arg_max_of(1, 2)), rows_for(weights, 8))
    np.testing.assert_array_equal(expected.actions, [[0, 1]] * 8)
    assert expected.notes == ()


def test_what_is_kept_is_decided_alike_in_any_order() -> None:
    weights = random_weights((20, 64, 4))
    weights[1] = (weights[1][0] * 1e-5, np.zeros(4))
    rows = rows_for(weights, 2000)
    expected = expected_of(policy(weights, op.nn.relu, arg_max), rows)
    for order in (one_by_one, by_halves, largest_first):
        outputs = in_float32(weights, rows[expected.kept], lambda x: np.maximum(x, 0), order)
        np.testing.assert_array_equal(outputs.argmax(1), expected.actions[:, 0])


# ---- int8, and what both share ----


def test_int8_expects_the_oracle_and_keeps_every_row() -> None:
    weights = random_weights((8, 16, 3))
    rows = rows_for(weights)
    for head in (None, arg_max):
        module = policy(weights, op.tanh, head)
        integers = FoldLut()(QuantizeInt8(rows)(module))
        expected = expectations(module, integers, "int8", [rows])
        np.testing.assert_array_equal(expected.kept, np.arange(256))
        np.testing.assert_array_equal(expected.actions.reshape(256, -1), int8_answers(module, rows).reshape(256, -1))
        np.testing.assert_array_equal(
            expected.float_actions,
            evaluate(module, rows, dtype=np.float64).reshape(256, -1).astype(expected.actions.dtype),
        )
        assert expected.tolerance == 0.0


def test_a_float_answer_past_float32_is_its_end() -> None:
    weights = [(np.full((1, 1), 10.0), np.zeros(1))]
    rows = np.array([[3e38], [-3e38], [1.0]], F)
    module = policy(weights)
    expected = expectations(module, FoldLut()(QuantizeInt8(rows[2:])(module)), "int8", [rows])
    np.testing.assert_array_equal(expected.float_actions[:, 0], [np.finfo(F).max, -np.finfo(F).max, 10])


def test_several_inputs_are_read_in_order() -> None:
    weights = random_weights((5, 8, 2))
    rows = rows_for(weights)
    joined = expected_of(policy(weights), rows)
    module = policy(weights, inputs=[(2,), (3,)])
    apart = expectations(module, module, "float32", [rows[:, :2], rows[:, 2:]])
    np.testing.assert_array_equal(apart.actions, joined.actions)
    assert apart.tolerance == joined.tolerance


def test_clipped_observations_are_clipped_before_they_are_bounded() -> None:
    weights = random_weights((4, 8, 2))
    builder = relax.BlockBuilder()
    obs = relax.Var("obs", relax.TensorType((1, 4), "float32"))
    with builder.function("main", [obs]):
        with builder.dataflow():
            x = builder.emit(op.clip(obs, -1, 1))
            for index, (weight, bias) in enumerate(weights):
                x = builder.emit(op.matmul(x, relax.const(weight.astype(F))))
                total = op.add(x, relax.const(bias.astype(F)))
                x = builder.emit_output(total) if index else builder.emit(op.nn.relu(builder.emit(total)))
        builder.emit_func_output(x)
    rows = rows_for(weights) * F(1e6)
    expected = expected_of(builder.get(), rows)
    inside = expected_of(policy(weights), np.clip(rows, -1, 1))
    np.testing.assert_array_equal(expected.actions, inside.actions)
    assert expected.tolerance == pytest.approx(inside.tolerance)
