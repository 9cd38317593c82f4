# SPDX-License-Identifier: Apache-2.0
"""`run --device micro FOLDER`: run a built project on whatever its platform is made for."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tinyrl_tvm.device import avr, host, node, qemu
from tinyrl_tvm.device.measurement import Measurement
from tinyrl_tvm.project import Project


class Run(Protocol):
    """`timed` takes the wall time where that means something: on this machine and in node, not on an emulator."""

    def __call__(self, project: Project, observations: np.ndarray | None, *, timed: bool) -> Measurement: ...


RUNS: dict[str, Run] = {
    "host": host.run_project,
    "baremetal": qemu.run,
    "cmsis": qemu.run,
    "wasm": node.run,
    "arduino": avr.run,
}


def run(project: Project, observations: np.ndarray | None = None, *, timed: bool = False) -> Measurement:
    return RUNS[project.platform](project, observations, timed=timed)
