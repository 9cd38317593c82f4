# SPDX-License-Identifier: Apache-2.0
"""The programs of other people that we run: where they are, and the line that installs what is missing."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyrl_tvm.errors import TinyrlError

# A build measures the policy, not the caller's shell: flags exported for other work would change every figure, and a
# `make` above us passes on job slots that are not ours.
UNWANTED_VARIABLES = ("CFLAGS", "CPPFLAGS", "LDFLAGS", "OPTIMIZE", "WARNINGS", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")


@dataclass(frozen=True)
class Tool:
    """`programs` are tried in order; `packages` are Debian's, `elsewhere` is where to get what Debian has not. `library`
    is a file that a compiler must find: Debian packs it apart. `machine` begins the prefix of a cross compiler. What is
    optional only some platforms or boards, or our own tests, need."""

    name: str
    programs: tuple[str, ...]
    packages: tuple[str, ...]
    purpose: str
    library: str | None = None
    machine: str | None = None
    optional: bool = False
    elsewhere: str = ""

    @property
    def install_line(self) -> str:
        return self.elsewhere or f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install {' '.join(self.packages)}"


@dataclass(frozen=True)
class FoundTool:
    """What `doctor` says of one tool: `path` and `version` are None when it is missing."""

    tool: Tool
    path: Path | None
    version: str | None


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("cc", ("cc",), ("gcc", "libc6-dev"), "compiles a policy for this machine"),
        Tool("make", ("make",), ("make",), "builds a project"),
        Tool(
            "arm-none-eabi-gcc",
            ("arm-none-eabi-gcc",),
            ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi"),
            "compiles a policy for Arm Cortex-M",
            library="libc.a",
            machine="arm",
        ),
        Tool("qemu-system-arm", ("qemu-system-arm",), ("qemu-system-arm",), "emulates an Arm Cortex-M board"),
        Tool(
            "riscv64-unknown-elf-gcc",
            ("riscv64-unknown-elf-gcc",),
            ("gcc-riscv64-unknown-elf", "picolibc-riscv64-unknown-elf"),
            "compiles a policy for RISC-V",
            library="picolibc.specs",
            machine="riscv",
            optional=True,
        ),
        Tool(
            "qemu-system-riscv32",
            ("qemu-system-riscv32",),
            ("qemu-system-misc",),
            "emulates a RISC-V board",
            optional=True,
        ),
        Tool("cmake", ("cmake",), ("cmake",), "builds a project, when make should not", optional=True),
        Tool(
            "clang",
            ("clang", "clang-19", "clang-14"),
            ("clang",),
            "compiles a policy for WebAssembly, and checks the C we emit",
            optional=True,
        ),
        Tool("wasm-ld", ("wasm-ld",), ("lld",), "links a policy for WebAssembly", optional=True),
        Tool("node", ("node", "nodejs"), ("nodejs",), "runs a policy in WebAssembly", optional=True),
        Tool(
            "avr-gcc",
            ("avr-gcc",),
            ("gcc-avr", "avr-libc"),
            "compiles a policy for AVR",
            library="libc.a",
            optional=True,
        ),
        Tool(
            "arduino-builder",
            ("arduino-builder",),
            ("arduino-builder", "arduino-core-avr"),
            "builds an Arduino sketch",
            optional=True,
        ),
        Tool(
            "arduino-cli",
            ("arduino-cli",),
            (),
            "flashes an Arduino",
            optional=True,
            elsewhere="https://arduino.github.io/arduino-cli",
        ),
        Tool("simavr", ("simavr",), ("simavr",), "emulates an Arduino with an AVR", optional=True),
        Tool(
            "cbuild",
            ("cbuild",),
            (),
            "builds a project of the CMSIS-Toolbox",
            optional=True,
            elsewhere="CMSIS-Toolbox, https://open-cmsis-pack.github.io/cmsis-toolbox",
        ),
        Tool(
            "idf.py",
            ("idf.py",),
            (),
            "builds a project of ESP-IDF",
            optional=True,
            elsewhere="ESP-IDF, https://docs.espressif.com/projects/esp-idf, and source its export.sh",
        ),
        Tool(
            "west",
            ("west",),
            (),
            "builds an application of Zephyr",
            optional=True,
            elsewhere="pip install west, and a workspace: https://docs.zephyrproject.org/latest/develop/getting_started",
        ),
        Tool("llvm-mca", ("llvm-mca-19", "llvm-mca"), ("llvm-19",), "estimates cycles of a trace", optional=True),
    )
}


def find(name: str) -> Path:
    """The program of a tool in TOOLS. Raises TinyrlError with the line that installs it."""
    tool = TOOLS[name]
    path = _path_of(tool)
    if path is None:
        wanted = _programs_of(tool)[0]
        raise TinyrlError(f"no '{wanted}' on PATH; it {tool.purpose}. Install it: {tool.install_line}")
    if not _has_library(path, tool):
        raise TinyrlError(f"'{path}' has no C library ({tool.library}). Install it: {tool.install_line}")
    return path


def doctor() -> tuple[FoundTool, ...]:
    """Every tool of the table, found or not."""
    found = []
    for tool in TOOLS.values():
        path = _path_of(tool)
        if path and not _has_library(path, tool):
            path = None
        found.append(FoundTool(tool, path, _first_line(path, "--version") if path else None))
    return tuple(found)


def version(program: str) -> str | None:
    """The first line of what a program says of itself; None where there is none."""
    path = shutil.which(program)
    return _first_line(Path(path), "--version") if path else None


def build_environment(compiler: str = "cc") -> Mapping[str, str]:
    """The caller's environment without what would change a build with `compiler`, one of TOOLS."""
    unwanted = set(UNWANTED_VARIABLES)
    if _is_for_another(os.environ.get("CROSS_COMPILE", ""), TOOLS[compiler]):
        unwanted.add("CROSS_COMPILE")
    return {name: value for name, value in os.environ.items() if name not in unwanted} | {"LC_ALL": "C"}


def _programs_of(tool: Tool) -> tuple[str, ...]:
    """CC and CROSS_COMPILE name other compilers, as they do for make in a generated project."""
    if tool.name == "cc" and (words := shlex.split(os.environ.get("CC", ""))):
        return (words[0],)
    if tool.machine and (prefix := os.environ.get("CROSS_COMPILE")) and not _is_for_another(prefix, tool):
        return (f"{prefix}gcc",)
    return tool.programs


def _is_for_another(prefix: str, tool: Tool) -> bool:
    """`arm-none-eabi-` says what it compiles for: not RISC-V."""
    machines = {other.machine for other in TOOLS.values() if other.machine} - {tool.machine}
    return any(Path(prefix).name.startswith(machine) for machine in machines)


def _path_of(tool: Tool) -> Path | None:
    for program in _programs_of(tool):
        if path := shutil.which(program):
            return Path(path)
    return None


def _has_library(path: Path, tool: Tool) -> bool:
    """GCC answers with the full path of a library it has, with the bare name of one it has not."""
    return tool.library is None or _first_line(path, f"-print-file-name={tool.library}") != tool.library


def _first_line(path: Path, flag: str) -> str | None:
    try:
        answer = subprocess.run([path, flag], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.splitlines()
    return lines[0].strip() if answer.returncode == 0 and lines else None
