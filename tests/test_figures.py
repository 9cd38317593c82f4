# SPDX-License-Identifier: Apache-2.0
"""What the reference policies cost on mps3-an547, at most, whole inference. QEMU's counts repeat, so this is no timing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyrl_tvm import project
from tinyrl_tvm.device import qemu
from tinyrl_tvm.pipeline import compile_policy

POLICIES = Path(__file__).parent.parent / "benchmarks" / "policies"

# policy, precision -> instructions, flash, static RAM and stack bytes, largest error against the float policy
LIMITS = {
    ("P1", "int8"): (950, 7_100, 140, 200, 0.056),
    ("P2", "int8"): (950, 7_100, 140, 200, 0.034),
    ("P3", "int8"): (11_700, 78_500, 540, 200, 0.028),
    ("P1", "float32"): (3_000, None, None, 250, 1e-5),
    ("P2", "float32"): (4_800, None, None, 250, 1e-5),
    ("P3", "float32"): (48_000, None, None, 250, 1e-5),
}


@pytest.mark.parametrize(("name", "precision"), LIMITS)
def test_a_reference_policy_costs_no_more_than_it_may(name: str, precision: str, tmp_path: Path) -> None:
    library = compile_policy(
        POLICIES / f"{name}.onnx", target="cortex-m55", precision=precision, calibration=POLICIES / f"{name}.npz"
    ).library
    made = project.create(library, tmp_path / name, "baremetal", {"board": "mps3-an547"})
    project.build(made)
    said = qemu.run(made).to_json()
    assert said["parity"] == "PASS"
    keys = ("instructions_per_inference", "flash_bytes", "ram_bytes", "stack_bytes", "max_abs_error")
    over = {
        key: said[key] for key, limit in zip(keys, LIMITS[name, precision], strict=True) if limit and said[key] > limit
    }
    assert not over
