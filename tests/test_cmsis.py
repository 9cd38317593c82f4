# SPDX-License-Identifier: Apache-2.0
"""A csolution project keeps the rules of its format, and its files, built as it says, answer on QEMU as they must.

The CMSIS-Toolbox is in no registry: its rules are written out here, and our own start-up code stands in for the packs'.
"""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmsis_nn_checkouts import CHECKOUTS
from policies import arg_max, compile_model, dense_policy
from quantised_models import quantised
from ruamel.yaml import YAML
from test_project import POLICIES, only_on_path

from tinyrl_tvm import toolchain
from tinyrl_tvm.device import micro
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.project import Project, build, create
from tinyrl_tvm.project.platforms.cmsis import CMSIS_DEVICES
from tinyrl_tvm.targets import TARGETS, board_named


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


def files_of(path: Path) -> tuple[list[Path], list[Path]]:
    """Sources and include folders of a .cproject.yml with its layers, or of a .clayer.yml."""
    (content,) = read(path).values()
    sources = [path.parent / entry["file"] for group in content["groups"] for entry in group["files"]]
    folders = [path.parent / folder for group in content["groups"] for folder in group.get("add-path", ())]
    for layer in content.get("layers", ()):
        more_sources, more_folders = files_of(path.parent / layer["layer"])
        sources, folders = sources + more_sources, folders + more_folders
    return sources, folders


def built(project: Project, scratch: Path, cmsis_nn: Path | None = None) -> Project:
    """As cbuild would, context Release; the components' start-up code and linker script are those of `baremetal`, and
    those of the pack CMSIS-NN what its checkout has."""
    board = board_named(CMSIS_DEVICES[project.options["device"]])
    pack = create(project.library, scratch / "pack", "baremetal", {"board": board.name}).folder
    gcc = [toolchain.find("arm-none-eabi-gcc"), *TARGETS[board.target].cflags, "-O3"]
    of_pack: list[Path | str] = []
    if cmsis_nn is not None:
        include = f"-I{cmsis_nn / 'Include'}"
        subprocess.run([*gcc, include, "-c", *cmsis_nn.glob("Source/*/*_s8*.c")], cwd=scratch, check=True)
        of_pack = [*scratch.glob("*_s8*.o"), include]
    sources, folders = files_of(project.folder / "Replay.cproject.yml")
    (misc,) = read(project.folder / "cdefault.yml")["default"]["misc"]
    includes = [f"-I{folder}" for folder in [*folders, pack / "src"]]
    startup = [pack / "cortex-m" / "startup.c", pack / "cortex-m" / "systick.c"]
    out = project.folder / "out" / "Replay" / "Release"
    out.mkdir(parents=True)
    subprocess.run(
        [
            *(*gcc, *misc["C"], "-Werror", *of_pack),
            *(*includes, *sources, *startup, *misc["Link"], "-nostartfiles", "-T", pack / "cortex-m" / "link.ld"),
            *("-o", out / "Replay.elf"),
        ],
        check=True,
    )
    return project


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("device", CMSIS_DEVICES)
def test_the_files_it_names_make_a_program_that_answers_as_it_must(device: str, precision: str, tmp_path: Path) -> None:
    target = board_named(CMSIS_DEVICES[device]).target
    model = dense_policy((4, 16, 16, 2), activation="Tanh", head=arg_max)
    library = compile_model(model, tmp_path, precision=precision, target=target).library
    project = built(create(library, tmp_path / "project", "cmsis", {"device": device}), tmp_path)
    rows = library.vectors()["observations"][:5]
    measured = micro.run(project, rows)
    assert measured.parity == "PASS"
    assert measured.device == f"qemu {CMSIS_DEVICES[device]}"
    np.testing.assert_array_equal(measured.actions, library.vectors()["expected"][:5])


# ---- with CMSIS-NN ----


@pytest.mark.parametrize("checkout", CHECKOUTS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_layers_of_cmsis_nn_come_from_its_pack(per_channel: bool, checkout: str, tmp_path: Path) -> None:
    model = quantised(dense_policy((4, 16, 16, 2), head=arg_max), per_channel=per_channel)
    library = compile_model(model, tmp_path, cmsis_nn=True).library
    created = create(library, tmp_path / "project", "cmsis")
    assert micro.run(built(created, tmp_path, CHECKOUTS[checkout])).parity == "PASS"
    since = "7.0.0" if per_channel else "6.0.0"
    packs = [pack["pack"] for pack in read(created.folder / "Policy.csolution.yml")["solution"]["packs"]]
    assert f"ARM::CMSIS-NN@>={since}" in packs
    layer = read(created.folder / "policy" / "Policy.clayer.yml")["layer"]
    assert layer["components"] == [{"component": "ARM::CMSIS:NN Lib"}]
    package = ET.parse(created.folder / "policy" / "tinyrl.policy.pdsc").getroot()
    (required,) = package.iterfind("requirements/packages/package")
    assert required.attrib == {"vendor": "ARM", "name": "CMSIS-NN", "version": since}
    assert package.find("conditions/condition/require").attrib == {"Cclass": "CMSIS", "Cgroup": "NN Lib"}


# ---- the rules of the format ----


@pytest.mark.parametrize("device", CMSIS_DEVICES)
def test_the_solution_keeps_the_rules(device: str, tmp_path: Path) -> None:
    folder = create(POLICIES["cartpole"](target="host"), tmp_path / "project", "cmsis", {"device": device}).folder
    solution = read(folder / "Policy.csolution.yml")["solution"]
    assert re.fullmatch(r"CMSIS-Toolbox@\d+\.\d+\.\d+", solution["created-for"])
    assert solution["compiler"] in {"AC6", "GCC", "CLANG", "IAR"}
    assert "cdefault" in solution
    assert all(re.fullmatch(r"\w+::[\w-]+@[\^~>=]*\d+\.\d+\.\d+", pack["pack"]) for pack in solution["packs"])
    vendors = {pack["pack"].split("@")[0] for pack in solution["packs"]}
    assert vendors == {"ARM::CMSIS", "ARM::Cortex_DFP"}
    assert [entry["device"] for entry in solution["target-types"]] == [f"ARM::{device}"]
    for entry in solution["build-types"]:
        assert set(entry) == {"type", "debug", "optimize"}
        assert entry["debug"] in {"on", "off"}
        assert entry["optimize"] in {"balanced", "debug", "none", "size", "speed"}
    for entry in [*solution["build-types"], *solution["target-types"]]:
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,32}", entry["type"])
    assert set(solution["output-dirs"]) <= {"outdir", "intdir", "tmpdir"}
    assert all((folder / entry["project"]).is_file() for entry in solution["projects"])


def test_the_project_and_the_layer_keep_the_rules(tmp_path: Path) -> None:
    folder = create(POLICIES["reacher"](), tmp_path / "project", "cmsis").folder
    project = read(folder / "Replay.cproject.yml")["project"]
    assert {"groups", "components", "layers", "output"} <= set(project)
    components = {entry["component"] for entry in project["components"]}
    assert components == {"ARM::CMSIS:CORE", "ARM::Device:Startup&C Startup"}
    assert set(project["output"]["type"]) <= {"elf", "hex", "bin", "lib", "map", "cmse-lib"}
    layer = read(folder / "policy" / "Policy.clayer.yml")["layer"]
    assert set(layer) == {"type", "description", "groups"}
    sources, folders = files_of(folder / "Replay.cproject.yml")
    assert len(set(sources)) == len(sources)
    assert {path.resolve() for path in sources} == {*folder.rglob("*.c"), *folder.rglob("*.S")}
    assert all(path.is_dir() for path in folders)


def test_no_reader_of_yaml_takes_a_word_for_a_truth_value(tmp_path: Path) -> None:
    """YAML 1.1, which PyYAML reads, has on and off for true and false."""
    folder = create(POLICIES["cartpole"](), tmp_path / "project", "cmsis").folder
    for path in folder.rglob("*.yml"):
        assert not re.search(r":\s+(on|off|yes|no)\s*$", path.read_text(), re.MULTILINE | re.IGNORECASE), path


def test_the_pack_names_every_file_of_the_policy(tmp_path: Path) -> None:
    library = compile_model(dense_policy((4, 16, 2)), tmp_path).library
    folder = create(library, tmp_path / "project", "cmsis").folder / "policy"
    package = ET.parse(folder / "tinyrl.policy.pdsc").getroot()
    assert re.fullmatch(r"1\.\d\.\d+", package.attrib["schemaVersion"])
    order = [child.tag for child in package]
    assert order == [
        *("vendor", "name", "description", "url", "license", "licenseSets", "releases", "conditions", "components")
    ]
    assert f"{package.findtext('vendor')}.{package.findtext('name')}.pdsc" == "tinyrl.policy.pdsc"
    assert (folder / package.findtext("license")).is_file()
    component = package.find("components/component")
    assert component.attrib["Cversion"] == package.find("releases/release").attrib["version"]
    assert component.attrib["condition"] in {entry.attrib["id"] for entry in package.iter("condition")}
    named = {(folder / entry.attrib["name"]).resolve() for entry in component.iter("file")}
    code = {*folder.rglob("*.c"), *folder.rglob("*.S"), folder / "include", folder / "include" / "tvmgen_policy.h"}
    assert named == code


# ---- what goes wrong ----


def test_without_the_toolbox_a_build_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = create(POLICIES["cartpole"](), tmp_path / "project", "cmsis")
    only_on_path(tmp_path / "bin", ["make"], monkeypatch)
    with pytest.raises(
        TinyrlError, match=r"no 'cbuild' on PATH; .* Install it: CMSIS-Toolbox, https://open-cmsis-pack.github.io"
    ):
        build(project)


def test_a_library_for_another_core_is_refused_by_the_device(tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=r"compiled for 'cortex-m4', the device 'ARMCM55' has a 'cortex-m55'"):
        create(POLICIES["cartpole"](target="cortex-m4"), tmp_path / "project", "cmsis")


def test_two_builds_wait_for_each_other_and_the_toolbox_is_called_as_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for cbuild that fails when another runs in the same folder."""
    project = create(POLICIES["cartpole"](), tmp_path / "project", "cmsis")
    only_on_path(tmp_path / "bin", ["sh", "mkdir", "rmdir", "sleep", "touch", "arm-none-eabi-gcc"], monkeypatch)
    (tmp_path / "bin" / "cbuild").write_text(
        "#!/bin/sh\nmkdir busy || exit 1\nsleep 0.2\nmkdir -p out/Replay/Release\n"
        'touch out/Replay/Release/Replay.elf\necho "$@" > called\nrmdir busy\n'
    )
    (tmp_path / "bin" / "cbuild").chmod(0o755)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, [project] * 2))
    called = (project.folder / "called").read_text().strip()
    assert f"cbuild {called}\n" in (project.folder / "README.md").read_text()
