# SPDX-License-Identifier: Apache-2.0
"""Processes that may hang: a call in one of them ends in time, whatever it waits for.

Why processes and not threads: code generation may abort, and an RPC call to a machine that was halted waits for ever
in C++. Neither can be stopped from Python, but a process can be killed. They are TVM's `PopenWorker`s: it costs a second
to start one, so they are kept and used again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import queue
import signal
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from tinyrl_tvm.errors import NoAnswer, TinyrlError

Answer = TypeVar("Answer")


class Died(Exception):
    """A worker's process ended under the call."""


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal, and what to do about it is the first one's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Workers:
    """As many processes as there are calls at a time."""

    def __init__(self) -> None:
        """Raises TinyrlError when what TVM's workers lean on is not installed."""
        for needed in ("cloudpickle", "psutil"):
            if importlib.util.find_spec(needed) is None:
                raise TinyrlError(f"TVM's worker processes need {needed}: pip install 'tinyrl-tvm[tune]'")
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._all: list[Any] = []
        self._lock = threading.Lock()
        self._closed = False

    def call(self, function: Callable[..., Answer], *arguments: Any, timeout_s: float) -> Answer:
        """`function(*arguments)` elsewhere. Raises NoAnswer after `timeout_s`, Died, or what the function raised."""
        if self._closed:
            raise Died
        worker = self._worker()
        try:
            worker.send(function, arguments, timeout=timeout_s)
            answer: Answer = worker.recv()
        except TimeoutError:  # the worker is killed, and starts anew when it is asked again
            raise NoAnswer(f"no answer within {timeout_s:g} s") from None
        except (ChildProcessError, EOFError):
            raise Died from None
        except Exception:
            if self._closed:  # a worker that is killed as it starts fails in ways of its own
                raise Died from None
            raise
        finally:
            self._idle.put(worker)
        return answer

    def start(self, number: int) -> list[threading.Thread]:
        """Start processes before they are needed."""
        threads = [threading.Thread(target=self._begin) for _ in range(number)]
        for thread in threads:
            thread.start()
        return threads

    def _begin(self) -> None:
        with contextlib.suppress(Exception):  # closed meanwhile, or the first call in earnest says what is wrong
            self.call(int, timeout_s=60.0)

    def close(self) -> None:
        """End the processes, and with them the calls under way."""
        self._closed = True
        with self._lock:
            for worker in self._all:
                with contextlib.suppress(AttributeError):  # a call that ends just now may have ended the process too
                    worker.kill()

    def _worker(self) -> Any:
        from tvm.support.popen_pool import PopenWorker

        try:
            return self._idle.get_nowait()
        except queue.Empty:
            # what a code generator prints as it aborts belongs to a trial that is rejected, not on the user's screen
            worker = PopenWorker(_ignore_interrupts, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with self._lock:
                self._all.append(worker)
            return worker

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
