# SPDX-License-Identifier: Apache-2.0
"""Run a built bare-metal project over the serial line of its board, real or emulated.

Every test vector, and whatever else is to be asked, goes over the line in frames; the firmware's report tells of its
stack. Its counter is the core's own clock: ticks on a board, which an emulator's are not, there they count instructions.
"""

from __future__ import annotations

import re

import numpy as np

from tinyrl_tvm import project as projects
from tinyrl_tvm.device.connection import Connection, board_of, connected
from tinyrl_tvm.device.elf import cost_of_policy
from tinyrl_tvm.device.measurement import Measurement, compare_with_float, judge
from tinyrl_tvm.device.observations import observation_rows
from tinyrl_tvm.device.qemu import STACK
from tinyrl_tvm.device.replayed import judge_carried, read_replay
from tinyrl_tvm.device.serial_line import Port
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface, Vectors
from tinyrl_tvm.project import Project

REPORT_TIMEOUT_S = 120.0  # the vectors, and a thousand inferences or 2^24 ticks of the slowest board

TICKS = re.compile(r"^ticks per inference: (\d+\.\d+)$", re.MULTILINE)


def run(project: Project, observations: np.ndarray | None = None, *, port: Port | None = None) -> Measurement:
    """Raises TinyrlError when the board is not there, hangs, faults, or has another policy."""
    interface, vectors = project.interface, Vectors.of(project.library)
    rows = None if observations is None else observation_rows(interface, observations)
    board = board_of(project)
    cost = cost_of_policy(projects.built(project))
    with connected(project, port=port) as device:
        actions, statuses = _answers(device, vectors.observations, interface)
        parity, likeness = judge(interface, vectors, actions, statuses), compare_with_float(interface, vectors, actions)
        printed = device.report(REPORT_TIMEOUT_S)
        if rows is not None:
            actions, statuses = _answers(device, rows, interface)
    replayed, ticks, stack = read_replay(printed, interface), TICKS.search(printed), STACK.search(printed)
    if not (replayed and ticks and stack):
        raise TinyrlError(f"the firmware of '{project.folder}' does not report as a project of ours; create it again")
    try:
        judge_carried(replayed, interface, vectors.carried)
    except TinyrlError:
        if port is None:
            raise
        raise TinyrlError(
            f"the board at '{port.path}' has another policy than '{project.folder}': it finds its own answers right, "
            "which these are not; flash the project again"
        ) from None
    ticks_per_inference = float(ticks[1])
    return Measurement(
        device=f"qemu {board.name}" if port is None else f"{board.name} at {port.path}",
        actions=actions,
        statuses=statuses,
        vectors=parity,
        likeness=likeness,
        instructions_per_inference=ticks_per_inference * board.instructions_per_100_ticks / 100
        if port is None
        else None,
        ticks_per_inference=None if port is None else ticks_per_inference,
        flash_bytes=cost.flash_bytes,
        ram_bytes=cost.ram_bytes,
        stack_bytes=int(stack[1]),
    )


def _answers(device: Connection, rows: np.ndarray, interface: Interface) -> tuple[np.ndarray, np.ndarray]:
    actions: np.ndarray = np.zeros((len(rows), interface.n_actions), interface.action_dtype)
    statuses: np.ndarray = np.zeros(len(rows), np.int32)
    for n, row in enumerate(rows):
        actions[n], counters = device(row)
        statuses[n] = counters.status
    return actions, statuses
