# SPDX-License-Identifier: Apache-2.0
"""Policies of Stable-Baselines3, exported now by both of torch's exporters, act compiled as `predict` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exports import CASES, export
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from tinyrl_tvm.calibrate import split_inputs
from tinyrl_tvm.device import host
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.frontends import onnx
from tinyrl_tvm.pipeline import compile_policy

ROWS = 256
DETERMINISTIC = [name for name, case in CASES.items() if case.get("deterministic", True) and name != "ppo-numbered"]
DYNAMO = ["ppo-discrete", "ppo-continuous", "ppo-multidiscrete", "ppo-dict", "dqn", "sac"]
EXPORTS = [(name, "legacy", "fixed") for name in DETERMINISTIC] + [(name, "dynamo", "dynamic") for name in DYNAMO]


@pytest.mark.parametrize(("name", "exporter", "batch"), EXPORTS)
def test_a_compiled_policy_acts_as_predict_does(name: str, exporter: str, batch: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    file = tmp_path / f"{name}.onnx"
    policy = export(file, **CASES[name], exporter=exporter, batch=batch)
    inputs = onnx.load(file).inputs
    rows = observations(policy, sum(spec.length for spec in inputs))
    np.savez(tmp_path / "rows.npz", calibration=rows, observations=rows)
    wanted = answers(policy, CASES[name].get("answer", "documented"), split_inputs(rows, inputs), inputs)
    for precision in ("float32", "int8"):
        library = compile_policy(file, target="host", precision=precision, calibration=tmp_path / "rows.npz").library
        measured = host.run(library, rows)
        assert measured.parity == "PASS"
        if measured.actions.dtype == np.int32:
            same = (measured.actions == wanted).all(axis=1).mean()
            # float32 may break a tie the other way; untrained policies decide by little, which int8 feels
            assert same >= (0.99 if precision == "float32" else 0.9)
        else:
            # float32: sums of 64 products of numbers near 1; int8: two codes of 127 up to the largest action
            bound = 1e-5 if precision == "float32" else np.abs(wanted).max() * 2 / 127
            assert np.abs(measured.actions - wanted).max() <= bound


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.get("deterministic", True)])
def test_an_export_that_samples_is_refused_with_the_way_to_export_it_again(name: str, tmp_path: Path) -> None:
    export(tmp_path / "samples.onnx", **CASES[name])
    with pytest.raises(TinyrlError, match="deterministic=True"):
        compile_policy(tmp_path / "samples.onnx", target="host")


def test_a_discrete_observation_is_refused_in_a_sentence(tmp_path: Path) -> None:
    export(tmp_path / "numbered.onnx", **CASES["ppo-numbered"])
    with pytest.raises(TinyrlError, match="the observation is an integer"):
        compile_policy(tmp_path / "numbered.onnx", target="host")


def observations(policy: BasePolicy, length: int) -> np.ndarray:
    """Rows of the observation space, its entries joined in the graph's order."""
    return np.random.default_rng(0).uniform(-1, 1, (ROWS, length)).astype(np.float32)


def answers(policy: BasePolicy, answer: str, parts: list[np.ndarray], inputs: tuple) -> np.ndarray:
    """(n, n_actions): `predict`, brought back to what the graph ends in: normalised actions, or the last layer."""
    space = policy.observation_space
    if isinstance(space, spaces.Dict):
        observation = {spec.name: part.reshape(ROWS, -1) for spec, part in zip(inputs, parts, strict=True)}
    else:
        observation = parts[0].reshape(ROWS, *space.shape)
    if answer == "logits":
        return last_layer(policy, torch.as_tensor(observation)).reshape(ROWS, -1)
    actions, _ = policy.predict(observation, deterministic=True)
    if policy.squash_output:
        actions = policy.scale_action(actions)
    return np.asarray(actions).reshape(ROWS, -1)


def last_layer(policy: BasePolicy, observation: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        if hasattr(policy, "q_net"):
            return policy.q_net(observation).numpy()
        return policy.action_net(policy.mlp_extractor.forward_actor(policy.extract_features(observation))).numpy()
