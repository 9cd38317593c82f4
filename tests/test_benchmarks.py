# SPDX-License-Identifier: Apache-2.0
"""The measuring sticks: a trace agrees with the counter, an estimate reacts to what it should, a table finds its place."""

from __future__ import annotations

from pathlib import Path

import click
import cmsis_nn
import cycles
import footprint
import llvm_options
import numpy as np
import per_tensor_int8
import pytest
import report
from click.testing import CliRunner
from firmware import HERE, built, compiled
from latency import main as latency
from latency import requantised
from random_policies import layers_of, write

from schedules import LlvmOptions
from tinyrl_tvm.device import qemu
from tinyrl_tvm.errors import TinyrlError

BOARD = "mps3-an547"


def test_the_trace_is_as_long_as_the_counter_says(tmp_path: Path) -> None:
    made = compiled("P1", "int8", "cortex-m55")
    counted = qemu.run(built(made.library, tmp_path / "whole", BOARD)).instructions_per_inference
    assert counted is not None
    stream = cycles.executed(built(made.library, tmp_path / "once", BOARD, main="once.c"))
    # the counter has taken off the two instructions of the empty policy, and is good to a tick in a thousand calls
    assert abs(len(stream) - 2 - counted) < 0.5
    estimated = cycles.estimate(stream)
    bound = sum(cycles.bound(kernel) for kernel in made.kernels)
    assert bound == (4 * 64 + 64 * 64 + 64 * 2) / 8
    assert bound < estimated < 2 * len(stream)


def test_a_table_adds_a_look_up_an_output_to_the_bound() -> None:
    made = compiled("P2", "int8", "cortex-m55")
    assert sum(cycles.bound(kernel) for kernel in made.kernels) == (3 * 64 + 64 * 64 + 64) / 8 + 128


def test_an_estimate_waits_for_what_an_instruction_needs() -> None:
    independent = [f"ldr r{n % 4}, [r6]" for n in range(100)]
    chained = ["ldr r0, [r0]"] * 100
    assert cycles.estimate(chained) > 1.5 * cycles.estimate(independent)


def test_a_straight_line_has_no_ends_of_loops_and_no_calls() -> None:
    stream = ["dls lr, r8", "vadd.i32 q0, q0, q1", "le lr, 0x10 <f+0x4>", "bl 0x40 <g>", "cbz r0, 0x44 <g+0x4>"]
    assert list(cycles.straightened(stream)) == ["dls lr, r8", "vadd.i32 q0, q0, q1", "b .Lthere", "cbz r0, .Lthere"]
    assert cycles.estimate(stream) > 0  # the model lacks `dls`


def test_what_is_no_instruction_is_refused() -> None:
    with pytest.raises(TinyrlError, match="llvm-mca refuses the trace"):
        cycles.estimate(["frobnicate r0"])


def test_the_table_says_how_each_layer_requantises() -> None:
    class DenseCodes:
        def __init__(self, multiplier: np.ndarray | None) -> None:
            self.multiplier = multiplier

    kernels = [DenseCodes(None), DenseCodes(np.ones(1, np.int32)), DenseCodes(np.ones(64, np.int32)), object()]
    assert requantised(kernels) == "shift, one, per output"


def test_a_table_replaces_what_stood_between_its_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n<!-- y -->\n<!-- /y -->\n")
    report.write_readme("x", report.table("name | n", [("one", 1)], text_columns=1), readme)
    assert readme.read_text() == (
        "a\n<!-- x -->\n| name | n |\n|---|---:|\n| one | 1 |\n<!-- /x -->\nb\n<!-- y -->\n<!-- /y -->\n"
    )
    with pytest.raises(click.ClickException, match="no one pair of '<!-- z -->' marks"):
        report.write_readme("z", "", readme)


def test_a_build_outside_its_prediction_is_told_and_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    (build, *_) = footprint.builds(1, seed=3)
    assert build == footprint.builds(1, seed=3)[0] != footprint.builds(1, seed=4)[0]
    monkeypatch.setattr(footprint, "builds", lambda *_: [build])
    held = CliRunner().invoke(footprint.main, [], catch_exceptions=False)
    assert held.exit_code == 0
    assert held.output.startswith(f"{build.precision:8}{build.target:11}  1 builds; flash ")
    measured = build.measured()
    monkeypatch.setattr(footprint.Build, "measured", lambda _: measured.with_painted(measured.stack.n_bytes + 1))
    broken = CliRunner().invoke(footprint.main, [], catch_exceptions=False)
    assert broken.exit_code == 1
    assert "deep when the policy ran, and its calls bound it to" in broken.output


def test_a_random_policy_is_the_same_twice_and_reads_back(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    path = write(tmp_path, (5, 7, 3), "Tanh", seed=1)
    assert path.read_bytes() == write(tmp_path / "again", (5, 7, 3), "Tanh", seed=1).read_bytes()
    assert path.read_bytes() != write(tmp_path, (5, 7, 3), "Tanh", seed=2).read_bytes()
    assert [(layer.weight.shape, layer.activation) for layer in layers_of(path)] == [((7, 5), "Tanh"), ((3, 7), "")]


@pytest.mark.parametrize(("name", "largest_error"), [("P1", 0.057), ("P2", 0.035), ("P3", 0.029)])
def test_the_rival_s_arithmetic_is_as_good_as_per_tensor_codes_are(name: str, largest_error: float) -> None:
    """A rival is not made to look worse: these are the errors of a min-max per-tensor quantisation of these policies."""
    with np.load(HERE / "policies" / f"{name}.npz", allow_pickle=False) as arrays:
        policy = per_tensor_int8.quantized(layers_of(HERE / "policies" / f"{name}.onnx"), arrays["calibration"])
        errors = np.abs(policy.answers(arrays["observations"]) - arrays["expected"])
    assert errors.max() <= largest_error


def test_a_rival_that_is_not_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMSIS_NN_PATH", raising=False)
    with pytest.raises(click.ClickException, match="CMSIS_NN_PATH is None; set it to a checkout"):
        cmsis_nn.include_folder()
    with pytest.raises(click.UsageError, match=r"no library 'x[.]a' in --library"):
        cmsis_nn.rival_of("mps3-an547=x.a")
    (tmp_path / "empty.a").write_bytes(b"!<arch>\n")
    with pytest.raises(click.UsageError, match="does not say which compiler built it"):
        cmsis_nn.rival_of(f"mps3-an547={tmp_path / 'empty.a'}")
    (tmp_path / "built.a").write_bytes(b"!<arch>\n..GCC: (15:12.2.rel1-1) 12.2.1 20221205\0..")
    assert cmsis_nn.rival_of(f"mps3-an547={tmp_path / 'built.a'}").compiler == "GCC (15:12.2.rel1-1) 12.2.1"


def test_every_option_that_a_kernel_asks_for_is_left_out_alone_then_all_then_the_choice() -> None:
    asked = [LlvmOptions(("-lob",), ("-a", "-b")), LlvmOptions((), ("-b",)), LlvmOptions()]
    told = {variant.name: [variant.told(options) for options in asked] for variant in llvm_options.variants(asked)}
    assert told == {
        "`-a`": [LlvmOptions(("-lob",), ("-b",)), LlvmOptions((), ("-b",)), LlvmOptions()],
        "`-b`": [LlvmOptions(("-lob",), ("-a",)), LlvmOptions(), LlvmOptions()],
        "`-lob`": [LlvmOptions((), ("-a", "-b")), LlvmOptions((), ("-b",)), LlvmOptions()],
        "all of these": [LlvmOptions()] * 3,
        "the choice of flags": [LlvmOptions(("-lob",), ("-a", "-b")), *[LlvmOptions((), ("-a", "-b"))] * 2],
    }
    assert [llvm_options.WHOLE.told(options) for options in asked] == asked


def test_a_farm_is_named_whole() -> None:
    asked = CliRunner().invoke(latency, ["--rpc-tracker", "127.0.0.1:9190"])
    assert asked.exit_code == 2 and "a farm takes both: --rpc-tracker HOST:PORT and --rpc-key KEY" in asked.output
