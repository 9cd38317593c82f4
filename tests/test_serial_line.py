# SPDX-License-Identifier: Apache-2.0
"""A project that needs no debugger: its firmware talks over the UART of its board, and the host over a serial port."""

from __future__ import annotations

import os
import subprocess
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from emulated_ports import on_a_port
from test_cli import answered, tinyrl
from test_connection import Disturbed
from test_project import cartpole, hand_written_library, observations_of, pendulum, reacher

from tinyrl_tvm import toolchain
from tinyrl_tvm.device import board as on_board
from tinyrl_tvm.device import micro, qemu
from tinyrl_tvm.device.connection import Connection, connected
from tinyrl_tvm.device.emulator import EmulatedSerial
from tinyrl_tvm.device.serial_line import Port, SerialLine
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import Project, build, create
from tinyrl_tvm.targets import BOARDS, Board


def built(library: ModelLibrary, folder: Path, board: str = "mps3-an547", link: str = "uart") -> Project:
    project = create(library, folder, "baremetal", {"board": board, "link": link})
    build(project)
    return project


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_board_replays_over_its_uart_and_calls_no_debugger(board: Board, tmp_path: Path) -> None:
    project = built(reacher(target="host"), tmp_path / "project", board.name)
    measured = micro.run(project)
    assert measured.parity == "PASS"
    assert measured.device == f"qemu {board.name}"
    assert not calls_a_debugger(project.folder / "out" / "firmware.elf", board)


def calls_a_debugger(firmware: Path, board: Board) -> bool:
    objdump = toolchain.find(board.architecture.compiler).name.replace("gcc", "objdump")
    listing = subprocess.run([objdump, "-d", firmware], capture_output=True, text=True, check=True).stdout
    assert "<main>:" in listing
    return bool({"bkpt", "ebreak", "c.ebreak"} & set(listing.split()))


def test_instructions_are_those_that_a_debugger_is_told(tmp_path: Path) -> None:
    body = "    for (volatile int i = 0; i < 100; i++) { }\n    action[0] = obs[0];\n    return 0;"
    observations = observations_of(1)
    library = hand_written_library(body, observations, observations)
    by_uart = micro.run(built(library, tmp_path / "uart"))
    by_debugger = qemu.run(built(library, tmp_path / "semihosting", link="semihosting"))
    assert by_debugger.instructions_per_inference > 400
    assert abs(by_uart.instructions_per_inference - by_debugger.instructions_per_inference) < 1
    assert by_uart.stack_bytes == by_debugger.stack_bytes
    assert by_uart.flash_bytes == pytest.approx(by_debugger.flash_bytes, abs=16)


@pytest.fixture(scope="module")
def cartpole_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return built(cartpole(target="host"), tmp_path_factory.mktemp("cartpole") / "project", "microbit")


@pytest.fixture
def port(cartpole_project: Project, tmp_path: Path) -> Iterator[str]:
    with on_a_port(cartpole_project, tmp_path) as board:
        yield board.path


def test_run_replays_on_the_board_at_the_port(cartpole_project: Project, port: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "obs.npz", obs=np.array([[0, 0, 1, 0], [0, 0, -1, 0]], np.float32))
    run = ("run", "--device", "micro", cartpole_project.folder, "--port", port)
    said = answered(*run, "-i", tmp_path / "obs.npz", "-o", tmp_path / "out.npz")
    assert (said["parity"], said["vectors_right"], said["device"]) == ("PASS", 64, f"microbit at {port}")
    assert said["instructions_per_inference"] is None
    assert 0 < said["ticks_per_inference"] < 100
    assert said["stack_bytes"] >= 0
    assert np.load(tmp_path / "out.npz")["action"].tolist() == [[1], [0]]


def test_a_second_program_finds_the_port_busy(cartpole_project: Project, port: str) -> None:
    sentence = rf"the serial port '{port}' is busy: another program has it open; close that one first"
    with SerialLine(Port(port)), pytest.raises(TinyrlError, match=sentence):
        on_board.run(cartpole_project, port=Port(port))
    assert on_board.run(cartpole_project, port=Port(port)).parity == "PASS"  # and free again


def test_a_port_that_disappears_is_told(cartpole_project: Project, tmp_path: Path) -> None:
    with on_a_port(cartpole_project, tmp_path) as board, connected(cartpole_project, port=Port(board.path)) as device:
        observation = np.array([0.0, 0.0, 1.0, 0.0])
        assert device(observation)[0].tolist() == [1]
        board.process.kill()
        board.process.wait()
        with pytest.raises(TinyrlError, match=rf"the board at '{board.path}' is gone; was it unplugged\?"):
            device(observation)


def test_a_board_that_is_reset_is_greeted_again(cartpole_project: Project, tmp_path: Path) -> None:
    with on_a_port(cartpole_project, tmp_path) as board, connected(cartpole_project, port=Port(board.path)) as device:
        assert device(np.array([0.0, 0.0, 1.0, 0.0]))[1].inferences == 1
        board.reset()
        action, counters = device(np.array([0.0, 0.0, -1.0, 0.0]))
        assert (action.tolist(), counters.inferences, device.resets) == ([0], 1, 1)


def test_another_policy_on_the_board_is_told(port: str, tmp_path: Path) -> None:
    project = built(pendulum(target="host"), tmp_path / "project", "microbit")
    with pytest.raises(TinyrlError, match=r"has another policy, of 4 observations and 1 actions; 'pendulum' has 3"):
        on_board.run(project, port=Port(port))


def test_another_policy_of_the_same_sizes_is_told(port: str, tmp_path: Path) -> None:
    observations = observations_of(4)
    ones = np.ones((64, 1), np.int32)
    project = built(
        hand_written_library("    action[0] = obs[0] < 1e9f;\n    return 0;", observations, ones, target="host"),
        tmp_path / "project",
        "microbit",
    )
    with pytest.raises(TinyrlError, match=rf"the board at '{port}' has another policy than '.*project'.*; flash the"):
        on_board.run(project, port=Port(port))


def test_a_fault_is_named(tmp_path: Path) -> None:
    observations = observations_of(1)
    body = '    if (obs[0] > 100.0f) { __asm__ volatile("udf #0"); }\n    action[0] = obs[0];\n    return 0;'
    project = built(hand_written_library(body, observations, observations), tmp_path / "project")
    with on_a_port(project, tmp_path) as board, connected(project, port=Port(board.path)) as device:
        assert device(np.array([1.0]))[0].tolist() == [1.0]
        with pytest.raises(TinyrlError, match=rf"'{board.path}' faulted: undefined instruction, exception \d+, pc 0x"):
            device(np.array([101.0]))


def test_a_report_that_was_damaged_is_asked_for_again(cartpole_project: Project) -> None:
    firmware = cartpole_project.folder / "out" / "firmware.elf"
    with EmulatedSerial(cartpole_project.board, firmware) as stream:
        line = Disturbed(stream, rate=0.1)
        device = Connection(line, cartpole_project.interface)
        while not line.disturbed:  # bytes arrive in as many pieces as the machine pleases
            report = device.report(60)
            assert report.startswith("answer 0 status 0 action ")
            assert report.endswith("\ndone\n")
            assert "\nPARITY PASS (64 of 64)\nticks per inference: " in report


def test_enter_prints_the_report(cartpole_project: Project) -> None:
    printed = b""
    with EmulatedSerial(cartpole_project.board, cartpole_project.folder / "out" / "firmware.elf") as stream:
        stream.send(b"\r")
        while not printed.endswith(b"\ndone\n"):
            received = stream.receive(30)
            assert received
            printed += received
    assert printed.startswith(b"policy cartpole\nanswer 0 status 0 action ")
    assert b"\nPARITY PASS (64 of 64)\n" in printed


@pytest.fixture
def bare_port() -> Iterator[tuple[int, str]]:
    """The other end of a port, and its path."""
    end, other = os.openpty()
    tty.setraw(other)
    yield end, os.ttyname(other)
    os.close(end)
    os.close(other)


INTERFACE = Interface.of(cartpole())


def test_a_port_that_sends_garbage_only_is_told(bare_port: tuple[int, str]) -> None:
    end, path = bare_port
    stop = threading.Event()

    def talk() -> None:
        while not stop.wait(0.02):
            os.write(end, b"Hello from another firmware\r\n\xb1\x7e")

    talking = threading.Thread(target=talk)
    talking.start()
    try:
        with (
            SerialLine(Port(path)) as stream,
            pytest.raises(TinyrlError, match=rf"the board at '{path}' sent [\d,]+ bytes and no frame of the protocol"),
        ):
            Connection(stream, INTERFACE, timeout_s=0.5)
    finally:
        stop.set()
        talking.join()


def test_a_silent_port_is_told(bare_port: tuple[int, str]) -> None:
    _, path = bare_port
    with SerialLine(Port(path)) as stream, pytest.raises(NoAnswer, match=rf"'{path}' did not answer within 0.3 s"):
        Connection(stream, INTERFACE, timeout_s=0.3)


def test_a_port_that_is_not_there_is_told(cartpole_project: Project) -> None:
    with pytest.raises(TinyrlError, match=r"no serial port '/dev/ttyNOT'; have: "):
        on_board.run(cartpole_project, port=Port("/dev/ttyNOT"))


def test_a_file_is_no_port(cartpole_project: Project, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TinyrlError, match=r"file' is no serial port; give one, as /dev/ttyACM0"):
        on_board.run(cartpole_project, port=Port(str(tmp_path / "file")))


def test_a_project_that_wants_a_debugger_is_refused(tmp_path: Path) -> None:
    project = built(cartpole(), tmp_path / "project", link="semihosting")
    with pytest.raises(TinyrlError, match=r"talks to a debugger, not over a serial port; create it with --project-opt"):
        on_board.run(project, port=Port("/dev/ttyNOT"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--port", "/dev/ttyNOT", "--device", "cpu"], "--port goes with --device micro and a project's folder"),
        (["--baud", "9600", "--device", "cpu"], "--baud goes with --port"),
    ],
)
def test_options_that_mean_nothing_are_refused(words: list[str], sentence: str, tmp_path: Path) -> None:
    library = tmp_path / "cartpole.tar"
    library.write_bytes(cartpole(target="host").to_bytes())
    result = tinyrl("run", library, *words)
    assert (result.exit_code, result.stderr) == (1, f"{sentence}\n")


def test_the_loop_closes_over_the_port(port: str, cartpole_project: Project, tmp_path: Path) -> None:
    words = ("--closed-loop", "--env", "CartPole-v1", "--episodes", "2", "--control-hz", "50")
    run = ("run", "--device", "micro", cartpole_project.folder, "--port", port, *words)
    said = answered(*run, "-o", tmp_path / "steps.csv")
    assert said["device"] == f"microbit at {port}"
    assert said["instructions_percentiles"] is None
    assert 0 < said["ticks_percentiles"]["50"] < 100
    assert said["deadline_misses"] == 0
    assert said["steps"] == sum(said["returns"]) > 10
    assert (tmp_path / "steps.csv").read_text().startswith("tick_ms,episode,step,reward,ticks,status,")


def test_the_project_says_how_to_talk_to_it(cartpole_project: Project) -> None:
    text = (cartpole_project.folder / "README.md").read_text()
    assert "-serial stdio" in text
    assert "Press Enter" in text
    assert "semihosting" not in text
    assert "debugger opens" not in text
