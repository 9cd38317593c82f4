# SPDX-License-Identifier: Apache-2.0
"""A compiled policy before it is printed: its kernels in calling order and where their buffers lie."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyrl_tvm.cmsis_nn import FullyConnected, Offloaded
from tinyrl_tvm.emit import lower
from tinyrl_tvm.interface import Layer
from tinyrl_tvm.policy import TensorSpec, c_names
from tinyrl_tvm.targets import Target

if TYPE_CHECKING:
    from schedules import PlacedKernel

ALIGNMENT = 16  # bytes: a vector of MVE
ITEM_BYTES = {"int8": 1, "int16": 2, "int32": 4, "int64": 8, "float32": 4}


@dataclass(frozen=True)
class Step:
    """A call of a kernel. `source` and `result` are byte offsets into the workspace; None is the caller's own array."""

    function: str
    placed: PlacedKernel | Offloaded
    source: int | None
    result: int | None


@dataclass(frozen=True)
class Program:
    """Everything the printers need to know. `kernels` run in a chain, each on its predecessor's output; `reasons` say why
    each runs where it does, and are empty where nothing was to be offloaded."""

    name: str
    target: Target
    precision: str
    inputs: tuple[TensorSpec, ...]
    action: TensorSpec
    kernels: tuple[PlacedKernel | Offloaded, ...]
    pedigree: str
    reasons: tuple[str, ...] = ()

    @property
    def guard(self) -> str | None:
        """When the target's own kernels run; None where there are none but the C twin."""
        return self.target.guard if self.precision != "float32" or self.target.float_unit else None

    @property
    def n_observations(self) -> int:
        return sum(spec.length for spec in self.inputs)

    @property
    def names(self) -> list[str]:
        """C names of the inputs and, last, of the action: unique together, for the header puts them side by side.

        torch's exporter calls a tensor `56` where it was not told better; in C it is the obs or the action then.
        """
        inputs = [_worded(spec.name, "obs") for spec in self.inputs]
        action, *inputs = c_names([_worded(self.action.name, "action"), *inputs])
        return [*inputs, action]

    @property
    def gathers(self) -> bool:
        """Several observations are joined in the workspace before the first kernel reads them."""
        return len(self.inputs) > 1

    @property
    def plan(self) -> tuple[tuple[Step, ...], int]:
        """The calls, and the bytes of workspace they need.

        A chain needs two buffers: every kernel reads the one its predecessor wrote and writes the other.
        """
        sizes = [_bytes(4 * self.n_observations) if self.gathers else 0]
        # a kernel may read more than its predecessor wrote: inputs come in chunks, and meet weights of zero there
        sizes += [
            _bytes(max(_array_bytes(writer, -1), _array_bytes(reader, 0)))
            for writer, reader in itertools.pairwise(self.kernels)
        ]
        even, odd = max(sizes[0::2], default=0), max(sizes[1::2], default=0)
        offsets: list[int | None] = [(0, even)[index % 2] for index in range(len(sizes))]
        if not self.gathers:
            offsets[0] = None
        steps = [
            Step(f"tvmgen_{self.name}_{_function(placed)}{index}", placed, source, result)
            for index, (placed, source, result) in enumerate(
                zip(self.kernels, offsets, [*offsets[1:], None], strict=True)
            )
        ]
        return tuple(steps), even + odd

    @property
    def layers(self) -> tuple[Layer, ...]:
        steps, _ = self.plan
        reasons = self.reasons or (self._only_reason,) * len(steps)
        return tuple(
            Layer(
                step.function,
                step.placed.summary,
                self._place(step.placed),
                reason,
                step.placed.parameter_bytes,
                step.placed.arguments[-1][-1],
            )
            for step, reason in zip(steps, reasons, strict=True)
        )

    @property
    def _only_reason(self) -> str:
        if self.target.guard and not self.guard:
            return "the core has no unit for floats, for which the C compiler does as well"
        return "no other kernels were asked for"

    def _place(self, placed: PlacedKernel | Offloaded) -> str:
        if isinstance(placed, Offloaded):
            return placed.function
        return "portable" if self.target.guard and not self.guard else placed.family

    @functools.cached_property
    def machine_code(self) -> Mapping[str, tuple[str, bytes]]:
        """LLVM's listing and object of every kernel in assembly, by its function; the prediction and the printers read it."""
        return {
            step.function: lower.listing_and_object(
                step.placed.module(step.placed.family, step.function), self.target.tvm(step.placed.llvm)
            )
            for step in (self.plan[0] if self.guard else ())
            if not isinstance(step.placed, Offloaded)
        }

    @property
    def cmsis_nn(self) -> tuple[str, ...]:
        """The functions of CMSIS-NN that are called."""
        return tuple(dict.fromkeys(k.function for k in self.kernels if isinstance(k, Offloaded)))

    @property
    def parameter_bytes(self) -> int:
        return sum(p.values.nbytes for placed in self.kernels for p in placed.parameters)


def _worded(name: str, otherwise: str) -> str:
    return name if any(character.isalpha() for character in name) else otherwise


def _function(placed: PlacedKernel | Offloaded) -> str:
    if isinstance(placed, Offloaded):
        return "dense" if isinstance(placed, FullyConnected) else "softmax"
    kind = type(placed.kernel).__name__
    starts = {"Quantize": "quantize", "Clamp": "clamp", "DenseHead": "head", "HeadOf": "head", "Softmax": "softmax"}
    return next((name for start, name in starts.items() if kind.startswith(start)), "dense")


def _array_bytes(placed: PlacedKernel | Offloaded, index: int) -> int:
    _, dtype, length = placed.arguments[index]
    return length * ITEM_BYTES[dtype]


def _bytes(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
