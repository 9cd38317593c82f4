# SPDX-License-Identifier: Apache-2.0
"""A module and an application for Zephyr keep its rules, build by `west build`, and answer as they must.

Zephyr is in no registry: fixtures/zephyr stands in for its CMake package, with a list of the Kconfig symbols it has.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cmsis_nn_checkouts import CHECKOUTS, STAND_IN
from policies import arg_max, compile_model, dense_policy, unscaled
from quantised_models import quantised
from ruamel.yaml import YAML
from test_project import POLICIES, cartpole, only_on_path

from tinyrl_tvm import toolchain
from tinyrl_tvm.device import micro
from tinyrl_tvm.device.emulator import emulate
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import Project, build, create, load
from tinyrl_tvm.project.platforms.zephyr import BOARD_NAMES, RELEASES
from tinyrl_tvm.targets import board_named

ZEPHYR_BASE = Path(__file__).parent / "fixtures" / "zephyr"
BOARD = board_named("mps3-an547")
WEST = """#!/bin/sh -e
# west build -b BOARD -d FOLDER APPLICATION
[ "$1 $2 $4" = "build -b -d" ]
cmake -S "$6" -B "$5" -DBOARD="$3" {system} >configured
cmake --build "$5" >built
"""


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with a `west` of ours."""
    toolchain.find("cmake")
    (tmp_path / "bin").mkdir()
    install_west(tmp_path)
    monkeypatch.setenv("ZEPHYR_BASE", str(ZEPHYR_BASE))
    import os

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def install_west(folder: Path, system: str = "") -> None:
    west = folder / "bin" / "west"
    west.write_text(WEST.replace("{system}", system))
    west.chmod(0o755)


def on_mps3(project: Project, folder: Path) -> str:
    """Built with our own start-up code for the board, and run on QEMU."""
    pack = create(project.library, folder / "pack", "baremetal", {"board": BOARD.name}).folder
    sources = ["cortex-m/startup.c", "cortex-m/systick.c", "cortex-m/core.c", "src/semihosting.c"]
    library = pack / "console.o"
    # the application's console is its own: ours keeps another name
    gcc = [toolchain.find("arm-none-eabi-gcc"), "-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"]
    renamed = ["-Dconsole_text=semihosting_text", "-c", "src/semihosting.c", "-o", library]
    subprocess.run([*gcc, "-Isrc", *renamed], cwd=pack, check=True)
    system = {
        "CMAKE_TOOLCHAIN_FILE": pack / "toolchain.cmake",
        "SYSTEM_SOURCES": ";".join([*(str(pack / source) for source in sources[:-1]), str(library)]),
        "SYSTEM_FOLDERS": pack / "src",
        "SYSTEM_DEFINITIONS": "SEMIHOSTING",
        "SYSTEM_LINK_OPTIONS": f"-nostartfiles;-T{pack / 'cortex-m' / 'link.ld'}",
    }
    install_west(folder, " ".join(f"'-D{name}={value}'" for name, value in system.items()))
    return emulate(BOARD, build(project).products[0], folder, 60)


SHAPES: dict[str, dict[str, Any]] = {"decisions": {"head": arg_max}, "numbers": {"head": unscaled(-2, 3)}}


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_application_answers_on_an_emulated_mps3_as_it_must(name: str, precision: str, workspace: Path) -> None:
    model = dense_policy((4, 16, 16, 2), activation="Tanh", **SHAPES[name])
    library = compile_model(model, workspace, precision=precision).library
    project = create(library, workspace / "project", "zephyr")
    printed = on_mps3(project, workspace)
    assert printed.startswith("policy policy\nanswer 0 status 0 action ")
    regex = read(project.folder / "app" / "testcase.yaml")["tests"]["policy.policy.parity"]["harness_config"]["regex"]
    assert re.search(rf"^{regex[0]}$", printed, re.MULTILINE)
    with (project.folder / "build" / "CMakeCache.txt").open() as cache:
        assert "BOARD:UNINITIALIZED=mps3/corstone300/an547\n" in cache.read()


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_application_answers_natively_under_every_release(policy: str, release: str, workspace: Path) -> None:
    options = {"board": "native", "zephyr_version": release}
    project = create(POLICIES[policy](), workspace / "project", "zephyr", options)
    printed = subprocess.run([build(project).products[0]], capture_output=True, text=True, check=True).stdout
    assert "PARITY PASS (64 of 64)\ndone\n" in printed


def test_a_symbol_that_nobody_defines_does_not_build(workspace: Path) -> None:
    """The twin: the stand-in does check."""
    project = create(cartpole(), workspace / "project", "zephyr", {"board": "native"})
    with (project.folder / "app" / "prj.conf").open("a") as settings:
        settings.write("CONFIG_POLICY_CARTPOL=y\n")
    with pytest.raises(
        TinyrlError, match=r"the build failed: error: .* undefined symbol.*; run 'west build -b native_sim"
    ):
        build(project)


# ---- with CMSIS-NN ----


def offloaded(folder: Path, per_channel: bool = False, target: str = "cortex-m55") -> ModelLibrary:
    model = quantised(dense_policy((4, 16, 16, 2), head=arg_max), per_channel=per_channel)
    return compile_model(model, folder, target=target, cmsis_nn=True).library


@pytest.mark.parametrize("checkout", CHECKOUTS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_layers_of_cmsis_nn_are_zephyrs_own_to_build(
    per_channel: bool, checkout: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMSIS_NN_PATH", str(CHECKOUTS[checkout]))
    library = offloaded(workspace, per_channel)
    project = create(library, workspace / "project", "zephyr")
    assert "PARITY PASS" in on_mps3(project, workspace)
    settings = (project.folder / "app" / "prj.conf").read_text().splitlines()
    assert {"CONFIG_CMSIS_NN=y", "CONFIG_CMSIS_NN_FULLYCONNECTED=y", "CONFIG_CMSIS_NN_NNSUPPORT=y"} <= set(settings)
    (zephyr,) = read(project.folder / "app" / "west.yml")["manifest"]["projects"]
    assert zephyr["import"]["name-allowlist"] == ["cmsis_6", "cmsis-dsp", "cmsis-nn"]
    (test,) = read(project.folder / "app" / "testcase.yaml")["tests"].values()
    assert "native_sim" not in test["platform_allow"]


def test_an_application_without_cmsis_nn_is_told_what_the_module_depends_on(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMSIS_NN_PATH", str(STAND_IN))
    project = create(offloaded(workspace), workspace / "project", "zephyr")
    (project.folder / "app" / "prj.conf").write_text("CONFIG_POLICY_POLICY=y\n")
    with pytest.raises(TinyrlError, match="unsatisfied dependency CMSIS_NN_FULLYCONNECTED"):
        build(project)


@pytest.mark.parametrize(
    ("options", "per_channel", "sentence"),
    [
        (("native", "4.4"), False, "calls CMSIS-NN, which 'zephyr' does not build for the board 'native'"),
        (("mps3-an547", "3.6"), False, "needs CMSIS-NN 6.0.0, 'zephyr' with board=.*version=3.6 comes with 4.1.0"),
        (("mps3-an547", "4.0"), True, "needs CMSIS-NN 7.0.0, 'zephyr' with board=.*version=4.0 comes with 6.0.0"),
    ],
)
def test_a_release_whose_cmsis_nn_is_too_old_is_refused(
    options: tuple[str, str], per_channel: bool, sentence: str, tmp_path: Path
) -> None:
    chosen = dict(zip(("board", "zephyr_version"), options, strict=True))
    with pytest.raises(TinyrlError, match=sentence):
        create(offloaded(tmp_path, per_channel), tmp_path / "project", "zephyr", chosen)


# ---- names of each release ----

OLD = {"mps3_an547", "mps2_an521", "qemu_cortex_m3"}
NAMES = {
    "3.4": OLD | {"native_posix"},
    "3.6": OLD | {"native_sim"},
    "3.7": {"mps3/an547", "mps2/an521/cpu0", "qemu_cortex_m3", "native_sim"},
    "4.0": {"mps3/corstone300/an547", "mps2/an521/cpu0", "qemu_cortex_m3", "native_sim"},
    "4.4": {"mps3/corstone300/an547", "mps2/an521/cpu0", "qemu_cortex_m3", "native_sim"},
}


@pytest.mark.parametrize("release", NAMES)
def test_a_release_decides_the_names_of_boards_and_modules(release: str, tmp_path: Path) -> None:
    folder = create(cartpole(), tmp_path / "project", "zephyr", {"zephyr_version": release}).folder
    (test,) = read(folder / "app" / "testcase.yaml")["tests"].values()
    assert set(test["platform_allow"]) == NAMES[release]
    assert set(test["integration_platforms"]) <= NAMES[release]
    files = {str(path.stem) for path in (folder / "app" / "boards").iterdir()}
    assert files <= {name.replace("/", "_") for name in NAMES[release]}
    (zephyr,) = read(folder / "app" / "west.yml")["manifest"]["projects"]
    assert zephyr["revision"] == f"v{release}.0"
    assert zephyr["import"]["name-allowlist"] == ["cmsis_6" if release in {"4.2", "4.3", "4.4"} else "cmsis"]


def test_what_was_chosen_is_not_asked_again(tmp_path: Path) -> None:
    options = {"board": "qemu-cortex-m3", "zephyr_version": "3.7"}
    create(cartpole(target="cortex-m3"), tmp_path / "project", "zephyr", options)
    assert load(tmp_path / "project").options == options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"zephyr_version": "3.3"}, r"no zephyr_version '3.3'; have: 3.4, 3.5, .*4.4"),
        ({"board": "mps3_an547"}, r"no board 'mps3_an547'; have: mps2-an521, .* Did you mean 'mps3-an547'\?"),
        ({"version": "4.4"}, r"no option of 'zephyr' 'version'; have: board, zephyr_version"),
        ({"board": "qemu-cortex-m3"}, r"compiled for 'cortex-m55', the board 'qemu-cortex-m3' has a 'cortex-m3'"),
    ],
)
def test_a_bad_choice_is_one_sentence(options: dict[str, str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=sentence):
        create(cartpole(), tmp_path / "project", "zephyr", options)


# ---- what a reviewer of Zephyr looks at ----


@pytest.mark.parametrize("board", BOARD_NAMES)
def test_there_is_no_file_that_a_reviewer_would_ask_to_delete(board: str, tmp_path: Path) -> None:
    library = compile_model(dense_policy((4, 16, 2)), tmp_path, target="portable").library
    folder = create(library, tmp_path / "project", "zephyr", {"board": board}).folder
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        *("README.md", "model.tar", "tinyrl_project.json"),
        *(f"policy/zephyr/{name}" for name in ("module.yml", "Kconfig", "CMakeLists.txt")),
        *("policy/include/tvmgen_policy.h", "policy/src/tvmgen_policy_kernels.h"),
        *("policy/src/policy_lib0.c", "policy/src/policy_lib1.c"),
        *(f"app/{name}" for name in ("CMakeLists.txt", "prj.conf", "testcase.yaml", "west.yml")),
        "app/boards/mps3_corstone300_an547.conf",
        *(f"app/src/{name}" for name in ("main.c", "console.c", "console.h", "replay.c", "replay.h")),
        *("app/src/vectors.c", "app/src/vectors.h"),
    }


def test_the_module_keeps_the_rules(tmp_path: Path) -> None:
    folder = create(cartpole(), tmp_path / "project", "zephyr").folder / "policy"
    module = read(folder / "zephyr" / "module.yml")
    assert module == {"name": "policy_cartpole", "build": {"cmake": "zephyr", "kconfig": "zephyr/Kconfig"}}
    assert (folder / module["build"]["cmake"] / "CMakeLists.txt").is_file()
    kconfig = (folder / module["build"]["kconfig"]).read_text()
    assert re.search(r'^config POLICY_CARTPOLE\n\tbool ".+"\n\thelp\n\t  \w', kconfig, re.MULTILINE)
    assert "if(CONFIG_POLICY_CARTPOLE)" in (folder / "zephyr" / "CMakeLists.txt").read_text()


def test_the_application_finds_zephyr_before_its_project_and_sets_no_board(tmp_path: Path) -> None:
    folder = create(cartpole(), tmp_path / "project", "zephyr").folder / "app"
    lists = (folder / "CMakeLists.txt").read_text()
    assert lists.index("find_package(Zephyr") < lists.index("project(")
    assert "BOARD" not in lists
    (test,) = read(folder / "testcase.yaml")["tests"].values()
    known = {"tags", "platform_allow", "integration_platforms", "harness", "harness_config"}
    assert set(test) == known
    assert test["harness"] == "console"
    assert test["harness_config"]["type"] == "one_line"


# ---- what goes wrong ----


def test_a_project_is_created_within_3_seconds(tmp_path: Path) -> None:
    start = time.monotonic()
    create(cartpole(), tmp_path / "project", "zephyr")
    assert time.monotonic() - start < 3


def test_without_west_a_build_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = create(cartpole(), tmp_path / "project", "zephyr")
    only_on_path(tmp_path / "bin", ["make"], monkeypatch)
    with pytest.raises(TinyrlError, match=r"no 'west' on PATH; .* Install it: pip install west, and a workspace"):
        build(project)


def test_running_names_the_command_of_west(tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=r"is run by its own tool: west build -d .*/project/build -t run"):
        micro.run(create(cartpole(), tmp_path / "project", "zephyr"))
