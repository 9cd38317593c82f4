# SPDX-License-Identifier: Apache-2.0
"""What calibration saw of a network's tensors, and what the rest of the network makes of other values of one of them.

Why: a scale is chosen by what it does to the outputs, not to the tensor that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm.ir import Var

from .evaluate import evaluate
from .head import Continuous, read_head
from .network import MERGES, Layer, Merge, Network, Node

# Rows that choose a layer's clipping, of those that gave the ranges.
SAMPLES = 512


@dataclass(frozen=True)
class Seen:
    """What calibration saw of a tensor: each element's least and greatest value (n,), and some of its rows, those that
    `at` tells of all there were."""

    low: np.ndarray
    high: np.ndarray
    rows: np.ndarray
    at: np.ndarray

    @property
    def reach(self) -> np.ndarray:
        return np.maximum(np.abs(self.low), np.abs(self.high))


class Replay:
    """A network on what `rows` of observations, one array (n_rows, n) a main input, make of it. `seen` has what every node
    puts out before and after its function, and the joined observations under None."""

    def __init__(self, module: tvm.IRModule, network: Network, rows: Sequence[np.ndarray]) -> None:
        *nodes, last = network.nodes
        action = read_head(network)
        if isinstance(action, Continuous):  # a squashed action feels its layer's errors squashed
            last = replace(last, function=action.function)
        self.nodes: list[Node] = [*nodes, last]
        self.seen: dict[Var | None, Seen] = {}
        self._beside: dict[Var, np.ndarray] = {}
        self._observe(module, network, rows)

    def _observe(self, module: tvm.IRModule, network: Network, rows: Sequence[np.ndarray]) -> None:
        joined = np.concatenate([np.asarray(part, np.float64).reshape(len(part), -1) for part in rows], axis=1)
        joined = np.clip(joined, *network.limits)
        wanted = {var for node in self.nodes for var in (node.function.source, node.function.result)}
        merged = {var for node in self.nodes if isinstance(node, Merge) for var in node.sources}

        def watch(var: Var | None, values: np.ndarray) -> None:
            if var is None or var in wanted:
                values = values.reshape(len(values), -1)
                at = sorted({*range(0, len(values), -(-len(values) // SAMPLES)), *values.argmax(0), *values.argmin(0)})
                self.seen[var] = Seen(values.min(0), values.max(0), values[at], np.array(at))
                if var in merged:
                    self._beside[var] = values

        watch(None, joined)
        evaluate(module, *rows, watch=watch, dtype=np.float64)

    def before(self, node: Node) -> Seen:
        """What was seen of what a node of one source reads."""
        (source,) = node.sources
        return self.seen[source]

    def readers(self, node: Node) -> list[Node]:
        return [reader for reader in self._behind(node) if node.function.result in reader.sources]

    def through(self, node: Layer, rows: np.ndarray, at: np.ndarray) -> np.ndarray:
        """The outputs for `rows` (n, n_in) of what a layer reads."""
        return self.outputs(node, forward(node, rows), at)

    def outputs(
        self, node: Node, rows: np.ndarray, at: np.ndarray, weigh: Callable[[Layer], np.ndarray] | None = None
    ) -> np.ndarray:
        """The outputs for `rows` (n, n_out) of a node, every other tensor having its values at the rows `at` of those that
        calibration saw. `weigh` gives the layers that read the node other weights than their own."""
        values = {node.function.result: rows}
        for later in self._behind(node):
            if not any(source in values for source in later.sources):
                continue
            weight = None
            if weigh and isinstance(later, Layer) and node.function.result in later.sources:
                weight = weigh(later)
            operands = [values[source] if source in values else self._beside[source][at] for source in later.sources]
            rows = values[later.function.result] = forward(later, *operands, weight=weight)
        return rows

    def _behind(self, node: Node) -> list[Node]:
        return self.nodes[self.nodes.index(node) + 1 :]


def forward(node: Node, *operands: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """What a node makes of rows, in float; `weight` takes the place of its own."""
    if isinstance(node, Layer):
        rows = operands[0] @ (node.weight.astype(np.float64) if weight is None else weight) + node.bias
    elif isinstance(node, Merge):
        rows = MERGES[node.operator](*operands)
    else:
        (rows,) = operands
    return node.function(rows.ravel()).reshape(rows.shape) if node.function.body else rows
