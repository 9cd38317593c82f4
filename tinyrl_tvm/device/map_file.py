# SPDX-License-Identifier: Apache-2.0
"""What a linker put where: the part of GNU ld's map that lists the sections it kept.

Below the line `Linker script and memory map` these are read, and nothing else:

    .text           0x00000000     0x3a40                                          an output section begins in column 0
     .text.p1_predict                                                              of an input section the name,
                    0x000014a0       0x2c out/policy/src/p1_lib0.c.o               then address, size and object; a short
     .rodata        0x000014cc        0x4 /usr/lib/.../libgcc.a(_udivsi3.o)        name shares their line
     *fill*         0x000014d0       0x10                                          padding: what follows it needed it

A map is trusted only as far as it adds up to the sections of the ELF file it belongs to.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tinyrl_tvm.device.elf import sections
from tinyrl_tvm.errors import TinyrlError

_BEGIN = "Linker script and memory map"
_OUTPUT = re.compile(r"([.\w]\S*)(?:\s+0x[0-9a-f]+\s+0x[0-9a-f]+.*)?")
_INPUT = re.compile(r" (\*fill\*|[.\w]\S*)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)(?: (.*))?")
_LONG_NAME = re.compile(r" [.\w]\S*")
ELSEWHERE = "the linker script"
PADDING = "*fill*"


@dataclass(frozen=True)
class Placed:
    """An input section that was kept. `origin` is the object's path; an archive's member is in brackets behind it. Padding
    is called `*fill*`, and is of the object that needed it."""

    name: str
    origin: str
    n_bytes: int
    in_flash: bool
    in_ram: bool


class _Line(NamedTuple):
    output: str
    name: str
    address: int
    n_bytes: int
    origin: str


_END = _Line("", "", 0, 0, "")


def placed_sections(map_path: Path, elf_path: Path) -> tuple[Placed, ...]:
    """Every byte of a firmware's sections in memory, with the object that it came from. Raises TinyrlError."""
    if not map_path.is_file():
        raise TinyrlError(f"no map file '{map_path}' beside the firmware; build the project again")
    outputs = {section.name: section for section in sections(elf_path)}
    found: list[Placed] = []
    sums: dict[str, int] = defaultdict(int)
    for output, name, n_bytes, origin in _entries(map_path.read_text(encoding="utf-8", errors="replace")):
        if output in outputs:
            sums[output] += n_bytes
            found.append(Placed(name, origin, n_bytes, outputs[output].in_flash, outputs[output].in_ram))
    for output, section in outputs.items():
        rest = section.n_bytes - sums[output]  # alignment at the end
        if rest < 0 or rest == section.n_bytes > 0:
            raise TinyrlError(f"'{map_path}' does not add up to '{elf_path}'; build the project again")
        found.append(Placed(output, ELSEWHERE, rest, section.in_flash, section.in_ram))
    return tuple(found)


def _entries(text: str) -> Iterator[tuple[str, str, int, str]]:
    """(output section, input section, bytes, object)."""
    padding = 0
    for line, after in itertools.pairwise([*_lines(text), _END]):
        n_bytes = line.n_bytes
        if after.output == line.output:  # strings that the linker found in another section are listed, and take no room
            n_bytes = min(n_bytes, after.address - line.address)
        if line.name == PADDING:
            padding += n_bytes
        elif n_bytes:
            yield line.output, line.name, n_bytes, line.origin
            if padding:
                yield line.output, PADDING, padding, line.origin
            padding = 0
        if after.output != line.output:
            padding = 0


def _lines(text: str) -> Iterator[_Line]:
    """Of input sections and padding that are not empty."""
    lines = iter(text.partition(f"{_BEGIN}\n")[2].splitlines())
    output = ""
    for line in lines:
        if match := _OUTPUT.fullmatch(line):
            output = match[1]
            continue
        whole = line + next(lines, "") if _LONG_NAME.fullmatch(line) else line
        match = _INPUT.fullmatch(whole)
        if match and (n_bytes := int(match[3], 16)):
            yield _Line(output, match[1], int(match[2], 16), n_bytes, match[4] or ELSEWHERE)
