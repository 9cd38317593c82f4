# SPDX-License-Identifier: Apache-2.0
"""`tinyrl-tvm run`: ask a policy on a device, and say whether it answers as it must and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinyrl_tvm.cli.console import json_option, progress, refuse_unwritable, say, say_json
from tinyrl_tvm.errors import TinyrlError, unknown_name

if TYPE_CHECKING:
    import numpy as np

    from tinyrl_tvm.device.measurement import Measurement

DEVICES = ("cpu", "micro")
ROWS_NAMED = 5  # of observations that were refused


@click.command("run", short_help="Run a library on this machine, or a project on its board.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--device", metavar="cpu|micro", help="Default: micro for a folder, cpu for a library.")
@click.option("-i", "--inputs", type=click.Path(path_type=Path), help="Observations, .npz. Default: the test vectors.")
@click.option("-o", "--outputs", type=click.Path(path_type=Path), help="Write the answers, .npz with one array action.")
@click.option("--print-time", is_flag=True, help="Also take the wall time, on this machine.")
@json_option
@click.pass_context
def run_verb(
    ctx: click.Context,
    *,
    path: Path,
    device: str | None,
    inputs: Path | None,
    outputs: Path | None,
    print_time: bool,
    as_json: bool,
) -> None:
    """Run PATH: a model library on this machine (--device cpu), or a project's folder on its board (--device micro;
    it is built first when it is not).

    The policy takes raw observations, as the environment gives them. INPUTS holds one array an input, named as it and
    samples first; a single array may have any name. Every run also replays the library's test vectors: PARITY PASS
    when all of them are answered as they must be. Exit status 1 when not.

    \b
    --json, null where not measured:
      device, rows, nonzero_statuses       what was run on, observations answered, of them refused (NaN or infinite)
      parity                               "PASS" or "FAIL", against the answers that must come out
      vectors_right, vectors_total, parity_max_abs_error
      action_agreement                     of decisions: the fraction equal to the float policy's
      max_abs_error                        of continuous actions: the largest distance from the float policy's
      instructions_per_inference           instructions, never cycles or time
      flash_bytes, ram_bytes, stack_bytes  the policy's alone
      wall_time_ns_median, _low, _high     with --print-time; the 10th and the 90th percentile
    """
    device = _device(path, device)
    if outputs is not None:
        refuse_unwritable(outputs, inputs, path)
    with progress() as begin:
        begin("build and run")
        measured = _on_cpu(path, inputs, print_time) if device == "cpu" else _on_micro(path, inputs, print_time)
    if outputs is not None:
        _write_actions(outputs, measured.actions)
    if as_json:
        say_json(measured.to_json())
    else:
        _say(measured, print_time)
    if measured.parity != "PASS":
        ctx.exit(1)


def _device(path: Path, device: str | None) -> str:
    if device is not None and device not in DEVICES:
        raise unknown_name("device", device, DEVICES)
    if device == "cpu" and path.is_dir():
        raise TinyrlError(f"'{path}' is a folder and --device cpu takes a library .tar; --device micro runs a project")
    if device == "micro" and path.is_file():
        raise TinyrlError(
            f"'{path}' is a file and --device micro takes a project's folder; "
            f"'tinyrl-tvm micro create DIR {path} PLATFORM' makes one"
        )
    return device or ("micro" if path.is_dir() else "cpu")


def _on_cpu(path: Path, inputs: Path | None, timed: bool) -> Measurement:
    from tinyrl_tvm.device import host
    from tinyrl_tvm.device.observations import read_observations
    from tinyrl_tvm.interface import Interface
    from tinyrl_tvm.library import ModelLibrary

    library = ModelLibrary.load(path)
    observations = read_observations(inputs, Interface.of(library)) if inputs else None
    return host.run(library, observations, timed=timed)


def _on_micro(path: Path, inputs: Path | None, timed: bool) -> Measurement:
    from tinyrl_tvm import project as projects
    from tinyrl_tvm.device import micro
    from tinyrl_tvm.device.observations import read_observations

    project = projects.load(path)
    observations = read_observations(inputs, project.interface) if inputs else None
    try:
        projects.built(project)
    except TinyrlError:
        projects.build(project)
    return micro.run(project, observations, timed=timed)


def _write_actions(path: Path, actions: np.ndarray) -> None:
    import io

    import numpy as np

    from tinyrl_tvm.library import write_whole

    archive = io.BytesIO()
    np.savez(archive, action=actions)
    write_whole(path, archive.getvalue())


def _say(measured: Measurement, timed: bool) -> None:
    parity, likeness = measured.vectors, measured.likeness
    say(f"device: {measured.device}")
    if parity:
        say(f"PARITY {parity.verdict} ({parity.right} of {parity.total})")
        if parity.verdict != "PASS":
            say(f"largest error against what must come out: {parity.max_abs_error:.6g}")
    if likeness and likeness.action_agreement is not None:
        say(f"action agreement with the float policy: {100 * likeness.action_agreement:.2f} %")
    if likeness and likeness.max_abs_error is not None:
        say(f"largest error against the float policy: {likeness.max_abs_error:.6g}")
    if (count := measured.instructions_per_inference) is not None:
        say(f"instructions per inference: {count:,.2f} (QEMU counts instructions, not time)")
    for name, size in (("flash", measured.flash_bytes), ("RAM", measured.ram_bytes), ("stack", measured.stack_bytes)):
        if size is not None:
            say(f"{name}: {size:,} B")
    if (time := measured.wall_time) is not None:
        spread = f"{time.low_ns:,.1f} to {time.high_ns:,.1f} ns, 10th to 90th percentile of {time.batches} batches"
        say(f"time per inference on this machine: {time.median_ns:,.1f} ns ({spread})")
    elif timed:
        say("time per inference: n/a (an emulator has no time of its own)")
    _say_refused(measured.statuses)


def _say_refused(statuses: np.ndarray) -> None:
    import numpy as np

    rows = np.flatnonzero(statuses)
    if len(rows):
        named = ", ".join(f"row {row} status {statuses[row]}" for row in rows[:ROWS_NAMED])
        more = ", ..." if len(rows) > ROWS_NAMED else ""
        say(f"nonzero status for {len(rows):,} of {len(statuses):,} observations: {named}{more}")
