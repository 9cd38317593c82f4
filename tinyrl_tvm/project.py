# SPDX-License-Identifier: Apache-2.0
"""From a library to a folder that any engineer can build: `create` writes it, `load` reads it back, `build` makes it.

    microtvm_projects/<platform>/**      copied as it stands; a file that ends in .jinja has holes to fill
    codegen/host/** of the library       -> policy/**
    the library itself                   -> policy/model.tar
    what was chosen at `create`          -> tinyrl_project.json, so that no later verb asks again

Why make and not our own compiler calls: the folder has to build without us, and a second way would drift away.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from tinyrl_tvm import __version__, cmsis_nn, toolchain
from tinyrl_tvm.errors import TinyrlError, unknown_name
from tinyrl_tvm.interface import C_TYPES, Interface, Vectors
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.targets import ARCHITECTURES, BOARDS, TARGETS, Board, board_named

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

PROJECT_FILE = "tinyrl_project.json"
PROJECT_FORMAT = 1
MODEL_FILE = "policy/model.tar"

SOURCE_PATH = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*"
)  # safe in make, CMake and a shell


@dataclass(frozen=True)
class Option:
    """One `--project-option NAME=VALUE`."""

    name: str
    choices: tuple[str, ...]
    default: str
    help: str


@dataclass(frozen=True)
class Platform:
    """A way to build a project. `borrows` are files of the host's template that the platform shares; `products` are what
    `make` leaves behind. `tools` build it where no board says which, the compiler first. `builds_cmsis_nn` tells that it
    compiles what a library needs of CMSIS-NN."""

    name: str
    summary: str
    products: tuple[str, ...]
    tools: tuple[str, ...] = ("cc",)
    borrows: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    builds_cmsis_nn: bool = False


PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform(
            "host",
            "plain C99 for this machine: a shared library and a program that replays the test vectors",
            products=("out/libpolicy.so", "out/replay"),
            builds_cmsis_nn=True,
        ),
        Platform(
            "baremetal",
            "firmware without an operating system: start-up code, linker script, console over semihosting",
            products=("out/firmware.elf", "out/firmware_empty.elf"),
            borrows=(
                "src/console.c",
                "src/console.h",
                "src/replay.c",
                "src/replay.h",
                "src/vectors.c.jinja",
                "src/vectors.h.jinja",
            ),
            options=(Option("board", tuple(BOARDS), "mps3-an547", "the board to build for"),),
            builds_cmsis_nn=True,
        ),
        Platform(
            "wasm",
            "a WebAssembly module for browsers and node, and a program that replays the test vectors in node",
            products=("out/policy.wasm", "out/replay.wasm"),
            tools=("clang", "wasm-ld"),
            borrows=(
                "src/console.c",
                "src/console.h",
                "src/replay.c",
                "src/replay.h",
                "src/vectors.c.jinja",
                "src/vectors.h.jinja",
            ),
        ),
    )
}


@dataclass(frozen=True)
class Project:
    """A generated folder. Everything that was chosen at `create` is in it."""

    folder: Path
    platform: str
    options: Mapping[str, str]
    library: ModelLibrary = field(repr=False)

    @property
    def interface(self) -> Interface:
        return Interface.of(self.library)

    @property
    def board(self) -> Board | None:
        """None on the host."""
        return board_named(self.options["board"]) if "board" in self.options else None

    @property
    def tools(self) -> tuple[str, ...]:
        """What builds it, by names in `toolchain.TOOLS`, the compiler first."""
        return (self.board.architecture.compiler,) if self.board else PLATFORMS[self.platform].tools


@dataclass(frozen=True)
class BuiltProject:
    """A project and what its build left: `products` in the order of `Platform.products`."""

    project: Project
    products: tuple[Path, ...]


def platform_named(name: str) -> Platform:
    if name not in PLATFORMS:
        raise unknown_name("platform", name, PLATFORMS)
    return PLATFORMS[name]


def create(
    library: ModelLibrary, folder: Path, platform: str, options: Mapping[str, str] | None = None, force: bool = False
) -> Project:
    """Write the project, whole or not at all. `force` replaces an earlier project, never another folder."""
    chosen = _complete_options(platform_named(platform), options or {})
    files = _project_files(library, platform, chosen)
    folder = Path(folder).resolve()  # what a link points to is replaced, not the link
    try:
        _refuse_to_overwrite(folder, force)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as workspace:
            fresh, replaced = Path(workspace, "fresh"), Path(workspace, "replaced")
            _write_tree(fresh, files)
            if folder.exists():
                folder.rename(replaced)
            try:
                fresh.rename(folder)
            except OSError:
                if replaced.exists():
                    replaced.rename(folder)  # else it would go with the workspace
                raise
    except OSError as error:
        raise TinyrlError(f"cannot write '{folder}': {error.strerror}; choose another folder") from None
    return load(folder)


def load(folder: Path) -> Project:
    """Read a folder that `create` wrote. Raises TinyrlError for any other."""
    folder = Path(folder).resolve()
    path = folder / PROJECT_FILE
    if not path.is_file():
        raise TinyrlError(f"no project in '{folder}'; 'tinyrl-tvm micro create' makes one")
    try:
        record = json.loads(path.read_text())
        version, name, options = record["format"], record["platform"], dict(record["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise TinyrlError(f"'{path}' is damaged ({error!r}); create the project again with -f") from None
    if version != PROJECT_FORMAT:
        raise TinyrlError(
            f"'{path}' is of format {version!r}, this tinyrl-tvm reads {PROJECT_FORMAT}; "
            "create the project again with -f"
        )
    platform = platform_named(name)
    return Project(folder, platform.name, _complete_options(platform, options), ModelLibrary.load(folder / MODEL_FILE))


def build(project: Project) -> BuiltProject:
    """Run the project's own Makefile. Two builds of one folder wait for each other."""
    make = toolchain.find("make")
    for tool in project.tools:
        toolchain.find(tool)
    command: list[str | Path] = [make, "--no-print-directory", f"-j{os.cpu_count() or 1}", "all"]
    environment = toolchain.build_environment(project.tools[0])
    with _one_build_at_a_time(project.folder):
        made = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise _build_error(project, made.stderr)
    return built(project)


def built(project: Project) -> BuiltProject:
    """What an earlier build left. Raises TinyrlError when there was none."""
    products = tuple(project.folder / product for product in PLATFORMS[project.platform].products)
    if not all(product.is_file() for product in products):
        raise TinyrlError(
            f"the project in '{project.folder}' is not built; run 'tinyrl-tvm micro build {project.folder}' first"
        )
    return BuiltProject(project, products)


def _complete_options(platform: Platform, given: Mapping[str, str]) -> Mapping[str, str]:
    known = {option.name: option for option in platform.options}
    for name, value in given.items():
        if name not in known:
            raise _unknown_option(platform, name, known)
        if value not in known[name].choices:
            raise unknown_name(name, value, known[name].choices)
    return {name: given.get(name, option.default) for name, option in known.items()}


def _unknown_option(platform: Platform, name: str, known: Mapping[str, Option]) -> TinyrlError:
    if not known:
        return TinyrlError(f"no option '{name}'; the platform '{platform.name}' has none")
    return unknown_name(f"option of '{platform.name}'", name, known)


def _refuse_to_overwrite(folder: Path, force: bool) -> None:
    if not folder.exists():
        return
    if not force:
        raise TinyrlError(f"'{folder}' already exists; -f replaces it when it is an earlier project")
    is_project = folder.is_dir() and ((folder / PROJECT_FILE).is_file() or not any(folder.iterdir()))
    if not is_project:
        raise TinyrlError(f"'{folder}' is not a project of ours (no {PROJECT_FILE}), so -f does not replace it")


def _project_files(library: ModelLibrary, platform: str, options: Mapping[str, str]) -> dict[str, bytes]:
    interface = Interface.of(library)
    board = board_named(options["board"]) if "board" in options else None
    if board and interface.target != board.target and TARGETS[interface.target].guard is not None:
        raise TinyrlError(
            f"the library is compiled for '{interface.target}', the board '{board.name}' has a '{board.target}'; "
            f"compile the policy with --target {board.target}"
        )
    if interface.cmsis_nn and not PLATFORMS[platform].builds_cmsis_nn:
        able = ", ".join(other.name for other in PLATFORMS.values() if other.builds_cmsis_nn)
        raise TinyrlError(f"the library calls CMSIS-NN, which '{platform}' does not build; have: {able}")
    files = _policy_files(library)
    sources = [path for path in files if path.endswith((".c", ".S"))]
    templates = dict(_template_files(platform, board, "cmsis_nn" if interface.cmsis_nn else None))
    holes = _holes(interface, Vectors.of(library), sources) | (_board_holes(board, list(templates)) if board else {})
    for path, template in templates.items():
        text = template.read_text(encoding="utf-8")
        if path.endswith(".jinja"):
            path, text = path.removesuffix(".jinja"), TEMPLATES.from_string(text).render(holes)  # noqa: PLW2901
        files[path] = text.encode()

    record = {
        "format": PROJECT_FORMAT,
        "tinyrl_tvm": __version__,
        "platform": platform,
        "options": dict(options),
        "library": {"name": library.name, "sha256": hashlib.sha256(files[MODEL_FILE]).hexdigest()},
        "interface": library.interface,
    }
    files[PROJECT_FILE] = (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
    return files


def _policy_files(library: ModelLibrary) -> dict[str, bytes]:
    """The library's code below `policy/`, in a fixed order, and the library itself."""
    files = {}
    for path in sorted(library.files):
        if path.startswith("codegen/host/"):
            below = path.removeprefix("codegen/host/")
            if not SOURCE_PATH.fullmatch(below):
                raise TinyrlError(f"the library holds a source called {path!r}; compile the policy again")
            files[f"policy/{below}"] = library.files[path]
    header = f"policy/include/tvmgen_{library.name}.h"
    if header not in files or not any(path.endswith(".c") for path in files):
        raise TinyrlError(f"the library holds no C code for '{library.name}'; compile the policy again")
    return files | {MODEL_FILE: library.to_bytes()}


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
        "cmsis_nn_since": cmsis_nn.since(interface.cmsis_nn),
        "cmsis_nn_sources": cmsis_nn.sources(interface.cmsis_nn),
        "observations": observations.tolist(),
        "answers": answers.tolist(),
        "example_answer": answers[0].astype(answers.dtype.newbyteorder("<")).tobytes().hex(),
    }


def _board_holes(board: Board, paths: list[str]) -> dict[str, Any]:
    architecture = board.architecture
    tools = (toolchain.TOOLS[name] for name in (architecture.compiler, architecture.emulator))
    return {
        "board": board,
        "board_cflags": " ".join(TARGETS[board.target].cflags),
        "architecture": architecture,
        "architecture_sources": [
            path for path in paths if path.startswith(f"{architecture.name}/") and path.endswith(".c")
        ],
        "packages": [package for tool in tools for package in tool.packages],
    }


def _template_files(platform: str, board: Board | None, library: str | None) -> Iterator[tuple[str, Traversable]]:
    """(path in the project, template). Of the folders of architectures only the board's; `library` is the folder with what
    builds somebody else's."""
    templates = resources.files("microtvm_projects")
    for borrowed in PLATFORMS[platform].borrows:
        yield borrowed, templates.joinpath("host", borrowed)
    if library is not None:
        yield from ((str(path), file) for path, file in _files_below(templates.joinpath(library), PurePosixPath()))
    for path, template in _files_below(templates.joinpath(platform), PurePosixPath()):
        if path.parts[0] not in ARCHITECTURES or (board and path.parts[0] == board.architecture.name):
            yield str(path), template


def _files_below(folder: Traversable, path: PurePosixPath) -> Iterator[tuple[PurePosixPath, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files_below(entry, path / entry.name)
        else:
            yield path / entry.name, entry


def _write_tree(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


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


@contextlib.contextmanager
def _one_build_at_a_time(folder: Path) -> Iterator[None]:
    try:
        handle = os.open(folder, os.O_RDONLY)  # the folder is its own lock file
    except OSError as error:
        raise TinyrlError(f"cannot build in '{folder}': {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when the handle closes, also when we are killed
        yield
    finally:
        os.close(handle)


def _build_error(project: Project, log: str) -> TinyrlError:
    if project.board and (reason := _why_it_does_not_fit(project.board, log)):
        return TinyrlError(f"the policy does not fit '{project.board.name}': {reason}; try {_smaller(project)}")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line or "cannot find" in line] or lines[-1:] or ["make failed"]
    told = re.sub(r"^\S+:\d+: \*\*\* (.*)\.  Stop\.$", r"\1", telling[0])  # an error of a Makefile's own
    return TinyrlError(f"the build failed: {told}; run 'make' in '{project.folder}' to see all of it")


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
_IN_PROSE = {"FLASH": "flash", "RAM": "RAM"}


def _smaller(project: Project) -> str:
    network = "a smaller network"
    return network if project.library.interface.get("precision") == "int8" else f"--precision int8 or {network}"
