# SPDX-License-Identifier: Apache-2.0
"""The tuner: trials that are judged on QEMU, sessions that search, stop and go on, and the verb."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from test_records import codes

from relay_passes.fixedpoint import softmax_int16_tables
from schedules import RULES, Rule
from schedules import kernels as k
from tinyrl_tvm import pipeline, toolchain
from tinyrl_tvm.cli import cli
from tinyrl_tvm.device.emulator import emulate
from tinyrl_tvm.device.farm import Lost
from tinyrl_tvm.device.workers import Workers
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.records import Origin, Record, RecordFile, read
from tinyrl_tvm.targets import BOARDS, TARGETS, Board
from tinyrl_tvm.tune import policy as tuning
from tinyrl_tvm.tune.firmware import Bench, Rejected, judge
from tinyrl_tvm.tune.oracle import exam
from tinyrl_tvm.tune.search import TUNERS, Search
from tinyrl_tvm.tune.session import Device, Outcome, Plan, Session
from tinyrl_tvm.tune.task import Task, chosen, setting_of, tasks_of

POLICIES = Path(__file__).parent.parent / "benchmarks" / "policies"
P1 = (POLICIES / "P1.onnx", "--calibration", POLICIES / "P1.npz")
M55, M4 = BOARDS["mps3-an547"], BOARDS["mps2-an386"]
RNG = np.random.default_rng(7)


def weights(n_out: int, n_in: int, dtype: str = "int8") -> np.ndarray:
    if dtype == "float32":
        return RNG.normal(size=(n_out, n_in)).astype(np.float32)
    limit = 127 if dtype == "int8" else 32767 // n_in
    return RNG.integers(-limit, limit + 1, (n_out, n_in)).astype(dtype)


def biases(n: int, dtype: str = "int32") -> np.ndarray:
    return (RNG.normal(size=n) * (1 if dtype == "float32" else 999)).astype(dtype)


def scales(n: int) -> np.ndarray:
    return RNG.uniform(0.5, 2.0, n).astype(np.float32)


KERNELS: dict[str, k.Kernel] = {
    "observations": k.Quantize(scales(5), None, -128, 127, "int8"),
    "observations off zero": k.Quantize(scales(8), np.arange(8, dtype=np.int32) - 300, -128, 127, "int8"),
    "wide observations": k.Quantize(scales(4), None, -16383, 16383, "int32"),
    "clipped observations": k.Clamp(-scales(6), scales(6)),
    "wide layer": k.DenseCodes(weights(20, 4, "int16"), biases(20), None, 9, 0, 0, 127, None),
    "layer": codes(33, 20),
    "layer with a table": codes(64, 16, table=True),
    "layer that is streamed": codes(130, 32, relu=True),
    "layer of int16": k.DenseInt16(
        weights(20, 33), biases(20), np.full(20, 2**14, np.int32), 24, 0, -32768, 32767, None
    ),
    "layer of int16 with a table": k.DenseInt16(
        weights(17, 12), biases(17), np.full(17, 2**14, np.int32), 23, 0, -32768, 32767, np.arange(257, dtype=np.int16)
    ),
    "wide layer to int16": k.DenseInt16(weights(20, 4, "int16"), biases(20), None, 9, 0, 0, 32767, None),
    "numbers of int16": k.HeadOfInt16(weights(3, 20), biases(3), k.ToFloat(scales(3), -scales(3), None)),
    "numbers": k.DenseHead(weights(3, 20), biases(3), k.ToFloat(scales(3), -scales(3), None)),
    "decisions": k.DenseHead(weights(5, 20), biases(5), k.ArgMax((2, 3))),
    "signs": k.DenseHead(weights(9, 20), biases(9), k.Positive()),
    "squashed numbers": k.DenseHead(
        weights(2, 20),
        biases(2),
        k.ThroughTable(
            np.full(2, 2**30, np.int32), 3, RNG.integers(-32767, 32768, 257).astype(np.int16), biases(2), scales(2)
        ),
    ),
    "probabilities": k.SoftmaxCodes((2, 3), (2**30, 2**30), (22, 23), (-400, -200)),
    "probabilities of int16": k.SoftmaxInt16((2, 3), (2**30, 2**30), (1, 0), *softmax_int16_tables()),
    "float probabilities": k.Softmax((2, 3)),
    "float layer": k.DenseFloat(weights(20, 7, "float32"), biases(20, "float32"), "tanh"),
    "float decision": k.DenseHead(weights(4, 20, "float32"), biases(4, "float32"), k.ArgMax((4,))),
    "float numbers": k.DenseHead(
        weights(2, 20, "float32"), biases(2, "float32"), k.Activate("sigmoid", scales(2), scales(2), None, scales(2))
    ),
}


def task_of(kernel: k.Kernel, family: str = "mve") -> Task:
    (task,) = tasks_of([kernel], family)
    return task


# ---- a trial ----


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as started:
        started.start(2)
        yield started


@pytest.fixture(scope="module")
def bench(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(M55, tmp_path_factory.mktemp("bench"), workers, 30.0)


NUMBERS = iter(range(10_000))


def tried(bench: Bench, task: Task, kernel: k.Kernel | None = None, run: Callable[..., str] = emulate) -> float:
    """The default setting of the task, with the parameters of another kernel where one is given."""
    placed = task_of(kernel or task.kernel, task.family).placed(task.default)
    firmware = bench.build(next(NUMBERS), task, placed, placed.module(placed.family, "main"))
    return bench.measure(run, firmware)


@pytest.mark.parametrize("name", KERNELS)
def test_every_kind_of_kernel_passes_its_exam(bench: Bench, name: str) -> None:
    kernel = KERNELS[name]
    cost = tried(bench, task_of(kernel))
    size = kernel.weight.size if hasattr(kernel, "weight") else 4
    assert size / 32 < cost < 100 * size + 500


@pytest.mark.parametrize("name", ["layer of int16", "numbers of int16"])
def test_kernels_of_int16_are_asked_codes_of_sixteen_bits(name: str) -> None:
    questions = exam(KERNELS[name], 64).questions
    assert questions.dtype == np.int16
    assert (questions.min(), questions.max()) == (-32768, 32767)
    assert len(np.unique(questions)) > 1000


def test_a_cost_is_a_count_and_not_a_time(bench: Bench) -> None:
    task = task_of(KERNELS["layer"])
    assert tried(bench, task) == tried(bench, task)


@pytest.mark.parametrize("name", KERNELS)
def test_one_parameter_that_is_wrong_is_a_wrong_answer(bench: Bench, name: str) -> None:
    kernel = KERNELS[name]
    wrong = dataclasses.replace(kernel, **dict(_spoilt(kernel)))
    with pytest.raises(Rejected, match=r"^wrong answers: [\d,]+ of [\d,]+; question \d+ answer \d+ is \w+, not \w+$"):
        tried(bench, task_of(kernel), wrong)


def _spoilt(kernel: k.Kernel) -> Iterator[tuple[str, Any]]:
    if isinstance(kernel, k.Quantize):
        yield "inverse_scale", kernel.inverse_scale * np.float32(1.1)
    elif isinstance(kernel, k.Clamp):
        yield "high", kernel.high * np.float32(0.9)
    elif isinstance(kernel, k.SoftmaxCodes):
        yield "shift", (21, 23)
    elif isinstance(kernel, k.SoftmaxInt16):
        yield "shift", (2, 0)
    elif isinstance(kernel, k.Softmax):
        yield "runs", (3, 2)
    else:
        bias = kernel.bias.copy()
        bias[0] += 1 if isinstance(kernel, k.DenseFloat) else 10_000
        yield "bias", bias


@pytest.mark.parametrize("kind", ["layer", "head"])
@pytest.mark.parametrize("board", [M55, M4], ids=lambda board: board.name)
def test_a_float_that_is_off_by_one_ulp_is_a_wrong_answer(
    board: Board, kind: str, workers: Workers, tmp_path: Path
) -> None:
    weight, bias = weights(4, 8, "float32"), np.abs(biases(4, "float32")) + np.float32(1)

    def with_bias(values: np.ndarray) -> k.Kernel:
        if kind == "layer":
            return k.DenseFloat(weight, values, "identity")
        return k.DenseHead(weight, values, k.Activate("identity"))

    right, wrong = with_bias(bias), with_bias(np.nextafter(bias, np.float32(np.inf)))
    asked = exam(right, 16)
    zeros = int(np.flatnonzero(~asked.questions.any(axis=1))[0])
    np.testing.assert_array_equal(asked.answers[zeros], bias)
    ulps = exam(wrong, 16).answers.view(np.int32) - asked.answers.view(np.int32)
    assert (ulps[zeros] == 1).all()
    bench, task = Bench(board, tmp_path, workers, 30.0), task_of(right, TARGETS[board.target].kernels)
    tried(bench, task)
    with pytest.raises(Rejected, match=r"^wrong answers: "):
        tried(bench, task, wrong)


def test_no_float_is_asked_for_that_cores_answer_in_two_ways() -> None:
    tiny = np.full((2, 3), 1e-39, np.float32)  # which Helium takes for zero
    kernel = k.DenseFloat(tiny, np.zeros(2, np.float32), "identity")
    asked = exam(kernel, 16)
    assert not asked.answers.any() and not asked.questions.any()
    huge = k.DenseFloat(np.full((1, 2), 3e38, np.float32), np.ones(1, np.float32), "relu")
    assert np.isfinite(exam(huge, 16).answers).all()
    with pytest.raises(TinyrlError, match=r"^no question to 'dense 3 -> 2, float32, identity' has a certain answer: "):
        exam(dataclasses.replace(kernel, bias=tiny[:, 0]), 16)


def test_what_is_written_past_the_output_is_rejected(bench: Bench) -> None:
    short = dataclasses.replace(codes(16, 16), weight=weights(16, 16))
    long = task_of(codes(16, 48))
    placed = long.placed(long.default)
    with pytest.raises(Rejected, match=r"^(writes beyond its output|wrong answers: .*)$"):
        firmware = bench.build(next(NUMBERS), task_of(short), placed, placed.module(placed.family, "main"))
        bench.measure(emulate, firmware)
    with pytest.raises(Rejected, match="writes beyond its output"):
        judge("trial\nwrong 0 of 64, overruns 2\nhundredths 100\ndone\n")
    with pytest.raises(Rejected, match="does not report as a trial"):
        judge("policy p1\ndone\n")


def test_what_does_not_compile_is_rejected_with_the_reason(bench: Bench) -> None:
    task = task_of(codes(16, 16))
    calls_c = task_of(codes(16, 16, table=True), "portable").described  # a function that only the C twin defines
    with pytest.raises(Rejected, match=r"^does not build: .*undefined reference to `tinyrl_lookup'"):
        bench.build(next(NUMBERS), task, task.placed(task.default), calls_c)


def test_a_device_that_is_silent_is_not_a_wrong_answer(bench: Bench) -> None:
    def silent(board: Board, firmware: Path, folder: Path, timeout_s: float) -> str:
        raise NoAnswer("it hangs")

    with pytest.raises(NoAnswer):
        tried(bench, task_of(codes(16, 16)), run=silent)


def test_a_crash_is_rejected_in_the_emulators_words(bench: Bench) -> None:
    def crashing(board: Board, firmware: Path, folder: Path, timeout_s: float) -> str:
        raise TinyrlError(f"'{firmware}' faulted on {board.name}: bus error")

    with pytest.raises(Rejected, match=r"^faulted on mps3-an547: bus error$"):
        tried(bench, task_of(codes(16, 16)), run=crashing)


def test_an_exam_asks_the_extremes_and_is_the_same_every_time() -> None:
    first, second = exam(codes(8, 4), 16), exam(codes(8, 4), 16)
    np.testing.assert_array_equal(first.questions, second.questions)
    assert first.questions.min() == -128 and first.questions.max() == 127
    assert len(np.unique(first.answers)) > 8


# ---- tasks ----


def test_layers_that_share_their_code_are_one_task() -> None:
    tasks = tasks_of([codes(16, 16), codes(16, 16, relu=True), codes(16, 16)], "mve")
    assert [(task.index, task.count) for task in tasks] == [(0, 2), (1, 1)]


def test_tasks_are_named_by_number_or_by_name() -> None:
    tasks = tasks_of([codes(16, 16), codes(16, 32), KERNELS["observations"]], "dsp")
    assert [task.index for task in chosen(tasks, None)] == [0, 1]  # the third has nothing to choose
    assert [task.index for task in chosen(tasks, "1, 0")] == [0, 1]
    assert [task.index for task in chosen(tasks, "16 -> 32")] == [1]
    assert [task.index for task in chosen(tasks, "2")] == [2]
    assert [task.index for task in chosen(tasks, "dense 16 -> 16, int8")] == [0]  # as --tasks list prints it
    with pytest.raises(TinyrlError, match="no task '16 -> 3'; have: "):
        chosen(tasks, "16 -> 3")
    with pytest.raises(TinyrlError, match="no task 'a'; have: "):
        chosen(tasks, "a,b")
    with pytest.raises(TinyrlError, match=r"^no task '7'; have: 0 \(dense 16 -> 16, int8\), 1 "):
        chosen(tasks, "7")
    with pytest.raises(TinyrlError, match="no task ''"):
        chosen(tasks, ",")


# ---- sessions, on a device whose costs are known ----


def knobs(_: k.Kernel) -> dict[str, tuple[int, ...]]:
    return {"a": (3, 0, 1, 2), "b": (3, 0, 1, 2), "c": (0, 1, 2)}


def schedule(sch, kernel, layout, choices) -> None:
    if (choices.get("a"), choices.get("c")) == (0, 2):
        raise ValueError("do not go together")
    if (choices.get("b"), choices.get("c")) == (0, 2):
        raise RuntimeError("TVM refuses\nthis schedule")
    RULES["scalar"][k.DenseCodes].schedule(sch, kernel, layout, {"rows": 4, "unroll": 8})
    for name, value in choices.items():  # so that no two settings give the same code
        sch.annotate(sch.get_sblock("narrow_o"), f"known.{name}", value)


@pytest.fixture
def known_costs(monkeypatch: pytest.MonkeyPatch) -> tuple[Task, ...]:
    """Two tasks of 48 settings of which 4 do not go together; all schedule alike, and cost what `cost_of` says."""

    def layout(kernel, choices):
        return RULES["scalar"][k.DenseCodes].layout(kernel, {"rows": 4, "unroll": 8})

    monkeypatch.setitem(RULES, "known", {k.DenseCodes: Rule(layout, schedule, knobs)})
    return tasks_of([codes(16, 16), codes(16, 32, relu=True)], "known")


def cost_of(task: Task, choices: dict[str, int]) -> float:
    return 100 + (task.index + 1) * ((choices["a"] - 1) ** 2 + (choices["b"] - 2) ** 2) + choices["c"]


BEST = {"a": 1, "b": 2, "c": 0}


class FakeBench:
    """Trials without a compiler: the firmware is an empty file in a folder with the trial's number."""

    def __init__(
        self,
        board: Board,
        folder: Path,
        workers: Workers,
        timeout_s: float,
        link: str,
        functions: tuple[str, ...],
    ) -> None:
        self.folder = folder

    def build(self, number: int, task: Task, placed, module) -> Path:
        return self.build_offload(number, task)

    def build_offload(self, number: int, task: Task) -> Path:
        firmware = self.folder / f"trial{number}" / "firmware.elf"
        firmware.parent.mkdir()
        firmware.touch()
        return firmware

    def measure(self, emulate, firmware: Path) -> float:
        return emulate(M55, firmware, firmware.parent, 1.0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyrl_tvm.tune.session.Bench", FakeBench)
    monkeypatch.setattr("tinyrl_tvm.tune.session.Workers.start", lambda workers, number: [])


class Known:
    """A device that answers with the known costs, each after a wait of its own."""

    def __init__(self, tasks: tuple[Task, ...], fail: Callable[[Task, dict[str, int]], None] = lambda *_: None) -> None:
        self.asked: list[tuple[int, tuple]] = []
        self.fail = fail
        self.session: Session
        self.lock = threading.Lock()

    def __call__(self, board: Board, firmware: Path, folder: Path, timeout_s: float) -> float:
        task, setting = self.session.trials[int(firmware.parent.name.removeprefix("trial"))]
        with self.lock:
            self.asked.append((task.index, setting))
            position = len(self.asked)
        time.sleep(0.001 * (position * 7 % 5))  # later ones end first
        self.fail(task, dict(setting))
        return cost_of(task, dict(setting))


def searched(
    tasks: tuple[Task, ...], plan: Plan, known: list[Record] | None = None, fail=lambda *_: None, at_a_time: int = 4
) -> tuple[tuple[Outcome, ...], list[Record], Known]:
    device, records = Known(tasks, fail), list[Record]()
    on = Device("qemu mps3-an547", M55, device, at_a_time)
    device.session = Session(tasks, on, plan, known or [], lambda task, record: records.append(record))
    return device.session.run(), records, device


@pytest.mark.parametrize("tuner", TUNERS)
def test_every_tuner_finds_the_best_of_all_settings(tuner: str, known_costs, fake) -> None:
    outcomes, records, device = searched(known_costs, Plan(1000, tuner))
    assert [dict(outcome.choices) for outcome in outcomes] == [BEST, BEST]
    assert [outcome.best for outcome in outcomes] == [100, 100]
    assert [outcome.at_default for outcome in outcomes] == [105, 110]
    assert [outcome.trials for outcome in outcomes] == [44, 44]
    assert [outcome.rejected for outcome in outcomes] == [3, 3]  # which TVM refuses; those of the rule are no trials
    assert len(records) == 88 and len(set(device.asked)) == len(device.asked) == 82
    refused = [record.rejected for record in records if record.cost is None]
    assert set(refused) == {"does not schedule: this schedule"}


@pytest.mark.parametrize("tuner", TUNERS)
def test_the_same_seed_tries_the_same_and_trials_are_as_many_as_asked(tuner: str, known_costs, fake) -> None:
    runs = [searched(known_costs, Plan(30, tuner, seed)) for seed in (5, 5, 6)]
    tried = [sorted((str(r.kernel), setting_of(r.choices)) for r in records) for _, records, _ in runs]
    assert [len(records) for _, records, _ in runs] == [30, 30, 30]
    assert tried[0] == tried[1]
    assert (tried[0] == tried[2]) == (tuner == "grid")
    winners = [[(o.choices, o.best) for o in outcomes] for outcomes, _, _ in runs]
    assert winners[0] == winners[1]


def test_settings_that_give_the_same_code_are_one_trial(monkeypatch: pytest.MonkeyPatch, known_costs, fake) -> None:
    layout = RULES["known"][k.DenseCodes].layout
    plain = Rule(layout, lambda sch, kernel, lay, choices: schedule(sch, kernel, lay, {}), knobs)
    monkeypatch.setitem(RULES, "known", {k.DenseCodes: plain})
    outcomes, records, _ = searched(known_costs, Plan(1000, "random"))
    assert [outcome.choices for outcome in outcomes] == [task.default for task in known_costs]
    assert len(records) == 2
    assert searched(known_costs, Plan(1000, "random"), records)[1] == []


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TinyrlError, match=r"^TVM's worker processes need \w+: pip install 'tinyrl-tvm\[tune\]'$"):
        Workers()


def test_learning_beats_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over twenty seeds, in 48 trials of 1,296 settings."""
    options = {name: tuple(range(6)) for name in "abcd"}
    rule = Rule(RULES["portable"][k.DenseCodes].layout, lambda *_: None, lambda kernel: options)
    monkeypatch.setitem(RULES, "large", {k.DenseCodes: rule})
    task = task_of(codes(16, 16), "large")

    def best_of(tuner: str, seed: int) -> float:
        search = Search(task, tuner, seed)
        while len(search.costs) < 48:
            for setting in itertools.islice(search.batch(8, None), 8):
                search.knows(setting, sum((value - 3) ** 2 for _, value in setting))
        return min(cost for cost in search.costs.values() if cost is not None)

    found = {tuner: sum(best_of(tuner, seed) for seed in range(20)) for tuner in ("evolutionary", "random")}
    assert found["evolutionary"] < 0.5 * found["random"]


def test_the_default_is_tried_first_and_stands_in_every_record(known_costs, fake) -> None:
    _, records, device = searched(known_costs, Plan(20, "random"), at_a_time=1)
    assert device.asked[:2] == [(0, known_costs[0].default), (1, known_costs[1].default)]
    for record in records:
        assert record.default_cost == (105 if record.kernel == known_costs[0].signature else 110)


def test_recorded_trials_count_and_are_not_measured_again(known_costs, fake) -> None:
    _, first, _ = searched(known_costs, Plan(12, "evolutionary", 3))
    outcomes, second, device = searched(known_costs, Plan(40, "xgb", 3), first)
    assert (len(first), len(second)) == (12, 28)
    assert sum(outcome.trials for outcome in outcomes) == 40
    before = {(record.kernel, setting_of(record.choices)) for record in first}
    assert not before & {(record.kernel, setting_of(record.choices)) for record in second}
    again, nothing, device = searched(known_costs, Plan(40, "xgb", 3), [*first, *second])
    assert (again, nothing, device.asked) == (outcomes, [], [])


def test_records_of_another_device_or_a_knob_that_is_gone_do_not_count(known_costs, fake) -> None:
    _, records, _ = searched(known_costs, Plan(8, "grid"))
    elsewhere = [dataclasses.replace(r, origin=dataclasses.replace(r.origin, device="board")) for r in records]
    stale = [dataclasses.replace(r, choices={**r.choices, "d": 1}) for r in records]
    assert len(searched(known_costs, Plan(8, "grid"), [*elsewhere, *stale])[1]) == 8


def test_rejected_trials_are_counted_and_never_win(known_costs, fake) -> None:
    def fail(task: Task, choices: dict[str, int]) -> None:
        if choices["a"] == 1:
            raise Rejected("wrong answers: 1 of 2")

    outcomes, records, _ = searched(known_costs, Plan(1000, "evolutionary"), fail=fail)
    assert [dict(outcome.choices)["a"] != 1 for outcome in outcomes] == [True, True]
    assert [outcome.best for outcome in outcomes] == [101, 102]
    assert sum(record.rejected == "wrong answers: 1 of 2" for record in records) == 2 * 11


def test_a_trial_that_hangs_is_rejected_and_a_board_that_hangs_is_named(known_costs, fake) -> None:
    def hang(task: Task, choices: dict[str, int]) -> None:
        if choices == BEST:
            raise NoAnswer("'f.elf' did not end within 1 s on mps3-an547")

    outcomes, _, _ = searched(known_costs, Plan(1000, "grid"), fail=hang)
    assert [outcome.best for outcome in outcomes] == [101, 101]

    def silent(task: Task, choices: dict[str, int]) -> None:
        raise NoAnswer("'f.elf' did not end within 1 s on mps3-an547")

    with pytest.raises(TinyrlError) as raised:
        searched(known_costs, Plan(1000, "grid", timeout_s=1.5), fail=silent)
    assert str(raised.value) == (
        "qemu mps3-an547 did not answer within 1.5 s, asked for 'dense 16 -> 16, int8' as it is by default; "
        "is the board there? a slow one needs a longer --timeout"
    )


def test_a_farm_that_is_lost_ends_the_session_and_rejects_no_schedule(known_costs, fake) -> None:
    records: list[Record] = []

    def lost(board: Board, firmware: Path, folder: Path, timeout_s: float) -> str:
        raise Lost("no server of the key 'm55' is left")

    device = Known(known_costs)
    on = Device("qemu mps3-an547", M55, lost)
    device.session = Session(known_costs, on, Plan(20, "random"), (), lambda task, record: records.append(record))
    with pytest.raises(Lost, match=r"^no server of the key 'm55' is left$"):
        device.session.run()
    assert not records


def test_an_error_of_ours_keeps_its_kind(known_costs, fake) -> None:
    def bug(task: Task, choices: dict[str, int]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        searched(known_costs, Plan(1000, "grid"), fail=bug)


def test_a_default_that_is_wrong_can_still_be_beaten(known_costs, fake) -> None:
    def fail(task: Task, choices: dict[str, int]) -> None:
        if setting_of(choices) == task.default:
            raise Rejected("wrong answers: 1 of 2")

    outcomes, records, _ = searched(known_costs, Plan(1000, "random"), fail=fail)
    assert [outcome.at_default for outcome in outcomes] == [None, None]
    assert all(outcome.best is not None for outcome in outcomes)
    assert all(record.default_cost is None for record in records)


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ({"trials": 0}, "0 trials measure nothing; give --trials 1 or more"),
        ({"trials": -5}, "-5 trials measure nothing; give --trials 1 or more"),
        ({"trials": 1, "timeout_s": 0.0}, "a --timeout of 0 s leaves no time; give seconds, as 20"),
        ({"trials": 1, "timeout_s": float("nan")}, "a --timeout of nan s leaves no time; give seconds, as 20"),
        ({"trials": 1, "seed": -1}, "--seed -1 is out of range; give 0 to 2147483646"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(plan: dict, sentence: str) -> None:
    with pytest.raises(TinyrlError) as raised:
        Plan(**plan)
    assert str(raised.value) == sentence


def test_a_child_differs_from_what_was_asked_before(known_costs) -> None:
    task = known_costs[0]
    search = Search(task, "evolutionary", 0)
    asked = list(search.batch(1, None))
    assert asked == [task.default]
    search.knows(task.default, 105)
    for _ in range(3):
        batch = list(itertools.islice(search.batch(8, None), 8))
        asked += batch
        for setting in batch:
            search.knows(setting, cost_of(task, dict(setting)))
    assert len(set(asked)) == len(asked) == 25


# ---- the verb, on QEMU ----


def tinyrl(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


TUNE = ("tune", *P1, "--target", "cortex-m4")
UNKNOWN_TARGET = f"no target 'cortex-m5'; have: {', '.join(sorted(TARGETS))}. Did you mean 'cortex-m55'?"


def test_a_policy_is_tuned_and_compiled_by_what_was_found(tmp_path: Path) -> None:
    records = tmp_path / "r.json"
    result = tinyrl(*TUNE, "-o", records, "--tasks", "1,3", "--trials", "6", "--tuner", "evolutionary", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["measured"], answer["device"], answer["unit"]) == (6, "qemu mps2-an386", "instructions")
    read_back = read(records, "cortex-m4").records
    assert len(read_back) == 6 and all(record.cost for record in read_back)
    for task in answer["tasks"]:
        of_task = [r for r in read_back if r.kernel.to_json() == task["kernel"]]
        assert task["best_cost"] == min(r.cost for r in of_task) <= task["default_cost"]

    # a rerun measures what is missing, and says the same
    again = json.loads(tinyrl(*TUNE, "-o", records, "--tasks", "1,3", "--trials", "6", "--json").stdout)
    assert again["measured"] == 0
    assert [t["choices"] for t in again["tasks"]] == [t["choices"] for t in answer["tasks"]]
    assert read(records, "cortex-m4").records == read_back


def test_earlier_records_begin_another_file(known_costs, fake, tmp_path: Path) -> None:
    device, first = Known(known_costs), tmp_path / "first.json"
    on = Device("qemu mps3-an547", M55, device)
    sessions: list[Session] = []

    def begin(session: Session) -> None:
        device.session = session
        sessions.append(session)

    tuning.tune(known_costs, on, Plan(6, "random"), first, on_session=begin)
    earlier = read(first, "cortex-m55").records
    other = tmp_path / "other.json"
    tuned = tuning.tune(known_costs, on, Plan(8, "random"), other, given=first, on_session=begin)
    assert (len(earlier), tuned.measured) == (6, 2)
    assert read(other, "cortex-m55").records[:6] == earlier
    # given twice, and the file itself given: nothing counts twice
    for given in (first, other):
        assert tuning.tune(known_costs, on, Plan(8, "random"), other, given=given, on_session=begin).measured == 0
    assert len(read(other, "cortex-m55").records) == 8
    elsewhere = dataclasses.replace(on, name="qemu another")
    notes = tuning.tune(known_costs, elsewhere, Plan(1, "random"), other, on_session=begin).notes
    assert notes == ("8 records of qemu mps3-an547 do not count: this is qemu another",)


def test_compile_takes_choices_from_records_and_says_where_they_are_a_neighbours(tmp_path: Path) -> None:
    kernels = pipeline.compile_policy(P1[0], target="cortex-m4", calibration=P1[2]).kernels
    *_, layer, _ = tasks_of(kernels, "dsp")
    origin = Origin("cortex-m4", "qemu mps2-an386")
    own, near = tmp_path / "own.json", tmp_path / "near.json"
    neighbour = dataclasses.replace(layer.signature, n_in=2 * layer.signature.n_in)
    for path, known in ((own, layer.signature), (near, neighbour)):
        with RecordFile(path) as file:
            file.append(Record(origin, known, {"rows": 2, "unroll": 4}, 1.0, 2.0))
    texts, notes = [], []
    for records in (own, near):
        compiled = pipeline.compile_policy(P1[0], target="cortex-m4", calibration=P1[2], tuning_records=records)
        texts.append(compiled.library.files["codegen/host/src/p1_lib0.c"])
        notes.append([note for note in compiled.notes if "tuned" in note])
    assert texts[0] == texts[1]
    assert notes == [[], ["dense 64 -> 64, int8: scheduled as 128 -> 64 was tuned, which is the nearest"]]
    compiled = pipeline.compile_policy(P1[0], target="cortex-m4", precision="float32", tuning_records=own)
    assert "no tuning record is of a kernel of this policy in this precision; the defaults apply" in compiled.notes
    refused = tinyrl("compile", *P1, "--target", "cortex-m55", "-o", tmp_path / "m.tar", "--tuning-records", own)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.endswith("is of target 'cortex-m4', not of 'cortex-m55'; give records of that target\n")


def test_what_to_type_next_compiles_what_was_tuned(tmp_path: Path) -> None:
    """Without the calibration it would be a float policy."""
    records = tmp_path / "r.json"
    result = tinyrl(*TUNE, "-o", records, "--tasks", "3", "--trials", "1", "--tuner", "grid")
    *_, last = result.stdout.splitlines()
    given = f"{P1[0]} --target cortex-m4 --calibration {P1[2]} --tuning-records {records}"
    assert last == f"next: tinyrl-tvm compile {given}"


def test_tasks_are_listed(tmp_path: Path) -> None:
    result = tinyrl(*TUNE, "--tasks", "list", "-o", tmp_path / "r.json")
    assert result.exit_code == 0
    assert re.search(r"│\s+2 │ dense 64 -> 64, int8\s+│\s+1 │\s+32 │ rows, unroll,?\s", result.stdout)
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--trials", "0"), "0 trials measure nothing; give --trials 1 or more"),
        (("--trials", "abc"), "Invalid value for '--trials': 'abc' is not a valid integer."),
        (("--target", "cortex-m5"), UNKNOWN_TARGET),
        (("--tuner", "xgboost"), "no tuner 'xgboost'; have: evolutionary, grid, random, xgb. Did you mean 'xgb'?"),
        (("--device", "jlink"), "no device 'jlink'; have: qemu."),
        (("--device", "qemu:mps3-an547"), "'mps3-an547' has a 'cortex-m55', not a 'cortex-m4'; have: mps2-an386"),
        (("--rpc-tracker", "nowhere", "--rpc-key", "m4"), "'nowhere' is no address; give HOST:PORT, as 127.0.0.1:9190"),
        (("--rpc-tracker", "127.0.0.1:9"), "--rpc-tracker without a key; give the servers' --rpc-key too"),
        (("--rpc-key", "m4"), "--rpc-key m4 without a tracker; give --rpc-tracker HOST:PORT too"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_one_sentence(arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    result = tinyrl(*TUNE, "-o", tmp_path / "r.json", *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"{sentence}\n")
    assert not (tmp_path / "r.json").exists()


def test_a_missing_emulator_is_found_out_before_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_path_of", lambda tool: None)
    result = tinyrl(*TUNE, "-o", tmp_path / "r.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("no 'qemu-system-arm' on PATH; ")
    assert not (tmp_path / "r.json").exists()


def test_a_target_without_a_board_is_refused(tmp_path: Path) -> None:
    result = tinyrl("tune", *P1, "--target", "host", "-o", tmp_path / "r.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("there is no board with a 'host' to measure on; boards have: cortex-m55")


def test_ctrl_c_keeps_what_was_found(tmp_path: Path) -> None:
    records = tmp_path / "r.json"
    command = [sys.executable, "-m", "tinyrl_tvm", *map(str, TUNE), "-o", str(records), "--tuner", "grid"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline_s = time.monotonic() + 300  # the first trials come late on a busy machine
        while not (records.exists() and records.read_bytes().count(b"\n") >= 4) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of ours
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err == f"what was found is in '{records}'; the same command goes on from there\nstopped\n"
    found = read(records, "cortex-m4")
    assert not found.notes
    assert 4 <= len(found.records) < 36
    assert all(record.cost is not None for record in found.records)  # none was rejected for being interrupted


def test_ctrl_c_twice_as_the_session_begins_leaves_nothing(tmp_path: Path) -> None:
    """While its processes are being started, which is when threads were left behind and complained."""
    left, records = tmp_path / "tmp", tmp_path / "r.json"
    left.mkdir()
    command = [sys.executable, "-m", "tinyrl_tvm", *map(str, TUNE), "-o", str(records), "--tuner", "grid"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(left)},
    )
    try:
        deadline_s = time.monotonic() + 300  # the first trials come late on a busy machine
        while not list(left.glob("tinyrl-tune-*")) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.1)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (out, err) == ("", "stopped\n")
    # Python dies of the signal itself where a C extension ran code of its own; to a shell both are 130
    assert process.returncode in (130, -signal.SIGINT)
    assert not list(left.glob("tinyrl-tune-*")) and not records.exists()
    deadline_s = time.monotonic() + 20  # who was killed is gone as soon as the system has noticed
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline_s:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_the_tuner_loads_without_tvms_tensor_intrinsics() -> None:
    """TVM's own import of them takes a minute, this one seconds."""
    script = (
        "from tinyrl_tvm.tune.metaschedule import quick_to_load, ms\n"
        "import sys\n"
        "with quick_to_load():\n    import tvm.s_tir.tensor_intrin\n"
        "assert 'tvm.s_tir.tensor_intrin' not in sys.modules\n"
        "assert not [name for name in sys.modules if 'tensor_intrin.' in name]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
