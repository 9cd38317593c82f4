# SPDX-License-Identifier: Apache-2.0
"""A policy on a device, asked one observation at a time over a line that loses, invents and changes bytes."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from test_project import POLICIES, cartpole, hand_written_library, observations_of, pendulum, reacher

from tinyrl_tvm.device import frames
from tinyrl_tvm.device.connection import Connection, connected
from tinyrl_tvm.device.emulator import PipedFirmware
from tinyrl_tvm.device.frames import Frame, FrameReader
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import Project, build, create
from tinyrl_tvm.targets import BOARDS, Board


def built(library: ModelLibrary, folder: Path, board: str = "mps3-an547") -> Project:
    project = create(library, folder / "project", "baremetal", {"board": board})
    build(project)
    return project


def piped(project: Project, folder: Path) -> PipedFirmware:
    folder.mkdir()
    return PipedFirmware(project.board, project.folder / "out" / "firmware.elf", folder)


class Disturbed:
    """A line that changes, drops or invents a byte in one of a hundred frames, each way."""

    name = "the line"

    def __init__(self, stream: PipedFirmware, rate: float = 0.01) -> None:
        self.stream, self.rate, self.random, self.disturbed = stream, rate, random.Random(5), 0

    def send(self, data: bytes) -> None:
        self.stream.send(self._disturb(data))

    def receive(self, timeout_s: float) -> bytes:
        return self._disturb(self.stream.receive(timeout_s))

    def _disturb(self, data: bytes) -> bytes:
        if not data or self.random.random() >= self.rate:
            return data
        self.disturbed += 1
        place = self.random.randrange(len(data))
        other = bytes([data[place] ^ self.random.randrange(1, 256)])
        middle = self.random.choice([other, b"", other + data[place : place + 1]])
        return data[:place] + middle + data[place + 1 :]


class Says:
    """A device that says the same whatever it hears."""

    name = "the board"

    def __init__(self, said: bytes) -> None:
        self.said = said

    def send(self, data: bytes) -> None:
        pass

    def receive(self, timeout_s: float) -> bytes:
        return self.said


class Replies(Says):
    """A device that answers every hello."""

    def __init__(self, version: int, *sizes: int) -> None:
        super().__init__(b"")
        self.version, self.sizes = version, sizes

    def send(self, data: bytes) -> None:
        (question,) = FrameReader(100).feed(data)
        payload = struct.pack(f"<{len(self.sizes)}I", *self.sizes)
        self.said = Frame(frames.GREETED, question.sequence, payload, self.version).to_bytes()


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_board_answers_bit_for_bit(board: Board, tmp_path: Path) -> None:
    observations = observations_of(5)
    with connected(built(reacher(target="host"), tmp_path, board.name)) as device:
        for row, observation in enumerate(observations):
            action, counters = device(observation)
            np.testing.assert_array_equal(action, observation[3:5] - observation[0:2])
            assert (counters.status, counters.inferences) == (0, row + 1)
            assert counters.ticks <= 2000


def test_ticks_are_those_of_the_policy(tmp_path: Path) -> None:
    body = "    for (volatile int i = 0; i < 1000; i++) { }\n    action[0] = obs[0];\n    return 0;"
    observations = observations_of(1)
    project = built(hand_written_library(body, observations, observations), tmp_path)
    from tinyrl_tvm.device import qemu

    with connected(project) as device:
        ticks = device(observations[0])[1].ticks
    expected = qemu.run(project).instructions_per_inference
    assert expected > 4000
    assert (
        abs(ticks * project.board.instructions_per_100_ticks / 100 - expected) <= 4 * 31.25
    )  # four reads of the counter


def test_a_thousand_calls_over_a_disturbed_line_lose_none_and_repeat_none(tmp_path: Path) -> None:
    observations = np.random.default_rng(3).normal(size=(1000, 5)).astype(np.float32)
    project = built(reacher(), tmp_path)
    with piped(project, tmp_path / "pipes") as stream:
        line = Disturbed(stream)
        device = Connection(line, project.interface)
        for n, observation in enumerate(observations, 1):
            action, counters = device(observation)
            np.testing.assert_array_equal(action, observation[3:5] - observation[0:2])
            assert counters.inferences == n
    assert line.disturbed >= 10
    assert device.resets == 0


def test_garbage_before_the_first_frame_is_passed_over(tmp_path: Path) -> None:
    project = built(cartpole(), tmp_path)
    with piped(project, tmp_path / "pipes") as stream:
        whole = Frame(frames.HELLO, 1).to_bytes()
        stream.send(bytes(range(256)) + frames.MAGIC * 20 + whole[:-1])
        device = Connection(stream, project.interface)
        assert device(np.array([0.0, 0.0, 1.0, 0.0]))[0].tolist() == [1]


def test_a_device_that_was_reset_is_greeted_again(tmp_path: Path) -> None:
    class Swapped:
        name = "the board"
        stream: PipedFirmware

        def send(self, data: bytes) -> None:
            self.stream.send(data)

        def receive(self, timeout_s: float) -> bytes:
            return self.stream.receive(timeout_s)

    project, line = built(cartpole(), tmp_path), Swapped()
    with piped(project, tmp_path / "before") as before, piped(project, tmp_path / "after") as after:
        line.stream = before
        device = Connection(line, project.interface)
        assert device(np.array([0.0, 0.0, 1.0, 0.0]))[0].tolist() == [1]
        line.stream = after
        action, counters = device(np.array([0.0, 0.0, -1.0, 0.0]))
        assert (action.tolist(), counters.inferences, device.resets) == ([0], 1, 1)


def test_a_host_that_begins_anew_is_not_given_old_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = built(cartpole(), tmp_path)
    monkeypatch.setattr("secrets.randbits", lambda bits: 7)  # both hosts count alike
    with piped(project, tmp_path / "pipes") as stream:
        assert Connection(stream, project.interface)(np.array([0.0, 0.0, 1.0, 0.0]))[0].tolist() == [1]
        assert Connection(stream, project.interface)(np.array([0.0, 0.0, -1.0, 0.0]))[0].tolist() == [0]


def test_a_repeated_question_is_answered_without_asking_the_policy(tmp_path: Path) -> None:
    project = built(pendulum(), tmp_path)
    with piped(project, tmp_path / "pipes") as stream:
        Connection(stream, project.interface)
        question = Frame(frames.ASK, 5, np.ones(3, "<f4").tobytes()).to_bytes()
        stream.send(question * 3)
        reader, answers = FrameReader(100), []
        while len(answers) < 3:
            answers += reader.feed(stream.receive(5.0))
        assert answers[0] == answers[1] == answers[2]
        assert struct.unpack_from("<iII", answers[2].payload)[2] == 1


INTERFACE = Interface.of(POLICIES["cartpole"]())


def test_a_board_that_sends_garbage_only_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        TinyrlError,
        match=r"the board sent [\d,]+ bytes and no frame of the protocol in 0.3 s; is it running this project",
    ):
        Connection(Says(b"Hello from another firmware\n\xb1\x7e"), INTERFACE, timeout_s=0.3)


def test_a_silent_board_is_told() -> None:
    with pytest.raises(NoAnswer, match=r"the board did not answer within 0.3 s; it hangs, or was disconnected"):
        Connection(Says(b""), INTERFACE, timeout_s=0.3)


def test_another_version_of_the_protocol_is_told() -> None:
    with pytest.raises(TinyrlError, match=r"the board speaks version 2 of the protocol, this tinyrl-tvm 1; create"):
        Connection(Replies(2, 9), INTERFACE)


def test_another_policy_is_told() -> None:
    with pytest.raises(
        TinyrlError, match=r"the board has another policy, of 3 observations and 1 actions; 'cartpole' has 4"
    ):
        Connection(Replies(1, 3, 1, 1), INTERFACE)


def test_a_firmware_that_faults_on_a_question_names_the_cause(tmp_path: Path) -> None:
    observations = observations_of(1)
    body = '    if (obs[0] > 100.0f) { __asm__ volatile("udf #0"); }\n    action[0] = obs[0];\n    return 0;'
    with connected(built(hand_written_library(body, observations, observations), tmp_path)) as device:
        assert device(np.array([1.0]))[0].tolist() == [1.0]
        with pytest.raises(TinyrlError, match=r"faulted on mps3-an547: undefined instruction"):
            device(np.array([101.0]))


def test_a_policy_that_hangs_is_given_up(tmp_path: Path) -> None:
    observations = observations_of(1)
    body = "    for (volatile int wait = 1; wait;) { }\n    action[0] = obs[0];\n    return 0;"
    project = built(hand_written_library(body, observations, observations), tmp_path)
    with (
        connected(project, timeout_s=2) as device,
        pytest.raises(NoAnswer, match=r"did not answer within 2 s; it hangs"),
    ):
        device(np.array([1.0]))


def test_a_project_of_another_platform_is_refused(tmp_path: Path) -> None:
    project = create(cartpole(target="host"), tmp_path / "project", "host")
    with (
        pytest.raises(TinyrlError, match=r"a project of 'host' cannot be asked one observation at a time"),
        connected(project),
    ):
        pass


def test_a_frame_is_found_however_it_is_cut() -> None:
    sent = [Frame(frames.ASK, n, bytes([n]) * n) for n in range(5)]
    stream = b"\xb1\xb1\x7e noise" + b"".join(frame.to_bytes() for frame in sent)
    for size in (1, 2, 3, 7, len(stream)):
        reader = FrameReader(8)
        found = [frame for start in range(0, len(stream), size) for frame in reader.feed(stream[start : start + size])]
        assert found == sent
