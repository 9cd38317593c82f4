# SPDX-License-Identifier: Apache-2.0
"""Run a built bare-metal or CMSIS project on QEMU and read what the firmware prints.

The firmware judges the test vectors it carries itself. Whatever else is to be asked, the caller's observations and the
vectors that did not fit into flash, goes through `observations.bin`, a row at a time.
Figures are instructions under `-icount shift=0`, never cycles or time.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyrl_tvm import project as projects
from tinyrl_tvm.device import profile as profiles
from tinyrl_tvm.device.elf import cost_of_policy
from tinyrl_tvm.device.emulator import Emulate, emulate
from tinyrl_tvm.device.measurement import FAIL, PASS, Measurement, compare_with_float, judge
from tinyrl_tvm.device.observations import observation_rows
from tinyrl_tvm.device.replayed import Replayed, read_replay
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface, Vectors
from tinyrl_tvm.project import Project
from tinyrl_tvm.project.platforms.cmsis import CMSIS_DEVICES
from tinyrl_tvm.targets import Board, board_named

TIMEOUT_S = 60.0
TIMEOUT_PER_ROW_S = 0.01  # three calls to the host, 0.01 ms, and an inference, 1 ms for a large one

INSTRUCTIONS = re.compile(r"^instructions per inference: (\d+\.\d+)$", re.MULTILINE)
STACK = re.compile(r"^stack bytes: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Report(Replayed):
    """The firmware's own words."""

    instructions_per_inference: float | None
    stack_bytes: int | None


def run(
    project: Project,
    observations: np.ndarray | None = None,
    *,
    timed: bool = False,
    profiled: bool = False,
    timeout_s: float | None = None,
    emulate: Emulate = emulate,
) -> Measurement:
    """Ask the firmware on an emulated board. Raises TinyrlError when it faults or hangs."""
    interface, vectors = project.interface, Vectors.of(project.library)
    rows = None if observations is None else observation_rows(interface, observations)
    built = projects.built(project)
    program = profiles.build(project) if profiled else None
    board = board_of(project)
    cost = cost_of_policy(built) if project.platform == "baremetal" else None

    everything_built_in = len(vectors.built_in) == len(vectors.observations)
    n_vectors_streamed = 0 if everything_built_in else len(vectors.observations)
    streamed = [vectors.observations[:n_vectors_streamed], *([] if rows is None else [rows])]
    stream = np.concatenate(streamed)
    limit_s = TIMEOUT_S + TIMEOUT_PER_ROW_S * len(stream) if timeout_s is None else timeout_s

    with tempfile.TemporaryDirectory(prefix="tinyrl-qemu-") as workspace:
        folder = Path(workspace)
        if len(stream):
            stream.astype("<f4").tofile(folder / "observations.bin")
        printed = emulate(board, built.products[0], folder, limit_s)
        report = _read_report(project, interface, printed)
        streamed_actions, streamed_statuses = _read_answers(folder, interface, len(stream))

    if everything_built_in:
        actions, statuses = report.actions, report.statuses
    else:
        actions, statuses = streamed_actions[:n_vectors_streamed], streamed_statuses[:n_vectors_streamed]
    parity = judge(interface, vectors, actions, statuses)
    likeness = compare_with_float(interface, vectors, actions)
    if (report.parity == FAIL and parity.verdict == PASS) or (everything_built_in and report.parity != parity.verdict):
        raise TinyrlError(
            f"the firmware says PARITY {report.parity} where the host finds PARITY {parity.verdict}; "
            "build the project again"
        )
    if rows is not None:
        actions, statuses = streamed_actions[n_vectors_streamed:], streamed_statuses[n_vectors_streamed:]
    profile = None
    if program is not None:
        assert report.instructions_per_inference is not None
        profile = profiles.on_board(project, board, program, report.instructions_per_inference, emulate)
    return Measurement(
        device=f"qemu {board.name}",
        actions=actions,
        statuses=statuses,
        vectors=parity,
        likeness=likeness,
        instructions_per_inference=report.instructions_per_inference,
        flash_bytes=cost.flash_bytes if cost else None,
        ram_bytes=cost.ram_bytes if cost else None,
        stack_bytes=report.stack_bytes,
        profile=profile,
    )


def board_of(project: Project) -> Board:
    """What QEMU emulates for the project."""
    if project.platform == "cmsis":
        return board_named(CMSIS_DEVICES[project.options["device"]])
    return board_named(project.options["board"])


def _read_report(project: Project, interface: Interface, printed: str) -> Report:
    replayed = read_replay(printed, interface)
    instructions, stack = INSTRUCTIONS.search(printed), STACK.search(printed)
    measures = (
        project.platform == "baremetal"
    )  # with start-up code of its own, a firmware knows its clock and its stack
    if replayed is None or (measures and not (instructions and stack)):
        raise TinyrlError(f"the firmware of '{project.folder}' does not report as a project of ours; create it again")
    return Report(
        replayed.actions,
        replayed.statuses,
        replayed.parity,
        instructions_per_inference=float(instructions[1]) if instructions else None,
        stack_bytes=int(stack[1]) if stack else None,
    )


def _read_answers(folder: Path, interface: Interface, n: int) -> tuple[np.ndarray, np.ndarray]:
    if n == 0:
        return np.zeros((0, interface.n_actions), interface.action_dtype), np.zeros(0, np.int32)
    dtype = np.dtype(interface.action_dtype).newbyteorder("<")
    actions = np.fromfile(folder / "actions.bin", dtype).astype(interface.action_dtype)
    statuses = np.fromfile(folder / "statuses.bin", "<i4").astype(np.int32)
    if len(statuses) != n or len(actions) != n * interface.n_actions:
        raise TinyrlError(f"the firmware answered {len(statuses)} of {n} observations")
    return actions.reshape(n, interface.n_actions), statuses
