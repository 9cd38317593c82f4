# SPDX-License-Identifier: Apache-2.0
"""`run --device micro FOLDER`: run a built project on whatever its platform is made for."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tinyrl_tvm.device import avr, host, node, qemu
from tinyrl_tvm.device.measurement import Measurement
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.project import Project


class Run(Protocol):
    """`timed` takes the wall time where that means something: on this machine and in node, not on an emulator."""

    def __call__(self, project: Project, observations: np.ndarray | None, *, timed: bool) -> Measurement: ...


class RunProfiled(Protocol):
    """`profiled` measures layer by layer as well."""

    def __call__(
        self, project: Project, observations: np.ndarray | None, *, timed: bool, profiled: bool
    ) -> Measurement: ...


RUNS: dict[str, Run] = {
    "host": host.run_project,
    "baremetal": qemu.run,
    "cmsis": qemu.run,
    "wasm": node.run,
    "arduino": avr.run,
}
PROFILED: dict[str, RunProfiled] = {"host": host.run_project, "baremetal": qemu.run}
# Platforms whose own tool knows how to run what it built.
BY_ITS_OWN_TOOL = {
    "esp-idf": "idf.py -C {folder}/{name}/examples/replay flash monitor",
    "zephyr": "west build -d {folder}/build -t run",
}


def run(
    project: Project, observations: np.ndarray | None = None, *, timed: bool = False, profiled: bool = False
) -> Measurement:
    if project.platform in BY_ITS_OWN_TOOL:
        command = BY_ITS_OWN_TOOL[project.platform].format(folder=project.folder, name=project.library.name)
        raise TinyrlError(f"a project of '{project.platform}' is run by its own tool: {command}")
    if profiled:
        refuse_unprofiled(project)
        return PROFILED[project.platform](project, observations, timed=timed, profiled=True)
    return RUNS[project.platform](project, observations, timed=timed)


def refuse_unprofiled(project: Project) -> None:
    """Raises TinyrlError for a platform that nobody can measure layer by layer."""
    if project.platform not in PROFILED:
        raise TinyrlError(
            f"a project of '{project.platform}' cannot be measured layer by layer; have: {', '.join(PROFILED)}"
        )
