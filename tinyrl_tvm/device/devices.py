# SPDX-License-Identifier: Apache-2.0
"""What `--device` names: `qemu`, or `qemu:mps3-an547`."""

from __future__ import annotations

from tinyrl_tvm.device.emulator import Emulate, emulate
from tinyrl_tvm.errors import TinyrlError, unknown_name
from tinyrl_tvm.targets import BOARDS, Board, board_named, target_named

# How a firmware runs there.
DEVICES: dict[str, Emulate] = {"qemu": emulate}


def device_named(name: str, target: str | None = None) -> tuple[Board, Emulate]:
    """The board, by default the first of `target`, and how a firmware runs on it."""
    if target is not None:
        target_named(target)
    kind, _, board_name = name.partition(":")
    if kind not in DEVICES:
        raise unknown_name("device", kind, DEVICES)
    if board_name:
        board = board_named(board_name)
        if target is not None and board.target != target:
            raise TinyrlError(f"'{board.name}' has a '{board.target}', not a '{target}'; have: {_boards_of(target)}")
        return board, DEVICES[kind]
    if target is None:
        raise TinyrlError(f"--device {kind} names no board; give one, as {kind}:{next(iter(BOARDS))}")
    for board in BOARDS.values():
        if board.target == target:
            return board, DEVICES[kind]
    raise TinyrlError(f"there is no board with a '{target}' to measure on; boards have: {_targets()}")


def _boards_of(target: str) -> str:
    return ", ".join(board.name for board in BOARDS.values() if board.target == target) or "none"


def _targets() -> str:
    return ", ".join(dict.fromkeys(board.target for board in BOARDS.values()))
