# SPDX-License-Identifier: Apache-2.0
"""A solution of the CMSIS-Toolbox, the policy as a layer in it and as a software pack.

Source: CMSIS-Toolbox, "csolution project format"; Open-CMSIS-Pack, "package description (*.pdsc)", schema 1.7.36.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyrl_tvm import __version__
from tinyrl_tvm.project.platforms.platform import ANY_RELEASE, Option, Options, Platform
from tinyrl_tvm.targets import board_named

# A device of the pack ARM::Cortex_DFP, and the board of QEMU that has its core and memory at the same addresses.
CMSIS_DEVICES = {
    "ARMCM55": "mps3-an547",
    "ARMCM7": "mps2-an500",
    "ARMCM4": "mps2-an386",
    "ARMCM3": "mps2-an385",
}

_BORROWED = {
    **{f"baremetal/src/{name}": f"src/{name}" for name in ("semihosting.c", "semihosting.h", "core.h")},
    **{f"baremetal/src/{name}": f"src/{name}" for name in ("stream.c", "stream.h")},
    "baremetal/cortex-m/core.c": "src/core.c",
}


def _holes(options: Options, paths: Sequence[str]) -> dict[str, Any]:
    return {
        "device": options["device"],
        "version": __version__,
        "project_sources": sorted(path.removesuffix(".jinja") for path in paths if path.endswith((".c", ".c.jinja"))),
    }


CMSIS = Platform(
    "cmsis",
    "a solution for the CMSIS-Toolbox, Keil Studio and VS Code, with the policy as a layer and as a pack",
    products=("out/Replay/Release/Replay.elf",),
    borrows=_BORROWED,
    options=(Option("device", tuple(CMSIS_DEVICES), "ARMCM55", "the device to build for"),),
    command=("cbuild", "Policy.csolution.yml", "--packs", "--update-rte"),
    tools=lambda _: ("arm-none-eabi-gcc",),
    target=lambda options: board_named(CMSIS_DEVICES[options["device"]]).target,
    holes=_holes,
    cmsis_nn=lambda _: ANY_RELEASE,
)
