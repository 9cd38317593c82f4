# SPDX-License-Identifier: Apache-2.0
"""A generated folder, and how it is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tinyrl_tvm import __version__
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project.platforms import PLATFORMS, platform_named
from tinyrl_tvm.targets import BOARDS, Board

PROJECT_FILE = "tinyrl_project.json"
PROJECT_FORMAT = 1


@dataclass(frozen=True)
class Project:
    """A generated folder. Everything that was chosen at `create` is in it."""

    folder: Path
    platform: str
    options: Mapping[str, str]
    library: ModelLibrary = field(repr=False)

    @property
    def interface(self) -> Interface:
        return Interface.of(self.library)

    @property
    def board(self) -> Board | None:
        """One of `targets.BOARDS`; None where the platform has boards of its own, or none."""
        return BOARDS.get(self.options.get("board", ""))

    @property
    def tools(self) -> tuple[str, ...]:
        """What builds it, by names in `toolchain.TOOLS`, the compiler first."""
        return PLATFORMS[self.platform].tools(self.options)


def load(folder: Path) -> Project:
    """Read a folder that `create` wrote. Raises TinyrlError for any other."""
    folder = Path(folder).resolve()
    path = folder / PROJECT_FILE
    if not path.is_file():
        raise TinyrlError(f"no project in '{folder}'; 'tinyrl-tvm micro create' makes one")
    try:
        record = json.loads(path.read_text())
        version, name, options = record["format"], record["platform"], dict(record["options"])
        made_by = record.get("tinyrl_tvm")
    except (ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise TinyrlError(f"'{path}' is damaged ({reason}); create the project again with -f") from None
    if version != PROJECT_FORMAT:
        raise TinyrlError(
            f"'{path}' is of format {version!r}, this tinyrl-tvm reads {PROJECT_FORMAT}; "
            "create the project again with -f"
        )
    try:
        platform = platform_named(name)
        chosen = platform.complete(options)
    except TinyrlError as error:
        why = "is damaged" if made_by == __version__ else f"is of tinyrl-tvm {made_by}, this is {__version__}"
        raise TinyrlError(f"'{path}' {why}: {str(error).rstrip('.')}; create the project again with -f") from None
    return Project(folder, platform.name, chosen, ModelLibrary.load(folder / platform.layout.model))
