# SPDX-License-Identifier: Apache-2.0
"""How answers differ: the float policy's, those that must come out (the oracle's), and a device's.

continuous    error = answer - float answer, an action at a time
decisions     how often both chose the same, and what was chosen instead
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

MOST_CHOICES = 12  # of a table of choices against choices


@dataclass(frozen=True, eq=False)
class Action:
    """One action over the test vectors, of a decision: `agreement` is the part that is the float policy's, and
    `choices[i, j]` how often the float policy chose i and the other j; None where there are too many to show."""

    index: int
    agreement: float
    choices: np.ndarray | None = field(repr=False)


@dataclass(frozen=True, eq=False)
class Errors:
    """One continuous action over the test vectors; `spread` is greatest less least of the float policy's answers."""

    index: int
    mean_abs: float
    p99_abs: float
    max_abs: float
    spread: float

    @property
    def relative(self) -> float | None:
        """The largest error as a part of what the action ranges over."""
        return self.max_abs / self.spread if self.spread > 0 else None


def errors(answers: np.ndarray, of_float: np.ndarray) -> tuple[Errors, ...]:
    """(n, n_actions) float32 each."""
    return tuple(
        _errors(i, a.astype(np.float64), b.astype(np.float64)) for i, (a, b) in enumerate(_pairs(answers, of_float))
    )


def decisions(answers: np.ndarray, of_float: np.ndarray) -> tuple[Action, ...]:
    """(n, n_actions) int32 each."""
    return tuple(_decision(i, a, b) for i, (a, b) in enumerate(_pairs(answers, of_float)))


def outside(observations: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """How many of the rows (n, n_obs) each observation is outside of (2, n_obs) limits in: (n_obs,)."""
    low, high = observed
    return ((observations < low) | (observations > high)).sum(axis=0)


def _pairs(answers: np.ndarray, of_float: np.ndarray) -> zip[tuple[np.ndarray, np.ndarray]]:
    return zip(answers.T, of_float.T, strict=True)


def _errors(index: int, answers: np.ndarray, of_float: np.ndarray) -> Errors:
    error = np.abs(answers - of_float)
    p99 = float(np.percentile(error, 99, method="higher"))
    return Errors(index, float(error.mean()), p99, float(error.max()), float(np.ptp(of_float)))


def _decision(index: int, answers: np.ndarray, of_float: np.ndarray) -> Action:
    n = int(max(answers.max(), of_float.max())) + 1
    choices: np.ndarray | None = None
    if n <= MOST_CHOICES and min(answers.min(), of_float.min()) >= 0:
        choices = np.zeros((n, n), np.int64)
        np.add.at(choices, (of_float, answers), 1)
    return Action(index, float((answers == of_float).mean()), choices)
