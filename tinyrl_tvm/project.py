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
import math
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

from tinyrl_tvm import __version__, toolchain
from tinyrl_tvm.errors import TinyrlError, unknown_name
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.targets import BOARDS, TARGETS, board_named

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

PROJECT_FILE = "tinyrl_project.json"
PROJECT_FORMAT = 1
MODEL_FILE = "policy/model.tar"

# Vectors live in flash beside the policy; the rest of a long recording is streamed to the device when it runs.
MAX_BUILT_IN_VECTORS = 64
MAX_BUILT_IN_BYTES = 64 * 1024

C_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SOURCE_PATH = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*"
)  # safe in make, CMake and a shell
C_TYPES = {"float32": "float", "int32": "int32_t"}


@dataclass(frozen=True)
class Option:
    """One `--project-option NAME=VALUE`."""

    name: str
    choices: tuple[str, ...]
    default: str
    help: str


@dataclass(frozen=True)
class Platform:
    """A way to build a project. `borrows` are files of the host's template that the platform shares;
    `products` are what `make` leaves behind, `tools` what it needs."""

    name: str
    summary: str
    tools: tuple[str, ...]
    products: tuple[str, ...]
    borrows: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()


PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform(
            "host",
            "plain C99 for this machine: a shared library and a program that replays the test vectors",
            tools=("make", "cc"),
            products=("out/libpolicy.so", "out/replay"),
        ),
        Platform(
            "baremetal",
            "firmware without an operating system: start-up code, linker script, console over semihosting",
            tools=("make", "arm-none-eabi-gcc"),
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
        ),
        Platform(
            "wasm",
            "a WebAssembly module for browsers and node, and a program that replays the test vectors in node",
            tools=("make", "clang", "wasm-ld"),
            products=("out/policy.wasm", "out/replay.wasm"),
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
class Input:
    """One observation tensor; `offset` is where it starts in a row of all inputs joined."""

    name: str
    c_name: str
    length: int
    offset: int


@dataclass(frozen=True)
class Interface:
    """How a library's policy is called: `library.interface`, checked, since a library comes from a stranger."""

    name: str
    target: str
    inputs: tuple[Input, ...]
    n_actions: int
    action_name: str
    action_c_name: str
    action_dtype: str
    tolerance: float

    def __post_init__(self) -> None:
        names = [self.name, self.action_c_name, *(tensor.c_name for tensor in self.inputs)]
        sizes = [self.n_actions, *(tensor.length for tensor in self.inputs)]
        if not all(isinstance(tensor.name, str) for tensor in self.inputs):
            raise ValueError("the name of an input is no text")
        if not all(C_IDENTIFIER.fullmatch(name) for name in names):
            raise ValueError(f"a name in {names} is not a C identifier")
        if not self.inputs or any(type(size) is not int or size <= 0 for size in sizes):
            raise ValueError(f"sizes {sizes} are not all positive")
        if self.action_dtype not in C_TYPES or self.target not in TARGETS:
            raise ValueError(f"action type '{self.action_dtype}', target '{self.target}'")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"tolerance {self.tolerance}")

    @property
    def n_obs(self) -> int:
        return sum(tensor.length for tensor in self.inputs)

    @staticmethod
    def of(library: ModelLibrary) -> Interface:
        try:
            entry = library.interface
            inputs: list[Input] = []
            for tensor in entry["inputs"]:
                offset = sum(earlier.length for earlier in inputs)
                inputs.append(Input(tensor["name"], tensor["c_name"], tensor["length"], offset))
            action = entry["action"]
            return Interface(
                name=library.name,
                target=entry["target"],
                inputs=tuple(inputs),
                n_actions=action["length"],
                action_name=action["name"],
                action_c_name=action["c_name"],
                action_dtype=action["dtype"],
                tolerance=float(entry["tolerance"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TinyrlError(
                f"the library's metadata.json does not describe a policy ({error}); compile the policy again"
            ) from None


@dataclass(frozen=True)
class Vectors:
    """Test vectors: observations (n, n_obs) float32, answers (n, n_actions), and `built_in`, the rows that a project
    carries in its own sources. `float_answers` (n, n_actions) are the float policy's; None in a library that lacks
    them."""

    observations: np.ndarray = field(repr=False)
    answers: np.ndarray = field(repr=False)
    built_in: np.ndarray = field(repr=False)
    float_answers: np.ndarray | None = field(default=None, repr=False)

    @staticmethod
    def of(library: ModelLibrary) -> Vectors:
        interface = Interface.of(library)
        try:
            arrays = library.vectors()
            observations = np.ascontiguousarray(arrays["observations"], np.float32)
            answers = np.ascontiguousarray(arrays["expected"], interface.action_dtype)
            float_answers = arrays.get("float_action")
            n = len(observations)
            shapes = observations.shape == (n, interface.n_obs) and answers.shape == (n, interface.n_actions)
            if n == 0 or not shapes or not (np.isfinite(observations).all() and np.isfinite(answers).all()):
                raise ValueError(f"shapes {observations.shape} and {answers.shape}, or a value that is not finite")
            if float_answers is not None:
                float_answers = np.ascontiguousarray(float_answers, interface.action_dtype)
                if float_answers.shape != answers.shape or not np.isfinite(float_answers).all():
                    raise ValueError(f"float_action of shape {float_answers.shape}, or a value that is not finite")
        except (KeyError, ValueError, TypeError, EOFError, OSError) as error:
            raise TinyrlError(f"the library's test vectors cannot be used: {error}; compile the policy again") from None
        row_bytes = observations[0].nbytes + answers[0].nbytes
        built_in_n = max(1, min(n, MAX_BUILT_IN_VECTORS, MAX_BUILT_IN_BYTES // row_bytes))
        return Vectors(observations, answers, np.linspace(0, n - 1, built_in_n).astype(np.int64), float_answers)


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
    for tool in PLATFORMS[project.platform].tools:
        toolchain.find(tool)
    command: list[str | Path] = [toolchain.find("make"), "--no-print-directory", f"-j{os.cpu_count() or 1}", "all"]
    with _one_build_at_a_time(project.folder):
        made = subprocess.run(
            command, cwd=project.folder, env=toolchain.build_environment(), capture_output=True, text=True, check=False
        )
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
    files = _policy_files(library)
    sources = [path for path in files if path.endswith((".c", ".S"))]
    holes = _holes(interface, Vectors.of(library), sources)
    if board:
        holes |= {"board": board, "board_cflags": " ".join(TARGETS[board.target].cflags)}
    for path, template in _template_files(platform, options):
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
        "observations": observations.tolist(),
        "answers": answers.tolist(),
        "example_answer": answers[0].astype(answers.dtype.newbyteorder("<")).tobytes().hex(),
    }


def _template_files(platform: str, options: Mapping[str, str]) -> Iterator[tuple[str, Traversable]]:
    """(path in the project, template). Of `boards/` only the chosen one, as `board/`."""
    templates = resources.files("microtvm_projects")
    for borrowed in PLATFORMS[platform].borrows:
        yield borrowed, templates.joinpath("host", borrowed)
    for path, template in _files_below(templates.joinpath(platform), PurePosixPath()):
        if path.parts[0] != "boards":
            yield str(path), template
        elif path.parts[1] == options["board"]:
            yield str(PurePosixPath("board", *path.parts[2:])), template


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
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in lines:
        if "overflowed by" in line:
            reason = line.split(": ")[-1]
            return TinyrlError(f"the policy does not fit: {reason}; try --precision int8 or a smaller network")
    telling = [line for line in lines if "error:" in line or "cannot find" in line] or lines[-1:] or ["make failed"]
    return TinyrlError(f"the build failed: {telling[0]}; run 'make' in '{project.folder}' to see all of it")
