# SPDX-License-Identifier: Apache-2.0
"""Choices that measurement found: by kernel, else by the nearest kernel whose code is of the same kind.

`records/<target>.json` are those that ship, a winner a line, for the shapes of the reference policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable

from schedules import Kernel, PlacedKernel, knobs_of, place
from schedules.knobs import Choices
from schedules.signature import Signature, signature

# Blocks that suit another shape may not pad this one to more than so many times its bytes.
PADDED = 1.05


def shipped(target: str) -> Traversable:
    """The file of records that comes with us for `target`; there may be none."""
    return resources.files("schedules").joinpath("records", f"{target}.json")


def place_tuned(
    kernel: Kernel, family: str, winners: Mapping[Signature, Choices]
) -> tuple[PlacedKernel, Signature | None]:
    """The kernel with the choices of the nearest winner that fit it, and which one that was; None for the defaults."""
    if not knobs_of(kernel, family):
        return place(kernel, family), None
    wanted = signature(kernel)
    alike = [
        (wanted.distance(known), known)
        for known in winners
        if (known.kind, known.traits) == (wanted.kind, wanted.traits)
    ]
    untuned = place(kernel, family)
    for _, known in sorted(alike):
        try:
            placed = place(kernel, family, winners[known])
        except ValueError:  # a knob of the larger shape, or one that the rule no longer has
            continue
        if known == wanted or placed.parameter_bytes <= PADDED * untuned.parameter_bytes:
            return placed, known
    return untuned, None
