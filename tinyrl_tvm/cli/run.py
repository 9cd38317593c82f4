# SPDX-License-Identifier: Apache-2.0
"""`tinyrl-tvm run`: ask a policy on a device, and say whether it answers as it must and what it costs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tinyrl_tvm.cli.console import json_option, progress, refuse_unwritable, say, say_json, say_table, tell
from tinyrl_tvm.cli.contract import judge, memory_of, say_painted
from tinyrl_tvm.errors import TinyrlError, unknown_name

if TYPE_CHECKING:
    import numpy as np

    from tinyrl_tvm.device.closed_loop import ClosedLoop
    from tinyrl_tvm.device.measurement import Measurement
    from tinyrl_tvm.device.profile import Profile
    from tinyrl_tvm.device.serial_line import Port

DEVICES = ("cpu", "micro")
_LOOP_ALONE = {
    "environment": "--env",
    "episodes": "--episodes",
    "control_hz": "--control-hz",
    "noise": "--noise",
    "policy": "--policy",
    "ticks_ms": "--tick-ms",
    "plot": "--plot",
}
_NEVER_IN_A_LOOP = {
    "inputs": "-i",
    "print_time": "--print-time",
    "profile": "--profile",
    "rpc_tracker": "--rpc-tracker",
    "rpc_key": "--rpc-key",
}
_NEVER_AT_A_PORT = {"profile": "--profile", "rpc_tracker": "--rpc-tracker", "rpc_key": "--rpc-key"}
BAUD = 115200
ROWS_NAMED = 5  # of observations that were refused


class Numbers(click.ParamType):
    """Milliseconds: 20, or 5,10,20."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            numbers = tuple(float(word) for word in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' are no ticks; give milliseconds, as 20 or 5,10,20", param, ctx)
        if not all(math.isfinite(number) and number > 0 for number in numbers) or len(set(numbers)) != len(numbers):
            self.fail(f"'{value}' are no ticks; give different milliseconds, as 20 or 5,10,20", param, ctx)
        return numbers


@click.command("run", short_help="Run a library on this machine, or a project on its board.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--device", metavar="cpu|micro", help="Default: micro for a folder, cpu for a library.")
@click.option("-i", "--inputs", type=click.Path(path_type=Path), help="Observations, .npz. Default: the test vectors.")
@click.option("-o", "--outputs", type=click.Path(path_type=Path), help="Write the answers, .npz with one array action.")
@click.option("--print-time", is_flag=True, help="Also take the wall time; an emulator has none of its own.")
@click.option("--profile", is_flag=True, help="Also say what each layer costs.")
@click.option("--rpc-tracker", metavar="HOST:PORT", help="Run the project's firmware on a server of this tracker.")
@click.option("--rpc-key", metavar="KEY", help="On one of its servers that have this key.")
@click.option("--closed-loop", is_flag=True, help="Step --env on this machine, with the policy on the device.")
@click.option("--env", "environment", metavar="ID", help="With --closed-loop: gymnasium's name, as CartPole-v1.")
@click.option("--episodes", type=click.IntRange(1), default=20, show_default=True, help="With --closed-loop.")
@click.option(
    "--control-hz", type=click.FloatRange(0, min_open=True), help="With --closed-loop: count deadlines missed."
)
@click.option(
    "--noise", type=click.FloatRange(0), default=0.0, help="With --closed-loop: added to observations, Gaussian sigma."
)
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="With --closed-loop: the .onnx the library was compiled from, to play the same seeds in float.",
)
@click.option("--port", metavar="TTY", help="The board is at this serial port, as /dev/ttyACM0, and flashed.")
@click.option("--baud", type=click.IntRange(1), default=BAUD, show_default=True, help="With --port.")
@click.option(
    "--tick-ms",
    "ticks_ms",
    type=Numbers(),
    metavar="T,...",
    help="With --closed-loop: ask the policy every T ms and hold its action; several are compared.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="With --closed-loop: draw it, .png or .svg.")
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
    profile: bool,
    rpc_tracker: str | None,
    rpc_key: str | None,
    closed_loop: bool,
    environment: str | None,
    episodes: int,
    control_hz: float | None,
    noise: float,
    policy: Path | None,
    port: str | None,
    baud: int,
    ticks_ms: tuple[float, ...] | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Run PATH: a model library on this machine (--device cpu), or a project's folder on its board (--device micro;
    it is built first when it is not; with --rpc-tracker and --rpc-key the board is another machine's, see 'rpc-server').

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
      clock_hz, us_at_an_instruction_a_cycle   the emulated board's clock, and what follows from it: no measurement
      ticks_per_inference                  with --port: of the board's own counter
      flash_bytes, ram_bytes, stack_bytes  the policy's alone
      memory {}                            as 'micro build' has it, with the stack's painted_bytes
      wall_time_ns_median, _low, _high     with --print-time or --profile; the 10th and the 90th percentile
      profile                              with --profile: unit, inference, rest (in no layer), layers [{function, summary,
                                           place, parameter_bytes, cost, share}]
    with --closed-loop, where OUTPUTS is a .csv with a row a step:
      device, environment, episodes, steps, returns [], float_returns [], mean_return, float_mean_return
      instructions_percentiles {}          of an inference: 50, 90, 99, 100; with --port null, and ticks_percentiles {}
      clock_hz, control_hz, deadline_misses
      nonzero_statuses, resets             answers with a status, times that the board began anew
      tick_ms, dt_ms, steps_per_action     with --tick-ms; sweep [] has all of these keys for every tick, the rest are
                                           of the first
    """
    device = _device(path, device)
    _refuse_at_odds(ctx, device)
    board_port = _port(port, baud)
    if outputs is not None:
        kind = ".csv" if closed_loop else ".npz"
        if outputs.suffix.lower() != kind:
            where = "with" if closed_loop else "without"
            raise TinyrlError(f"-o writes a {kind} {where} --closed-loop, not '{outputs.name}'")
        refuse_unwritable(outputs, inputs, policy, path)
    if closed_loop:
        assert environment is not None
        if plot is not None:
            from tinyrl_tvm.device.loop_plot import refuse_undrawable

            refuse_undrawable(plot)
            refuse_unwritable(plot, policy, path, outputs)
        _closed_loop(
            path, outputs, plot, environment, episodes, noise, policy, ticks_ms, control_hz, board_port, as_json
        )
        return
    with progress() as begin:
        begin("build and run")
        if device == "cpu":
            measured = _on_cpu(path, inputs, print_time, profile)
        else:
            measured = _on_micro(path, inputs, print_time, profile, rpc_tracker, rpc_key, board_port)
        memory = memory_of(path, measured) if device == "micro" else None
    if outputs is not None:
        _write_actions(outputs, measured.actions)
    if as_json:
        say_json(measured.to_json() | {"memory": memory.to_json() if memory else None})
    else:
        _say(measured, print_time)
        if memory:
            say_painted(memory)
        _say_written(outputs)
    if measured.parity != "PASS":
        ctx.exit(1)
    judge(memory)


def _refuse_at_odds(ctx: click.Context, device: str) -> None:
    given = [name for name in ctx.params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
    for name, option in (_LOOP_ALONE if "closed_loop" not in given else _NEVER_IN_A_LOOP).items():
        if name in given:
            goes = "goes" if "closed_loop" not in given else "does not go"
            raise TinyrlError(f"{option} {goes} with --closed-loop")
    if "closed_loop" in given and (device != "micro" or "environment" not in given):
        raise TinyrlError("--closed-loop takes a project's folder and --env, as in --env CartPole-v1")
    if ("rpc_tracker" in given) != ("rpc_key" in given):
        raise TinyrlError("a farm takes both: --rpc-tracker HOST:PORT and --rpc-key KEY")
    if "rpc_tracker" in given and device != "micro":
        raise TinyrlError("--rpc-tracker goes with --device micro and a project's folder")
    if "baud" in given and "port" not in given:
        raise TinyrlError("--baud goes with --port")
    if "port" in given and device != "micro":
        raise TinyrlError("--port goes with --device micro and a project's folder")
    for name, option in _NEVER_AT_A_PORT.items():
        if name in given and "port" in given:
            raise TinyrlError(f"{option} does not go with --port")


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


def _port(path: str | None, baud: int) -> Port | None:
    if path is None:
        return None
    from tinyrl_tvm.device.serial_line import Port

    return Port(path, baud)


def _on_cpu(path: Path, inputs: Path | None, timed: bool, profiled: bool) -> Measurement:
    from tinyrl_tvm.device import host
    from tinyrl_tvm.device.observations import read_observations
    from tinyrl_tvm.interface import Interface
    from tinyrl_tvm.library import ModelLibrary

    library = ModelLibrary.load(path)
    observations = read_observations(inputs, Interface.of(library)) if inputs else None
    return host.run(library, observations, timed=timed, profiled=profiled)


def _on_micro(
    path: Path,
    inputs: Path | None,
    timed: bool,
    profiled: bool,
    rpc_tracker: str | None,
    rpc_key: str | None,
    port: Port | None,
) -> Measurement:
    import contextlib

    from tinyrl_tvm import project as projects
    from tinyrl_tvm.device import micro
    from tinyrl_tvm.device.observations import read_observations

    project = projects.load(path)
    observations = read_observations(inputs, project.interface) if inputs else None
    if profiled:
        micro.refuse_unprofiled(project)  # before a build that may take long, or miss a tool
    if rpc_tracker is None or rpc_key is None:
        projects.ensure_built(project)
        return micro.run(project, observations, timed=timed, profiled=profiled, port=port)

    from tinyrl_tvm.device.farm import Farm

    micro.refuse_without_firmware(project)
    with contextlib.closing(Farm.at(rpc_tracker, rpc_key)) as farm:
        projects.ensure_built(project)
        return micro.run(project, observations, timed=timed, profiled=profiled, farm=farm)


def _closed_loop(
    path: Path,
    outputs: Path | None,
    plot: Path | None,
    environment: str,
    episodes: int,
    noise: float,
    policy: Path | None,
    ticks_ms: tuple[float, ...] | None,
    control_hz: float | None,
    port: Port | None,
    as_json: bool,
) -> None:
    from tinyrl_tvm import project as projects
    from tinyrl_tvm.device.closed_loop import close_loop, to_csv
    from tinyrl_tvm.device.connection import board_of
    from tinyrl_tvm.library import write_whole

    project = projects.load(path)
    board_of(project)
    with progress() as begin:
        begin("build and run")
        projects.ensure_built(project)
        loops = [
            close_loop(project, environment, episodes=episodes, noise=noise, policy=policy, tick_ms=tick_ms, port=port)
            for tick_ms in ticks_ms or (None,)
        ]
    if outputs is not None:
        write_whole(outputs, to_csv(loops))
    if plot is not None:
        from tinyrl_tvm.device.loop_plot import draw

        write_whole(plot, draw(loops, plot.suffix))
    loop = loops[0]
    if as_json:
        sweep = [one.to_json(control_hz) for one in loops] if ticks_ms else []
        say_json(loop.to_json(control_hz) | {"sweep": sweep})
        return
    if ticks_ms:
        _say_ticks(loops)
    said = loop.to_json(control_hz)
    say(f"device: {loop.device}, {environment}, {said['steps']:,} steps in {_episodes(episodes)}")
    say(f"mean return: {said['mean_return']:,.2f}")
    if loop.float_returns is not None:
        ahead = sum(a >= b for a, b in zip(loop.returns, loop.float_returns, strict=True))
        say(
            f"float policy's mean return: {said['float_mean_return']:,.2f}; no worse in {ahead} of {_episodes(episodes)}"
        )
    else:
        say("float policy's mean return: n/a (a library carries no float policy; --policy FILE.onnx plays it)")
    counts = ", ".join(f"{'max' if p == 100 else f'p{p}'} {count:,.0f}" for p, count in loop.percentiles.items())
    qualified = "(QEMU counts instructions, not time)" if loop.unit == "instructions" else f"at {loop.clock_hz:,} Hz"
    say(f"{loop.unit} per inference: {counts} {qualified}")
    if control_hz is not None:
        say(
            f"deadlines missed at {control_hz:g} Hz: {said['deadline_misses']:,} "
            f"(at {loop.clock_hz:,} Hz{' and an instruction a clock cycle' if loop.unit == 'instructions' else ''})"
        )
    if said["nonzero_statuses"]:
        say(f"nonzero status for {said['nonzero_statuses']:,} of {said['steps']:,} observations")
    _say_written(outputs, plot)


def _episodes(n: int) -> str:
    return f"{n:,} episode{'' if n == 1 else 's'}"


def _say_ticks(loops: list[ClosedLoop]) -> None:
    rows = []
    for loop in loops:
        assert loop.tick_ms is not None
        assert loop.dt_ms is not None
        if loop.tick_ms < loop.dt_ms:
            tell(
                f"note: a tick of {loop.tick_ms:g} ms is shorter than a step of {loop.environment}, {loop.dt_ms:g} ms: "
                "the policy is asked at every step"
            )
        mean, by_float = (
            sum(returns) / len(returns) if returns else None for returns in (loop.returns, loop.float_returns)
        )
        period = f"{loop.steps_per_action} x {loop.dt_ms:g} ms"
        rows.append((f"{loop.tick_ms:g}", period, f"{mean:,.2f}", "n/a" if by_float is None else f"{by_float:,.2f}"))
    say_table("by tick", ("tick, ms", "an action is held for", "mean return", "float policy's"), rows)


def _say_written(*paths: Path | None) -> None:
    for path in paths:
        if path is not None:
            say(f"wrote '{path}'")


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
    if (ticks := measured.ticks_per_inference) is not None:
        say(f"ticks per inference: {ticks:,.2f} (of the board's own counter)")
    for name, size in (("flash", measured.flash_bytes), ("RAM", measured.ram_bytes), ("stack", measured.stack_bytes)):
        if size is not None:
            say(f"{name}: {size:,} B")
    if (time := measured.wall_time) is not None:
        spread = f"{time.low_ns:,.1f} to {time.high_ns:,.1f} ns, 10th to 90th percentile of {time.batches} batches"
        say(f"time per inference on this machine: {time.median_ns:,.1f} ns ({spread})")
    elif timed:
        say("time per inference: n/a (an emulator has no time of its own)")
        if (period_us := measured.nominal_period_us) is not None:
            say(f"at an instruction a cycle of the board's {measured.clock_hz:,} Hz: {period_us:,.2f} us per inference")
    _say_refused(measured.statuses)
    if measured.profile is not None:
        _say_profile(measured.profile)


def _say_profile(profile: Profile) -> None:
    def row(name: str, cost: float, n_bytes: int | str) -> tuple[object, ...]:
        return name, f"{cost:,.1f}", f"{100 * profile.share(cost):.1f} %", n_bytes

    layers = list(zip(profile.layers, profile.costs, strict=True))
    rows = [row(layer.summary, cost, layer.parameter_bytes) for layer, cost in layers]
    rows.append(row("all layers", sum(profile.costs), sum(layer.parameter_bytes for layer, _ in layers)))
    rows.append(row("inference", profile.whole, ""))
    say_table("layer by layer", ("layer", profile.unit, "share", "parameter bytes"), rows)


def _say_refused(statuses: np.ndarray) -> None:
    import numpy as np

    rows = np.flatnonzero(statuses)
    if len(rows):
        named = ", ".join(f"row {row} status {statuses[row]}" for row in rows[:ROWS_NAMED])
        more = ", ..." if len(rows) > ROWS_NAMED else ""
        say(f"nonzero status for {len(rows):,} of {len(statuses):,} observations: {named}{more}")
