# SPDX-License-Identifier: Apache-2.0
"""TIR schedules for the kernels of a policy, one rule a core feature and kind of kernel.

`RULES[family][kind]` is (layout, schedule): the first chooses how the parameters lie in flash, the second turns the
kernel's portable description into the family's code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import ir
from tvm.s_tir import Schedule

from schedules import mve, portable
from schedules.kernels import Clamp, DenseCodes, DenseFloat, DenseHead, Kernel, Layout, Parameter, Quantize

RULES: dict[str, dict[type, tuple[Callable[..., Layout], Callable[..., None]]]] = {
    "portable": {
        Quantize: (portable.observation_layout, portable.schedule_observation),
        Clamp: (portable.observation_layout, portable.schedule_observation),
        DenseCodes: (portable.dense_layout, portable.schedule_dense_codes),
        DenseHead: (portable.dense_layout, portable.schedule_dense_head),
        DenseFloat: (portable.dense_layout, portable.schedule_dense_float),
    },
    "mve": {
        Quantize: (portable.observation_layout, mve.schedule_observation),
        Clamp: (portable.observation_layout, mve.schedule_observation),
        DenseCodes: (mve.dense_codes_layout, mve.schedule_dense_codes),
        DenseHead: (mve.dense_head_layout, mve.schedule_dense_head),
        DenseFloat: (mve.dense_float_layout, mve.schedule_dense_float),
    },
}


@dataclass(frozen=True)
class PlacedKernel:
    """A kernel with its layout chosen for a core family."""

    kernel: Kernel
    family: str
    layout: Layout

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.kernel.parameters(self.layout)

    @property
    def parameter_bytes(self) -> int:
        return sum(parameter.values.nbytes for parameter in self.parameters)

    @property
    def arguments(self) -> tuple[tuple[str, str, int], ...]:
        """Name, dtype and length of every array the kernel takes: its input, its parameters, its output."""
        function = self.kernel.describe(self.layout)
        return tuple((p.name, str(p.ty.dtype), math.prod(int(n) for n in p.ty.shape)) for p in function.params)

    @property
    def summary(self) -> str:
        return self.kernel.summary

    def module(self, family: str, name: str) -> ir.IRModule:
        """The kernel as the function `name`, scheduled for `family`: its own, or "portable" for the C twin."""
        function = self.kernel.describe(self.layout).with_attr("global_symbol", name)
        schedule = Schedule(ir.IRModule({name: function}))
        schedule.work_on(name)
        RULES[family][type(self.kernel)][1](schedule, self.kernel, self.layout)
        return schedule.mod


def place(kernel: Kernel, family: str) -> PlacedKernel:
    layout, _ = RULES[family][type(kernel)]
    return PlacedKernel(kernel, family, layout(kernel))


__all__ = ["RULES", "Kernel", "Layout", "Parameter", "PlacedKernel", "place"]
