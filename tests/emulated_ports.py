# SPDX-License-Identifier: Apache-2.0
"""A board on a serial port: QEMU, whose serial line is a pseudo-terminal that the operating system made."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinyrl_tvm import toolchain
from tinyrl_tvm.project import Project


@dataclass(frozen=True)
class EmulatedPort:
    """`path` is what a user gives to --port."""

    path: str
    process: subprocess.Popen[str]
    monitor: Path

    def reset(self) -> None:
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(str(self.monitor))
            console.sendall(b"system_reset\n")
            time.sleep(0.3)  # until the emulator has read it


@contextlib.contextmanager
def on_a_port(project: Project, folder: Path) -> Iterator[EmulatedPort]:
    board, monitor = project.board, folder / "monitor"
    arguments = [*board.serial_emulator_arguments[:-1], "pty"]
    arguments[arguments.index("-monitor") + 1] = f"unix:{monitor},server=on,wait=off"
    firmware = project.folder / "out" / "firmware.elf"
    command = [toolchain.find(board.architecture.emulator), *arguments, "-kernel", firmware]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said = process.stdout.readline()
        try:
            yield EmulatedPort(re.search(r"/dev/\S+", said)[0], process, monitor)
        finally:
            process.kill()
