# SPDX-License-Identifier: Apache-2.0
"""What a program will take of flash, RAM and stack, before any C compiler has seen it.

    flash = parameters + kernels + shell + the compiler's runtime,  RAM = workspace,  stack = shell + the deepest kernel

Parameters and workspace are exact. Of kernels in assembly LLVM's own object has the size, and the instructions have the
frame. What a C compiler makes of C is an estimate with a margin. The ranges below hold what GCC 12 at -O3 made of some
230 random policies over all boards, and of CMSIS-NN with clang 19 as well, and more; `benchmarks/footprint.py` draws and
builds others, and fails when one is outside. Other compilers and options may be. Of our own kernels nothing depends on how
wide a layer is, for C loops over it, but a head's sums, which lie on the stack.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinyrl_tvm.cmsis_nn import FullyConnected, Offloaded, Softmax
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


@dataclass(frozen=True)
class Code:
    """What GCC makes of C: of each kind of kernel; of the arithmetic that all share, with the compiler's runtime under it;
    what each function of floats adds to that; and the deepest kernel's frame with what it calls.

    A range is not what its part may be but what it does to the sum: GCC moves code from one part into another.
    """

    kernels: Mapping[str, Range]
    arithmetic: Range
    functions: Mapping[str, Range]
    stack: Range


_CLAMP = Range(60, 300)
# GCC makes one function of those that are alike.
_OF_FLOATS = {"clamp": _CLAMP, "merge": Range(0, 1200), "map": Range(0, 480)}
_OF_CODES = {"clamp": _CLAMP, "merge": Range(20, 500), "map": Range(0, 160)}
_SOFT = {**_OF_FLOATS, "dense": Range(160, 420), "head": Range(650, 1750)}
_ANY_FUNCTION = {"tanh": Range(0, 7800), "sigmoid": Range(0, 3800)}

# By precision and target. Software's fused multiply-add is the greater part of float32 without a unit for floats: GCC calls
# it, or writes it out at every call. Code for any core has none of that on one with the unit, and all of it on another.
IN_C = {
    ("float32", "cortex-m0"): Code(
        {**_SOFT, "softmax": Range(1500, 6000)},
        Range(2400, 2700),
        {"tanh": Range(0, 7400), "sigmoid": Range(700, 3900)},
        Range(110, 520),
    ),
    ("float32", "cortex-m3"): Code(
        {**_SOFT, "softmax": Range(900, 4300)},
        Range(1550, 1750),
        {"tanh": Range(0, 4900), "sigmoid": Range(600, 2800)},
        Range(100, 460),
    ),
    ("float32", "rv32imc"): Code(
        {**_SOFT, "softmax": Range(2400, 6900)},
        Range(2700, 3300),
        {"tanh": Range(0, 7800), "sigmoid": Range(800, 3900)},
        Range(110, 520),
    ),
    ("float32", "portable"): Code(
        {**_OF_FLOATS, "dense": Range(150, 650), "head": Range(250, 1900), "softmax": Range(200, 6600)},
        Range(0, 3200),
        _ANY_FUNCTION,
        Range(8, 520),
    ),
    ("float32", "host"): Code(
        {**_OF_FLOATS, "dense": Range(150, 1500), "head": Range(180, 1900), "softmax": Range(200, 6600)},
        Range(0, 3200),
        _ANY_FUNCTION,
        Range(60, 560),
    ),
    ("int8", "portable"): Code(
        {
            **_OF_CODES,
            "quantize": Range(80, 700),
            "dense": Range(60, 350),
            "head": Range(60, 1250),
            "softmax": Range(0, 3000),
        },
        Range(0, 1800),
        {},
        Range(16, 240),
    ),
    ("int8", "host"): Code(
        {
            **_OF_CODES,
            "quantize": Range(60, 300),
            "dense": Range(140, 1000),
            "head": Range(40, 1000),
            "softmax": Range(0, 3200),
        },
        Range(0, 2300),
        {},
        Range(350, 1050),
    ),
}

# Kernels of int16 have one description for every core, which takes what that of int8 does: so in two dozen builds.
IN_C |= dict.fromkeys([("int16", "portable"), ("int16", "host")], IN_C["int8", "portable"])


# Of a head in C: bytes of its sums an output, to the byte what GCC takes of 60 and of 300, and its frame beside them.
HEADS = {"float32": (20, Range(40, 420)), "int8": (4, Range(30, 240)), "int16": (4, Range(30, 240))}


@dataclass(frozen=True)
class CmsisNN:
    """What GCC 12 and clang 19 make of CMSIS-NN: a fully connected layer and a softmax of int8 and of int16, a merge, and the
    frames under a call of each."""

    layer: Range
    layer_int16: Range
    softmax: Range
    softmax_int16: Range
    merge: Range
    layer_stack: Range
    layer_int16_stack: Range
    softmax_stack: Range
    softmax_int16_stack: Range
    merge_stack: Range


HELIUM = CmsisNN(
    layer=Range(1300, 2100),
    layer_int16=Range(1150, 2250),
    softmax=Range(4800, 7600),
    softmax_int16=Range(350, 1150),
    merge=Range(100, 700),
    layer_stack=Range(190, 400),
    layer_int16_stack=Range(190, 330),
    softmax_stack=Range(190, 820),
    softmax_int16_stack=Range(60, 180),
    merge_stack=Range(20, 320),
)
WITHOUT_HELIUM = CmsisNN(
    layer=Range(2000, 4600),
    layer_int16=Range(350, 1800),
    softmax=Range(2200, 6500),
    softmax_int16=Range(350, 950),
    merge=Range(150, 1900),
    layer_stack=Range(180, 280),
    layer_int16_stack=Range(100, 260),
    softmax_stack=Range(100, 280),
    softmax_int16_stack=Range(60, 180),
    merge_stack=Range(30, 260),
)
STRUCTURES = Range(70, 100)  # that a layer hands it
LAYER_CALL, SOFTMAX_CALL, MERGE_CALL = Range(60, 140), Range(40, 180), Range(40, 180)
AN_ANSWER = Range(0, 16)  # of a softmax, or through a table: GCC writes the loop out
LAYER_FRAME, SOFTMAX_FRAME, MERGE_FRAME = Range(32, 240), Range(24, 180), Range(32, 180)

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
        *([] if program.guard else [_arithmetic(program)]),
        *([_cmsis_nn(program)] if program.cmsis_nn else []),
        shell.code.of("shell"),
        *([shell.further_input.of("further inputs", n_further)] if n_further else []),
        *([_together([ROUTINES.get(name, ROUTINE).of("runtime") for name in sorted(externals)])] if externals else []),
        C_LIBRARY.of("C library"),
        Contributor("padding", sum(-n_bytes % ALIGNMENT for n_bytes in arrays), PADDING),
    ]
    deepest = max(kernels, key=lambda kernel: kernel.depth)
    stack = (shell.stack.of("shell"), *deepest.stack)
    return Contract(Amount(tuple(flash)), Amount((Contributor("workspace", workspace_bytes),)), Amount(stack))


@dataclass(frozen=True)
class _Kernel:
    code: Contributor
    stack: tuple[Contributor, ...]  # its frame, and what it calls
    externals: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        return _most(self.stack)


def _in_c(program: Program) -> Code:
    """That of the target, or of its kernels: those of vectors, or those that any core can run."""
    vectors = program.target.kernels in ("simd", "wasm")
    return (
        IN_C.get((program.precision, program.target.name)) or IN_C[program.precision, "host" if vectors else "portable"]
    )


def _arithmetic(program: Program) -> Contributor:
    made = _in_c(program)
    kernels = [placed.kernel for placed in program.kernels if not isinstance(placed, Offloaded)]
    called = {getattr(getattr(kernel, "answer", kernel), "activation", "") for kernel in kernels}
    functions = [made.functions[name] for name in sorted(called & made.functions.keys())]
    return _together([part.of("arithmetic") for part in (made.arithmetic, *functions)])


def _helium(program: Program) -> CmsisNN:
    return HELIUM if program.target.kernels == "mve" else WITHOUT_HELIUM


def _cmsis_nn(program: Program) -> Contributor:
    """Its functions, and the structures of our calls."""
    makes = _helium(program)
    layers = sum(isinstance(placed, FullyConnected) for placed in program.kernels)
    functions = [getattr(makes, _part(name)) for name in program.cmsis_nn]
    return _together([part.of("CMSIS-NN") for part in functions] + [STRUCTURES.of("CMSIS-NN", layers)])


def _kind(function: str) -> str:
    """What `function` of CMSIS-NN computes: layer, softmax or merge."""
    return "softmax" if "softmax" in function else "merge" if "elementwise" in function else "layer"


def _part(function: str) -> str:
    """The same, and whether it is int16's, but of merges, which are alike."""
    kind = _kind(function)
    return f"{kind}_int16" if function.endswith("_s16") and kind != "merge" else kind


def _call_of_cmsis_nn(placed: Offloaded, makes: CmsisNN, code: str, frame: str) -> _Kernel:
    _, _, n_out = placed.arguments[-1]
    kind = _kind(placed.function)
    call, own = {
        "layer": (LAYER_CALL, LAYER_FRAME),
        "softmax": (SOFTMAX_CALL, SOFTMAX_FRAME),
        "merge": (MERGE_CALL, MERGE_FRAME),
    }[kind]
    answers = n_out if isinstance(placed, Softmax) or placed.table is not None else 0
    return _Kernel(
        _together([call.of(code), AN_ANSWER.of(code, answers)]),
        (own.of(frame), getattr(makes, f"{_part(placed.function)}_stack").of("CMSIS-NN")),
    )


def _most(parts: Sequence[Contributor]) -> int:
    return sum(part.n_bytes + part.margin_bytes for part in parts)


def _together(parts: Sequence[Contributor]) -> Contributor:
    return Contributor(parts[0].name, sum(p.n_bytes for p in parts), sum(p.margin_bytes for p in parts))


def _short(step: Step, program: Program) -> str:
    return step.function.removeprefix(f"tvmgen_{program.name}_")


def _kernel(step: Step, program: Program) -> _Kernel:
    name = _short(step, program)
    code, frame = f"{name} code", f"{name} frame"
    placed = step.placed
    if isinstance(placed, Offloaded):
        return _call_of_cmsis_nn(placed, _helium(program), code, frame)
    if not program.guard:
        made = _in_c(program)
        kind = name.rstrip("0123456789")
        stack: tuple[Contributor, ...] = (made.stack.of(frame),)
        if kind == "head":
            _, _, n_out = placed.arguments[placed.sources + 1]  # behind its weights lies its bias
            sums, beside = HEADS[program.precision]
            stack = max(stack, (Contributor(f"{name} sums", sums * n_out), beside.of(frame)), key=_most)
        return _Kernel(made.kernels[kind].of(code), stack)
    listing, binary = program.machine_code[step.function]
    size, externals = _sizes(binary)
    taken = MachineFrame()
    for mnemonic, operands in instructions(listing, step.function):
        taken.read(mnemonic, operands)
    assert not taken.unknown, step.function
    margin = SHORTENED_CALL * listing.count("\tcall\t")
    called = (RUNTIME_STACK.of("runtime"),) if externals else ()
    return _Kernel(Contributor(code, size, margin), (Contributor(frame, taken.n_bytes), *called), externals)


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
