# SPDX-License-Identifier: Apache-2.0
"""What each layer costs: the layers make the inference, on every board and here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cmsis_nn_checkouts import STAND_IN
from policies import compile_model, dense_policy
from test_cli import POLICIES, answered, done, tinyrl
from test_project import cartpole

from tinyrl_tvm.device import profile as profiles
from tinyrl_tvm.device import qemu
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import build, create
from tinyrl_tvm.targets import BOARDS, Board


def compiled(folder: Path, **options: Any) -> ModelLibrary:
    return compile_model(dense_policy((5, 32, 24, 2), activation="Relu", seed=3), folder, **options).library


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_the_layers_are_the_inference_but_for_checks_and_calls(board: Board, tmp_path: Path) -> None:
    library = compiled(tmp_path, target=board.target)
    project = create(library, tmp_path / "project", "baremetal", {"board": board.name})
    build(project)
    assert not (project.folder / "out" / "firmware_profile.elf").exists()  # on demand
    profile = qemu.run(project, profiled=True).profile
    assert profile is not None
    assert profile.layers == Interface.of(library).layers
    # a check of 5 floats, on a Cortex-M0 with a call of memcpy for each, and what leads to the four calls
    assert 10 < profile.rest < 300
    quantise, _, second, head = profile.costs
    assert min(quantise, head) > 5
    assert second > head
    assert second > 0.2 * profile.whole


def test_a_count_is_the_same_whatever_else_is_counted(tmp_path: Path) -> None:
    """minstret counts instructions one by one, so that whole numbers come out; the head scales its action in the compiler's
    floats, whose count varies a little."""
    project = create(compiled(tmp_path, target="rv32imc"), tmp_path / "p", "baremetal", {"board": "riscv32-virt"})
    build(project)
    profile = qemu.run(project, profiled=True).profile
    assert profile is not None
    assert [abs(cost - round(cost)) < 0.05 for cost in profile.costs[:3]] == [True] * 3


def test_nothing_is_left_of_it_in_the_code_that_is_not_profiled(tmp_path: Path) -> None:
    project = create(compiled(tmp_path, target="host"), tmp_path / "project", "host").folder
    (source,) = project.glob("policy/src/*_lib0.c")
    lines = source.read_text().splitlines(keepends=True)
    without = [line for line in lines if not re.fullmatch(r" +TVMGEN_\w+_LAYER\(\d\)\n", line)]
    assert len(lines) - len(without) == 4
    bare = source.with_name("bare.c")
    bare.write_text("".join(without))
    listings = []
    for file in (source, bare):
        command = ["gcc", "-O3", "-S", "-o", "-", "-I", project / "policy" / "include", file]
        listings.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert listings[0].replace(source.name, "") == listings[1].replace("bare.c", "")


def test_a_statement_of_ones_own_stands_before_each_call(tmp_path: Path) -> None:
    project = create(compiled(tmp_path, target="host"), tmp_path / "project", "host").folder
    header = tmp_path / "mark.h"
    header.write_text("void mark(int);\n#define TVMGEN_POLICY_LAYER(index) mark(index);\n")
    (source,) = project.glob("policy/src/*_lib0.c")
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-S", "-o", "-", "-include", header]
    listing = subprocess.run(
        [*command, "-I", project / "policy" / "include", source], capture_output=True, text=True, check=True
    ).stdout
    assert len(re.findall(r"call\s+mark|bl\s+mark", listing)) == 4


def test_cmake_builds_it_too(tmp_path: Path) -> None:
    project = create(compiled(tmp_path, target="cortex-m4"), tmp_path / "p", "baremetal", {"board": "mps2-an386"})
    for command in (["cmake", "-B", "build"], ["cmake", "--build", "build", "--target", "firmware_profile"]):
        made = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr[:2000]
    program = project.folder / "build" / "firmware_profile.elf"
    assert len(profiles.on_board(project, BOARDS["mps2-an386"], program, 1.0).costs) == 4
    assert not (project.folder / "build" / "firmware.elf").exists()


def test_calls_of_cmsis_nn_are_layers_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMSIS_NN_PATH", str(STAND_IN))
    project = create(compiled(tmp_path, cmsis_nn=True), tmp_path / "project", "baremetal")
    build(project)
    profile = qemu.run(project, profiled=True).profile
    assert profile is not None
    assert [layer.in_cmsis_nn for layer in profile.layers] == [False, True, True, False]
    assert profile.costs[2] > profile.costs[3]
    assert profile.rest < 150


# ---- the command ----


def test_run_prints_a_table_and_json_has_its_numbers(tmp_path: Path) -> None:
    compiled(tmp_path).save(tmp_path / "policy.tar")
    done("micro", "create", tmp_path / "project", tmp_path / "policy.tar", "baremetal")
    run = ("run", "--device", "micro", tmp_path / "project", "--profile")
    said = answered(*run)["profile"]
    assert said["unit"] == "instructions"
    table = done(*run)
    for layer in said["layers"]:
        assert layer["summary"] in table
        assert f"{layer['cost']:,.1f}" in table
    assert sum(layer["share"] for layer in said["layers"]) == pytest.approx(1 - said["rest"] / said["inference"])


def test_on_this_machine_it_is_nanoseconds(tmp_path: Path) -> None:
    compiled(tmp_path, target="host").save(tmp_path / "policy.tar")
    said = answered("run", "--device", "cpu", tmp_path / "policy.tar", "--profile")
    assert said["profile"]["unit"] == "nanoseconds"
    assert said["profile"]["inference"] == said["wall_time_ns_median"] > 0
    assert all(layer["cost"] >= 0 for layer in said["profile"]["layers"])
    assert max(layer["cost"] for layer in said["profile"]["layers"]) > 1


def test_what_has_no_layers_is_refused_in_a_sentence(tmp_path: Path) -> None:
    create(cartpole(), tmp_path / "old", "baremetal")
    refused = tinyrl("run", "--device", "micro", tmp_path / "old", "--profile")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "does not name its layers; compile the policy again" in refused.stderr
    create(compiled(tmp_path), tmp_path / "cmsis", "cmsis")
    refused = tinyrl("run", "--device", "micro", tmp_path / "cmsis", "--profile")
    assert refused.exit_code == 1
    assert "a project of 'cmsis' cannot be measured layer by layer; have: host, baremetal" in refused.stderr


def test_a_policy_of_the_repository_profiles_as_the_readme_says(tmp_path: Path) -> None:
    policy = POLICIES / "cartpole"
    done(
        *("compile", policy.with_suffix(".onnx"), "--target", "cortex-m55"),
        *("--calibration", policy.with_suffix(".npz"), "-o", tmp_path / "cartpole.tar"),
    )
    done("micro", "create", tmp_path / "project", tmp_path / "cartpole.tar", "baremetal")
    said = answered("run", "--device", "micro", tmp_path / "project", "--profile")["profile"]
    assert [round(layer["cost"]) for layer in said["layers"]] == [23, 200, 658, 35]
