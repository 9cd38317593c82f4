# SPDX-License-Identifier: Apache-2.0
"""C laid out for vectors answers by the same law as any other, and compilers find the vectors in it."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policies import SANITIZERS, compile_model, dense_policy, multi_discrete, replay, squashed
from test_schedules import REQUANTISATIONS, adversarial, codes_of, head_of, library_of, shown, walk

from schedules import kernels as k
from schedules import place
from schedules.knobs import settings
from schedules.simd import _lanes
from tinyrl_tvm.emit import lower
from tinyrl_tvm.library import ModelLibrary

# ---- the law ----


@pytest.mark.parametrize(("shift", "zero_point", "low", "high", "n_in", "n_out", "table"), REQUANTISATIONS)
def test_a_layer_of_codes_rounds_by_the_law(shift, zero_point, low, high, n_in, n_out, table, tmp_path: Path) -> None:
    layer = adversarial(shift, zero_point, low, high, n_in=n_in, n_out=n_out, table=table)
    library = library_of([codes_of(n_in), layer, shown(n_out)], walk(n_in), target="host")
    assert "PARITY PASS" in replay(library, tmp_path, ("gcc", "clang")[shift % 2], "-O3")


@functools.cache
def library_of_all(target: str = "host") -> ModelLibrary:
    """A wide layer, one of more inputs than the 16-bit copy holds, one whose negatives show, and an arg max."""
    rng = np.random.default_rng(2)
    weight = rng.integers(-5000, 5001, (520, 12)).astype(np.int16)
    kernels: list[k.Kernel] = [
        k.Quantize(rng.uniform(20, 90, 12).astype(np.float32), None, -16383, 16383, "int32"),
        k.DenseCodes(weight, rng.integers(-999, 999, 520).astype(np.int32), None, 12, 0, -128, 127, None),
        adversarial(9, 0, -128, 127, n_in=520, n_out=61, table=True),
        head_of(k.ArgMax((20, 13)), rng.integers(-99, 99, 33), 61),
    ]
    return library_of(kernels, walk(12), target=target)


COMMANDS = [
    ("gcc", "-O1", *SANITIZERS),
    ("clang", "-O1", *SANITIZERS),
    ("gcc", "-Ofast", "-march=native"),
    ("clang", "-Ofast", "-march=native"),
    ("gcc", "-Os", "-funsigned-char"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:3]))
def test_layers_answer_by_the_law_under_any_flags(command: tuple[str, ...], tmp_path: Path) -> None:
    assert "PARITY PASS" in replay(library_of_all(), tmp_path, *command)


# ---- whole policies, of sizes that are no multiples ----

SHAPES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "ones": ((1, 1, 1, 1), {}),
    "odd": ((9, 17, 33, 67, 5), {"activation": ["Relu", "Tanh", "Relu"]}),
    "a hundred": ((100, 100, 37), {"activation": "Tanh", "head": squashed()}),
    "many inputs": ((520, 33, 12), {}),
    "choices": ((3, 130, 9), {"head": multi_discrete(3, 2, 4)}),
}


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("name", SHAPES)
def test_policies_of_any_size_answer_as_they_must(name: str, precision: str, tmp_path: Path) -> None:
    sizes, options = SHAPES[name]
    library = compile_model(dense_policy(sizes, **options), tmp_path, precision=precision, target="host").library
    for compiler in ("gcc", "clang"):
        assert "PARITY PASS" in replay(library, tmp_path, compiler, "-O3", "-march=native")


def test_every_setting_of_the_knobs_lays_out_all_weights() -> None:
    """Lanes and steps change where a weight lies, never which weights there are."""
    rng = np.random.default_rng(0)
    layer = k.DenseFloat(rng.normal(size=(100, 30)).astype(np.float32), np.ones(100, np.float32), "relu")
    tried = 0
    for family in ("simd", "wasm"):
        rule = place(layer, family).rule
        for choices in settings(rule.knobs(layer)):
            placed = place(layer, family, choices)
            weight = placed.parameters[0].values
            assert np.array_equal(np.sort(weight[weight != 0]), np.sort(layer.weight.ravel()))
            assert "acc" in lower.c_source(placed.module(family, "f"))
            tried += 1
    assert tried == 12


@pytest.mark.parametrize("most", [16, 32, 64])
def test_lanes_pad_little(most: int) -> None:
    for n_out in range(1, 700):
        lanes = _lanes(n_out, most)
        padding = -n_out % lanes
        assert lanes % 4 == 0
        assert lanes <= most
        assert padding < 12 or padding <= n_out / 8


# ---- vectors ----


def kernels_compiled(library: ModelLibrary, folder: Path, *command: str) -> str:
    """The library's kernels as a compiler's assembly."""
    (source,) = (path for path in library.files if path.endswith("_lib1.c"))
    for path, data in library.files.items():
        if path.endswith((".h", "_lib1.c")):
            (folder / Path(path).name).write_bytes(data)
    done = subprocess.run(
        [*command, "-std=c99", "-ffreestanding", "-S", Path(source).name, "-o", "-"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


@functools.cache
def float_library(target: str) -> ModelLibrary:
    with tempfile.TemporaryDirectory() as folder:
        model = dense_policy((24, 100, 64, 4), activation="Tanh")
        return compile_model(model, Path(folder), precision="float32", target=target).library


X86_64 = ("clang", "--target=x86_64-linux-gnu", "-O3")
AARCH64 = ("clang", "--target=aarch64-linux-gnu", "-O3")
WASM = ("clang", "--target=wasm32", "-O3", "-msimd128")


@pytest.mark.parametrize(
    ("library", "command", "instructions"),
    [
        (library_of_all, X86_64, ["pmuludq", "pmaddwd"]),
        (float_library, (*X86_64, "-march=x86-64-v3"), [r"vfn?madd\w*ps"]),
        (library_of_all, AARCH64, ["(smlal2?|mla).*4s", "um(ul|la)l2?.*2d"]),
        (library_of_all, WASM, [r"i32x4\.dot_i16x8_s", r"i64x2\.mul"]),
    ],
)
def test_clang_finds_the_vectors(library, command: tuple[str, ...], instructions: list[str], tmp_path: Path) -> None:
    listing = kernels_compiled(library("wasm32" if command is WASM else "host"), tmp_path, *command)
    assert [one for one in instructions if not re.search(one, listing)] == []


def test_gcc_finds_the_vectors(tmp_path: Path) -> None:
    machine = subprocess.run(["gcc", "-dumpmachine"], capture_output=True, text=True, check=True).stdout
    family = "x86" if machine.startswith("x86_64") else "arm"
    instructions = {"x86": ["pmaddwd", "pmuludq"], "arm": ["(smlal2?|mla).*4s", "um(ul|la)l2?.*2d"]}[family]
    listing = kernels_compiled(library_of_all(), tmp_path, "gcc", "-O3")
    assert [one for one in instructions if not re.search(one, listing)] == []
