# SPDX-License-Identifier: Apache-2.0
"""What `replay.c` of every project prints of the test vectors it carries: an answer a line, then its own verdict."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tinyrl_tvm.device.measurement import Parity, judge
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface, Vectors

ANSWER = re.compile(r"^answer (\d+) status (-?\d+) action ([0-9a-f]+)$", re.MULTILINE)
PARITY = re.compile(r"^PARITY (PASS|FAIL) \((\d+) of (\d+)\)$", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Replayed:
    """The device's own words."""

    actions: np.ndarray
    statuses: np.ndarray
    parity: str


def read_replay(printed: str, interface: Interface) -> Replayed | None:
    """None when it is not what a project of ours prints."""
    answers, parity = ANSWER.findall(printed), PARITY.search(printed)
    dtype = np.dtype(interface.action_dtype).newbyteorder("<")
    data = b"".join(bytes.fromhex(answer[2]) for answer in answers)
    if not (answers and parity) or len(data) != len(answers) * interface.n_actions * dtype.itemsize:
        return None
    return Replayed(
        actions=np.frombuffer(data, dtype).reshape(len(answers), interface.n_actions).astype(interface.action_dtype),
        statuses=np.array([int(answer[1]) for answer in answers], np.int32),
        parity=parity[1],
    )


def judge_carried(replayed: Replayed, interface: Interface, carried: Vectors) -> Parity:
    """The host's judgement of the vectors that a project carries. Raises TinyrlError when the device's own differs."""
    if len(replayed.actions) != len(carried.answers):
        raise TinyrlError(
            f"the firmware answered {len(replayed.actions)} of {len(carried.answers)} test vectors; "
            "build the project again"
        )
    parity = judge(interface, carried, replayed.actions, replayed.statuses)
    if replayed.parity != parity.verdict:
        raise TinyrlError(
            f"the firmware says PARITY {replayed.parity} where the host finds PARITY {parity.verdict}; "
            "build the project again"
        )
    return parity
