# SPDX-License-Identifier: Apache-2.0
"""The tuner on a board that a command flashes. The board is QEMU, its port a pseudo-terminal behind a fixed link."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import answered, tinyrl
from test_tune import KERNELS, POLICIES, task_of, tried

from tinyrl_tvm.device.farm import Lost
from tinyrl_tvm.device.serial_line import Port
from tinyrl_tvm.device.workers import Workers
from tinyrl_tvm.records import read
from tinyrl_tvm.targets import BOARDS, TARGETS
from tinyrl_tvm.tune.board import FlashedBoard
from tinyrl_tvm.tune.firmware import Bench, Rejected

BOARD = BOARDS["mps2-an386"]
FLASHER = """
import os, re, signal, subprocess, sys, time
from pathlib import Path
from tinyrl_tvm import toolchain
from tinyrl_tvm.targets import BOARDS

link, running = Path(sys.argv[1]), Path(sys.argv[1] + ".pid")
if running.exists():
    os.kill(int(running.read_text()), signal.SIGKILL)
link.unlink(missing_ok=True)
board = BOARDS["mps2-an386"]
command = [toolchain.find(board.architecture.emulator), *board.serial_emulator_arguments[:-1], "pty", "-kernel", sys.argv[2]]
emulator = subprocess.Popen(
    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
)
running.write_text(str(emulator.pid))
link.symlink_to(re.search(rb"/dev/\\S+", emulator.stdout.readline())[0].decode())
"""


@pytest.fixture
def flasher(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The command, and the port."""
    script, link = tmp_path / "flasher.py", tmp_path / "ttyBOARD"
    script.write_text(FLASHER)
    yield f"{sys.executable} {script} {{port}} {{elf}}", str(link)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(Path(f"{link}.pid").read_text()), signal.SIGKILL)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Workers() as workers:
        yield Bench(BOARD, tmp_path / "bench", workers, 60.0, "uart")


def layer():
    return task_of(KERNELS["layer"], TARGETS[BOARD.target].kernels)


def test_a_trial_is_flashed_and_its_report_read(flasher: tuple[str, str], bench: Bench) -> None:
    command, port = flasher
    board = FlashedBoard(Port(port), command)
    ticks = tried(bench, layer(), run=board.emulate)
    # an instruction of this board is a fortieth of a tick: 25 MHz, and a nanosecond
    assert 1 < ticks < 1000
    with pytest.raises(Rejected, match=r"^wrong answers: "):
        wrong = KERNELS["layer"]
        tried(bench, layer(), type(wrong)(**{**vars(wrong), "bias": wrong.bias + 10_000}), run=board.emulate)


def test_a_board_that_was_not_flashed_ends_the_session(flasher: tuple[str, str], bench: Bench) -> None:
    command, port = flasher
    tried(bench, layer(), run=FlashedBoard(Port(port), command).emulate)
    other = task_of(KERNELS["numbers"], TARGETS[BOARD.target].kernels)
    with pytest.raises(Lost, match=r"the board runs another firmware than it was flashed with; look at the command"):
        tried(bench, other, run=FlashedBoard(Port(port), "true {elf}").emulate)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [("false {elf}", r"'false .*' failed with status 1"), ("true {elf}", r"no serial port '/dev/ttyNOT'")],
)
def test_a_board_that_is_not_there_ends_the_session(command: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(Lost, match=sentence):
        FlashedBoard(Port("/dev/ttyNOT"), command).emulate(BOARD, tmp_path / "elf", tmp_path, 0.5)


TUNE = ("tune", POLICIES / "P1.onnx", "--target", "cortex-m4", "--calibration", POLICIES / "P1.npz")


def test_tune_measures_on_the_board(flasher: tuple[str, str], tmp_path: Path) -> None:
    command, port = flasher
    records = tmp_path / "records.json"
    words = ("--device", "board:mps2-an386", "--port", port, "--flash-command", command, "--timeout", "60")
    said = answered(*TUNE, *words, "--trials", "3", "--tuner", "grid", "--tasks", "1", "-o", records)
    assert (said["device"], said["unit"], said["measured"]) == ("board mps2-an386", "ticks", 3)
    assert said["tasks"][0]["best_cost"] > 0
    assert len(read(records, "cortex-m4").records) == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--device", "board", "--port", "/dev/ttyACM0"), "--device board takes --port and --flash-command, and no"),
        (("--port", "/dev/ttyACM0"), "--port and --flash-command go with --device board"),
        (
            ("--device", "board", "--port", "/dev/ttyACM0", "--flash-command", "pyocd flash"),
            "'pyocd flash' does not say where the firmware goes",
        ),
    ],
)
def test_a_board_is_named_whole(words: tuple[str, ...], sentence: str) -> None:
    result = tinyrl(*TUNE, *words)
    assert result.exit_code == 1
    assert result.stderr.startswith(sentence)
