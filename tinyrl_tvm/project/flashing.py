# SPDX-License-Identifier: Apache-2.0
"""Bring a built firmware to its board by a tool of other people: the platform's own, or the one a user names.

No tool flashes every board, so a bare-metal project stores a command, as `pyocd flash -t nrf51 {elf}`. It is split into
words as a shell would, and run without one.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tinyrl_tvm import toolchain
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.project.building import built
from tinyrl_tvm.project.folder import Project
from tinyrl_tvm.project.platforms import PLATFORMS
from tinyrl_tvm.project.platforms.platform import flash_words
from tinyrl_tvm.project.templates import TEMPLATES

TIMEOUT_S = 300.0


def flash(project: Project, port: str | None = None) -> str | None:
    """Flash what was built and return the command that did it; None where a board is emulated or there is none."""
    if template := project.options.get("flash_command"):
        command = filled(template, built(project).products[0], port)
    elif PLATFORMS[project.platform].flash:
        tool, *arguments = _own_words(project, port)
        if port is not None and [tool, *arguments] == _own_words(project, None):
            raise TinyrlError(f"'{tool} {arguments[0]}' finds the board by itself; leave --port out")
        built(project)
        command = [str(toolchain.find(tool)), *arguments]
    else:
        return None
    run_flasher(command, project.folder)
    return shlex.join(command)


def filled(template: str, firmware: Path, port: str | None) -> list[str]:
    """The words of a command with {elf} and {port} filled."""
    words = flash_words(template)
    if port is None and any("{port}" in word for word in words):
        raise TinyrlError(f"the command '{template}' needs a port; give --port, as /dev/ttyACM0")
    return [word.replace("{elf}", str(firmware)).replace("{port}", port or "") for word in words]


def run_flasher(command: Sequence[str], folder: Path | None = None, timeout_s: float = TIMEOUT_S) -> None:
    """Raises TinyrlError with what the tool said last."""
    tool = command[0]
    if shutil.which(tool) is None and not (folder and (folder / tool).is_file()):
        raise TinyrlError(f"no '{tool}' on PATH, which is to flash the board; install it, or name another command")
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TinyrlError(f"'{shlex.join(command)}' did not end within {timeout_s:g} s; is the board there?") from None
    except OSError as error:
        raise TinyrlError(f"'{tool}' cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        said = (done.stdout.strip().splitlines() or ["it said nothing"])[-1].strip()
        raise TinyrlError(f"'{shlex.join(command)}' failed with status {done.returncode}: {said}")


def _own_words(project: Project, port: str | None) -> list[str]:
    platform = PLATFORMS[project.platform]
    holes = {"name": project.library.name, "port": port or "", **platform.holes(project.options, ())}
    words = (TEMPLATES.from_string(word).render(holes) for word in platform.flash)
    return [word for word in words if word]
