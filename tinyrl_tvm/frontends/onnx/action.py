# SPDX-License-Identifier: Apache-2.0
"""The action among a graph's outputs.

The observation and the action are found by structure, for exporters name tensors as they like (`input`, `56`, `view`).
Of the graph outputs that depend on an input, these are set aside:

    a judgement     one float a sample, computed from another output: its log-probability, its Q-value
    logits          floats that an integer output is computed from: the arg-max of them is the action
    a hidden layer  all of another output is computed from it, through a dense layer
    an echo         an input, at most reshaped or rescaled

The action is what is left; of several, the one that is judged; else the one that is not a single float, for beside a
wider or an integer action a single float is the value. So a 1-wide PPO action and its value, both float (1, 1), are
told apart by the log-probability: it is computed from the action and never from the value. When all that does not
settle it, the user is asked for `--output`.

Source: Stable-Baselines3, docs/guide/export.md for the exports, common/distributions.py for what comes from what.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.frontends.onnx.graph import Graph
from tinyrl_tvm.frontends.onnx.operators import check_operators
from tinyrl_tvm.frontends.onnx.quantised import QDQ_OPS
from tinyrl_tvm.frontends.onnx.sentences import quoted
from tinyrl_tvm.frontends.onnx.walking import operands

_LAYERS = frozenset({"Gemm", "MatMul"})
# The same numbers in another form: followed backwards from an output, they lead to the layer that made it.
_POST_PROCESSING = frozenset(
    {"Cast", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Clip", "Min", "Max"}
    | {"Round", "Where", "Neg", "Add", "Sub", "Mul", "Div", "Tanh", "Sigmoid", "HardSigmoid", "Softsign"}
    | {"Softmax", "LogSoftmax"}
    | QDQ_OPS
)


@dataclass(frozen=True)
class _Output:
    """A graph output, and how it is related to the others; the words are this file's docstring's."""

    graph: Graph
    name: str

    @cached_property
    def ancestors(self) -> frozenset[str]:
        return self.graph.ancestors(self.name)

    @cached_property
    def head(self) -> frozenset[str]:
        """The output itself, and back through its post-processing to the tensor a layer made."""
        tensors = [self.name]
        while (node := self.graph.producers.get(tensors[-1])) is not None and node.op_type in _POST_PROCESSING:
            varying = [operand for operand in operands(node) if operand in self.graph.varying]
            if len(varying) != 1:
                break
            tensors += varying
        return frozenset(tensors)

    @cached_property
    def is_float(self) -> bool:
        return self.graph.outputs[self.name].type.tensor_type.elem_type == 1  # TensorProto.FLOAT

    @cached_property
    def is_one_float(self) -> bool:
        tensor = self.graph.outputs[self.name].type.tensor_type
        n_elements = math.prod(axis.dim_value for axis in tensor.shape.dim) if tensor.HasField("shape") else 0
        return self.is_float and n_elements == 1

    @cached_property
    def echoes(self) -> bool:
        return not self.head.isdisjoint(self.graph.inputs)

    def is_computed_from(self, other: _Output) -> bool:
        """Not counting another form of the same numbers, such as a mean and its clipped copy."""
        return not self.ancestors.isdisjoint(other.head) and self.head.isdisjoint(other.head)

    def hides(self, other: _Output) -> bool:
        if not self.is_computed_from(other):
            return False
        between = self.graph.ancestors(self.name, stop_at=other.head) - other.head
        bypassed = not between.isdisjoint(self.graph.inputs)
        return not bypassed and any(node.op_type in _LAYERS for node in self.graph.nodes(between))

    def judges(self, other: _Output) -> bool:
        return self.is_one_float and self.is_computed_from(other) and not self.hides(other)

    def chooses_by(self, other: _Output) -> bool:
        return not self.is_float and other.is_float and self.is_computed_from(other)


def action_of(graph: Graph, source: str) -> str:
    varying = [_Output(graph, name) for name in graph.outputs if name in graph.varying]
    outputs = [one for one in varying if not one.echoes] or varying
    left = [
        one
        for one in outputs
        if not any(one.judges(other) or other.chooses_by(one) or other.hides(one) for other in outputs)
    ]
    judged = [one for one in left if any(other.judges(one) for other in outputs)]
    for candidates in (left, judged, [one for one in left if not one.is_one_float]):
        if len(candidates) == 1:
            return candidates[0].name
    candidates = left or outputs
    if not candidates:
        have = quoted(graph.outputs)
        raise TinyrlError(f"no output of '{source}' depends on an input, but {have} exist; export the actor")
    # an LSTM that all of them need is what to hear about first
    made = [frozenset(name for node in graph.nodes(one.ancestors) for name in node.output) for one in candidates]
    check_operators(graph, frozenset.intersection(*made), source)
    names = [one.name for one in candidates]
    raise TinyrlError(
        f"'{source}' has {len(names)} outputs that could be the action, {quoted(names)}; "
        f"say which, as in --output {quoted(names[:1])}"
    )
