# SPDX-License-Identifier: Apache-2.0
"""What test vectors expect, to the bit: near the policy in exact numbers, and what C and Helium answer."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jinja2
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
from tinyrl_tvm.float_oracle import Float32
from tinyrl_tvm.project import build, create
from tinyrl_tvm.reference import Expectations, expectations

F = np.float32
IEEE = Float32(flushes=False)
FUNCTION_ERROR = 1e-6  # our float32 tanh and sigmoid; measured 3.3e-7


def expected_of(module: tvm.IRModule, rows: np.ndarray) -> Expectations:
    return expectations(module, module, "float32", [rows])


# ---- float32: one rounding a step ----


def nearest(value: Fraction) -> np.float32:
    """The float32 nearest to an exact number, the even one of two."""
    near = F(float(value))
    around = [near, np.nextafter(near, F(-np.inf)), np.nextafter(near, F(np.inf))]
    return min(around, key=lambda x: (abs(Fraction(float(x)) - value), int(x.view(np.int32)) & 1))


def triples(n: int, seed: int = 0) -> np.ndarray:
    """(n, 3) float32: sums of every size, a third of them next to a number halfway between two float32."""
    rng = np.random.default_rng(seed)
    a, b = (np.ldexp(rng.uniform(-2, 2, n), rng.integers(-8, 8, n)).astype(F) for _ in range(2))
    c = np.ldexp(rng.uniform(-2, 2, n), rng.integers(-40, 40, n)).astype(F)
    few = slice(0, n // 3)  # few bits: products and sums end on or by a half
    a[few] = (rng.integers(1, 2**12, n // 3) * 2 + 1).astype(F)
    b[few] = (rng.integers(1, 2**12, n // 3) * 2 + 1).astype(F)
    c[few] = (rng.choice([-1.0, 1.0], n // 3) * np.exp2(rng.integers(-60, 50, n // 3))).astype(F)
    cancelling = slice(n // 3, n // 2)
    c[cancelling] = -np.nextafter(
        a[cancelling] * b[cancelling], rng.choice([F(-np.inf), F(np.inf)], len(c[cancelling]))
    )
    return np.stack([a, b, c], axis=1)


def test_the_oracles_multiply_add_rounds_once() -> None:
    cases = triples(3000)
    got = IEEE.fma(*cases.T)
    wanted = [nearest(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))) for a, b, c in cases]
    np.testing.assert_array_equal(got, wanted)
    a, b, c = cases.astype(np.float64).T
    assert (got != (a * b + c).astype(F)).sum() > 20  # the cases tell it from rounding twice
    assert (got != (cases[:, 0] * cases[:, 1] + cases[:, 2])).sum() > 500  # and from a rounded product


def test_numbers_below_the_smallest_normal_count_or_do_not() -> None:
    tiny, one, zero = (np.array([x], F) for x in (1e-40, 1.0, 0.0))
    assert IEEE.fma(tiny, one, zero) == F(1e-40)
    assert Float32(flushes=True).fma(tiny, one, zero) == 0
    assert Float32(flushes=True).multiply(np.array([1e-30], F), np.array([1e-10], F)) == 0
    assert Float32(flushes=True).fma(*(np.array([x], F) for x in (1e-30, 1e-10, 2e-38))) > F(2e-38)


ASK_FMA = """
#include <stdint.h>
#include <stdio.h>
#include "float.h"
int main(void) {
    float in[3];
    while (fread(in, sizeof in, 1, stdin) == 1) {
        const float out = tinyrl_fma(in[0], in[1], in[2]);
        fwrite(&out, sizeof out, 1, stdout);
    }
    return 0;
}
"""
IN_DOUBLE = ("-U__FP_FAST_FMAF", "-U__ARM_FEATURE_FMA", "-U__FMA__", "-D__SSE2_MATH__=1")
IN_INTEGERS = ("-U__FP_FAST_FMAF", "-U__ARM_FEATURE_FMA", "-U__FMA__", "-U__SSE2_MATH__")


@pytest.mark.parametrize("how", [(), IN_DOUBLE, IN_INTEGERS], ids=["as it comes", "in double", "in integers"])
@pytest.mark.parametrize("command", [("gcc", "-O2"), ("gcc", "-Ofast"), ("clang", "-Ofast")], ids=" ".join)
def test_the_c_twin_fuses_as_the_oracle_does(command: tuple[str, ...], how: tuple[str, ...], tmp_path: Path) -> None:
    """As the core does it, or in software: also where -ffast-math would simplify an error of rounding away."""
    source = jinja2.Environment(loader=jinja2.PackageLoader("tinyrl_tvm.emit"), autoescape=False)
    (tmp_path / "float.h").write_text(source.get_template("float.c.jinja").render(uses=["tinyrl_fma"]))
    (tmp_path / "ask.c").write_text(ASK_FMA)
    strict = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wno-macro-redefined")
    strict = strict[:-1] if command[0] == "gcc" else strict
    program = tmp_path / "ask"
    subprocess.run([*command, *how, *strict, tmp_path / "ask.c", "-o", program], check=True)
    huge = np.array(
        [[3e38, 10, -3e38], [3e38, -10, 0], [2, 3, np.inf], [3e38, 3e38, -np.inf], [0, 5, 7], [5, 0, -7]], F
    )
    cases = np.concatenate([triples(300_000, seed=1), huge, np.array([[1, 1, 0], [1, 1, -1], [1e-30, 1e-30, 1]], F)])
    wanted = IEEE.fma(*cases.T)
    answered = subprocess.run([program], input=cases.tobytes(), capture_output=True, check=True).stdout
    np.testing.assert_array_equal(np.frombuffer(answered, F), wanted)


# ---- float32: the oracle is the policy ----


def bound_of(
    weights: Sequence[tuple[np.ndarray, np.ndarray]], rows: np.ndarray, function: Any, error: float
) -> np.ndarray:
    """How far float32 may be from the policy in exact numbers, (n, n_out), in any order of summation.

    |error_out| <= |error_in| @ |W| + g (|x| @ |W| + |b|), g = (n + 2) u / (1 - (n + 2) u), u = 2^-24; a function adds its
    own error. Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1.
    """
    x, bound = rows.astype(np.float64), np.zeros(rows.shape)
    for index, (weight, bias) in enumerate(weights):
        w, b = weight.astype(F).astype(np.float64), bias.astype(F).astype(np.float64)
        n = (len(w) + 2) * 2.0**-24
        bound = bound @ np.abs(w) + n / (1 - n) * (np.abs(x) @ np.abs(w) + np.abs(b))
        x = x @ w + b
        if index < len(weights) - 1:
            x, bound = function(x), bound + error
    return bound


SHAPES = [(4, 64, 64, 3), (100, 33, 7), (3, 300, 2), (5, 2), (8, *[24] * 9, 4)]


@pytest.mark.parametrize("sizes", SHAPES, ids=["usual", "wide", "broad", "one layer", "ten layers"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_oracle_lies_within_what_float32_may_lose(activation: str, sizes: Sequence[int]) -> None:
    ours, theirs, error = {
        "relu": (op.nn.relu, lambda x: np.maximum(x, 0), 0.0),
        "tanh": (op.tanh, np.tanh, FUNCTION_ERROR),
    }[activation]
    for seed in range(2):
        weights = random_weights(sizes, seed)
        rows = rows_for(weights, 32, seed, 10.0**seed)
        expected = expected_of(policy(weights, ours), rows)
        bound = bound_of(weights, rows, theirs, error)[expected.kept]
        assert expected.tolerance == 0.0
        assert len(expected.kept) == 32
        assert (np.abs(expected.actions.astype(np.float64) - expected.float_actions) <= bound + 2.0**-22).all()


@pytest.mark.parametrize("head", [squash, unscaled([2, 5, 0.1], [0, -5, 3]), clip(-0.2, 0.2)])
def test_the_oracle_reads_every_head(head: Any) -> None:
    weights = random_weights((8, 64, 64, 3))
    expected = expected_of(policy(weights, op.tanh, head), rows_for(weights))
    np.testing.assert_allclose(expected.actions, expected.float_actions, rtol=1e-4, atol=1e-4)
    assert expected.actions.dtype == F


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_one_wrong_weight_is_another_answer(layer: int) -> None:
    weights = random_weights((8, 64, 64, 3))
    rows = rows_for(weights)
    expected = expected_of(policy(weights, op.tanh), rows)
    weights[layer][0][1, 1] = np.nextafter(F(weights[layer][0][1, 1]), F(np.inf))
    changed = expected_of(policy(weights, op.tanh), rows)
    assert not np.array_equal(changed.actions, expected.actions)


@pytest.mark.parametrize("activation", ["Tanh", "Sigmoid"])
def test_our_tanh_and_sigmoid_are_near_and_the_same_everywhere(activation: str, tmp_path: Path) -> None:
    """A policy that is the function alone, asked 4,096 times; by GCC and clang at their boldest, and by Helium."""
    model = dense_policy((1, 1), weights=[(np.ones((1, 1)), np.zeros(1))], head=squashed(activation))
    edges = [0.0, 1e-30, 8.999, 9.001, 17.9, 18.1, 100.0, 1e10, 3e38]
    points = np.concatenate([np.linspace(-20, 20, 4096 - 2 * len(edges)), edges, np.negative(edges)])
    rows = points.astype(F)[:, None]
    library = compile_model(model, tmp_path, precision="float32", calibration=rows, vectors=rows).library
    vectors = library.vectors()
    assert len(vectors["observations"]) == 4096
    function = {"Tanh": np.tanh, "Sigmoid": lambda x: 0.5 + 0.5 * np.tanh(x / 2)}[activation]
    exact = function(vectors["observations"].astype(np.float64))
    assert np.abs(vectors["expected"] - exact).max() <= FUNCTION_ERROR
    project = create(library, tmp_path / "project", "baremetal")
    build(project)
    np.testing.assert_array_equal(bits(qemu.run(project, rows).actions), bits(vectors["expected"]))
    for command in (("gcc", "-O2"), ("gcc", "-Ofast", "-march=native"), ("clang", "-Ofast", "-march=native")):
        assert "PARITY PASS" in replay(library, tmp_path, *command), command


def bits(values: np.ndarray) -> np.ndarray:
    return values.astype(F).view(np.int32)


# ---- float32: which rows are test vectors ----


def test_a_decision_is_expected_to_the_bit() -> None:
    weights = random_weights((8, 64, 5))
    for head in (arg_max, arg_max_of(3, 2), greater):
        expected = expected_of(policy(weights, op.tanh, head), rows_for(weights))
        assert expected.tolerance == 0.0
        assert expected.actions.dtype == np.int32
        np.testing.assert_array_equal(expected.float_actions, expected.actions)


def test_the_first_of_equals_is_decided_for() -> None:
    weights = [(np.zeros((9, 3)), np.array([1.0, 1.0, -50.0]))]
    expected = expected_of(policy(weights, head=arg_max), rows_for(weights, 8))
    np.testing.assert_array_equal(expected.actions, np.zeros((8, 1)))
    assert expected.notes == ()


def test_rows_that_leave_float32_on_the_way_are_no_test_vectors_and_the_log_says_so() -> None:
    weights = [(np.full((1, 1), 1e-9), np.zeros(1)), (np.full((1, 1), 1e20), np.zeros(1))]
    rows = np.array([[1.0], [1e-30], [3e38], [0.0]], F)
    module = policy(weights, op.nn.relu)
    expected = expected_of(module, rows)
    np.testing.assert_array_equal(expected.kept, [0, 3])  # 1e-39 is no number to Helium; 3e49 is none to anybody
    assert expected.notes == ("2 test vectors left out: a number on the way is past 3.4e38, or below 1.2e-38",)
    with pytest.raises(TinyrlError, match=r"^on every test vector a number on the way leaves float32: it is past"):
        expected_of(module, rows[1:3])


def test_what_is_too_small_to_matter_leaves_nothing_out() -> None:
    """A number below 2^-126 that a bias swallows is the same with and without it."""
    weights = [(np.full((1, 1), 1e-9), np.ones(1)), (np.full((1, 1), 1e20), np.zeros(1))]
    rows = np.array([[1e-30], [1e-45], [-1e-40]], F)
    assert len(expected_of(policy(weights, op.nn.relu), rows).kept) == 3


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


def test_clipped_observations_are_clipped_first() -> None:
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
