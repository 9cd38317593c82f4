# SPDX-License-Identifier: Apache-2.0
"""TIR schedules for the kernels of a policy: `RULES[family][kind]` is how a family of cores runs one kind of kernel.

A rule has knobs. What they are set to decides how the parameters lie in flash and how the kernel's portable description
becomes the family's code; the tuner measures the settings on a device, and `records/` holds what won.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tvm import ir
from tvm.s_tir import Schedule

from schedules import dsp, llvm, mve, portable, scalar, simd, thumb1
from schedules.kernels import Kernel, Layout, Parameter
from schedules.knobs import Choices, Knobs, Rule, defaults
from schedules.llvm import LlvmOptions

RULES: dict[str, dict[type, Rule]] = {
    "portable": portable.RULES,
    "mve": mve.RULES,
    "dsp": dsp.CORTEX_M4.rules,
    "scalar": scalar.CORTEX_M3.rules,
    "thumb1": thumb1.CORTEX_M0.rules,
    "rv32": scalar.RV32.rules,
    "simd": simd.RULES,
    "wasm": simd.WASM_RULES,
}


@dataclass(frozen=True)
class PlacedKernel:
    """A kernel with its layout and the knobs of its rule chosen for a core family."""

    kernel: Kernel
    family: str
    layout: Layout
    choices: Choices = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.kernel.parameters(self.layout)

    @property
    def parameter_bytes(self) -> int:
        return sum(parameter.values.nbytes for parameter in self.parameters)

    @property
    def sources(self) -> int:
        """How many tensors it reads."""
        return getattr(self.kernel, "sources", 1)

    @property
    def arguments(self) -> tuple[tuple[str, str, int], ...]:
        """Name, dtype and length of every array the kernel takes: its inputs, its parameters, its output."""
        function = self.kernel.describe(self.layout)
        return tuple((p.name, str(p.ty.dtype), math.prod(int(n) for n in p.ty.shape)) for p in function.params)

    @property
    def summary(self) -> str:
        return self.kernel.summary

    @property
    def rule(self) -> Rule:
        return RULES[self.family][type(self.kernel)]

    @property
    def llvm(self) -> LlvmOptions:
        """What LLVM is told for this kernel beyond the target."""
        return LlvmOptions(self.rule.attributes(self.choices), llvm.flags(self.kernel, self.family, self.choices))

    def module(self, family: str, name: str) -> ir.IRModule:
        """The kernel as the function `name`, scheduled for `family`: its own, or "portable" for the C twin."""
        function = self.kernel.describe(self.layout).with_attr("global_symbol", name)
        schedule = Schedule(ir.IRModule({name: function}))
        schedule.work_on(name)
        rule = RULES[family][type(self.kernel)]
        rule.schedule(schedule, self.kernel, self.layout, self.choices if family == self.family else {})
        return schedule.mod


def knobs_of(kernel: Kernel, family: str) -> Knobs:
    """The rule's own, and what LLVM may be told of a kernel that has some."""
    own = RULES[family][type(kernel)].knobs(kernel)
    return {**own, **llvm.knobs(kernel, family)} if own else {}


def place(kernel: Kernel, family: str, choices: Choices | None = None) -> PlacedKernel:
    """`kernel` for `family`; a knob that `choices` leaves out is at its default.

    Raises ValueError when a choice is none of its knob's options, or the choices do not go together.
    """
    knobs = knobs_of(kernel, family)
    chosen = {**defaults(knobs), **(choices or {})}
    for name, value in chosen.items():
        if value not in knobs.get(name, ()):
            raise ValueError(f"{type(kernel).__name__} has no choice {name} = {value!r} for {family}")
    return PlacedKernel(kernel, family, RULES[family][type(kernel)].layout(kernel, chosen), chosen)


__all__ = [
    "RULES",
    "Choices",
    "Kernel",
    "Layout",
    "LlvmOptions",
    "Parameter",
    "PlacedKernel",
    "Rule",
    "knobs_of",
    "place",
]
