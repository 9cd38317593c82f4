# SPDX-License-Identifier: Apache-2.0
"""Trials on a real board: a command flashes each, and its report is read from the serial port."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinyrl_tvm.device.connection import Connection
from tinyrl_tvm.device.farm import Lost
from tinyrl_tvm.device.serial_line import Port, SerialLine
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.project.flashing import filled, run_flasher
from tinyrl_tvm.targets import Board, target_named
from tinyrl_tvm.tune.firmware import empty_library


@dataclass(frozen=True)
class FlashedBoard:
    """One board, so one trial at a time."""

    port: Port
    command: str

    def emulate(self, board: Board, firmware: Path, folder: Path, timeout_s: float) -> str:
        """As `emulator.emulate`. Raises Lost where flashing fails or nothing of ours is at the port: no other trial would
        fare better."""
        interface = Interface.of(empty_library(target_named(board.target)))  # what a trial's firmware greets with
        with contextlib.ExitStack() as stack:
            with _lost_not_rejected():
                run_flasher(filled(self.command, firmware, self.port.path))
                line = stack.enter_context(SerialLine(self.port, patience_s=timeout_s))
                device = Connection(line, interface, timeout_s)
            return device.report(timeout_s)


@contextlib.contextmanager
def _lost_not_rejected() -> Iterator[None]:
    try:
        yield
    except NoAnswer:
        raise
    except TinyrlError as error:
        raise Lost(str(error)) from None
