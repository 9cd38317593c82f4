# SPDX-License-Identifier: Apache-2.0
"""Kernels of the cores without Helium answer by the law in `fixedpoint.py`: as assembly on each core's board, under QEMU.

The cases are those of `test_schedules.py`, whose accumulators lie at ties. These families multiply and narrow in fewer
instructions where a layer's accumulators are known to be small, so each kind of layer comes small and large.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_schedules import adversarial, codes_of, library_of, shown, walk

from schedules import kernels as k
from schedules.scalar_arithmetic import largest_accumulator
from tinyrl_tvm.device import qemu
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import build, create
from tinyrl_tvm.targets import BOARDS

CORES = ["cortex-m4", "cortex-m3", "cortex-m0", "rv32imc"]
SIBLINGS = ["cortex-m7", "cortex-m33"]  # the rules of cortex-m4, other instructions for floats


def agrees(library: ModelLibrary, folder: Path) -> None:
    """As assembly on the board of the library's target."""
    target = Interface.of(library).target
    (board,) = (board.name for board in BOARDS.values() if board.target == target)
    project = create(library, folder / "project", "baremetal", {"board": board})
    build(project)
    measured = qemu.run(project)
    np.testing.assert_array_equal(measured.actions, library.vectors()["expected"])
    assert measured.parity == "PASS"


def small(layer: k.DenseCodes) -> k.DenseCodes:
    """The layer with what would make an accumulator large cut off its biases."""
    limit = 2**28 - 1 - 128 * int(np.abs(layer.weight.astype(np.int64)).sum(1).max())
    return replace(layer, bias=np.clip(layer.bias, -limit, limit))


# ---- layers of codes ----

# shift, zero point, low, high, n_in, n_out, table
LAYERS = [
    (0, 0, -128, 127, 16, 64, False),
    (1, 0, -128, 127, 17, 61, False),
    (5, -7, -100, 90, 3, 47, True),
    (7, -128, -128, 127, 64, 7, False),
    (9, 0, -128, 127, 101, 2, True),
    (11, 0, 0, 127, 5, 33, False),
    (16, 5, -128, 127, 300, 19, False),
]


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_layers_of_codes_round_by_the_law(core: str, large: bool, tmp_path: Path) -> None:
    for index, (shift, zero_point, low, high, n_in, n_out, table) in enumerate(LAYERS):
        if (index + CORES.index(core)) % 2 == large:  # the other half are another core's
            continue
        layer = adversarial(shift, zero_point, low, high, n_in=n_in, n_out=n_out, table=table)
        assert largest_accumulator(layer) > 2**30 and largest_accumulator(small(layer)) < 2**28
        layer = layer if large else small(layer)
        folder = tmp_path / str(index)
        folder.mkdir()
        agrees(library_of([codes_of(n_in), layer, shown(n_out)], walk(n_in), target=core), folder)
