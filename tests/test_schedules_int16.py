# SPDX-License-Identifier: Apache-2.0
"""Kernels of int16 codes answer by the law in `fixedpoint.py`: laid out for Cortex-M55, in dot products of eight, and for
Cortex-M4, of two.

    QuantizeInt16 -> DenseInt16 -> HeadOfInt16(identity -> ToFloat)    shows every code of a layer as a float

Accumulators lie at ties of the one rounding, as those of `test_schedules.py` do at ties of int8's two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_schedules import LARGEST, agrees_everywhere, answer, law, library_of
from test_schedules_scalar import agrees

from relay_passes import fixedpoint
from schedules import Choices, Kernel, knobs_of, place
from schedules import kernels as k
from schedules.knobs import settings
from schedules.scalar_arithmetic import largest_accumulator
from tinyrl_tvm.emit import lower
from tinyrl_tvm.targets import target_named

CODE = 32767
# Halves, whose products tie; the ends; a channel far smaller than its layer's largest.
MULTIPLIERS = (2**14, 2**14 + 1, 2**15 - 1, 3 << 13, 21_846, 257, 1, 0)


def codes_of(n: int) -> k.QuantizeInt16:
    return k.QuantizeInt16(np.ones(n, np.float32), None, -CODE - 1, CODE, "int16")


def shown(n: int) -> k.HeadOfInt16:
    return k.HeadOfInt16(np.eye(n, dtype=np.int8), np.zeros(n, np.int32), k.ToFloat(np.ones(n, np.float32)))


def walk(n_in: int, seed: int = 0) -> np.ndarray:
    """64 observations that are codes already: the first walks from -32 to 31, the others are random, or at their ends."""
    rows = np.random.default_rng(seed).integers(-CODE - 1, CODE + 1, (64, n_in))
    rows[:2] = [[-CODE - 1], [CODE]]
    rows[2:, 0] = np.arange(-32, 30)
    return rows.astype(np.float32)


def within_int32(bias: np.ndarray, weight: np.ndarray) -> np.ndarray:
    limit = LARGEST - (CODE + 1) * np.abs(weight.astype(np.int64)).sum(1)
    assert limit.min() > 0
    return np.clip(bias, -limit, limit).astype(np.int32)


def dots(n_out: int, n_in: int, rng: np.random.Generator) -> np.ndarray:
    """A third of the rows are dot products like any other; the rest walks past the ties of the biases."""
    weight = np.zeros((n_out, n_in), np.int8)
    weight[:, 0] = rng.integers(-2, 3, n_out)
    weight[::3] = rng.integers(-127, 128, (len(weight[::3]), n_in))
    return weight


def entries(steep: bool) -> np.ndarray:
    """Between neighbours of the steep ones lie more than 15 bits."""
    if not steep:
        return np.rint(CODE * np.tanh(np.arange(-128, 129) / 40)).astype(np.int16)
    table = np.random.default_rng(257).integers(-CODE - 1, CODE + 1, 257)
    table[:3], table[-3:] = [-CODE - 1, CODE, -CODE - 1], [CODE, -CODE - 1, CODE]
    return table.astype(np.int16)


def adversarial(
    shift: int, low: int, *, n_in: int, n_out: int, multiplied: bool = True, table: np.ndarray | None = None
) -> k.DenseInt16:
    rng = np.random.default_rng([shift, n_in, n_out])
    weight = dots(n_out, n_in, rng)
    multiplier = np.resize(np.array(MULTIPLIERS, np.int64), n_out) if multiplied else np.ones(n_out, np.int64)
    most = min(LARGEST * 2**15 // 2**shift, CODE + 200)
    code = rng.integers(-most - 1, most + 1, n_out)
    bias = np.rint((code * 2.0**shift + 2.0**shift / 2) / np.maximum(multiplier, 1)) + rng.integers(-1, 2, n_out)
    if shift < 15:
        bias = np.clip(bias, -(2**14) << shift, 2**14 << shift)
    bias = within_int32(np.clip(bias, -(2.0**31), 2.0**31), weight)
    return k.DenseInt16(weight, bias, multiplier.astype(np.int32) if multiplied else None, shift, 0, low, CODE, table)


# shift, low, n_in, n_out: past a product's high word, in it, and not as far
MULTIPLIED = [
    (15, -CODE - 1, 1, 31),
    (16, 0, 3, 5),
    (19, -CODE - 1, 7, 61),
    (22, -CODE - 1, 8, 64),
    (25, 0, 9, 33),
    (29, -CODE - 1, 17, 31),
    (31, -CODE - 1, 32, 40),
    (32, -CODE - 1, 33, 31),
    (33, 0, 100, 2),
    (39, -CODE - 1, 8, 31),
    (46, -CODE - 1, 5, 40),
    (24, -CODE - 1, 300, 1),
    (24, -CODE - 1, 257, 21),
    (14, -CODE - 1, 9, 40),
    (9, 0, 33, 17),
]


@pytest.mark.parametrize(("shift", "low", "n_in", "n_out"), MULTIPLIED)
def test_a_layer_rounds_once_by_the_law(shift: int, low: int, n_in: int, n_out: int, tmp_path: Path) -> None:
    layer = adversarial(shift, low, n_in=n_in, n_out=n_out)
    if shift < 15:  # the law refuses codes of more than 30 bits
        layer = _small(layer)
    agrees_everywhere(library_of([codes_of(n_in), layer, shown(n_out)], walk(n_in)), tmp_path)


def _small(layer: k.DenseInt16) -> k.DenseInt16:
    assert layer.multiplier is not None
    weight = layer.weight // 64
    limit = (2**29 << layer.shift) // 2**15 - (CODE + 1) * np.abs(weight.astype(np.int64)).sum(1)
    multiplier = np.where(limit > 0, layer.multiplier, 1)
    bias = np.clip(layer.bias, -np.maximum(limit, 2**20), np.maximum(limit, 2**20))
    return k.DenseInt16(
        weight, bias.astype(np.int32), multiplier.astype(np.int32), layer.shift, 0, layer.low, layer.high, None
    )


@pytest.mark.parametrize(
    ("shift", "low", "n_in", "n_out"),
    [(0, -CODE - 1, 8, 31), (1, 0, 17, 5), (8, 0, 64, 64), (15, -CODE - 1, 3, 33), (12, 0, 7, 2), (9, 0, 64, 1)],
)
def test_a_layer_shifts_by_the_law(shift: int, low: int, n_in: int, n_out: int, tmp_path: Path) -> None:
    layer = adversarial(shift, low, n_in=n_in, n_out=n_out, multiplied=False)
    agrees_everywhere(library_of([codes_of(n_in), layer, shown(n_out)], walk(n_in)), tmp_path)


def test_the_cases_above_tell_the_roundings_apart() -> None:
    """Else they would prove nothing: ties away from zero or to even, and no rounding, each give another code somewhere."""
    differ = {"away": 0, "even": 0, "down": 0}
    for shift, low, n_in, n_out in MULTIPLIED:
        layer = adversarial(shift, low, n_in=n_in, n_out=n_out)
        if shift < 15:
            continue
        x = law(codes_of(n_in), walk(n_in))
        assert layer.multiplier is not None
        product = fixedpoint.dense_int8(x, layer.weight, layer.bias).astype(np.int64) * layer.multiplier
        others = {
            "away": fixedpoint.shift_right(product, shift, ties="away"),
            "even": np.rint(product / 2.0**shift),
            "down": product >> shift,
        }
        for name, value in others.items():
            differ[name] += int((np.clip(value, low, CODE) != law(layer, x)).sum())
    assert min(differ.values()) > 20, differ


@pytest.mark.parametrize("steep", [False, True])
@pytest.mark.parametrize(("shift", "n_in", "n_out"), [(None, 9, 31), (17, 3, 24), (21, 64, 64), (34, 8, 5)])
def test_a_layer_interpolates_by_the_law(shift: int | None, n_in: int, n_out: int, steep: bool, tmp_path: Path) -> None:
    """Accumulators from end to end of the table, beyond it, at entries and between them."""
    layer = adversarial(
        shift or 4, -CODE - 1, n_in=n_in, n_out=n_out, multiplied=shift is not None, table=entries(steep)
    )
    agrees_everywhere(library_of([codes_of(n_in), layer, shown(n_out)], walk(n_in)), tmp_path)


@pytest.mark.parametrize("n_in", [1, 4, 6, 8])
def test_a_wide_layer_gives_int16_by_the_law(n_in: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(n_in)
    n_out, shift, limit = 16 * n_in - 3, 2 * n_in - 1, 16383
    rows = rng.integers(-limit, limit + 1, (64, n_in)).astype(np.float32)
    rows[:, 0] = np.arange(-32, 32)
    quantize = k.Quantize(np.ones(n_in, np.float32), None, -limit, limit, "int32")
    weight = rng.integers(-32767, 32768, (n_out, n_in)) // n_in
    weight[::2] = 0
    weight[::2, 0] = rng.integers(-2, 3, len(weight[::2]))
    bias = rng.integers(-CODE - 9, CODE + 9, n_out) * 2**shift + 2**shift // 2
    table = entries(False) if n_in == 6 else None
    layer = k.DenseInt16(
        weight.astype(np.int16), bias.astype(np.int32), None, shift, 0, 0 if n_in == 4 else -CODE - 1, CODE, table
    )
    agrees_everywhere(library_of([quantize, layer, shown(n_out)], rows), tmp_path)


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (3, 2), (7, 5), (8, 8), (9, 9), (17, 31), (64, 2), (100, 4)])
def test_a_head_of_any_length_answers_by_the_law(n_in: int, n_out: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(n_in)
    weight = dots(n_out, n_in, rng)
    bias = rng.integers(-40, 40, n_out)
    kinds = [k.ToFloat(rng.uniform(1e-5, 1e-3, n_out).astype(np.float32)), k.ArgMax((n_out,)), k.Positive()]
    for index, kind in enumerate(kinds):
        head = k.HeadOfInt16(weight, bias.astype(np.int32), kind)
        (tmp_path / str(index)).mkdir()
        library = library_of([codes_of(n_in), head], walk(n_in))
        expected = answer(kind, fixedpoint.dense_int8(walk(n_in).astype(np.int64), weight, head.bias))
        np.testing.assert_array_equal(library.vectors()["expected"], expected)
        agrees_everywhere(library, tmp_path / str(index))


# ---- whatever the choices, and in dot products of eight ----


def chosen(kernel: Kernel, family: str) -> Iterator[Choices]:
    """The settings that go together."""
    for choices in settings(knobs_of(kernel, family)):
        try:
            place(kernel, family, choices)
        except ValueError:
            continue
        yield choices


@pytest.mark.parametrize(
    ("target", "n_in", "count"), [("cortex-m55", 17, 24), ("cortex-m55", 40, 20), ("cortex-m4", 17, 32)]
)
def test_every_choice_answers_by_the_law(target: str, n_in: int, count: int, tmp_path: Path) -> None:
    """A chain of layers alike, each with other choices: a code that is wrong is wrong in all behind it."""
    rng = np.random.default_rng(n_in)
    layers: list[Kernel] = []
    for _ in range(count):
        weight = rng.integers(-127, 128, (n_in, n_in)).astype(np.int8)
        bias, multiplier = rng.integers(-(2**20), 2**20, n_in), rng.integers(2**14, 2**15, n_in)
        layers.append(
            k.DenseInt16(weight, bias.astype(np.int32), multiplier.astype(np.int32), 23, 0, -CODE - 1, CODE, None)
        )
    choices = list(chosen(layers[0], target_named(target).kernels))
    assert len(choices) == count
    kernels = [codes_of(n_in), *layers, shown(n_in)]
    library = library_of(kernels, walk(n_in), target, dict(enumerate(choices, 1)))
    assert len(np.unique(library.vectors()["expected"])) > 1000
    agrees(library, tmp_path)


@pytest.mark.parametrize("n_in", [1, 3, 7, 8, 9, 17, 64])
@pytest.mark.parametrize("n_out", [1, 2, 5, 31])
def test_the_machine_code_multiplies_eight_at_a_time(n_in: int, n_out: int) -> None:
    """On weights that are widened as they are loaded, and by no other multiplication of codes."""
    weight, bias = np.ones((n_out, n_in), np.int8), np.zeros(n_out, np.int32)
    multiplier = np.full(n_out, 2**14, np.int32)
    chunks = -(-n_in // 8)
    kernels: list[tuple[Kernel, int]] = [
        (k.DenseInt16(weight, bias, multiplier, 20, 0, 0, CODE, None), 8),
        (k.HeadOfInt16(weight, bias, k.ToFloat(np.ones(n_out, np.float32))), min(n_out, 4)),
    ]
    for kernel, rows in kernels:
        text = machine_code(kernel)
        products = len(re.findall(r"\tvmlava?\.s16\t", text))  # vmladava, in LLVM's short names
        assert rows * min(chunks, 4) <= products <= text.count("\tvldrb.s16\t"), kernel.summary
        assert not re.search(r"\t(smla\w*|smul\w*|mla|mul)\t", text), kernel.summary


def test_a_table_is_gathered_unless_it_is_steep() -> None:
    """Eight codes read it by two gathers; 16 bits hold no difference of more."""
    layers = [adversarial(20, -CODE - 1, n_in=9, n_out=31, table=entries(steep)) for steep in (False, True)]
    assert [len(re.findall(r"\tvldrh\.u16\t.*uxtw", machine_code(layer))) for layer in layers] == [2, 0]


def test_a_kernel_with_a_table_is_printed_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    layer = adversarial(20, -CODE - 1, n_in=9, n_out=31, table=entries(True))
    assert "interpolate" in place(layer, "portable").module("portable", "kernel").script()
    assert capfd.readouterr().err == ""


def machine_code(kernel: Kernel, target: str = "cortex-m55") -> str:
    core = target_named(target)
    placed = place(kernel, core.kernels)
    return lower.assembly(placed.module(core.kernels, "kernel"), core.tvm(placed.llvm))


# ---- on cores with the DSP extension, two at a time ----


@pytest.mark.parametrize(
    ("core", "shift", "low", "n_in", "n_out"),
    [
        ("cortex-m4", 15, -CODE - 1, 1, 31),
        ("cortex-m7", 22, -CODE - 1, 8, 64),
        ("cortex-m33", 25, 0, 9, 33),
        ("cortex-m4", 31, -CODE - 1, 32, 5),
        ("cortex-m4", 33, -CODE - 1, 7, 31),
        ("cortex-m4", 24, 0, 261, 1),
        ("cortex-m33", 14, -CODE - 1, 3, 2),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_a_layer_rounds_once_by_the_law_in_pairs(
    core: str, shift: int, low: int, n_in: int, n_out: int, large: bool, tmp_path: Path
) -> None:
    """Below 2^30 an accumulator is multiplied in fewer instructions."""
    layer = adversarial(shift, low, n_in=n_in, n_out=n_out)
    layer = _small(layer) if shift < 15 else layer
    if not large:
        sums = (CODE + 1) * np.abs(layer.weight.astype(np.int64)).sum(1)
        layer = replace(layer, weight=layer.weight // (1 + int(sums.max() >> 29)))
        limit = 2**30 - 1 - (CODE + 1) * int(np.abs(layer.weight.astype(np.int64)).sum(1).max())
        layer = replace(layer, bias=np.clip(layer.bias, -limit, limit))
        assert largest_accumulator(layer) < 2**30
    agrees(library_of([codes_of(n_in), layer, shown(n_out)], walk(n_in), target=core), tmp_path)


@pytest.mark.parametrize(("shift", "n_in", "n_out"), [(None, 9, 31), (17, 3, 24), (34, 8, 5)])
def test_a_layer_interpolates_by_the_law_in_pairs(shift: int | None, n_in: int, n_out: int, tmp_path: Path) -> None:
    multiplied = shift is not None
    layer = adversarial(shift or 4, -CODE - 1, n_in=n_in, n_out=n_out, multiplied=multiplied, table=entries(True))
    agrees(library_of([codes_of(n_in), layer, shown(n_out)], walk(n_in), target="cortex-m4"), tmp_path)


def test_heads_come_of_pairs_by_the_law(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weight = dots(21, 17, rng)
    bias = within_int32(rng.integers(-(2**24), 2**24, 21), weight)
    decision = k.HeadOfInt16(weight, bias // 2**12, k.ArgMax((20, 1)))
    agrees(library_of([codes_of(17), decision], walk(17), target="cortex-m4"), tmp_path)


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (8, 5), (9, 31)])
def test_the_machine_code_multiplies_pairs(n_in: int, n_out: int) -> None:
    layer = k.DenseInt16(np.ones((n_out, n_in), np.int8), np.zeros(n_out, np.int32), None, 9, 0, 0, CODE, None)
    head = k.HeadOfInt16(layer.weight, layer.bias, k.ToFloat(np.ones(n_out, np.float32)))
    for kernel in (layer, head):
        text = machine_code(kernel, "cortex-m4")
        assert text.count("smlad") >= 2 * min(n_out, 4) and "pkhbt" in text and "pkhtb" in text
        assert not re.search(r"\t(smlabb|smulbb|mla|mul)\t", text)
