# SPDX-License-Identifier: Apache-2.0
"""`tinyrl-tvm targets` and `tinyrl-tvm doctor`: what can be compiled for, and what this machine has."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from tinyrl_tvm.cli.console import json_option, say, say_json, say_table
from tinyrl_tvm.targets import BOARDS, TARGETS

if TYPE_CHECKING:
    from tinyrl_tvm.toolchain import Tool


@click.command("targets", short_help="List the cores and boards to compile for.")
@json_option
def targets_verb(as_json: bool) -> None:
    """List the cores to compile for, and the boards to generate projects for.

    \b
    --json: targets [{name, summary}], boards [{name, summary, target, flash_bytes, ram_bytes}]
    """
    if as_json:
        say_json(
            {
                "targets": [{"name": target.name, "summary": target.summary} for target in TARGETS.values()],
                "boards": [
                    {
                        "name": board.name,
                        "summary": board.summary,
                        "target": board.target,
                        "flash_bytes": board.flash_bytes,
                        "ram_bytes": board.ram_bytes,
                    }
                    for board in BOARDS.values()
                ],
            }
        )
        return
    say_table("compile --target", ("target", "core"), [(target.name, target.summary) for target in TARGETS.values()])
    say_table(
        "micro create DIR LIBRARY.tar baremetal --project-option board=...",
        ("board", "what it is", "target", "flash bytes", "RAM bytes"),
        [(board.name, board.summary, board.target, board.flash_bytes, board.ram_bytes) for board in BOARDS.values()],
    )


@click.command("doctor", short_help="Look for compilers and emulators; say how to install them.")
@json_option
@click.pass_context
def doctor_verb(ctx: click.Context, as_json: bool) -> None:
    """Look for the programs that builds and runs need; say the line that installs what is missing.

    Exit status 1 when one that is not optional is missing.

    \b
    --json: ok, tools [{name, purpose, optional, path, version, install}]; path and version null when missing
    """
    from tinyrl_tvm import toolchain

    found = toolchain.doctor()
    missing = [entry.tool for entry in found if entry.path is None]
    required = [tool for tool in missing if not tool.optional]
    if as_json:
        say_json(
            {
                "ok": not required,
                "tools": [
                    {
                        "name": entry.tool.name,
                        "purpose": entry.tool.purpose,
                        "optional": entry.tool.optional,
                        "path": str(entry.path) if entry.path else None,
                        "version": entry.version,
                        "install": entry.tool.install_line,
                    }
                    for entry in found
                ],
            }
        )
    else:
        rows = [
            (entry.tool.name, entry.tool.purpose, entry.path or _missing(entry.tool), entry.version or "")
            for entry in found
        ]
        say_table("tools", ("tool", "what it does", "path", "version"), rows)
        optional = [tool for tool in missing if tool.optional and tool.packages]
        say(f"missing; install it: {_install_line(required)}" if required else "everything needed is here")
        if optional:
            say(f"optional; install it: {_install_line(optional)}")
    if required:
        ctx.exit(1)


def _missing(tool: Tool) -> str:
    return "missing, optional" if tool.optional else "missing"


def _install_line(tools: list[Tool]) -> str:
    """One line for all of them."""
    packages = dict.fromkeys(package for tool in tools for package in tool.packages)
    return replace(tools[0], packages=tuple(packages)).install_line
