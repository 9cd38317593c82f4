# SPDX-License-Identifier: Apache-2.0
"""`run --closed-loop --plot`: returns a seed, what inferences took, and returns a tick when several were asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyrl_tvm.errors import TinyrlError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tinyrl_tvm.device.closed_loop import ClosedLoop

FORMATS = (".png", ".svg")
DEVICE, FLOAT = "#1f5fa8", "#d9822b"


def refuse_undrawable(path: Path) -> None:
    """Before the long work: can such a file be drawn?"""
    if path.suffix not in FORMATS:
        raise TinyrlError(f"cannot draw '{path}'; have: {', '.join(FORMATS)}")
    try:
        import matplotlib.figure
    except ImportError:
        raise TinyrlError("no matplotlib to draw with; pip install 'tinyrl-tvm[report]'") from None
    del matplotlib


def draw(loops: Sequence[ClosedLoop], suffix: str) -> bytes:
    """A figure of `loops`, one a tick; the first two panels are of the first."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    first = loops[0]
    panels = 3 if len(loops) > 1 else 2
    # without a date and with fixed ids, so that the same run gives the same bytes
    with rc_context(
        {"svg.hashsalt": "tinyrl-tvm", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(4.4 * panels, 3.6), layout="constrained", dpi=150)
        axes = figure.subplots(1, panels)
        figure.suptitle(f"{first.environment} on {first.device}, {len(first.returns)} episodes")
        _returns(axes[0], first)
        _counts(axes[1], first)
        if panels == 3:
            _sweep(axes[2], loops)
        image = io.BytesIO()
        figure.savefig(image, format=suffix.removeprefix("."), metadata={"Date": None} if suffix == ".svg" else None)
    return image.getvalue()


def _tick(loop: ClosedLoop) -> str:
    return "" if loop.tick_ms is None else f" at a tick of {loop.tick_ms:g} ms"


def _returns(axes: Axes, loop: ClosedLoop) -> None:
    from matplotlib.ticker import MaxNLocator

    seeds = np.arange(len(loop.returns))
    if loop.float_returns is not None:
        axes.vlines(seeds, loop.float_returns, loop.returns, color="0.8", linewidth=1, zorder=1)
        axes.scatter(
            seeds, loop.float_returns, s=36, facecolors="none", edgecolors=FLOAT, label="float policy", zorder=3
        )
    axes.scatter(seeds, loop.returns, s=14, color=DEVICE, label="device", zorder=2)
    axes.set(title=f"return{_tick(loop)}", xlabel="seed")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.15)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    if loop.float_returns is not None:
        axes.legend(frameon=False, loc="best")


def _counts(axes: Axes, loop: ClosedLoop) -> None:
    """A bar a value where there are few, as there are of a counter with coarse ticks."""
    values, times = np.unique(loop.counts, return_counts=True)
    if len(values) <= 40:
        step = float(np.diff(values).min(initial=np.inf))
        axes.bar(values, times, width=0.8 * (step if np.isfinite(step) else 0.01 * values[0] + 1), color=DEVICE)
        if len(values) <= 5:
            axes.set_xticks(values)
    else:
        axes.hist(loop.counts, bins=40, color=DEVICE)
    axes.margins(x=0.25)
    axes.set(title=f"{loop.unit} per inference{_tick(loop)}", xlabel=loop.unit, ylabel="inferences")


def _sweep(axes: Axes, loops: Sequence[ClosedLoop]) -> None:
    ticks = [loop.tick_ms or 0.0 for loop in loops]
    rows = [("device", DEVICE, [loop.returns for loop in loops])]
    if all(loop.float_returns is not None for loop in loops):
        rows.append(("float policy", FLOAT, [loop.float_returns or [] for loop in loops]))
    for name, colour, returns in rows:
        means = [float(np.mean(episodes)) for episodes in returns]
        below = [mean - min(episodes) for mean, episodes in zip(means, returns, strict=True)]
        above = [max(episodes) - mean for mean, episodes in zip(means, returns, strict=True)]
        marker, face = ("o", colour) if name == "device" else ("s", "none")
        aside = (0.006 if name == "device" else -0.006) * (max(ticks) - min(ticks))  # bars beside each other
        bars = axes.errorbar(np.array(ticks) + aside, means, [below, above], label=name, color=colour, capsize=3)
        bars.lines[0].set(marker=marker, markerfacecolor=face)
    axes.set(title="mean return, least to greatest", xlabel="tick, ms")
    axes.set_xticks(ticks)
    axes.grid(axis="y", color="0.92")
    axes.legend(frameon=False, loc="best")
