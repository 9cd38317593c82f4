# SPDX-License-Identifier: Apache-2.0
"""A task: one distinct kernel of a policy, with the settings of its knobs, and with CMSIS-NN's where that is a candidate.
Layers that share their code share a task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tvm import ir

from schedules import Kernel, PlacedKernel, knobs_of, place
from schedules.knobs import defaults, settings
from schedules.signature import Signature, signature
from tinyrl_tvm.cmsis_nn import FullyConnected
from tinyrl_tvm.errors import TinyrlError

MAX_SETTINGS = 100_000  # of one kernel; a rule with more has knobs that nobody could measure

Setting = tuple[tuple[str, int], ...]  # choices in an order, so that they can be a key


def setting_of(choices: Mapping[str, int]) -> Setting:
    return tuple(sorted(choices.items()))


@dataclass(frozen=True, eq=False)
class Task:
    """`kernel` stands for the `count` kernels of the policy that have its signature; `offload` is the same layer as CMSIS-NN
    would compute it, where it is to be measured too."""

    index: int
    kernel: Kernel = field(repr=False)
    family: str
    count: int = 1
    offload: FullyConnected | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.kernel.summary

    @cached_property
    def signature(self) -> Signature:
        return signature(self.kernel)

    @cached_property
    def knobs(self) -> Mapping[str, tuple[int, ...]]:
        return knobs_of(self.kernel, self.family)

    @property
    def default(self) -> Setting:
        return setting_of(defaults(self.knobs))

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Every way to set the knobs that goes together, the default first."""
        found = []
        for choices in settings(self.knobs):
            try:
                place(self.kernel, self.family, choices)
            except ValueError:
                continue
            found.append(setting_of(choices))
            if len(found) > MAX_SETTINGS:
                raise TinyrlError(f"'{self.name}' has more than {MAX_SETTINGS:,} settings; name other --tasks")
        return tuple(found)

    @property
    def trials(self) -> int:
        """At most."""
        return len(self.settings) + (self.offload is not None)

    @cached_property
    def described(self) -> ir.IRModule:
        """The kernel as it is by default, scheduled for nothing."""
        return self.placed(self.default).module("portable", "main")

    def placed(self, setting: Setting) -> PlacedKernel:
        return place(self.kernel, self.family, dict(setting))


def tasks_of(
    kernels: Iterable[Kernel], family: str, offloads: Iterable[FullyConnected | None] | None = None
) -> tuple[Task, ...]:
    """In calling order. `offloads` are the layers that CMSIS-NN could compute, None for those it cannot."""
    kernels = tuple(kernels)
    alike: dict[tuple[Signature, str | None], list[tuple[Kernel, FullyConnected | None]]] = {}
    for kernel, offload in zip(kernels, offloads or [None] * len(kernels), strict=True):
        # of one shape, but some with a multiplier for every output and some not: CMSIS-NN has a function for either
        key = signature(kernel), offload.function if offload else None
        alike.setdefault(key, []).append((kernel, offload))
    return tuple(
        Task(index, layers[0][0], family, len(layers), layers[0][1]) for index, layers in enumerate(alike.values())
    )


def chosen(tasks: tuple[Task, ...], wanted: str | None) -> tuple[Task, ...]:
    """`wanted` is "0,2", a name, or whole words of names: "dense 64 -> 64". None for those that have something to choose."""
    if wanted is None:
        return tuple(task for task in tasks if task.trials > 1)
    found: dict[int, Task] = {}
    if named := tuple(task for task in tasks if task.name == wanted.strip()):
        return named  # names have commas of their own
    for word in (part.strip() for part in wanted.split(",")):
        whole = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")  # "64 -> 2" is no part of "64 -> 256"
        matching = [
            task
            for task in tasks
            if word == str(task.index) or (word and not word.isdecimal() and whole.search(task.name))
        ]
        if not matching:
            have = ", ".join(f"{task.index} ({task.name})" for task in tasks)
            raise TinyrlError(f"no task '{word}'; have: {have}; --tasks list shows them")
        found |= {task.index: task for task in matching}
    return tuple(found[index] for index in sorted(found))
