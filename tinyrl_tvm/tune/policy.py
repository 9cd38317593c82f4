# SPDX-License-Identifier: Apache-2.0
"""Tune the kernels of a policy: what is known is read, what is found is written, a session goes on where one was stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from schedules.elementwise import Elementwise
from tinyrl_tvm import pipeline
from tinyrl_tvm.cmsis_nn import FullyConnected
from tinyrl_tvm.records import Record, RecordFile, Records, read
from tinyrl_tvm.targets import target_named
from tinyrl_tvm.tune.session import Device, Outcome, Plan, Session
from tinyrl_tvm.tune.task import Task, setting_of, tasks_of


@dataclass(frozen=True)
class Tuned:
    """`measured` trials in this session; `notes` say what was left out of the records that were given."""

    outcomes: tuple[Outcome, ...]
    measured: int
    notes: tuple[str, ...] = field(default=())


def tasks_of_policy(
    path: Path,
    *,
    target: str,
    cmsis_nn: bool = False,
    precision: str | None = None,
    calibration: Path | None = None,
    output: str | None = None,
) -> tuple[Task, ...]:
    """The distinct kernels of a policy as `compile` would place them for `target`, in calling order, with CMSIS-NN's beside
    them when it is to have a try."""
    core = target_named(target)
    compiled = pipeline.compile_policy(
        path, target=target, cmsis_nn=cmsis_nn, precision=precision, calibration=calibration, output=output
    )
    # where the C twin is the only code there is nothing to choose
    own = compiled.precision == "int8" or core.float_unit
    # the exam asks codes of 8 bits, and our own kernels of 16 leave no choice to compare with
    layers = [
        (kernel, called if isinstance(called, FullyConnected) and compiled.precision == "int8" else None)
        for kernel, called in zip(compiled.kernels, compiled.called, strict=True)
        if not isinstance(kernel, Elementwise)  # which reads two tensors, and has nothing to choose
    ]
    kernels, offloads = zip(*layers, strict=True)
    return tasks_of(kernels, core.kernels if own else "portable", offloads)


def read_known(records: Path, given: Path | None, target: str) -> tuple[Records, Records]:
    """What an earlier session left in `records`, and what `given` adds."""
    earlier = read(records, target) if records.exists() and records.stat().st_size else Records()
    if given is None or (records.exists() and given.samefile(records)):
        return earlier, Records()
    return earlier, read(given, target)


def _trial(record: Record) -> tuple[object, ...]:
    """What was measured, whatever came of it."""
    return record.origin, record.kernel, setting_of(record.choices), record.cmsis_nn


def tune(
    tasks: tuple[Task, ...],
    device: Device,
    plan: Plan,
    records: Path,
    given: Path | None = None,
    on_session: Callable[[Session], None] = lambda session: None,
    on_record: Callable[[Task, Record], None] = lambda task, record: None,
) -> Tuned:
    """Append to `records`. `on_session` sees the session before it begins, `on_record` every trial as it ends."""
    earlier, added = read_known(records, given, device.board.target)
    present = {_trial(record) for record in earlier.records}
    new = [record for record in added.records if _trial(record) not in present]
    known = [*earlier.records, *new]
    foreign = [record for record in known if record.origin != device.origin]
    notes = [*earlier.notes, *added.notes]
    if foreign:
        elsewhere = ", ".join(sorted({record.origin.device for record in foreign}))
        notes.append(f"{len(foreign):,} records of {elsewhere} do not count: this is {device.name}")
    with RecordFile(records, new) as file:

        def write(task: Task, record: Record) -> None:
            file.append(record)
            on_record(task, record)

        session = Session(tasks, device, plan, known, write)
        on_session(session)
        outcomes = session.run()
    return Tuned(outcomes, sum(outcome.trials for outcome in outcomes) - session.known, tuple(notes))
