# SPDX-License-Identifier: Apache-2.0
"""Measure what each option that kernels ask of LLVM carries (`schedules/llvm.py`), and write the table into the README.

Every option that a kernel of the reference policies asks for is left out alone; then all of them; and last the choice
itself, so that every kernel is told all of its core's flags. They are LLVM's globals, so each variant has a process of its
own and inherits nothing. Beside the instructions stands how many kernels came out as other code.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import report
from firmware import built, compiled
from rich.console import Console
from rich.progress import Progress

from schedules import LlvmOptions, PlacedKernel
from tinyrl_tvm.device import qemu

BOARDS = {"cortex-m55": "mps3-an547", "cortex-m4": "mps2-an386", "cortex-m3": "mps2-an385"}
CASES = tuple((name, precision) for precision in ("int8", "float32") for name in ("P1", "P2", "P3"))


@dataclass(frozen=True)
class Variant:
    """`without` are options that no kernel gets; `always` flags that every kernel gets."""

    name: str
    without: tuple[str, ...] = ()
    always: tuple[str, ...] = ()

    def told(self, asked: LlvmOptions) -> LlvmOptions:
        return LlvmOptions(
            tuple(attribute for attribute in asked.attributes if attribute not in self.without),
            self.always or tuple(flag for flag in asked.flags if flag not in self.without),
        )


WHOLE = Variant("nothing")


@dataclass(frozen=True)
class Row:
    """What was left out, then for every case its instructions; `kernels_changed` of `kernels` differ from the whole's."""

    target: str
    left_out: str
    instructions: list[float]
    kernels_changed: int
    kernels: int


def variants(asked: list[LlvmOptions]) -> list[Variant]:
    """Of a core whose kernels ask for these: less each, less all, and less the choice between them."""
    attributes = sorted({attribute for options in asked for attribute in options.attributes})
    flags = sorted({flag for options in asked for flag in options.flags})
    each = [Variant(f"`{option}`", (option,)) for option in (*flags, *attributes)]
    return [*each, Variant("all of these", (*flags, *attributes)), Variant("the choice of flags", always=tuple(flags))]


@click.command(help=__doc__)
@click.option("--measure", "asked_to", hidden=True, help="target and variant as JSON: how this script calls itself")
@click.option("--readme/--no-readme", default=True, help="write the table into README.md and llvm_options.json")
def main(asked_to: str | None, readme: bool) -> None:
    if asked_to is not None:
        target, variant = json.loads(asked_to)
        click.echo(json.dumps(measure(target, Variant(**variant))))
        return
    facts = report.machine(cross_compiler="arm-none-eabi-gcc", emulator="qemu-system-arm")
    rows: list[Row] = []
    lines: list[list[str]] = []
    with Progress(console=Console(stderr=True)) as progress:
        for target in progress.track(list(BOARDS), description="measuring"):
            of_target = list(rows_of(target))
            lines += [cells(row, of_target[0]) for row in of_target]
            rows += of_target
    head = " | ".join(
        ["core", "left out", *(f"{name} {precision}" for name, precision in CASES), "kernels that differ"]
    )
    table = report.table(head, lines)
    click.echo(table)
    if readme:
        report.write_results("llvm_options", facts, rows)
        report.write_readme("llvm-options", f"{table}\n\n{report.provenance('llvm_options.py', facts)}")


def rows_of(target: str) -> Iterator[Row]:
    """The whole first, which says what there is to leave out."""
    whole = measured_apart(target, WHOLE)
    asked = [LlvmOptions(tuple(o["attributes"]), tuple(o["flags"])) for o in whole["asked"]]
    for variant in (WHOLE, *variants(asked)):
        said = whole if variant is WHOLE else measured_apart(target, variant)
        changed = sum(text != whole["kernels"][kernel] for kernel, text in said["kernels"].items())
        yield Row(target, variant.name, said["instructions"], changed, len(whole["kernels"]))


def cells(row: Row, whole: Row) -> list[str]:
    figures = []
    for instructions, least in zip(row.instructions, whole.instructions, strict=True):
        change = f" ({instructions / least - 1:+.0%})" if abs(instructions / least - 1) >= 0.005 else ""
        figures.append(f"{instructions:,.0f}{change}")
    return [row.target, row.left_out, *figures, f"{row.kernels_changed} of {row.kernels}"]


def measured_apart(target: str, variant: Variant) -> dict[str, Any]:
    command = (sys.executable, __file__, "--measure", json.dumps([target, asdict(variant)]))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise click.ClickException(f"{target} without {variant.name}: {done.stderr[-2000:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def measure(target: str, variant: Variant) -> dict[str, Any]:
    """Instructions of every case, the assembly of every kernel, and what the kernels asked for."""
    asked = listening(variant)
    instructions, kernels = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, precision in CASES:
            library = compiled(name, precision, target).library
            said = qemu.run(built(library, Path(folder) / f"{name}_{precision}", BOARDS[target]))
            assert said.parity == "PASS", (name, precision, said.parity)
            instructions.append(said.instructions_per_inference)
            for path, data in library.files.items():
                if path.endswith(".S"):
                    kernels |= {f"{name} {precision} {symbol}": code for symbol, code in functions(data.decode())}
    return {"instructions": instructions, "kernels": kernels, "asked": [asdict(options) for options in asked]}


def listening(variant: Variant) -> list[LlvmOptions]:
    """From here on kernels get what `variant` leaves them; what they asked for is added to the list."""
    asks, asked = PlacedKernel.llvm.fget, list[LlvmOptions]()

    def told(placed: PlacedKernel) -> LlvmOptions:
        asked.append(asks(placed))
        return variant.told(asked[-1])

    PlacedKernel.llvm = property(told)
    return asked


def functions(assembly: str) -> Iterator[tuple[str, str]]:
    for match in re.finditer(r"^\t\.globl\t(\w+)$(.*?)^\t\.size", assembly, re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


if __name__ == "__main__":
    report.run(main)
