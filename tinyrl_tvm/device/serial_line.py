# SPDX-License-Identifier: Apache-2.0
"""A board on a serial line of this machine, by pyserial.

with SerialLine("/dev/ttyACM0", 115200) as stream:
    Connection(stream, interface)
"""

from __future__ import annotations

import errno
import fcntl
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tinyrl_tvm.errors import NoAnswer, TinyrlError

if TYPE_CHECKING:
    import serial

BAUD = 115200
WRITE_TIMEOUT_S = 5.0
LATE_S = 0.1  # between looks for a port that is not there yet
READ_BYTES = 65536


@dataclass(frozen=True)
class Port:
    """Where a board is. Its firmware decides the `baud`, UART_BAUD in `src/board.h` of a project."""

    path: str
    baud: int = BAUD


class SerialLine:
    """A `connection.Stream`, open while it is used in a `with`. `patience_s` is for a port that appears late: a board that
    was just flashed is gone for a moment."""

    def __init__(self, port: Port, patience_s: float = 0.0) -> None:
        self.name = f"the board at '{port.path}'"
        self._port, self._patience_s = port, patience_s

    def __enter__(self) -> SerialLine:
        deadline = time.monotonic() + self._patience_s
        while not Path(self._port.path).exists() and time.monotonic() < deadline:
            time.sleep(LATE_S)
        self._serial = self._opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._serial.close()

    def send(self, data: bytes) -> None:
        """Raises TinyrlError when the board is gone, NoAnswer when it takes nothing."""
        import serial

        try:
            self._serial.write(data)
        except serial.SerialTimeoutException:
            raise NoAnswer(f"{self.name} takes no more questions; it hangs") from None
        except OSError:  # SerialException is one
            raise self._gone() from None

    def receive(self, timeout_s: float) -> bytes:
        try:
            self._serial.timeout = timeout_s
            first = self._serial.read(1)
            return first + self._serial.read(min(self._serial.in_waiting, READ_BYTES)) if first else b""
        except (OSError, TypeError):  # pyserial's own slip where a port is closed while it reads
            raise self._gone() from None

    def _gone(self) -> TinyrlError:
        return TinyrlError(f"{self.name} is gone; was it unplugged?")

    def _opened(self) -> serial.Serial:
        try:
            import serial
        except ImportError:
            raise TinyrlError("no pyserial to open serial ports with; pip install 'tinyrl-tvm[board]'") from None

        path, baud = self._port.path, self._port.baud
        try:
            port = serial.Serial(path, baud, exclusive=True, write_timeout=WRITE_TIMEOUT_S)
        except (OSError, ValueError, OverflowError) as error:
            raise TinyrlError(_why_not_open(path, baud, error)) from None
        # pyserial's lock keeps out those that ask for it; this keeps out the rest, but root
        fcntl.ioctl(port.fileno(), termios.TIOCEXCL)
        return port


def _why_not_open(path: str, baud: int, error: Exception) -> str:
    from serial.tools import list_ports

    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        have = ", ".join(sorted(port.device for port in list_ports.comports())) or "none; is the board plugged in?"
        return f"no serial port '{path}'; have: {have}"
    if number in {errno.EBUSY, errno.EWOULDBLOCK}:
        return f"the serial port '{path}' is busy: another program has it open; close that one first"
    if number in {errno.EACCES, errno.EPERM}:
        return f"'{path}' may not be opened; add yourself to its group, as in 'sudo usermod -aG dialout $USER'"
    if not Path(path).is_char_device() or "configure port" in str(error):
        return f"'{path}' is no serial port; give one, as /dev/ttyACM0"
    return f"'{path}' cannot be opened at {baud} baud: {error}"
