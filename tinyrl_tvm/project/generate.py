# SPDX-License-Identifier: Apache-2.0
"""Write a project: the library's code, the platform's templates with their holes filled, the record of what was chosen."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tinyrl_tvm import __version__, cmsis_nn
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface, Vectors
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.memory import IN_PROSE, NO_BUDGET, RESOURCES, Contract
from tinyrl_tvm.project.folder import PROJECT_FILE, PROJECT_FORMAT, Project, load
from tinyrl_tvm.project.platforms import PLATFORMS, Platform, platform_named
from tinyrl_tvm.project.platforms.platform import ANY_RELEASE, Layout, Options
from tinyrl_tvm.project.templates import filled_templates
from tinyrl_tvm.targets import BOARDS, TARGETS, Board

SOURCE_PATH = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*"
)  # safe in make, CMake and a shell


def create(
    library: ModelLibrary, folder: Path, platform: str, options: Mapping[str, str] | None = None, force: bool = False
) -> Project:
    """Write the project, whole or not at all. `force` replaces an earlier project, never another folder."""
    chosen = platform_named(platform).complete(options or {})
    files = _project_files(library, platform_named(platform), chosen)
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


def _refuse_to_overwrite(folder: Path, force: bool) -> None:
    if not folder.exists():
        return
    if not force:
        raise TinyrlError(f"'{folder}' already exists; -f replaces it when it is an earlier project")
    is_project = folder.is_dir() and ((folder / PROJECT_FILE).is_file() or not any(folder.iterdir()))
    if not is_project:
        raise TinyrlError(f"'{folder}' is not a project of ours (no {PROJECT_FILE}), so -f does not replace it")


def _project_files(library: ModelLibrary, platform: Platform, options: Options) -> dict[str, bytes]:
    interface = Interface.of(library)
    contract = Contract.of(library)
    _refuse_another_core(interface, platform, options)
    if contract and (board := BOARDS.get(options.get("board", ""))):
        _refuse_small_board(contract, board, library.interface.get("precision"))
    _refuse_missing_cmsis_nn(interface, platform, options)
    files = _policy_files(library, platform.layout)
    sources = [path for path in files if path.endswith((".c", ".S"))]
    budget = contract.budget if contract else NO_BUDGET
    files |= filled_templates(platform, options, interface, Vectors.of(library), sources, budget)
    record = {
        "format": PROJECT_FORMAT,
        "tinyrl_tvm": __version__,
        "platform": platform.name,
        "options": dict(options),
        "library": {"name": library.name, "sha256": hashlib.sha256(files[platform.layout.model]).hexdigest()},
        "interface": library.interface,
    }
    files[PROJECT_FILE] = (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
    return files


def _refuse_another_core(interface: Interface, platform: Platform, options: Options) -> None:
    target = platform.target(options)
    if target is not None and interface.target != target and TARGETS[interface.target].guard is not None:
        name, choices = platform.options[0].name, platform.options[0].choices
        fit = [choice for choice in choices if platform.target({**options, name: choice}) == interface.target]
        choose = f"choose --project-option {name}={fit[0]}, or " if fit else ""
        raise TinyrlError(
            f"the library is compiled for '{interface.target}', {platform.place(options)} has a '{target}'; "
            f"{choose}compile the policy with --target {target}"
        )


def _refuse_missing_cmsis_nn(interface: Interface, platform: Platform, options: Options) -> None:
    needed, has = cmsis_nn.since(interface.cmsis_nn), platform.cmsis_nn(options)
    if not needed or has == ANY_RELEASE:
        return
    able = [other.name for other in PLATFORMS.values() if other.cmsis_nn(other.complete({}))]
    if not has and platform.name not in able:
        raise TinyrlError(
            f"the library calls CMSIS-NN, which '{platform.name}' does not build; have: {', '.join(able)}"
        )
    if not has:
        raise TinyrlError(
            f"the library calls CMSIS-NN, which '{platform.name}' does not build for {platform.place(options)}"
        )
    if cmsis_nn.numbers(has) < cmsis_nn.numbers(needed):
        chosen = ", ".join(f"{name}={value}" for name, value in options.items())
        raise TinyrlError(f"the library needs CMSIS-NN {needed}, '{platform.name}' with {chosen} comes with {has}")


def _refuse_small_board(contract: Contract, board: Board, precision: str | None) -> None:
    """What cannot fit however the prediction errs; the rest is for the linker to say."""
    least = {resource: contract.predicted(resource).least_bytes for resource in RESOURCES}
    needs = {"flash": least["flash"], "ram": least["ram"] + least["stack"]}
    smaller = ", --precision int8" if precision == "float32" else ""
    for resource, has in (("flash", board.flash_bytes), ("ram", board.ram_bytes)):
        if needs[resource] > has:
            raise TinyrlError(
                f"the policy needs at least {needs[resource]:,} B of {IN_PROSE[resource]}, '{board.name}' has {has:,} B; the "
                f"largest parts are {contract.predicted(resource).largest}; take a larger board{smaller} or a smaller network"
            )


def _policy_files(library: ModelLibrary, layout: Layout) -> dict[str, bytes]:
    """The library's code where the platform wants it, in a fixed order, and the library itself."""
    files = {}
    for path in sorted(library.files):
        if path.startswith("codegen/host/"):
            below = path.removeprefix("codegen/host/")
            if not SOURCE_PATH.fullmatch(below):
                raise TinyrlError(f"the library holds a source called {path!r}; compile the policy again")
            files[layout.place_of(below, library.name)] = library.files[path]
    header = layout.place_of(f"include/tvmgen_{library.name}.h", library.name)
    if header not in files or not any(path.endswith(".c") for path in files):
        raise TinyrlError(f"the library holds no C code for '{library.name}'; compile the policy again")
    return files | {layout.model: library.to_bytes()}


def _write_tree(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
