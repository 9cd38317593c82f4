# SPDX-License-Identifier: Apache-2.0
"""What is said of a platform: where its files go, what may be chosen, how its own tools build it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyrl_tvm.errors import TinyrlError, unknown_name

Options = Mapping[str, str]

ANY_RELEASE = "any"  # of CMSIS-NN: the user brings it

REPLAY_FILES = ("console.c", "console.h", "replay.c", "replay.h", "vectors.c.jinja", "vectors.h.jinja")
PROFILE_FILES = ("profile/profile.c", "profile/profile.h.jinja")

# Of platforms that bring a main() and a platform.c of their own for the control loop.
LOOP_FILES = {
    f"loop/{name}": f"src/loop/{name}"
    for name in (
        *("loop.c", "loop.h", "loop_config.h", "robot.c", "spread.c", "spread.h"),
        *("recording.c", "recording.h", "decimal.c", "decimal.h"),
    )
}


def named(path: str, name: str) -> str:
    """A path whose {{name}} is that of the policy."""
    return path.replace("{{name}}", name)


def flash_words(command: str) -> list[str]:
    """A command that flashes, split as a shell would. Raises TinyrlError when it is none."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise TinyrlError(f"'{command}' is no command: {str(error).lower()}") from None
    if not any("{elf}" in word for word in words[1:]):
        raise TinyrlError(
            f"'{command}' does not say where the firmware goes; put {{elf}} there, as in 'pyocd flash -t nrf51 {{elf}}'"
        )
    return words


@dataclass(frozen=True)
class Option:
    """One `--project-option NAME=VALUE`. Without `choices` any text that `check` does not refuse."""

    name: str
    choices: tuple[str, ...]
    default: str
    help: str
    check: Callable[[str], object] = lambda _: None


@dataclass(frozen=True)
class Layout:
    """Where a platform wants the policy's code: include/ and src/ below `code`, or both `flat` in it. `replay` is the
    folder of the test vectors and what replays them, `model` the library. A folder may be called {{name}}."""

    code: str = "policy"
    flat: bool = False
    replay: str = "src"
    model: str = "policy/model.tar"

    def place_of(self, below: str, name: str) -> str:
        """`include/tvmgen_x.h` of the library `name` in the project."""
        return f"{named(self.code, name)}/{below.rpartition('/')[2] if self.flat else below}"


@dataclass(frozen=True)
class Platform:
    """A way to build a project.

    `command` is its own build tool, with holes as templates have them, `flash` likewise the one that flashes, less the
    words that are empty where no port is given, `products` are what the first leaves behind, `profile` what it makes on
    demand to measure layer by layer, "" when it cannot; `borrows` are other platforms' templates, and where they go. What the
    options decide are functions of them: `tools` of `toolchain.TOOLS` that build it, the compiler first; `target`, the core
    that the project is for, None when any will do; `leaves_out`, folders and files of its templates; `holes` of its
    templates, also by their paths; `cmsis_nn`, the release of CMSIS-NN that it builds with, "" for none. `compiles_checkout`
    tells that this is a checkout of the user's, of which it compiles what a library needs.
    """

    name: str
    summary: str
    products: tuple[str, ...]
    layout: Layout = Layout()
    profile: str = ""
    borrows: Mapping[str, str] = field(default_factory=dict)
    options: tuple[Option, ...] = ()
    command: tuple[str, ...] = ("make",)
    compiles_checkout: bool = False
    cmsis_nn: Callable[[Options], str] = lambda _: ""
    flash: tuple[str, ...] = ()
    tools: Callable[[Options], tuple[str, ...]] = lambda _: ("cc",)
    target: Callable[[Options], str | None] = lambda _: None
    leaves_out: Callable[[Options], frozenset[str]] = lambda _: frozenset()
    holes: Callable[[Options, Sequence[str]], dict[str, Any]] = lambda _, __: {}

    @property
    def borrowed(self) -> Mapping[str, str]:
        """Template below microtvm_projects -> path in the project."""
        replay = {f"replay/{name}": f"{self.layout.replay}/{name}" for name in REPLAY_FILES}
        return replay | dict(self.borrows)

    def place(self, options: Options) -> str:
        """The first option, which says what the project is for: `the board 'mps3-an547'`."""
        name = self.options[0].name
        return f"the {name} '{options[name]}'"

    def given(self, options: Options) -> dict[str, str]:
        """What has to be given for complete() to give `options`, and the first, which says what the project is for."""
        defaults = {option.name for option in self.options[1:] if options.get(option.name) == option.default}
        return {name: value for name, value in options.items() if name not in defaults}

    def complete(self, given: Options) -> Options:
        """`given` checked, and the defaults of what it leaves open."""
        known = {option.name: option for option in self.options}
        for name, value in given.items():
            if name not in known:
                raise self._unknown_option(name, known)
            if known[name].choices and value not in known[name].choices:
                raise unknown_name(name, value, known[name].choices)
            if value != known[name].default:
                known[name].check(value)
        return {name: given.get(name, option.default) for name, option in known.items()}

    def _unknown_option(self, name: str, known: Mapping[str, Option]) -> TinyrlError:
        if not known:
            return TinyrlError(f"no option '{name}'; the platform '{self.name}' has none")
        return unknown_name(f"option of '{self.name}'", name, known)
