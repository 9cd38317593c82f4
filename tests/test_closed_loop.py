# SPDX-License-Identifier: Apache-2.0
"""An environment on the host, its policy on the emulated board."""

from __future__ import annotations

import csv
import functools
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from test_cli import answered, done, tinyrl
from test_project import cartpole, reacher

from tinyrl_tvm.device import closed_loop, connection
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


def test_an_action_is_held_for_the_steps_of_a_tick(trained: Path, tmp_path: Path) -> None:
    log, plot = tmp_path / "steps.csv", tmp_path / "plot.png"
    options = ("--episodes", "2", "--tick-ms", "5,20,50", "-o", log, "--plot", plot)
    said = answered(*run(trained, *LOOP, *options))
    assert [(loop["dt_ms"], loop["steps_per_action"]) for loop in said["sweep"]] == [(20, 1), (20, 1), (20, 3)]
    assert said["sweep"][0]["returns"] == said["sweep"][1]["returns"] == said["returns"]
    with log.open() as stream:
        held = [float(row["reward"]) for row in csv.DictReader(stream) if row["tick_ms"] == "50.0"]
    assert set(held[:-2]) <= {1.0, 2.0, 3.0}
    assert held.count(3.0) >= len(held) - 2  # but where an episode ended
    assert sum(held) == sum(said["sweep"][2]["returns"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    result = tinyrl(*run(trained, *LOOP, "--episodes", "1", "--tick-ms", "5", "--plot", tmp_path / "plot.svg"))
    assert "note: a tick of 5 ms is shorter than a step of CartPole-v1, 20 ms" in result.stderr
    assert "--policy FILE.onnx plays it" in result.stdout
    assert " steps in 1 episode\n" in result.stdout
    assert result.stdout.endswith(f"wrote '{tmp_path / 'plot.svg'}'\n")
    assert (tmp_path / "plot.svg").read_bytes().startswith(b"<?xml")


class Reach(gymnasium.Env):
    """Keys in another order than the policy's inputs, and one that it does not take."""

    observation_space = gymnasium.spaces.Dict(
        {
            "goal": gymnasium.spaces.Box(-1, 1, (2,)),
            "other": gymnasium.spaces.Box(-1, 1, (7,)),
            "arm/pose": gymnasium.spaces.Box(-1, 1, (3, 1)),
        }
    )
    action_space = gymnasium.spaces.Box(-9, 9, (2,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = {
            name: self.np_random.random(space.shape, np.float32) for name, space in self.observation_space.items()
        }
        return self.seen, {}

    def step(self, action):
        error = np.abs(action - (self.seen["goal"] - self.seen["arm/pose"][:2, 0])).max()
        return self.seen, float(error), True, False, {}


def test_a_dict_of_observations_is_the_policys_inputs_by_name(tmp_path: Path) -> None:
    if "Reach-v0" not in gymnasium.registry:
        gymnasium.register("Reach-v0", Reach, disable_env_checker=True)
    build(create(reacher(), tmp_path / "project", "baremetal"))
    said = answered(*run(tmp_path / "project", "--closed-loop", "--env", "Reach-v0", "--episodes", "3"))
    assert said["returns"] == [0.0, 0.0, 0.0]
    result = tinyrl(*run(tmp_path / "project", "--closed-loop", "--env", "Reach-v0", "--tick-ms", "20"))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "'Reach-v0' does not say how long its step is" in result.stderr


class Babbles:
    """A board that sends anything but frames."""

    name = "the board"

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> Babbles:
        return self

    def __exit__(self, *_: object) -> None: ...

    def send(self, data: bytes) -> None: ...

    def receive(self, timeout_s: float) -> bytes:
        return bytes(range(256))


def test_a_board_that_sends_garbage_is_one_sentence(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PipedFirmware", Babbles)
    monkeypatch.setattr(closed_loop, "connected", functools.partial(connection.connected, timeout_s=0.5))
    result = tinyrl(*run(trained, *LOOP))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "bytes and no frame of the protocol in 0.5 s; is it running this project's firmware?" in result.stderr


def test_no_matplotlib_comes_with_the_line_that_installs_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = tinyrl(*run(trained, *LOOP, "--plot", tmp_path / "plot.png"))
    assert (result.exit_code, "pip install 'tinyrl-tvm[report]'" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--closed-loop", "--env", "Nowhere-v1"), "no environment 'Nowhere-v1': "),
        (("--closed-loop", "--env", "Pendulum-v1"), "'cartpole' takes 4 numbers and answers 1 of int32"),
        (("--closed-loop",), "--closed-loop takes a project's folder and --env"),
        (("--env", "CartPole-v1"), "--env goes with --closed-loop"),
        ((*LOOP, "--print-time"), "--print-time does not go with --closed-loop"),
        (("--tick-ms", "20"), "--tick-ms goes with --closed-loop"),
        ((*LOOP, "--profile"), "--profile does not go with --closed-loop"),
        ((*LOOP, "-o", "steps.npz"), "-o writes a .csv with --closed-loop, not 'steps.npz'"),
        ((*LOOP, "--plot", "plot.gif"), "cannot draw 'plot.gif'; have: .png, .svg"),
        ((*LOOP, "--policy", "nowhere.onnx"), "no policy at 'nowhere.onnx'"),
        (
            (*LOOP, "--policy", POLICIES / "P1.onnx"),
            "P1.onnx' is not the policy that the library 'cartpole' was compiled",
        ),
        ((*LOOP, "--policy", POLICIES / "pendulum.onnx"), "pendulum.onnx' is not the policy that the library"),
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
