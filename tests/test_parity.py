# SPDX-License-Identifier: Apache-2.0
"""Whole policies, from ONNX to their answers: on QEMU as MVE assembly, and here as C, both equal the oracle.

    policies.py -> compile -> { bare metal on QEMU, C under sanitizers, C at its boldest } == oracle      bit for bit

Layer sizes are no multiples of anything; observations reach from denormals to the ends of float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policies import (
    SANITIZERS,
    arg_max,
    clipped,
    compile_model,
    dense_policy,
    greater,
    multi_discrete,
    observations_for,
    probabilities,
    probabilities_of,
    reference_answers,
    replay,
    squashed,
    unscaled,
)

from tinyrl_tvm.device import host, qemu
from tinyrl_tvm.device.measurement import Measurement
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import build, create
from tinyrl_tvm.targets import BOARDS

# Sizes first, then what else dense_policy takes. Together: every kind of layer and head, over odd sizes.
POLICIES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "ones": ((1, 1, 1, 1), {}),
    "one layer of few": ((5, 3), {}),
    "one layer of many": ((33, 17), {"head": arg_max}),
    "one action": ((3, 16, 1), {"activation": "Tanh", "head": unscaled(-2, 2)}),
    "odd widths, relu": ((9, 17, 33, 15, 5), {}),
    "odd widths, tanh": ((8, 17, 33, 15, 5), {"activation": "Tanh"}),
    "a hundred": ((100, 100, 100, 20), {"activation": "Tanh", "head": arg_max}),
    "wide layers": ((3, 256, 256, 7), {}),
    "past a window": ((17, 300, 100, 8), {"activation": ["Relu", "Tanh"]}),
    "many inputs": ((520, 33, 12), {"head": clipped(-1, 1)}),
    "large": ((15, 520, 300, 9), {}),
    "hundreds of actions": ((7, 9, 300), {"head": squashed()}),
    "many choices": ((8, 32, 9), {"head": multi_discrete(3, 2, 4)}),
    "no choice": ((8, 32, 4), {"head": multi_discrete(1, 1, 1, 1)}),
    "switches": ((8, 31, 5), {"head": greater}),
    "probabilities": ((8, 17, 5), {"head": probabilities, "gain": 2.0}),
    "probabilities of several": ((8, 17, 9), {"head": probabilities_of(3, 2, 1, 3), "activation": "Tanh"}),
    "probabilities of many": ((3, 255), {"head": probabilities}),
    "squashed": ((11, 32, 6), {"head": squashed()}),
    "unscaled apart": ((8, 32, 4), {"head": unscaled([-2, -1, -3, 0], [2, 1, 4, 10])}),
    "squashed by another": ((7, 32, 3), {"activation": "Elu", "head": squashed("Softplus")}),
    "several inputs": ((13, 32, 4), {"inputs": {"joints": (3,), "map": (2, 3), "goal": (4,)}, "head": arg_max}),
    "several inputs, one layer": ((5, 2), {"inputs": {"a": (1,), "b": (4,)}}),
    "normalised few": ((5, 17, 3), {"normalised": (np.linspace(-1, 1, 5), 0.4, 2.0)}),
    "normalised many": ((18, 17, 3), {"normalised": (0.3, np.linspace(0.1, 1, 18), 2.0), "activation": "Tanh"}),
    "normalised, joined": ((5, 9, 2), {"inputs": {"a": (1,), "b": (4,)}, "normalised": (0.1, 0.5, 1.0)}),
    "with a critic": ((6, 15, 3), {"critic": True, "batch": "batch", "head": arg_max}),
}
FLOATS = [
    "ones",
    "one layer of many",
    "one action",
    "odd widths, relu",
    "odd widths, tanh",
    "a hundred",
    "past a window",
    "many inputs",
    "hundreds of actions",
    "many choices",
    "no choice",
    "switches",
    "probabilities",
    "probabilities of several",
    "probabilities of many",
    "squashed",
    "unscaled apart",
    "several inputs",
    "several inputs, one layer",
    "normalised few",
    "normalised many",
    "normalised, joined",
]
EXTREMES = [0.0, -0.0, 3e38, -3e38, 1e-45, -1e-39, 1e-30, 1e6, -1e6, 1.0]


def library_for(name: str, folder: Path, precision: str) -> ModelLibrary:
    sizes, options = POLICIES[name]
    model = dense_policy(sizes, **options, seed=len(name))
    rows = observations_for(model, 256)
    vectors = rows[:64].copy()
    if precision != "float32":  # float32 sums of 3e38 are infinite, and no answer
        rng = np.random.default_rng(1)
        vectors[:10] = np.array(EXTREMES, np.float32)[:, np.newaxis]
        vectors[10:20] = rng.choice(np.array(EXTREMES, np.float32), (10, sizes[0]))
    return compile_model(model, folder, precision=precision, calibration=rows, vectors=vectors).library


def on_qemu(library: ModelLibrary, folder: Path) -> Measurement:
    project = create(library, folder / "project", "baremetal")
    build(project)
    return qemu.run(project)


@pytest.mark.parametrize("precision", ["int8", "int16"])
@pytest.mark.parametrize("name", POLICIES)
def test_integers_answer_by_the_oracle_bit_for_bit(name: str, precision: str, tmp_path: Path) -> None:
    library = library_for(name, tmp_path, precision)
    measured = on_qemu(library, tmp_path)
    expected = library.vectors()["expected"]
    np.testing.assert_array_equal(measured.actions, expected)
    assert measured.parity == "PASS"
    assert measured.vectors is not None and measured.vectors.right == 64
    assert "PARITY PASS" in replay(library, tmp_path, "gcc", "-O1", *SANITIZERS)


@pytest.mark.parametrize("name", ["odd widths, relu", "odd widths, tanh"])
@pytest.mark.parametrize("board", BOARDS)
def test_int16_answers_by_the_oracle_on_every_board(board: str, name: str, tmp_path: Path) -> None:
    sizes, options = POLICIES[name]
    library = compile_model(
        dense_policy(sizes, **options), tmp_path, precision="int16", target=BOARDS[board].target
    ).library
    project = create(library, tmp_path / "project", "baremetal", {"board": board})
    build(project)
    assert qemu.run(project).parity == "PASS"
    for command in (("gcc", "-Ofast"), ("clang", "-Ofast", "-march=native")):
        assert "PARITY PASS" in replay(library, tmp_path, *command), command


@pytest.mark.parametrize("name", FLOATS)
def test_float32_answers_by_its_oracle_bit_for_bit(name: str, tmp_path: Path) -> None:
    library = library_for(name, tmp_path, "float32")
    measured = on_qemu(library, tmp_path)
    expected = library.vectors()["expected"]
    assert len(expected) == 64
    np.testing.assert_array_equal(measured.actions.view(np.int32), expected.view(np.int32))
    assert measured.parity == "PASS"
    # without a fused instruction, with one, in integers, and free to reorder what is not pinned down
    for command in (
        ("gcc", "-O1", *SANITIZERS),
        ("gcc", "-O2", "-march=native", "-ffp-contract=off"),
        ("gcc", "-Ofast"),
        ("gcc", "-Ofast", "-U__SSE2_MATH__"),
        ("clang", "-Ofast", "-march=native", "-ffp-contract=fast"),
    ):
        assert "PARITY PASS" in replay(library, tmp_path, *command), command


@pytest.mark.parametrize("precision", ["int8", "int16", "float32"])
@pytest.mark.parametrize("name", ["past a window", "unscaled apart", "many choices"])
def test_a_library_for_the_host_answers_as_one_for_the_cortex_m55(name: str, precision: str, tmp_path: Path) -> None:
    sizes, options = POLICIES[name]
    model = dense_policy(sizes, **options)
    libraries = [
        compile_model(model, tmp_path, precision=precision, target=target).library for target in ("host", "cortex-m55")
    ]
    measured = [host.run(library) for library in libraries]
    assert {one.parity for one in measured} == {"PASS"}
    np.testing.assert_array_equal(measured[0].actions.view(np.int32), measured[1].actions.view(np.int32))


def test_what_is_compiled_is_the_policy_of_the_file(tmp_path: Path) -> None:
    """Parity compares with our own evaluation; this with ONNX Runtime's, which shares nothing with it."""
    for name, (sizes, options) in POLICIES.items():
        model = dense_policy(sizes, **options)
        rows = observations_for(model, 64)
        vectors = compile_model(model, tmp_path, precision="int8", target="host", vectors=rows).library.vectors()
        exact = vectors["float_action"]
        reference = reference_answers(model, rows)
        if np.issubdtype(exact.dtype, np.integer):
            np.testing.assert_array_equal(exact, reference, err_msg=name)
        else:  # float32 sums of at most 520 products of order one
            np.testing.assert_allclose(exact, reference, rtol=1e-4, atol=1e-4, err_msg=name)
