# SPDX-License-Identifier: Apache-2.0
"""An environment on the host, its policy on the emulated board."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from test_cli import answered, done, tinyrl
from test_project import cartpole

from tinyrl_tvm.project import build, create

POLICIES = Path(__file__).parent.parent / "benchmarks" / "policies"
LOOP = ("--closed-loop", "--env", "CartPole-v1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    policy = POLICIES / "cartpole"
    options = ("--target", "cortex-m55", "--calibration", policy.with_suffix(".npz"))
    done("compile", policy.with_suffix(".onnx"), *options, "-o", folder / "cartpole.tar")
    done("micro", "create", folder / "project", folder / "cartpole.tar", "baremetal")
    return folder / "project"


def run(project: Path, *options: str | Path) -> tuple[str | Path, ...]:
    return ("run", "--device", "micro", project, *options)


def test_the_trained_policy_reaches_the_float_policys_return(trained: Path, tmp_path: Path) -> None:
    log = tmp_path / "steps.csv"
    said = answered(
        *run(trained, *LOOP, "--episodes", "20", "--control-hz", "100", "-o", log),
        *("--policy", POLICIES / "cartpole.onnx"),
    )
    assert said["mean_return"] >= said["float_mean_return"] >= 475  # what gymnasium takes for solved
    assert (said["deadline_misses"], said["nonzero_statuses"], said["resets"]) == (0, 0, 0)
    assert 800 < said["instructions_percentiles"]["50"] <= said["instructions_percentiles"]["100"] < 1100
    with log.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == said["steps"] == sum(said["returns"])
    assert set(rows[0]) >= {"episode", "step", "reward", "instructions", "status", "action_0", "observation_3"}


def test_noise_is_the_same_for_both_and_a_run_repeats(tmp_path: Path) -> None:
    build(create(cartpole(), tmp_path / "project", "baremetal"))
    options = run(tmp_path / "project", *LOOP, "--episodes", "2")
    plain, noisy = answered(*options), answered(*options, "--noise", "0.5")
    assert noisy["returns"] == answered(*options, "--noise", "0.5")["returns"] != plain["returns"]


def test_a_deadline_too_short_is_missed_at_every_step(trained: Path) -> None:
    said = answered(*run(trained, *LOOP, "--episodes", "1", "--control-hz", "1e6"))
    assert said["deadline_misses"] == said["steps"]
    assert said["float_returns"] is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--closed-loop", "--env", "Nowhere-v1"), "no environment 'Nowhere-v1': "),
        (("--closed-loop", "--env", "Pendulum-v1"), "'cartpole' takes 4 numbers and answers 1 of int32"),
        (("--closed-loop",), "--closed-loop takes a project's folder and --env"),
        (("--env", "CartPole-v1"), "--env goes with --closed-loop"),
        ((*LOOP, "--print-time"), "--print-time does not go with --closed-loop"),
        ((*LOOP, "--policy", "nowhere.onnx"), "no policy at 'nowhere.onnx'"),
        ((*LOOP, "--policy", POLICIES / "P1.onnx"), "is not the policy that"),
    ],
)
def test_what_does_not_fit_is_one_sentence(options, sentence: str, tmp_path: Path) -> None:
    build(create(cartpole(), tmp_path / "project", "baremetal"))
    result = tinyrl(*run(tmp_path / "project", *options))
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_gymnasium_comes_with_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(create(cartpole(), tmp_path / "project", "baremetal"))
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    result = tinyrl(*run(tmp_path / "project", *LOOP))
    assert (result.exit_code, "pip install 'tinyrl-tvm[rl]'" in result.stderr) == (1, True)
