# SPDX-License-Identifier: Apache-2.0
"""The holes of the templates: what a policy says of itself, and how its numbers and names are spelt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from tinyrl_tvm import cmsis_nn
from tinyrl_tvm.interface import C_TYPES, Interface, Vectors
from tinyrl_tvm.memory import NO_BUDGET, Budget
from tinyrl_tvm.project.platforms import Platform
from tinyrl_tvm.project.platforms.platform import Options

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

ROOT = resources.files("microtvm_projects")


def filled_templates(
    platform: Platform,
    options: Options,
    interface: Interface,
    vectors: Vectors,
    sources: list[str],
    budget: Budget = NO_BUDGET,
) -> Iterator[tuple[str, bytes]]:
    """(path in the project, contents) of every template. A path may have holes as well."""
    templates = dict(_template_files(platform, options))
    if interface.cmsis_nn and platform.compiles_checkout:
        templates |= {str(path): file for path, file in _files_below(ROOT.joinpath("cmsis_nn"), PurePosixPath())}
    holes = _holes(interface, vectors, sources) | {"budget": budget} | platform.holes(options, list(templates))
    for path, template in templates.items():
        text = template.read_text(encoding="utf-8")
        if path.endswith(".jinja"):
            path, text = path.removesuffix(".jinja"), TEMPLATES.from_string(text).render(holes)  # noqa: PLW2901
        yield TEMPLATES.from_string(path).render(holes), text.encode()


def _holes(interface: Interface, vectors: Vectors, sources: list[str]) -> dict[str, Any]:
    observations, answers = vectors.observations[vectors.built_in], vectors.answers[vectors.built_in]
    return {
        "name": interface.name,
        "inputs": interface.inputs,
        "n_obs": interface.n_obs,
        "n_actions": interface.n_actions,
        "action_c_name": interface.action_c_name,
        "action_type": C_TYPES[interface.action_dtype],
        "tolerance": interface.tolerance,
        "sources": sources,
        "layers": interface.layers,
        "cmsis_nn_since": cmsis_nn.since(interface.cmsis_nn),
        "cmsis_nn_sources": cmsis_nn.sources(interface.cmsis_nn),
        "cmsis_nn_groups": cmsis_nn.groups(interface.cmsis_nn),
        "observations": observations.tolist(),
        "answers": answers.tolist(),
        "example_answer": answers[0].astype(answers.dtype.newbyteorder("<")).tobytes().hex(),
    }


def _template_files(platform: Platform, options: Options) -> Iterator[tuple[str, Traversable]]:
    """(path in the project, template), less the folders and files that the options leave out."""
    for borrowed, path in platform.borrowed.items():
        yield path, ROOT.joinpath(borrowed)
    left_out = platform.leaves_out(options)
    for below, template in _files_below(ROOT.joinpath(platform.name), PurePosixPath()):
        if below.parts[0] not in left_out and str(below) not in left_out:
            yield str(below), template


def _files_below(folder: Traversable, path: PurePosixPath) -> Iterator[tuple[PurePosixPath, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files_below(entry, path / entry.name)
        else:
            yield path / entry.name, entry


def _c_float(value: float) -> str:
    """Nine significant digits give a float32 back exactly."""
    digits = f"{np.float32(value):.9g}"
    return f"{digits}f" if any(mark in digits for mark in ".e") else f"{digits}.0f"


def _c_int32(value: int) -> str:
    """-2147483648 is no literal in C but an expression of a type too wide."""
    return "INT32_MIN" if value == -(2**31) else str(value)


def _markdown_code(text: str) -> str:
    """A tensor's own name as inline code: a fence longer than any run of backticks inside, on one line."""
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", printable)), default=0))
    return f"{fence} {printable} {fence}" if "`" in printable else f"{fence}{printable}{fence}"


TEMPLATES = jinja2.Environment(
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701  # C, make and CMake are no HTML; what comes from a model is checked or quoted above
)
TEMPLATES.filters |= {"c_float": _c_float, "c_int32": _c_int32, "markdown_code": _markdown_code}
