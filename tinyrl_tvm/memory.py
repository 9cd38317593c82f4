# SPDX-License-Identifier: Apache-2.0
"""The memory contract: what a policy takes of flash, RAM and stack, foretold, measured, and what it may take.

    compile      predicts three amounts, each with its contributors and a margin, and refuses a budget that cannot be met
    library      carries `Contract` in its metadata, `tinyrl.memory`, so that no later verb asks again
    micro build  measures flash and RAM in the linker's map and bounds the stack by the calls: `Memory`
    run          adds what painting the stack found

    |measured - predicted| <= margin,   measured <= budget,   painted <= bound of the stack <= painted + margin

It binds when the user set at least one budget: what does not hold then is an error. Where none was set it is a note, for a
policy that works is no worse for having been foretold badly.

All amounts are the policy's alone: flash and RAM are the firmware minus the same firmware without the policy, RAM is what
is static, the stack is below the caller of `<name>_predict`. The caller's own observation and action count for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.library import ModelLibrary

RESOURCES = ("flash", "ram", "stack")
IN_PROSE = {"flash": "flash", "ram": "RAM", "stack": "stack"}
NAMED = 3  # contributors, in a sentence
PAINTED_MARGIN_BYTES = 64  # slots of a frame that nobody wrote, and the paths of the runtime not taken


@dataclass(frozen=True)
class Contributor:
    """A part of an amount. `margin_bytes` is how far off a prediction may be, 0 where it is exact, as weights are."""

    name: str
    n_bytes: int
    margin_bytes: int = 0


@dataclass(frozen=True)
class Amount:
    """Bytes, by what they are for."""

    contributors: tuple[Contributor, ...]

    @property
    def n_bytes(self) -> int:
        return sum(part.n_bytes for part in self.contributors)

    @property
    def margin_bytes(self) -> int:
        return sum(part.margin_bytes for part in self.contributors)

    @property
    def least_bytes(self) -> int:
        return self.n_bytes - self.margin_bytes

    @property
    def largest(self) -> str:
        parts = sorted(self.contributors, key=lambda part: -part.n_bytes)[:NAMED]
        told = [f"{part.name} ({part.n_bytes:,} B)" for part in parts if part.n_bytes > 0]
        return " and ".join(filter(None, [", ".join(told[:-1]), *told[-1:]]))


@dataclass(frozen=True)
class Budget:
    """Bytes the policy may take of a chip; None where the user set no limit."""

    flash_bytes: int | None = None
    ram_bytes: int | None = None
    stack_bytes: int | None = None

    def of(self, resource: str) -> int | None:
        return {"flash": self.flash_bytes, "ram": self.ram_bytes, "stack": self.stack_bytes}[resource]

    @property
    def is_set(self) -> bool:
        return any(self.of(resource) is not None for resource in RESOURCES)


NO_BUDGET = Budget()


@dataclass(frozen=True)
class Contract:
    """What was predicted when the policy was compiled, and the budget it was compiled for."""

    flash: Amount
    ram: Amount
    stack: Amount
    budget: Budget = NO_BUDGET

    def predicted(self, resource: str) -> Amount:
        return {"flash": self.flash, "ram": self.ram, "stack": self.stack}[resource]

    def refuse_excess(self, advice: str) -> None:
        """Raises TinyrlError when the budget cannot be met, however the prediction errs."""
        for resource in RESOURCES:
            amount, budget = self.predicted(resource), self.budget.of(resource)
            if budget is not None and amount.least_bytes > budget:
                raise TinyrlError(
                    f"the policy needs {_at_least(amount)} of {IN_PROSE[resource]}, --{resource} gives {budget:,} B; "
                    f"the largest parts are {amount.largest}; {advice}"
                )

    @property
    def doubts(self) -> tuple[str, ...]:
        """A sentence for every budget that the prediction exceeds, though not by more than its margin."""
        return tuple(
            f"--{resource} gives {budget:,} B, and {amount.n_bytes:,} B are predicted, give or take "
            f"{amount.margin_bytes:,} B: 'micro build' measures and decides"
            for resource in RESOURCES
            if (budget := self.budget.of(resource)) is not None
            and (amount := self.predicted(resource)).n_bytes > budget
        )

    def to_json(self) -> dict[str, Any]:
        return {
            resource: {
                "predicted_bytes": self.predicted(resource).n_bytes,
                "margin_bytes": self.predicted(resource).margin_bytes,
                "budget_bytes": self.budget.of(resource),
                "contributors": [
                    {"name": part.name, "bytes": part.n_bytes, "margin_bytes": part.margin_bytes}
                    for part in self.predicted(resource).contributors
                ],
            }
            for resource in RESOURCES
        }

    @staticmethod
    def of(library: ModelLibrary) -> Contract | None:
        """That of a library, checked; None when it carries none. Raises TinyrlError for nonsense."""
        entry = library.interface.get("memory")
        if entry is None:
            return None
        try:
            amounts = {resource: _amount(entry[resource]) for resource in RESOURCES}
            budget = Budget(*(_limit(entry[resource]["budget_bytes"]) for resource in RESOURCES))
        except (KeyError, TypeError, ValueError) as error:
            raise TinyrlError(f"the library's memory contract is damaged ({error}); compile the policy again") from None
        return Contract(**amounts, budget=budget)


def _at_least(amount: Amount) -> str:
    return f"{'at least ' if amount.margin_bytes else ''}{amount.least_bytes:,} B"


def _amount(entry: Mapping[str, Any]) -> Amount:
    parts = entry["contributors"]
    amount = Amount(tuple(Contributor(str(p["name"]), _size(p["bytes"]), _size(p["margin_bytes"])) for p in parts))
    if (amount.n_bytes, amount.margin_bytes) != (entry["predicted_bytes"], entry["margin_bytes"]):
        raise ValueError("its contributors do not add up")
    return amount


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _limit(value: Any) -> int | None:
    return None if value is None else _size(value)


@dataclass(frozen=True)
class Memory:
    """A contract beside what a build of it takes: `flash` and `ram` as linked, `stack` the bound by the calls, or the
    sentence why there is none, `painted` the deepest stack that a run saw, None before one. A report draws it from here
    alone."""

    contract: Contract
    flash: Amount
    ram: Amount
    stack: Amount | str
    painted_bytes: int | None = None

    @property
    def binds(self) -> bool:
        """Whether a term that does not hold is an error, not a note."""
        return self.contract.budget.is_set

    def measured(self, resource: str) -> Amount | None:
        stack = None if isinstance(self.stack, str) else self.stack
        return {"flash": self.flash, "ram": self.ram, "stack": stack}[resource]

    def with_painted(self, n_bytes: int) -> Memory:
        return replace(self, painted_bytes=n_bytes)

    def broken(self) -> str | None:
        """The first term of the contract that does not hold, in a sentence; None when all of them do."""
        for resource in RESOURCES:
            what = IN_PROSE[resource]
            predicted, measured = self.contract.predicted(resource), self.measured(resource)
            if measured is None:
                return str(self.stack)
            budget = self.contract.budget.of(resource)
            if budget is not None and measured.n_bytes > budget:
                return (
                    f"the policy takes {measured.n_bytes:,} B of {what}, its budget is {budget:,} B; "
                    f"the largest parts are {measured.largest}"
                )
            if abs(measured.n_bytes - predicted.n_bytes) > predicted.margin_bytes:
                return (
                    f"the policy takes {measured.n_bytes:,} B of {what}, {predicted.n_bytes:,} B were predicted with a "
                    f"margin of {predicted.margin_bytes:,} B; {_furthest(predicted, measured)}"
                )
        return self._broken_by_painting()

    def _broken_by_painting(self) -> str | None:
        painted, stack = self.painted_bytes, self.measured("stack")
        if painted is None or stack is None:
            return None
        bound = stack.n_bytes
        if painted > bound:
            return f"the stack was {painted:,} B deep when the policy ran, and its calls bound it to {bound:,} B"
        if bound - painted > PAINTED_MARGIN_BYTES:
            return (
                f"the stack was {painted:,} B deep when the policy ran, its calls bound it to {bound:,} B, and the two may "
                f"differ by {PAINTED_MARGIN_BYTES} B; the deepest chain is {stack.largest}"
            )
        return None

    def rows(self, resource: str) -> Sequence[tuple[str, int | None, int | None]]:
        """(part, predicted, measured), the largest first; None where a part is in one of them alone."""
        predicted = {part.name: part.n_bytes for part in self.contract.predicted(resource).contributors}
        found = self.measured(resource)
        measured = {part.name: part.n_bytes for part in found.contributors} if found else {}
        names = dict.fromkeys([*measured, *predicted])
        rows = [(name, predicted.get(name), measured.get(name)) for name in names]
        return sorted(rows, key=lambda row: -max(row[1] or 0, row[2] or 0))

    def to_json(self) -> dict[str, Any]:
        """{resource: {predicted_bytes, margin_bytes, budget_bytes, measured_bytes, contributors}}, and what was painted."""
        entry = self.contract.to_json()
        for resource in RESOURCES:
            entry[resource]["measured_bytes"] = found.n_bytes if (found := self.measured(resource)) else None
            entry[resource]["contributors"] = [
                {"name": name, "predicted_bytes": predicted, "measured_bytes": measured}
                for name, predicted, measured in self.rows(resource)
            ]
        entry["stack"]["painted_bytes"] = self.painted_bytes
        return entry


def _furthest(predicted: Amount, measured: Amount) -> str:
    """The part that explains most of the difference."""
    before = {part.name: part.n_bytes for part in predicted.contributors}
    after = {part.name: part.n_bytes for part in measured.contributors}
    name = max(before | after, key=lambda name: abs(after.get(name, 0) - before.get(name, 0)))
    return f"the part furthest off is {name}, {before.get(name, 0):,} B predicted and {after.get(name, 0):,} B measured"
