# SPDX-License-Identifier: Apache-2.0
"""What of a kernel decides how fast a schedule of it is: its kind, its sizes and what changes its code, not its values.

Two kernels of one signature are one task to the tuner, and one's record serves the other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from schedules.kernels import Kernel


@dataclass(frozen=True, order=True)
class Signature:
    """`kind` is the kernel's class, `traits` what else changes its code: (("table", "int8"), ("weight", "int16"), ...)."""

    kind: str
    n_in: int
    n_out: int
    traits: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if min(self.n_in, self.n_out) < 1 or not self.kind:
            raise ValueError(f"no kernel is a {self.kind!r} from {self.n_in} to {self.n_out}")

    def __str__(self) -> str:
        return f"{self.kind} {self.n_in} -> {self.n_out} ({', '.join(f'{k} {v}' for k, v in self.traits)})"

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "n_in": self.n_in, "n_out": self.n_out, "traits": dict(self.traits)}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Signature:
        """Raises KeyError, TypeError or ValueError for anything that `to_json` does not write."""
        kind, n_in, n_out, traits = (record[name] for name in ("kind", "n_in", "n_out", "traits"))
        sizes = type(n_in) is int and type(n_out) is int
        if not (isinstance(kind, str) and sizes and all(isinstance(value, str) for value in traits.values())):
            raise ValueError(f"not a kernel: {record}")
        return Signature(kind, n_in, n_out, tuple(sorted(traits.items())))

    def distance(self, other: Signature) -> float:
        """0 for the same, 1 for twice the inputs or twice the outputs; infinite for kernels of another kind of code."""
        if (self.kind, self.traits) != (other.kind, other.traits):
            return math.inf
        return abs(math.log2(self.n_in / other.n_in)) + abs(math.log2(self.n_out / other.n_out))


def signature(kernel: Kernel) -> Signature:
    weight = getattr(kernel, "weight", None)
    if hasattr(kernel, "n"):
        n_in = n_out = kernel.n
    elif weight is None:  # one input, one output: an elementwise kernel
        n_in = n_out = max(len(values) for _, values in _fields(kernel) if isinstance(values, np.ndarray))
    else:
        n_out, n_in = weight.shape
    return Signature(type(kernel).__name__, n_in, n_out, tuple(sorted(_traits(kernel))))


def _traits(record: Any) -> Iterator[tuple[str, str]]:
    """Arrays by their dtype when they are there, words as they are, yes-or-no properties; numbers are values."""
    for name, value in _fields(record):
        if isinstance(value, np.ndarray):
            yield name, str(value.dtype)
        elif isinstance(value, str):
            yield name, value
        elif dataclasses.is_dataclass(value):
            yield name, type(value).__name__
            yield from ((f"{name}.{inner}", trait) for inner, trait in _traits(value))
        elif isinstance(value, tuple):
            yield name, str(len(value))
    for name, attribute in vars(type(record)).items():
        if isinstance(attribute, property) and isinstance(answer := getattr(record, name), bool):
            yield name, "yes" if answer else "no"


def _fields(record: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(record, field.name)) for field in dataclasses.fields(record)]
