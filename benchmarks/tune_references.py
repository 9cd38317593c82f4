#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tune the reference policies for every target that has a board, and write what won to `schedules/records/<target>.json`.

Random policies of other widths are tuned with them, for a shape that nobody tuned takes the choices of the nearest that was.
Those records ship: `compile` applies them. They hold a winner a kernel, as what it changes of the defaults. All trials go to
`--work`, so that a run that was stopped goes on from there.

    python benchmarks/tune_references.py [--target cortex-m55 ...] [--trials 768] [--work build/tuning]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from random_policies import write

from tinyrl_tvm.device.devices import device_named
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.library import write_whole
from tinyrl_tvm.records import Origin, Record
from tinyrl_tvm.targets import BOARDS, target_named
from tinyrl_tvm.tune.policy import tasks_of_policy, tune
from tinyrl_tvm.tune.session import Device, Outcome, Plan
from tinyrl_tvm.tune.task import chosen, tasks_of

HERE = Path(__file__).parent
POLICIES = ("P1", "P2", "P3", "cartpole", "pendulum")
SHAPES = (((5, 32, 32, 3), "Tanh"), ((17, 128, 128, 6), "Relu"), ((24, 400, 300, 4), "Relu"))
SHIPPED = HERE.parent / "schedules" / "records"


def tuned(target: str, trials: int, tuner: str, work: Path) -> tuple[Outcome, ...]:
    work.mkdir(parents=True, exist_ok=True)
    policies = [HERE / "policies" / f"{policy}.onnx" for policy in POLICIES]
    policies += [write(work, shape, activation, seed=0) for shape, activation in SHAPES]
    every = [
        task
        for policy in policies
        for precision in ("int8", "float32")
        for task in tasks_of_policy(policy, target=target, precision=precision, calibration=policy.with_suffix(".npz"))
        if task.family == target_named(target).kernels
    ]
    tasks = chosen(tasks_of([task.kernel for task in every], target_named(target).kernels), None)
    if not tasks:
        return ()
    board, emulate = device_named("qemu", target)
    device = Device(f"qemu {board.name}", board, emulate)
    count = [0]

    def told(task: object, record: Record) -> None:
        count[0] += 1
        print(f"\r{target}: {count[0]} trials", end="", file=sys.stderr)

    found = tune(tasks, device, Plan(trials, tuner), work / f"{target}.json", on_record=told)
    print(file=sys.stderr)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    return found.outcomes


def winners(target: str, outcomes: tuple[Outcome, ...]) -> list[Record]:
    board, _ = device_named("qemu", target)
    return [
        Record(
            Origin(target, f"qemu {board.name}"),
            outcome.task.signature,
            dict(changed for changed in outcome.choices if changed not in outcome.task.default),
            outcome.best,
            outcome.at_default,
        )
        for outcome in sorted(outcomes, key=lambda outcome: outcome.task.signature)
        if outcome.best is not None and outcome.at_default is not None
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    targets = list(dict.fromkeys(board.target for board in BOARDS.values()))
    parser.add_argument("--target", nargs="+", choices=targets, default=targets)
    parser.add_argument("--trials", type=int, default=768, help="of a target (default 768)")
    parser.add_argument("--tuner", default="xgb")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "tuning")
    options = parser.parse_args()
    for target in options.target:
        try:
            outcomes = tuned(target, options.trials, options.tuner, options.work)
        except TinyrlError as error:
            sys.exit(f"{target}: {error}")
        except KeyboardInterrupt:
            sys.exit(f"stopped; what was found is in '{options.work}', and the same command goes on from there")
        records = winners(target, outcomes)
        path = SHIPPED / f"{target}.json"
        if records:
            SHIPPED.mkdir(exist_ok=True)
            write_whole(path, b"".join(record.to_line() for record in records))
        else:
            path.unlink(missing_ok=True)
        for outcome in outcomes:
            best = "nothing right" if outcome.best is None else f"{outcome.best:,.1f}"
            by_default = "nothing right" if outcome.at_default is None else f"{outcome.at_default:,.1f}"
            print(f"{target}: {outcome.task.signature}: {best} against {by_default} by default", end="")
            print(f", {outcome.trials} of {len(outcome.task.settings)} settings, {outcome.rejected} rejected")


if __name__ == "__main__":
    main()
