# SPDX-License-Identifier: Apache-2.0
"""How the verbs speak: answers on stdout, everything else on stderr, and progress only where somebody watches."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from tinyrl_tvm.errors import TinyrlError

WIDTH_OF_A_PIPE = 120  # no terminal to ask, and the 80 that rich would take break a pass's line

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, whose keys are listed above."
)


def say(text: str = "") -> None:
    """A line of the answer."""
    click.echo(_printable(text))


def tell(text: str) -> None:
    """A line beside the answer."""
    click.echo(_printable(text), err=True)


def say_json(answer: dict[str, Any]) -> None:
    click.echo(json.dumps(answer, indent=2, allow_nan=False))


def say_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Whole numbers are set flush right, with thousands separated."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        cells = [
            Text(f"{cell:,}", justify="right") if isinstance(cell, int) else Text(_printable(str(cell))) for cell in row
        ]
        table.add_row(*cells)
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_OF_A_PIPE
    console.print(table)


@contextlib.contextmanager
def progress(verbose: bool = False) -> Iterator[Callable[[str], None]]:
    """A function to call as each stage begins. `verbose` writes a line a stage with its time, terminal or not."""
    if verbose:
        clock = _Stopwatch()
        try:
            yield clock.begin
        finally:
            clock.end()
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("") as status:
            yield status.update
    else:
        yield lambda stage: None


class _Stopwatch:
    def __init__(self) -> None:
        self.stage, self.began_s = "", 0.0

    def begin(self, stage: str) -> None:
        self.end()
        self.stage, self.began_s = stage, time.perf_counter()

    def end(self) -> None:
        if self.stage:
            tell(f"{self.stage}: {time.perf_counter() - self.began_s:.2f} s")
        self.stage = ""


def refuse_unwritable(path: Path, *inputs: Path | None) -> None:
    """Before the long work: can `path` be written, and is it none of the files to be read?"""
    try:
        if any(given is not None and given.exists() and path.exists() and given.samefile(path) for given in inputs):
            raise TinyrlError(f"cannot write '{path}': it is to be read; choose another output path")
        if path.exists() and not path.is_file():  # a device too: the rename at the end would replace it
            raise TinyrlError(f"cannot write '{path}': it is not a file; choose another output path")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise TinyrlError(f"cannot write '{path}': {error.strerror}; choose another output path") from None


def _printable(text: str) -> str:
    """Names come from strangers' files: nothing in them may steer the terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)
