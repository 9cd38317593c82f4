# SPDX-License-Identifier: Apache-2.0
"""CMSIS-NN as a candidate of the tuner: its layers are judged and counted as our kernels are, and what was measured
decides who computes a layer."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from cmsis_nn_checkouts import CHECKOUTS, STAND_IN
from policies import compile_model
from test_cmsis_nn import MODELS, PER_CHANNEL, PER_TENSOR, compiled, on_board
from test_records import codes
from test_tune import BEST, M4, M55, Known, cost_of, fake, known_costs  # noqa: F401 - fixtures

from schedules.signature import signature
from tinyrl_tvm import cmsis_nn
from tinyrl_tvm.cli import cli
from tinyrl_tvm.cmsis_nn import FullyConnected
from tinyrl_tvm.device.emulator import emulate
from tinyrl_tvm.device.workers import Workers
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.pipeline import Compiled
from tinyrl_tvm.records import CmsisNN, Origin, Record, RecordFile, read
from tinyrl_tvm.targets import TARGETS, Board
from tinyrl_tvm.tune.checkout import build_of
from tinyrl_tvm.tune.firmware import Bench, Rejected
from tinyrl_tvm.tune.session import Device, Outcome, Plan, Session
from tinyrl_tvm.tune.task import Task, chosen, tasks_of

CLANG = "clang --target=arm-none-eabi --sysroot=/usr/lib/arm-none-eabi"
P1 = Path(__file__).parent.parent / "benchmarks" / "policies" / "P1.onnx"
ORIGIN = Origin("cortex-m4", "qemu mps2-an386")


def tasks_for(made: Compiled, target: str) -> tuple[Task, ...]:
    offloads = [called if isinstance(called, FullyConnected) else None for called in made.called]
    return tasks_of(made.kernels, TARGETS[target].kernels, offloads)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as started:
        yield started


# ---- a trial ----


@pytest.mark.parametrize("checkout", CHECKOUTS)
@pytest.mark.parametrize("board", [M55, M4], ids=lambda board: board.name)
def test_its_layers_pass_the_exam_and_one_wrong_parameter_fails_it(
    board: Board, checkout: str, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMSIS_NN_PATH", str(CHECKOUTS[checkout]))
    tasks = [
        task
        for name in ("qdq", "qdq_per_channel", "tanh")
        for task in tasks_for(compiled(name, board.target), board.target)
        if task.offload is not None
    ]
    functions = tuple(dict.fromkeys(task.offload.function for task in tasks if task.offload))
    assert set(functions) == {PER_TENSOR, PER_CHANNEL}
    bench = Bench(board, tmp_path, workers, 60.0, functions=functions)
    for number, task in enumerate(tasks):
        assert task.offload is not None
        cost = bench.measure(emulate, bench.build_offload(2 * number, task))
        assert task.offload.weight.size / 16 < cost < 100 * task.offload.weight.size + 2000
        bias = task.offload.bias + np.int32(10_000)
        wrong = dataclasses.replace(task, offload=dataclasses.replace(task.offload, bias=bias))
        with pytest.raises(Rejected, match=r"^wrong answers: "):
            bench.measure(emulate, bench.build_offload(2 * number + 1, wrong))


def test_a_layer_that_it_refuses_is_rejected(workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's status is not success, and it wrote nothing."""
    monkeypatch.setenv("CMSIS_NN_PATH", str(STAND_IN))
    task = next(task for task in tasks_for(compiled("qdq", "cortex-m4"), "cortex-m4") if task.offload)
    assert task.offload is not None
    refused = dataclasses.replace(task, offload=dataclasses.replace(task.offload, low=-129))
    bench = Bench(M4, tmp_path, workers, 60.0, functions=(task.offload.function,))
    with pytest.raises(Rejected, match=r"^wrong answers: .* question 0 answer 0 is a5, not "):
        bench.measure(emulate, bench.build_offload(0, refused))


def test_an_old_release_is_rejected_in_its_own_words(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = next(task for task in tasks_for(compiled("qdq", "cortex-m4"), "cortex-m4") if task.offload)
    assert task.offload is not None
    old = tmp_path / "old"
    shutil.copytree(STAND_IN, old)
    header = old / "Include" / "arm_nnfunctions.h"
    header.write_text(f"#define STAND_IN_RELEASE 5\n{header.read_text()}")
    monkeypatch.setenv("CMSIS_NN_PATH", str(old))
    bench = Bench(M4, tmp_path, workers, 60.0, functions=(task.offload.function,))
    with pytest.raises(Rejected, match=r"^does not build: .*this CMSIS-NN is older than 6\.0\.0"):
        bench.build_offload(0, task)


def test_layers_of_two_functions_are_two_tasks_and_a_lone_candidate_is_a_choice() -> None:
    called = [call for call in compiled("qdq").called if isinstance(call, FullyConnected)]
    per_tensor, per_channel = called[0], dataclasses.replace(called[0], function=PER_CHANNEL)
    kernels = [codes(16, 16)] * 4
    tasks = tasks_of(kernels, "portable", [per_tensor, None, per_channel, per_tensor])
    assert [(task.offload, task.count) for task in tasks] == [(per_tensor, 2), (None, 1), (per_channel, 1)]
    assert [len(task.settings) for task in tasks] == [1, 1, 1]
    assert [task.index for task in chosen(tasks, None)] == [0, 2]


# ---- a session, on a device whose costs are known ----


def candidates(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    """The first of two tasks is CMSIS-NN's to try."""
    layer = next(call for call in compiled("qdq").called if isinstance(call, FullyConnected))
    return (dataclasses.replace(tasks[0], offload=layer), *tasks[1:])


@pytest.fixture
def both(known_costs, fake, monkeypatch: pytest.MonkeyPatch) -> tuple[Task, ...]:  # noqa: F811
    monkeypatch.setenv("CMSIS_NN_PATH", str(STAND_IN))
    return candidates(known_costs)


class Candidate(Known):
    """As a device whose costs are known, and CMSIS-NN's is `cost`."""

    def __init__(self, tasks: tuple[Task, ...], cost: float | Exception) -> None:
        super().__init__(tasks)
        self.cost = cost

    def __call__(self, board: Board, firmware: Path, folder: Path, timeout_s: float) -> float:
        _, setting = self.session.trials[int(firmware.parent.name.removeprefix("trial"))]
        if setting:
            return super().__call__(board, firmware, folder, timeout_s)
        self.asked.append((-1, ()))
        if isinstance(self.cost, Exception):
            raise self.cost
        return self.cost


def searched(
    tasks: tuple[Task, ...], cost: float | Exception, trials: int, known: list[Record] | None = None
) -> tuple[tuple[Outcome, ...], list[Record], Candidate]:
    device, records = Candidate(tasks, cost), list[Record]()
    on = Device("qemu mps3-an547", M55, device, 4)
    plan = Plan(trials, "grid", timeout_s=1.5)
    device.session = Session(tasks, on, plan, known or [], lambda task, record: records.append(record))
    return device.session.run(), records, device


@pytest.mark.parametrize(("cost", "offloads"), [(99.0, True), (100.0, False), (101.0, False)])
def test_it_is_measured_once_and_wins_when_it_costs_less(cost: float, offloads: bool, both: tuple[Task, ...]) -> None:
    outcomes, records, device = searched(both, cost, 1000)
    assert [outcome.by_cmsis_nn for outcome in outcomes] == [cost, None]
    assert [outcome.offloads for outcome in outcomes] == [offloads, False]
    assert [outcome.cheapest for outcome in outcomes] == [min(cost, 100), 100]
    assert [dict(outcome.choices) for outcome in outcomes] == [BEST, BEST]
    assert [outcome.trials for outcome in outcomes] == [45, 44]
    assert device.asked.count((-1, ())) == 1
    first, *others = records
    assert first.cmsis_nn == CmsisNN(PER_TENSOR, build_of(PER_TENSOR))
    assert (first.kernel, first.cost, dict(first.choices)) == (both[0].signature, cost, {})
    assert all(record.cmsis_nn is None for record in others)


def test_a_session_goes_on_and_another_build_is_measured_anew(
    both: tuple[Task, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, alone, _ = searched(both, 99.0, 1)
    assert [record.cost for record in alone] == [99.0]
    _, first, _ = searched(both, 99.0, 5, alone)
    assert len(first) == 4 and not any(record.cmsis_nn for record in first)
    outcomes, nothing, _ = searched(both, 99.0, 5, [*alone, *first])
    assert (outcomes[0].by_cmsis_nn, nothing) == (99.0, [])
    monkeypatch.setenv("CMSIS_NN_CC", CLANG)
    outcomes, again, _ = searched(both, 98.0, 5, [*alone, *first])
    assert [record.cost for record in again] == [98.0]
    assert outcomes[0].by_cmsis_nn == 98.0


def test_a_rejected_candidate_is_counted_and_never_wins(both: tuple[Task, ...]) -> None:
    outcomes, (first, *_), _ = searched(both, Rejected("wrong answers: 1 of 2"), 1000)
    assert (first.cost, first.rejected) == (None, "wrong answers: 1 of 2")
    assert [outcome.rejected for outcome in outcomes] == [4, 3]
    assert not outcomes[0].offloads and outcomes[0].cheapest == 100


def test_a_board_that_is_silent_is_named_and_nothing_is_recorded(both: tuple[Task, ...]) -> None:
    device, records = Candidate(both, NoAnswer("it hangs")), list[Record]()
    on = Device("qemu mps3-an547", M55, device, 4)
    plan = Plan(1000, "grid", timeout_s=1.5)
    device.session = Session(both, on, plan, [], lambda task, record: records.append(record))
    with pytest.raises(
        TinyrlError, match=r"^qemu mps3-an547 did not answer within 1\.5 s, asked for '.*' by CMSIS-NN;"
    ):
        device.session.run()
    assert not records


def test_a_build_is_its_sources_and_its_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMSIS_NN_PATH", str(STAND_IN))
    gcc = build_of(PER_TENSOR)
    assert re.fullmatch(r"[0-9a-f]{16} by .*gcc.*", gcc)
    monkeypatch.setenv("CMSIS_NN_CC", f"{CLANG} -Os")
    assert build_of(PER_TENSOR).endswith(f"{CLANG.removeprefix('clang ')} -Os")
    monkeypatch.setenv("CMSIS_NN_CC", "gcd")
    with pytest.raises(TinyrlError, match=r"^no compiler 'gcd', which CMSIS_NN_CC names$"):
        build_of(PER_TENSOR)
    monkeypatch.delenv("CMSIS_NN_CC")
    copy = tmp_path / "copy"
    shutil.copytree(STAND_IN, copy)
    monkeypatch.setenv("CMSIS_NN_PATH", str(copy))
    assert build_of(PER_TENSOR) == gcc
    source = copy / cmsis_nn.FUNCTIONS[PER_TENSOR].sources[0]
    source.write_text(source.read_text() + "\n")
    assert build_of(PER_TENSOR) != gcc


# ---- what was measured decides ----


def measured(folder: Path, *costs: tuple[float | None, float | None], device: str = ORIGIN.device) -> Path:
    """Records of the hidden layers of "relu", of our own kernels and of CMSIS-NN; None where it was rejected."""
    made, path = compiled("relu", "cortex-m4"), folder / "r.json"
    layers = [
        (own, call) for own, call in zip(made.kernels, made.called, strict=True) if isinstance(call, FullyConnected)
    ]
    theirs_at = dataclasses.replace(ORIGIN, device=device)
    with RecordFile(path) as file:
        for (kernel, call), (ours, theirs) in zip(layers, costs, strict=True):
            if ours is not None:
                file.append(Record(ORIGIN, signature(kernel), {}, ours, ours))
            rejected = None if theirs is not None else "wrong answers: 1 of 2"
            file.append(
                Record(theirs_at, signature(kernel), {}, theirs, None, rejected, CmsisNN(call.function, "GCC 12"))
            )
    return path


def compiled_by(records: Path, folder: Path, **options: object) -> Compiled:
    return compile_model(MODELS["relu"], folder, target="cortex-m4", tuning_records=records, **options)


def test_either_side_wins_the_layer_that_it_computes_for_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled_by(measured(tmp_path, (1987.0, 1234.5), (700.0, 700.5)), tmp_path, cmsis_nn=True)
    _, first, second, _ = made.offloads
    assert (first.function, first.reason) == (
        PER_TENSOR,
        "one multiplier serves every output; measured: 1,234.5 instructions, ours 1,987.0",
    )
    assert (second.function, second.reason) == (None, f"measured: 700.0 instructions, {PER_TENSOR} 700.5")
    assert [isinstance(call, FullyConnected) for call in made.called] == [False, True, False, False]
    assert made.stages["relax"].count("cmsis_nn.") == 1
    assert not any("no tuning record" in note for note in made.notes)
    assert on_board(made.library, M4, "stand-in", tmp_path, monkeypatch).parity == "PASS"


def test_a_tie_is_ours_and_so_is_what_was_rejected(tmp_path: Path) -> None:
    made = compiled_by(measured(tmp_path, (700.0, 700.0), (700.0, None)), tmp_path, cmsis_nn=True)
    _, tie, rejected, _ = made.offloads
    assert tie.reason == f"measured: 700.0 instructions, {PER_TENSOR} 700.0"
    assert rejected.reason == f"measured: 700.0 instructions, {PER_TENSOR} was rejected"
    assert (tie.function, rejected.function) == (None, None)
    assert not Interface.of(made.library).cmsis_nn


def test_without_both_costs_all_that_can_be_is_offloaded_and_the_reason_is_as_ever(tmp_path: Path) -> None:
    expected = compiled("relu", "cortex-m4").offloads
    lone = measured(tmp_path, (None, 1.0), (None, 9e9))
    assert compiled_by(lone, tmp_path, cmsis_nn=True).offloads == expected
    lone.unlink()
    elsewhere = measured(tmp_path, (1.0, 2.0), (1.0, 2.0), device="another")  # costs of two devices do not compare
    assert compiled_by(elsewhere, tmp_path, cmsis_nn=True).offloads == expected


def test_choices_that_no_longer_exist_decide_nothing(tmp_path: Path) -> None:
    path = measured(tmp_path, (700.0, 800.0), (700.0, 800.0))
    path.write_bytes(path.read_bytes().replace(b'"choices": {}', b'"choices": {"gone": 1}'))
    assert compiled_by(path, tmp_path, cmsis_nn=True).offloads == compiled("relu", "cortex-m4").offloads


def test_a_compile_without_cmsis_nn_does_not_see_its_records(tmp_path: Path) -> None:
    path = measured(tmp_path, (700.0, 1.0), (700.0, 1.0))
    alone = tmp_path / "alone.json"
    alone.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if b"cmsis_nn" not in line))
    with_theirs, without = (compiled_by(records, tmp_path) for records in (path, alone))
    assert code_of(with_theirs.library) == code_of(without.library)
    assert with_theirs.notes == without.notes
    assert with_theirs.offloads == ()


def code_of(library: ModelLibrary) -> dict[str, bytes]:
    return {path: data for path, data in library.files.items() if path != "metadata.json"}


# ---- the verb, on QEMU ----

TUNE = ("tune", P1, "--calibration", P1.with_suffix(".npz"), "--target", "cmsis-nn,c")


def tinyrl(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_policy_is_tuned_with_it_and_compiled_by_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMSIS_NN_PATH", str(STAND_IN))
    monkeypatch.setenv("COLUMNS", "160")
    records = tmp_path / "r.json"
    core = "--target-cmsis-nn-mcpu=cortex-m4"
    tune = (*TUNE, core, "-o", records, "--tasks", "1,2", "--trials", "4", "--tuner", "grid", "--runtime", "crt")
    result = tinyrl(*tune, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["measured"] == len(read(records, "cortex-m4").records) == 4
    for task in answer["tasks"]:  # the stand-in is correct and slow
        assert task["cmsis_nn"] == PER_TENSOR
        assert task["cmsis_nn_cost"] > task["best_cost"] > 0
    again = tinyrl(*tune)
    assert "0 trials measured now" in again.stdout
    assert "┃ CMSIS-NN ┃" in again.stdout
    *_, last = again.stdout.splitlines()
    assert "--target 'cmsis-nn -mcpu=cortex-m4,c'" in last

    library = tmp_path / "p.tar"
    compile_words = ("compile", P1, "--calibration", P1.with_suffix(".npz"), "--tuning-records", records, "-o", library)
    ours = tinyrl(*compile_words, "--target", "cmsis-nn -mcpu=cortex-m4,c", "--dump-offloads", "-")
    assert ours.exit_code == 0, ours.output
    assert (
        len(re.findall(rf"TVM +measured: [\d,.]+ instructions, {PER_TENSOR} [\d,.]+$", ours.stdout, re.MULTILINE)) == 2
    )
    assert not Interface.of(ModelLibrary.load(library)).cmsis_nn


def test_what_is_missing_is_said_before_the_first_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune = (*TUNE, "--target-cmsis-nn-mcpu=cortex-m4", "-o", tmp_path / "r.json")
    monkeypatch.delenv("CMSIS_NN_PATH", raising=False)
    sentence = "the policy calls CMSIS-NN: set CMSIS_NN_PATH to a checkout of it, 6.0.0 or newer"
    assert_refused(tinyrl(*tune), sentence, tmp_path)
    checkout = tmp_path / "checkout"
    shutil.copytree(STAND_IN, checkout)
    missing = cmsis_nn.FUNCTIONS[PER_TENSOR].sources[1]
    (checkout / missing).unlink()
    monkeypatch.setenv("CMSIS_NN_PATH", str(checkout))
    sentence = f"no {missing} in CMSIS_NN_PATH={checkout}: the policy needs CMSIS-NN 6.0.0 or newer"
    assert_refused(tinyrl(*tune), sentence, tmp_path)
    monkeypatch.setenv("CMSIS_NN_PATH", str(STAND_IN))
    monkeypatch.setenv("CMSIS_NN_CC", "gcd")
    assert_refused(tinyrl(*tune), "no compiler 'gcd', which CMSIS_NN_CC names", tmp_path)


def assert_refused(result: Result, sentence: str, folder: Path) -> None:
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"{sentence}\n")
    assert not (folder / "r.json").exists()
