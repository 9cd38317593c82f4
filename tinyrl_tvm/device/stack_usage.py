# SPDX-License-Identifier: Apache-2.0
"""How deep a call goes at most, without running it.

    bound(f) = frame(f) + max over g that f calls of bound(g)

The frames of C are GCC's own words: a .ci beside every object (`-fstack-usage -fcallgraph-info=su`, GCC 10 and later),
which names calls through pointers as well. Calls are read from the machine code, for the .ci knows nothing of assembly, and
so are the frames of assembly and of the compiler's runtime: every push and every step down of the stack pointer counts.
A call through a pointer, a recursion or a frame whose size depends on data has no bound, and is refused by name.
"""

from __future__ import annotations

import bisect
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.machine_code import UNKNOWN, MachineFrame

_NODE = re.compile(r'^node: \{ title: "([^"]+)" label: "[^"]*?\\n(\d+) bytes \(([\w,]+)\)', re.MULTILINE)
_INDIRECT = re.compile(r'^edge: \{ sourcename: "([^"]+)" targetname: "__indirect_call"', re.MULTILINE)
POINTER = "calls through a pointer"

# of `objdump -d --no-show-raw-insn`
_FUNCTION = re.compile(r"^([0-9a-f]+) <([^>]+)>:$")
_INSTRUCTION = re.compile(r"^ *[0-9a-f]+:\t(\S+)(?:\s+(.*))?$")
_TARGET = re.compile(r"(?:^|[\s,])([0-9a-f]+) <[^>]+>$")
_BRANCHES = ("b", "cb", "j")  # what begins with these and has a target; bit operations have none
_LINKS = re.compile(r"bl|blx|jalr?")
_REGISTER = re.compile(r"r\d+|ip|[ast]\d+")


class Unbounded(TinyrlError):
    """No number bounds the stack before the program runs."""


@dataclass(frozen=True)
class Frame:
    name: str
    n_bytes: int


@dataclass
class _Function:
    name: str
    frame: MachineFrame = field(default_factory=MachineFrame)
    calls: dict[int, bool] = field(default_factory=dict)  # address -> whether the call comes back
    refused: str = ""

    def read(self, mnemonic: str, operands: str) -> None:
        """An instruction as objdump spells it. A comment follows @ on Arm, # on RISC-V, where it names a far target."""
        words, _, comment = re.split(r"\s+@ ", operands)[0].partition(" # ")
        words = words.strip()
        self.frame.read(mnemonic, words)
        if self.frame.unknown:
            self.refused = UNKNOWN
        mnemonic = mnemonic.removesuffix(".w").removesuffix(".n")
        links = _LINKS.fullmatch(mnemonic) is not None and not words.startswith("zero")
        if mnemonic.startswith(_BRANCHES) and (target := _TARGET.search(comment or words)):
            address = int(target[1], 16)
            self.calls[address] = self.calls.get(address, False) or links
        elif links and _REGISTER.fullmatch(words):
            self.refused = POINTER


def deepest_call(entry: str, disassembly: str, call_graphs: Iterable[str]) -> tuple[Frame, ...]:
    """The frames of the deepest chain of calls, `entry` first. Raises Unbounded.

    `disassembly` is that of the program by `objdump -d --no-show-raw-insn`, `call_graphs` are the texts of .ci files.
    """
    functions = _functions(disassembly)
    _tell_compilers_words(functions.values(), call_graphs)
    starts = [address for address, function in functions.items() if function.name == entry]
    if len(starts) != 1:
        raise TinyrlError(f"the firmware holds no function '{entry}'; build the project again")
    chain = _deepest(starts[0], functions, {})
    return tuple(Frame(functions[address].name, functions[address].frame.n_bytes) for address in chain)


def disassembly_of(elf: Path, objdump: Path) -> str:
    command: list[str | Path] = [objdump, "-d", "--no-show-raw-insn", elf]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise TinyrlError(f"'{objdump}' cannot read '{elf}': {made.stderr.strip().splitlines()[-1:]}")
    return made.stdout


def _functions(disassembly: str) -> dict[int, _Function]:
    """By address. A branch into the middle of a function is one to that function."""
    functions: dict[int, _Function] = {}
    function = None
    for line in disassembly.splitlines():
        if match := _FUNCTION.match(line):
            function = functions[int(match[1], 16)] = _Function(match[2])
        elif function and (match := _INSTRUCTION.match(line)):
            function.read(match[1], match[2] or "")
    starts = sorted(functions)
    for start, function in functions.items():
        calls: dict[int, bool] = {}
        for target, links in function.calls.items():
            holder = starts[bisect.bisect_right(starts, target) - 1]
            # a link into its own middle is a long jump: Thumb-1 has no other
            if holder != start or (links and target == start):
                calls[holder] = calls.get(holder, False) or links
        function.calls = calls
    return functions


def _tell_compilers_words(functions: Iterable[_Function], call_graphs: Iterable[str]) -> None:
    frames: dict[str, int] = {}
    refused: dict[str, str] = {}
    for text in call_graphs:
        for title, n_bytes, kind in _NODE.findall(text):
            name = title.rpartition(":")[2]  # of a static function it names the file as well
            frames[name] = max(frames.get(name, 0), int(n_bytes))  # two may have one name
            if kind not in ("static", "dynamic,bounded"):
                refused[name] = UNKNOWN
        for title in _INDIRECT.findall(text):
            refused[title.rpartition(":")[2]] = POINTER
    for function in functions:
        if function.name in frames:
            function.frame.n_bytes = frames[function.name]
            function.refused = refused.get(function.name, "")


def _deepest(start: int, functions: Mapping[int, _Function], above: dict[int, bool]) -> list[int]:
    """The deepest chain from `start`; `above` are the callers, each with whether it is left by a call that returns."""
    function = functions[start]
    if function.refused:
        raise Unbounded(f"'{function.name}' {function.refused}, so that the stack has no bound before it runs")
    deepest: list[int] = []
    for target, links in function.calls.items():
        if target in above or target == start:
            cycle = [*list(above.values())[list(above).index(target) :], links] if target in above else [links]
            if any(cycle):
                name = functions[target].name
                raise Unbounded(f"'{name}' calls itself, so that the stack has no bound before it runs")
            continue  # parts of one routine that jump to and fro
        chain = _deepest(target, functions, {**above, start: links})
        if _depth(chain, functions) > _depth(deepest, functions):
            deepest = chain
    return [start, *deepest]


def _depth(chain: Iterable[int], functions: Mapping[int, _Function]) -> int:
    return sum(functions[address].frame.n_bytes for address in chain)
