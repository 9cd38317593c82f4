#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How a farm scales: trials per second with one server and with four on one tracker, and writes it into the README.

    a board     a trial waits a second on its device: what four boards gain over one
    QEMU        four emulators share this machine's processors: what a farm on one machine gains, and costs

A trial is a whole one, built, sent, run and recorded. The clock runs from the first record to the last.

    python benchmarks/farm.py [--trials 48]
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle

from tinyrl_tvm.device.emulator import emulate
from tinyrl_tvm.device.farm import Farm, Tracker, start_server, start_tracker
from tinyrl_tvm.targets import BOARDS, Board, target_named
from tinyrl_tvm.tune.policy import tasks_of_policy
from tinyrl_tvm.tune.session import Device, Plan, Session
from tinyrl_tvm.tune.task import Task, chosen, tasks_of

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BOARD = BOARDS["mps2-an386"]
WAIT_S = 1.0

# the servers are processes that cannot import this script
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def waiting(board: Board, firmware: Path, folder: Path, timeout_s: float) -> str:
    """A board that takes a second to flash and answer, its answers QEMU's."""
    time.sleep(WAIT_S)
    return emulate(board, firmware, folder, timeout_s)


def trials_per_second(tasks: tuple[Task, ...], run: Callable[..., str], n_servers: int, trials: int) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        tracker = Tracker("127.0.0.1", probe.getsockname()[1])
    started = start_tracker(tracker.host, tracker.port)
    with ThreadPoolExecutor(n_servers) as pool:
        servers = list(pool.map(lambda _: start_server("127.0.0.1", tracker, "m4", BOARD, run), range(n_servers)))
    try:
        while len(tracker.servers()) < n_servers:
            time.sleep(0.1)
        farm = Farm(tracker, "m4")
        ended_s: list[float] = []
        device = Device(f"qemu {BOARD.name}", BOARD, farm.emulate, farm.at_most, n_servers, farm.close)
        session = Session(
            tasks, device, Plan(trials, "random"), on_record=lambda task, record: ended_s.append(time.monotonic())
        )
        session.run()
        farm.close()
        # the first trials of each server wait for processes to start, which a session does once
        steady = ended_s[2 * n_servers :]
        return (len(steady) - 1) / (steady[-1] - steady[0])
    finally:
        for server in servers:
            server.terminate()
        started.proc.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=48, help="of each of the four runs (default 48)")
    trials = parser.parse_args().trials
    kernels = [
        task.kernel
        for name in ("P1", "P2", "P3")
        for task in tasks_of_policy(
            HERE / "policies" / f"{name}.onnx",
            target=BOARD.target,
            calibration=HERE / "policies" / f"{name}.npz",
        )
    ]
    tasks = chosen(tasks_of(kernels, target_named(BOARD.target).kernels), None)
    lines = [
        "| a trial waits for | one server, trials/s | four servers, trials/s | ratio |",
        "|---|---:|---:|---:|",
    ]
    for name, run in ((f"a board, {WAIT_S:g} s", waiting), (f"QEMU on {os.cpu_count()} processors", emulate)):
        one, four = (trials_per_second(tasks, run, n, trials) for n in (1, 4))
        lines.append(f"| {name} | {one:.2f} | {four:.2f} | {four / one:.2f} |")
        print(lines[-1], file=sys.stderr)
    text = "\n".join([*lines, "", f"Written by `python benchmarks/farm.py --trials {trials}`."])
    readme = README.read_text(encoding="utf-8")
    block = re.compile(r"<!-- farm -->.*?<!-- /farm -->", re.DOTALL)
    README.write_text(block.sub(f"<!-- farm -->\n{text}\n<!-- /farm -->", readme), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
