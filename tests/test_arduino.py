# SPDX-License-Identifier: Apache-2.0
"""Policies as Arduino libraries answer on an emulated ATmega2560, whose int has 16 bits, as they must."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from policies import arg_max, compile_model, dense_policy, greater, multi_discrete, squashed, unscaled
from test_project import POLICIES, hand_written_library, observations_of, only_on_path, run_make

from tinyrl_tvm import toolchain
from tinyrl_tvm.device import avr, micro
from tinyrl_tvm.device.measurement import Measurement
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import Project, build, create


def built(library: ModelLibrary, folder: Path, board: str = "mega") -> Project:
    project = create(library, folder / "project", "arduino", {"board": board})
    build(project)
    return project


def on_simavr(library: ModelLibrary, folder: Path, board: str = "mega") -> Measurement:
    return micro.run(built(library, folder, board))


# ---- parity ----

CARTPOLE = ((4, 16, 16, 2), {"head": arg_max}, "portable")
SHAPES: dict[str, tuple[tuple[int, ...], dict[str, Any], str]] = {
    "cartpole, 16x16": CARTPOLE,
    "odd, through tables": ((5, 9, 17, 3), {"activation": "Tanh", "head": unscaled(-2, 3)}, "portable"),
    "the C twin of a core's assembly": ((6, 20, 3), {"head": squashed()}, "cortex-m55"),
    "C made for vectors": ((4, 16, 16, 4), {"activation": "Tanh", "head": multi_discrete(2, 2)}, "host"),
    "switches": ((8, 11, 5), {"head": greater}, "portable"),
    "several inputs": ((7, 12, 2), {"inputs": {"a": (3,), "b": (2, 2)}}, "portable"),
    "codes and weights at their ends": ((4, 16, 16, 2), {"gain": 40.0}, "portable"),
}


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("name", SHAPES)
def test_policies_answer_on_an_int_of_16_bits_as_they_must(name: str, precision: str, tmp_path: Path) -> None:
    sizes, options, target = SHAPES[name]
    library = compile_model(dense_policy(sizes, **options), tmp_path, precision=precision, target=target).library
    measured = on_simavr(library, tmp_path)
    assert measured.parity == "PASS"
    assert measured.vectors.total == len(library.vectors()["expected"]) == 64
    assert measured.device == "simavr mega"


def test_a_policy_answers_on_an_uno_with_2_kib_of_ram(tmp_path: Path) -> None:
    sizes, options, target = CARTPOLE
    library = compile_model(dense_policy(sizes, **options), tmp_path, target=target).library
    assert on_simavr(library, tmp_path, "uno").parity == "PASS"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_sketch_reports_what_the_policy_answers(policy: str, tmp_path: Path) -> None:
    library = POLICIES[policy]()
    measured = on_simavr(library, tmp_path)
    assert measured.parity == "PASS"
    np.testing.assert_allclose(measured.actions, library.vectors()["expected"], atol=1e-5)


def test_a_wrong_answer_and_a_status_are_parity_fail(tmp_path: Path) -> None:
    observations = observations_of(1)
    wrong = observations.copy()
    wrong[5] = np.nextafter(wrong[5], np.float32(9))
    body = "    action[0] = obs[0];\n    return obs[0] > 1.0f ? 3 : 0;"
    measured = on_simavr(hand_written_library(body, observations, wrong), tmp_path)
    right = ~((observations > 1).any(axis=1) | (np.arange(64) == 5))
    assert measured.parity == "FAIL"
    assert measured.vectors.right == right.sum()
    assert set(measured.statuses) == {0, 3}


def test_lines_that_simavr_cuts_are_put_together_again(tmp_path: Path) -> None:
    observations = observations_of(50, 3)
    body = "    for (int i = 0; i < 50; i++) action[i] = obs[i];\n    return 0;"
    assert on_simavr(hand_written_library(body, observations, observations), tmp_path).parity == "PASS"


def test_of_many_vectors_those_are_judged_that_the_sketch_carries(tmp_path: Path) -> None:
    observations = observations_of(2, 100)
    body = "    action[0] = obs[0];\n    return 0;"
    measured = on_simavr(hand_written_library(body, observations, observations[:, :1].copy()), tmp_path)
    assert (measured.vectors.right, measured.vectors.total) == (64, 64)


# ---- memory ----


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_parameters_stay_in_flash_on_avr(precision: str, tmp_path: Path) -> None:
    sizes, options, target = SHAPES["odd, through tables"]
    library = compile_model(dense_policy(sizes, **options), tmp_path, precision=precision, target=target).library
    folder = create(library, tmp_path / "project", "arduino").folder / "src"
    strict = ["-Wall", "-Wextra", "-Wconversion", "-Waddr-space-convert", "-Woverflow", "-Werror"]
    ram = flash = 0
    for source in sorted(folder.glob("*.c")):
        command = [toolchain.find("avr-gcc"), "-mmcu=atmega2560", "-std=gnu11", "-Os", *strict, "-c", source.name]
        subprocess.run([*command, "-o", "object.o"], cwd=folder, check=True)
        with (folder / "object.o").open("rb") as stream:
            sections = {section.name: section["sh_size"] for section in ELFFile(stream).iter_sections()}
        ram += sum(size for name, size in sections.items() if name.startswith((".data", ".rodata")))
        flash += sum(size for name, size in sections.items() if name.startswith(".progmem"))
    main = library.metadata["modules"]["policy"]["memory"]["functions"]["main"][0]
    assert ram == 0
    assert flash >= main["constants_size_bytes"] > 0


def test_test_vectors_stay_in_flash_on_avr(tmp_path: Path) -> None:
    observations = observations_of(120)  # 64 rows are 31 KiB, four times the board's RAM
    body = "    action[0] = obs[119];\n    return 0;"
    library = hand_written_library(body, observations, observations[:, -1:].copy())
    assert on_simavr(library, tmp_path).parity == "PASS"


def test_strict_c_without_named_address_spaces_compiles_as_well(tmp_path: Path) -> None:
    sizes, options, target = CARTPOLE
    library = compile_model(dense_policy(sizes, **options), tmp_path, target=target).library
    folder = create(library, tmp_path / "project", "arduino").folder / "src"
    command = [toolchain.find("avr-gcc"), "-mmcu=atmega2560", "-std=c99", "-Wpedantic", "-Werror", "-c"]
    subprocess.run([*command, *(path.name for path in folder.glob("*.c"))], cwd=folder, check=True)


def test_parameters_that_an_avr_cannot_reach_are_one_sentence(tmp_path: Path) -> None:
    library = compile_model(dense_policy((24, 256, 256, 4)), tmp_path, target="portable").library
    sentence = r"the build failed: .*error: #error \"the parameters, [\d,]+ B, are more than the 64 KiB of flash"
    with pytest.raises(TinyrlError, match=sentence):
        build(create(library, tmp_path / "project", "arduino"))


def test_a_policy_too_large_for_the_board_is_one_sentence(tmp_path: Path) -> None:
    library = compile_model(dense_policy((24, 128, 128, 64)), tmp_path, target="portable").library
    with pytest.raises(TinyrlError, match=r"the policy does not fit 'uno': it is 2\d,\d{3} B too large; try a smaller"):
        build(create(library, tmp_path / "project", "arduino", {"board": "uno"}))


# ---- the library, by Arduino's specification 1.5, revision 2.2 ----


def test_the_library_is_one_by_the_specification(tmp_path: Path) -> None:
    folder = create(POLICIES["cartpole"](), tmp_path / "project", "arduino").folder
    lines = (folder / "library.properties").read_text().splitlines()
    properties = dict(line.split("=", 1) for line in lines)
    required = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"}
    assert required <= set(properties)
    assert all(properties.values())
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9 _.-]{0,62}", properties["name"])
    assert not properties["name"].lower().startswith("arduino")
    assert re.fullmatch(r"\d+\.\d+\.\d+", properties["version"])
    assert properties["category"] == "Data Processing"
    assert (folder / "src" / properties["includes"]).is_file()
    for line in (folder / "keywords.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"\w+\t(KEYWORD[12]|LITERAL1)", line)
    sketches = list(folder.glob("examples/*/*.ino"))
    assert sketches
    assert all(sketch.stem == sketch.parent.name for sketch in sketches)
    beside = {path.name for path in folder.iterdir()}
    assert beside == {
        *("library.properties", "keywords.txt", "README.md", "src", "examples", "extras"),
        "tinyrl_project.json",
    }


def test_a_policy_called_arduino_is_a_library_all_the_same(tmp_path: Path) -> None:
    observations = observations_of(1)
    library = hand_written_library(
        "    action[0] = obs[0];\n    return 0;", observations, observations, name="arduino_arm"
    )
    properties = (create(library, tmp_path / "project", "arduino").folder / "library.properties").read_text()
    assert "name=policy arduino_arm\n" in properties


@pytest.mark.parametrize("policy", POLICIES)
def test_the_library_and_its_sketch_are_clean_under_all_warnings(policy: str, tmp_path: Path) -> None:
    project = create(POLICIES[policy](), tmp_path / "project", "arduino")
    made = run_make(project.folder, "-C", "extras", "WARNINGS=all")
    assert made.returncode == 0, made.stderr
    ours = [line for line in made.stderr.splitlines() if "warning:" in line and "/usr/share/arduino" not in line]
    assert ours == []


def test_two_builds_of_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    project = create(POLICIES["pendulum"](), tmp_path / "a folder", "arduino")
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(build, [project] * 2):
            assert all(product.is_file() for product in done.products)
    assert micro.run(project).parity == "PASS"


# ---- what goes wrong ----


def test_observations_are_refused_for_simavr_has_no_input(tmp_path: Path) -> None:
    project = create(POLICIES["cartpole"](), tmp_path / "project", "arduino")
    with pytest.raises(TinyrlError, match="simavr takes no observations, it replays the test vectors"):
        micro.run(project, observations_of(4))


def misbehaving(body: str, folder: Path) -> Project:
    observations = observations_of(1)
    return built(
        hand_written_library(f"    {body}\n    action[0] = obs[0];\n    return 0;", observations, observations), folder
    )


def test_a_sketch_that_hangs_is_one_sentence(tmp_path: Path) -> None:
    project = misbehaving("for (volatile int i = 0; i < 1; ) {}", tmp_path)
    with pytest.raises(NoAnswer, match=r"Replay.ino.elf' was not done within 1 s on atmega2560; it hangs"):
        avr.run(project, timeout_s=1)


def test_a_sketch_that_stops_is_one_sentence(tmp_path: Path) -> None:
    project = misbehaving('__asm__ volatile("cli\\nsleep");', tmp_path)  # nothing can wake it: simavr gives up
    with pytest.raises(TinyrlError, match=r"Replay.ino.elf' stopped early on atmega2560: "):
        avr.run(project)


def test_a_sketch_that_is_not_ours_is_told(tmp_path: Path) -> None:
    project = create(POLICIES["cartpole"](), tmp_path / "project", "arduino")
    (project.folder / "examples" / "Replay" / "Replay.ino").write_text(
        'void setup() { Serial.begin(9600); Serial.println("hello"); Serial.println("done"); }\nvoid loop() {}\n'
    )
    build(project)
    with pytest.raises(TinyrlError, match=r"does not report as a project of ours; create it again"):
        micro.run(project)


def test_code_that_does_not_compile_is_one_sentence(tmp_path: Path) -> None:
    project = create(POLICIES["cartpole"](before="this is no C"), tmp_path / "project", "arduino")
    with pytest.raises(TinyrlError, match=r"the build failed: .*cartpole_policy.c:2:\d+: error: .*'make -C extras' in"):
        build(project)


@pytest.mark.parametrize(
    ("present", "sentence"),
    [
        (["make"], "no 'avr-gcc' on PATH; it compiles a policy for AVR. .*apt-get install gcc-avr avr-libc"),
        (["make", "avr-gcc"], "no 'arduino-builder' on PATH; .*apt-get install arduino-builder arduino-core-avr"),
    ],
)
def test_a_missing_tool_comes_with_the_line_that_installs_it(
    present: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = create(POLICIES["cartpole"](), tmp_path / "project", "arduino")
    only_on_path(tmp_path / "bin", present, monkeypatch)
    with pytest.raises(TinyrlError, match=sentence):
        build(project)


def test_a_missing_simavr_comes_with_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = built(POLICIES["cartpole"](), tmp_path)
    only_on_path(tmp_path / "bin", ["make"], monkeypatch)
    with pytest.raises(TinyrlError, match=r"no 'simavr' on PATH; it emulates an Arduino.* apt-get install simavr"):
        micro.run(project)
