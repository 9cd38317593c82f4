# SPDX-License-Identifier: Apache-2.0
"""A farm on loopback: firmware runs on its servers as it does here, and servers that die, hang or come late do not matter."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from click.testing import CliRunner
from policies import compile_model, dense_policy
from test_project import cartpole

from tinyrl_tvm.cli import cli
from tinyrl_tvm.device import farm as farms
from tinyrl_tvm.device import qemu
from tinyrl_tvm.device.emulator import emulate
from tinyrl_tvm.device.farm import Farm, Lost, Tracker, address, start_server, start_tracker
from tinyrl_tvm.device.workers import Workers
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.interface import Vectors
from tinyrl_tvm.project import build, create
from tinyrl_tvm.records import read
from tinyrl_tvm.targets import BOARDS, Board

POLICIES = Path(__file__).parent.parent / "benchmarks" / "policies"
M55, M4 = BOARDS["mps3-an547"], BOARDS["mps2-an386"]

# servers are processes that cannot import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def slow(board: Board, firmware: Path, folder: Path, timeout_s: float) -> str:
    """Waits, tells which process it is, and leaves a file."""
    time.sleep(0.3)
    (folder / "actions.bin").write_bytes((folder / "observations.bin").read_bytes()[::-1])
    return f"{os.getppid()} {firmware.read_bytes().decode()}"


def broken(board: Board, firmware: Path, folder: Path, timeout_s: float) -> str:
    word = firmware.read_bytes().decode()
    if word == "hangs":
        raise NoAnswer("it did not end")
    if word == "faults":
        raise TinyrlError("it faulted")
    raise ZeroDivisionError("a bug")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def tracker() -> Iterator[Tracker]:
    port = free_port()
    started = start_tracker("127.0.0.1", port)
    yield Tracker("127.0.0.1", port)
    started.proc.kill()


@pytest.fixture(scope="module")
def farm_of(tracker: Tracker) -> Iterator[Callable[[str], Farm]]:
    """Farms whose calls are made by the same few processes: each takes a second to start."""
    with Workers() as workers:

        def farm(key: str) -> Farm:
            made = Farm(tracker, key)
            made._workers = workers
            return made

        yield farm


Serve = Callable[[str, Callable[..., str], int], list[Any]]


@pytest.fixture(scope="module")
def serve(tracker: Tracker) -> Iterator[Serve]:
    """Start servers of a key, and wait until the tracker knows them."""
    servers: list[Any] = []

    def started(key: str, run: Callable[..., str], number: int) -> list[Any]:
        with ThreadPoolExecutor(number) as pool:
            new = [pool.submit(start_server, "127.0.0.1", tracker, key, M55, run) for _ in range(number)]
        servers.extend(future.result() for future in new)
        wait_until(lambda: sum(known == key for known, _ in tracker.servers()) >= number)
        return [future.result() for future in new]

    yield started
    for server in servers:
        server.terminate()


def wait_until(holds: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    (tmp_path / "observations.bin").write_bytes(b"abc")
    path = tmp_path / "firmware.elf"
    path.write_bytes(b"words")
    return path


def asked(farm: Farm, firmware: Path, word: str = "words", timeout_s: float = 30.0) -> str:
    if word != "words":
        firmware.write_bytes(word.encode())
    return farm.emulate(M55, firmware, firmware.parent, timeout_s)


# ---- servers as they should be, dead, halted, and late ----


def test_files_go_to_a_server_and_come_back_and_its_words_too(farm_of, serve, firmware: Path) -> None:
    serve("slow", slow, 2)
    farm = farm_of("slow")
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: asked(farm, firmware), range(6)))
    assert {answer.split()[1] for answer in answers} == {"words"}
    assert len({answer.split()[0] for answer in answers}) == 2  # both worked
    assert (firmware.parent / "actions.bin").read_bytes() == b"cba"
    left = sorted(path.name for path in firmware.parent.iterdir())
    assert left == ["actions.bin", "firmware.elf", "observations.bin"]


def test_a_server_that_is_halted_costs_the_time_limit_and_another_answers(
    farm_of, serve, firmware: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farms, "GRACE_S", 2.0)
    first, _ = serve("halted", slow, 2)
    farm = farm_of("halted")
    os.kill(first.proc._proc.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: asked(farm, firmware, timeout_s=2.0), range(8)))
    finally:
        os.kill(first.proc._proc.pid, signal.SIGCONT)
    assert len({answer.split()[0] for answer in answers}) == 1


def test_a_server_that_dies_is_replaced_by_one_that_comes_late_or_missed(
    farm_of, serve, firmware: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = serve("mortal", slow, 1)
    farm = farm_of("mortal")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(asked, farm, firmware)
        wait_until(lambda: farm._running == 1)
        first.proc.kill()
        (second,) = serve("mortal", slow, 1)
        assert answer.result(60).endswith("words")
    monkeypatch.setattr(farms, "LATE_S", 1.0)
    second.proc.kill()
    with pytest.raises(Lost, match=r"^no server of the key 'mortal' is left at the tracker 127\.0\.0\.1:\d+$"):
        asked(farm, firmware, timeout_s=1.0)


def test_what_a_device_does_wrong_is_no_fault_of_the_server(farm_of, serve, firmware: Path) -> None:
    serve("broken", broken, 1)
    farm, host = farm_of("broken"), socket.gethostname()
    with pytest.raises(NoAnswer, match=rf"^the server at {host}: it did not end$"):
        asked(farm, firmware, "hangs")
    with pytest.raises(TinyrlError, match=rf"^the server at {host}: it faulted$"):
        asked(farm, firmware, "faults")
    with pytest.raises(TinyrlError, match=r"ZeroDivisionError: a bug$"):
        asked(farm, firmware, "anything")
    with pytest.raises(Lost) as raised:
        farm.emulate(M4, firmware, firmware.parent, 30.0)
    assert str(raised.value) == (
        f"the server at {host} has the board 'mps3-an547', and was asked for 'mps2-an386'; "
        "servers of one key have one kind of board, so give another --rpc-key than 'broken'"
    )


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "..", "a/b", ""])
def test_a_server_cannot_write_outside_the_folder(name: str, tmp_path: Path) -> None:
    answer = {"files": {name: b"x"}, "silent": False, "error": None, "printed": ""}
    with pytest.raises(TinyrlError, match="is it ours"):
        farms._received(answer, tmp_path, "the server")
    assert not list(tmp_path.iterdir())


# ---- whole runs ----


def test_a_policy_runs_on_the_farm_as_it_does_here(farm_of, serve, tmp_path: Path) -> None:
    serve("m55", emulate, 1)
    project = create(cartpole(), tmp_path / "project", "baremetal")
    build(project)
    rows = Vectors.of(project.library).observations[:5]
    there, here = qemu.run(project, rows, emulate=farm_of("m55").emulate), qemu.run(project, rows)
    assert there.to_json() == here.to_json()
    np.testing.assert_array_equal(there.actions, here.actions)


def test_a_killed_server_loses_no_record(tracker: Tracker, tmp_path: Path) -> None:
    """Servers and tuner as a user starts them; one server is killed in the middle."""
    records = tmp_path / "r.json"
    server = ("rpc-server", "--tracker", str(tracker), "--key", "m4", "--device", "qemu:mps2-an386")
    tune = ("tune", POLICIES / "P1.onnx", "--target", "cortex-m4", "--calibration", POLICIES / "P1.npz", "-o", records)
    over = ("--rpc-tracker", str(tracker), "--rpc-key", "m4", "--trials", "12", "--tuner", "random", "--tasks", "1,2")
    servers = [spawned(*server) for _ in range(2)]
    try:
        wait_until(lambda: sum(key == "m4" for key, _ in tracker.servers()) == 2)
        tuner = spawned(*tune, *over)
        wait_until(lambda: records.exists() and records.read_bytes().count(b"\n") >= 3)
        os.killpg(servers[0].pid, signal.SIGKILL)
        out, err = tuner.communicate(timeout=120)
        assert (tuner.returncode, err) == (0, ""), out + err
    finally:
        for process in servers:
            stop(process)
    found = read(records, "cortex-m4")
    assert not found.notes
    assert len({(record.kernel, tuple(record.choices.items())) for record in found.records}) == 12
    assert all(record.cost is not None for record in found.records)


def spawned(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tinyrl_tvm", *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=20)
    finally:
        process.kill()


def test_run_on_a_server_measures_what_it_measures_here(tracker: Tracker, serve, tmp_path: Path) -> None:
    serve("run", emulate, 1)
    library = compile_model(dense_policy((4, 16, 2)), tmp_path).library
    create(library, tmp_path / "project", "baremetal")
    run = ("run", "--device", "micro", str(tmp_path / "project"), "--print-time", "--profile", "--json")
    here, there = (
        json.loads(CliRunner().invoke(cli, [*run, *farm], catch_exceptions=False).stdout)
        for farm in ((), ("--rpc-tracker", str(tracker), "--rpc-key", "run"))
    )
    assert (here.pop("device"), there.pop("device")) == (
        "qemu mps3-an547",
        f"qemu mps3-an547 behind {tracker}, key 'run'",
    )
    assert here == there
    assert here["parity"] == "PASS"
    assert here["us_at_an_instruction_a_cycle"] == here["instructions_per_inference"] / 32
    assert len(here["profile"]["layers"]) == 3


# ---- what a user can get wrong ----


def test_a_key_that_nobody_serves_is_answered_with_those_that_are(tracker, serve) -> None:
    serve("slow", slow, 1)
    with pytest.raises(TinyrlError) as raised:
        Farm(tracker, "absent")
    sentence = str(raised.value)
    assert sentence.startswith(f"no server has the key 'absent' at the tracker {tracker}; it has: ")
    assert "slow (" in sentence
    assert sentence.endswith(f"'tinyrl-tvm rpc-server --tracker {tracker} --key absent --device qemu:BOARD' starts one")


def test_a_tracker_that_is_not_there_is_named() -> None:
    port = free_port()
    with pytest.raises(TinyrlError, match=rf"^no RPC tracker at 127\.0\.0\.1:{port} \(.*refused\); 'tinyrl-tvm rpc-tr"):
        Farm.at(f"127.0.0.1:{port}", "m55")


def test_something_else_in_the_trackers_place_does_not_hang() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=_close_whoever_calls, args=(listener,), daemon=True).start()
        with pytest.raises(TinyrlError, match="no RPC tracker at"):
            Farm.at(f"127.0.0.1:{listener.getsockname()[1]}", "m55")


def test_something_that_listens_and_says_nothing_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farms, "ANSWER_S", 0.2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(TinyrlError, match=r"no RPC tracker at .* \(timed out\); "):
            Farm.at(f"127.0.0.1:{listener.getsockname()[1]}", "m55")


def _close_whoever_calls(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize("text", ["", "9190", "host:", ":9190", "host:port", "host:0", "host:65536", "host:-1"])
def test_an_address_is_a_host_and_a_port(text: str) -> None:
    with pytest.raises(TinyrlError, match=r"is no address; give HOST:PORT, as 127\.0\.0\.1:9190$"):
        address(text)


def sentence_of(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    return result.stderr


def test_run_refuses_half_a_farm_and_what_no_server_can_run(tracker: Tracker, tmp_path: Path) -> None:
    create(cartpole(target="host"), tmp_path / "host", "host")
    create(cartpole(), tmp_path / "board", "baremetal")
    farm = ("--rpc-tracker", str(tracker), "--rpc-key", "absent")
    assert sentence_of("run", str(tmp_path / "board"), "--rpc-key", "m55") == (
        "a farm takes both: --rpc-tracker HOST:PORT and --rpc-key KEY\n"
    )
    assert sentence_of("run", str(tmp_path / "host"), *farm) == (
        "a project of 'host' does not run on a farm; have: baremetal, cmsis\n"
    )
    assert sentence_of("run", str(tmp_path / "board"), *farm).startswith(
        "no server has the key 'absent' at the tracker"
    )
    loop = ("--closed-loop", "--env", "CartPole-v1")
    assert sentence_of("run", str(tmp_path / "board"), *loop, *farm) == "--rpc-tracker does not go with --closed-loop\n"
    assert not (tmp_path / "board" / "out").exists()


def test_verbs_refuse_in_a_sentence(tracker: Tracker) -> None:
    port = str(tracker.port)
    assert sentence_of("rpc-tracker", "--port", port) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another --host or --port\n"
    )
    server = ("rpc-server", "--tracker", str(tracker), "--key", "m55", "--device")
    assert sentence_of(*server, "qemu") == "--device qemu names no board; give one, as qemu:mps3-an547\n"
    assert sentence_of(*server, "serial").startswith("no device 'serial'; have: qemu.")
    assert sentence_of(*server, "qemu:m55").startswith("no board 'm55'; have: ")
    assert sentence_of(*server, "qemu:mps3-an547", "--key", "a b") == "'a b' is no key; give a word, as m55\n"


def test_a_host_beyond_loopback_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(host: str, port: int) -> None:
        raise TinyrlError("stopped here")

    monkeypatch.setattr(farms, "start_tracker", refuse)
    beyond = sentence_of("rpc-tracker", "--host", "0.0.0.0")
    assert beyond == (
        "note: 0.0.0.0 is not loopback: whoever reaches it can run programs here, without a password\nstopped here\n"
    )
    assert sentence_of("rpc-tracker") == "stopped here\n"


def test_a_tracker_stopped_on_its_way_up_leaves_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    started, unraisable = [], []

    def stop(worker: Any) -> None:
        started.append(worker)
        raise KeyboardInterrupt

    monkeypatch.setattr("tvm.rpc.tracker.PopenWorker.recv", stop)
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with pytest.raises(KeyboardInterrupt):
        start_tracker("127.0.0.1", free_port())
    gc.collect()
    assert not unraisable
    assert [worker.is_alive() for worker in started] == [False]
