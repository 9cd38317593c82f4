# SPDX-License-Identifier: Apache-2.0
"""What a compiled policy must answer to its test vectors, and what the float policy answers.

int8      the oracle's answers, bit for bit
float32   the graph's answers in float64, within a bound on what float32 sums may lose

    dense layer   |error_out| <= |error_in| @ |W| + g * (|x| @ |W| + |b|)    g = (n + 2) u / (1 - (n + 2) u), u = 2^-24
    function      |error_out| <= |error_in| + 1e-6                          relu, tanh, sigmoid: none is steeper than 1

g bounds any order of summation, fused or not, so the same bound holds on every target and under every compiler flag.
Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tinyrl_tvm.errors import TinyrlError

if TYPE_CHECKING:
    from tvm import IRModule

    from relay_passes.chain import Chain

UNIT_ROUNDOFF = 2.0**-24
FLOAT32_MAX = float(np.finfo(np.float32).max)
FUNCTION_ERROR = 1e-6  # our float32 tanh and sigmoid; measured 3.5e-7


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
    if precision == "int8":
        actions = _rows(oracle.answers(graph, *inputs))
        return Expectations(np.arange(len(actions)), actions, exact, 0.0)
    return _float_expectations(graph, inputs, exact)


def _float_expectations(graph: IRModule, inputs: list[np.ndarray], exact: np.ndarray) -> Expectations:
    from relay_passes.chain import read_chain
    from relay_passes.head import Decision, read_head

    chain = read_chain(graph)
    x = np.concatenate([part.reshape(len(part), -1) for part in inputs], axis=1).astype(np.float64)
    outputs, bound = _bounded(chain, np.clip(x, *chain.limits))
    head = read_head(chain)
    if not isinstance(head, Decision):
        scaled = bound + FUNCTION_ERROR * bool(head.function.body)
        scaled = scaled * np.abs(head.scale) + 4 * UNIT_ROUNDOFF * (np.abs(exact) + np.abs(head.offset))
        bounds = scaled.max(axis=1)
        # one row far outside the others would loosen what is asked of all
        kept = np.flatnonzero(bounds <= 100 * np.median(bounds))
        note = f"{len(exact) - len(kept)} test vectors left out: float32 may err a hundred times more on them"
        notes = (note,) if len(kept) < len(exact) else ()
        return Expectations(kept, exact[kept], exact[kept], float(2 * bounds[kept].max()), notes)
    kept = np.flatnonzero(_margin(outputs, head) > 2 * bound.max(axis=1))
    if not len(kept):
        raise TinyrlError(
            "on every test vector the two best actions are nearer to each other than float32 can tell; "
            "is the policy trained? give rollout observations with --calibration"
        )
    dropped = len(exact) - len(kept)
    note = f"{dropped} test vectors left out: their two best actions are nearer than float32 can tell"
    return Expectations(kept, exact[kept], exact[kept], 0.0, (note,) if dropped else ())


def _bounded(chain: Chain, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last dense layer's outputs (n, n_out) in float64, and how far float32 may be from them."""
    error = np.zeros_like(x)
    for layer in chain.layers:
        weight: np.ndarray = layer.weight.astype(np.float64)
        bias: np.ndarray = layer.bias.astype(np.float64)
        n = (len(weight) + 2) * UNIT_ROUNDOFF
        error = error @ np.abs(weight) + n / (1 - n) * (np.abs(x) @ np.abs(weight) + np.abs(bias))
        x = x @ weight + bias
        if layer.function.body:
            x = np.stack([layer.function(row) for row in x])
            error = error + FUNCTION_ERROR * (layer.function.operators != ("nn.relu",))
    return x, error


def _margin(outputs: np.ndarray, head: object) -> np.ndarray:
    """How far the decision is from another, (n,)."""
    from relay_passes.head import Decision

    assert isinstance(head, Decision)
    if head.positive:
        return np.abs(outputs).min(axis=1)
    margins = []
    for run in np.split(outputs, np.cumsum(head.runs)[:-1], axis=1):
        best = np.sort(run, axis=1)[:, ::-1]
        margins.append(best[:, 0] - best[:, 1] if run.shape[1] > 1 else np.full(len(run), np.inf))
    return np.min(margins, axis=0)


def _rows(actions: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
    """(n, n_actions) float32, or int32 for any kind of integer; what is beyond float32 becomes its end."""
    values = np.asarray(actions)
    values = values.reshape(len(values), -1)
    if not np.issubdtype(values.dtype, np.floating):
        return values.astype(np.int32)
    return np.clip(values, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
