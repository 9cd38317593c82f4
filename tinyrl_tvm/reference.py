# SPDX-License-Identifier: Apache-2.0
"""What a compiled policy must answer to its test vectors, bit for bit, and what the float policy answers.

int8, int16   the answers of `relay_passes/oracle.py`
float32       the answers of `float_oracle.py`, on every core: where it is of no matter whether the core takes a number below
              2^-126 for zero, as Helium does
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tinyrl_tvm.errors import TinyrlError

if TYPE_CHECKING:
    from tvm import IRModule

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Expectations:
    """`kept` are the rows that make test vectors, `actions` (n, n_actions) float32 or int32 what must come out,
    `float_actions` the float policy's, `tolerance` absolute, 0 for bit for bit."""

    kept: np.ndarray = field(repr=False)
    actions: np.ndarray = field(repr=False)
    float_actions: np.ndarray = field(repr=False)
    tolerance: float
    notes: tuple[str, ...] = ()


def expectations(policy_graph: IRModule, graph: IRModule, precision: str, inputs: list[np.ndarray]) -> Expectations:
    """`policy_graph` is the float policy, `graph` what is compiled of it before lowering; `inputs` (n, ...) each."""
    from relay_passes import oracle
    from relay_passes.evaluate import evaluate

    exact = _rows(evaluate(policy_graph, *inputs, dtype=np.float64))
    if precision != "float32":
        actions = _rows(oracle.answers(graph, *inputs))
        return Expectations(np.arange(len(actions)), actions, exact, 0.0)
    return _float_expectations(graph, inputs, exact)


def _float_expectations(graph: IRModule, inputs: list[np.ndarray], exact: np.ndarray) -> Expectations:
    from relay_passes.head import read_head
    from relay_passes.network import read_network
    from tinyrl_tvm.float_oracle import Float32, answers

    network = read_network(graph)
    head = read_head(network)
    rows = np.concatenate([part.reshape(len(part), -1) for part in inputs], axis=1)
    actions, flushed = (answers(network, head, rows, Float32(flushes)) for flushes in (False, True))
    answered = np.isfinite(actions) if actions.dtype == np.float32 else actions >= 0
    kept = np.flatnonzero((answered & (actions.view(np.int32) == flushed.view(np.int32))).all(axis=1))
    if not len(kept):
        raise TinyrlError(
            "on every test vector a number on the way leaves float32: it is past 3.4e38, or below 1.2e-38, which some cores "
            "take for zero; give rollout observations with --calibration"
        )
    dropped = len(exact) - len(kept)
    note = f"{dropped} test vectors left out: a number on the way is past 3.4e38, or below 1.2e-38"
    return Expectations(kept, actions[kept], exact[kept], 0.0, (note,) if dropped else ())


def _rows(actions: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
    """(n, n_actions) float32, or int32 for any kind of integer; what is beyond float32 becomes its end."""
    values = np.asarray(actions)
    values = values.reshape(len(values), -1)
    if not np.issubdtype(values.dtype, np.floating):
        return values.astype(np.int32)
    return np.clip(values, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
