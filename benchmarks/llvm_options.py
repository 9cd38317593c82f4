# SPDX-License-Identifier: Apache-2.0
"""Measure what each of LLVM's options for the Cortex-M55 carries, and write the table into the README.

Every key of the target that names no core (`vector-width`, `fast-math-contract`), every `cl-opt`, and what single kernels
ask for beyond the target (`-lob`), is left out alone; then all `cl-opt`, then all. `cl-opt` are LLVM's globals, so each
variant has a process of its own and inherits nothing. Beside the instructions stands how many kernels came out as other code:
0 says that the option does nothing for these policies.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import report
from firmware import built, compiled
from rich.console import Console
from rich.progress import Progress

from tinyrl_tvm.device import qemu
from tinyrl_tvm.targets import TARGETS

BOARD, TARGET = "mps3-an547", "cortex-m55"
CASES = tuple((name, precision) for precision in ("int8", "float32") for name in ("P1", "P2", "P3"))
THE_CORE_ITSELF = ("mtriple", "mcpu", "mattr", "mfloat-abi")
KERNELS_OWN = "attributes of kernels"
NOTHING = "nothing"


@dataclass(frozen=True)
class Row:
    """What was left out, then for every case its instructions; `kernels_changed` of `kernels` differ from the whole's."""

    left_out: str
    instructions: list[float]
    kernels_changed: int
    kernels: int


def variants() -> dict[str, tuple[Mapping[str, Any], bool]]:
    """What is left out -> the target's LLVM options, and whether kernels get the attributes they ask for."""
    whole = TARGETS[TARGET].llvm
    spoken = [key for key in whole if key not in (*THE_CORE_ITSELF, "cl-opt")]
    flags = list(whole.get("cl-opt", ()))
    found: dict[str, tuple[Mapping[str, Any], bool]] = {NOTHING: (whole, True)}
    for flag in flags:
        found[flag] = ({**whole, "cl-opt": [other for other in flags if other != flag]}, True)
    for key in spoken:
        found[f"{key} = {whole[key]}"] = ({name: value for name, value in whole.items() if name != key}, True)
    found[KERNELS_OWN] = (whole, False)
    found["all cl-opt"] = (without(whole, ["cl-opt"]), True)
    found["all of these"] = (without(whole, ["cl-opt", *spoken]), False)
    return found


def without(options: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in keys}


@click.command(help=__doc__)
@click.option("--variant", hidden=True, help="measure one variant and print it as JSON: how this script calls itself")
@click.option("--readme/--no-readme", default=True, help="write the table into README.md and llvm_options.json")
def main(variant: str | None, readme: bool) -> None:
    if variant is not None:
        click.echo(json.dumps(measure(*variants()[variant])))
        return
    facts = report.machine(cross_compiler="arm-none-eabi-gcc", emulator="qemu-system-arm")
    said = {}
    with Progress(console=Console(stderr=True)) as progress:
        for name in progress.track(list(variants()), description="measuring"):
            command = (sys.executable, __file__, "--variant", name)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise click.ClickException(f"without {name}: {done.stderr[-2000:]}")
            said[name] = json.loads(done.stdout)
    whole = said[NOTHING]["kernels"]
    rows = []
    for name, variant_said in said.items():
        changed = sum(text != whole[kernel] for kernel, text in variant_said["kernels"].items())
        rows.append(Row(name, variant_said["instructions"], changed, len(whole)))
    head = " | ".join(["left out", *(f"{name} {precision}" for name, precision in CASES), "kernels that differ"])
    table = report.table(head, (cells(row, rows[0]) for row in rows), text_columns=1)
    click.echo(table)
    if readme:
        report.write_results("llvm_options", facts, rows)
        report.write_readme("llvm-options", f"{table}\n\n{report.provenance('llvm_options.py', facts)}")


def cells(row: Row, whole: Row) -> list[str]:
    figures = []
    for instructions, least in zip(row.instructions, whole.instructions, strict=True):
        change = f" ({instructions / least - 1:+.0%})" if abs(instructions / least - 1) >= 0.005 else ""
        figures.append(f"{instructions:,.0f}{change}")
    name = (
        row.left_out
        if row.left_out in (NOTHING, KERNELS_OWN) or row.left_out.startswith("all")
        else f"`{row.left_out}`"
    )
    return [name, *figures, f"{row.kernels_changed} of {row.kernels}"]


def measure(llvm: Mapping[str, Any], kernels_own: bool) -> dict[str, Any]:
    """Instructions of every case, and the assembly of every kernel."""
    TARGETS[TARGET] = replace(TARGETS[TARGET], llvm=llvm)
    if not kernels_own:
        leave_out_attributes()
    instructions, kernels = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, precision in CASES:
            library = compiled(name, precision, TARGET).library
            said = qemu.run(built(library, Path(folder) / f"{name}_{precision}", BOARD))
            assert said.parity == "PASS", (name, precision, said.parity)
            instructions.append(said.instructions_per_inference)
            for path, data in library.files.items():
                if path.endswith(".S"):
                    kernels |= {f"{name} {precision} {symbol}": code for symbol, code in functions(data.decode())}
    return {"instructions": instructions, "kernels": kernels}


def leave_out_attributes() -> None:
    from schedules import PlacedKernel

    PlacedKernel.attributes = property(lambda placed: ())


def functions(assembly: str) -> Iterator[tuple[str, str]]:
    for match in re.finditer(r"^\t\.globl\t(\w+)$(.*?)^\t\.size", assembly, re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


if __name__ == "__main__":
    report.run(main)
