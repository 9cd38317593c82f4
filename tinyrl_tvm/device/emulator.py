# SPDX-License-Identifier: Apache-2.0
"""Run a firmware on a board that QEMU emulates, in a folder whose files it reads and writes by semihosting, or with
its serial line as a stream."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Protocol

from tinyrl_tvm import toolchain
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.targets import Board

PIPE_TIMEOUT_S = 5.0
PIPE_BYTES = 65536

FAULT = re.compile(r"^FAULT (.*)$", re.MULTILINE)


class Emulate(Protocol):
    """A way to run `firmware` in `folder`: here, or on another machine. Returns what it printed."""

    def __call__(self, board: Board, firmware: Path, folder: Path, timeout_s: float) -> str: ...


def emulate(board: Board, firmware: Path, folder: Path, timeout_s: float) -> str:
    """On this machine's QEMU. Raises TinyrlError when the firmware faults, hangs or stops early."""
    try:
        done = subprocess.run(
            _command(board, board.emulator_arguments, firmware),
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
    if FAULT.search(printed) or "\ndone\n" not in printed:
        raise _why_stopped(board, firmware, printed, done.stderr.decode(errors="replace"))
    return printed


class PipedFirmware:
    """A firmware that answers the host over two named pipes in `folder`, while it runs in a `with`."""

    def __init__(self, board: Board, firmware: Path, folder: Path) -> None:
        self.name = f"'{firmware}' on {board.name}"
        self._board, self._firmware, self._folder = board, firmware, folder

    def __enter__(self) -> PipedFirmware:
        pipes = [self._folder / name for name in ("questions.pipe", "answers.pipe")]
        for path in pipes:
            os.mkfifo(path)
        with (self._folder / "printed").open("wb") as printed:  # no pipe: nobody empties it while the firmware runs
            self._process = subprocess.Popen(
                _command(self._board, self._board.emulator_arguments, self._firmware),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # as in emulate()
            )
        # Both ways open, so that to open waits for nobody and a firmware that leaves ends no write of ours.
        self._questions, self._answers = (os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in pipes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it waits for a question, deaf to anything milder
        self._process.wait()
        os.close(self._questions)
        os.close(self._answers)

    def send(self, data: bytes) -> None:
        """Raises TinyrlError when the firmware is gone, or reads no more and the pipe is full."""
        while data:
            self._refuse_gone()
            try:
                data = data[os.write(self._questions, data) :]
            except BlockingIOError:
                if not select.select([], [self._questions], [], PIPE_TIMEOUT_S)[1]:
                    raise NoAnswer(f"{self.name} takes no more questions; it hangs") from None

    def receive(self, timeout_s: float) -> bytes:
        if select.select([self._answers], [], [], timeout_s)[0]:
            return os.read(self._answers, PIPE_BYTES)
        self._refuse_gone()
        return b""

    def _refuse_gone(self) -> None:
        if self._process.poll() is not None:
            printed = (self._folder / "printed").read_bytes().decode(errors="replace").replace("\r\n", "\n")
            raise _why_stopped(self._board, self._firmware, printed)


class EmulatedSerial:
    """A firmware that talks over the serial line of an emulated board, while it runs in a `with`."""

    def __init__(self, board: Board, firmware: Path) -> None:
        self.name = f"'{firmware}' on {board.name}"
        self._board, self._firmware = board, firmware

    def __enter__(self) -> EmulatedSerial:
        self._process = subprocess.Popen(
            _command(self._board, self._board.serial_emulator_arguments, self._firmware),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # as in emulate()
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        os.set_blocking(self._to.fileno(), False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def send(self, data: bytes) -> None:
        """Raises TinyrlError when the emulator is gone, or takes no more."""
        while data:
            try:
                data = data[os.write(self._to.fileno(), data) :]
            except BlockingIOError:
                if not select.select([], [self._to], [], PIPE_TIMEOUT_S)[1]:
                    raise NoAnswer(f"{self.name} takes no more questions; it hangs") from None
            except BrokenPipeError:
                raise self._gone() from None

    def receive(self, timeout_s: float) -> bytes:
        if not select.select([self._from], [], [], timeout_s)[0]:
            return b""
        received = os.read(self._from.fileno(), PIPE_BYTES)
        if not received:
            raise self._gone()
        return received

    def _gone(self) -> TinyrlError:
        return TinyrlError(f"the emulator of {self.name} ended")


def _command(board: Board, arguments: tuple[str, ...], firmware: Path) -> list[str | Path]:
    return [toolchain.find(board.architecture.emulator), *arguments, "-kernel", firmware]


def _why_stopped(board: Board, firmware: Path, printed: str, complaints: str = "") -> TinyrlError:
    if fault := FAULT.search(printed):
        return TinyrlError(f"'{firmware}' faulted on {board.name}: {fault[1]}")
    reason = next(iter(complaints.strip().splitlines() + printed.strip().splitlines()[-1:]), "it printed nothing")
    return TinyrlError(f"'{firmware}' stopped early on {board.name}: {reason}")
