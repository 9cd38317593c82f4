# SPDX-License-Identifier: Apache-2.0
"""An Arduino library is for every board; the option says which one `micro build` compiles its example for.

Source: Arduino's library specification 1.5, revision 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyrl_tvm import __version__
from tinyrl_tvm.project.platforms.platform import Layout, Option, Options, Platform

REPLAY = "examples/Replay"


@dataclass(frozen=True)
class ArduinoBoard:
    """`fqbn` is what Arduino calls it, `mcu` what simavr does."""

    fqbn: str
    mcu: str
    clock_hz: int = 16_000_000


ARDUINO_BOARDS: Mapping[str, ArduinoBoard] = {
    "mega": ArduinoBoard("arduino:avr:mega:cpu=atmega2560", "atmega2560"),
    "uno": ArduinoBoard("arduino:avr:uno", "atmega328p"),
}


def _holes(options: Options, _: Sequence[str]) -> dict[str, Any]:
    return {"board": ARDUINO_BOARDS[options["board"]], "version": __version__}


ARDUINO = Platform(
    "arduino",
    "a library for the Arduino IDE and arduino-cli, with a sketch that replays the test vectors",
    products=("extras/out/Replay.ino.elf",),
    layout=Layout(code="src", flat=True, replay=REPLAY, model="extras/model.tar"),
    options=(Option("board", tuple(ARDUINO_BOARDS), "mega", "the board that micro build compiles the example for"),),
    command=("make", "-C", "extras"),
    flash=(
        *("arduino-cli", "upload", "{{ '-p' if port }}", "{{ port }}", "--fqbn", "{{ board.fqbn }}"),
        *("--input-file", "extras/out/Replay.ino.hex"),
    ),
    tools=lambda _: ("avr-gcc", "arduino-builder"),
    holes=_holes,
)
