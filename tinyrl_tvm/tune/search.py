# SPDX-License-Identifier: Apache-2.0
"""Which settings to try next: MetaSchedule's PySearchStrategy, over the settings of knobs.

    grid            every setting, in order
    random          every setting, in an order of the seed's
    evolutionary    children of the best so far: a knob turned, or the knobs of two parents mixed; a fifth at random
    xgb             the same, and MetaSchedule's XGBModel picks among four times as many children

The default is tried first, alone, so that everything later can be held against it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np

from tinyrl_tvm.tune.task import Setting, Task

TUNERS = ("xgb", "evolutionary", "random", "grid")
PARENTS = 8
EXPLORED = 0.2  # of a batch, at random
SURPLUS = 4  # children a place, when a model picks among them
ENOUGH_TO_LEARN = 16  # measured settings of all tasks


class Search:
    """The order in which the settings of one task are tried. `costs` are those known, None for a rejected one."""

    def __init__(self, task: Task, tuner: str, seed: int) -> None:
        self.task, self.tuner = task, tuner
        self.costs: dict[Setting, float | None] = {}
        self._asked: set[Setting] = set()
        self._random = random.Random(f"{seed} {task.signature}")  # noqa: S311 - a search, not a secret
        self._queue = list(task.settings)
        if tuner != "grid":
            self._random.shuffle(self._queue)

    def knows(self, setting: Setting, cost: float | None) -> None:
        self._asked.add(setting)
        self.costs[setting] = cost

    def batch(self, size: int, predict: Callable[[list[Setting]], np.ndarray] | None) -> Iterator[Setting]:
        """Settings not asked for before, the most promising first. `predict` gives a score, higher for better.

        More than `size` may come, for whoever takes them may find that some cannot be scheduled."""
        if self.task.default not in self._asked:
            yield self._take(self.task.default)
            return
        if self.tuner in {"evolutionary", "xgb"}:
            wanted = round(size * (1 - EXPLORED))
            children = self._children(wanted * (SURPLUS if predict else 1))
            if predict and children:
                scores = predict(children)
                children = [children[index] for index in np.argsort(-scores, kind="stable")][:wanted]
            yield from (self._take(child) for child in children)
        while self._queue:
            setting = self._queue.pop(0)
            if setting not in self._asked:
                yield self._take(setting)

    def _take(self, setting: Setting) -> Setting:
        self._asked.add(setting)
        return setting

    def _children(self, number: int) -> list[Setting]:
        ranked = sorted((cost, setting) for setting, cost in self.costs.items() if cost is not None)
        parents = [dict(setting) for _, setting in ranked[:PARENTS]]
        possible, children = set(self.task.settings) - self._asked, dict[Setting, None]()
        for _ in range(20 * number if parents and possible else 0):  # most may have been asked already
            child = self._child(parents)
            if child in possible:
                children[child] = None
            if len(children) == number:
                break
        return list(children)

    def _child(self, parents: list[dict[str, int]]) -> Setting:
        child = dict(self._random.choice(parents))
        if self._random.random() < 0.5:
            other = self._random.choice(parents)
            child = {name: self._random.choice((child[name], other[name])) for name in child}
        name = self._random.choice(list(child))
        child[name] = self._random.choice(self.task.knobs[name])
        return tuple(sorted(child.items()))
