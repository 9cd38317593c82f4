# SPDX-License-Identifier: Apache-2.0
"""`run --device micro FOLDER`: run a built project on whatever its platform is made for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tinyrl_tvm.device import avr, board, host, node, qemu
from tinyrl_tvm.device.measurement import Measurement
from tinyrl_tvm.device.serial_line import Port
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.project import Project

if TYPE_CHECKING:
    from tinyrl_tvm.device.farm import Farm


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
ON_A_FARM = ("baremetal", "cmsis")  # a server runs a firmware as QEMU does here
# Platforms whose own tool knows how to run what it built.
BY_ITS_OWN_TOOL = {
    "esp-idf": "idf.py -C {folder}/{name}/examples/replay flash monitor",
    "zephyr": "west build -d {folder}/build -t run",
}


def run(
    project: Project,
    observations: np.ndarray | None = None,
    *,
    timed: bool = False,
    profiled: bool = False,
    farm: Farm | None = None,
    port: Port | None = None,
) -> Measurement:
    """`farm` runs the firmware on one of its servers, `port` is where the board is that has it already."""
    if port is not None or (farm is None and not profiled and project.options.get("link") == "uart"):
        return board.run(project, observations, port=port)
    if project.platform in BY_ITS_OWN_TOOL:
        command = BY_ITS_OWN_TOOL[project.platform].format(folder=project.folder, name=project.library.name)
        raise TinyrlError(f"a project of '{project.platform}' is run by its own tool: {command}")
    if farm is not None:
        refuse_without_firmware(project)
        measured = qemu.run(project, observations, timed=timed, profiled=profiled, emulate=farm.emulate)
        return replace(measured, device=f"{measured.device} behind {farm.tracker}, key '{farm.key}'")
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
    refuse_uart(project, "cannot be measured layer by layer")


def refuse_without_firmware(project: Project) -> None:
    """Raises TinyrlError for a platform whose program no server of a farm can run."""
    if project.platform not in ON_A_FARM:
        raise TinyrlError(f"a project of '{project.platform}' does not run on a farm; have: {', '.join(ON_A_FARM)}")
    refuse_uart(project, "does not run on a farm")


def refuse_uart(project: Project, why_not: str) -> None:
    """Raises TinyrlError for a project that talks over a serial line."""
    if project.options.get("link") == "uart":
        raise TinyrlError(f"a project with link=uart {why_not}; create one with link=semihosting")
