# SPDX-License-Identifier: Apache-2.0
"""Probabilities as the action: their law, their kernels, and which heads are softmax of the last layer's outputs.

logits -> softmax -> action        one of a Discrete space, or one a part of a MultiDiscrete one
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from each_row import SAME, instructions_of_each_row, random_rows
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from policies import (
    Graph,
    arg_max,
    compile_model,
    dense_policy,
    observations_for,
    probabilities,
    probabilities_of,
    reference_answers,
    replay,
)
from quantised_models import INT8, UINT8, quantised
from test_emit import COMPILERS, WARNINGS, unpack
from test_quantize_int8 import policy, random_weights
from test_schedules import agrees_everywhere, codes_of, library_of
from test_schedules_int16 import codes_of as int16_codes_of
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes import SimplifyActionHead, fixedpoint
from relay_passes.evaluate import evaluate
from relay_passes.head import Probabilities, read_head
from relay_passes.network import UnsupportedGraph, read_network
from schedules import kernels as k
from tinyrl_tvm.device import host, qemu
from tinyrl_tvm.errors import UnsupportedOp
from tinyrl_tvm.float_oracle import Float32, softmax
from tinyrl_tvm.project import build, create
from tinyrl_tvm.targets import BOARDS, Board

F = np.float32
STEP, FINE = 1 / 256, 1 / 32768


def exact(logits: np.ndarray) -> np.ndarray:
    power = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


# ---- the law of codes ----


def likely(codes: np.ndarray, scale: float) -> np.ndarray:
    return (fixedpoint.softmax_int8(codes, *fixedpoint.softmax_scaling(scale)).astype(np.int64) + 128) * STEP


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=255), st.floats(-24, 10))
def test_codes_become_the_nearest_step_but_one(codes: list[int], exponent: float) -> None:
    """255/256 stands for what is more; a number next to the middle of two steps may become either of them."""
    row, scale = np.array(codes), 2.0**exponent
    wanted = np.minimum(exact(row * scale), 1 - STEP)
    np.testing.assert_allclose(likely(row, scale), wanted, rtol=0, atol=STEP / 2 + 1e-5)


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=9), st.integers(-27, 27))
def test_only_differences_count(codes: list[int], more: int) -> None:
    row = np.array(codes)
    np.testing.assert_array_equal(likely(row, 0.1), likely(row + more, 0.1))


def test_a_sum_takes_255_numbers_and_no_more() -> None:
    assert likely(np.zeros(255, np.int8), 0.1).tolist() == [STEP] * 255
    for n in (0, 256):
        with pytest.raises(ValueError, match=f"a softmax of {n} numbers; have: 1 to 255"):
            likely(np.zeros(n, np.int8), 0.1)


@pytest.mark.parametrize("scale", [1e-30, 2.0**-26, 15.9, 16.0, 1e30])
def test_scales_beyond_what_a_shift_writes_answer_alike(scale: float) -> None:
    multiplier, shift, least = fixedpoint.softmax_scaling(scale)
    assert 2**30 <= multiplier < 2**31
    assert 0 <= shift <= 30
    assert -31 * 2**26 <= least * 2**shift < 0
    row = np.array([[-128, 5, 127], [1, 1, 2]])
    np.testing.assert_allclose(
        likely(row, scale), np.minimum(exact(row * min(scale, 1e3)), 1 - STEP), atol=STEP / 2 + 1e-5
    )


@pytest.mark.parametrize(
    ("runs", "scale"),
    [((1,), 0.2), ((2, 3), 2.0**-25), ((4, 1, 12), 0.03), ((4, 1, 12), 15.9), ((255,), 0.05)],
    ids=str,
)
def test_the_kernel_of_codes_answers_by_the_law(runs: tuple[int, ...], scale: float, tmp_path: Path) -> None:
    n, rng = sum(runs), np.random.default_rng(len(runs))
    rows = np.rint(rng.normal(size=(64, n)) * rng.uniform(0, 90, (64, 1)))
    rows[:6] = [[-128], [127], [0], [-1], [5], [6]]
    rows[4:6, ::2] = [[-128], [127]]
    scaling = [
        fixedpoint.softmax_scaling(scale * 2**-i) if i else fixedpoint.softmax_scaling(scale) for i in range(len(runs))
    ]
    kernel = k.SoftmaxCodes(runs, *zip(*scaling, strict=True))
    agrees_everywhere(library_of([codes_of(n), kernel], np.clip(rows, -128, 127)), tmp_path)


# ---- the law of int16's codes ----


def finely(codes: np.ndarray, scale: float) -> np.ndarray:
    how = (*fixedpoint.softmax_int16_scaling(scale), *fixedpoint.softmax_int16_tables())
    return fixedpoint.softmax_int16(codes, *how) * FINE


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=255), st.floats(-24, 2.3))
def test_codes_of_int16_are_within_a_step_and_a_half_a_number(codes: list[int], exponent: float) -> None:
    """What lies 10 below the largest has no step, and is a step and a half."""
    row, scale = np.array(codes), 2.0**exponent
    np.testing.assert_allclose(finely(row, scale), exact(row * scale), rtol=0, atol=(1.5 * len(row) + 2) * FINE)


@pytest.mark.parametrize(("n", "steps"), [(2, 3), (4, 5), (9, 9)])
def test_a_few_codes_of_int16_are_closer_than_int8_has_steps(n: int, steps: int) -> None:
    rng = np.random.default_rng(n)
    for spread in (100, 1000, 10000):
        rows = np.rint(np.clip(rng.normal(size=(3000, n)) * spread, -(2**15), 2**15 - 1)).astype(int)
        np.testing.assert_allclose(finely(rows, 1e-3), exact(rows * 1e-3), rtol=0, atol=steps * FINE)


@given(st.lists(st.integers(-20000, 20000), min_size=2, max_size=9), st.integers(-12768, 12767))
def test_only_differences_of_int16s_codes_count(codes: list[int], more: int) -> None:
    row = np.array(codes)
    np.testing.assert_array_equal(finely(row, 1e-3), finely(row + more, 1e-3))


def test_what_is_sure_is_one_and_what_is_out_of_reach_is_nothing() -> None:
    assert finely(np.array([-5]), 0.1).tolist() == [1]
    for n in (2, 255):
        row = np.full(n, -(2**15))
        row[1] = -(2**15) + 101
        assert finely(row, 0.1).tolist() == [0, 1, *(n - 2) * [0]]


def test_a_sum_that_rounds_up_to_a_power_of_two_is_not_doubled() -> None:
    """Of nine numbers: eight powers of 32762, and one that is what they lack of 2^18 - 1. arm_softmax_s16 answers 2 here."""
    powers, _ = fixedpoint.softmax_int16_tables()
    multiplier, shift = fixedpoint.softmax_int16_scaling(10 / 65535)
    places: np.ndarray = np.arange(65536)
    slope = powers[places // 128 + 1].astype(int) - powers[places // 128]
    found = powers[places // 128] + ((slope * (places % 128) + 64) >> 7)
    (place, *_) = np.flatnonzero(found == 2**18 - 1 - 8 * 32762)
    row = np.array([*8 * [32767], place - 32768])
    answer = fixedpoint.softmax_int16(row, multiplier, shift, *fixedpoint.softmax_int16_tables())
    np.testing.assert_allclose(answer * FINE, exact(row * 10 / 65535), rtol=0, atol=12 * FINE)


def test_runs_shifts_and_tables_of_int16_have_bounds() -> None:
    tables = fixedpoint.softmax_int16_tables()
    assert [(len(table), table.dtype) for table in tables] == [(513, np.int16)] * 2
    for n in (0, 256):
        with pytest.raises(ValueError, match=f"a softmax of {n} numbers; have: 1 to 255"):
            finely(np.zeros(n, np.int16), 0.1)
    with pytest.raises(ValueError, match="a shift of 16 under a softmax; have: -31 to 15"):
        fixedpoint.softmax_int16(np.zeros(2, np.int16), 2**30, 16, *tables)
    with pytest.raises(ValueError, match=re.escape("table has shape (512,); have: (513,)")):
        fixedpoint.softmax_int16(np.zeros(2, np.int16), 2**30, 1, tables[0][1:], tables[1])


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 2.0**-31, 4.9, 5.0, 1e30])
def test_scales_of_int16_beyond_what_a_shift_writes_answer_alike(scale: float) -> None:
    multiplier, shift = fixedpoint.softmax_int16_scaling(scale)
    assert 2**30 <= multiplier < 2**31
    assert -31 <= shift <= 15
    row = np.array([[-(2**15), 5, 2**15 - 1], [1, 1, 9]])
    np.testing.assert_allclose(finely(row, scale), exact(row * np.clip(scale, 0, 5)), rtol=0, atol=7 * FINE)


@pytest.mark.parametrize(
    ("runs", "scale"),
    [((1,), 0.2), ((2, 3), 2.0**-30), ((4, 1, 12), 2e-4), ((4, 1, 12), 4.99), ((9,), 10 / 65535), ((255,), 1e-3)],
    ids=str,
)
def test_the_kernel_of_int16s_codes_answers_by_the_law(runs: tuple[int, ...], scale: float, tmp_path: Path) -> None:
    n, rng = sum(runs), np.random.default_rng(len(runs))
    rows = np.rint(rng.normal(size=(64, n)) * 2 ** rng.uniform(0, 15, (64, 1)))
    rows[:6] = [[-(2**15)], [2**15 - 1], [0], [-1], [5], [6]]
    rows[4:6, ::2] = [[-(2**15)], [2**15 - 1]]
    rows[6, :9] = [*8 * [32767], -10176][-n:]  # of nine, at the least scale, the sum that rounds up
    scaling = [fixedpoint.softmax_int16_scaling(scale * 2.0**-i) for i in range(len(runs))]
    kernel = k.SoftmaxInt16(runs, *zip(*scaling, strict=True), *fixedpoint.softmax_int16_tables())
    agrees_everywhere(library_of([int16_codes_of(n), kernel], np.clip(rows, -(2**15), 2**15 - 1)), tmp_path)


# ---- the law of floats ----


@pytest.mark.parametrize("runs", [(1,), (2,), (5,), (3, 18), (300,)], ids=str)
def test_floats_are_within_the_bound_that_is_stated(runs: tuple[int, ...]) -> None:
    rng = np.random.default_rng(sum(runs))
    rows = (rng.normal(size=(4000, sum(runs))) * np.exp2(rng.uniform(-20, 7, (4000, 1)))).astype(F)
    ends = np.cumsum(runs)[:-1]
    for flushes in (False, True):
        got = np.split(softmax(rows, runs, Float32(flushes)), ends, axis=1)
        for part, logits in zip(got, np.split(rows, ends, axis=1), strict=True):
            wanted = exact(logits)
            assert np.abs(part - wanted).max() <= (part.shape[1] + 8) * 2.0**-24
            np.testing.assert_array_equal(part[np.arange(4000), logits.argmax(1)], part.max(1))
            assert part.min() > 0


def identity(n: int, head: Any) -> onnx.ModelProto:
    return dense_policy((n, n), weights=[(np.eye(n), np.zeros(n))], head=head)


def test_floats_are_the_same_everywhere(tmp_path: Path) -> None:
    """A policy that is the softmax alone: at every distance, of GCC and clang at their boldest, and of Helium."""
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [rng.normal(size=(1000, 7)) * np.exp2(rng.uniform(-30, 8, (1000, 1))), np.zeros((2, 7))]
    ).astype(F)
    rows[1001] = [3e38, -3e38, 63.99, 64.01, 0, 1e-38, 1e-30]
    library = compile_model(identity(7, probabilities_of(4, 3)), tmp_path, precision="float32", vectors=rows).library
    vectors = library.vectors()
    assert len(vectors["observations"]) > 990
    np.testing.assert_allclose(vectors["expected"], vectors["float_action"], rtol=0, atol=12 * 2.0**-24)
    project = create(library, tmp_path / "project", "baremetal")
    build(project)
    measured = qemu.run(project, vectors["observations"])
    np.testing.assert_array_equal(measured.actions.view(np.int32), vectors["expected"].view(np.int32))
    for command in (("gcc", "-O2"), ("gcc", "-Ofast"), ("clang", "-Ofast", "-march=native")):
        assert "PARITY PASS" in replay(library, tmp_path, *command), command


def test_a_logit_that_overflows_is_a_status_and_an_action_of_zeros(tmp_path: Path) -> None:
    weights = [(np.full((2, 2), 1e20), np.zeros(2))]
    model = dense_policy((2, 2), weights=weights, head=probabilities)
    usual = np.array([[1e-20, 0], [0, 2e-20]], F)
    library = compile_model(
        model, tmp_path, precision="float32", target="host", calibration=usual, vectors=usual
    ).library
    measured = host.run(library, np.array([[1e-20, 0], [1e30, 1e30], [1e30, -1e30], [-1e30, 0]], F))
    assert measured.statuses.tolist() == [0, 1, 1, 1]
    np.testing.assert_array_equal(measured.actions[1:], np.zeros((3, 2)))


# ---- heads ----


def softmax_of(*runs: int, axis: int = 1) -> Any:
    def head(emit: Any, x: relax.Expr) -> relax.Expr:
        ends = np.cumsum(runs)
        parts = [emit(op.strided_slice(x, [1], [int(e - r)], [int(e)])) for r, e in zip(runs, ends, strict=True)]
        return op.concat([emit(op.nn.softmax(part, axis=axis)) for part in parts], axis=1)

    return head


def in_a_grid(emit: Any, x: relax.Expr) -> relax.Expr:
    """Parts of the same length, as rows."""
    return op.reshape(emit(op.nn.softmax(emit(op.reshape(x, (1, 2, 3))), axis=2)), (1, 6))


@pytest.mark.parametrize(
    ("head", "runs"),
    [(lambda emit, x: op.nn.softmax(x, axis=-1), (6,)), (softmax_of(1, 3, 2), (1, 3, 2)), (in_a_grid, (3, 3))],
    ids=["one", "several", "grid"],
)
def test_a_softmax_of_every_output_is_a_head(head: Any, runs: Sequence[int]) -> None:
    found = read_head(read_network(policy(random_weights((4, 6)), head=head)))
    assert isinstance(found, Probabilities)
    assert found.runs == tuple(runs)


def across(emit: Any, x: relax.Expr) -> relax.Expr:
    return op.reshape(emit(op.nn.softmax(emit(op.reshape(x, (1, 2, 3))), axis=1)), (1, 6))


def of_some(emit: Any, x: relax.Expr) -> relax.Expr:
    return op.nn.softmax(emit(op.strided_slice(x, [1], [0], [4])), axis=1)


def scaled(emit: Any, x: relax.Expr) -> relax.Expr:
    return op.multiply(emit(op.nn.softmax(x, axis=1)), relax.const(F(2)))


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (across, "softmax of slices of 6 outputs; every output must take part, once and in order"),
        (of_some, "softmax of slices of 6 outputs; every output must take part, once and in order"),
        (scaled, "'multiply' after a softmax cannot be compiled; probabilities are the action itself"),
    ],
)
def test_another_use_of_a_softmax_is_refused(head: Any, sentence: str) -> None:
    with pytest.raises(UnsupportedGraph, match=sentence):
        read_head(read_network(policy(random_weights((4, 6)), head=head)))


def test_what_all_logits_share_goes() -> None:
    """torch's Categorical normalises its logits before it makes probabilities of them."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3), "float32")) -> R.Tensor((3,), "float32"):
            with R.dataflow():
                a = R.nn.log_softmax(x, axis=1)
                b = R.exp(a)
                c = R.sum(b, axis=[1], keepdims=True)
                d = R.subtract(a, c)
                e = R.nn.softmax(d, axis=-1)
                y = R.reshape(e, (3,))
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 3), "float32")) -> R.Tensor((1, 3), "float32"):
            with R.dataflow():
                y = R.nn.softmax(x, axis=1)
                R.output(y)
            return y

    after = SimplifyActionHead()(Before)
    tvm.ir.assert_structural_equal(after, Expected, map_free_vars=True)
    rows = np.random.default_rng(0).normal(size=(16, 3)).astype(F)
    np.testing.assert_allclose(evaluate(after, rows), exact(rows), atol=1e-6)


def test_parts_side_by_side_stay() -> None:
    """Columns of a matrix: their numbers alternate."""

    def head(emit: Any, x: relax.Expr) -> relax.Expr:
        parts = [emit(op.strided_slice(x, [1], [start], [start + 3])) for start in (0, 3)]
        columns = [emit(op.nn.softmax(emit(op.reshape(part, (3, 1))), axis=0)) for part in parts]
        return op.reshape(emit(op.concat(columns, axis=1)), (1, 6))

    module = policy(random_weights((4, 6)), head=head)
    rows = np.random.default_rng(0).normal(size=(16, 4)).astype(F)
    np.testing.assert_array_equal(evaluate(SimplifyActionHead()(module), rows), evaluate(module, rows))
    with pytest.raises(UnsupportedGraph, match="softmax of slices of 6 outputs"):
        read_head(read_network(module))


def test_what_differs_between_logits_stays() -> None:
    weights = random_weights((4, 6))

    def head(emit: Any, x: relax.Expr) -> relax.Expr:
        return op.nn.softmax(emit(op.add(x, relax.const(np.arange(6, dtype=F)))), axis=1)

    module = policy(weights, head=head)
    tvm.ir.assert_structural_equal(SimplifyActionHead()(module), module, map_free_vars=True)


def test_the_likelihoods_of_a_categorical_are_its_softmax(tmp_path: Path) -> None:
    def categorical(graph: Graph, x: str, n: int) -> tuple[str, int, list[int]]:
        total = graph.add("ReduceLogSumExp", x, graph.constant([1], np.int64), keepdims=1)
        return graph.add("Softmax", graph.add("Sub", x, total), axis=-1), TensorProto.FLOAT, [1, n]

    model = dense_policy((4, 9, 3), head=categorical)
    library = compile_model(model, tmp_path, precision="float32", target="host").library
    vectors = library.vectors()
    reference = reference_answers(model, vectors["observations"])
    np.testing.assert_allclose(vectors["expected"], reference, rtol=0, atol=1e-5)
    assert host.run(library).parity == "PASS"


# ---- whole policies ----


@pytest.mark.parametrize("precision", ["int8", "int16", "float32"])
@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_board_answers_as_the_oracle(board: Board, precision: str, tmp_path: Path) -> None:
    model = dense_policy((5, 13, 9), head=probabilities_of(4, 2, 3), gain=3.0)
    library = compile_model(model, tmp_path, precision=precision, target=board.target).library
    project = create(library, tmp_path / "project", "baremetal", {"board": board.name})
    build(project)
    result = qemu.run(project)
    assert result.parity == "PASS"
    assert not result.statuses.any()


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("precision", ["int8", "int16", "float32"])
def test_the_kernels_compile_without_a_warning(precision: str, compiler: str, tmp_path: Path) -> None:
    library = compile_model(dense_policy((4, 5), head=probabilities_of(2, 3)), tmp_path, precision=precision).library
    (source,) = [path for path in unpack(library, tmp_path) if path.name.endswith("_lib1.c")]
    command = [
        *COMPILERS[compiler],
        *WARNINGS,
        "-I",
        source.parents[1] / "include",
        "-c",
        source,
        "-o",
        tmp_path / "o.o",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("precision", ["int8", "int16", "float32"])
def test_no_number_shows_in_the_count_of_instructions(precision: str, tmp_path: Path) -> None:
    model = dense_policy((5, 13, 9), head=probabilities_of(4, 5), gain=3.0)
    library = compile_model(model, tmp_path, precision=precision).library
    rows = random_rows(library, 200)
    rows[1::2] *= 20  # some logits alone count, and some are all alike
    rows[::10] = 0
    counts = instructions_of_each_row(library, rows, tmp_path / "counted", "mps3-an547")
    assert np.ptp(counts) < SAME


def test_int8_probabilities_are_near_the_float_policys(tmp_path: Path) -> None:
    """Half a step of the answer, half a step of the logits, and what the layers before lost: of a chance in [0, 1]."""
    for gain in (0.5, 1.0, 2.0):
        model = dense_policy((6, 32, 32, 4), head=probabilities, gain=gain, seed=3)
        rows = observations_for(model, 512)
        vectors = compile_model(model, tmp_path, target="host", calibration=rows, vectors=rows[:128]).library.vectors()
        error = np.abs(vectors["expected"] - vectors["float_action"])
        assert error.mean() < 0.01 * gain
        assert ((vectors["expected"] * 256) % 1 == 0).all()


@pytest.mark.parametrize("cmsis_nn", [False, True], ids=["ours", "CMSIS-NN"])
@pytest.mark.parametrize(
    ("sizes", "runs"), [((6, 32, 32, 4), (4,)), ((4, 18, 9), (4, 2, 3)), ((20, 32, 18), (18,)), ((12, 5), (5,))]
)
def test_int16_probabilities_are_nearer_the_float_policys_than_int8s(
    sizes: tuple[int, ...], runs: tuple[int, ...], cmsis_nn: bool, tmp_path: Path
) -> None:
    for gain in (0.5, 1.0, 2.0):
        model = dense_policy(sizes, head=probabilities_of(*runs), gain=gain, seed=3)
        rows, error = observations_for(model, 512), {}
        for precision in ("int8", "int16"):
            made = compile_model(
                model,
                tmp_path,
                target="cortex-m55",
                precision=precision,
                calibration=rows,
                vectors=rows[:128],
                cmsis_nn=cmsis_nn,
            )
            vectors = made.library.vectors()
            error[precision] = float(np.abs(vectors["expected"] - vectors["float_action"]).mean())
        assert ((vectors["expected"] / FINE) % 1 == 0).all()
        assert error["int16"] < 0.002 * gain
        assert error["int16"] < (0.85 if cmsis_nn else 0.6) * error["int8"]


def test_a_logit_beyond_calibrations_has_room_in_int16(tmp_path: Path) -> None:
    """Half of their span over and under what was seen."""
    model = dense_policy((12, 3), weights=[(np.eye(12)[:3], np.zeros(3))], head=probabilities)
    rows = np.random.default_rng(0).uniform(-1, 1, (256, 12)).astype(F)
    library = compile_model(
        model, tmp_path, target="host", precision="int16", calibration=rows, vectors=1.9 * rows
    ).library
    vectors = library.vectors()
    assert np.abs(vectors["expected"] - vectors["float_action"]).max() < 0.002


@pytest.mark.parametrize("precision", ["int8", "int16"])
def test_integers_refuse_what_has_no_room(precision: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOp, match=f"a softmax of 256 numbers; {precision} computes 255 at most"):
        compile_model(dense_policy((3, 256), head=probabilities), tmp_path, precision=precision, target="host")

    def through(activation: str) -> Any:
        return lambda graph, x, n: probabilities(graph, graph.add(activation, x), n)

    sentence = (
        f"a softmax reads what is computed of the last dense layer's output, and {precision} has one of its own codes"
    )
    with pytest.raises(UnsupportedOp, match=sentence):
        compile_model(dense_policy((3, 4), head=through("Tanh")), tmp_path, precision=precision, target="host")
    floats = compile_model(dense_policy((3, 4), head=through("Tanh")), tmp_path, precision="float32", target="host")
    assert host.run(floats.library).parity == "PASS"


@pytest.mark.parametrize("activations", [INT8, UINT8], ids=["int8", "uint8"])
@pytest.mark.parametrize("coded", [True, False], ids=["its codes", "without codes"])
def test_a_quantised_models_softmax_is_within_two_steps(activations: Any, coded: bool, tmp_path: Path) -> None:
    """ONNX Runtime writes steps of 1/255, and rounds exp in float; ours are 1/256."""
    operators = ["Gemm", "Relu", "Softmax"] if coded else ["Gemm", "Relu"]
    model = quantised(
        dense_policy((6, 17, 4), head=probabilities, gain=2.0), activations=activations, operators=operators
    )
    rows = observations_for(model, 200)
    vectors = compile_model(model, tmp_path, target="host", vectors=rows).library.vectors()
    assert np.abs(vectors["expected"] - reference_answers(model, rows)).max() <= 2 * STEP + 1e-6


def test_an_arg_max_still_needs_no_softmax(tmp_path: Path) -> None:
    def decided(graph: Graph, x: str, n: int) -> tuple[str, int, list[int]]:
        return arg_max(graph, probabilities(graph, x, n)[0], n)

    compiled = compile_model(dense_policy((3, 8, 4), head=decided), tmp_path, target="host")
    assert not any(isinstance(kernel, k.SoftmaxCodes) for kernel in compiled.kernels)
