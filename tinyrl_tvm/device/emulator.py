# SPDX-License-Identifier: Apache-2.0
"""Run a firmware on a board that QEMU emulates, in a folder whose files it reads and writes by semihosting."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Protocol

from tinyrl_tvm import toolchain
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.targets import Board

FAULT = re.compile(r"^FAULT (.*)$", re.MULTILINE)


class Emulate(Protocol):
    """A way to run `firmware` in `folder`: here, or on another machine. Returns what it printed."""

    def __call__(self, board: Board, firmware: Path, folder: Path, timeout_s: float) -> str: ...


def emulate(board: Board, firmware: Path, folder: Path, timeout_s: float) -> str:
    """On this machine's QEMU. Raises TinyrlError when the firmware faults, hangs or stops early."""
    command: list[str | Path] = [
        toolchain.find(board.architecture.emulator),
        *board.emulator_arguments,
        *("-kernel", firmware),
    ]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            start_new_session=True,  # Ctrl-C is for us: an emulator that it ended would look like a firmware that did
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(
            f"'{firmware}' did not end within {timeout_s:g} s on {board.name}; it hangs, "
            "or the policy is too large to emulate"
        ) from None
    printed = done.stdout.decode(errors="replace").replace("\r\n", "\n")
    if fault := FAULT.search(printed):
        raise TinyrlError(f"'{firmware}' faulted on {board.name}: {fault[1]}")
    if "\ndone\n" not in printed:
        complaints = done.stderr.decode(errors="replace").strip().splitlines() + printed.strip().splitlines()[-1:]
        reason = next(iter(complaints), "it printed nothing")
        raise TinyrlError(f"'{firmware}' stopped early on {board.name}: {reason}")
    return printed
