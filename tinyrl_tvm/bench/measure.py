# SPDX-License-Identifier: Apache-2.0
"""Measure one policy on several devices, each beside a reference from the same run.

cpu          the library's C on this machine; beside it ONNX Runtime with the float policy, when that is given
micro:DIR    a project on what its platform is made for; beside it, on a bare-metal board, the same library's portable
             C on the same board, which is what the kernels are worth
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyrl_tvm import project as projects
from tinyrl_tvm.bench.pedigree import Pedigree
from tinyrl_tvm.device import host, memory, micro, qemu
from tinyrl_tvm.device.closed_loop import ClosedLoop, close_loop, refuse_another_policy
from tinyrl_tvm.device.elf import Footprint, footprint
from tinyrl_tvm.device.emulator import Emulate, emulate
from tinyrl_tvm.device.measurement import FAIL, PASS, Measurement, WallTime
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface, Vectors
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.memory import Memory
from tinyrl_tvm.project import Project
from tinyrl_tvm.targets import Board

CPU, MICRO = "cpu", "micro:"
BATCHES, BATCH = 31, 200  # of ONNX Runtime: medians over batches, so that a busy machine shows as spread


@dataclass(frozen=True)
class Device:
    """What `--device` names; `project` is None for this machine."""

    name: str
    project: Project | None = None


@dataclass(frozen=True)
class Firmware:
    """Bytes of a bare-metal firmware: the board it is for, what all of it takes, of that the policy, and the policy's memory
    contract, None in a library without one."""

    board: Board
    whole: Footprint
    policy: Footprint
    stack_bytes: int | None
    contract: Memory | None


@dataclass(frozen=True, eq=False)
class Run:
    """One device: what it answered and took, its references, its firmware, and its closed loop; None where not measured.
    `tools` built and ran it, by names in `toolchain.TOOLS`."""

    device: str
    platform: str
    target: str
    precision: str
    measured: Measurement
    vectors: Vectors = field(repr=False)
    tools: tuple[str, ...]
    project: Project | None = field(default=None, repr=False)
    portable: Measurement | None = None
    onnxruntime: WallTime | None = None
    firmware: Firmware | None = None
    loop: ClosedLoop | None = None

    @property
    def instructions_ratio(self) -> float | None:
        """To the portable C's."""
        ours = self.measured.instructions_per_inference
        theirs = self.portable.instructions_per_inference if self.portable else None
        return ours / theirs if ours is not None and theirs else None

    @property
    def time_ratio(self) -> float | None:
        """To ONNX Runtime's."""
        ours = self.measured.wall_time
        return ours.median_ns / self.onnxruntime.median_ns if ours and self.onnxruntime else None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.measured.to_json(),
            "device": self.device,
            "runs_on": self.measured.device,
            "platform": self.platform,
            "target": self.target,
            "precision": self.precision,
            "portable_instructions_per_inference": (
                self.portable.instructions_per_inference if self.portable else None
            ),
            "portable_parity": self.portable.parity if self.portable else None,
            "memory": self.firmware.contract.to_json() if self.firmware and self.firmware.contract else None,
            "instructions_ratio": self.instructions_ratio,
            "onnxruntime_ns_median": self.onnxruntime.median_ns if self.onnxruntime else None,
            "time_ratio": self.time_ratio,
            "returns": self.loop.returns if self.loop else None,
            "float_returns": self.loop.float_returns if self.loop else None,
        }


@dataclass(frozen=True, eq=False)
class Bench:
    """A library, what it says of itself, and its runs in the order they were asked for."""

    library: ModelLibrary = field(repr=False)
    pedigree: Pedigree
    runs: tuple[Run, ...]

    @property
    def parity(self) -> str:
        """Of the references too: a wrong one is no reference."""
        said = [measured.parity for run in self.runs for measured in (run.measured, run.portable) if measured]
        return PASS if all(parity == PASS for parity in said) else FAIL

    @property
    def broken(self) -> tuple[str, ...]:
        """A sentence for every memory contract that binds and does not hold."""
        return self._not_as_predicted(binds=True)

    @property
    def missed(self) -> tuple[str, ...]:
        """And for those of a library without a budget."""
        return self._not_as_predicted(binds=False)

    def _not_as_predicted(self, binds: bool) -> tuple[str, ...]:
        contracts = ((run.device, run.firmware.contract) for run in self.runs if run.firmware)
        return tuple(
            f"{device}: {said}"
            for device, contract in contracts
            if contract and contract.binds == binds and (said := contract.broken())
        )

    @property
    def lead(self) -> Run:
        """The device the headline speaks of: the first that counts instructions, else the first."""
        counting = (run for run in self.runs if run.measured.instructions_per_inference is not None)
        return next(counting, self.runs[0])

    def to_json(self) -> dict[str, Any]:
        return {
            "module": self.library.name,
            "source": self.pedigree.source,
            "sha256": self.pedigree.sha256,
            "parity": self.parity,
            "devices": [run.to_json() for run in self.runs],
        }


@dataclass(frozen=True)
class Loop:
    """An environment to play: gymnasium's name, episodes from the seeds 0, 1, ..."""

    environment: str
    episodes: int


def device_named(name: str, library: ModelLibrary) -> Device:
    """Raises TinyrlError for what is no device, and for a project of another policy than the library's."""
    if name == CPU:
        return Device(name)
    if not name.startswith(MICRO) or name == MICRO:
        raise TinyrlError(
            f"no device '{name}'; have: cpu, and micro:DIR for a project's folder, as micro:build/cartpole"
        )
    folder = name.removeprefix(MICRO)
    project = projects.load(Path(folder))
    ours, theirs = Pedigree.of(library), Pedigree.of(project.library)
    if ours.sha256 is None or (library.name, ours.sha256) != (project.library.name, theirs.sha256):
        raise TinyrlError(
            f"the project in '{folder}' is of '{project.library.name}' from '{theirs.source}', which is not the policy of "
            f"the library, '{library.name}' from '{ours.source}'; 'tinyrl-tvm micro create' makes one of it"
        )
    return Device(name, project)


def measure(
    library: ModelLibrary,
    devices: list[Device],
    *,
    loop: Loop | None = None,
    policy: Path | None = None,
    emulate: Emulate = emulate,
    progress: Callable[[str], None] = lambda stage: None,
) -> Bench:
    """Measure the policy on every device. `policy` is the .onnx it was compiled from, for what ONNX Runtime takes and for
    the float policy's returns. Raises TinyrlError."""
    pedigree = Pedigree.of(library)
    if policy is not None:
        refuse_another_policy(policy, library)
    players = [device for device in devices if device.project is not None and device.project.platform == "baremetal"]
    if loop is not None and not players:
        raise TinyrlError(
            "--env needs a device that answers one observation at a time: micro:DIR of a baremetal project"
        )
    runs = []
    for device in devices:
        progress(f"measure {device.name}")
        if device.project is None:
            # instructions do not vary: the clock tells layers apart where nothing counts those
            runs.append(_here(device, library, policy, profiled=not players))
        else:
            # one float policy's episodes are as good as another's: the first device's are shown with all
            played_float = policy if players and device is players[0] else None
            runs.append(_on_project(device.name, device.project, emulate, loop, played_float))
    return Bench(library, pedigree, tuple(_with_float_returns(runs)))


def _with_float_returns(runs: list[Run]) -> list[Run]:
    of_float = next((run.loop.float_returns for run in runs if run.loop and run.loop.float_returns is not None), None)
    return [
        replace(run, loop=replace(run.loop, float_returns=of_float)) if run.loop is not None else run for run in runs
    ]


def _here(device: Device, library: ModelLibrary, policy: Path | None, profiled: bool) -> Run:
    measured = host.run(library, timed=True, profiled=profiled and bool(Interface.of(library).layers))
    interface, precision = Interface.of(library), Pedigree.of(library).precision
    vectors = Vectors.of(library)
    reference = None if policy is None else _onnxruntime_time(policy, interface, vectors)
    tools = ("cc", "make")
    return Run(device.name, "host", interface.target, precision, measured, vectors, tools, onnxruntime=reference)


def _on_project(name: str, project: Project, emulate: Emulate, loop: Loop | None, policy: Path | None) -> Run:
    measured = _measured(project, emulate, profiled=bool(project.interface.layers))
    vectors = Vectors.of(project.library)
    if len(vectors.answers) != len(measured.actions):  # a device that takes nothing but what the project carries
        vectors = vectors.carried
    baremetal = project.platform == "baremetal"
    return Run(
        name,
        project.platform,
        project.interface.target,
        Pedigree.of(project.library).precision,
        measured,
        vectors,
        _tools(project),
        project,
        portable=_portable(project, emulate) if baremetal else None,
        firmware=_firmware(project, measured) if baremetal else None,
        loop=close_loop(project, loop.environment, episodes=loop.episodes, policy=policy)
        if loop and baremetal
        else None,
    )


def _tools(project: Project) -> tuple[str, ...]:
    emulated = micro.RUNS.get(project.platform) is qemu.run
    return (*project.tools, *([qemu.board_of(project).architecture.emulator] if emulated else []))


def _measured(project: Project, emulate: Emulate, profiled: bool = False) -> Measurement:
    projects.ensure_built(project)
    by_semihosting = (
        project.options.get("link") != "uart"
    )  # without it a firmware serves its serial line and never ends
    if micro.RUNS.get(project.platform) is qemu.run and by_semihosting:
        profiled = profiled and project.platform in micro.PROFILED
        return qemu.run(project, profiled=profiled, emulate=emulate)
    return micro.run(project, timed=True)


def _portable(project: Project, emulate: Emulate) -> Measurement | None:
    """The same library on the same board, with its C in place of the kernels for the core. None where it has no others."""
    macro = f"TVMGEN_{project.library.name.upper()}_PORTABLE"
    sources = {path: text for path, text in project.library.files.items() if path.startswith("codegen/")}
    if not any(macro.encode() in text for text in sources.values()):
        return None
    defined = {path: f"#define {macro} 1\n".encode() + text for path, text in sources.items()}
    library = ModelLibrary({**project.library.files, **defined})
    with tempfile.TemporaryDirectory(prefix="tinyrl-portable-") as workspace:
        twin = projects.create(library, Path(workspace, "project"), project.platform, dict(project.options))
        return _measured(twin, emulate)


def _firmware(project: Project, measured: Measurement) -> Firmware:
    built = projects.built(project)
    whole, empty = (footprint(product) for product in built.products)
    assert project.board is not None
    assert measured.stack_bytes is not None
    contract = memory.measure(built)
    painted = contract.with_painted(measured.stack_bytes) if contract else None
    return Firmware(project.board, whole, whole - empty, measured.stack_bytes, painted)


def _onnxruntime_time(path: Path, interface: Interface, vectors: Vectors) -> WallTime | None:
    """One row at a time on one thread, as a control loop asks. None for a policy it does not take apart as we do."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = [interface.action_name]
    shapes = {entry.name: [n if isinstance(n, int) else 1 for n in entry.shape] for entry in session.get_inputs()}
    if any(tensor.name not in shapes for tensor in interface.inputs) or len(shapes) != len(interface.inputs):
        return None  # it needs what PruneCritic took away
    rows = [
        {
            tensor.name: row[tensor.offset : tensor.offset + tensor.length].reshape(shapes[tensor.name])
            for tensor in interface.inputs
        }
        for row in vectors.observations[:BATCH]
    ]
    session.run(outputs, rows[0])
    times = []
    for _ in range(BATCHES):
        start = time.perf_counter_ns()
        for index in range(BATCH):
            session.run(outputs, rows[index % len(rows)])
        times.append((time.perf_counter_ns() - start) / BATCH)
    times.sort()
    return WallTime(statistics.median(times), times[BATCHES // 10], times[-1 - BATCHES // 10], BATCHES, BATCH)
