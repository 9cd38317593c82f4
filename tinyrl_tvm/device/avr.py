# SPDX-License-Identifier: Apache-2.0
"""Run the example of a built Arduino library on simavr, and read what it writes to its serial port.

simavr has no end of a program and no input for its serial port: it is stopped at the sketch's last word, and answers
the test vectors that the sketch carries, no others.
"""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path

import numpy as np

from tinyrl_tvm import project as projects
from tinyrl_tvm import toolchain
from tinyrl_tvm.device.measurement import Measurement, compare_with_float
from tinyrl_tvm.device.replayed import judge_carried, read_replay
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.interface import Vectors
from tinyrl_tvm.project import Project
from tinyrl_tvm.project.platforms.arduino import ARDUINO_BOARDS, ArduinoBoard

TIMEOUT_S = 300.0  # a float policy takes a tenth of a second an inference on AVR, and simavr runs about as fast as one

# A line of the serial port is green, and shows a control character as a dot: its own end, too.
SERIAL = re.compile(rb"\x1b\[32m(.*)\n")


def run(
    project: Project, observations: np.ndarray | None = None, *, timed: bool = False, timeout_s: float = TIMEOUT_S
) -> Measurement:
    """Replay the vectors. Raises TinyrlError when the sketch stops or hangs."""
    if observations is not None:
        raise TinyrlError(
            "simavr takes no observations, it replays the test vectors; on a board, type them into the serial monitor"
        )
    interface, carried = project.interface, Vectors.of(project.library).carried
    firmware = projects.built(project).products[0]
    printed = _printed(ARDUINO_BOARDS[project.options["board"]], firmware, timeout_s)
    replayed = read_replay(printed, interface)
    if replayed is None:
        raise TinyrlError(f"the sketch of '{project.folder}' does not report as a project of ours; create it again")
    return Measurement(
        device=f"simavr {project.options['board']}",
        actions=replayed.actions,
        statuses=replayed.statuses,
        vectors=judge_carried(replayed, interface, carried),
        likeness=compare_with_float(interface, carried, replayed.actions),
    )


def _printed(board: ArduinoBoard, firmware: Path, timeout_s: float) -> str:
    command = [str(toolchain.find("simavr")), "-m", board.mcu, "-f", str(board.clock_hz), str(firmware)]
    emulator = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    clock = threading.Timer(timeout_s, emulator.kill)
    said: list[bytes] = []
    with emulator:
        assert emulator.stdout is not None
        clock.start()
        try:
            for line in emulator.stdout:
                said.append(line)
                if b"\x1b[32mdone." in line:
                    return _serial(b"".join(said))
            expired = not clock.is_alive()
        finally:
            clock.cancel()
            emulator.kill()
    if expired:
        raise NoAnswer(f"'{firmware}' was not done within {timeout_s:g} s on {board.mcu}; it hangs, or is too large")
    last = said[-1].decode(errors="replace").strip() if said else "it printed nothing"
    raise TinyrlError(f"'{firmware}' stopped early on {board.mcu}: {last}")


def _serial(log: bytes) -> str:
    """What went to the serial port, put together again: simavr cuts a line at 256 characters."""
    parts = (part.decode(errors="replace") for part in SERIAL.findall(log))
    return "".join(part.rstrip(".") + "\n" if part.endswith(".") else part for part in parts)
