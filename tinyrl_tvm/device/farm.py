# SPDX-License-Identifier: Apache-2.0
"""Devices on other machines, by TVM's own RPC tracker and servers: a farm is another `emulate`.

    rpc-tracker             knows the servers, and gives a free one of a key to whoever asks
    rpc-server              has one device; takes a firmware and files, answers with what was printed and written
    Farm.emulate            a call of it is one session with one server

Servers may die, hang or come late. A call runs in a process that can be killed (`workers.py`), so a server that was halted
costs the time limit and no more; the call is then made again, of another. The number of calls at a time follows the number
of servers that the tracker knows.

Whoever reaches the tracker or a server runs programs there: the protocol asks nobody who they are.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyrl_tvm.device.emulator import Emulate, emulate
from tinyrl_tvm.device.workers import Workers
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.targets import Board

RUN_FIRMWARE = "tinyrl.run_firmware"
FIRMWARE = "firmware.elf"
ATTEMPTS = 4
AT_MOST = 64  # calls at a time, and processes to make them
GRACE_S = 10.0  # on top of a call's own limit: sending the firmware, and a server that is busy
ANSWER_S = 5.0  # what a tracker may take for an answer
CENSUS_S = 1.0  # how old the count of servers may be
LATE_S = 30.0  # how long a call waits for a server to come back when there is none
MAX_FILE_BYTES = 256 * 1024 * 1024
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Lost(NoAnswer):
    """The farm cannot answer, whatever it is asked: its servers are gone, or have another board."""


def address(text: str) -> tuple[str, int]:
    """HOST:PORT."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise TinyrlError(f"'{text}' is no address; give HOST:PORT, as 127.0.0.1:9190")
    return host, int(port)


@dataclass(frozen=True)
class Tracker:
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def servers(self) -> list[tuple[str, int]]:
        """Key and port of every server. Raises TinyrlError when no tracker answers."""
        from tvm.rpc import base

        try:
            # as TVM's own `TrackerSession.summary`, which waits for ever: for a tracker, its greeting and its answer
            with socket.create_connection((self.host, self.port), timeout=ANSWER_S) as connection:
                greeting = struct.pack("<i", base.RPC_TRACKER_MAGIC)
                connection.sendall(greeting)
                if base.recvall(connection, len(greeting)) != greeting:
                    raise ValueError("something else answers there")
                base.sendjson(connection, [base.TrackerCode.SUMMARY])
                code, summary = base.recvjson(connection)
                if code != base.TrackerCode.SUCCESS:
                    raise ValueError(f"it answers with code {code}")
        except (OSError, ValueError) as error:
            raise TinyrlError(
                f"no RPC tracker at {self} ({error}); 'tinyrl-tvm rpc-tracker --host {self.host} --port {self.port}' "
                "starts one"
            ) from None
        known = summary["server_info"]
        return [(str(server["key"]).removeprefix("server:"), int(server["addr"][1])) for server in known]


class Farm:
    """The servers of one key. `emulate` may be called from as many threads as one likes; it waits for a free server."""

    at_most = AT_MOST

    def __init__(self, tracker: Tracker, key: str) -> None:
        """Raises TinyrlError when the tracker is not there, or no server has the key."""
        self.tracker, self.key = tracker, key
        self._workers = Workers()
        self._gate = threading.Condition()
        self._running = 0
        self._census_s = -CENSUS_S
        self._servers = 0
        keys = [known for known, _ in tracker.servers()]
        if key not in keys:
            have = ", ".join(f"{other} ({keys.count(other)})" for other in sorted(set(keys))) or "no server at all"
            raise TinyrlError(
                f"no server has the key '{key}' at the tracker {tracker}; it has: {have}. "
                f"'tinyrl-tvm rpc-server --tracker {tracker} --key {key} --device qemu:BOARD' starts one"
            )

    @staticmethod
    def at(tracker: str, key: str) -> Farm:
        return Farm(Tracker(*address(tracker)), key)

    @property
    def servers(self) -> int:
        return sum(key == self.key for key, _ in self.tracker.servers())

    def emulate(self, board: Board, firmware: Path, folder: Path, timeout_s: float) -> str:
        """As `emulator.emulate`, on a server. Raises Lost when there is none left."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path != firmware}
        reason: Exception | None = None
        for _ in range(ATTEMPTS):
            try:
                with self._turn():
                    answer = self._asked(board, firmware.read_bytes(), files, timeout_s)
            except Lost:
                raise
            except Exception as error:  # whatever ended the session, another server may do better
                reason = error
                continue
            server = f"the server at {answer['server']}"
            if answer["board"] != board.name:
                raise Lost(
                    f"{server} has the board '{answer['board']}', and was asked for '{board.name}'; servers of one key "
                    f"have one kind of board, so give another --rpc-key than '{self.key}'"
                )
            return _received(answer, folder, server)
        said = str(reason).strip().splitlines()
        raise Lost(
            f"{ATTEMPTS} times in a row a server of the key '{self.key}' was lost over a firmware "
            f"({said[-1] if said else type(reason).__name__}); look at the machines behind the tracker {self.tracker}"
        )

    def _asked(self, board: Board, firmware: bytes, files: dict[str, bytes], timeout_s: float) -> dict[str, Any]:
        arguments = (self.tracker.host, self.tracker.port, self.key, board.name, firmware, files, timeout_s)
        return self._workers.call(_ask, *arguments, timeout_s=timeout_s + GRACE_S)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One of as many as there are servers."""
        with self._gate:
            deadline_s = time.monotonic() + LATE_S
            while self._running >= self._count():
                if self._servers == 0 and time.monotonic() > deadline_s:
                    raise Lost(f"no server of the key '{self.key}' is left at the tracker {self.tracker}")
                self._gate.wait(CENSUS_S)
            self._running += 1
        try:
            yield
        finally:
            with self._gate:
                self._running -= 1
                self._gate.notify()

    def _count(self) -> int:
        if time.monotonic() - self._census_s >= CENSUS_S:
            try:
                self._servers = self.servers
            except TinyrlError as error:
                raise Lost(str(error)) from None
            self._census_s = time.monotonic()
        return min(self._servers, AT_MOST)

    def close(self) -> None:
        self._workers.close()


def _ask(
    host: str, port: int, key: str, board: str, firmware: bytes, files: dict[str, bytes], timeout_s: float
) -> dict[str, Any]:
    """In a worker's process: one session with one server. Raises what TVM raises when the server goes away."""
    import tvm.rpc

    tracker = tvm.rpc.connect_tracker(host, port)
    try:
        session = tracker.request(key, max_retry=1, session_timeout=timeout_s + GRACE_S)
        for name, data in {**files, FIRMWARE: firmware}.items():
            session.upload(bytearray(data), name)
        request = json.dumps({"board": board, "timeout_s": timeout_s})
        answer: dict[str, Any] = json.loads(session.get_function(RUN_FIRMWARE)(request))
        answer["files"] = {name: bytes(session.download(name)) for name in answer["written"]}
        return answer
    finally:
        tracker.close()


def _received(answer: dict[str, Any], folder: Path, server: str) -> str:
    """Leave the files that the firmware wrote in `folder`, and return what it printed; or raise what the server met."""
    for name, data in answer["files"].items():
        if Path(name).name != name or name in {"", ".", ".."}:
            raise TinyrlError(f"{server} wrote a file called {name!r}; is it ours?")
        (folder / name).write_bytes(data)
    if answer["silent"]:
        raise NoAnswer(f"{server}: {answer['error']}")
    if answer["error"] is not None:
        raise TinyrlError(f"{server}: {answer['error']}")
    return str(answer["printed"])


# ---- the server's side ----


def serving(board: Board, emulate: Emulate, name: str) -> Callable[[], None]:
    """What a TVM server does as it starts: offer the function that runs a firmware on its device."""

    def register() -> None:
        import tvm_ffi

        def run_firmware(request: str) -> str:
            folder = Path(tvm_ffi.get_global_func("tvm.rpc.server.workpath")("."))
            return json.dumps(_run(board, emulate, folder, json.loads(request), name))

        tvm_ffi.register_global_func(RUN_FIRMWARE, run_firmware, override=True)

    return register


def _run(board: Board, emulate: Emulate, uploads: Path, request: dict[str, Any], name: str) -> dict[str, Any]:
    """Never raises: an exception would end TVM's server, not only the session."""
    answer: dict[str, Any] = {
        "server": name,
        "board": board.name,
        "printed": "",
        "error": None,
        "silent": False,
        "written": [],
    }
    before = {path.name: path.stat().st_mtime_ns for path in uploads.iterdir()}
    if request["board"] != board.name:
        return answer
    try:
        with tempfile.TemporaryDirectory(prefix="tinyrl-server-") as own:
            # out of the folder that the firmware sees, as it is without a farm
            firmware = Path(shutil.move(uploads / FIRMWARE, own))
            answer["printed"] = emulate(board, firmware, uploads, float(request["timeout_s"]))
    except NoAnswer as error:
        answer |= {"error": str(error), "silent": True}
    except TinyrlError as error:
        answer["error"] = str(error)
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    written = [path for path in uploads.iterdir() if before.get(path.name) != path.stat().st_mtime_ns]
    answer["written"] = [path.name for path in written if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES]
    return answer


def start_tracker(host: str, port: int) -> Any:
    """TVM's tracker, in a process of its own; `.terminate()` ends it."""
    try:
        from tvm.rpc.tracker import Tracker as TvmTracker
    except ImportError:
        raise TinyrlError("the tracker needs tornado: pip install 'tinyrl-tvm[tune]'") from None

    class Stoppable(TvmTracker):
        def __del__(self) -> None:
            if hasattr(self, "host"):
                super().__del__()
            elif hasattr(self, "proc"):  # stopped on its way up: TVM's own would ask it to end, at an address it lacks
                self.proc.kill()

    _refuse_taken(host, port)
    return Stoppable(host=host, port=port, port_end=port + 1, silent=True)


def start_server(host: str, tracker: Tracker, key: str, board: Board, emulate: Emulate) -> Any:
    """TVM's server, in a process of its own; `.terminate()` ends it. Takes a free port from 9090 on."""
    from tvm.rpc.server import Server

    try:
        return Server(
            host=host,
            port=9090,
            port_end=9190,
            tracker_addr=(tracker.host, tracker.port),
            key=key,
            silent=True,
            server_init_callback=serving(board, emulate, socket.gethostname()),
        )
    except (OSError, ValueError) as error:
        raise TinyrlError(f"cannot listen on '{host}': {str(error).splitlines()[-1]}") from None


def _refuse_taken(host: str, port: int) -> None:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise TinyrlError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port"
        ) from None


@contextlib.contextmanager
def emulator(tracker: str | None, key: str | None) -> Iterator[Emulate]:
    """This machine's QEMU, or the servers of a farm where both its tracker and their key are given."""
    if tracker is None or key is None:
        yield emulate
        return
    with contextlib.closing(Farm.at(tracker, key)) as farm:
        yield farm.emulate
