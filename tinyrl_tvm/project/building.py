# SPDX-License-Identifier: Apache-2.0
"""Build a project by its platform's own tool, and say in a sentence why that failed.

Why not our own compiler calls: the folder has to build without us, and a second way would drift away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyrl_tvm import toolchain
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.memory import Contract
from tinyrl_tvm.project.folder import Project
from tinyrl_tvm.project.platforms import PLATFORMS
from tinyrl_tvm.project.platforms.platform import named
from tinyrl_tvm.project.templates import TEMPLATES
from tinyrl_tvm.targets import Board


@dataclass(frozen=True)
class BuiltProject:
    """A project and what its build left: `products` in the order of `Platform.products`."""

    project: Project
    products: tuple[Path, ...]


def build(project: Project) -> BuiltProject:
    """Run the platform's own build tool."""
    _run(project, _command(project))
    return built(project)


def build_profile(project: Project) -> Path:
    """Make what measures the policy layer by layer."""
    product = PLATFORMS[project.platform].profile
    assert product
    _run(project, [*_command(project), product])
    return project.folder / product


def _run(project: Project, arguments: Sequence[str]) -> None:
    """Two builds of one folder wait for each other."""
    tool, *arguments = arguments
    command: list[str | Path] = [toolchain.find(tool), *arguments]
    for needed in project.tools:
        toolchain.find(needed)
    make_flags = {"MAKEFLAGS": f"-j{os.cpu_count() or 1} --no-print-directory"}
    environment = {**toolchain.build_environment(project.tools[0]), **make_flags}
    with _one_build_at_a_time(project.folder):
        made = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise _build_error(project, made.stderr)


def built(project: Project) -> BuiltProject:
    """What an earlier build left. Raises TinyrlError when there was none."""
    name = project.library.name
    products = tuple(project.folder / named(product, name) for product in PLATFORMS[project.platform].products)
    if not all(product.is_file() for product in products):
        raise TinyrlError(
            f"the project in '{project.folder}' is not built; run 'tinyrl-tvm micro build {project.folder}' first"
        )
    return BuiltProject(project, products)


def ensure_built(project: Project) -> None:
    """Build the project when no earlier build left its products. Raises TinyrlError."""
    try:
        built(project)
    except TinyrlError:
        build(project)


def _command(project: Project) -> list[str]:
    platform = PLATFORMS[project.platform]
    holes = {"name": project.library.name, **platform.holes(project.options, ())}
    return [TEMPLATES.from_string(word).render(holes) for word in platform.command]


@contextlib.contextmanager
def _one_build_at_a_time(folder: Path) -> Iterator[None]:
    try:
        handle = os.open(folder, os.O_RDONLY)  # the folder is its own lock file
    except OSError as error:
        raise TinyrlError(f"cannot build in '{folder}': {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody who waits without a word looks as if he hung
            print(f"another build is at work in '{folder}'; this one waits for it", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield  # released when the handle closes, also when we are killed
    finally:
        os.close(handle)


def _build_error(project: Project, log: str) -> TinyrlError:
    if over := OVER_BUDGET.search(log):
        contract = Contract.of(project.library)
        parts = f"; the largest parts are {contract.predicted(over[1].lower()).largest}" if contract else ""
        return TinyrlError(f"{over[0]}{parts}; try {_smaller(project)}, or compile it with another budget")
    if project.board and (reason := _why_it_does_not_fit(project.board, log)):
        return TinyrlError(f"the policy does not fit '{project.board.name}': {reason}; try {_smaller(project)}")
    if excess := re.findall(r"region `\w+' overflowed by (\d+) bytes", log):
        board = project.options.get("board", project.platform)
        n_bytes = max(map(int, excess))
        return TinyrlError(f"the policy does not fit '{board}': it is {n_bytes:,} B too large; try {_smaller(project)}")
    log = re.sub(r"CMake Error at .*:\n\s*", "error: ", log)  # CMake says where on one line and what on the next
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line or "cannot find" in line] or lines[-1:] or ["it said nothing"]
    if of_a_makefile := re.match(r"^\S+:\d+: \*\*\* (.*)\.  Stop\.$", telling[0]):
        return TinyrlError(f"the build failed: {of_a_makefile[1]}")  # its own error: there is no more to see
    command = " ".join(_command(project))
    return TinyrlError(f"the build failed: {telling[0]}; run '{command}' in '{project.folder}' to see all of it")


def _why_it_does_not_fit(board: Board, log: str) -> str | None:
    """What the linker says of a region, or of the stack, in numbers."""
    sizes = {"FLASH": board.flash_bytes, "RAM": board.ram_bytes}
    excess: dict[str, int] = {}
    for region, n_bytes in re.findall(r"region `(FLASH|RAM)' overflowed by (\d+) bytes", log):
        excess[region] = max(excess.get(region, 0), int(n_bytes))  # of the two programs the larger
    if excess:
        needs = (f"{sizes[region] + excess[region]:,} B of {_IN_PROSE[region]}" for region in excess)
        has = (f"{sizes[region]:,} B of {_IN_PROSE[region]}" for region in excess)
        return f"its firmware needs {' and '.join(needs)}, the board has {' and '.join(has)}"
    if NO_STACK in log:
        return f"{NO_STACK}, the board has {board.ram_bytes:,} B of RAM"
    return None


NO_STACK = "less than 4 KiB of RAM are left for the stack"  # what the linker scripts assert
OVER_BUDGET = re.compile(r"the policy takes more (flash|RAM) than its budget of \d+ B")  # likewise
_IN_PROSE = {"FLASH": "flash", "RAM": "RAM"}


def _smaller(project: Project) -> str:
    network = "a smaller network"
    return network if project.library.interface.get("precision") == "int8" else f"--precision int8 or {network}"
