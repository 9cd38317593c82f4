# SPDX-License-Identifier: Apache-2.0
"""What a program will take of flash, RAM and stack, before any C compiler has seen it.

    flash = parameters + kernels + shell + the compiler's runtime,  RAM = workspace,  stack = shell + the deepest kernel

Parameters and workspace are exact. Of kernels in assembly LLVM's own object has the size, and the instructions have the
frame. What a C compiler makes of C is an estimate with a margin: the ranges below are what GCC 12 at -O3 made of the
sweep in tests/test_memory.py, which fails when they no longer hold. Nothing in them depends on how wide a layer is: C
loops over it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from tinyrl_tvm.cmsis_nn import Offloaded
from tinyrl_tvm.emit import lower
from tinyrl_tvm.emit.assembly import instructions
from tinyrl_tvm.emit.program import ALIGNMENT, Program, Step
from tinyrl_tvm.machine_code import MachineFrame
from tinyrl_tvm.memory import Amount, Contract, Contributor


@dataclass(frozen=True)
class Range:
    """Bytes from `low` to `high`."""

    low: int
    high: int

    def of(self, name: str, times: int = 1) -> Contributor:
        low, high = times * self.low, times * self.high
        return Contributor(name, (low + high) // 2, high - (low + high) // 2)


@dataclass(frozen=True)
class Shell:
    """The C around the kernels: its code with one input, what every further one adds, and its frames."""

    code: Range
    further_input: Range
    stack: Range


SHELLS = {
    "cortex-m0": Shell(Range(140, 300), Range(40, 180), Range(32, 96)),
    "rv32imc": Shell(Range(190, 380), Range(60, 260), Range(16, 80)),
    "cortex-m55": Shell(Range(90, 430), Range(40, 200), Range(0, 112)),
}
ANY_SHELL = Shell(Range(80, 430), Range(40, 220), Range(0, 64))  # Cortex-M3, M4, M7 and M33
UNKNOWN_SHELL = Shell(Range(80, 430), Range(40, 260), Range(0, 112))  # of C for any core

# Kernels in C, and what they share: from nothing, on a core with a unit, to soft floats and a routine of 600 B for every
# place that a fused multiply-add was specialised for.
C_KERNEL = {"int8": Range(60, 700), "int16": Range(60, 700), "float32": Range(250, 2000)}
C_ARITHMETIC = {"int8": Range(0, 2000), "int16": Range(0, 2000), "float32": Range(0, 9500)}
C_STACK = {"portable": Range(16, 420), "host": Range(80, 960)}
CMSIS_NN_KERNEL = Range(60, 2500)
CMSIS_NN_STACK = Range(64, 480)

# The compiler's runtime under kernels in assembly, by what they call.
ROUTINES = {
    "__aeabi_fmul": Range(300, 700),
    "__aeabi_i2f": Range(100, 600),
    "__mulsf3": Range(700, 900),
    "__floatsisf": Range(200, 420),
}
ROUTINE = Range(0, 500)
RUNTIME_STACK = Range(0, 72)
C_LIBRARY = Range(0, 312)  # memcpy and memset

PADDING = 40  # before and after what is aligned, and what linking shortens or lengthens at the call of the policy
SHORTENED_CALL = 6  # by the linker on RISC-V: eight bytes to two


def predict(program: Program) -> Contract:
    """The contract without a budget."""
    steps, workspace_bytes = program.plan
    kernels = [_kernel(step, program) for step in steps]
    shell = SHELLS.get(program.target.name, ANY_SHELL if program.target.guard else UNKNOWN_SHELL)
    n_further = len(program.inputs) - 1
    arrays = [parameter.values.nbytes for step in steps for parameter in step.placed.parameters]
    externals = {name for kernel in kernels for name in kernel.externals}
    flash = [
        *(Contributor(f"{_short(step, program)} parameters", step.placed.parameter_bytes) for step in steps),
        *(kernel.code for kernel in kernels),
        *([] if program.guard else [C_ARITHMETIC[program.precision].of("arithmetic")]),
        shell.code.of("shell"),
        *([shell.further_input.of("further inputs", n_further)] if n_further else []),
        *([_together([ROUTINES.get(name, ROUTINE).of("runtime") for name in sorted(externals)])] if externals else []),
        C_LIBRARY.of("C library"),
        Contributor("padding", sum(-n_bytes % ALIGNMENT for n_bytes in arrays), PADDING),
    ]
    deepest = max(kernels, key=lambda kernel: kernel.stack.n_bytes + bool(kernel.externals) * RUNTIME_STACK.high)
    stack = [shell.stack.of("shell"), deepest.stack]
    if deepest.externals:
        stack.append(RUNTIME_STACK.of("runtime"))
    return Contract(Amount(tuple(flash)), Amount((Contributor("workspace", workspace_bytes),)), Amount(tuple(stack)))


@dataclass(frozen=True)
class _Kernel:
    code: Contributor
    stack: Contributor
    externals: tuple[str, ...] = ()


def _together(parts: Sequence[Contributor]) -> Contributor:
    return Contributor(parts[0].name, sum(p.n_bytes for p in parts), sum(p.margin_bytes for p in parts))


def _short(step: Step, program: Program) -> str:
    return step.function.removeprefix(f"tvmgen_{program.name}_")


def _kernel(step: Step, program: Program) -> _Kernel:
    name = _short(step, program)
    code, frame = f"{name} code", f"{name} frame"
    placed = step.placed
    if isinstance(placed, Offloaded):
        return _Kernel(CMSIS_NN_KERNEL.of(code), CMSIS_NN_STACK.of(frame))
    if not program.guard:
        family = "host" if placed.family in ("simd", "wasm") else "portable"
        return _Kernel(C_KERNEL[program.precision].of(code), C_STACK[family].of(frame))
    module = placed.module(placed.family, step.function)
    listing, binary = lower.listing_and_object(module, program.target.tvm(placed.llvm))
    size, externals = _sizes(binary)
    taken = MachineFrame()
    for mnemonic, operands in instructions(listing, step.function):
        taken.read(mnemonic, operands)
    assert not taken.unknown, step.function
    margin = SHORTENED_CALL * listing.count("\tcall\t")
    return _Kernel(Contributor(code, size, margin), Contributor(frame, taken.n_bytes), externals)


def _sizes(binary: bytes) -> tuple[int, tuple[str, ...]]:
    """Bytes of the kernel's own sections in an object of LLVM's, and the functions it calls."""
    from elftools.elf.constants import SH_FLAGS
    from elftools.elf.elffile import ELFFile

    elf = ELFFile(io.BytesIO(binary))
    # TVM's half-precision helpers and unwind tables stay out of the assembly: see assembly.py
    own = [
        section["sh_size"]
        for section in elf.iter_sections()
        if section["sh_flags"] & SH_FLAGS.SHF_ALLOC and section.name.startswith((".text", ".rodata", ".srodata"))
        if ".tvm." not in section.name
    ]
    symbols = elf.get_section_by_name(".symtab").iter_symbols()
    return sum(own), tuple(symbol.name for symbol in symbols if symbol.name and symbol["st_shndx"] == "SHN_UNDEF")
