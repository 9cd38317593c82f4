# SPDX-License-Identifier: Apache-2.0
"""What a library says of its own making, for the report. A library comes from a stranger: all of it is checked, and what
an older one lacks is None or empty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.library import ModelLibrary


@dataclass(frozen=True)
class Clips:
    """Codes of one layer at their limits over the test vectors; see `relay_passes/clipping.py`."""

    layer: str
    n_codes: int
    at_low: int
    at_high: int
    level_low: bool
    level_high: bool

    def __post_init__(self) -> None:
        counts = (self.n_codes, self.at_low, self.at_high)
        if not isinstance(self.layer, str) or any(type(count) is not int or count < 0 for count in counts):
            raise ValueError(f"codes at a limit {self}")
        if self.at_low + self.at_high > self.n_codes:
            raise ValueError(f"{self.at_low} + {self.at_high} of {self.n_codes} codes at a limit")

    @property
    def lost(self) -> int:
        """Codes at a limit beyond which the function goes on."""
        return self.at_low * (not self.level_low) + self.at_high * (not self.level_high)

    @property
    def level(self) -> int:
        """Codes at a limit where the function is level."""
        return self.at_low + self.at_high - self.lost


@dataclass(frozen=True, eq=False)
class Pedigree:
    """`observed` are the least and the greatest of every observation in the calibration rows, (2, n_obs)."""

    source: str
    sha256: str | None
    precision: str
    generator: str
    command: tuple[str, ...]
    clips: tuple[Clips, ...]
    observed: np.ndarray | None

    @staticmethod
    def of(library: ModelLibrary) -> Pedigree:
        entry = library.interface
        try:
            sha256 = entry.get("sha256")
            return Pedigree(
                source=_text(entry.get("source", library.name)),
                sha256=None if sha256 is None else _text(sha256),
                precision=_text(entry.get("precision", "")),
                generator=_text(entry.get("generator", "tinyrl-tvm")),
                command=tuple(_text(word) for word in entry.get("command") or ()),
                clips=tuple(Clips(**item) for item in entry.get("clipped") or ()),
                observed=_limits(entry.get("observed"), Interface.of(library).n_obs),
            )
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise TinyrlError(
                f"the library's metadata.json does not describe its making ({error}); compile the policy again"
            ) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _limits(value: dict[str, Sequence[float]] | None, n_obs: int) -> np.ndarray | None:
    if value is None:
        return None
    limits = np.array([value["low"], value["high"]], np.float32)
    if limits.shape != (2, n_obs) or not math.isfinite(float(np.abs(limits).max())) or (limits[0] > limits[1]).any():
        raise ValueError(f"observed limits of shape {limits.shape}")
    return limits
