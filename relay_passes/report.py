# SPDX-License-Identifier: Apache-2.0
"""Run passes one after the other and say what each of them took away.

    module, changes = run_passes(module, [PruneCritic(0), CanonicalizeClip(), FuseDense()])

A pass keeps no log: what it did is read off the module before and after, so the account is true of any pass, also of
one that says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Call, GenericConst, Tuple

from .dataflow import bindings, definitions, op_name


@dataclass(frozen=True)
class Census:
    """What a module is made of: operators by name, bytes of constants, the inputs' names and the number of outputs."""

    operators: Counter[str]
    parameter_bytes: int
    inputs: tuple[str, ...]
    n_outputs: int


@dataclass(frozen=True)
class Change:
    """What one pass did to a module."""

    pass_name: str
    before: Census
    after: Census

    @property
    def removed(self) -> Counter[str]:
        return self.before.operators - self.after.operators

    @property
    def added(self) -> Counter[str]:
        return self.after.operators - self.before.operators

    @property
    def saved_operators(self) -> int:
        return self.before.operators.total() - self.after.operators.total()

    @property
    def saved_bytes(self) -> int:
        """Of parameters; negative when the pass added some."""
        return self.before.parameter_bytes - self.after.parameter_bytes

    def __str__(self) -> str:
        """`removed 2 outputs, 3 matmul, 3 add`, `removed 1 sigmoid, 1 round; added 1 greater`, `nothing to do`."""
        gone = [f"{count} {name}" for name, count in self.removed.most_common()]
        if inputs := [name for name in self.before.inputs if name not in self.after.inputs]:
            gone.insert(0, f"input {', '.join(inputs)}")
        if outputs := self.before.n_outputs - self.after.n_outputs:
            gone.insert(0, f"{outputs} output{'s' * (outputs > 1)}")
        new = [f"{count} {name}" for name, count in self.added.most_common()]
        words = [f"removed {', '.join(gone)}"] * bool(gone) + [f"added {', '.join(new)}"] * bool(new)
        return "; ".join(words) or "nothing to do"


def census(module: tvm.IRModule) -> Census:
    """Count what `main` does and holds; a constant used twice is stored once."""
    main = module["main"]
    operators = Counter(_operator(value) for _, value in bindings(main) if isinstance(value, Call))
    constants: dict[int, int] = {}

    def weigh(node: GenericConst) -> None:
        array = node.value
        constants[array.data_ptr()] = array.numpy().nbytes

    tvm_ffi.structural_walk(main, (GenericConst, weigh))
    output = definitions(main).get(main.body.body)
    return Census(
        operators,
        sum(constants.values()),
        tuple(param.name for param in main.params),
        len(output.fields) if isinstance(output, Tuple) else 1,
    )


def run_passes(module: tvm.IRModule, passes: Iterable[tvm.transform.Pass]) -> tuple[tvm.IRModule, list[Change]]:
    """The module after all passes, and what each changed."""
    changes = []
    before = census(module)
    for step in passes:
        module = step(module)
        after = census(module)
        changes.append(Change(str(step.info.name), before, after))
        before = after
    return module, changes


def _operator(call: Call) -> str:
    if name := op_name(call):
        callee = call.args[0] if name in ("call_tir", "call_dps_packed", "call_pure_packed") else None
        if isinstance(callee, relax.ExternFunc):
            return str(callee.global_symbol)
        return str(callee.name_hint) if callee is not None else name
    return str(call.op)
