# SPDX-License-Identifier: Apache-2.0
"""Close the loop: an environment steps on the host, its policy answers on the device.

    observation + noise -> device -> action -> environment -> reward, observation

Episode k starts from seed k and meets the noise of seed k, whoever acts: returns of device and float policy are paired.
What an inference takes is counted in instructions. Emulators know no time: a deadline is judged as if the board's clock
carried out an instruction a cycle. A real board counts ticks of that clock.

At a tick of T ms the policy is asked every round(T / dt) steps of the environment, dt being the environment's own time step,
and its action is held in between, as a controller holds it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyrl_tvm.device.connection import Counters, board_of, connected
from tinyrl_tvm.device.serial_line import Port
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import Project

if TYPE_CHECKING:
    import gymnasium

Act = Callable[[np.ndarray], np.ndarray]
PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True, eq=False)
class Step:
    """One answer of the device; `reward` is that of all the environment's steps for which its action was held."""

    episode: int
    step: int
    reward: float
    count: float
    status: int
    action: np.ndarray
    observation: np.ndarray


@dataclass(frozen=True, eq=False)
class ClosedLoop:
    """`returns` of the device's episodes, `float_returns` of the float policy's from the same seeds when that was given.
    `clock_hz` is the board's, `unit` what is counted: instructions, or ticks of that clock. An action is held for
    `steps_per_action` of the environment's steps, which last `dt_ms`."""

    device: str
    environment: str
    returns: list[float]
    float_returns: list[float] | None
    clock_hz: int
    resets: int
    steps: list[Step] = field(repr=False)
    unit: str = "instructions"
    tick_ms: float | None = None
    dt_ms: float | None = None
    steps_per_action: int = 1

    @property
    def counts(self) -> np.ndarray:
        return np.array([step.count for step in self.steps])

    @property
    def percentiles(self) -> dict[int, float]:
        """Of counts, each one that was taken."""
        return {p: float(np.percentile(self.counts, p, method="higher")) for p in PERCENTILES}

    def deadline_misses(self, control_hz: float) -> int:
        """Steps whose inference would not end within a control period, at an instruction a clock cycle."""
        return int(np.count_nonzero(self.counts * control_hz > self.clock_hz))

    def to_json(self, control_hz: float | None) -> dict[str, Any]:
        percentiles = {str(p): count for p, count in self.percentiles.items()}
        return {
            "device": self.device,
            "environment": self.environment,
            "episodes": len(self.returns),
            "steps": len(self.steps),
            "returns": self.returns,
            "float_returns": self.float_returns,
            "mean_return": float(np.mean(self.returns)),
            "float_mean_return": None if self.float_returns is None else float(np.mean(self.float_returns)),
            "instructions_percentiles": percentiles if self.unit == "instructions" else None,
            "ticks_percentiles": percentiles if self.unit == "ticks" else None,
            "clock_hz": self.clock_hz,
            "control_hz": control_hz,
            "deadline_misses": None if control_hz is None else self.deadline_misses(control_hz),
            "nonzero_statuses": sum(step.status != 0 for step in self.steps),
            "resets": self.resets,
            "tick_ms": self.tick_ms,
            "dt_ms": self.dt_ms,
            "steps_per_action": self.steps_per_action,
        }


def to_csv(loops: Sequence[ClosedLoop]) -> bytes:
    """A row an answer of the device, loop after loop."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sample = loops[0].steps[0]
    names = [f"action_{i}" for i in range(len(sample.action))]
    names += [f"observation_{i}" for i in range(len(sample.observation))]
    writer.writerow(["tick_ms", "episode", "step", "reward", loops[0].unit, "status", *names])
    for loop in loops:
        for s in loop.steps:
            numbers = [*s.action.tolist(), *s.observation.tolist()]
            writer.writerow([loop.tick_ms, s.episode, s.step, s.reward, s.count, s.status, *numbers])
    return text.getvalue().encode()


def close_loop(
    project: Project,
    environment: str,
    *,
    episodes: int,
    noise: float = 0.0,
    policy: Path | None = None,
    port: Port | None = None,
    tick_ms: float | None = None,
) -> ClosedLoop:
    """Play `episodes` on the device, and with the float policy in the .onnx `policy`. `noise` is the standard deviation
    of what is added to every observation, `port` where the board is when it is not an emulated one; at each tick of
    `tick_ms` the policy is asked, by default at every step."""
    interface, board = project.interface, board_of(project)
    with made(environment, interface) as env:
        dt_ms = None if tick_ms is None else 1000 * own_step_s(env, environment)
        hold = 1 if tick_ms is None or dt_ms is None else max(1, math.floor(tick_ms / dt_ms + 0.5))
        act_float = None if policy is None else float_policy(policy, project)
        steps: list[Step] = []
        returns = []
        with connected(project, port=port) as device:
            for seed in range(episodes):
                log: list[tuple[Counters, np.ndarray, np.ndarray]] = []

                def ask(
                    observation: np.ndarray, log: list[tuple[Counters, np.ndarray, np.ndarray]] = log
                ) -> np.ndarray:
                    action, counters = device(observation)
                    log.append((counters, action, observation))
                    return action

                rewards = _episode(env, interface, ask, seed, noise, hold)
                returns.append(float(sum(rewards)))
                for step, (reward, (counters, action, observation)) in enumerate(zip(rewards, log, strict=True)):
                    count = counters.ticks * (1 if port else board.instructions_per_100_ticks / 100)
                    steps.append(Step(seed, step, reward, count, counters.status, action, observation))
            resets = device.resets
        float_returns = None
        if act_float is not None:
            float_returns = [
                float(sum(_episode(env, interface, act_float, seed, noise, hold))) for seed in range(episodes)
            ]
    name, unit = (f"{board.name} at {port.path}", "ticks") if port else (f"qemu {board.name}", "instructions")
    return ClosedLoop(
        name, environment, returns, float_returns, board.tick_hz, resets, steps, unit, tick_ms, dt_ms, hold
    )


def own_step_s(env: gymnasium.Env, environment: str) -> float:
    """The time between two steps of the environment, as it says itself. Raises TinyrlError when it does not."""
    fps = env.metadata.get("render_fps")
    said = (getattr(env.unwrapped, "tau", None), getattr(env.unwrapped, "dt", None), 1 / fps if fps else None)
    for seconds in said:
        if isinstance(seconds, int | float) and math.isfinite(seconds) and seconds > 0:
            return float(seconds)
    raise TinyrlError(
        f"'{environment}' does not say how long its step is (tau, dt, render_fps), so no tick can be simulated"
    )


def made(environment: str, interface: Interface) -> gymnasium.Env:
    """The environment, whose spaces are the policy's. Raises TinyrlError."""
    try:
        import gymnasium
    except ImportError:
        raise TinyrlError("no gymnasium to step environments with; pip install 'tinyrl-tvm[rl]'") from None
    try:
        env = gymnasium.make(environment)
    except (gymnasium.error.Error, ImportError) as error:
        raise TinyrlError(f"no environment '{environment}': {' '.join(str(error).split())}") from None
    observations, actions = env.observation_space, env.action_space
    fits = _observes(observations, interface)
    if isinstance(actions, gymnasium.spaces.Discrete):
        fits &= (interface.action_dtype, interface.n_actions) == ("int32", 1)
    elif isinstance(actions, gymnasium.spaces.MultiDiscrete | gymnasium.spaces.MultiBinary | gymnasium.spaces.Box):
        kind = "float32" if isinstance(actions, gymnasium.spaces.Box) else "int32"
        fits &= (interface.action_dtype, interface.n_actions) == (kind, int(np.prod(actions.shape)))
    else:
        fits = False
    if not fits:
        env.close()
        raise TinyrlError(
            f"'{environment}' observes {observations} and acts in {actions}; '{interface.name}' takes {interface.n_obs} "
            f"numbers and answers {interface.n_actions} of {interface.action_dtype}"
        )
    return env


def _observes(space: gymnasium.Space, interface: Interface) -> bool:
    """A Box of as many numbers as the policy takes, or a Dict with a Box for each of its inputs, by name."""
    import gymnasium

    if isinstance(space, gymnasium.spaces.Dict):
        parts = [(space.spaces.get(tensor.name), tensor.length) for tensor in interface.inputs]
    else:
        parts = [(space, interface.n_obs)]
    return all(isinstance(part, gymnasium.spaces.Box) and math.prod(part.shape) == n for part, n in parts)


def flat(observation: Any, interface: Interface) -> np.ndarray:
    """(n_obs,) float32, the policy's inputs in their order."""
    parts = [observation]
    if isinstance(observation, Mapping):
        parts = [observation[tensor.name] for tensor in interface.inputs]
    return np.concatenate([np.asarray(part, np.float32).reshape(-1) for part in parts])


def float_policy(path: Path, project: Project) -> Act:
    """The policy that the project's library was compiled from, in float64. Raises TinyrlError when `path` is another."""
    from relay_passes import PruneCritic
    from relay_passes.evaluate import evaluate
    from relay_passes.report import run_passes
    from tinyrl_tvm.frontends import onnx

    interface = project.interface
    refuse_another_policy(path, project.library)
    policy = onnx.load(path, interface.action_name)
    actor, _ = run_passes(policy.module, [PruneCritic(policy.action_index)])
    shapes = {tensor.name: tensor.shape for tensor in policy.inputs}

    def act(observation: np.ndarray) -> np.ndarray:
        parts = [
            observation[None, tensor.offset : tensor.offset + tensor.length].reshape(1, *shapes[tensor.name])
            for tensor in interface.inputs
        ]
        return np.asarray(evaluate(actor, *parts, dtype=np.float64)).reshape(-1).astype(interface.action_dtype)

    return act


def refuse_another_policy(path: Path, library: ModelLibrary) -> None:
    """Raises TinyrlError unless `library` was compiled from `path`, of which nothing but its bytes is looked at."""
    from tinyrl_tvm.frontends.onnx.file import read_bounded

    if not path.is_file():
        raise TinyrlError(f"no policy at '{path}'; give the .onnx that the library was compiled from")
    if hashlib.sha256(read_bounded(path)).hexdigest() != library.interface.get("sha256"):
        raise TinyrlError(f"'{path}' is not the policy that the library '{library.name}' was compiled from")


def _episode(env: gymnasium.Env, interface: Interface, act: Act, seed: int, noise: float, hold: int) -> list[float]:
    """The rewards, one an action, which is held for `hold` steps."""
    import gymnasium

    generator = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    rewards = []
    over = False
    while not over:
        seen = flat(observation, interface)
        seen = (seen + noise * generator.normal(size=seen.shape)).astype(np.float32)
        action: Any = act(seen)
        if isinstance(env.action_space, gymnasium.spaces.Discrete):
            action = int(env.action_space.start) + int(action[0])
        else:
            action = action.reshape(env.action_space.shape).astype(env.action_space.dtype)
        if not isinstance(env.action_space, gymnasium.spaces.Box) and not env.action_space.contains(action):
            raise TinyrlError(f"the policy answers {action}, which is no action of {env.action_space}")
        rewards.append(0.0)
        for _ in range(hold):
            observation, reward, terminated, truncated, _ = env.step(action)
            rewards[-1] += float(reward)
            over = terminated or truncated
            if over:
                break
    return rewards
