# SPDX-License-Identifier: Apache-2.0
"""`tinyrl-tvm tune`: schedules compete on a device, and the records say what won."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinyrl_tvm.cli import tvmc as tvmc_words
from tinyrl_tvm.cli.console import json_option, progress, refuse_unwritable, say, say_json, say_table, tell
from tinyrl_tvm.cli.run import BAUD
from tinyrl_tvm.errors import TinyrlError, unknown_name
from tinyrl_tvm.targets import TARGETS

if TYPE_CHECKING:
    from tinyrl_tvm.records import Record
    from tinyrl_tvm.tune.policy import Tuned
    from tinyrl_tvm.tune.session import Device, Outcome, Session
    from tinyrl_tvm.tune.task import Task

TUNERS = ("xgb", "evolutionary", "random", "grid")


@click.command("tune", short_help="Find the fastest schedules of a policy by measurement.")
@click.argument("policy", type=click.Path(path_type=Path))
@click.option(
    "--target",
    metavar="NAME",
    help=f"The core to tune for (required): {', '.join(TARGETS)}; or cmsis-nn,c with --target-cmsis-nn-mcpu=CORE.",
)
@click.option(
    "--precision",
    metavar="int8|int16|float32",
    help="Default: int8 with --calibration or for a QDQ model, else float32.",
)
@click.option("--calibration", type=click.Path(path_type=Path), help="Rollout observations, as for compile.")
@click.option("--output", metavar="TENSOR", help="Which output of the policy is the action, as for compile.")
@click.option(
    "-o", "--output-file", type=click.Path(path_type=Path), help="The records to write. Default: POLICY.records.json."
)
@click.option("--trials", type=int, default=256, show_default=True, help="Of all tasks; earlier records count.")
@click.option("--tuner", metavar="|".join(TUNERS), default="xgb", show_default=True)
@click.option(
    "--device", default="qemu", show_default=True, metavar="qemu[:BOARD]|board[:BOARD]", help="What to measure on."
)
@click.option("--port", metavar="TTY", help="With --device board: where it is, as /dev/ttyACM0.")
@click.option("--baud", type=click.IntRange(1), default=BAUD, show_default=True, help="With --device board.")
@click.option("--flash-command", metavar="WORDS", help="With --device board: what flashes it, as 'pyocd flash {elf}'.")
@click.option(
    "--tuning-records", metavar="FILE", type=click.Path(path_type=Path), help="Earlier records, to begin with."
)
@click.option("--tasks", metavar="list|0,2|NAME", help="Tune only these; list shows them. Default: all with a choice.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed finds the same winners.")
@click.option("--timeout", type=float, default=20.0, show_default=True, help="Seconds for a build, and for a run.")
@click.option("--rpc-tracker", metavar="HOST:PORT", help="Measure on the servers of this tracker.")
@click.option("--rpc-key", metavar="KEY", help="On those of its servers that have this key.")
@tvmc_words.tvmc_options
@json_option
def tune_verb(
    *,
    policy: Path,
    target: str | None,
    precision: str | None,
    calibration: Path | None,
    output: str | None,
    output_file: Path | None,
    trials: int,
    tuner: str,
    device: str,
    port: str | None,
    baud: int,
    flash_command: str | None,
    tuning_records: Path | None,
    tasks: str | None,
    seed: int,
    timeout: float,
    rpc_tracker: str | None,
    rpc_key: str | None,
    as_json: bool,
    **tvmc: Any,
) -> None:
    """Measure schedules for the kernels of POLICY and write what was found, a trial a line.

    Every trial is a firmware that runs on the device; wrong answers are rejected. Ctrl-C keeps what was found, and the
    same command goes on from there. `tinyrl-tvm compile --tuning-records` uses the records.

    With --target cmsis-nn,c what CMSIS-NN can compute is measured by it as well, and compile takes the cheaper of both;
    CMSIS_NN_PATH names a checkout of it.

    \b
    --json: records, target, device, unit, tuner, seed, measured, notes [], tasks [{index, name, kernel {}, count,
      settings, cmsis_nn, trials, rejected, default_cost, best_cost, choices {}, cmsis_nn_cost}]; costs null where
      nothing right was measured
    """
    if target is None:
        raise click.UsageError(f"no --target; have: {', '.join(TARGETS)}")
    if tuner not in TUNERS:
        raise unknown_name("tuner", tuner, TUNERS)
    core, cmsis_nn = tvmc_words.target_of(target, tvmc)
    without_effect = tvmc_words.notes(tvmc)
    records = output_file or Path(f"{policy.stem}.records.json")
    if tasks != "list":
        refuse_unwritable(records, policy, calibration)

    with progress() as begin:
        begin("load the compiler")
        from tinyrl_tvm.tune import policy as tuning
        from tinyrl_tvm.tune.session import Plan
        from tinyrl_tvm.tune.task import chosen

        if device.partition(":")[0] != "board" and (port is not None or flash_command is not None):
            raise TinyrlError("--port and --flash-command go with --device board")
        plan = Plan(trials, tuner, seed, timeout)
        on = (
            _flashed(device, core, port, baud, flash_command, rpc_tracker)
            if device.partition(":")[0] == "board"
            else _device(device, core, rpc_tracker, rpc_key)
        )
        begin("compile")
        every = tuning.tasks_of_policy(
            policy, target=core, cmsis_nn=cmsis_nn, precision=precision, calibration=calibration, output=output
        )
    for note in without_effect:
        tell(f"note: {note}")
    if tasks == "list":
        _say_tasks(policy, core, every, as_json)
        return
    wanted = chosen(every, tasks)
    if not wanted:
        raise TinyrlError(f"no kernel of '{policy}' leaves a choice for '{core}'; --tasks list shows them")

    try:
        with contextlib.closing(on), _bar() as bar:
            tuned = tuning.tune(wanted, on, plan, records, tuning_records, bar.begin, bar.advance)
    except KeyboardInterrupt:
        if records.exists():  # else it was stopped before the first trial ended
            tell(f"what was found is in '{records}'; the same command goes on from there")
        raise
    answer = _answer(tuned, records, on, plan.tuner, plan.seed)
    if as_json:
        say_json(answer)
    else:
        words = f"cmsis-nn -mcpu={core},c" if cmsis_nn else core
        _say(policy, answer, tuned, _compile_options(policy, words, precision, calibration, output, records))


def _compile_options(
    policy: Path, target: str, precision: str | None, calibration: Path | None, output: str | None, records: Path
) -> str:
    """Those that compile what was tuned: without the calibration it would be a float policy, which no record is of."""
    options = {
        "--target": target,
        "--precision": precision,
        "--calibration": calibration,
        "--output": output,
        "--tuning-records": records,
    }
    given = [(name, str(value)) for name, value in options.items() if value is not None]
    return shlex.join([str(policy), *(word for option in given for word in option)])


def _device(name: str, target: str, tracker: str | None, key: str | None) -> Device:
    from tinyrl_tvm.device.devices import device_named
    from tinyrl_tvm.toolchain import find
    from tinyrl_tvm.tune.session import Device

    board, emulate = device_named(name, target)
    if tracker is None:
        if key is not None:
            raise TinyrlError(f"--rpc-key {key} without a tracker; give --rpc-tracker HOST:PORT too")
        find(board.architecture.emulator)  # raises, where every trial would be rejected
        return Device(f"{name.partition(':')[0]} {board.name}", board, emulate)
    from tinyrl_tvm.device.farm import Farm

    if key is None:
        raise TinyrlError("--rpc-tracker without a key; give the servers' --rpc-key too")
    farm = Farm.at(tracker, key)
    return Device(f"{name.partition(':')[0]} {board.name}", board, farm.emulate, farm.at_most, farm.servers, farm.close)


def _flashed(name: str, target: str, port: str | None, baud: int, command: str | None, tracker: str | None) -> Device:
    from tinyrl_tvm.device.devices import device_named
    from tinyrl_tvm.device.serial_line import Port
    from tinyrl_tvm.project.platforms.platform import flash_words
    from tinyrl_tvm.tune.board import FlashedBoard
    from tinyrl_tvm.tune.session import Device

    if port is None or command is None or tracker is not None:
        raise TinyrlError("--device board takes --port and --flash-command, and no --rpc-tracker")
    flash_words(command)  # raises, where every trial would fail
    board, _ = device_named(f"qemu{name.removeprefix('board')}", target)
    flashed = FlashedBoard(Port(port, baud), command)
    return Device(f"board {board.name}", board, flashed.emulate, at_a_time=1, link="uart")


class _Bar:
    """Progress with the best so far against the defaults, of the whole policy."""

    def __init__(self, bar: Any) -> None:
        self.bar, self.id = bar, None
        self.session: Session | None = None

    def begin(self, session: Session) -> None:
        self.session = session
        total = min(session.plan.trials, session.possible)
        if self.bar is not None:
            self.id = self.bar.add_task("tune", total=total, completed=session.known, standing="")

    def advance(self, task: Task, record: Record) -> None:
        if self.bar is not None and self.session is not None:
            outcomes = self.session.outcomes()
            done = sum(outcome.trials for outcome in outcomes)
            self.bar.update(self.id, completed=done, standing=_standing(outcomes))


@contextlib.contextmanager
def _bar() -> Iterator[_Bar]:
    if not sys.stderr.isatty():
        yield _Bar(None)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("{task.fields[standing]}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar)


def _standing(outcomes: tuple[Outcome, ...]) -> str:
    best, default = _sum(outcomes, lambda o: o.cheapest), _sum(outcomes, lambda o: o.at_default)
    rejected = sum(outcome.rejected for outcome in outcomes)
    text = f"best {best:,.0f} against {default:,.0f} instructions" if best is not None and default is not None else ""
    return f"{text}, {rejected} rejected" if rejected else text


def _sum(outcomes: tuple[Outcome, ...], cost: Callable[[Outcome], float | None]) -> float | None:
    """Over the policy's kernels; None while one has no cost."""
    costs = [cost(outcome) for outcome in outcomes]
    if any(value is None for value in costs):
        return None
    return sum(value * outcome.task.count for value, outcome in zip(costs, outcomes, strict=True) if value is not None)


def _say_tasks(policy: Path, target: str, tasks: tuple[Task, ...], as_json: bool) -> None:
    if as_json:
        say_json({"tasks": [_task(task) for task in tasks]})
        return
    rows = [(task.index, task.name, task.count, len(task.settings), ", ".join(task.knobs) or "none") for task in tasks]
    say_table(f"{policy.name} for {target}", ("task", "kernel", "calls", "settings", "knobs"), rows)


def _task(task: Task) -> dict[str, Any]:
    return {
        "index": task.index,
        "name": task.name,
        "kernel": task.signature.to_json(),
        "count": task.count,
        "settings": len(task.settings),
        "cmsis_nn": task.offload.function if task.offload else None,
    }


def _answer(tuned: Tuned, records: Path, device: Device, tuner: str, seed: int) -> dict[str, Any]:
    return {
        "records": str(records),
        "target": device.origin.target,
        "device": device.origin.device,
        "unit": device.origin.unit,
        "tuner": tuner,
        "seed": seed,
        "measured": tuned.measured,
        "notes": list(tuned.notes),
        "tasks": [
            {
                **_task(outcome.task),
                "trials": outcome.trials,
                "rejected": outcome.rejected,
                "default_cost": outcome.at_default,
                "best_cost": outcome.best,
                "choices": dict(outcome.choices),
                "cmsis_nn_cost": outcome.by_cmsis_nn,
            }
            for outcome in tuned.outcomes
        ],
    }


def _say(policy: Path, answer: dict[str, Any], tuned: Tuned, compile_options: str) -> None:
    candidate = any(outcome.task.offload for outcome in tuned.outcomes)
    rows = [
        (
            outcome.task.name,
            _cost(outcome.at_default),
            _cost(outcome.best),
            *([_cost(outcome.by_cmsis_nn) if outcome.task.offload else ""] if candidate else []),
            _gain(outcome.at_default, outcome.best),
            "CMSIS-NN" if outcome.offloads else _changed(outcome),
            outcome.trials,
            outcome.rejected,
        )
        for outcome in tuned.outcomes
    ]
    theirs = ["CMSIS-NN"] if candidate else []
    columns = ("kernel", "by default", "best", *theirs, "gain", "choices that won", "trials", "rejected")
    say_table(f"{policy.name} on {answer['device']}, {answer['unit']} a call", columns, rows)
    for note in answer["notes"]:
        say(f"note: {note}")
    default, best = _sum(tuned.outcomes, lambda o: o.at_default), _sum(tuned.outcomes, lambda o: o.best)
    if default is not None and best is not None:
        say(f"these kernels together: {default:,.1f} by default, {best:,.1f} tuned ({_gain(default, best)})")
    cheapest = _sum(tuned.outcomes, lambda o: o.cheapest)
    if cheapest is not None and cheapest != best:
        say(f"with CMSIS-NN where it costs less: {cheapest:,.1f}")
    say(f"wrote '{answer['records']}': {answer['measured']:,} trials measured now")
    say(f"next: tinyrl-tvm compile {compile_options}")


def _cost(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.1f}"


def _gain(default: float | None, best: float | None) -> str:
    return "n/a" if default is None or best is None else f"{100 * (1 - best / default):.1f} %"


def _changed(outcome: Outcome) -> str:
    default = dict(outcome.task.default)
    changed = [f"{name} {value}" for name, value in outcome.choices if default[name] != value]
    return ", ".join(changed) or "the default"
