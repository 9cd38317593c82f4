# SPDX-License-Identifier: Apache-2.0
"""LLVM's listings, cut down, mean the same to GNU as and to clang: for every core that has boards."""

from __future__ import annotations

import functools
import io
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from schedules import Kernel, place
from schedules import kernels as k
from tinyrl_tvm import toolchain
from tinyrl_tvm.emit import lower
from tinyrl_tvm.emit.assembly import function_text
from tinyrl_tvm.targets import BOARDS, TARGETS, Board, Target

CORES = {board.target: board for board in BOARDS.values()}
ASSEMBLERS = ("GNU as", "clang")


def kernel_named(name: str) -> Kernel:
    rng = np.random.default_rng(3)
    weight = rng.integers(-127, 128, (10, 12)).astype(np.int8)
    bias = rng.integers(-999, 999, 10).astype(np.int32)
    floats = rng.normal(size=10).astype(np.float32)
    multiplier = np.full(10, 1_431_655_766, np.int32)
    if name == "quantize":
        return k.Quantize(np.ones(10, np.float32), np.arange(10, dtype=np.float32), -128, 127, "int8")
    if name == "codes":
        return k.DenseCodes(weight, bias, multiplier, 7, -128, -128, 127, None)
    if name == "table":
        return k.DenseCodes(weight, bias, multiplier, 7, 3, -128, 127, np.arange(-128, 128).astype(np.int8))
    if name == "numbers":
        return k.DenseHead(weight, bias, k.ToFloat(np.abs(floats), np.full(10, -1, np.float32), floats + 5))
    if name == "decision":
        return k.DenseHead(weight, bias, k.ArgMax((4, 6)))
    return k.DenseFloat(weight.astype(np.float32), floats, {"relu float": "relu", "tanh float": "tanh"}[name])


KERNELS = ("quantize", "codes", "table", "numbers", "decision", "relu float", "tanh float")

# What the compiler's own runtime offers, and the one function that the portable kernels share with their file.
RUNTIME = {
    *("__aeabi_fadd", "__aeabi_fsub", "__aeabi_fmul", "__aeabi_fdiv", "__aeabi_f2iz", "__aeabi_i2f", "__aeabi_lmul"),
    *("__aeabi_fcmplt", "__aeabi_fcmple", "__aeabi_fcmpgt", "__aeabi_fcmpge", "__aeabi_fcmpeq", "__aeabi_fcmpun"),
    *("__addsf3", "__subsf3", "__mulsf3", "__divsf3", "__fixsfsi", "__floatsisf", "__ltsf2", "__gtsf2", "__lesf2"),
    *("__gesf2", "__eqsf2", "__nesf2", "__unordsf2"),
    "tinyrl_lookup",
}


def assembler(name: str, core: Target, board: Board) -> list[str | Path]:
    if name == "clang":
        return [toolchain.find("clang"), f"--target={core.llvm['mtriple']}", *core.cflags]
    return [toolchain.find(board.architecture.compiler), *core.cflags]


@functools.cache
def text_of(core: str, kernel: str) -> str:
    module = place(kernel_named(kernel), "portable").module("portable", "f")
    return function_text(lower.assembly(module, TARGETS[core].tvm()), "f")


def assembled(command: Sequence[str | Path], text: str, folder: Path) -> ELFFile:
    (folder / "f.S").write_text(text)
    done = subprocess.run(
        [*command, "-Werror", "-c", "f.S", "-o", "f.o"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return ELFFile(io.BytesIO((folder / "f.o").read_bytes()))


# without a float unit a core has no assembly of floats: LLVM would call fmaf
KERNELS_OF_CORES = [
    (core, kernel) for core in CORES for kernel in KERNELS if TARGETS[core].float_unit or not kernel.endswith("float")
]


@pytest.mark.parametrize(("core", "kernel"), KERNELS_OF_CORES)
def test_a_kernel_assembles_and_needs_the_compilers_runtime_alone(core: str, kernel: str, tmp_path: Path) -> None:
    sizes = []
    for name in ASSEMBLERS:
        elf = assembled(assembler(name, TARGETS[core], CORES[core]), text_of(core, kernel), tmp_path)
        symbols = list(elf.get_section_by_name(".symtab").iter_symbols())
        (function,) = (s for s in symbols if s.name == "f")
        assert function["st_info"] == {"bind": "STB_GLOBAL", "type": "STT_FUNC"}
        assert bool(function["st_value"] & 1) == core.startswith("cortex")  # else a call would leave Thumb
        assert {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF"} - {""} <= RUNTIME
        loaded = {s.name for s in elf.iter_sections() if s["sh_flags"] & 2 and s["sh_size"]}
        assert loaded <= {".text.f", ".rodata.f"}
        sizes.append(function["st_size"])
    assert sizes[0] == sizes[1]  # of two encodings of the same length they may choose either


@pytest.mark.parametrize("core", CORES)
def test_a_table_of_jumps_comes_with_its_function(core: str, tmp_path: Path) -> None:
    """Beside another function's, in one file, linked where every reference must be found."""
    listing = ARM_TABLE if core.startswith("cortex") else RISCV_TABLE
    text = function_text(listing, "f") + function_text(listing.replace("f:", "g:", 1), "g")
    for name in ASSEMBLERS:
        command = assembler(name, TARGETS[core], CORES[core])
        assembled(command, text, tmp_path)
        linker = str(toolchain.find(CORES[core].architecture.compiler))
        subprocess.run(
            [linker, *TARGETS[core].cflags, "-nostdlib", "-Wl,-ef", "f.o", "-o", "f.elf"], cwd=tmp_path, check=True
        )


def test_only_the_functions_own_constants_come_along() -> None:
    text = function_text(RISCV_TABLE, "f")
    assert text.count(".word") == 3
    assert ".Lf_JTI0_0:" in text
    assert "LJTI1_0" not in text
    assert '.section\t.rodata.f,"a",%progbits\n\t.p2align\t2, 0x0\n.Lf_JTI0_0:' in text
    assert "#" not in text.replace("%", "")


def test_comments_and_helpers_are_left_out() -> None:
    for core in ("rv32imc", "cortex-m0", "cortex-m33"):
        text = text_of(core, "codes")
        for unwanted in (
            "hfsf2",
            "sfhf2",
            ".cfi_",
            ".fnstart",
            ".debug",
            ".file",
            ".attribute",
            "tvm.fp16",
            "tmp",
            "@",
        ):
            assert unwanted not in text


# As LLVM prints a switch of three cases for `riscv32` and for Thumb.
RISCV_TABLE = """
	.attribute	4, 16
	.attribute	5, "rv32i2p1_m2p0_c2p0_zmmul1p0"
	.globl	f                               # -- Begin function f
	.p2align	1
	.type	f,@function
f:                                      # @f
# %bb.0:
	slli	a0, a0, 2
	lui	a2, %hi(.LJTI0_0)
	addi	a2, a2, %lo(.LJTI0_0)
	add	a0, a0, a2
	lw	a0, 0(a0)
	jr	a0
.LBB0_1:
	mv	a0, a1
.LBB0_2:
	slli	a0, a1, 3
.LBB0_3:
	ret
.Lfunc_end0:
	.size	f, .Lfunc_end0-f
	.section	.rodata,"a",@progbits
	.p2align	2, 0x0
.LJTI0_0:
	.word	.LBB0_1
	.word	.LBB0_2
	.word	.LBB0_3                         # the last
                                        # -- End function
	.p2align	2, 0x0
.LJTI1_0:
	.word	7
"""
ARM_TABLE = """
	.syntax unified
	.eabi_attribute	67, "2.09"	@ Tag_conformance
	.globl	f                               @ -- Begin function f
	.p2align	1
	.type	f,%function
	.code	16
	.thumb_func
f:
	.fnstart
@ %bb.0:
	lsls	r0, r0, #2
	adr	r2, .LJTI0_0
	ldr	r0, [r2, r0]
	mov	pc, r0
	.p2align	2
.LJTI0_0:
	.long	.LBB0_1+1
	.long	.LBB0_2+1
.LBB0_1:
	movs	r0, r1
.LBB0_2:
	ldr	r1, .LCPI0_0
	bx	lr
	.p2align	2
.LCPI0_0:
	.long	1078530011                      @ 0x40490fdb
.Lfunc_end0:
"""


@pytest.mark.parametrize(
    ("instruction", "encoding"),  # as LLVM's own assembler has them
    [
        ("vqshrnb.s32\tq4, q4, #12", 0xEE948F48),
        ("vqshrnb.s16\tq1, q1, #3", 0xEE8D2F42),
        ("vqshrnt.s32\tq4, q5, #12", 0xEE949F4A),
        ("vqshrnb.u32\tq7, q6, #12", 0xFE94EF4C),
        ("vqshrunb.s32\tq4, q4, #12", 0xEE948FC8),
        ("vqshrunt.s16\tq4, q3, #8", 0xEE889FC6),
    ],
)
def test_a_narrowing_that_gnu_as_would_round_is_in_numbers(instruction: str, encoding: int) -> None:
    text = function_text(f"f:\n\t{instruction}\n.Lfunc_end0:\n", "f")
    assert f".inst.w\t{encoding:#010x} /* {instruction} */" in text
    assert "vqrshrnb.s32\tq4, q4, #12" in function_text("f:\n\tvqrshrnb.s32\tq4, q4, #12\n.Lfunc_end0:\n", "f")
