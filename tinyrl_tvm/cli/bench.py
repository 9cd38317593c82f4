# SPDX-License-Identifier: Apache-2.0
"""`tinyrl-tvm bench`: one policy on several devices, as a table and as a page to hand on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from tinyrl_tvm.cli.console import json_option, progress, refuse_unwritable, say, say_json, say_table, tell
from tinyrl_tvm.errors import TinyrlError

if TYPE_CHECKING:
    from tinyrl_tvm.bench.measure import Bench, Loop, Run


@click.command("bench", short_help="Measure a library on several devices; write a report.")
@click.argument("library_path", metavar="LIBRARY.tar", type=click.Path(path_type=Path))
@click.option(
    "--device",
    "devices",
    metavar="cpu|micro:DIR",
    multiple=True,
    help="May be repeated; the order is kept. Default: cpu.",
)
@click.option("--env", "environment", metavar="ID", help="Also play gymnasium's ID, as CartPole-v1, on micro:DIR.")
@click.option("--episodes", type=click.IntRange(1), default=20, show_default=True, help="With --env.")
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="The .onnx the library was compiled from: to play the same seeds in float, and to time ONNX Runtime beside cpu.",
)
@click.option("--rpc-tracker", metavar="HOST:PORT", help="Run firmware on the servers of a farm, not on this machine.")
@click.option("--rpc-key", metavar="KEY", help="The key of those servers.")
@click.option("-o", "--output-file", type=click.Path(path_type=Path), help="The report to write, one HTML file.")
@json_option
@click.pass_context
def bench_verb(
    ctx: click.Context,
    *,
    library_path: Path,
    devices: tuple[str, ...],
    environment: str | None,
    episodes: int,
    policy: Path | None,
    rpc_tracker: str | None,
    rpc_key: str | None,
    output_file: Path | None,
    as_json: bool,
) -> None:
    """Measure LIBRARY on every device: this machine (cpu), or projects made of the same policy (micro:DIR), which are built
    first when they are not. A project may be for another core, or in another precision.

    Beside each device stands a reference from the same run: on a bare-metal board the library's portable C on the same
    board, on this machine ONNX Runtime with --policy. Exit status 1 when an answer is not the one that must come out,
    or the memory contract of a library with a budget does not hold.

    \b
    --json: module, source, sha256, parity, report (the path), devices [{...}]; of each device what 'run --json' prints, and
      runs_on, platform, target, precision
      portable_instructions_per_inference, portable_parity, instructions_ratio      to the portable C
      onnxruntime_ns_median, time_ratio                                             to ONNX Runtime
      returns [], float_returns []                                                  with --env
    """
    if environment is None and ctx.get_parameter_source("episodes") is not ParameterSource.DEFAULT:
        raise TinyrlError("--episodes goes with --env")
    if bool(rpc_tracker) != bool(rpc_key):
        raise TinyrlError("a farm takes both: --rpc-tracker HOST:PORT and --rpc-key KEY")
    from tinyrl_tvm.bench.measure import CPU, Loop, device_named, measure
    from tinyrl_tvm.device.farm import emulator
    from tinyrl_tvm.device.micro import refuse_uart
    from tinyrl_tvm.library import ModelLibrary, write_whole

    library = ModelLibrary.load(library_path)
    named = [device_named(name, library) for name in devices or (CPU,)]
    if rpc_tracker and all(device.project is None for device in named):
        raise TinyrlError("--rpc-tracker runs firmware; give a project, --device micro:DIR")
    if rpc_tracker:
        for device in named:
            if device.project is not None:
                refuse_uart(device.project, "does not run on a farm")
    if output_file is not None:
        from tinyrl_tvm.bench.plots import need_matplotlib

        refuse_unwritable(output_file, library_path, policy)
        need_matplotlib()
    loop = None if environment is None else Loop(environment, episodes)
    with progress() as begin, emulator(rpc_tracker, rpc_key) as emulate:
        bench = measure(library, named, loop=loop, policy=policy, emulate=emulate, progress=begin)
        if output_file is not None:
            from tinyrl_tvm.bench.report import render

            begin("write the report")
            typed = _command(library_path, devices, loop, policy, rpc_tracker, rpc_key, output_file)
            write_whole(output_file, render(bench, library_path, typed))
    if as_json:
        say_json({**bench.to_json(), "report": str(output_file) if output_file else None})
    else:
        _say(bench, output_file)
    for sentence in (*bench.broken, *(f"note: {missed}" for missed in bench.missed)):
        tell(sentence)
    if bench.parity != "PASS" or bench.broken:
        ctx.exit(1)


def _command(
    library: Path,
    devices: tuple[str, ...],
    loop: Loop | None,
    policy: Path | None,
    tracker: str | None,
    key: str | None,
    report: Path,
) -> list[str]:
    """What was typed, for the report."""
    words: list[str | Path] = ["tinyrl-tvm", "bench", library]
    for device in devices:
        words += ["--device", device]
    if loop is not None:
        words += ["--env", loop.environment, "--episodes", str(loop.episodes)]
    if policy is not None:
        words += ["--policy", policy]
    if tracker is not None and key is not None:
        words += ["--rpc-tracker", tracker, "--rpc-key", key]
    return [str(word) for word in (*words, "-o", report)]


def _say(bench: Bench, report: Path | None) -> None:
    say_table(
        f"{bench.library.name}, one inference (QEMU counts instructions, not time)",
        (
            "device",
            "parity",
            "instructions",
            "plain C",
            "ratio",
            "ns",
            "ONNX Runtime",
            "ratio",
            "flash",
            "RAM",
            "stack",
        ),
        [_row(run) for run in bench.runs],
    )
    for run in bench.runs:
        if run.loop is not None:
            mean = sum(run.loop.returns) / len(run.loop.returns)
            of_float = run.loop.float_returns
            beside = "" if of_float is None else f", the float policy's {sum(of_float) / len(of_float):,.2f}"
            say(f"{run.device} in {run.loop.environment}: mean return {mean:,.2f}{beside}")
    if report is not None:
        say(f"wrote '{report}'")


def _row(run: Run) -> list[object]:
    m = run.measured
    portable = run.portable.instructions_per_inference if run.portable else None
    reference = run.onnxruntime.median_ns if run.onnxruntime else None
    return [
        run.device,
        m.parity,
        _whole(m.instructions_per_inference),
        _whole(portable),
        "" if run.instructions_ratio is None else f"{run.instructions_ratio:.2f}",
        _whole(m.wall_time.median_ns if m.wall_time else None),
        _whole(reference),
        "" if run.time_ratio is None else f"{run.time_ratio:.3f}",
        *(_whole(size) for size in (m.flash_bytes, m.ram_bytes, m.stack_bytes)),
    ]


def _whole(number: float | None) -> int | str:
    return "" if number is None else round(number)
