# SPDX-License-Identifier: Apache-2.0
"""What LLVM is told of a kernel: by kind, to that kernel alone, and to its good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_records import codes

from schedules import RULES, knobs_of, place
from schedules import kernels as k
from schedules.llvm import ANY_PRESSURE, WITHOUT_LSR
from tinyrl_tvm.device.emulator import emulate
from tinyrl_tvm.device.workers import Workers
from tinyrl_tvm.emit import lower
from tinyrl_tvm.targets import BOARDS, TARGETS
from tinyrl_tvm.tune.firmware import Bench
from tinyrl_tvm.tune.task import tasks_of

RNG = np.random.default_rng(11)


def wide(n_out: int, n_in: int) -> k.DenseCodes:
    weight = RNG.integers(-4000, 4001, (n_out, n_in)).astype(np.int16)
    return k.DenseCodes(weight, RNG.integers(-999, 1000, n_out).astype(np.int32), None, 9, 0, 0, 127, None)


def floats(n_out: int, n_in: int, activation: str = "relu") -> k.DenseFloat:
    weight, bias = RNG.normal(size=(n_out, n_in)), RNG.normal(size=n_out)
    return k.DenseFloat(weight.astype(np.float32), bias.astype(np.float32), activation)


OBSERVATIONS = k.Quantize(np.ones(24, np.float32), None, -128, 127, "int8")
KERNELS = {"codes": codes(64, 64), "few codes": codes(16, 64), "wide": wide(64, 4), "floats": floats(64, 64)}
KERNELS |= {"few floats": floats(64, 3), "observations": OBSERVATIONS}

FLAGS = {
    "mve": {
        "codes": (WITHOUT_LSR, ANY_PRESSURE),
        "few codes": (ANY_PRESSURE,),
        "wide": (ANY_PRESSURE,),
        "floats": (WITHOUT_LSR, ANY_PRESSURE),
        "few floats": (ANY_PRESSURE,),
    },
    "dsp": {"codes": (WITHOUT_LSR, ANY_PRESSURE), "few codes": (WITHOUT_LSR, ANY_PRESSURE), "wide": (WITHOUT_LSR,)},
    "scalar": {
        "codes": (WITHOUT_LSR,),
        "few codes": (WITHOUT_LSR,),
        "floats": (WITHOUT_LSR,),
        "few floats": (WITHOUT_LSR,),
    },
}


@pytest.mark.parametrize("family", RULES)
def test_a_kernel_asks_for_what_its_kind_is_best_with(family: str) -> None:
    asked = {name: place(kernel, family).llvm.flags for name, kernel in KERNELS.items()}
    assert {name: flags for name, flags in asked.items() if flags} == FLAGS.get(family, {})


@pytest.mark.parametrize("family", ["mve", "dsp"])
def test_the_tuner_may_turn_loop_strength_reduction(family: str) -> None:
    for kernel in (codes(64, 64), wide(64, 4), floats(64, 64)):
        default, other = knobs_of(kernel, family)["lsr"]
        assert {default, other} == {0, 1}
        assert place(kernel, family).llvm == place(kernel, family, {"lsr": default}).llvm
        turned = place(kernel, family, {"lsr": other}).llvm
        assert set(turned.flags) ^ set(place(kernel, family).llvm.flags) == {WITHOUT_LSR}
    assert "lsr" not in knobs_of(OBSERVATIONS, family)
    assert "lsr" not in knobs_of(floats(8, 8), "scalar")  # which runs as the C twin does


ALONE = """
import sys, test_llvm
sys.stdout.write(test_llvm.listing(sys.argv[1]))
"""


def listing(name: str, core: str = "cortex-m4") -> str:
    target = TARGETS[core]
    placed = place(KERNELS[name], target.kernels)
    return lower.assembly(placed.module(placed.family, "f"), target.tvm(placed.llvm))


def test_what_one_kernel_asks_of_llvm_does_not_reach_the_next() -> None:
    """LLVM's flags are globals of the process."""
    names = ("floats", "codes", "wide")  # none, two and one of them
    alone = {
        name: subprocess.run(
            [sys.executable, "-c", ALONE, name], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout
        for name in names
    }
    for name in (*names, *reversed(names)):
        assert listing(name) == alone[name]
    with_flags = TARGETS["cortex-m4"].tvm(place(KERNELS["codes"], "dsp").llvm)
    assert lower.assembly(place(KERNELS["floats"], "dsp").module("dsp", "f"), with_flags) != alone["floats"]


@pytest.mark.parametrize(
    ("board", "kernel", "gain"),
    [
        ("mps3-an547", codes(64, 64), 0.4),
        ("mps3-an547", wide(64, 3), 0.05),
        ("mps3-an547", floats(64, 64), 0.15),
        ("mps2-an386", floats(64, 3), 0.1),
        ("mps2-an385", codes(64, 64), 0.05),
        ("mps2-an385", wide(64, 4), 0.05),
    ],
    ids=lambda value: getattr(value, "summary", None),
)
def test_the_default_of_lsr_is_the_better_one(board: str, kernel: k.Kernel, gain: float, tmp_path: Path) -> None:
    (task,) = tasks_of([kernel], TARGETS[BOARDS[board].target].kernels)
    default, other = task.knobs["lsr"]
    with Workers() as workers:
        bench = Bench(BOARDS[board], tmp_path, workers, 30.0)
        costs = []
        for number, lsr in enumerate((default, other)):
            placed = place(kernel, task.family, {"lsr": lsr})
            firmware = bench.build(number, task, placed, placed.module(task.family, "main"))
            costs.append(bench.measure(emulate, firmware))
    assert costs[0] < (1 - gain) * costs[1]
