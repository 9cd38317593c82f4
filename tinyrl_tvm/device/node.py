# SPDX-License-Identifier: Apache-2.0
"""Run a built project of the platform `wasm` in node.

The module judges the test vectors it carries itself, by the C that every device judges with. All of the library's
vectors, and the caller's observations, go through `observations.bin`. Node counts no instructions; it has a clock.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from tinyrl_tvm import project as projects
from tinyrl_tvm import toolchain
from tinyrl_tvm.device.measurement import FAIL, PASS, Measurement, WallTime, compare_with_float, judge
from tinyrl_tvm.device.observations import observation_rows
from tinyrl_tvm.device.replayed import PARITY
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface, Vectors
from tinyrl_tvm.project import Project

TIMEOUT_S = 60.0
TIMEOUT_PER_ROW_S = 0.001  # an inference of a large policy, ten times over

FAULT = re.compile(r"^FAULT (.*)$", re.MULTILINE)
WALL_TIME = re.compile(
    r"^nanoseconds per inference \(wall time in node\): (\S+) \((\S+) to (\S+), (\d+) batches of (\d+)\)$", re.MULTILINE
)
# Sections of a WebAssembly module. Source: WebAssembly Core Specification 2.0, 5.5.2.
MAGIC, CODE, DATA = b"\0asm\1\0\0\0", 10, 11


def run(
    project: Project, observations: np.ndarray | None = None, *, timed: bool = False, timeout_s: float | None = None
) -> Measurement:
    """Ask the module in node. Raises TinyrlError when it traps or hangs."""
    interface, vectors = project.interface, Vectors.of(project.library)
    rows = None if observations is None else observation_rows(interface, observations)
    policy, replay = projects.built(project).products
    node = toolchain.find("node")
    n_vectors = len(vectors.observations)
    stream = np.concatenate([vectors.observations, *([] if rows is None else [rows])])
    limit_s = TIMEOUT_S + TIMEOUT_PER_ROW_S * len(stream) if timeout_s is None else timeout_s

    with tempfile.TemporaryDirectory(prefix="tinyrl-node-") as workspace:
        folder = Path(workspace)
        stream.astype("<f4").tofile(folder / "observations.bin")
        command: list[str | Path] = [node, project.folder / "replay.mjs", *(["--time"] * timed), replay]
        printed = _printed(command, folder, limit_s, replay)
        actions, statuses = _read_answers(folder, interface, len(stream))

    said, wall_time = PARITY.search(printed), WALL_TIME.search(printed)
    if said is None or (timed and wall_time is None):
        raise TinyrlError(f"the module of '{project.folder}' does not report as a project of ours; create it again")
    parity = judge(interface, vectors, actions[:n_vectors], statuses[:n_vectors])
    if said[1] == FAIL and parity.verdict == PASS:
        raise TinyrlError("the module says PARITY FAIL where the host finds PARITY PASS; build the project again")
    likeness = compare_with_float(interface, vectors, actions[:n_vectors])
    if rows is not None:
        actions, statuses = actions[n_vectors:], statuses[n_vectors:]
    return Measurement(
        device="node",
        actions=actions,
        statuses=statuses,
        vectors=parity,
        likeness=likeness,
        flash_bytes=code_and_data_bytes(policy),
        wall_time=_wall_time(wall_time) if wall_time else None,
    )


def code_and_data_bytes(path: Path) -> int:
    """What the policy's module holds of code and of constants: it has no others than the policy's."""
    module = path.read_bytes()
    total, at = 0, len(MAGIC)
    try:
        if not module.startswith(MAGIC):
            raise IndexError
        while at < len(module):
            section = module[at]
            size, at = _unsigned(module, at + 1)
            total += size if section in (CODE, DATA) else 0
            at += size
    except IndexError:
        raise TinyrlError(f"'{path}' is no WebAssembly module; build the project again") from None
    return total


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    """A number in LEB128, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def _printed(command: list[str | Path], folder: Path, timeout_s: float, replay: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise TinyrlError(
            f"'{replay}' did not end within {timeout_s:g} s in node; it hangs, or the policy is too large"
        ) from None
    printed = done.stdout.decode(errors="replace")
    if fault := FAULT.search(printed):
        raise TinyrlError(f"'{replay}' stopped in node: {fault[1]}")
    if not printed.endswith("\ndone\n"):
        complaints = [line for line in done.stderr.decode(errors="replace").splitlines() if "Error" in line]
        raise TinyrlError(f"'{replay}' stopped early in node: {next(iter(complaints), 'it printed nothing')}")
    return printed


def _read_answers(folder: Path, interface: Interface, n: int) -> tuple[np.ndarray, np.ndarray]:
    dtype = np.dtype(interface.action_dtype).newbyteorder("<")
    try:
        actions = np.fromfile(folder / "actions.bin", dtype).astype(interface.action_dtype)
        statuses = np.fromfile(folder / "statuses.bin", "<i4").astype(np.int32)
    except OSError:
        raise TinyrlError(f"the module answered none of {n} observations; create the project again") from None
    if len(statuses) != n or len(actions) != n * interface.n_actions:
        raise TinyrlError(f"the module answered {len(statuses)} of {n} observations")
    return actions.reshape(n, interface.n_actions), statuses


def _wall_time(match: re.Match[str]) -> WallTime:
    median, low, high, batches, inferences = match.groups()
    return WallTime(float(median), float(low), float(high), int(batches), int(inferences))
