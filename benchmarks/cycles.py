# SPDX-License-Identifier: Apache-2.0
"""Estimate Cortex-M55 cycles of the reference policies, and write the table into the README.

    trace     every instruction of one whole inference, in the order QEMU executed them
    estimate  LLVM's model of the core (llvm-mca) run over that straight line: AN ESTIMATE. It knows latencies and dual
              issue; it knows no memory, no branch, no flash wait state
    bound     for every layer max(MACs / 8, bytes of weights / 8), and one cycle for every look-up in a table: what a core
              that multiplies 8 int8 pairs or loads 8 bytes a cycle needs at least. Weights are 1 byte in int8, 4 in float32

llvm-mca is in Debian's package llvm-19.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import report
from firmware import POLICIES, PRECISIONS, built, compiled
from rich.console import Console
from rich.progress import Progress

from tinyrl_tvm import project as projects
from tinyrl_tvm.device import qemu
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.targets import board_named
from tinyrl_tvm.toolchain import find

BOARD = "mps3-an547"
CORE = ("-mtriple=thumbv8.1m.main-none-eabihf", "-mcpu=cortex-m55")
MACS_A_CYCLE = BYTES_A_CYCLE = 8

# "Trace 0: <host address> [<cs base>/<pc>/<flags>/<flags>] <symbol>"
TRACED = re.compile(r"^Trace 0: \S+ \[\w+/(\w+)/", re.MULTILINE)
# "      40:       push    {r4, lr}", a comment behind it
DISASSEMBLED = re.compile(r"^\s*([0-9a-f]+):\s+(\S[^@\n]*)", re.MULTILINE)
TARGET_OF_BRANCH = re.compile(r"(?:0x[0-9a-f]+|#-?\d+) <[^>]*>")


@dataclass(frozen=True)
class Row:
    """One policy at one precision. `instructions` are SysTick's, `traced` the trace's; cycles are an estimate."""

    policy: str
    precision: str
    instructions: float
    traced: int
    estimated_cycles: int
    bound_cycles: float

    @property
    def cells(self) -> tuple[str, ...]:
        return (
            self.policy,
            self.precision,
            f"{self.instructions:,.0f}",
            f"{self.traced:,}",
            f"{self.estimated_cycles:,}",
            f"{self.traced / self.estimated_cycles:.2f}",
            f"{self.bound_cycles:,.0f}",
            f"{self.bound_cycles / self.estimated_cycles:.0%}",
        )


@click.command(help=__doc__)
@click.option("--policy", "names", multiple=True, type=click.Choice(POLICIES), help="estimate only these")
@click.option("--readme/--no-readme", default=True, help="write the table into README.md and cycles.json")
def main(names: tuple[str, ...], readme: bool) -> None:
    cases = [(name, precision) for name in names or POLICIES for precision in PRECISIONS]
    facts = report.machine(model="llvm-mca", cross_compiler="arm-none-eabi-gcc", emulator="qemu-system-arm")
    rows = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        for name, precision in progress.track(cases, description="tracing"):
            rows.append(measure(name, precision, Path(folder)))
    head = (
        "policy | precision | instructions | in the trace | cycles, estimate | IPC | bound, cycles | bound / estimate"
    )
    table = report.table(head, (row.cells for row in rows))
    click.echo(table)
    if readme and not names:
        report.write_results("cycles", facts, rows)
        report.write_readme("cycles", f"{table}\n\n{report.provenance('cycles.py', facts)}")


def measure(name: str, precision: str, folder: Path) -> Row:
    made = compiled(name, precision, "cortex-m55")
    whole = qemu.run(built(made.library, folder / f"{name}_{precision}", BOARD))
    assert whole.instructions_per_inference is not None
    once = built(made.library, folder / f"{name}_{precision}_once", BOARD, main="once.c")
    stream = executed(once)
    return Row(
        name,
        precision,
        whole.instructions_per_inference,
        len(stream),
        estimate(stream),
        sum(bound(kernel) for kernel in made.kernels),
    )


def executed(project: projects.Project) -> list[str]:
    """The disassembled instructions from the policy's first to the last before its caller's next, as executed."""
    firmware = projects.built(project).products[0]
    policy, caller = (extent(firmware, name) for name in (f"{project.interface.name}_predict", "main"))
    trace = addresses(project, firmware)
    first = trace.index(policy.start)
    last = next(index for index in range(first, len(trace)) if trace[index] in caller)
    text = disassembled(firmware)
    return [text[address] for address in trace[first:last]]


def addresses(project: projects.Project, firmware: Path) -> list[int]:
    """Where every instruction of a run lay: QEMU translates one at a time and logs each time it enters one."""
    log, board = project.folder / "trace.log", board_named(project.options["board"])
    one_at_a_time = ("-singlestep", "-d", "exec,nochain", "-D", log)
    subprocess.run(
        (find(board.architecture.emulator), *board.emulator_arguments, *one_at_a_time, "-kernel", firmware),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=True,
    )
    return [int(pc, 16) for pc in TRACED.findall(log.read_text())]


def extent(firmware: Path, function: str) -> range:
    from elftools.elf.elffile import ELFFile

    with firmware.open("rb") as stream:
        (symbol,) = ELFFile(stream).get_section_by_name(".symtab").get_symbol_by_name(function)
        start = symbol["st_value"] & ~1  # the lowest bit says Thumb
        return range(start, start + symbol["st_size"])


def disassembled(firmware: Path) -> dict[int, str]:
    mca = find("llvm-mca")
    objdump = mca.with_name(mca.name.replace("mca", "objdump"))  # of the same package, and of the same spelling
    command = (objdump, "--disassemble", "--no-show-raw-insn", "--mcpu=cortex-m55", firmware)
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {int(address, 16): " ".join(text.split()) for address, text in DISASSEMBLED.findall(listing)}


def estimate(stream: Iterable[str]) -> int:
    """Cycles of the straight line, by llvm-mca; what its model of the core lacks (`dls`, `vmrs`) costs a cycle each.

    Raises TinyrlError for what it does not take for an instruction at all.
    """
    line = list(straightened(stream))
    listing = "\n".join([".syntax unified", ".Lthere:", *line, ""])
    options = (
        "--iterations=1",
        "--all-views=false",
        "--summary-view",
        "--json",
        "-skip-unsupported-instructions=lack-sched",
    )
    done = subprocess.run(
        (find("llvm-mca"), *CORE, *options), input=listing, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise TinyrlError(f"llvm-mca refuses the trace: {' '.join(done.stderr.split())[:300]}")
    summary: dict[str, Any] = json.loads(done.stdout)["CodeRegions"][0]["SummaryView"]
    return int(summary["TotalCycles"]) + len(line) - int(summary["Instructions"])


def straightened(stream: Iterable[str]) -> Iterator[str]:
    """What llvm-mca can take as one line of instructions.

    The end of a low-overhead loop goes: after the first round the core runs from the loop's start without it. A call is a
    branch: llvm-mca would add 100 cycles for a callee it does not see, and ours follows in the trace.
    """
    for instruction in stream:
        mnemonic, _, operands = TARGET_OF_BRANCH.sub(".Lthere", instruction).partition(" ")
        if mnemonic in ("le", "letp"):
            continue
        yield "b .Lthere" if mnemonic in ("bl", "blx") else f"{mnemonic} {operands}"


def bound(kernel: Any) -> float:
    """Cycles a kernel needs at least; see the head of this file. Only layers have weights, only tables are looked up in."""
    weight = getattr(kernel, "weight", None)
    if weight is None:
        return 0.0
    n_out, n_in = weight.shape
    weight_bytes = 4 if str(weight.dtype) == "float32" else 1
    tables = [getattr(part, "table", None) is not None for part in (kernel, getattr(kernel, "answer", None))]
    return max(n_out * n_in / MACS_A_CYCLE, n_out * n_in * weight_bytes / BYTES_A_CYCLE) + n_out * sum(tables)


if __name__ == "__main__":
    report.run(main)
