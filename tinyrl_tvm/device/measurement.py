# SPDX-License-Identifier: Apache-2.0
"""What a device says of a policy. What was not measured is None."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyrl_tvm.interface import Interface, Vectors

if TYPE_CHECKING:
    from tinyrl_tvm.device.profile import Profile

PASS, FAIL = "PASS", "FAIL"


@dataclass(frozen=True)
class WallTime:
    """Nanoseconds per inference by the clock on the wall, over batches of inferences: the host's, never a target's."""

    median_ns: float
    low_ns: float
    high_ns: float
    batches: int
    inferences_per_batch: int

    def __post_init__(self) -> None:
        assert self.low_ns <= self.median_ns <= self.high_ns


@dataclass(frozen=True)
class Parity:
    """Test vectors replayed: how many of `total` gave status 0 and the expected answer."""

    right: int
    total: int
    max_abs_error: float

    @property
    def verdict(self) -> str:
        return PASS if self.right == self.total else FAIL


@dataclass(frozen=True)
class Likeness:
    """How like the float policy the answers to the test vectors are: what quantisation costs, not whether the code is
    right. Of decisions (int32) the fraction that is the same, of continuous actions the largest |difference|."""

    action_agreement: float | None
    max_abs_error: float | None


@dataclass(frozen=True, eq=False)
class Measurement:
    """One run: `actions` (n, n_actions) and `statuses` (n,) answer the observations given, else the test vectors."""

    device: str
    actions: np.ndarray = field(repr=False)
    statuses: np.ndarray = field(repr=False)
    vectors: Parity | None = None
    likeness: Likeness | None = None
    instructions_per_inference: float | None = None
    flash_bytes: int | None = None
    ram_bytes: int | None = None
    stack_bytes: int | None = None
    wall_time: WallTime | None = None
    profile: Profile | None = None

    def __post_init__(self) -> None:
        assert self.actions.ndim == 2
        assert self.statuses.shape == (len(self.actions),)

    @property
    def parity(self) -> str | None:
        return self.vectors.verdict if self.vectors else None

    def to_json(self) -> dict[str, Any]:
        """The keys that `--json` prints; actions go to a file, not here."""
        return {
            "device": self.device,
            "rows": len(self.actions),
            "nonzero_statuses": int(np.count_nonzero(self.statuses)),
            "parity": self.parity,
            "vectors_right": self.vectors.right if self.vectors else None,
            "vectors_total": self.vectors.total if self.vectors else None,
            "parity_max_abs_error": _finite(self.vectors.max_abs_error) if self.vectors else None,
            "action_agreement": self.likeness.action_agreement if self.likeness else None,
            "max_abs_error": _finite(self.likeness.max_abs_error) if self.likeness else None,
            "instructions_per_inference": self.instructions_per_inference,
            "flash_bytes": self.flash_bytes,
            "ram_bytes": self.ram_bytes,
            "stack_bytes": self.stack_bytes,
            "wall_time_ns_median": self.wall_time.median_ns if self.wall_time else None,
            "wall_time_ns_low": self.wall_time.low_ns if self.wall_time else None,
            "wall_time_ns_high": self.wall_time.high_ns if self.wall_time else None,
            "profile": self.profile.to_json() if self.profile else None,
        }


def judge(interface: Interface, vectors: Vectors, actions: np.ndarray, statuses: np.ndarray) -> Parity:
    """Compare answers to all test vectors with what is expected: the same bits without a tolerance, else
    |answer - expected| <= tolerance. A value that is not finite is never right.

    The same law as `src/replay.c` of a project, which judges the vectors it carries on the device itself.
    """
    expected = vectors.answers
    same = actions.view(np.int32) == expected.view(np.int32)
    error = np.abs(actions.astype(np.float64) - expected.astype(np.float64))
    if interface.action_dtype == "float32":
        if interface.tolerance > 0:
            # The device subtracts and compares in float32.
            with np.errstate(invalid="ignore", over="ignore"):
                same |= np.abs(actions - expected) <= np.float32(interface.tolerance)
        same &= np.isfinite(actions)
    right = same.all(axis=1) & (statuses == 0)
    return Parity(int(right.sum()), len(expected), float(error.max(initial=0.0)))


def compare_with_float(interface: Interface, vectors: Vectors, actions: np.ndarray) -> Likeness | None:
    """The answers to all test vectors beside the float policy's. None when the library does not carry those."""
    if vectors.float_answers is None:
        return None
    if interface.action_dtype == "int32":
        same = (actions == vectors.float_answers).all(axis=1)
        return Likeness(action_agreement=float(same.mean()), max_abs_error=None)
    error = np.abs(actions.astype(np.float64) - vectors.float_answers.astype(np.float64))
    return Likeness(action_agreement=None, max_abs_error=float(error.max()))


def _finite(number: float | None) -> float | None:
    """JSON has neither infinity nor NaN."""
    return number if number is not None and math.isfinite(number) else None
