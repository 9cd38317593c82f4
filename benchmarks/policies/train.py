# SPDX-License-Identifier: Apache-2.0
"""Train the repository's two policies and export them as Stable-Baselines3's documentation shows.

    python benchmarks/policies/train.py cartpole    # PPO on CartPole-v1: two actions, arg-max inside the graph
    python benchmarks/policies/train.py pendulum    # SAC on Pendulum-v1: one torque, the actor only

    policy --export--> NAME.onnx    (1, n_obs) float32 -> action[, value, log_prob]
           --rollout-> NAME.npz     calibration   (n_calibration, n_obs)   ranges for int8
                                    observations  (n_observations, n_obs)  test rows of episodes calibration never saw

A policy that does not reach `solved_return` over 20 deterministic episodes is not written.

Why: the demo and the benchmark must stand on policies that really solve their task, and be repeatable from nothing:
every seed is fixed here. Rewriting the files needs the `rl` extra; using them needs neither it nor torch.

Source: both wrappers and the export call are https://stable-baselines3.readthedocs.io/en/master/guide/export.html . PPO
keeps its defaults (64, 64, tanh); SAC takes rl-baselines3-zoo's learning rate, and 64, 64 in place of 256, 256.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

SEED = 0
MAX_ROUNDS = 10
EVALUATION_EPISODES = range(1000, 1020)  # each number is the seed an episode starts from; the three ranges never meet
CALIBRATION_EPISODES = range(2000, 2020)
HELD_OUT_EPISODES = range(3000, 3010)
N_CALIBRATION = 4000
N_OBSERVATIONS = 256


class OnnxableSB3Policy(torch.nn.Module):
    """The documented wrapper for PPO and A2C: observation -> action, value, log_prob."""

    def __init__(self, policy: torch.nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.policy(observation, deterministic=True)


class OnnxablePolicy(torch.nn.Module):
    """The documented wrapper for SAC: observation -> action in [-1, 1], not yet scaled to the actuator."""

    def __init__(self, actor: torch.nn.Module) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.actor(observation, deterministic=True)


@dataclass(frozen=True)
class Recipe:
    """How one policy is trained, and when it counts as solved."""

    algorithm: type[BaseAlgorithm]
    environment: str
    steps_per_round: int
    solved_return: float
    options: dict[str, Any]

    def train(self) -> BaseAlgorithm:
        """Train in rounds until the deterministic policy is solved."""
        model = self.algorithm("MlpPolicy", self.environment, seed=SEED, device="cpu", **self.options)
        for _ in range(MAX_ROUNDS):
            model.learn(self.steps_per_round, reset_num_timesteps=False)
            returns = [sum(rewards) for _, rewards in self.rollout(model, EVALUATION_EPISODES, deterministic=True)]
            print(
                f"{self.environment}: {model.num_timesteps:,} steps, return {np.mean(returns):.1f} "
                f"± {np.std(returns):.1f} over {len(returns)} deterministic episodes, worst {min(returns):.1f}",
                flush=True,
            )
            if np.mean(returns) >= self.solved_return:
                return model
        raise SystemExit(
            f"{self.environment} is not solved (want a mean return of {self.solved_return}); nothing written"
        )

    def rollout(
        self, model: BaseAlgorithm, episodes: Iterable[int], *, deterministic: bool
    ) -> list[tuple[list[np.ndarray], list[float]]]:
        """Play one episode a seed; return each one's observations and rewards."""
        environment = gymnasium.make(self.environment)
        played = []
        for seed in episodes:
            observation, _ = environment.reset(seed=seed)
            observations, rewards, done = [], [], False
            while not done:
                observations.append(observation)
                action, _ = model.predict(observation, deterministic=deterministic)
                observation, reward, terminated, truncated, _ = environment.step(action)
                rewards.append(float(reward))
                done = terminated or truncated
            played.append((observations, rewards))
        return played


RECIPES = {
    "cartpole": Recipe(
        algorithm=PPO,
        environment="CartPole-v1",
        steps_per_round=102_400,
        solved_return=490.0,
        options={},
    ),
    "pendulum": Recipe(
        algorithm=SAC,
        environment="Pendulum-v1",
        steps_per_round=20_000,
        solved_return=-200.0,
        options={"learning_rate": 1e-3, "policy_kwargs": {"net_arch": [64, 64]}},
    ),
}


def export(model: BaseAlgorithm, path: Path) -> None:
    """Write `path` with the documented call."""
    wrapped = OnnxablePolicy(model.policy.actor) if isinstance(model, SAC) else OnnxableSB3Policy(model.policy)
    torch.onnx.export(
        wrapped.eval(),
        torch.zeros(1, *model.observation_space.shape),
        path,
        opset_version=17,
        input_names=["input"],
        # Not in the documented call, which predates torch 2.9's other default: torch.export cannot trace the checks
        # that torch.distributions makes of its arguments, and stops with GuardOnDataDependentSymNode.
        dynamo=False,
    )


def sample_rows(episodes: list[tuple[list[np.ndarray], list[float]]], n_rows: int) -> np.ndarray:
    """Draw `n_rows` distinct observations (n_rows, n_obs) from all the steps of all the episodes."""
    rows = np.concatenate([observations for observations, _ in episodes]).astype(np.float32)
    return rows[np.random.default_rng(SEED).choice(len(rows), n_rows, replace=False)]


def write_rollouts(recipe: Recipe, model: BaseAlgorithm, path: Path) -> None:
    """Write `path`: calibration rows met with and without exploration noise, and held-out test rows."""
    torch.manual_seed(SEED)  # exploration draws from torch's generator, wherever training left it
    steady = recipe.rollout(model, CALIBRATION_EPISODES, deterministic=True)
    noisy = recipe.rollout(model, CALIBRATION_EPISODES, deterministic=False)
    held_out = recipe.rollout(model, HELD_OUT_EPISODES, deterministic=True)
    np.savez_compressed(
        path,
        calibration=np.concatenate(
            [sample_rows(steady, N_CALIBRATION // 2), sample_rows(noisy, N_CALIBRATION // 2)],
        ),
        observations=sample_rows(held_out, N_OBSERVATIONS),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a policy of the repository and export it.")
    parser.add_argument("policy", choices=RECIPES)
    parser.add_argument("--into", type=Path, default=Path(__file__).parent, help="folder to write to")
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # networks this small are slower on more, and sums keep their order
    recipe = RECIPES[arguments.policy]
    model = recipe.train()
    export(model, arguments.into / f"{arguments.policy}.onnx")
    write_rollouts(recipe, model, arguments.into / f"{arguments.policy}.npz")


if __name__ == "__main__":
    main()
