# SPDX-License-Identifier: Apache-2.0
"""`micro flash` and `micro test`: firmware reaches its board by somebody else's tool, and is found right there or not."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from emulated_ports import on_a_port
from test_cli import answered, done, tinyrl
from test_project import cartpole, hand_written_library, observations_of, only_on_path

from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import PLATFORMS, PROJECT_FILE, Project, build, create, flash, load


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport json, sys\nfrom pathlib import Path\n{text}\n")
    path.chmod(0o755)
    return path


def noting(path: Path) -> Path:
    """A tool that writes down what it was given."""
    note = path.with_suffix(".json")
    return program(path, f"Path({str(note)!r}).write_text(json.dumps(sys.argv[1:]))")


def with_command(command: str, folder: Path) -> Project:
    return create(cartpole(), folder, "baremetal", {"flash_command": command})


def refused(*arguments: str | Path) -> str:
    result = tinyrl(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    return result.stderr


def test_the_command_gets_its_words_and_the_firmware(tmp_path: Path) -> None:
    tool = noting(tmp_path / "bin" / "flasher")
    folder = tmp_path / "a project; touch hacked"
    with_command(f"{tool} -t 'two words' --file={{elf}} {{port}} $HOME", folder)
    said = done("micro", "flash", folder, "--port", "/dev/ttyX")
    firmware = folder / "out" / "firmware.elf"
    words = ["-t", "two words", f"--file={firmware}", "/dev/ttyX", "$HOME"]
    assert json.loads((tmp_path / "bin" / "flasher.json").read_text()) == words
    assert firmware.is_file()  # it was built
    assert not (tmp_path / "hacked").exists()
    assert said.startswith(f"flashed by: {tool} -t 'two words' ")
    assert said.endswith(f"next: tinyrl-tvm micro test '{folder}' --port /dev/ttyX\n")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (
            "pyocd flash",
            r"'pyocd flash' does not say where the firmware goes; put \{elf\} there, as in 'pyocd flash -t",
        ),
        ("{elf}", r"'\{elf\}' does not say where the firmware goes"),
        ("pyocd 'flash {elf}", r"'pyocd 'flash \{elf\}' is no command: no closing quotation"),
    ],
)
def test_a_command_that_cannot_flash_is_refused_at_create(command: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=sentence):
        with_command(command, tmp_path / "project")
    assert not (tmp_path / "project").exists()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = create(cartpole(), tmp_path_factory.mktemp("built") / "project", "baremetal")
    build(project)
    return project


def flashing_by(command: str, built: Project) -> Project:
    return Project(built.folder, built.platform, {**built.options, "flash_command": command}, built.library)


def test_a_tool_that_is_missing_is_named(built: Project) -> None:
    with pytest.raises(TinyrlError, match=r"no 'no-such-flasher' on PATH, which is to flash the board; install it"):
        flash(flashing_by("no-such-flasher {elf}", built))


def test_a_tool_that_fails_is_quoted(built: Project, tmp_path: Path) -> None:
    tool = program(tmp_path / "flasher", "print('looking for a probe'); sys.exit('no probe found')")
    with pytest.raises(TinyrlError, match=r"flasher .*firmware.elf' failed with status 1: no probe found"):
        flash(flashing_by(f"{tool} {{elf}}", built))


def test_a_command_with_a_port_wants_one(built: Project) -> None:
    with pytest.raises(TinyrlError, match=r"needs a port; give --port, as /dev/ttyACM0"):
        flash(flashing_by("flasher {port} {elf}", built))


def test_what_is_emulated_is_not_flashed(built: Project) -> None:
    said = done("micro", "flash", built.folder)
    assert said.startswith(f"nothing to flash: 'tinyrl-tvm run --device micro {built.folder}' starts it\n")


@pytest.mark.parametrize(
    ("platform", "would_do"),
    [
        ("baremetal", "; micro create --project-option 'flash_command=pyocd flash {elf}' names one"),
        ("host", ""),
    ],
)
def test_a_board_that_nothing_flashes_is_not_taken_for_flashed(platform: str, would_do: str, tmp_path: Path) -> None:
    folder = create(cartpole(), tmp_path / "project", platform).folder
    assert refused("micro", "flash", folder, "--port", "/dev/ttyX") == (
        f"nothing was flashed to '/dev/ttyX': the project in '{folder}' has no tool for it{would_do}\n"
    )


OWN = {
    "esp-idf": ("idf.py", ["-C", "cartpole/examples/replay", "-p", "/dev/ttyX", "flash"], ["-p", "/dev/ttyX"]),
    "zephyr": ("west", ["flash", "-d", "build"], None),
    "arduino": (
        "arduino-cli",
        [
            *("upload", "-p", "/dev/ttyX", "--fqbn", "arduino:avr:mega:cpu=atmega2560"),
            *("--input-file", "extras/out/Replay.ino.hex"),
        ],
        ["-p", "/dev/ttyX"],
    ),
}


@pytest.mark.parametrize("platform", OWN)
def test_a_platform_with_a_tool_is_flashed_by_it(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, words, with_port = OWN[platform]
    noting(tmp_path / "bin" / tool)
    project = create(cartpole(target="host"), tmp_path / "project", platform)
    for product in PLATFORMS[platform].products:
        path = project.folder / product.replace("{{name}}", "cartpole")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    flash(project, "/dev/ttyX" if with_port else None)
    note = (tmp_path / "bin" / tool).with_suffix(".json")
    assert json.loads(note.read_text()) == words
    if with_port:
        flash(project)
        assert json.loads(note.read_text()) == [word for word in words if word not in with_port]
    else:
        with pytest.raises(TinyrlError, match=rf"'{tool} flash' finds the board by itself; leave --port out"):
            flash(project, "/dev/ttyX")


def test_a_platforms_tool_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = create(cartpole(target="host"), tmp_path / "project", "zephyr")
    (project.folder / "build" / "zephyr").mkdir(parents=True)
    (project.folder / "build" / "zephyr" / "zephyr.elf").write_text("")
    only_on_path(tmp_path / "only", [], monkeypatch)
    with pytest.raises(TinyrlError, match=r"no 'west' on PATH; it builds .* Install it: pip install west"):
        flash(project)


def test_test_builds_and_says_a_line_a_check(tmp_path: Path) -> None:
    folder = create(cartpole(), tmp_path / "project", "baremetal").folder
    said = done("micro", "test", folder)
    for words in ("build", "parity", "PASS (64 of 64)", "agreement with the float policy", "stack", "qemu mps3-an547"):
        assert words in said
    assert answered("micro", "test", folder)["parity"] == "PASS"


def wrong() -> ModelLibrary:
    observations = observations_of(4)
    expected = np.ones((64, 1), np.int32)
    return hand_written_library("    action[0] = obs[0] < 0.0f;\n    return 0;", observations, expected, target="host")


@pytest.mark.parametrize("platform", ["baremetal", "host"])
def test_test_fails_where_an_answer_is_wrong(platform: str, tmp_path: Path) -> None:
    create(wrong(), tmp_path / "project", platform)
    result = tinyrl("micro", "test", tmp_path / "project")
    assert result.exit_code == 1
    assert "FAIL (" in result.stdout


def test_test_asks_the_board_at_the_port(tmp_path: Path) -> None:
    project = create(cartpole(target="host"), tmp_path / "project", "baremetal", {"link": "uart"})
    build(project)
    with on_a_port(project, tmp_path) as board:
        said = done("micro", "test", project.folder, "--port", board.path)
        assert f"mps3-an547 at {board.path}" in said
        assert "PASS (64 of 64)" in said
        assert " ticks" in said
    assert "no serial port '/dev/ttyNOT'" in refused("micro", "test", project.folder, "--port", "/dev/ttyNOT")


def test_a_project_of_this_version_that_names_no_board_is_damaged(tmp_path: Path) -> None:
    path = create(cartpole(), tmp_path / "project", "baremetal").folder / PROJECT_FILE
    path.write_text(path.read_text().replace('"mps3-an547"', '"stm32"'))
    with pytest.raises(TinyrlError, match=r"tinyrl_project.json' is damaged: no board 'stm32'; have: .*; create the"):
        load(tmp_path / "project")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"platform": "mbed"}, "no platform 'mbed'"),
        ({"options": {"board": "mps3-an547", "clock": "fast"}}, "no option of 'baremetal' 'clock'"),
    ],
)
def test_a_project_of_a_newer_version_is_told(changed: dict, reason: str, tmp_path: Path) -> None:
    path = create(cartpole(), tmp_path / "project", "baremetal").folder / PROJECT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changed | {"tinyrl_tvm": "9.0.0"}))
    sentence = rf"is of tinyrl-tvm 9\.0\.0, this is [\d.]+: {reason}.*create the project again with -f"
    with pytest.raises(TinyrlError, match=sentence):
        load(tmp_path / "project")
