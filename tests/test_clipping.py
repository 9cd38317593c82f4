# SPDX-License-Identifier: Apache-2.0
"""Codes at a limit are counted as the device's arithmetic leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from merged_policies import Weights, difference, merged_policy, pre_activated
from policies import compile_model, dense_policy

from tinyrl_tvm.library import ModelLibrary


def clipped(library: ModelLibrary) -> list[dict]:
    return library.interface["clipped"]


def compiled(folder: Path, activation: str, stretch: float, precision: str = "int8") -> ModelLibrary:
    """Calibrated on some rows, its test vectors `stretch` times as large."""
    rows = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
    model = dense_policy((4, 16, 16, 2), activation=activation, seed=1)
    return compile_model(model, folder, precision=precision, calibration=rows, vectors=stretch * rows).library


def test_observations_far_outside_the_calibrated_range_end_at_the_limits(tmp_path: Path) -> None:
    inside, outside = (compiled(tmp_path, "Relu", stretch) for stretch in (1.0, 1000.0))
    observations = [clipped(library)[0] for library in (inside, outside)]
    assert [entry["layer"] for entry in observations] == ["quantize 4", "quantize 4"]
    assert observations[0]["at_low"] + observations[0]["at_high"] == 0
    rows = outside.vectors()["observations"]
    assert observations[1]["n_codes"] == rows.size
    assert observations[1]["at_low"] + observations[1]["at_high"] > 0.9 * rows.size


@pytest.mark.parametrize(
    ("activation", "level"),
    [("Relu", (True, False)), ("Tanh", (True, True)), ("Relu6", (True, True)), ("LeakyRelu", (False, False))],
)
def test_a_limit_where_the_function_is_level_is_told_from_a_loss(
    activation: str, level: tuple[bool, bool], tmp_path: Path
) -> None:
    hidden = clipped(compiled(tmp_path, activation, 1.0))[1:]
    assert [entry["layer"] for entry in hidden[:2]] == ["dense 4 -> 16", "dense 16 -> 16"]
    assert [(entry["level_low"], entry["level_high"]) for entry in hidden[:2]] == [level, level]


@pytest.mark.parametrize("precision", ["int8", "int16"])
def test_every_layer_and_merge_is_told_with_its_own_function(precision: str, tmp_path: Path) -> None:
    """ReLU, of which the difference is made as well; tanh; the difference under a sigmoid; nothing; nothing."""

    def body(graph: Weights, x: str) -> str:
        h = difference(4, 16, 16)(graph, x)
        return graph.dense(graph.add("Mul", h, graph.dense(h, 16, 16)), 16, 2)

    made = compile_model(merged_policy(body, 4, 2), tmp_path, precision=precision)
    entries = [(entry["layer"], entry["level_low"], entry["level_high"]) for entry in clipped(made.library)]
    assert entries == [
        ("quantize 4", False, False),
        ("dense 4 -> 16", True, False),
        ("dense 16 -> 16", True, True),
        ("sum of 16", True, True),
        ("dense 16 -> 16", False, False),
        ("dense 16 -> 16", False, False),
        ("product of 16", False, False),
    ]


def test_a_map_has_no_codes_that_it_could_cut(tmp_path: Path) -> None:
    """ReLU and tanh, of what is added as it is."""
    made = compile_model(merged_policy(pre_activated(4, 16, 2), 4, 2), tmp_path)
    entries = [(entry["layer"], entry["level_low"], entry["level_high"]) for entry in clipped(made.library)[1:]]
    assert entries == [
        ("dense 4 -> 16", False, False),
        ("dense 16 -> 16", False, False),
        ("sum of 16", False, False),
        ("dense 16 -> 16", False, False),
        ("sum of 16", False, False),
    ]


def test_a_relu_is_at_its_zero_as_often_as_its_layer_is_negative(tmp_path: Path) -> None:
    first = clipped(compiled(tmp_path, "Relu", 1.0))[1]
    assert 0.2 * first["n_codes"] < first["at_low"] < 0.8 * first["n_codes"]


def test_a_float32_policy_has_no_codes_to_clip(tmp_path: Path) -> None:
    assert clipped(compiled(tmp_path, "Relu", 1.0, precision="float32")) == []
