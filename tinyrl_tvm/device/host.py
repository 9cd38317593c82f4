# SPDX-License-Identifier: Apache-2.0
"""Run a policy on this machine: the library's C, compiled as a shared library and called through ctypes.

What the C answers here it answers on every device: the kernels are exact, or state their order of accumulation.
"""

from __future__ import annotations

import ctypes
import statistics
import tempfile
from pathlib import Path

import numpy as np

from tinyrl_tvm import project as projects
from tinyrl_tvm.device import profile as profiles
from tinyrl_tvm.device.measurement import Measurement, WallTime, compare_with_float, judge
from tinyrl_tvm.device.observations import observation_rows
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface, Vectors
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import Project

BATCHES = 31
BATCH_NS = 2e6  # long beside the clock's step, short beside a scheduler's slice


def run(
    library: ModelLibrary, observations: np.ndarray | None = None, *, timed: bool = False, profiled: bool = False
) -> Measurement:
    """Compile the library for this machine and ask it. `timed` also takes the wall time, with its spread; `profiled` takes
    it layer by layer, too."""
    with tempfile.TemporaryDirectory(prefix="tinyrl-host-") as workspace:
        project = projects.create(library, Path(workspace, "project"), "host")
        projects.build(project)
        return run_project(project, observations, timed=timed, profiled=profiled)


def run_project(
    project: Project, observations: np.ndarray | None = None, *, timed: bool = False, profiled: bool = False
) -> Measurement:
    """The same for a built project of the platform `host`."""
    interface, vectors = project.interface, Vectors.of(project.library)
    rows = None if observations is None else observation_rows(interface, observations)
    program = profiles.build(project) if profiled else None
    policy = _load(projects.built(project).products[0])
    actions, statuses = _answers(policy, interface, vectors.observations)
    parity = judge(interface, vectors, actions, statuses)
    likeness = compare_with_float(interface, vectors, actions)
    if rows is not None:
        actions, statuses = _answers(policy, interface, rows)
    wall_time = _wall_time(policy) if timed or profiled else None
    profile = None
    if program is not None:
        assert wall_time is not None
        profile = profiles.on_host(project, program, wall_time.median_ns)
    return Measurement(
        device="host",
        actions=actions,
        statuses=statuses,
        vectors=parity,
        likeness=likeness,
        wall_time=wall_time,
        profile=profile,
    )


def _load(path: Path) -> ctypes.CDLL:
    try:
        policy = ctypes.CDLL(str(path))
    except OSError as error:
        raise TinyrlError(f"cannot load '{path}': {error}; build the project again") from None
    policy.answer_rows.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)
    policy.answer_rows.restype = None
    policy.nanoseconds_per_inference.argtypes = (ctypes.c_size_t,)
    policy.nanoseconds_per_inference.restype = ctypes.c_double
    return policy


def _answers(policy: ctypes.CDLL, interface: Interface, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.ascontiguousarray(rows, np.float32)
    actions: np.ndarray = np.zeros((len(rows), interface.n_actions), interface.action_dtype)
    statuses: np.ndarray = np.zeros(len(rows), np.int32)
    policy.answer_rows(rows.ctypes.data, len(rows), actions.ctypes.data, statuses.ctypes.data)
    return actions, statuses


def _wall_time(policy: ctypes.CDLL) -> WallTime:
    """Median of many short batches, with the 10th and 90th percentile; the first call warms the caches."""
    guess = max(policy.nanoseconds_per_inference(100), 1.0)
    n = max(10, int(BATCH_NS / guess))
    policy.nanoseconds_per_inference(n)
    batches = sorted(policy.nanoseconds_per_inference(n) for _ in range(BATCHES))
    return WallTime(statistics.median(batches), batches[BATCHES // 10], batches[-1 - BATCHES // 10], BATCHES, n)
