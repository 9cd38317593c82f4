# SPDX-License-Identifier: Apache-2.0
"""What every benchmark does with its figures: a table, a place in the README, a JSON file, and where they came from.

<!-- name -->
what stood here is replaced
<!-- /name -->
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.library import write_whole
from tinyrl_tvm.toolchain import find

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def run(main: click.Command) -> None:
    """The benchmark's command; our own errors are one sentence."""
    try:
        main()
    except TinyrlError as error:
        sys.exit(f"Error: {error}")


def table(head: str, rows: Iterable[Sequence[object]], text_columns: int = 2) -> str:
    """Markdown: `head` is its first line without the outer bars; numbers stand to the right of `text_columns` of text."""
    columns = [f" {name.strip()} " for name in head.split("|")]
    rule = ["---"] * text_columns + ["---:"] * (len(columns) - text_columns)
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join([f"|{'|'.join(columns)}|", f"|{'|'.join(rule)}|", *lines])


def write_readme(mark: str, text: str, readme: Path = README) -> None:
    """Between `<!-- mark -->` and `<!-- /mark -->`."""
    marks = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    after, count = re.subn(marks, lambda match: f"{match[1]}{text}\n{match[2]}", readme.read_text(), flags=re.DOTALL)
    if count != 1:
        raise click.ClickException(f"{readme.name} has no one pair of '<!-- {mark} -->' marks to write between")
    write_whole(readme, after.encode())


def write_results(name: str, facts: dict[str, str], rows: Iterable[Any]) -> None:
    """`benchmarks/<name>.json`: what the figures depend on, and the rows, dataclasses, in full."""
    record = {"machine": facts, "rows": [asdict(row) for row in rows]}
    write_whole(HERE / f"{name}.json", (json.dumps(record, indent=2) + "\n").encode())


def machine(**tools: str) -> dict[str, str]:
    """What figures depend on: the commit, and the first line of `--version` of each tool. Raises TinyrlError for one that
    is not there: ask before measuring, not after."""
    return {"commit": commit()} | {key: version_of(tool) for key, tool in tools.items()}


def version_of(tool: str) -> str:
    said = subprocess.run((find(tool), "--version"), capture_output=True, text=True, check=True).stdout.splitlines()
    # llvm-mca says whose it is before it says which
    return next((line.strip() for line in said if re.search(r"\d\.\d", line)), said[0])


def commit() -> str:
    """With `-dirty` when a file differs from it, other than those that benchmarks write."""
    try:
        name = _git("describe", "--always")
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/README.md", ":!/benchmarks/*.json"
        )
    except (OSError, subprocess.CalledProcessError):
        return "n/a (no git repository)"
    return f"{name}-dirty" if changed else name


def _git(*arguments: str) -> str:
    done = subprocess.run(("git", "-C", str(HERE), *arguments), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def provenance(script: str, facts: dict[str, str]) -> str:
    tools = ", ".join(dict.fromkeys(said for name, said in facts.items() if name not in ("commit", "python")))
    return f"Written by `python benchmarks/{script}` at {facts['commit']} with {tools}."
