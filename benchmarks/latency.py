# SPDX-License-Identifier: Apache-2.0
"""Measure the reference policies and write the figures into the README.

    policies    P1 4-64-64-2 ReLU, P2 3-64-64-1 tanh, P3 24-256-256-4 ReLU; the trained cartpole and pendulum
    QEMU        instructions per whole inference on mps3-an547, flash, RAM and stack; beside them, in the same run, the
                portable C of the same policy built by GCC -O3 for the same core
    host        nanoseconds per inference of the C for this machine, median and spread; beside them ONNX Runtime's

QEMU counts instructions, not time. Flash and RAM are the firmware's less the same firmware without the inference.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from tinyrl_tvm import project as projects
from tinyrl_tvm.device import host, qemu
from tinyrl_tvm.library import ModelLibrary, write_whole
from tinyrl_tvm.pipeline import compile_policy
from tinyrl_tvm.toolchain import find

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RESULTS = HERE / "latency.json"
POLICIES = ("P1", "P2", "P3", "cartpole", "pendulum")
PRECISIONS = ("int8", "float32")
BOARD = "mps3-an547"
BATCHES, BATCH = 31, 200  # timings on the host: medians over batches, so that a busy machine shows as spread


@dataclass(frozen=True)
class Row:
    """One policy at one precision. Errors and agreement are against the float policy, over the test vectors."""

    policy: str
    precision: str
    parity_host: str
    parity_qemu: str
    action_agreement: float | None
    max_abs_error: float | None
    instructions: float
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int
    portable_instructions: float
    portable_flash_bytes: int
    host_ns: float
    host_ns_low: float
    host_ns_high: float
    onnxruntime_ns: float
    onnxruntime_ns_low: float
    onnxruntime_ns_high: float
    compile_seconds: float


@click.command(help=__doc__)
@click.option("--policy", "names", multiple=True, type=click.Choice(POLICIES), help="measure only these")
@click.option("--readme/--no-readme", default=True, help="write the tables into README.md and latency.json")
def main(names: tuple[str, ...], readme: bool) -> None:
    cases = [(name, precision) for name in names or POLICIES for precision in PRECISIONS]
    facts = machine()  # first: what is missing should not be found out after the measurements
    rows = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring", total=len(cases))
        for name, precision in cases:
            progress.update(task, description=f"{name} {precision}")
            rows.append(measure(name, precision, Path(folder)))
            progress.advance(task)
    tables = "\n\n".join((device_table(rows), host_table(rows)))
    click.echo(tables)
    if readme and not names:
        write_whole(
            RESULTS, (json.dumps({"machine": facts, "rows": [asdict(r) for r in rows]}, indent=2) + "\n").encode()
        )
        write_readme(f"{tables}\n\n{provenance(facts)}")
    if wrong := [f"{r.policy} {r.precision}" for r in rows if (r.parity_host, r.parity_qemu) != ("PASS", "PASS")]:
        raise click.ClickException(f"PARITY FAIL: {', '.join(wrong)}")


def measure(name: str, precision: str, folder: Path) -> Row:
    start = time.perf_counter()
    library = compiled(name, precision, "cortex-m55")
    seconds = time.perf_counter() - start
    device = qemu.run(built(library, folder / f"{name}_{precision}"))
    portable = qemu.run(built(compiled(name, precision, "portable"), folder / f"{name}_{precision}_c"))
    here = host.run(compiled(name, precision, "host"), timed=True)
    assert here.wall_time is not None
    reference = onnxruntime_ns(name, library)
    said = device.to_json()
    return Row(
        name,
        precision,
        str(here.parity),
        str(device.parity),
        said["action_agreement"],
        said["max_abs_error"],
        said["instructions_per_inference"],
        said["flash_bytes"],
        said["ram_bytes"],
        said["stack_bytes"],
        portable.to_json()["instructions_per_inference"],
        portable.to_json()["flash_bytes"],
        here.wall_time.median_ns,
        here.wall_time.low_ns,
        here.wall_time.high_ns,
        *reference,
        seconds,
    )


def compiled(name: str, precision: str, target: str) -> ModelLibrary:
    calibration = HERE / "policies" / f"{name}.npz"
    return compile_policy(
        HERE / "policies" / f"{name}.onnx", target=target, precision=precision, calibration=calibration
    ).library


def built(library: ModelLibrary, folder: Path) -> projects.Project:
    project = projects.create(library, folder, "baremetal", {"board": BOARD})
    projects.build(project)
    return project


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


def device_table(rows: list[Row]) -> str:
    head = (
        "| policy | precision | parity | action = float's | max error | instructions | GCC -O3 of the C | ratio "
        "| flash B | RAM B | stack B |"
    )
    lines = [
        f"| {r.policy} | {r.precision} | {r.parity_qemu} | {_share(r.action_agreement)} | {_error(r.max_abs_error)} "
        f"| {r.instructions:,.0f} | {r.portable_instructions:,.0f} | {r.instructions / r.portable_instructions:.2f} "
        f"| {r.flash_bytes:,} | {r.ram_bytes:,} | {r.stack_bytes:,} |"
        for r in rows
    ]
    return "\n".join([f"QEMU {BOARD} (Cortex-M55), instructions per whole inference:", "", head, _rule(head), *lines])


def host_table(rows: list[Row]) -> str:
    head = "| policy | precision | parity | C here, ns (least to greatest) | ONNX Runtime, ns (least to greatest) | ratio |"
    lines = [
        f"| {r.policy} | {r.precision} | {r.parity_host} | {r.host_ns:,.0f} ({r.host_ns_low:,.0f} to {r.host_ns_high:,.0f}) "
        f"| {r.onnxruntime_ns:,.0f} ({r.onnxruntime_ns_low:,.0f} to {r.onnxruntime_ns_high:,.0f}) "
        f"| {r.host_ns / r.onnxruntime_ns:.3f} |"
        for r in rows
    ]
    return "\n".join(["This machine's C compiler, one row at a time on one thread:", "", head, _rule(head), *lines])


def _rule(head: str) -> str:
    return "|" + "|".join(["---", "---", "---"] + ["---:"] * (head.count("|") - 4)) + "|"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def machine() -> dict[str, str]:
    """What the figures depend on."""

    def first_line(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[0]

    return {
        "commit": commit(),
        "cross_compiler": first_line(str(find("arm-none-eabi-gcc")), "--version"),
        "host_compiler": first_line(str(find("cc")), "--version"),
        "emulator": first_line(str(find("qemu-system-arm")), "--version"),
        "python": sys.version.split()[0],
    }


def commit() -> str:
    command = ("git", "-C", str(HERE), "describe", "--always", "--dirty")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "n/a (no git repository)"


def provenance(facts: dict[str, str]) -> str:
    return (
        f"Written by `python benchmarks/latency.py` at {facts['commit']} with {facts['cross_compiler']}, "
        f"{facts['emulator']}, {facts['host_compiler']}."
    )


def write_readme(text: str) -> None:
    """Between the two marks in the README."""
    marks = r"(<!-- latency -->\n).*?(<!-- /latency -->)"
    before = README.read_text()
    after, count = re.subn(marks, lambda match: f"{match[1]}{text}\n{match[2]}", before, flags=re.DOTALL)
    if count != 1:
        raise click.ClickException(f"{README.name} has no '<!-- latency -->' marks to write the tables between")
    write_whole(README, after.encode())


if __name__ == "__main__":
    main()
