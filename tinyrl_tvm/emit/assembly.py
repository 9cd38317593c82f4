# SPDX-License-Identifier: Apache-2.0
"""LLVM's assembly of one function, cut down to what GNU as and clang both take and a firmware wants.

LLVM prints debug sections, unwind tables and two half-precision helpers of TVM around every function. What is kept is
the function's own instructions, its labels and its constants; section, symbol and size are written anew.
"""

from __future__ import annotations

import re

_DROPPED = re.compile(r"\.(cfi_\w+|loc|file|fnstart|fnend|cantunwind|save|vsave|pad|setfp|handlerdata|personality)\b")
_KEPT = re.compile(r"\.(p2align|long|short|byte|word|inst|hword|zero|data_region|end_data_region)\b")
_DEBUG_LABEL = re.compile(r"\.L(tmp|func_begin|cfi)\d*:")
_SPILLED_PREDICATE = re.compile(r"\bv(str|ldr)\s+p0, \[(sp|r\d+)(?:, #(-?\d+))?\]")


def function_text(listing: str, name: str) -> str:
    """The function `name` of an LLVM listing as GNU assembly, in a section of its own."""
    lines = listing.splitlines()
    start = lines.index(f"{name}:")
    body = []
    for line in lines[start + 1 :]:
        statement = line.strip()
        if re.match(r"\.Lfunc_end\d+:", statement):
            break
        if not statement or _DROPPED.match(statement) or _DEBUG_LABEL.match(statement):
            continue
        assert not statement.startswith(".") or statement.endswith(":") or _KEPT.match(statement), statement
        text = line.split("@")[0].rstrip()
        # LLVM numbers its labels within a listing; several listings share a file here
        text = re.sub(r"\.L(BB|CPI|JTI)(\d+)_", rf".L{name}_\1\2_", text)
        # the two assemblers share only the signed spelling of the multiply by a scalar; the low half has no sign
        text = re.sub(r"\bvmla\.i(8|16|32)\b", r"vmla.s\1", text)
        body.append(_SPILLED_PREDICATE.sub(_predicate_in_numbers, text))
    header = [
        f'\t.section\t.text.{name},"ax",%progbits',
        f"\t.globl\t{name}",
        "\t.p2align\t2",
        f"\t.type\t{name}, %function",
        "\t.thumb_func",
        f"{name}:",
    ]
    return "\n".join([*header, *body, f"\t.size\t{name}, . - {name}", ""])


def _predicate_in_numbers(match: re.Match[str]) -> str:
    """`vstr p0, [sp, #12]` in hexadecimal: GNU as before 2.41 cannot spell it.

    Source: Armv8-M Architecture Reference Manual, VLDR and VSTR (System Register), encoding T1.
    """
    mnemonic, base, offset = match[1], match[2], int(match[3] or 0)
    register = 13 if base == "sp" else int(base[1:])
    load, up = int(mnemonic == "ldr"), int(offset >= 0)
    word = 0xED40AF80 | load << 20 | up << 23 | register << 16 | abs(offset) // 4
    return f".inst.w\t{word:#010x} /* {match[0]} */"
