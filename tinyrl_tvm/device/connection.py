# SPDX-License-Identifier: Apache-2.0
"""Ask a policy on a device, one observation at a time, over a stream of bytes that may be disturbed.

    with connected(project) as device:
        action, counters = device(observation)

A question that stays without an answer is repeated under its number; the device answers a number it knows from memory,
so no observation is lost and none is asked twice.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tinyrl_tvm import project as projects
from tinyrl_tvm.device import frames
from tinyrl_tvm.device.emulator import EmulatedSerial, PipedFirmware
from tinyrl_tvm.device.frames import Frame, FrameReader
from tinyrl_tvm.device.observations import observation_rows
from tinyrl_tvm.device.serial_line import Port, SerialLine
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.project import Project
from tinyrl_tvm.targets import Board

TIMEOUT_S = (
    30.0  # for an answer, all repetitions included; a large float policy takes a second on an emulated Cortex-M0
)
FIRST_PATIENCE_S = 0.1  # before a question is repeated; doubled each time, and a repetition in vain does no harm

SIZES = struct.Struct("<III")
COUNTERS = struct.Struct("<iII")
TEXT = struct.Struct("<II")

FAULT = re.compile(rb"^FAULT ([^\r\n]*)\r?\n", re.MULTILINE)


class Stream(Protocol):
    """Bytes to and from a device, as pipes and serial ports carry them."""

    name: str

    def send(self, data: bytes) -> None: ...

    def receive(self, timeout_s: float) -> bytes:
        """What came meanwhile, b"" when nothing did. Raises TinyrlError when the device is gone."""
        ...


@dataclass(frozen=True)
class Counters:
    """What the device says beside its action: the policy's `status`, `ticks` of its counter for this inference, and how
    many `inferences` it has made since its reset."""

    status: int
    ticks: int
    inferences: int


class Connection:
    """A device that has been greeted. `resets` counts how often it had to be greeted again."""

    def __init__(self, stream: Stream, interface: Interface, timeout_s: float = TIMEOUT_S) -> None:
        self.interface = interface
        self.resets = 0
        self._stream = stream
        self._timeout_s = timeout_s
        self._dtype = np.dtype(interface.action_dtype).newbyteorder("<")
        self._answer_bytes = COUNTERS.size + interface.n_actions * self._dtype.itemsize
        self._reader = FrameReader(max(SIZES.size, TEXT.size, self._answer_bytes))
        self._sequence = secrets.randbits(
            32
        )  # not a number that an earlier host's answers, still on their way, may bear
        self._garbage_bytes = 0
        self._has_heard = False
        self._greet(time.monotonic() + timeout_s)

    def __call__(self, observation: np.ndarray) -> tuple[np.ndarray, Counters]:
        """The action (n_actions,) for one observation (n_obs,)."""
        payload: np.ndarray = observation_rows(self.interface, observation).astype("<f4")
        if len(payload) != 1:
            raise TinyrlError(f"{len(payload)} observations at once; a device is asked one by one")
        answer = self._ask_greeted(frames.ASK, payload.tobytes(), time.monotonic() + self._timeout_s)
        if answer.kind != frames.ANSWERED or len(answer.payload) != self._answer_bytes:
            raise self._stranger()
        action = np.frombuffer(answer.payload, self._dtype, offset=COUNTERS.size)
        return action.astype(self.interface.action_dtype), Counters(*COUNTERS.unpack_from(answer.payload))

    def report(self, timeout_s: float) -> str:
        """What the program on the device prints of itself. A text that was damaged on its way is asked for again."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._ask_greeted(frames.REPORT, b"", deadline)
            if answer.kind != frames.REPORTED or len(answer.payload) != TEXT.size:
                raise self._stranger()
            length, crc = TEXT.unpack(answer.payload)
            text = bytes(self._reader.passed_over[-length:]) if length else b""
            if len(text) == length and zlib.crc32(text) == crc:
                return text.decode(errors="replace")

    def _ask_greeted(self, kind: int, payload: bytes, deadline: float) -> Frame:
        question = Frame(kind, self._next(), payload)
        while (answer := self._ask(question, deadline)).kind == frames.NOT_GREETED:
            self.resets += 1
            self._greet(deadline)
        return answer

    def _greet(self, deadline: float) -> None:
        answer = self._ask(Frame(frames.HELLO, self._next()), deadline)
        if answer.version != frames.VERSION:
            raise TinyrlError(
                f"{self._stream.name} speaks version {answer.version} of the protocol, this tinyrl-tvm {frames.VERSION}; "
                "create the project again with -f and build it"
            )
        if answer.kind != frames.GREETED or len(answer.payload) != SIZES.size:
            raise self._stranger()
        n_obs, n_actions, is_float = SIZES.unpack(answer.payload)
        expected = (self.interface.n_obs, self.interface.n_actions, int(self.interface.action_dtype == "float32"))
        if (n_obs, n_actions, is_float) != expected:
            raise TinyrlError(
                f"{self._stream.name} has another policy, of {n_obs} observations and {n_actions} actions; "
                f"'{self.interface.name}' has {self.interface.n_obs} and {self.interface.n_actions}: build the project again"
            )

    def _next(self) -> int:
        self._sequence = (self._sequence + 1) % 2**32
        return self._sequence

    def _ask(self, question: Frame, deadline: float) -> Frame:
        """The answer of the question's number. Raises NoAnswer when none comes before `deadline`."""
        patience_s = FIRST_PATIENCE_S
        while (now := time.monotonic()) < deadline:
            self._stream.send(question.to_bytes())
            repeat_at = min(now + patience_s, deadline)
            patience_s *= 2
            while (left_s := repeat_at - time.monotonic()) > 0:
                received = self._stream.receive(left_s)
                self._garbage_bytes += len(received)
                for frame in self._reader.feed(received):
                    self._has_heard = True
                    if frame.sequence == question.sequence:
                        return frame
                if fault := FAULT.search(self._reader.passed_over):
                    raise TinyrlError(f"{self._stream.name} faulted: {fault[1].decode(errors='replace')}")
        if self._garbage_bytes and not self._has_heard:
            raise TinyrlError(
                f"{self._stream.name} sent {self._garbage_bytes:,} bytes and no frame of the protocol in "
                f"{self._timeout_s:g} s; is it running this project's firmware?"
            )
        raise NoAnswer(
            f"{self._stream.name} did not answer within {self._timeout_s:g} s; it hangs, or was disconnected"
        )

    def _stranger(self) -> TinyrlError:
        return TinyrlError(f"{self._stream.name} does not answer as a project of ours; create it again and build it")


@contextlib.contextmanager
def connected(project: Project, timeout_s: float = TIMEOUT_S, port: Port | None = None) -> Iterator[Connection]:
    """The built project's firmware, running and greeted: at `port` where it was flashed, else on an emulated board.
    Raises TinyrlError when that cannot be."""
    board = board_of(project)
    is_serial = project.options["link"] == "uart"
    if port is not None:
        if not is_serial:
            raise TinyrlError(
                f"the project in '{project.folder}' talks to a debugger, not over a serial port; create it with "
                "--project-option link=uart"
            )
        with SerialLine(port) as line:
            yield Connection(line, project.interface, timeout_s)
        return
    firmware = projects.built(project).products[0]
    if is_serial:
        with EmulatedSerial(board, firmware) as emulated:
            yield Connection(emulated, project.interface, timeout_s)
        return
    with (
        tempfile.TemporaryDirectory(prefix="tinyrl-qemu-") as workspace,
        PipedFirmware(board, firmware, Path(workspace)) as stream,
    ):
        yield Connection(stream, project.interface, timeout_s)


def board_of(project: Project) -> Board:
    """What the project runs on; its counter's rate tells what a tick is."""
    if project.platform != "baremetal" or project.board is None:
        raise TinyrlError(
            f"a project of '{project.platform}' cannot be asked one observation at a time; create one of 'baremetal'"
        )
    return project.board
