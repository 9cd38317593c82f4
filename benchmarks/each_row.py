# SPDX-License-Identifier: Apache-2.0
"""Is the instruction count the same for every observation? Counted apart for each, by a firmware made for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from firmware import built

from tinyrl_tvm import project as projects
from tinyrl_tvm.device.emulator import Emulate, emulate
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.targets import board_named

REPEATS = 100  # as in mains/each_row.c
SAME = 0.5  # instructions: reading the counter is good to a tick on either side, 0.3 instructions a call
TIMEOUT_S = 300.0


def instructions_of_each_row(
    library: ModelLibrary, rows: np.ndarray, folder: Path, board: str, run: Emulate = emulate
) -> np.ndarray:
    """Instructions of an inference on each of `rows` (n, n_obs): (n,), good to 0.3."""
    firmware = projects.built(built(library, folder, board, main="each_row.c")).products[0]
    files = folder / "files"
    files.mkdir()
    rows.astype("<f4").tofile(files / "observations.bin")
    run(board_named(board), firmware, files, TIMEOUT_S)
    empty, *ticks = np.fromfile(files / "ticks.bin", "<u4").astype(np.float64)
    assert len(ticks) == len(rows), (len(ticks), len(rows))
    return (np.array(ticks) - empty) * board_named(board).instructions_per_100_ticks / 100 / REPEATS


def random_rows(library: ModelLibrary, n: int, seed: int = 0) -> np.ndarray:
    """(n, n_obs) float32 like the test vectors, and a quarter of them a thousand times larger: past every clip."""
    vectors = library.vectors()["observations"]
    rng = np.random.default_rng(seed)
    rows = rng.normal(vectors.mean(axis=0), vectors.std(axis=0) + 1e-3, (n, vectors.shape[1]))
    rows[::4] *= 1000
    return rows.astype(np.float32)
