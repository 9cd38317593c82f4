# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyrl_tvm import toolchain
from tinyrl_tvm.project.platforms.platform import (
    ANY_RELEASE,
    LOOP_FILES,
    PROFILE_FILES,
    Option,
    Options,
    Platform,
    flash_words,
)
from tinyrl_tvm.targets import ARCHITECTURES, BOARDS, TARGETS, board_named

# What joins the firmware to the host, and the files that are for that alone; a serial line takes the board's driver too.
LINKS: Mapping[str, tuple[str, ...]] = {
    "semihosting": ("src/semihosting.c", "src/semihosting.h", "src/serve.c", "src/stream.c", "src/stream.h"),
    "uart": ("uart/serve.c", "uart/uart.h"),
}
# And of the control loop: by a serial line nobody gives it a recording.
LOOP_LINKS: Mapping[str, tuple[str, ...]] = {
    "semihosting": ("src/semihosting.c", "src/loop/recording_files.c"),
    "uart": ("uart/serve.c", "src/rpc.c", "src/loop/no_recording.c"),
}
DRIVERS = {board.name: f"uart/{board.uart.driver}.c" for board in BOARDS.values()}


def _holes(options: Options, paths: Sequence[str]) -> dict[str, Any]:
    board, link = board_named(options["board"]), options["link"]
    architecture = board.architecture
    starting = [path for path in paths if path.startswith(f"{architecture.name}/") and path.endswith(".c")]
    tools = (toolchain.TOOLS[name] for name in (architecture.compiler, architecture.emulator))
    return {
        "board": board,
        "link": link,
        "link_sources": [path for path in _link_files(options) if path.endswith(".c")],
        "emulator_arguments": board.serial_emulator_arguments if link == "uart" else board.emulator_arguments,
        "board_cflags": " ".join(TARGETS[board.target].cflags),
        "architecture": architecture,
        "architecture_sources": starting,
        "loop_sources": ["src/vectors.c", "src/console.c", *starting, *_loop_sources(options)],
        "packages": [package for tool in tools for package in tool.packages],
    }


def _link_files(options: Options) -> tuple[str, ...]:
    files = LINKS[options["link"]]
    return (*files, DRIVERS[options["board"]]) if options["link"] == "uart" else files


def _loop_sources(options: Options) -> tuple[str, ...]:
    own = [path for path in LOOP_FILES.values() if path.endswith(".c")]
    driver = (DRIVERS[options["board"]],) if options["link"] == "uart" else ()
    return ("src/loop/main.c", *own, "src/loop/clock.c", *LOOP_LINKS[options["link"]], *driver)


def _left_out(options: Options) -> frozenset[str]:
    """The start-up code of other architectures, the files of the other link, the drivers of other boards."""
    architectures = set(ARCHITECTURES) - {board_named(options["board"]).architecture.name}
    linking = {path for links in (LINKS, LOOP_LINKS) for files in links.values() for path in files}
    linked = {*_link_files(options), *LOOP_LINKS[options["link"]]}
    return frozenset(architectures | (linking | set(DRIVERS.values())) - linked)


BAREMETAL = Platform(
    "baremetal",
    "firmware without an operating system: start-up code, linker script, console over semihosting or a serial line",
    products=("out/firmware.elf", "out/firmware_empty.elf"),
    profile="out/firmware_profile.elf",
    borrows={path: f"src/{path.partition('/')[2]}" for path in ("rpc/rpc.c", "rpc/rpc.h", *PROFILE_FILES)} | LOOP_FILES,
    options=(
        Option("board", tuple(BOARDS), "mps3-an547", "the board to build for"),
        Option("link", tuple(LINKS), "semihosting", "what joins it to the host: a debugger, or a serial line"),
        Option("flash_command", (), "", "what micro flash runs, as 'pyocd flash -t nrf51 {elf}'", check=flash_words),
    ),
    tools=lambda options: (board_named(options["board"]).architecture.compiler,),
    target=lambda options: board_named(options["board"]).target,
    holes=_holes,
    leaves_out=_left_out,
    compiles_checkout=True,
    cmsis_nn=lambda _: ANY_RELEASE,
)
