# SPDX-License-Identifier: Apache-2.0
"""A task: one distinct kernel of a policy, with the settings of its knobs. Layers that share their code share a task."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tvm import ir

from schedules import Kernel, PlacedKernel, knobs_of, place
from schedules.knobs import defaults, settings
from schedules.signature import Signature, signature
from tinyrl_tvm.errors import TinyrlError

MAX_SETTINGS = 100_000  # of one kernel; a rule with more has knobs that nobody could measure

Setting = tuple[tuple[str, int], ...]  # choices in an order, so that they can be a key


def setting_of(choices: Mapping[str, int]) -> Setting:
    return tuple(sorted(choices.items()))


@dataclass(frozen=True, eq=False)
class Task:
    """`kernel` stands for the `count` kernels of the policy that have its signature."""

    index: int
    kernel: Kernel = field(repr=False)
    family: str
    count: int = 1

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

    @cached_property
    def described(self) -> ir.IRModule:
        """The kernel as it is by default, scheduled for nothing."""
        return self.placed(self.default).module("portable", "main")

    def placed(self, setting: Setting) -> PlacedKernel:
        return place(self.kernel, self.family, dict(setting))


def tasks_of(kernels: Iterable[Kernel], family: str) -> tuple[Task, ...]:
    """In calling order."""
    kernels = tuple(kernels)
    counts = Counter(signature(kernel) for kernel in kernels)
    first = {signature(kernel): kernel for kernel in reversed(kernels)}
    return tuple(
        Task(index, first[known], family, counts[known])
        for index, known in enumerate(dict.fromkeys(signature(kernel) for kernel in kernels))
    )


def chosen(tasks: tuple[Task, ...], wanted: str | None) -> tuple[Task, ...]:
    """`wanted` is "0,2", a name, or whole words of names: "dense 64 -> 64". None for those that have something to choose."""
    if wanted is None:
        return tuple(task for task in tasks if len(task.settings) > 1)
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
