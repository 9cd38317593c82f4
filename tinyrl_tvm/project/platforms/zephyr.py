# SPDX-License-Identifier: Apache-2.0
"""A module for Zephyr that any application can add, and an application around it.

A release decides what boards are called and which module has Arm's headers. Source: Zephyr's release notes: boards got
qualifiers in 3.7, mps3/an547 became mps3/corstone300/an547 in 4.0, native_sim came in 3.5, cmsis_6 is needed since 4.2, and
CMSIS-NN was updated to 6.0.0 in 3.7. Its module has 7.0.0 since zephyr#85547, which the manifest of 4.2 names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyrl_tvm.project.platforms.platform import Layout, Option, Options, Platform

RELEASES = ("3.4", "3.5", "3.6", "3.7", "4.0", "4.1", "4.2", "4.3", "4.4")

NATIVE = "native"  # this machine, as Zephyr simulates it

# Our name of a board: the release since which Zephyr calls it so.
BOARD_NAMES: Mapping[str, Mapping[str, str]] = {
    "mps3-an547": {"3.4": "mps3_an547", "3.7": "mps3/an547", "4.0": "mps3/corstone300/an547"},
    "mps2-an521": {"3.4": "mps2_an521", "3.7": "mps2/an521/cpu0"},
    "qemu-cortex-m3": {"3.4": "qemu_cortex_m3"},
    NATIVE: {"3.4": "native_posix", "3.5": "native_sim"},
}
# The cores that a library may be compiled for. None: any, in C; the AN521's first core has neither FPU nor DSP.
TARGETS_OF_BOARDS = {"mps3-an547": "cortex-m55", "mps2-an521": None, "qemu-cortex-m3": "cortex-m3", NATIVE: None}
ARM_HEADERS = {"3.4": "cmsis", "4.2": "cmsis_6"}
CMSIS_NN = {"3.4": "4.1.0", "3.7": "6.0.0", "4.2": "7.0.0"}


def _since(names: Mapping[str, str], release: str) -> str:
    """The newest of `names` that `release` knows."""
    return [name for since, name in names.items() if RELEASES.index(since) <= RELEASES.index(release)][-1]


def _holes(options: Options, _: Sequence[str]) -> dict[str, Any]:
    release = options["zephyr_version"]
    boards = {board: _since(names, release) for board, names in BOARD_NAMES.items()}
    return {
        "release": release,
        "board": boards[options["board"]],
        "boards": list(boards.values()),
        "cortex_m_boards": [name for board, name in boards.items() if board != NATIVE],
        "board_with_fpu": boards["mps3-an547"].replace("/", "_"),
        "arm_headers": _since(ARM_HEADERS, release),
    }


def _cmsis_nn(options: Options) -> str:
    """Its Kconfig depends on CPU_CORTEX_M."""
    return "" if options["board"] == NATIVE else _since(CMSIS_NN, options["zephyr_version"])


ZEPHYR = Platform(
    "zephyr",
    "a module for Zephyr, and an application that replays the test vectors",
    products=("build/zephyr/zephyr.elf",),
    layout=Layout(replay="app/src", model="model.tar"),
    options=(
        Option("board", tuple(BOARD_NAMES), "mps3-an547", "the board that micro build builds for"),
        Option("zephyr_version", RELEASES, "4.4", "the release whose names of boards and modules are used"),
    ),
    command=("west", "build", "-b", "{{ board }}", "-d", "build", "app"),
    flash=("west", "flash", "-d", "build"),
    tools=lambda _: ("west",),
    target=lambda options: TARGETS_OF_BOARDS[options["board"]],
    holes=_holes,
    cmsis_nn=_cmsis_nn,
)
