# SPDX-License-Identifier: Apache-2.0
"""LLVM's assembly of one function, cut down to what GNU as and clang both take and a firmware wants.

LLVM prints debug sections, unwind tables and two half-precision helpers of TVM around every function. What is kept is
the function's own instructions, its labels and its constants; section, symbol and size are written anew. Arm's cores
and RISC-V's are told apart by the listing itself.
"""

from __future__ import annotations

import itertools
import re

_DROPPED = re.compile(r"\.(cfi_\w+|loc|file|fnstart|fnend|cantunwind|save|vsave|pad|setfp|handlerdata|personality)\b")
_DATA = re.compile(r"\.(byte|short|half|hword|long|word|quad|zero|ascii|asciz)\b")
_KEPT = re.compile(rf"{_DATA.pattern}|\.(p2align|inst|data_region|end_data_region|option)\b")
_DEBUG_LABEL = re.compile(r"\.L(tmp|func_begin|cfi)\d*:")
_LABEL = re.compile(r"\.L[\w.$]+")
_RISCV = re.compile(r'^\s*\.attribute\s+5, "rv', re.MULTILINE)  # Arm's attributes are called .eabi_attribute
_SPILLED_PREDICATE = re.compile(r"\bv(str|ldr)\s+p0, \[(sp|r\d+)(?:, #(-?\d+))?\]")

_NARROWED = re.compile(r"\bvqshr(u?)n([bt])\.([su])(16|32)\s+q(\d), q(\d), #(\d+)")


def function_text(listing: str, name: str) -> str:
    """The function `name` of an LLVM listing as GNU assembly, in a section of its own; then the constants it reads."""
    riscv = _RISCV.search(listing) is not None
    statements = _statements(listing, "#" if riscv else "@")
    function = _function(statements, name)
    header = [
        *([] if riscv else ["\t.syntax\tunified", "\t.thumb"]),
        f'\t.section\t.text.{name},"ax",%progbits',
        f"\t.globl\t{name}",
        f"\t.p2align\t{1 if riscv else 2}",
        f"\t.type\t{name}, %function",
        *([] if riscv else ["\t.thumb_func"]),
        f"{name}:",
    ]
    lines = [*header, *function, f"\t.size\t{name}, . - {name}"]
    if constants := _constants(statements, function):
        lines += [f'\t.section\t.rodata.{name},"a",%progbits', *constants]
    # LLVM numbers its labels within a listing; several listings share a file here
    text = re.sub(r"\.L(?=\w)", f".L{name}_", "\n".join([*lines, ""]))
    return text if riscv else _as_both_spell_it(text)


def instructions(listing: str, name: str) -> list[tuple[str, str]]:
    """Mnemonic and operands of every instruction of the function `name`."""
    riscv = _RISCV.search(listing) is not None
    words = (line.split(None, 1) for line in _function(_statements(listing, "#" if riscv else "@"), name))
    return [(word, rest[0] if rest else "") for word, *rest in words if not word.startswith(".")]


def _statements(listing: str, comment: str) -> list[str]:
    """The listing's lines without comments."""
    stripped = (line.split(comment)[0].rstrip() for line in listing.splitlines())
    return [line for line in stripped if line]


def _function(statements: list[str], name: str) -> list[str]:
    body = []
    for line in statements[statements.index(f"{name}:") + 1 :]:
        statement = line.strip()
        if re.match(r"\.Lfunc_end\d+:", statement):
            break
        if _DROPPED.match(statement) or _DEBUG_LABEL.match(statement):
            continue
        assert not statement.startswith(".") or statement.endswith(":") or _KEPT.match(statement), statement
        body.append(line)
    return body


def _constants(statements: list[str], function: list[str]) -> list[str]:
    """Constants and tables that `function` names but does not hold: on RISC-V LLVM puts them into other sections."""
    held = {line.removesuffix(":") for line in function}
    wanted = [label for line in function for label in _LABEL.findall(line) if label not in held]
    constants: list[str] = []
    for label in dict.fromkeys(wanted):
        start = statements.index(f"{label}:")
        before = statements[start - 1].strip()
        constants += ["\t.p2align\t3" if not before.startswith(".p2align") else f"\t{before}", statements[start]]
        constants += itertools.takewhile(lambda line: _DATA.match(line.strip()), statements[start + 1 :])
    return constants


def _as_both_spell_it(text: str) -> str:
    # GNU as and clang share only the signed spelling of the multiply by a scalar; the low half has no sign
    text = re.sub(r"\bvmla\.i(8|16|32)\b", r"vmla.s\1", text)
    text = _NARROWED.sub(_narrowing_in_numbers, text)
    return _SPILLED_PREDICATE.sub(_predicate_in_numbers, text)


def _narrowing_in_numbers(match: re.Match[str]) -> str:
    """`vqshrnb.s32 q4, q4, #12` in hexadecimal: GNU as 2.40 makes of it `vqrshrnb`, which rounds.

    Source: Armv8-M Architecture Reference Manual, VQSHRN and VQSHRUN, encoding T1.
    """
    to_unsigned, half, sign, bits, destination, source, shift = match.groups()
    half_bits = int(bits) // 2  # 8 or 16, whose bit marks the size above what the shift leaves of it
    word = 0xEE800F40 | int(destination) << 13 | int(source) << 1 | (half == "t") << 12 | (to_unsigned == "u") << 7
    word |= (sign == "u") << 28 | (2 * half_bits - int(shift)) << 16
    return f".inst.w\t{word:#010x} /* {match[0]} */"


def _predicate_in_numbers(match: re.Match[str]) -> str:
    """`vstr p0, [sp, #12]` in hexadecimal: GNU as before 2.41 cannot spell it.

    Source: Armv8-M Architecture Reference Manual, VLDR and VSTR (System Register), encoding T1.
    """
    mnemonic, base, offset = match[1], match[2], int(match[3] or 0)
    register = 13 if base == "sp" else int(base[1:])
    load, up = int(mnemonic == "ldr"), int(offset >= 0)
    word = 0xED40AF80 | load << 20 | up << 23 | register << 16 | abs(offset) // 4
    return f".inst.w\t{word:#010x} /* {match[0]} */"
