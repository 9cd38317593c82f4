# SPDX-License-Identifier: Apache-2.0
"""`tinyrl-tvm micro`: a model library becomes a project, a project firmware, and firmware a board that is right."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinyrl_tvm.cli.console import json_option, progress, say, say_json, say_table
from tinyrl_tvm.cli.contract import judge, memory_of, say_memory, say_painted
from tinyrl_tvm.cli.run import BAUD
from tinyrl_tvm.errors import TinyrlError

if TYPE_CHECKING:
    from tinyrl_tvm.device.measurement import Measurement

PROJECT_OPTION = "--project-option"


class TakesProjectOptions(click.Command):
    """As with tvmc, `--project-option` takes every NAME=VALUE that follows it, and may be repeated."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words: list[str] = []
        for word in args:
            if words[-2:-1] == [PROJECT_OPTION] and "=" in word and not word.startswith("-"):
                words.append(PROJECT_OPTION)
            words.append(word)
        return super().parse_args(ctx, words)


class NameValue(click.ParamType):
    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        option, equals, choice = value.partition("=")
        if not (option and equals):
            self.fail(f"'{value}' is not NAME=VALUE, as in board=mps3-an547; see --list-options", param, ctx)
        return option, choice


def _list_options(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from tinyrl_tvm.project import PLATFORMS

    rows = [
        (platform.name, option.name, ", ".join(option.choices) or "any text", option.default, option.help)
        for platform in PLATFORMS.values()
        for option in platform.options
    ]
    say_table("project options", ("platform", "option", "choices", "default", "meaning"), rows)
    without = [platform.name for platform in PLATFORMS.values() if not platform.options]
    say(f"without options: {', '.join(without)}")
    ctx.exit()


@click.group("micro", short_help="Generate, build, flash and test projects.")
def micro_verb() -> None:
    """From a model library to a project, to firmware, to a board that is right. `run --device micro DIR` asks it."""


@micro_verb.command("create", cls=TakesProjectOptions, short_help="Write a project for a platform to a new folder.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("library", metavar="LIBRARY.tar", type=click.Path(path_type=Path))
@click.argument("platform")
@click.option("-f", "--force", is_flag=True, help="Replace DIR when it is an earlier project.")
@click.option(
    PROJECT_OPTION, "options", type=NameValue(), multiple=True, help="Takes one or more NAME=VALUE; may be repeated."
)
@click.option(
    "--list-options",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_options,
    help="List the options of every platform.",
)
def create_verb(folder: Path, library: Path, platform: str, force: bool, options: tuple[tuple[str, str], ...]) -> None:
    """Write a project for PLATFORM to the new folder DIR; --list-options names them.

    The folder builds with the platform's own tools, make, CMake or Arduino's, also where tinyrl-tvm is not installed.
    """
    from tinyrl_tvm import project as projects
    from tinyrl_tvm.library import ModelLibrary

    project = projects.create(ModelLibrary.load(library), folder, platform, dict(options), force)
    chosen = "".join(f", {name}={value}" for name, value in project.options.items() if value)
    say(f"wrote '{folder}': {project.interface.name} for {project.platform}{chosen}")
    say(f"next: tinyrl-tvm micro build {shlex.quote(str(folder))}")


@micro_verb.command("build", short_help="Build a project.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def build_verb(folder: Path, as_json: bool) -> None:
    """Build the project in DIR.

    Flash and RAM are those of the policy: the firmware minus the same firmware without the call of the policy. On baremetal
    a policy that was compiled for a budget must be within it, and as near to what compile predicted as that said; else exit
    status 1. Without a budget there is a note.

    \b
    --json: project, platform, options {}, products [], flash_bytes, ram_bytes, both null but on baremetal;
      memory {flash, ram, stack: {predicted_bytes, margin_bytes, measured_bytes, budget_bytes, contributors []}}
    """
    from tinyrl_tvm import project as projects
    from tinyrl_tvm.device.elf import cost_of_policy
    from tinyrl_tvm.device.memory import measure

    with progress() as begin:
        begin("build")
        built = projects.build(projects.load(folder))
        memory = measure(built)
    cost = cost_of_policy(built) if built.project.platform == "baremetal" else None
    if as_json:
        say_json(
            {
                "project": str(folder),
                "platform": built.project.platform,
                "options": dict(built.project.options),
                "products": [str(path) for path in built.products],
                "flash_bytes": cost.flash_bytes if cost else None,
                "ram_bytes": cost.ram_bytes if cost else None,
                "memory": memory.to_json() if memory else None,
            }
        )
        judge(memory)
        return
    for path in built.products:
        say(f"built '{path}'")
    if cost:
        say(f"flash: {cost.flash_bytes:,} B")
        say(f"RAM: {cost.ram_bytes:,} B")
    if memory:
        say_memory(memory)
    judge(memory)
    say(f"next: tinyrl-tvm run --device micro {shlex.quote(str(folder))}")


@micro_verb.command("flash", short_help="Flash a project by its platform's own tool.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--port", metavar="TTY", help="Where the board is, as /dev/ttyACM0, for tools that want to be told.")
def flash_verb(folder: Path, port: str | None) -> None:
    """Flash the project in DIR, by the platform's own tool; it is built first when it is not.

    For bare metal the tool is the project's option flash_command, as 'pyocd flash -t nrf51 {elf}'.
    """
    from tinyrl_tvm import project as projects

    project = projects.load(folder)
    with progress() as begin:
        begin("build and flash")
        projects.ensure_built(project)
        command = projects.flash(project, port)
    if command is None:
        named = "micro create --project-option 'flash_command=pyocd flash {elf}'"
        if port is not None:  # somebody has a board there, and would take exit status 0 for a board that was flashed
            would_do = f"; {named} names one" if project.platform == "baremetal" else ""
            raise TinyrlError(
                f"nothing was flashed to '{port}': the project in '{folder}' has no tool for it{would_do}"
            )
        say(f"nothing to flash: 'tinyrl-tvm run --device micro {folder}' starts it")
        if project.platform == "baremetal":
            say(f"for a board that is not emulated: {named}")
    else:
        say(f"flashed by: {command}")
        test = shlex.join(["tinyrl-tvm", "micro", "test", str(folder), *(["--port", port] if port else [])])
        say(f"next: {test}")


@micro_verb.command("test", short_help="Replay a project's test vectors on its board.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--port", metavar="TTY", help="The board is at this serial port, as /dev/ttyACM0, and flashed.")
@click.option("--baud", type=click.IntRange(1), default=BAUD, show_default=True, help="With --port.")
@json_option
@click.pass_context
def test_verb(ctx: click.Context, folder: Path, port: str | None, baud: int, as_json: bool) -> None:
    """Build the project in DIR when it is not, and replay its test vectors on its board. Exit status 1 when one is wrong.

    \b
    --json: the keys of run
    """
    from tinyrl_tvm import project as projects
    from tinyrl_tvm.device import micro
    from tinyrl_tvm.device.serial_line import Port

    project = projects.load(folder)
    with progress() as begin:
        begin("build and run")
        projects.ensure_built(project)
        measured = micro.run(project, port=Port(port, baud) if port else None)
        memory = None if port else memory_of(folder, measured)
    if as_json:
        say_json(measured.to_json() | {"memory": memory.to_json() if memory else None})
    else:
        rows = [(check, said) for check, said in _checks(measured) if said is not None]
        say_table(f"{project.interface.name} on {measured.device}", ("check", "result"), rows)
        if memory:
            say_painted(memory)
    if measured.parity != "PASS":
        ctx.exit(1)
    judge(memory)


def _checks(measured: Measurement) -> Iterator[tuple[str, str | None]]:
    """What was not measured is None."""

    def number(value: float | None, unit: str) -> str | None:
        return None if value is None else f"{value:,.{0 if isinstance(value, int) else 2}f} {unit}"

    parity, likeness = measured.vectors, measured.likeness
    yield "build", "done"
    yield "parity", f"{parity.verdict} ({parity.right} of {parity.total})" if parity else None
    agreement = likeness.action_agreement if likeness else None
    yield "agreement with the float policy", number(None if agreement is None else 100 * agreement, "%")
    error = likeness.max_abs_error if likeness else None
    yield "largest error against the float policy", None if error is None else f"{error:.6g}"
    yield "an inference", number(measured.instructions_per_inference, "instructions")
    yield "an inference", number(measured.ticks_per_inference, "ticks")
    yield "flash", number(measured.flash_bytes, "B")
    yield "RAM", number(measured.ram_bytes, "B")
    yield "stack", number(measured.stack_bytes, "B")
