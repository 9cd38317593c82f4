# SPDX-License-Identifier: Apache-2.0
"""Measure the reference policies and write the figures into the README.

    policies    P1 4-64-64-2 ReLU, P2 3-64-64-1 tanh, P3 24-256-256-4 ReLU; the trained cartpole and pendulum
    boards      instructions per whole inference under QEMU, flash, RAM and stack; beside them, in the same run, the
                portable C of the same policy built by GCC -O3 for the same core. int8 everywhere, float32 where it fits
    host        nanoseconds per inference of the C for this machine, median and spread; beside them ONNX Runtime's

QEMU counts instructions, not time. Flash and RAM are the firmware's less the same firmware without the inference.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import report
from each_row import instructions_of_each_row, random_rows
from firmware import HERE, POLICIES, PRECISIONS, built, compiled
from rich.console import Console
from rich.progress import Progress

from tinyrl_tvm.device import host, qemu
from tinyrl_tvm.device.emulator import Emulate
from tinyrl_tvm.device.farm import emulator
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.targets import BOARDS, board_named

DETAILED = "mps3-an547"  # the board whose instructions are also counted for each observation apart
OBSERVATIONS = 1000
BATCHES, BATCH = 31, 200  # timings on the host: medians over batches, so that a busy machine shows as spread


@dataclass(frozen=True)
class DeviceRow:
    """One policy at one precision on one board. Errors and agreement are against the float policy, over the test
    vectors; `least` and `greatest` are instructions for one observation of a thousand, None where not counted apart."""

    board: str
    policy: str
    precision: str
    parity: str
    action_agreement: float | None
    max_abs_error: float | None
    requantised: str
    instructions: float
    least: float | None
    greatest: float | None
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int
    portable_instructions: float
    portable_flash_bytes: int
    compile_seconds: float

    @property
    def ratio(self) -> float:
        return self.instructions / self.portable_instructions


@dataclass(frozen=True)
class HostRow:
    """One policy at one precision on this machine: nanoseconds, medians with the least and the greatest batch."""

    policy: str
    precision: str
    parity: str
    ns: float
    ns_low: float
    ns_high: float
    onnxruntime_ns: float
    onnxruntime_ns_low: float
    onnxruntime_ns_high: float


@click.command(help=__doc__)
@click.option("--policy", "names", multiple=True, type=click.Choice(POLICIES), help="measure only these")
@click.option(
    "--board", "boards", multiple=True, type=click.Choice(tuple(BOARDS)), help="measure only these, not the host"
)
@click.option(
    "--rpc-tracker", metavar="HOST:PORT", help=f"measure on a farm, whose servers have the --board, else {DETAILED}"
)
@click.option("--rpc-key", metavar="KEY", help="the key of those servers")
@click.option("--readme/--no-readme", default=True, help="write the tables into README.md and latency.json")
def main(
    names: tuple[str, ...], boards: tuple[str, ...], rpc_tracker: str | None, rpc_key: str | None, readme: bool
) -> None:
    if bool(rpc_tracker) != bool(rpc_key):
        raise click.UsageError("a farm takes both: --rpc-tracker HOST:PORT and --rpc-key KEY")
    if rpc_tracker and not boards:
        boards = (DETAILED,)  # servers of one key have one kind of board
    cases = [(name, precision) for name in names or POLICIES for precision in PRECISIONS]
    # first: what is missing should not be found out after the measurements
    facts = report.machine(**tools_of(boards or tuple(BOARDS)), host_compiler="cc")
    facts["python"] = sys.version.split()[0]
    on_boards: list[DeviceRow] = []
    here: list[HostRow] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(console=Console(stderr=True)) as progress,
        emulator(rpc_tracker, rpc_key) as run,
    ):
        task = progress.add_task("measuring", total=len(cases) * (len(boards or BOARDS) + (not boards)))
        for board in boards or BOARDS:
            for name, precision in cases:
                progress.update(task, description=f"{name} {precision} on {board}")
                if row := measure_on(board, name, precision, Path(folder), run):
                    on_boards.append(row)
                progress.advance(task)
        for name, precision in () if boards else cases:
            progress.update(task, description=f"{name} {precision} here")
            here.append(measure_here(name, precision))
            progress.advance(task)
    tables = "\n\n".join([*device_tables(on_boards), *([host_table(here)] if here else [])])
    click.echo(tables)
    if readme and not names and not boards:
        report.write_results("latency", facts, [*on_boards, *here])
        report.write_readme("latency", f"{tables}\n\n{report.provenance('latency.py', facts)}")
    if wrong := [f"{row.policy} {row.precision}" for row in [*on_boards, *here] if row.parity != "PASS"]:
        raise click.ClickException(f"PARITY FAIL: {', '.join(wrong)}")


def tools_of(boards: Iterable[str]) -> dict[str, str]:
    architectures = dict.fromkeys(board_named(board).architecture for board in boards)
    return {
        f"{architecture.name} {use}": tool
        for architecture in architectures
        for use, tool in (("compiler", architecture.compiler), ("emulator", architecture.emulator))
    }


def measure_on(board: str, name: str, precision: str, folder: Path, run: Emulate) -> DeviceRow | None:
    """None where the weights alone are larger than the board's flash."""
    start = time.perf_counter()
    made = compiled(name, precision, board_named(board).target)
    seconds = time.perf_counter() - start
    if (
        sum(kernel.weight.nbytes for kernel in made.kernels if hasattr(kernel, "weight"))
        > board_named(board).flash_bytes
    ):
        return None
    case = f"{board}_{name}_{precision}"
    said = qemu.run(built(made.library, folder / case, board), emulate=run).to_json()
    portable = qemu.run(
        built(compiled(name, precision, "portable").library, folder / f"{case}_c", board), emulate=run
    ).to_json()
    least = greatest = None
    if board == DETAILED and precision == "int8":  # a hundred thousand inferences: minutes, of a large float policy
        rows = random_rows(made.library, OBSERVATIONS)
        counts = instructions_of_each_row(made.library, rows, folder / f"{case}_rows", board, run)
        least, greatest = float(counts.min()), float(counts.max())
    return DeviceRow(
        board,
        name,
        precision,
        said["parity"],
        said["action_agreement"],
        said["max_abs_error"],
        requantised(made.kernels),
        said["instructions_per_inference"],
        least,
        greatest,
        said["flash_bytes"],
        said["ram_bytes"],
        said["stack_bytes"],
        portable["instructions_per_inference"],
        portable["flash_bytes"],
        seconds,
    )


def requantised(kernels: Iterable[Any]) -> str:
    """How each int8 hidden layer comes back to codes: a multiplier an output, one of the layer, or its shift alone."""
    ways = []
    for kernel in kernels:
        if type(kernel).__name__ == "DenseCodes":
            multiplier = kernel.multiplier
            ways.append("shift" if multiplier is None else "one" if np.size(multiplier) == 1 else "per output")
    return ", ".join(ways)


def measure_here(name: str, precision: str) -> HostRow:
    library = compiled(name, precision, "host").library
    ran = host.run(library, timed=True)
    assert ran.wall_time is not None
    times = (ran.wall_time.median_ns, ran.wall_time.low_ns, ran.wall_time.high_ns)
    return HostRow(name, precision, str(ran.parity), *times, *onnxruntime_ns(name, library))


def onnxruntime_ns(name: str, library: ModelLibrary) -> tuple[float, float, float]:
    """Median, least and greatest nanoseconds a row over batches; one row at a time on one thread, like a control loop."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(HERE / "policies" / f"{name}.onnx", options)
    entry = session.get_inputs()[0]
    outputs = [session.get_outputs()[0].name]
    rows = [{entry.name: row[np.newaxis]} for row in library.vectors()["observations"]]
    session.run(outputs, rows[0])
    times = []
    for _ in range(BATCHES):
        start = time.perf_counter_ns()
        for index in range(BATCH):
            session.run(outputs, rows[index % len(rows)])
        times.append((time.perf_counter_ns() - start) / BATCH)
    return float(np.median(times)), min(times), max(times)


def device_tables(rows: list[DeviceRow]) -> list[str]:
    detailed = [row for row in rows if row.board == DETAILED]
    return [*([detailed_table(detailed)] if detailed else []), *boards_tables(rows)]


def detailed_table(rows: list[DeviceRow]) -> str:
    head = (
        "policy | precision | parity | hidden layers requantise | action = float's | max error | instructions | "
        f"least to greatest of {OBSERVATIONS:,} | GCC -O3 of the C | ratio | flash B | RAM B | stack B"
    )
    cells = [
        (
            row.policy,
            row.precision,
            row.parity,
            row.requantised,
            _share(row.action_agreement),
            _error(row.max_abs_error),
            f"{row.instructions:,.0f}",
            "" if row.least is None else f"{row.least:,.0f} to {row.greatest:,.0f}",
            f"{row.portable_instructions:,.0f}",
            f"{row.ratio:.2f}",
            f"{row.flash_bytes:,}",
            f"{row.ram_bytes:,}",
            f"{row.stack_bytes:,}",
        )
        for row in rows
    ]
    return f"{board_named(DETAILED).summary}, instructions per whole inference:\n\n{report.table(head, cells, 4)}"


def boards_tables(rows: list[DeviceRow]) -> list[str]:
    """A row a policy, a column a board."""
    boards = list(dict.fromkeys(row.board for row in rows))
    cases = list(dict.fromkeys((row.policy, row.precision) for row in rows))
    found = {(row.policy, row.precision, row.board): row for row in rows}
    head = " | ".join(["policy", "precision", *(f"{board} ({board_named(board).target})" for board in boards)])

    def matrix(cell: Callable[[DeviceRow], str]) -> str:
        lines = []
        for policy, precision in cases:
            here = [found.get((policy, precision, board)) for board in boards]
            lines.append((policy, precision, *(cell(row) if row else "too large" for row in here)))
        return report.table(head, lines)

    verdict = "parity PASS everywhere" if all(row.parity == "PASS" for row in rows) else "**parity FAIL** somewhere"
    return [
        f"Every board, instructions per whole inference, and in brackets the part they are of GCC -O3's; {verdict}:\n\n"
        + matrix(lambda row: f"{row.instructions:,.0f} ({row.ratio:.2f})"),
        "Flash / RAM / stack bytes:\n\n"
        + matrix(lambda row: f"{row.flash_bytes:,} / {row.ram_bytes:,} / {row.stack_bytes:,}"),
    ]


def host_table(rows: list[HostRow]) -> str:
    head = "policy | precision | parity | C here, ns (least to greatest) | ONNX Runtime, ns (least to greatest) | ratio"
    cells = [
        (
            row.policy,
            row.precision,
            row.parity,
            f"{row.ns:,.0f} ({row.ns_low:,.0f} to {row.ns_high:,.0f})",
            f"{row.onnxruntime_ns:,.0f} ({row.onnxruntime_ns_low:,.0f} to {row.onnxruntime_ns_high:,.0f})",
            f"{row.ns / row.onnxruntime_ns:.3f}",
        )
        for row in rows
    ]
    return f"This machine's C compiler, one row at a time on one thread:\n\n{report.table(head, cells, 3)}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


if __name__ == "__main__":
    report.run(main)
