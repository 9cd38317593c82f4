# SPDX-License-Identifier: Apache-2.0
"""What `micro build` and `run` say of a memory contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tinyrl_tvm.cli.console import say, say_table, tell
from tinyrl_tvm.errors import TinyrlError

if TYPE_CHECKING:
    from tinyrl_tvm.device.measurement import Measurement
    from tinyrl_tvm.memory import Memory

PARTS_SHOWN = 6  # of each resource


def memory_of(folder: Path, measured: Measurement) -> Memory | None:
    """The contract of the project in `folder` beside what was linked and what a run painted."""
    from tinyrl_tvm import project as projects
    from tinyrl_tvm.device.memory import measure

    memory = measure(projects.built(projects.load(folder))) if measured.stack_bytes is not None else None
    return memory.with_painted(measured.stack_bytes) if memory and measured.stack_bytes is not None else None


def say_memory(memory: Memory) -> None:
    """Predicted beside measured beside what is allowed, in bytes, with the largest parts."""
    from tinyrl_tvm.memory import IN_PROSE, RESOURCES  # it loads numpy

    rows: list[tuple[str, ...]] = []
    for resource in RESOURCES:
        predicted, measured = memory.contract.predicted(resource), memory.measured(resource)
        budget = memory.contract.budget.of(resource)
        foretold = f"{predicted.n_bytes:,} ± {predicted.margin_bytes:,}"
        rows.append((IN_PROSE[resource], foretold, _bytes(measured.n_bytes if measured else None), _bytes(budget)))
        parts = memory.rows(resource)
        shown = parts[:PARTS_SHOWN] if len(parts) > 1 else []
        rows += [(f"  {name}", _bytes(before), _bytes(after), "") for name, before, after in shown]
        if len(parts) > len(shown) > 0:
            rows.append((f"  {len(parts) - len(shown)} more", "", "", ""))
    say_table("the policy's memory, bytes", ("", "predicted", "measured", "budget"), rows)


def say_painted(memory: Memory) -> None:
    bound = memory.measured("stack")
    say(
        f"stack, three ways: {memory.contract.stack.n_bytes:,} B predicted (± {memory.contract.stack.margin_bytes:,}), "
        f"{f'{bound.n_bytes:,} B at most' if bound else 'no bound'} by its calls, {memory.painted_bytes:,} B painted"
    )


def judge(memory: Memory | None) -> None:
    """Raises TinyrlError when a term of a contract that binds does not hold; of one that does not, a note says so."""
    if memory is None or (sentence := memory.broken()) is None:
        return
    if memory.binds:
        raise TinyrlError(sentence)
    tell(f"note: {sentence}")


def _bytes(n_bytes: int | None) -> str:
    return "" if n_bytes is None else f"{n_bytes:,}"
