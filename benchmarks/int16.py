# SPDX-License-Identifier: Apache-2.0
"""Measure the reference policies in int16 beside int8 and write the table into the README.

    boards      mps3-an547 (Cortex-M55) and mps2-an386 (Cortex-M4): instructions per whole inference under QEMU, flash
    error       the largest difference from the float policy over the test vectors, or how many actions are its own

QEMU counts instructions, not time. Flash is the firmware's less the same firmware without the inference.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import report
from firmware import POLICIES, built, compiled

from tinyrl_tvm.device import qemu
from tinyrl_tvm.targets import board_named

BOARDS = ("mps3-an547", "mps2-an386")
PRECISIONS = ("int8", "int16")


@dataclass(frozen=True)
class Row:
    policy: str
    precision: str
    board: str
    parity: str
    action_agreement: float | None
    max_abs_error: float | None
    instructions: float
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int


@click.command(help=__doc__)
@click.option("--policy", "names", multiple=True, type=click.Choice(POLICIES), help="measure only these")
@click.option("--readme/--no-readme", default=True, help="write the table into README.md and int16.json")
def main(names: tuple[str, ...], readme: bool) -> None:
    facts = report.machine(compiler=board_named(BOARDS[0]).architecture.compiler, emulator="qemu-system-arm")
    cases = [(name, precision, board) for name in names or POLICIES for precision in PRECISIONS for board in BOARDS]
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(*case, Path(folder)) for case in cases]
    text = table(rows)
    click.echo(text)
    if readme and not names:
        report.write_results("int16", facts, rows)
        report.write_readme("int16", f"{text}\n\n{report.provenance('int16.py', facts)}")
    if wrong := [f"{row.policy} {row.precision} on {row.board}" for row in rows if row.parity != "PASS"]:
        raise click.ClickException(f"PARITY FAIL: {', '.join(wrong)}")


def measure(name: str, precision: str, board: str, folder: Path) -> Row:
    library = compiled(name, precision, board_named(board).target).library
    said = qemu.run(built(library, folder / f"{name}_{precision}_{board}", board)).to_json()
    keys = ("parity", "action_agreement", "max_abs_error", "instructions_per_inference")
    return Row(name, precision, board, *(said[key] for key in (*keys, "flash_bytes", "ram_bytes", "stack_bytes")))


def table(rows: list[Row]) -> str:
    """A line a policy and precision; a board's figures side by side."""
    head = "policy | precision | parity | error or agreement | "
    head += " | ".join(f"{board_named(board).target}, instructions | flash / RAM / stack B" for board in BOARDS)
    lines = []
    for policy, precision in dict.fromkeys((row.policy, row.precision) for row in rows):
        here = [row for row in rows if (row.policy, row.precision) == (policy, precision)]
        first = here[0]
        judged = f"{first.action_agreement:.1%}" if first.max_abs_error is None else f"{first.max_abs_error:.4f}"
        cells = [
            cell
            for row in here
            for cell in (f"{row.instructions:,.0f}", f"{row.flash_bytes:,} / {row.ram_bytes:,} / {row.stack_bytes:,}")
        ]
        lines.append((policy, precision, first.parity, judged, *cells))
    return report.table(head, lines, 3)


if __name__ == "__main__":
    report.run(main)
