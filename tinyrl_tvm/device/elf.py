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


def cost_of_policy(built: BuiltProject) -> Footprint:
    """Of a bare-metal build: its firmware minus its empty firmware."""
    firmware, empty = built.products
    return footprint(firmware) - footprint(empty)


def footprint(path: Path) -> Footprint:
    from elftools.elf.constants import SH_FLAGS
    from elftools.elf.elffile import ELFFile

    text = data = bss = 0
    with path.open("rb") as stream:
        for section in ELFFile(stream).iter_sections():
            if not section["sh_flags"] & SH_FLAGS.SHF_ALLOC:
                continue
            if section["sh_type"] == "SHT_NOBITS":
                bss += section["sh_size"]
            elif section["sh_flags"] & SH_FLAGS.SHF_WRITE:
                data += section["sh_size"]
            else:
                text += section["sh_size"]
    return Footprint(flash_bytes=text + data, ram_bytes=data + bss)
