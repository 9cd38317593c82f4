# SPDX-License-Identifier: Apache-2.0
"""A rule: how a family of cores runs one kind of kernel, and the knobs a tuner may turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule

from schedules.kernels import Layout

# The annotation of a loop that LLVM must not write out whole.
ROLLED = "tinyrl.rolled"

# A knob's setting: small numbers, so that a record of them is JSON and can be checked.
Choices = Mapping[str, int]
Knobs = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Rule:
    """`layout(kernel, choices)` says how the parameters lie in flash; `schedule(schedule, kernel, layout, choices)` turns
    the kernel's portable description into the family's code. Either raises ValueError where choices do not go together.

    `knobs(kernel)` are the choices there are for a kernel, the default first; `attributes(choices)` what LLVM is told of
    the core beyond the target's own `mattr`.
    """

    layout: Callable[[Any, Choices], Layout]
    schedule: Callable[[Schedule, Any, Layout, Choices], None]
    knobs: Callable[[Any], Knobs] = lambda kernel: {}
    attributes: Callable[[Choices], tuple[str, ...]] = lambda choices: ()


def defaults(knobs: Knobs) -> dict[str, int]:
    return {name: options[0] for name, options in knobs.items()}


def settings(knobs: Knobs) -> Iterator[dict[str, int]]:
    """Every way to set the knobs, the defaults first."""
    for values in itertools.product(*knobs.values()):
        yield dict(zip(knobs, values, strict=True))
