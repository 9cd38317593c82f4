# SPDX-License-Identifier: Apache-2.0
"""Plots as SVG to put into a page: no file beside it, no script, letters that stay letters, colours that are the page's.

Why colours by replacement: matplotlib knows no CSS variables, and a page that turns dark takes its plots along.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from tinyrl_tvm.errors import TinyrlError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (4.2, 2.9)  # at 72 points an inch about as wide as a telephone, so that letters keep their size there
# what matplotlib is told, and the page's variable that takes its place
COLOURS = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--line)", "#040404": "var(--accent)"}
INK, MUTED, LINE, ACCENT = COLOURS


def need_matplotlib() -> None:
    """Before the measurements. Raises TinyrlError."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise TinyrlError("no matplotlib to draw a report with; pip install 'tinyrl-tvm[report]'") from None


def scatter(name: str, of_float: np.ndarray, answers: np.ndarray) -> Markup:
    """A device's answers (n,) beside the float policy's; on the line they are the same."""

    def draw(axes: Axes) -> None:
        ends = [float(min(of_float.min(), answers.min())), float(max(of_float.max(), answers.max()))]
        axes.plot(ends, ends, color=LINE, linewidth=1.2, zorder=1)
        axes.scatter(of_float, answers, s=9, color=ACCENT, alpha=0.55, linewidths=0, zorder=2)
        axes.set_xlabel("float policy")
        axes.set_ylabel("device")

    return _svg(name, "the device's action against the float policy's, a point a test vector", draw)


def histogram(name: str, error: np.ndarray) -> Markup:
    """Of errors (n,)."""

    def draw(axes: Axes) -> None:
        axes.hist(error, bins=min(41, max(9, len(error) // 6)), color=ACCENT)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("device less float policy")
        axes.set_ylabel("test vectors")

    return _svg(name, "how often the device is off the float policy by how much", draw)


def returns(name: str, of_device: Sequence[float], of_float: Sequence[float] | None) -> Markup:
    """A return a seed; the float policy's as rings around."""
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        seeds = np.arange(len(of_device))
        if of_float is not None:
            axes.vlines(seeds, of_device, of_float, color=LINE, linewidth=2.2, zorder=1)
            axes.scatter(seeds, of_float, s=42, facecolors="none", edgecolors=MUTED, label="float policy", zorder=2)
        axes.scatter(seeds, of_device, s=14, color=ACCENT, label="device", zorder=3)
        axes.set_xlabel("seed")
        axes.set_ylabel("return")
        axes.margins(y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2, frameon=False, labelcolor=INK)

    return _svg(name, "return of each seed, of the device and of the float policy", draw)


def _svg(name: str, title: str, draw: Callable[[Axes], None]) -> Markup:
    """`name` keeps the plots of a page apart: identifiers begin with it."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 9}
    buffer = io.StringIO()
    with matplotlib.rc_context(style):
        figure = Figure(INCHES, layout="constrained")
        axes = figure.add_subplot()
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("bottom", "left"):
            axes.spines[side].set_color(LINE)
        axes.tick_params(colors=MUTED, width=0.8)
        axes.grid(axis="y", color=LINE, linewidth=0.6, alpha=0.6)
        axes.set_axisbelow(True)
        axes.locator_params(axis="both", nbins=5)  # more would meet on a telephone
        draw(axes)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(INK)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(name, title, buffer.getvalue())


def _inline(name: str, title: str, text: str) -> Markup:
    """As a part of an HTML page: without the document's head, its names of its own, its colours the page's."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", text, flags=re.DOTALL)  # a style in a page is the whole page's
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"font-family:[^;\"]*;? ?", "", text)
    for colour, variable in COLOURS.items():
        text = text.replace(colour, variable)
    opening = re.match(r"<svg[^>]*>", text)
    assert opening is not None
    view = re.search(r'viewBox="[^"]*"', opening[0])
    assert view is not None
    page = f'<svg {view[0]} role="img" aria-label="{title}"><title>{title}</title>{text[opening.end() :]}'
    return Markup(page)  # noqa: S704  # numbers and words of ours; no name from a model
