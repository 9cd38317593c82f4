# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyrl_tvm import toolchain
from tinyrl_tvm.project.platforms.platform import LOOP_FILES, Option, Options, Platform
from tinyrl_tvm.targets import ARCHITECTURES, BOARDS, TARGETS, board_named


def _holes(options: Options, paths: Sequence[str]) -> dict[str, Any]:
    board = board_named(options["board"])
    architecture = board.architecture
    tools = (toolchain.TOOLS[name] for name in (architecture.compiler, architecture.emulator))
    return {
        "board": board,
        "board_cflags": " ".join(TARGETS[board.target].cflags),
        "architecture": architecture,
        "architecture_sources": [
            path for path in paths if path.startswith(f"{architecture.name}/") and path.endswith(".c")
        ],
        "packages": [package for tool in tools for package in tool.packages],
    }


def _other_architectures(options: Options) -> frozenset[str]:
    return frozenset(ARCHITECTURES) - {board_named(options["board"]).architecture.name}


BAREMETAL = Platform(
    "baremetal",
    "firmware without an operating system: start-up code, linker script, console over semihosting",
    products=("out/firmware.elf", "out/firmware_empty.elf"),
    borrows={f"rpc/{name}": f"src/{name}" for name in ("rpc.c", "rpc.h")} | LOOP_FILES,
    options=(Option("board", tuple(BOARDS), "mps3-an547", "the board to build for"),),
    tools=lambda options: (board_named(options["board"]).architecture.compiler,),
    target=lambda options: board_named(options["board"]).target,
    holes=_holes,
    leaves_out=_other_architectures,
    builds_cmsis_nn=True,
)
