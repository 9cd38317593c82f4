# SPDX-License-Identifier: Apache-2.0
"""The reference policies, compiled, and firmware around them: a project's own, or with another `main`."""

from __future__ import annotations

from pathlib import Path

from tinyrl_tvm import project as projects
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.pipeline import Compiled, compile_policy

HERE = Path(__file__).parent
POLICIES = ("P1", "P2", "P3", "cartpole", "pendulum")
PRECISIONS = ("int8", "float32")


def compiled(name: str, precision: str, target: str) -> Compiled:
    return compile_policy(
        HERE / "policies" / f"{name}.onnx",
        target=target,
        precision=precision,
        calibration=HERE / "policies" / f"{name}.npz",
    )


def built(library: ModelLibrary, folder: Path, board: str, main: str | None = None) -> projects.Project:
    """A bare-metal project, built. `main` is a file of `benchmarks/mains` to stand in the place of the project's own."""
    project = projects.create(library, folder, "baremetal", {"board": board})
    if main is not None:
        (project.folder / "src" / "main.c").write_text((HERE / "mains" / main).read_text())
    projects.build(project)
    return project
