# SPDX-License-Identifier: Apache-2.0
"""Export fresh, seeded Stable-Baselines3 policies the ways that users do.

    policy = export("ppo.onnx", **CASES["ppo-discrete"], exporter="dynamo", batch="dynamic")
    python tests/exports.py    # rewrites tests/fixtures/, for tests that run where torch is not installed

    algorithm x observation space x action space --> policy --torch.onnx.export--> .onnx [+ .onnx.data]

No environment is made and nothing is trained: a policy is built from its two spaces, and its biases and log_std, which
start as equal constants, are drawn at random, because exporters fold equal constants as no trained policy has them
(`perturb=False` keeps them).

Why: importer tests need every shape of graph that torch writes, with the policy beside it to compare with.

Source: https://stable-baselines3.readthedocs.io/en/master/guide/export.html (`answer="documented"`), with Dict
observations as in https://github.com/DLR-RM/stable-baselines3/issues/1873.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx
import sb3_contrib
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

FIXTURES = Path(__file__).parent / "fixtures"

Answer = Literal[
    "documented",  # what policy(observation) returns: action, value, log_prob of PPO and A2C; the action of all others
    "action",  # the action alone
    "logits",  # the last layer alone: logits, means or Q-values (PPO, A2C, DQN, QRDQN)
]

VECTOR = spaces.Box(-1.0, 1.0, (6,))
MATRIX = spaces.Box(-1.0, 1.0, (2, 3))  # flattened inside the graph
NAMED = spaces.Dict({"joints": spaces.Box(-1.0, 1.0, (4,)), "target": spaces.Box(-1.0, 1.0, (3,))})
NUMBERED = spaces.Discrete(5)  # one-hot inside the graph
CHOICE = spaces.Discrete(3)
TORQUES = spaces.Box(-2.0, 2.0, (2,))
CHOICES = spaces.MultiDiscrete([3, 2, 4])
SWITCHES = spaces.MultiBinary(3)

CASES: dict[str, dict[str, Any]] = {
    "ppo-discrete": {"algorithm": "PPO", "observations": VECTOR, "actions": CHOICE},
    "ppo-continuous": {"algorithm": "PPO", "observations": VECTOR, "actions": TORQUES},
    "ppo-multidiscrete": {"algorithm": "PPO", "observations": VECTOR, "actions": CHOICES},
    "ppo-multibinary": {"algorithm": "PPO", "observations": VECTOR, "actions": SWITCHES},
    "ppo-matrix": {"algorithm": "PPO", "observations": MATRIX, "actions": CHOICE},
    "ppo-dict": {"algorithm": "PPO", "observations": NAMED, "actions": CHOICE},
    "ppo-numbered": {"algorithm": "PPO", "observations": NUMBERED, "actions": CHOICE},
    "ppo-relu": {"algorithm": "PPO", "observations": VECTOR, "actions": CHOICE, "activation": torch.nn.ReLU},
    "ppo-untouched": {"algorithm": "PPO", "observations": VECTOR, "actions": CHOICE, "perturb": False},
    "ppo-action": {"algorithm": "PPO", "observations": VECTOR, "actions": CHOICE, "answer": "action"},
    "ppo-logits": {"algorithm": "PPO", "observations": VECTOR, "actions": CHOICE, "answer": "logits"},
    "ppo-continuous-action": {"algorithm": "PPO", "observations": VECTOR, "actions": TORQUES, "answer": "action"},
    "ppo-sampling": {"algorithm": "PPO", "observations": VECTOR, "actions": CHOICE, "deterministic": False},
    "ppo-continuous-sampling": {"algorithm": "PPO", "observations": VECTOR, "actions": TORQUES, "deterministic": False},
    "a2c-discrete": {"algorithm": "A2C", "observations": VECTOR, "actions": CHOICE},
    "a2c-continuous": {"algorithm": "A2C", "observations": VECTOR, "actions": TORQUES},
    "dqn": {"algorithm": "DQN", "observations": VECTOR, "actions": CHOICE},
    "dqn-dict": {"algorithm": "DQN", "observations": NAMED, "actions": CHOICE},
    "dqn-q-values": {"algorithm": "DQN", "observations": VECTOR, "actions": CHOICE, "answer": "logits"},
    "qrdqn": {"algorithm": "QRDQN", "observations": VECTOR, "actions": CHOICE},
    "sac": {"algorithm": "SAC", "observations": VECTOR, "actions": TORQUES},
    "sac-dict": {"algorithm": "SAC", "observations": NAMED, "actions": TORQUES},
    "sac-sampling": {"algorithm": "SAC", "observations": VECTOR, "actions": TORQUES, "deterministic": False},
    "tqc": {"algorithm": "TQC", "observations": VECTOR, "actions": TORQUES},
    "td3": {"algorithm": "TD3", "observations": VECTOR, "actions": TORQUES},
    "ddpg": {"algorithm": "DDPG", "observations": VECTOR, "actions": TORQUES},
}

FIXTURE_EXPORTS: dict[str, dict[str, Any]] = {
    "ppo_discrete_legacy": CASES["ppo-discrete"],
    "ppo_discrete_dynamo_dynamic": {**CASES["ppo-discrete"], "exporter": "dynamo", "batch": "dynamic"},
    "ppo_continuous_legacy": CASES["ppo-continuous"],
    "ppo_action_dynamo": {**CASES["ppo-action"], "exporter": "dynamo"},
    "ppo_logits_legacy": CASES["ppo-logits"],
    "sac_legacy": CASES["sac"],
    "sac_external_dynamo": {**CASES["sac"], "exporter": "dynamo", "external_data": True},
    "ppo_sampling_legacy": CASES["ppo-sampling"],
    "sac_sampling_legacy": CASES["sac-sampling"],
}


def export(
    path: Path | str,
    *,
    algorithm: str,
    observations: spaces.Space,
    actions: spaces.Space,
    answer: Answer = "documented",
    deterministic: bool = True,
    exporter: Literal["legacy", "dynamo"] = "legacy",
    batch: Literal["fixed", "dynamic"] = "fixed",
    external_data: bool = False,
    net_arch: tuple[int, ...] = (64, 64),
    activation: type[torch.nn.Module] | None = None,
    perturb: bool = True,
    seed: int = 0,
) -> BasePolicy:
    """Write one policy to `path`; return it, so that its `predict` can be the reference."""
    assert exporter == "dynamo" or not external_data, "the legacy exporter writes external data only above 2 GB"
    policy = fresh_policy(algorithm, observations, actions, net_arch, activation, perturb=perturb, seed=seed)
    observation, _ = policy.obs_to_tensor(observations.sample())  # one row: only its shape and type are exported
    names = list(observation) if isinstance(observation, dict) else ["input"]
    # The empty dict stands last because torch takes a last dict for keyword arguments.
    options: dict[str, Any] = {"args": (observation, {}), "input_names": names, "verbose": False}
    if exporter == "legacy":
        options |= {"dynamo": False, "opset_version": 17}
        if batch == "dynamic":
            options["dynamic_axes"] = {name: {0: "batch"} for name in names}
    else:
        # 17, as documented, is written as 18 and converted down, to a ReduceLogSumExp that onnx.checker rejects.
        options |= {"dynamo": True, "opset_version": 18, "external_data": external_data}
        if batch == "dynamic":
            rows = {0: torch.export.Dim("batch")}
            options["dynamic_shapes"] = (dict.fromkeys(names, rows) if isinstance(observation, dict) else rows,)
    with _traceable():
        torch.onnx.export(_Answering(policy, answer, deterministic).eval(), f=str(path), **options)
    return policy


def fresh_policy(
    algorithm: str,
    observations: spaces.Space,
    actions: spaces.Space,
    net_arch: tuple[int, ...],
    activation: type[torch.nn.Module] | None,
    *,
    perturb: bool,
    seed: int,
) -> BasePolicy:
    """Build the policy that `algorithm` would start training from, without an environment or a replay buffer."""
    library = stable_baselines3 if hasattr(stable_baselines3, algorithm) else sb3_contrib
    policies = getattr(library, algorithm).policy_aliases
    policy_class = policies["MultiInputPolicy" if isinstance(observations, spaces.Dict) else "MlpPolicy"]
    options: dict[str, Any] = {"net_arch": list(net_arch)}
    if activation is not None:
        options["activation_fn"] = activation
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        policy = policy_class(observations, actions, lambda _: 0.0, **options)
        if perturb:
            for name, parameter in policy.named_parameters():
                if name.endswith(("bias", "log_std")):
                    parameter.add_(0.1 * torch.randn_like(parameter))
    policy.set_training_mode(False)
    return policy


class _Answering(torch.nn.Module):
    """A policy as a function of its observation alone."""

    def __init__(self, policy: BasePolicy, answer: Answer, deterministic: bool) -> None:
        super().__init__()
        self.policy = policy
        self.answer = answer
        self.deterministic = deterministic

    def forward(self, observation: torch.Tensor | dict[str, torch.Tensor]) -> Any:
        if self.answer == "documented":
            return self.policy(observation, deterministic=self.deterministic)
        if self.answer == "action":
            return self.policy._predict(observation, deterministic=self.deterministic)
        if isinstance(self.policy, ActorCriticPolicy):
            features = self.policy.extract_features(observation)
            return self.policy.action_net(self.policy.mlp_extractor.forward_actor(features))
        if hasattr(self.policy, "quantile_net"):
            return self.policy.quantile_net(observation).mean(dim=1)
        return self.policy.q_net(observation)


@contextmanager
def _traceable() -> Iterator[None]:
    """Let torch.export through torch.distributions, and keep the exporters' own warnings out of pytest's."""
    checked = torch.distributions.Distribution._validate_args
    # Otherwise "if not torch._is_all_true(valid)" depends on data: GuardOnDataDependentSymNode from dynamo.
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each exporter announces its own deprecation, and tracing its constants
            yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(checked)


def write_fixtures() -> None:
    """Rewrite `tests/fixtures/`, without the paths of this machine that dynamo records at every node."""
    FIXTURES.mkdir(exist_ok=True)
    for name, options in FIXTURE_EXPORTS.items():
        path = FIXTURES / f"{name}.onnx"
        export(path, **options, net_arch=(16, 16))
        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            kept = [entry for entry in node.metadata_props if entry.key != "pkg.torch.onnx.stack_trace"]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
        path.write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    write_fixtures()
