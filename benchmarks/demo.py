# SPDX-License-Identifier: Apache-2.0
"""The product in one run, from the repository's folder: two trained policies from ONNX to firmware, by the commands a
user types.

Each is compiled to int8 for Cortex-M55, run on this machine and on an emulated board, and judged twice: that both give
the bits the arithmetic promises (parity), and how often the action is the float policy's.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

POLICIES = Path("benchmarks/policies")
BUILD = Path("build/demo")
AGREEMENT_WANTED = 0.99  # of CartPole's rollout observations
console = Console(width=None if Console().is_terminal else 120)


def main() -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    runs = [run for name in ("cartpole", "pendulum") for run in demonstrate(name)]
    show(runs)
    failed = [f"{run['policy']} on {run['where']}" for run in runs if run["parity"] != "PASS"]
    if failed:
        sys.exit(f"PARITY FAIL: {', '.join(failed)}")
    agreement = runs[0]["action_agreement"]
    if agreement < AGREEMENT_WANTED:
        sys.exit(f"CartPole's int8 action is the float policy's on {agreement:.1%}, wanted {AGREEMENT_WANTED:.0%}")


def demonstrate(name: str) -> list[dict[str, Any]]:
    """Compile, create, build and run one policy; what each device said of it."""
    library, project = f"{BUILD}/{name}.tar", f"{BUILD}/{name}"
    policy = POLICIES / f"{name}.onnx"
    type_in(f"compile {policy} --target cortex-m55 --calibration {policy.with_suffix('.npz')} -o {library}")
    type_in(f"micro create {project} {library} baremetal --project-option board=mps3-an547 -f")
    type_in(f"micro build {project}")
    runs = []
    for where, command in (
        ("host", f"run {library} --device cpu"),
        ("QEMU mps3-an547", f"run --device micro {project}"),
    ):
        run = json.loads(type_in(f"{command} --json", show=False))
        console.print(
            f"PARITY {run['parity']}  ({run['vectors_right']} of {run['vectors_total']} test vectors, {where})\n"
        )
        runs.append({"policy": name, "where": where, **run})
    return runs


def type_in(command: str, show: bool = True) -> str:
    """Run a command of ours as a user would, and show it; its output is shown or returned."""
    console.print(f"[bold]$ tinyrl-tvm {command}[/bold]", soft_wrap=True)
    arguments = [sys.executable, "-m", "tinyrl_tvm", *shlex.split(command)]
    done = subprocess.run(arguments, text=True, stdout=None if show else subprocess.PIPE, check=False)
    if done.returncode and (show or not done.stdout):
        sys.exit(done.returncode)
    return done.stdout or ""


def show(runs: list[dict[str, Any]]) -> None:
    table = Table(title="int8; QEMU counts instructions, not time")
    for column in (
        "policy",
        "on",
        "parity",
        "action = float's",
        "largest error",
        "instructions",
        "flash",
        "RAM",
        "stack",
    ):
        table.add_column(column, justify="left" if column in ("policy", "on", "parity") else "right")
    for run in runs:
        agreement, error = run["action_agreement"], run["max_abs_error"]
        table.add_row(
            run["policy"],
            run["where"],
            f"PARITY {run['parity']}",
            "" if agreement is None else f"{agreement:.1%}",
            "" if error is None else f"{error:.3f}",
            "" if run["instructions_per_inference"] is None else f"{run['instructions_per_inference']:,.0f}",
            *("" if run[key] is None else f"{run[key]:,} B" for key in ("flash_bytes", "ram_bytes", "stack_bytes")),
        )
    console.print(table)


if __name__ == "__main__":
    main()
