# SPDX-License-Identifier: Apache-2.0
"""A component for ESP-IDF packs, and its C, built for the ESP32-C3's instruction set, answers on QEMU as it must.

ESP-IDF itself is in no registry: bare-metal start-up code stands in for it, and a clock that stands still.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from policies import arg_max, compile_model, dense_policy, unscaled
from ruamel.yaml import YAML
from test_project import POLICIES, only_on_path

from tinyrl_tvm import toolchain
from tinyrl_tvm.device import micro
from tinyrl_tvm.device.emulator import emulate
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import build, create
from tinyrl_tvm.project.platforms.esp_idf import CHIPS
from tinyrl_tvm.targets import board_named

BOARD = board_named("riscv32-virt")
COMPOTE = Path(sys.executable).with_name("compote")  # the environment's own, whether or not it is on the path
SYSTEM = """
#include "semihosting.h"
#include <stdint.h>
int main(void) { app_main(); semihosting_exit(0); }
int64_t esp_timer_get_time(void) { return 0; }
"""


def registered(folder: Path) -> tuple[list[Path], list[Path]]:
    """What `idf_component_register` of a CMakeLists.txt is given: SRCS and INCLUDE_DIRS."""
    call = re.search(r"idf_component_register\((.*)\)", (folder / "CMakeLists.txt").read_text(), re.DOTALL)[1]
    sources = re.findall(r'"([^"]+)"', re.search(r"SRCS(.*)INCLUDE_DIRS", call, re.DOTALL)[1])
    (include,) = re.findall(r'INCLUDE_DIRS "([^"]+)"', call)
    return [folder / source for source in sources], [folder / include]


def printed_by(library: ModelLibrary, folder: Path) -> str:
    component = create(library, folder / "project", "esp-idf").folder / library.name
    pack = create(library, folder / "pack", "baremetal", {"board": BOARD.name}).folder
    (pack / "system.c").write_text(f"void app_main(void);\n{SYSTEM}")
    (pack / "src" / "esp_timer.h").write_text("#include <stdint.h>\nint64_t esp_timer_get_time(void);\n")
    sources, includes = registered(component)
    main_sources, main_includes = registered(component / "examples" / "replay" / "main")
    gcc = [toolchain.find("riscv64-unknown-elf-gcc"), "-march=rv32imc", "-mabi=ilp32", "--specs=picolibc.specs", "-O2"]
    folders = [f"-I{path}" for path in [*includes, *main_includes, pack / "src"]]
    system = [pack / "system.c", pack / "riscv" / "startup.c", pack / "riscv" / "core.c"]
    # the console is the example's own
    console = ["-Dconsole_text=console_of_baremetal", "-c", pack / "src" / "semihosting.c", "-o", pack / "console.o"]
    subprocess.run([*gcc, *folders, *console], check=True)
    strict = ["-std=gnu17", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        [
            *(*gcc, *strict, *folders, *sources, *main_sources, *system, pack / "console.o", "--oslib=semihost"),
            *("-nostartfiles", "-T", pack / "riscv" / "link.ld", "-o", pack / "firmware.elf"),
        ],
        check=True,
    )
    return emulate(BOARD, pack / "firmware.elf", pack, 60)


SHAPES: dict[str, dict[str, Any]] = {"decisions": {"head": arg_max}, "numbers": {"head": unscaled(-2, 3)}}


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("target", ["rv32imc", "portable"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_component_and_its_example_answer_as_they_must(
    name: str, target: str, precision: str, tmp_path: Path
) -> None:
    model = dense_policy((4, 16, 16, 2), activation="Tanh", **SHAPES[name])
    library = compile_model(model, tmp_path, precision=precision, target=target).library
    printed = printed_by(library, tmp_path)
    assert printed.startswith("policy policy\nanswer 0 status 0 action ")
    assert "\nPARITY PASS (64 of 64)\n" in printed


@pytest.mark.parametrize("chip", CHIPS)
def test_the_component_packs(chip: str, tmp_path: Path) -> None:
    library = compile_model(dense_policy((4, 16, 2)), tmp_path, target="portable").library
    folder = create(library, tmp_path / "project", "esp-idf", {"chip": chip}).folder / "policy"
    done = subprocess.run(
        [COMPOTE, "component", "pack", "--name", "policy"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr + done.stdout
    (archive,) = folder.glob("dist/policy_*.tgz")
    with tarfile.open(archive) as packed:
        names = {name.removeprefix("./") for name in packed.getnames()}
    assert {"CMakeLists.txt", "idf_component.yml", "LICENSE", "include/tvmgen_policy.h"} <= names
    assert {"src/policy_lib0.c", "src/policy_lib1.c", "examples/replay/main/main.c"} <= names


def test_a_component_without_a_version_does_not_pack(tmp_path: Path) -> None:
    """The twin: compote does check."""
    folder = create(POLICIES["cartpole"](), tmp_path / "project", "esp-idf", {"chip": "esp32"}).folder / "cartpole"
    (folder / "idf_component.yml").write_text('version: "none of these"\n')
    command = [COMPOTE, "component", "pack", "--name", "cartpole"]
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode != 0


def test_the_example_finds_the_component_by_its_folder(tmp_path: Path) -> None:
    folder = create(POLICIES["cartpole"](), tmp_path / "project", "esp-idf", {"chip": "esp32"}).folder
    main = folder / "cartpole" / "examples" / "replay" / "main"
    ((name, source),) = YAML(typ="safe").load((main / "idf_component.yml").read_text())["dependencies"].items()
    assert (main / source["path"]).resolve() == folder / name == folder / "cartpole"
    sources, _ = registered(main)
    assert set(sources) == set(main.glob("*.c"))
    assert 'CONFIG_IDF_TARGET="esp32"' in (main.parent / "sdkconfig.defaults").read_text()


def test_without_esp_idf_a_build_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = create(POLICIES["cartpole"](target="host"), tmp_path / "project", "esp-idf")
    only_on_path(tmp_path / "bin", ["make"], monkeypatch)
    with pytest.raises(TinyrlError, match=r"no 'idf.py' on PATH; .* Install it: ESP-IDF, https://docs.espressif.com"):
        build(project)


def test_a_library_for_another_core_is_refused_by_the_chip(tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=r"compiled for 'cortex-m4', the chip 'esp32c3' has a 'rv32imc'"):
        create(POLICIES["cartpole"](target="cortex-m4"), tmp_path / "project", "esp-idf")


def test_running_names_the_command_that_needs_a_board(tmp_path: Path) -> None:
    project = create(POLICIES["cartpole"](target="host"), tmp_path / "project", "esp-idf")
    command = r"idf.py -C .*/project/cartpole/examples/replay flash monitor"
    with pytest.raises(TinyrlError, match=rf"a project of 'esp-idf' is run by its own tool: {command}"):
        micro.run(project)
