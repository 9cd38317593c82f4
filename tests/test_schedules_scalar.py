# SPDX-License-Identifier: Apache-2.0
"""Kernels of the cores without Helium answer by the law in `fixedpoint.py`: as assembly on each core's board, under QEMU.

The cases are those of `test_schedules.py`, whose accumulators lie at ties. These families multiply and narrow in fewer
instructions where a layer's accumulators are known to be small, so layers come small and large.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from policies import SANITIZERS, compile_model, dense_policy, replay
from test_schedules import EDGE_ROWS, adversarial, codes_of, head_of, library_of, shown, walk

from schedules import Kernel, knobs_of, place
from schedules import kernels as k
from schedules.knobs import settings
from schedules.scalar_arithmetic import has_integer_code, largest_accumulator
from tinyrl_tvm.device import qemu
from tinyrl_tvm.emit import lower
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import build, create
from tinyrl_tvm.targets import BOARDS, target_named

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
    (0, 0, -128, 127, 16, 24, False),
    (1, 0, -128, 127, 17, 21, True),
    (5, -7, -100, 90, 3, 47, False),
    (7, -128, -128, 127, 101, 1, True),
    (9, 0, 0, 127, 64, 18, False),
    (16, 5, -128, 127, 261, 7, False),
]


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("core", CORES)
def test_a_layer_of_codes_rounds_by_the_law(core: str, case: int, tmp_path: Path) -> None:
    """Half the cases a core, now small, now large; the cores between them have each case either way."""
    turn = CORES.index(core)
    shift, zero_point, low, high, n_in, n_out, table = LAYERS[2 * case + turn % 2]
    layer = adversarial(shift, zero_point, low, high, n_in=n_in, n_out=n_out, table=table)
    assert largest_accumulator(layer) > 2**30
    assert largest_accumulator(small(layer)) < 2**28
    if (case + turn // 2) % 2:
        layer = small(layer)
    library = library_of([codes_of(n_in), layer, shown(n_out)], walk(n_in), target=core)
    agrees(library, tmp_path)
    if case == turn:  # some of the layouts as C, where a read outside an array is fatal
        assert "PARITY PASS" in replay(library, tmp_path, "gcc", "-O1", *SANITIZERS)


@pytest.mark.parametrize(("core", "n_in"), list(zip(CORES, [3, 8, 1, 5], strict=True)))
def test_a_wide_layer_shifts_by_the_law(core: str, n_in: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(n_in)
    n_out, shift = 5 * n_in + 2, 2 * n_in
    rows = rng.integers(-16383, 16384, (64, n_in)).astype(np.float32)
    rows[:, 0] = np.arange(-32, 32)
    quantize = k.Quantize(np.ones(n_in, np.float32), None, -16383, 16383, "int32")
    weight = rng.integers(-32767, 32768, (n_out, n_in)) // n_in
    weight[::2] = 0
    weight[::2, 0] = rng.integers(-2, 3, len(weight[::2]))  # these walk past a tie of the shift
    bias = rng.integers(-140, 140, n_out) * 2**shift + 2**shift // 2
    table = (rng.permutation(256) - 128).astype(np.int8) if n_in > 3 else None
    layer = k.DenseCodes(weight.astype(np.int16), bias.astype(np.int32), None, shift, -n_in, -128, 127, table)
    agrees(library_of([quantize, layer, shown(n_out)], rows, target=core), tmp_path)


# ---- observations and heads ----


@pytest.mark.parametrize("core", ["cortex-m3", "cortex-m0", "rv32imc"])
def test_observations_become_codes_in_integers(core: str, tmp_path: Path) -> None:
    """At the edges of codes, and wherever a product of any two significands may round."""
    rng = np.random.default_rng(7)
    n = 12
    scale = np.where(np.arange(n) < 4, np.exp2(rng.integers(-6, 7, n)), np.exp2(rng.uniform(-30, 30, n)))
    edges = rng.permuted(np.tile(EDGE_ROWS, (n, 1)), axis=1).T
    near = np.nextafter(rng.integers(-260, 261, (300, n)) / 2, rng.choice([-1e9, 1e9], (300, n)))
    rows = np.concatenate([edges, near, rng.normal(size=(300, n)) * 100]) / scale
    rows = np.clip(rows, -3.4e38, 3.4e38).astype(np.float32)
    zeros = None if core == "cortex-m3" else np.arange(-5, n - 5, dtype=np.int32) * 20
    quantize = k.Quantize(scale.astype(np.float32), zeros, -128, 127, "int8")
    assert has_integer_code(quantize)
    agrees(library_of([quantize, shown(n)], rows, target=core), tmp_path)


def test_scales_that_integers_would_get_wrong_stay_floats() -> None:
    for extreme in (1e-39, 2.0**100):
        assert not has_integer_code(k.Quantize(np.array([1, extreme], np.float32), None, -128, 127, "int8"))


def exercised(n_out: int, kind: k.Answer) -> list[Kernel]:
    """Observations at the edges of their codes, a small layer, and a head."""
    rng = np.random.default_rng(n_out)
    quantize = k.Quantize(np.exp2(rng.integers(-3, 4, 7)).astype(np.float32), np.arange(-3, 4), -128, 127, "int8")
    layer = small(adversarial(8, -3, -128, 127, n_in=7, n_out=19, table=n_out % 2 == 0))
    return [quantize, layer, head_of(kind, rng.integers(-200, 200, n_out), 19, seed=n_out)]


def squashed(n_out: int) -> k.ThroughTable:
    rng = np.random.default_rng(n_out)
    return k.ThroughTable(
        rng.integers(2**29, 2**31, n_out).astype(np.int32), 1, (np.sin(np.arange(257) / 9) * 32767).astype(np.int16),
        rng.integers(-999, 999, n_out).astype(np.int32), np.full(n_out, 1e-3, np.float32),
        np.full(n_out, -20, np.float32), np.full(n_out, 25, np.float32),
    )  # fmt: skip


HEADS = [
    ("cortex-m4", 6, squashed(6)),
    ("cortex-m3", 13, k.ArgMax((5, 1, 7))),
    ("cortex-m0", 9, k.Positive()),
    ("rv32imc", 11, squashed(11)),
    ("cortex-m7", 3, k.ToFloat(np.full(3, 1e-3, np.float32), high=np.ones(3, np.float32))),
    ("cortex-m33", 4, k.ArgMax((4,))),
]


@pytest.mark.parametrize(("core", "n_out", "kind"), HEADS, ids=[head[0] for head in HEADS])
def test_a_head_answers_by_the_law(core: str, n_out: int, kind: k.Answer, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).permuted(np.tile(EDGE_ROWS, (7, 1)), axis=1).T
    library = library_of(exercised(n_out, kind), rows, target=core)
    assert len(np.unique(library.vectors()["expected"], axis=0)) > 1
    agrees(library, tmp_path)


@pytest.mark.parametrize(("core", "board"), [("cortex-m4", "mps2-an386"), ("cortex-m0", "microbit")])
def test_floats_are_assembly_where_a_core_has_a_unit_for_them(core: str, board: str, tmp_path: Path) -> None:
    model = dense_policy((5, 13, 9, 3), activation=["Relu", "Tanh"])
    compiled = compile_model(model, tmp_path, precision="float32", target=core)
    assert any(path.endswith(".S") for path in compiled.library.files) == target_named(core).float_unit
    project = create(compiled.library, tmp_path / "project", "baremetal", {"board": board})
    build(project)
    assert qemu.run(project).parity == "PASS"


# ---- settings of the knobs ----


@pytest.mark.parametrize("core", CORES)
def test_settings_compile_and_branch_only_back(core: str) -> None:
    """A branch that goes on past code could count instructions by what an observation is."""
    target = target_named(core)
    layer = small(adversarial(6, -7, -100, 90, n_in=13, n_out=7, table=False))
    head = head_of(k.ToFloat(np.ones(5, np.float32)), np.arange(5), 13)
    knobs = knobs_of(layer, target.kernels)
    assert 1 < len(list(settings(knobs))) <= 60
    for choices in list(settings(knobs))[::3]:
        placed = place(layer, target.kernels, choices)
        assert placed.layout.n_out < 7 + choices["rows"]
        assert_branches_go_back(lower.assembly(placed.module(target.kernels, "f"), target.tvm(placed.llvm)))
    placed = place(head, target.kernels, choices)
    lower.assembly(placed.module(target.kernels, "f"), target.tvm(placed.llvm))


def assert_branches_go_back(listing: str) -> None:
    """A loop too long for a conditional branch jumps over an unconditional one."""
    body = listing[listing.index("\nf:") : listing.index(".Lfunc_end0")]
    code = [line.strip() for line in body.splitlines() if re.match(r"\.LBB|\s+[a-z]", line)]
    seen: set[str] = set()
    for line, following in itertools.pairwise(code):
        if label := re.match(r"(\.LBB\w+):", line):
            seen.add(label[1])
        elif branch := re.match(r"(?:b\w*(?:\.w)?|cbn?z|j)\s+(?:\w+, )*(\.LBB\w+)", line):
            over = re.match(r"(?:b|bl|j)\s+(\.LBB\w+)", following)
            assert branch[1] in seen or (over and over[1] in seen), line
