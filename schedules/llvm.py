# SPDX-License-Identifier: Apache-2.0
"""What LLVM is told for a kernel beyond the core it is for: all the options that carry speed, and what each carries.

WITHOUT_LSR   Loop strength reduction (LSR) gives the loads of an unrolled loop addresses of their own and keeps these in
              registers, of which there are too few, where one pointer and an offset in each load would do. A layer
              64 -> 64 of int8: on Cortex-M55 1,240 instructions with it and 644 without, on Cortex-M3 11,579 and 10,629.
              It pays where the offsets do not matter: a row of few inputs is within reach anyhow (3 -> 64 of 16-bit
              weights on Cortex-M55: 160 and 176), as is a window of a long one (400 -> 300: 17,434 and 17,587), and the
              scheduler of floats on Cortex-M4 has registers to spare (64 -> 64: 9,735 and 9,958; 64 -> 1: 235 and 438).
              Cortex-M0 and RISC-V do better with it throughout.
ANY_PRESSURE  The scheduler guards the pressure on registers, and undoes the order in which a schedule consumes them. A
              layer 64 -> 64 on Cortex-M55: of floats 2,482 instructions with the guard and 2,380 without; of int8 on
              Cortex-M4 6,412 and 5,995. On Cortex-M3, and for floats on Cortex-M4, spills come of it (64 -> 2: 341 and 427).

Both are globals of LLVM, which TVM sets for one module and puts back. `benchmarks/llvm_options.py` leaves out each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schedules.kernels import DenseCodes, DenseFloat, DenseHead, Kernel
from schedules.knobs import Choices, Knobs

WITHOUT_LSR = "-disable-lsr:bool=true"
ANY_PRESSURE = "-misched-regpressure:bool=false"

# The bytes of a row of inputs up to which LSR pays on Helium: sixteen such rows, a block, fill a vector load's reach.
SHORT_ROW_BYTES = 32
STREAMED_ROW_BYTES = 64


@dataclass(frozen=True)
class LlvmOptions:
    """`attributes` of the core, TVM's `mattr`: ("-lob",); `flags` of LLVM's passes, TVM's `cl-opt`."""

    attributes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


Dense = DenseCodes | DenseHead | DenseFloat


@dataclass(frozen=True)
class Habit:
    """Which dense layers of a family are best `reduced` by LSR, and which scheduled under a guard of pressure."""

    reduced: Callable[[Dense], bool]
    guarded: Callable[[Dense], bool]


def _of(dtype: str) -> Callable[[Dense], bool]:
    return lambda kernel: str(kernel.weight.dtype) == dtype


def _within_reach(kernel: Dense) -> bool:
    """Short rows, and those past four vectors of int8, which are streamed through windows."""
    row = kernel.weight[0]
    return row.nbytes <= SHORT_ROW_BYTES or (isinstance(kernel, DenseCodes) and row.nbytes > STREAMED_ROW_BYTES)


# Of the other families LLVM's own defaults are the best.
HABITS = {
    "mve": Habit(reduced=_within_reach, guarded=lambda kernel: False),
    "dsp": Habit(reduced=_of("float32"), guarded=lambda kernel: str(kernel.weight.dtype) != "int8"),
    "scalar": Habit(reduced=_of("int16"), guarded=lambda kernel: True),
}


def knobs(kernel: Kernel, family: str) -> Knobs:
    """`lsr`: with loop strength reduction, or without."""
    if family not in HABITS or not isinstance(kernel, Dense):
        return {}
    return {"lsr": (1, 0) if HABITS[family].reduced(kernel) else (0, 1)}


def flags(kernel: Kernel, family: str, choices: Choices) -> tuple[str, ...]:
    if family not in HABITS or not isinstance(kernel, Dense):
        return ()
    habit = HABITS[family]
    reduced = choices.get("lsr", habit.reduced(kernel))
    return (WITHOUT_LSR,) * (not reduced) + (ANY_PRESSURE,) * (not habit.guarded(kernel))
