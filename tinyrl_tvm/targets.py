# SPDX-License-Identifier: Apache-2.0
"""The cores a policy can be compiled for, and the boards a project can be generated for: one table each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinyrl_tvm.errors import unknown_name

if TYPE_CHECKING:
    from tvm.target import Target as TvmTarget


@dataclass(frozen=True)
class Target:
    """A core: how TVM's LLVM is told of it, and how a stock C compiler is.

    `kernels` names the schedule rules in `schedules.RULES`; what they give is printed as assembly under `guard`, the
    preprocessor condition for which it takes the place of the C twin; without a guard they are printed as C.
    """

    name: str
    summary: str
    kernels: str
    guard: str | None = None
    cflags: tuple[str, ...] = ()
    llvm: Mapping[str, object] = field(default_factory=dict)

    def tvm(self, attributes: tuple[str, ...] = ()) -> TvmTarget:
        """The target as TVM's LLVM knows it, with further `mattr`."""
        from tvm.target import Target as TvmTarget

        told: dict[str, Any] = {"kind": "llvm", "num-cores": 1, **self.llvm}
        if attributes:
            told["mattr"] = [*told.get("mattr", []), *attributes]
        return TvmTarget(told)


@dataclass(frozen=True)
class Board:
    """A board QEMU can emulate. Sizes in bytes; `tick_hz` is SysTick's rate under `-icount shift=0`."""

    name: str
    summary: str
    target: str
    machine: str
    flash_bytes: int
    ram_bytes: int
    tick_hz: int


TARGETS = {
    target.name: target
    for target in (
        Target(
            "cortex-m55",
            "Arm Cortex-M55 with Helium (MVE integer and float)",
            kernels="mve",
            guard="defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2)",
            cflags=("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"),
            llvm={
                "mtriple": "thumbv8.1m.main-none-eabihf",
                "mcpu": "cortex-m55",
                "mattr": ["+mve.fp"],
                "mfloat-abi": "hard",
                "vector-width": 128,
                "fast-math-contract": True,  # a float product and its sum are one vfma
                # Loop strength reduction turns the immediate offsets of vector loads into additions, and the scheduler,
                # guarding register pressure, undoes the rest. P1/P2/P3 whole: 1,555/1,592/21,616 instructions without
                # the two, 922/894/11,391 with them.
                "cl-opt": ["-disable-lsr:bool=true", "-misched-regpressure:bool=false"],
            },
        ),
        Target("host", "C99 laid out so that a C compiler finds this machine's vectors", kernels="simd"),
        Target("wasm32", "WebAssembly with SIMD (simd128): C99 for clang, runs on any core", kernels="wasm"),
        Target("portable", "portable C99 for any core with a C compiler, one output at a time", kernels="portable"),
    )
}

BOARDS = {
    board.name: board
    for board in (
        Board(
            "mps3-an547",
            "Arm MPS3 with the AN547 image: Cortex-M55",
            target="cortex-m55",
            machine="mps3-an547",
            flash_bytes=512 * 1024,
            ram_bytes=512 * 1024,
            tick_hz=32_000_000,
        ),
    )
}


def target_named(name: str) -> Target:
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS)
    return TARGETS[name]


def board_named(name: str) -> Board:
    if name not in BOARDS:
        raise unknown_name("board", name, BOARDS)
    return BOARDS[name]
