# SPDX-License-Identifier: Apache-2.0
"""What the instructions of a function take of the stack: Thumb and RISC-V, as LLVM and as objdump spell them.

Every push and every step down of the stack pointer counts once, wherever it stands. That is the frame where a function
enters it once, as compilers do, and more than it where paths differ, as in a few routines of libgcc.
"""

from __future__ import annotations

import re

_PUSH = re.compile(r"v?push(\.w)?")
_STORE_DOWN = re.compile(r"v?stmdb(\.w)?")
_WRITE_BACK = re.compile(r"\[sp, #-(\d+)\]!")
_TO_SP = re.compile(r"(sub|add|addi|mov|and|andi)[sw]?(\.w)?")
_STEP = re.compile(r"sp,\s*(?:sp,\s*)?#?(-?\d+)")
_CLEAR_LOW_BITS = re.compile(r"(\w+), #0, #(\d+)")
_SHIFT = re.compile(r"(\w+), \1, #(\d+)")
STACK_ALIGNMENT = 8  # Arm's at every call; RISC-V's is 16, so that LLVM has nothing to align there

UNKNOWN = "takes a frame whose size depends on data"


class MachineFrame:
    """The stack that the instructions read so far take; `unknown` when one of them moves the stack pointer by a register."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.unknown = False
        self._aligned: dict[str, int] = {}  # register -> what rounding it down takes at most
        self._realigned = False
        self._previous = ("", "")

    def read(self, mnemonic: str, operands: str) -> None:
        if _PUSH.fullmatch(mnemonic) or (_STORE_DOWN.fullmatch(mnemonic) and operands.startswith("sp!")):
            self.n_bytes += _register_bytes(operands)
        elif match := _WRITE_BACK.search(operands):
            self.n_bytes += int(match[1])
        elif match := self._rounding_down(mnemonic, operands):
            self._aligned[match[1]] = max(0, (1 << int(match[2])) - STACK_ALIGNMENT)
        elif _TO_SP.fullmatch(mnemonic) and re.match(r"sp\b", operands):
            self._step(mnemonic, operands)
        self._previous = (mnemonic, operands)

    def _rounding_down(self, mnemonic: str, operands: str) -> re.Match[str] | None:
        if mnemonic == "bfc":
            return _CLEAR_LOW_BITS.fullmatch(operands)
        there_and_back = mnemonic == "lsls" and self._previous == ("lsrs", operands)  # Armv6-M has no bfc
        return _SHIFT.fullmatch(operands) if there_and_back else None

    def _step(self, mnemonic: str, operands: str) -> None:
        if (match := _STEP.fullmatch(operands)) and not mnemonic.startswith("and"):
            self.n_bytes += max(0, int(match[1]) if mnemonic.startswith("sub") else -int(match[1]))
            return
        source = operands.rpartition(",")[2].strip()
        if mnemonic == "mov" and source in self._aligned:
            self.n_bytes += self._aligned.pop(source)
            self._realigned = True
        elif not (mnemonic == "mov" and self._realigned):  # after that a move gives the old one back
            self.unknown = True


def _register_bytes(operands: str) -> int:
    """Of `{r4, r5, lr}`, `sp!, {r4-r7}` or `{d8-d15}`."""
    n_bytes = 0
    for name in operands[operands.index("{") + 1 : operands.index("}")].split(","):
        first, _, last = name.strip().partition("-")
        count = int(last[1:]) - int(first[1:]) + 1 if last else 1
        n_bytes += count * (8 if first.startswith("d") else 4)
    return n_bytes
