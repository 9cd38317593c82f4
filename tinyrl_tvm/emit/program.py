# SPDX-License-Identifier: Apache-2.0
"""A compiled policy before it is printed: its kernels in calling order and where their buffers lie."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyrl_tvm.cmsis_nn import Elementwise, FullyConnected, Offloaded, Softmax
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
    """A call of a kernel. `sources` and `result` are byte offsets into the workspace; None is the caller's own array."""

    function: str
    placed: PlacedKernel | Offloaded
    sources: tuple[int | None, ...]
    result: int | None


@dataclass(frozen=True)
class Tensor:
    """`n_bytes` that a kernel writes and that are read for the last time by another."""

    n_bytes: int
    written: int
    read: int

    def meets(self, other: Tensor) -> bool:
        """Whether both are in use while some kernel runs."""
        return self.written <= other.read and other.written <= self.read


def arrange(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Offsets for the tensors, so that none in use lies on another, and the bytes that takes.

    Each as low as it goes: the largest first, after Y. Pisarchyk and J. Lee, Efficient Memory Management for Deep Neural Net
    Inference, 2020; or every other one first, where that takes less: a chain needs no more than two buffers by turns.
    """
    places = range(len(tensors))
    largest_first = sorted(places, key=lambda place: -tensors[place].n_bytes)
    orders = largest_first, [*places[0::2], *places[1::2]], [*places[1::2], *places[0::2]]
    return min((_lowest(tensors, order) for order in orders), key=lambda arranged: arranged[1])


def _lowest(tensors: Sequence[Tensor], order: Sequence[int]) -> tuple[list[int], int]:
    """Each tensor in turn as low as it goes beside those before it."""
    offsets: dict[int, int] = {}
    for index in order:
        tensor, offset = tensors[index], 0
        taken = sorted((offsets[i], offsets[i] + tensors[i].n_bytes) for i in offsets if tensors[i].meets(tensor))
        for start, end in taken:
            if offset + tensor.n_bytes <= start:
                break
            offset = max(offset, end)
        offsets[index] = offset
    size = max((offsets[i] + tensor.n_bytes for i, tensor in enumerate(tensors)), default=0)
    return [offsets[index] for index in range(len(tensors))], size


@dataclass(frozen=True)
class Program:
    """Everything the printers need to know. `kernels` run in order, each on the answers of those that its `sources` name, -1
    for the observations; the last one's answer is the action. `reasons` say why each runs where it does, and are empty where
    nothing was to be offloaded."""

    name: str
    target: Target
    precision: str
    inputs: tuple[TensorSpec, ...]
    action: TensorSpec
    kernels: tuple[PlacedKernel | Offloaded, ...]
    sources: tuple[tuple[int, ...], ...]
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
        """The calls, and the bytes of workspace they need."""
        at, size = self._places
        steps = [
            Step(
                f"tvmgen_{self.name}_{_function(placed)}{index}",
                placed,
                tuple(at[source] for source in sources),
                at.get(index),
            )
            for index, (placed, sources) in enumerate(zip(self.kernels, self.sources, strict=True))
        ]
        return tuple(steps), size

    @property
    def gathered_at(self) -> int:
        """Where in the workspace several observations are joined."""
        offset = self._places[0][-1]
        assert offset is not None
        return offset

    @property
    def _places(self) -> tuple[dict[int, int | None], int]:
        """Offsets of the observations, under -1, and of what every kernel but the last answers; the workspace's size."""
        offsets, size = arrange(self._tensors)
        at: dict[int, int | None] = dict(zip(range(-1, len(self.kernels) - 1), offsets, strict=True))
        return (at if self.gathers else at | {-1: None}), size

    @property
    def _tensors(self) -> list[Tensor]:
        """What lies in the workspace: the gathered observations, then every kernel's answer but the last one's."""
        tensors = []
        for writer in range(-1, len(self.kernels) - 1):
            read = [
                (reader, place)
                for reader, sources in enumerate(self.sources)
                for place, source in enumerate(sources)
                if source == writer
            ]
            # a kernel may read more than was written: inputs come in chunks, and meet weights of zero there
            sizes = [_array_bytes(self.kernels[reader], place) for reader, place in read]
            sizes.append(_array_bytes(self.kernels[writer], -1) if writer >= 0 else 4 * self.n_observations)
            in_workspace = writer >= 0 or self.gathers
            tensors.append(Tensor(_bytes(max(sizes)) if in_workspace else 0, writer, max(reader for reader, _ in read)))
        return tensors

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
        kinds = {FullyConnected: "dense", Softmax: "softmax", Elementwise: "merge"}
        return next(name for kind, name in kinds.items() if isinstance(placed, kind))
    kind = type(placed.kernel).__name__
    starts = {"Quantize": "quantize", "Clamp": "clamp", "DenseHead": "head", "HeadOf": "head", "Softmax": "softmax"}
    starts |= {"Add": "merge", "Multiply": "merge", "Merge": "merge", "Map": "map"}
    return next((name for start, name in starts.items() if kind.startswith(start)), "dense")


def _array_bytes(placed: PlacedKernel | Offloaded, index: int) -> int:
    _, dtype, length = placed.arguments[index]
    return length * ITEM_BYTES[dtype]


def _bytes(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
