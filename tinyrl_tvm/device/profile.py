# SPDX-License-Identifier: Apache-2.0
"""`run --profile`: what each layer of a policy costs, beside the whole inference.

    cost of layer i = (an inference with n calls of layer i  -  one with a single call) / (n - 1)  -  the loop's own cost

Layers are pure, so that calls of them may be repeated. What no layer has of the whole is the check of the observation, the
joining of several, and the calls themselves.
"""

from __future__ import annotations

import ctypes
import re
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyrl_tvm import project as projects
from tinyrl_tvm.device.emulator import Emulate, emulate
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Layer, Vectors
from tinyrl_tvm.project import Project
from tinyrl_tvm.targets import Board

TIMEOUT_S = 300.0
COUNTED = re.compile(r"^layer (\d+) instructions: (\d+\.\d+)$", re.MULTILINE)
BATCHES = 31
BATCH_NS = 1e6
INSTRUCTIONS, NANOSECONDS = "instructions", "nanoseconds"


@dataclass(frozen=True)
class Profile:
    """`costs` of the `layers`, and of the `whole` inference, in `unit`."""

    layers: tuple[Layer, ...]
    costs: tuple[float, ...]
    whole: float
    unit: str

    def __post_init__(self) -> None:
        assert len(self.layers) == len(self.costs) > 0
        assert self.unit in (INSTRUCTIONS, NANOSECONDS)

    @property
    def rest(self) -> float:
        """What is in no layer."""
        return self.whole - sum(self.costs)

    def share(self, cost: float) -> float:
        """Of the whole inference."""
        return cost / self.whole

    def to_json(self) -> dict[str, Any]:
        layers = [
            {
                "function": layer.function,
                "summary": layer.summary,
                "place": layer.place,
                "parameter_bytes": layer.parameter_bytes,
                "cost": cost,
                "share": self.share(cost),
            }
            for layer, cost in zip(self.layers, self.costs, strict=True)
        ]
        return {"unit": self.unit, "inference": self.whole, "rest": self.rest, "layers": layers}


def build(project: Project) -> Path:
    """Make the program that measures layer by layer. Raises TinyrlError where there can be none."""
    if not project.interface.layers:
        raise TinyrlError(
            f"the library of '{project.folder}' does not name its layers; compile the policy again and create the project "
            "with -f"
        )
    return projects.build_profile(project)


def on_board(project: Project, board: Board, program: Path, whole: float, emulate: Emulate = emulate) -> Profile:
    """Run the `program` that `build` made. `whole` are the instructions of an inference."""
    with tempfile.TemporaryDirectory(prefix="tinyrl-profile-") as workspace:
        printed = emulate(board, program, Path(workspace), TIMEOUT_S)
    layers, counted = project.interface.layers, COUNTED.findall(printed)
    if [int(index) for index, _ in counted] != list(range(len(layers))):
        raise TinyrlError(f"the firmware of '{project.folder}' does not report its layers; create the project again")
    return Profile(layers, tuple(float(count) for _, count in counted), whole, INSTRUCTIONS)


def on_host(project: Project, program: Path, whole: float) -> Profile:
    """The shared library `program`; `whole` are the nanoseconds of an inference. Medians of batches."""
    layers, n_vectors = project.interface.layers, len(Vectors.of(project.library).built_in)
    library = ctypes.CDLL(str(program))
    library.profile_sweep.argtypes = (ctypes.c_uint32, ctypes.c_uint32)
    library.profile_loops.argtypes = (ctypes.c_uint32,)

    def batch_ns(layer: int, calls: int) -> float:
        start = time.perf_counter_ns()
        library.profile_sweep(layer, calls)
        return time.perf_counter_ns() - start

    def loops_ns(calls: int) -> float:
        start = time.perf_counter_ns()
        library.profile_loops(calls)
        return time.perf_counter_ns() - start

    costs = []
    batch_ns(0, 100)
    for layer in range(len(layers)):
        calls = 2 + int(BATCH_NS / max(batch_ns(layer, 11) / 11, 1.0))
        more = [batch_ns(layer, calls) - batch_ns(len(layers), 1) for _ in range(BATCHES)]
        loops = [loops_ns(calls) - loops_ns(1) for _ in range(BATCHES)]
        both_ns = (statistics.median(more) - statistics.median(loops)) / ((calls - 1) * n_vectors)
        costs.append(max(both_ns, 0.0))
    return Profile(layers, tuple(costs), whole, NANOSECONDS)
