# SPDX-License-Identifier: Apache-2.0
"""What a policy costs in flash and RAM: a program's sections minus those of the same program without the policy.

flash = text + data (initial values of data lie in flash),  ram = data + bss.  The stack is no section; it is painted.
What both programs take from the compiler's runtime counts for neither: soft floats, when the test of a float action
needs them, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinyrl_tvm.project import BuiltProject


@dataclass(frozen=True)
class Footprint:
    flash_bytes: int
    ram_bytes: int

    def __sub__(self, other: Footprint) -> Footprint:
        return Footprint(self.flash_bytes - other.flash_bytes, self.ram_bytes - other.ram_bytes)


@dataclass(frozen=True)
class Section:
    """Data is in both: its initial values are in flash."""

    name: str
    n_bytes: int
    in_flash: bool
    in_ram: bool


def cost_of_policy(built: BuiltProject) -> Footprint:
    """Of a bare-metal build: its firmware minus its empty firmware."""
    firmware, empty = built.products
    return footprint(firmware) - footprint(empty)


def footprint(path: Path) -> Footprint:
    placed = sections(path)
    return Footprint(
        flash_bytes=sum(section.n_bytes for section in placed if section.in_flash),
        ram_bytes=sum(section.n_bytes for section in placed if section.in_ram),
    )


def sections(path: Path) -> tuple[Section, ...]:
    """Those that are in memory when the program runs."""
    from elftools.elf.constants import SH_FLAGS
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as stream:
        kept = [section for section in ELFFile(stream).iter_sections() if section["sh_flags"] & SH_FLAGS.SHF_ALLOC]
    return tuple(
        Section(
            section.name,
            section["sh_size"],
            in_flash=section["sh_type"] != "SHT_NOBITS",
            in_ram=section["sh_type"] == "SHT_NOBITS" or bool(section["sh_flags"] & SH_FLAGS.SHF_WRITE),
        )
        for section in kept
    )
