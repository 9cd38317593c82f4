# SPDX-License-Identifier: Apache-2.0
"""`run --device micro FOLDER`: run a built project on whatever its platform is made for."""

from __future__ import annotations

import numpy as np

from tinyrl_tvm.device import host, node, qemu
from tinyrl_tvm.device.measurement import Measurement
from tinyrl_tvm.project import Project


def run(project: Project, observations: np.ndarray | None = None, *, timed: bool = False) -> Measurement:
    """`timed` takes the wall time where that means something: on this machine and in node, not on an emulator."""
    if project.platform == "host":
        return host.run_project(project, observations, timed=timed)
    if project.platform == "wasm":
        return node.run(project, observations, timed=timed)
    return qemu.run(project, observations)
