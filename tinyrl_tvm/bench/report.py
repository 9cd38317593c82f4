# SPDX-License-Identifier: Apache-2.0
"""A bench as one HTML file: nothing beside it, nothing from a network, no script.

Every number comes from the record it stands in; the template decides the words. Names come from strangers' files and are
escaped, all but the plots, which hold numbers alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

import tinyrl_tvm
from tinyrl_tvm import toolchain
from tinyrl_tvm.bench import plots
from tinyrl_tvm.bench.answers import Action, Errors, decisions, errors, outside
from tinyrl_tvm.bench.measure import MICRO, Bench, Run
from tinyrl_tvm.bench.pedigree import Pedigree
from tinyrl_tvm.device.closed_loop import ClosedLoop
from tinyrl_tvm.device.measurement import PASS
from tinyrl_tvm.interface import Interface, Layer, Vectors
from tinyrl_tvm.memory import IN_PROSE
from tinyrl_tvm.project.platforms import PLATFORMS

MOST_PLOTS = 6  # of actions; the table has them all
MOST_OBSERVATIONS = 64  # rows of a table of observations: those that leave their range come first


@dataclass(frozen=True)
class Pair:
    """Two of the float policy, the oracle and the device: test vectors with the same answer, and of continuous actions the
    largest difference."""

    title: str
    same: int
    largest: float | None


@dataclass(frozen=True, eq=False)
class Compared:
    """The answers of `devices`, which are all the same, beside the float policy's and those that must come out."""

    devices: tuple[str, ...]
    n: int
    pairs: tuple[Pair, ...]
    errors: tuple[Errors, ...] = ()
    actions: tuple[Action, ...] = ()
    plots: tuple[tuple[str, Markup], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Bar:
    """Part of a budget in bytes, as parts of a hundred."""

    title: str
    used: int
    policy: int
    budget: int

    @property
    def percent(self) -> float:
        return 100 * self.used / self.budget

    @property
    def policy_percent(self) -> float:
        return 100 * self.policy / self.budget


def render(bench: Bench, library_path: Path, command: Sequence[str]) -> bytes:
    """`command` is what was typed, `library_path` what the library is called in it."""
    interface = Interface.of(bench.library)
    text = _TEMPLATES.get_template("report.html.jinja").render(
        bench=bench,
        lead=bench.lead,
        passes=bench.parity == PASS,
        interface=interface,
        likeness=_likeness(bench.lead),
        compared=[_compared(index, runs) for index, runs in enumerate(_same_answers(bench.runs))],
        observations=_observations(bench, interface),
        loops=[(run, _returns_plot(index, run)) for index, run in enumerate(bench.runs) if run.loop],
        bars=[(run, _bars(run)) for run in bench.runs if run.firmware],
        layers=interface.layers,
        layer_tables=[_layer_table(run) for run in bench.runs if run.measured.profile] or [_sizes(interface)],
        shown=_shown(bench),
        most_plots=MOST_PLOTS,
        resources=IN_PROSE,
        no_worse=_no_worse,
        commands=_commands(bench, library_path, command),
        tools=_tools(bench),
        version=tinyrl_tvm.__version__,
    )
    return text.encode()


@dataclass(frozen=True)
class Shown:
    """Columns that some device fills."""

    instructions: bool
    time: bool
    sizes: bool


@dataclass(frozen=True)
class LayerRow:
    """A layer, what it costs on a device, None where that was not measured, and its parts of the whole."""

    summary: str
    function: str
    cost: float | None
    cost_percent: float
    parameter_bytes: int
    parameter_percent: float
    output_length: int


@dataclass(frozen=True)
class LayerTable:
    """`rest` is what no layer has of an inference."""

    device: str
    unit: str
    rows: tuple[LayerRow, ...]
    rest: float | None = None
    rest_percent: float = 0.0


def _shown(bench: Bench) -> Shown:
    measured = [run.measured for run in bench.runs]
    return Shown(
        any(m.instructions_per_inference is not None for m in measured),
        any(m.wall_time is not None for m in measured),
        any(m.flash_bytes is not None or m.stack_bytes is not None for m in measured),
    )


def _layer_table(run: Run) -> LayerTable:
    profile = run.measured.profile
    assert profile is not None
    total = sum(layer.parameter_bytes for layer in profile.layers) or 1
    rows = tuple(
        _layer_row(layer, total, cost, 100 * profile.share(cost))
        for layer, cost in zip(profile.layers, profile.costs, strict=True)
    )
    return LayerTable(run.device, profile.unit, rows, profile.rest, 100 * profile.share(profile.rest))


def _sizes(interface: Interface) -> LayerTable:
    """What is known without a device."""
    total = sum(layer.parameter_bytes for layer in interface.layers) or 1
    return LayerTable("", "", tuple(_layer_row(layer, total, None, 0.0) for layer in interface.layers))


def _layer_row(layer: Layer, total: int, cost: float | None, cost_percent: float) -> LayerRow:
    part = 100 * layer.parameter_bytes / total
    return LayerRow(layer.summary, layer.function, cost, cost_percent, layer.parameter_bytes, part, layer.output_length)


def _no_worse(loop: ClosedLoop) -> int:
    assert loop.float_returns is not None
    return sum(a >= b for a, b in zip(loop.returns, loop.float_returns, strict=True))


def _likeness(run: Run) -> str | None:
    """How like the float policy, in a word for the headline."""
    likeness = run.measured.likeness
    if likeness is None:
        return None
    if likeness.action_agreement is not None:
        return f"{100 * likeness.action_agreement:.1f} %"
    return None if likeness.max_abs_error is None else _short(likeness.max_abs_error)


def _same_answers(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs together whose answers to the same vectors are the same bits."""
    groups: dict[tuple[bytes, bytes], list[Run]] = {}
    for run in runs:
        key = (run.vectors.observations.tobytes(), run.measured.actions.tobytes())
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _compared(index: int, runs: list[Run]) -> Compared:
    run = runs[0]
    answers, vectors = run.measured.actions, run.vectors
    devices, n = tuple(other.device for other in runs), len(answers)
    pairs = [_pair("device and oracle", answers, vectors.answers)]
    of_float = vectors.float_answers
    if of_float is None:
        return Compared(devices, n, tuple(pairs))
    pairs += [
        _pair("oracle and float policy", vectors.answers, of_float),
        _pair("device and float policy", answers, of_float),
    ]
    if answers.dtype == np.int32:
        return Compared(devices, n, tuple(pairs), actions=decisions(answers, of_float))
    drawn = tuple(_answer_plots(index, answers, vectors))
    return Compared(devices, n, tuple(pairs), errors=errors(answers, of_float), plots=drawn)


def _pair(title: str, a: np.ndarray, b: np.ndarray) -> Pair:
    same = int((a == b).all(axis=1).sum())
    continuous = a.dtype == np.float32
    return Pair(title, same, float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) if continuous else None)


def _answer_plots(index: int, answers: np.ndarray, vectors: Vectors) -> Iterable[tuple[str, Markup]]:
    """A caption and a plot, for the actions that are furthest off."""
    of_float = vectors.float_answers
    assert of_float is not None
    error = answers.astype(np.float64) - of_float.astype(np.float64)
    worst = sorted(np.argsort(-np.abs(error).max(axis=0), kind="stable")[:MOST_PLOTS].tolist())
    for action in worst:
        name = f"c{index}a{action}"
        yield f"action {action}", plots.scatter(f"{name}s", of_float[:, action], answers[:, action])
        yield f"error of action {action}", plots.histogram(f"{name}h", error[:, action])


def _observations(bench: Bench, interface: Interface) -> list[tuple[str, float, float, float, float, int]]:
    """(name, calibrated low, high, low and high in the vectors, vectors outside), those outside first."""
    observed = bench.pedigree.observed
    if observed is None:
        return []
    rows = Vectors.of(bench.library).observations
    names = [
        tensor.name if tensor.length == 1 else f"{tensor.name}[{index}]"
        for tensor in interface.inputs
        for index in range(tensor.length)
    ]
    counts = outside(rows, observed)
    lines = [
        (names[i], float(observed[0, i]), float(observed[1, i]), float(low), float(high), int(counts[i]))
        for i, (low, high) in enumerate(zip(rows.min(axis=0), rows.max(axis=0), strict=True))
    ]
    return sorted(lines, key=lambda line: -line[-1])[:MOST_OBSERVATIONS] if len(lines) > MOST_OBSERVATIONS else lines


def _returns_plot(index: int, run: Run) -> Markup:
    assert run.loop is not None
    return plots.returns(f"r{index}", run.loop.returns, run.loop.float_returns)


def _bars(run: Run) -> list[Bar]:
    firmware = run.firmware
    assert firmware is not None
    stack, board = firmware.stack_bytes or 0, firmware.board
    ram, of_policy = firmware.whole.ram_bytes + stack, firmware.policy.ram_bytes + stack
    return [
        Bar("Flash", firmware.whole.flash_bytes, firmware.policy.flash_bytes, board.flash_bytes),
        Bar("RAM, stack included", ram, of_policy, board.ram_bytes),
    ]


def _commands(bench: Bench, library_path: Path, command: Sequence[str]) -> list[str]:
    """From the policy to this page."""
    lines = [_compile_command(bench.pedigree, library_path)]
    for run in bench.runs:
        if run.project is None:
            continue
        folder, tar = run.device.removeprefix(MICRO), str(library_path)
        if (
            run.project.library.files != bench.library.files
        ):  # the same policy for another core, or in another precision
            tar = f"{folder}.tar"
            lines.append(_compile_command(Pedigree.of(run.project.library), tar))
        given = PLATFORMS[run.platform].given(run.project.options)
        options = [word for name, value in given.items() for word in ("--project-option", f"{name}={value}")]
        lines.append(shlex.join(["tinyrl-tvm", "micro", "create", folder, tar, run.platform, *options]))
    return [*filter(None, lines), shlex.join(command)]


def _compile_command(pedigree: Pedigree, tar: Path | str) -> str:
    """Empty for a library that does not say."""
    return shlex.join([*pedigree.command[:-1], str(tar)]) if pedigree.command else ""


def _tools(bench: Bench) -> list[tuple[str, str]]:
    """What compiled and ran the firmware, each with its version."""
    names: dict[str, None] = {}
    for run in bench.runs:
        names |= dict.fromkeys(run.tools)
    found = {entry.tool.name: entry.version or "" for entry in toolchain.doctor() if entry.tool.name in names}
    packages = {name: metadata.version(name) for name in ("apache-tvm", "numpy")}
    return [*found.items(), *packages.items()]


def _short(number: float) -> str:
    """Three digits that mean something."""
    return (f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}").replace("-", "\N{MINUS SIGN}")


def _count(number: float | None) -> str:
    return "\N{EN DASH}" if number is None else f"{number:,.0f}"


def _ratio(part: float) -> str:
    """5.4 %, 0.012 %, or 1.3 times what is more."""
    return f"{_short(100 * part)} %" if part < 1 else f"{_short(part)} times"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("tinyrl_tvm.bench"),
    undefined=jinja2.StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "short": _short,
    "count": _count,
    "ratio": _ratio,
    "arrows": lambda text: text.replace("->", "\N{RIGHTWARDS ARROW}"),
    "percent": lambda part, whole: f"{100 * part / whole:.2f} %" if whole else "0 %",
    "mean": lambda numbers: sum(numbers) / len(numbers),
}
