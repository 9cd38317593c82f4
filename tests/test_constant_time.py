# SPDX-License-Identifier: Apache-2.0
"""An inference takes as many instructions for one observation as for any other: nothing can be read off its time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from each_row import SAME, instructions_of_each_row, random_rows
from firmware import compiled
from test_project import hand_written_library

BOARD = "mps3-an547"


@pytest.mark.parametrize(
    ("name", "precision"), [("P1", "int8"), ("P2", "int8"), ("cartpole", "int8"), ("P1", "int16"), ("P2", "int16")]
)
def test_a_thousand_observations_take_the_same_instructions(name: str, precision: str, tmp_path: Path) -> None:
    library = compiled(name, precision, "cortex-m55").library
    counts = instructions_of_each_row(library, random_rows(library, 1000), tmp_path / name, BOARD)
    assert len(counts) == 1000 and counts.min() > 500
    assert np.ptp(counts) < SAME


@pytest.mark.parametrize(
    "body",
    [
        # an early way out; volatile, or the compiler makes it a choice without a branch
        "    volatile float sum = obs[1];\n    if (obs[0] > 0.0f) { sum *= obs[0]; }\n    action[0] = sum;\n    return 0;",
        # a single instruction more
        '    action[0] = obs[1];\n    if (obs[0] > 0.0f) { __asm__ volatile("nop"); }\n    return 0;',
    ],
)
def test_a_branch_on_the_observation_shows(body: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(3).normal(size=(64, 2)).astype(np.float32)
    library = hand_written_library(body, rows, rows[:, :1])
    counts = instructions_of_each_row(library, rows, tmp_path / "toy", BOARD)
    assert np.ptp(counts) > SAME
    positive = rows[:, 0] > 0
    assert np.ptp(counts[positive]) < SAME and np.ptp(counts[~positive]) < SAME


def test_an_observation_that_is_not_a_number_is_the_exception(tmp_path: Path) -> None:
    library = compiled("P1", "int8", "cortex-m55").library
    rows = random_rows(library, 2)
    rows[1, 0] = np.nan
    usual, refused = instructions_of_each_row(library, rows, tmp_path / "P1", BOARD)
    assert refused < usual / 2
