# SPDX-License-Identifier: Apache-2.0
"""Every reference policy on every board of the table, and what a board must do whatever runs on it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from test_project import hand_written_library, observations_of, pendulum, run_command, run_make

from tinyrl_tvm import toolchain
from tinyrl_tvm.device import qemu
from tinyrl_tvm.device.elf import footprint
from tinyrl_tvm.device.measurement import Measurement
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.pipeline import compile_policy
from tinyrl_tvm.project import Project, build, create
from tinyrl_tvm.targets import ARCHITECTURES, BOARDS, TARGETS, Board

POLICIES = Path(__file__).parent.parent / "benchmarks" / "policies"
NAMES = ("P1", "P2", "P3", "cartpole", "pendulum")
on_every_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


def built(library: ModelLibrary, board: Board, folder: Path) -> Project:
    project = create(library, folder / "project", "baremetal", {"board": board.name})
    build(project)
    return project


def measured(library: ModelLibrary, board: Board, folder: Path) -> Measurement:
    return qemu.run(built(library, board, folder))


# ---- the reference policies ----


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("name", NAMES)
@on_every_board
def test_every_policy_that_fits_a_board_is_right_on_it(board: Board, name: str, precision: str, tmp_path: Path) -> None:
    library = compile_policy(
        POLICIES / f"{name}.onnx", target=board.target, precision=precision, calibration=POLICIES / f"{name}.npz"
    ).library
    if library.module["memory"]["functions"]["main"][0]["constants_size_bytes"] > board.flash_bytes:
        with pytest.raises(
            TinyrlError, match=f"the policy needs at least .*, '{board.name}' has .*, --precision int8 or"
        ):
            built(library, board, tmp_path)
        assert precision == "float32"  # int8 fits everywhere
        return
    result = measured(library, board, tmp_path)
    assert result.parity == "PASS"
    assert result.vectors is not None
    assert result.vectors.right == len(library.vectors()["expected"])
    assert not result.statuses.any()
    assert result.instructions_per_inference and result.flash_bytes and result.stack_bytes
    assert result.flash_bytes < board.flash_bytes
    assert result.ram_bytes is not None
    assert result.ram_bytes < board.ram_bytes


@on_every_board
def test_a_library_in_portable_c_runs_on_every_board(board: Board, tmp_path: Path) -> None:
    assert measured(pendulum(target="host"), board, tmp_path).parity == "PASS"


@on_every_board
def test_a_library_for_another_core_is_refused(board: Board, tmp_path: Path) -> None:
    others = [core.name for core in TARGETS.values() if core.guard is not None and core.name != board.target]
    for other in others:
        with pytest.raises(
            TinyrlError, match=f"compiled for '{other}', the board '{board.name}' has a '{board.target}'"
        ):
            create(pendulum(target=other), tmp_path / "project", "baremetal", {"board": board.name})


# ---- a project ----


@on_every_board
def test_a_project_holds_nothing_of_another_architecture(board: Board, tmp_path: Path) -> None:
    folder = create(pendulum(target="host"), tmp_path / "project", "baremetal", {"board": board.name}).folder
    others = [other for other in ARCHITECTURES.values() if other != board.architecture]
    for path in folder.rglob("*"):
        assert path.name not in [other.name for other in others]
        if path.is_file() and path.suffix != ".tar":
            text = path.read_text()
            assert "{{" not in text
            for other in others:
                assert other.compiler_prefix not in text
                assert other.emulator not in text


@on_every_board
def test_make_and_cmake_build_the_same_firmware_without_a_warning(board: Board, tmp_path: Path) -> None:
    folder = create(pendulum(target="host"), tmp_path / "project", "baremetal", {"board": board.name}).folder
    strict = "-Wall -Wextra -Werror -Wpedantic"
    for command in (
        ["make", "-j2", f"CFLAGS={strict}", "LDFLAGS=-Wl,--fatal-warnings"],
        [
            "cmake",
            "-B",
            "build",
            f"-DCMAKE_C_FLAGS_RELEASE=-O3 {strict}",
            "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--fatal-warnings",
        ],
        ["cmake", "--build", "build"],
    ):
        done = run_command(command, folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr.lower()
    for program in ("firmware.elf", "firmware_empty.elf"):
        assert footprint(folder / "out" / program) == footprint(folder / "build" / program)
    assert "PARITY PASS (64 of 64)" in run_command(["cmake", "--build", "build", "--target", "run"], folder).stdout
    assert "PARITY PASS (64 of 64)" in run_make(folder, "run").stdout


def test_a_cross_compiler_for_another_machine_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSS_COMPILE", "/opt/nowhere/arm-none-eabi-")
    build(create(pendulum(target="host"), tmp_path / "project", "baremetal", {"board": "riscv32-virt"}))
    with pytest.raises(TinyrlError, match=r"no '/opt/nowhere/arm-none-eabi-gcc' on PATH"):
        build(create(pendulum(target="host"), tmp_path / "arm", "baremetal", {"board": "microbit"}))


@pytest.mark.parametrize("board", [BOARDS["microbit"], BOARDS["riscv32-virt"]], ids=["cortex-m", "riscv"])
@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        (
            "const float table[{flash} / 4 + 1000]",
            r"its firmware needs {needs} B of flash, the board has {flash:,} B of flash",
        ),
        ("float table[{ram} / 4 + 1000]", r"its firmware needs [0-9,]+ B of RAM, the board has {ram:,} B of RAM"),
        (
            "float table[{ram} / 4 - 900]",
            r"less than 4 KiB of RAM are left for the stack, the board has {ram:,} B of RAM",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_bytes(board: Board, declared: str, sentence: str, tmp_path: Path) -> None:
    sizes = {"flash": board.flash_bytes, "ram": board.ram_bytes}
    observations = observations_of(1)
    body = "    table[(int)obs[0]] += 1.0f;\n" if "const" not in declared else ""
    library = hand_written_library(
        f"{body}    action[0] = obs[0] + table[(int)obs[0]];\n    return 0;",
        observations,
        observations,
        target="host",
        before=f"static {declared.format(**sizes)} = {{1.0f}};"
        if "const" in declared
        else f"static {declared.format(**sizes)};",
    )
    told = sentence.format(**sizes, needs="[0-9,]+") + "; try --precision int8 or a smaller network$"
    with pytest.raises(TinyrlError, match=f"^the policy does not fit '{board.name}': {told}"):
        built(library, board, tmp_path)


# ---- measuring, in assembly: the empty function has the last two instructions, too ----

PREDICT = {
    "cortex-m": """
    .syntax unified
    .thumb
    .global toy_predict
    .type toy_predict, %function
    .thumb_func
toy_predict:
{}
    ldr r2, [r0]
    str r2, [r1]
    movs r0, #0
    bx lr
""",
    "riscv": """
    .global toy_predict
    .type toy_predict, %function
toy_predict:
{}
    lw a2, 0(a0)
    sw a2, 0(a1)
    li a0, 0
    ret
""",
}
DEEP = {
    "cortex-m": "    sub sp, sp, #{0}\n    str r0, [sp]\n    add sp, sp, #{0}",
    "riscv": "    addi sp, sp, -{0}\n    sw a0, 0(sp)\n    addi sp, sp, {0}",
}


def in_assembly(board: Board, code: str) -> ModelLibrary:
    observations = observations_of(1)
    library = hand_written_library("    return 0;", observations, observations, target="host")
    files = dict(library.files)
    files["codegen/host/src/toy_policy.c"] = b"typedef int nothing;\n"
    files["codegen/host/src/toy_kernel.S"] = PREDICT[board.architecture.name].format(code).encode()
    return ModelLibrary(files)


def counted(board: Board, code: str, folder: Path) -> float | None:
    result = measured(in_assembly(board, code), board, folder)
    assert result.parity == "PASS"
    return result.instructions_per_inference


@on_every_board
@pytest.mark.parametrize("n", [0, 50_000])
def test_instructions_are_counted_to_two_ticks(board: Board, n: int, tmp_path: Path) -> None:
    two_ticks = 2 * board.instructions_per_100_ticks / 100
    code = f"    .rept {n}\n    nop\n    .endr"
    assert counted(board, code, tmp_path) == pytest.approx(n + 2, abs=two_ticks / 1024 + 0.01)


def test_a_slow_policy_is_asked_less_often_and_counted_as_well(tmp_path: Path) -> None:
    n = 20_000  # a fraction of the thousand inferences makes 2^24 ticks where an instruction is a tick
    loop = f"    li a3, {n}\n1:  addi a3, a3, -1\n    bnez a3, 1b"
    assert counted(BOARDS["riscv32-virt"], loop, tmp_path) == pytest.approx(2 * n + 4, abs=0.1)


@on_every_board
def test_the_painted_stack_is_what_the_policy_uses(board: Board, tmp_path: Path) -> None:
    library = in_assembly(board, DEEP[board.architecture.name].format(240))
    assert measured(library, board, tmp_path).stack_bytes == 240


# ---- a firmware that fails ----


def crashing(statement: str) -> ModelLibrary:
    observations = observations_of(1)
    body = f"    {statement}\n    action[0] = obs[0];\n    return 0;"
    return hand_written_library(body, observations, observations, target="host")


UNDEFINED = {"cortex-m": "udf #0", "riscv": "unimp"}
ENDLESS = {"cortex-m": "1: push {r0-r7}\\n b 1b", "riscv": "1: addi sp, sp, -16\\n sw a0, 0(sp)\\n j 1b"}


@on_every_board
def test_an_undefined_instruction_is_told_with_its_address(board: Board, tmp_path: Path) -> None:
    project = built(crashing(f'__asm__ volatile("{UNDEFINED[board.architecture.name]}");'), board, tmp_path)
    cause = "hard fault" if board.target == "cortex-m0" else "undefined instruction"  # Armv6-M does not say
    with pytest.raises(
        TinyrlError, match=f"faulted on {board.name}: {cause}, exception [0-9]+, pc 0x[0-9a-f]{{8}}$"
    ) as error:
        qemu.run(project)
    pc = str(error.value)[-8:]
    found = run_command(
        [f"{board.architecture.compiler_prefix}addr2line", "-f", "-e", "out/firmware.elf", pc], project.folder
    )
    assert found.stdout.startswith("toy_predict\n")


@on_every_board
def test_a_stack_that_overflows_is_told(board: Board, tmp_path: Path) -> None:
    project = built(crashing(f'__asm__ volatile("{ENDLESS[board.architecture.name]}");'), board, tmp_path)
    with pytest.raises(TinyrlError, match=f"faulted on {board.name}: stack overflow"):
        qemu.run(project)


def test_the_flash_of_a_board_that_is_all_ram_is_locked(tmp_path: Path) -> None:
    project = built(crashing("*(volatile int *)(uintptr_t)&toy_predict = 0;"), BOARDS["riscv32-virt"], tmp_path)
    with pytest.raises(TinyrlError, match="faulted on riscv32-virt: bus error, exception 7, pc 0x80"):
        qemu.run(project)


def test_the_compiler_of_every_board_is_a_tool_the_doctor_knows() -> None:
    for board in BOARDS.values():
        assert board.architecture.compiler in toolchain.TOOLS
        assert board.architecture.emulator in toolchain.TOOLS
        assert re.fullmatch(r"[a-z0-9-]+", board.name)
        assert np.log2(board.flash_bytes) % 1 == 0  # the start-up code of RISC-V locks it as one region
