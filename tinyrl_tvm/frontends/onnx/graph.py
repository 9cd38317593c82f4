# SPDX-License-Identifier: Apache-2.0
"""A model's graph, asked which tensor is computed from which."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tinyrl_tvm.frontends.onnx.walking import operands

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Graph:
    """A model seen from its outputs: what each tensor is computed from."""

    model: onnx.ModelProto

    @cached_property
    def inputs(self) -> dict[str, onnx.ValueInfoProto]:
        stored = {tensor.name for tensor in self.model.graph.initializer}  # which old exporters list as inputs too
        return {value.name: value for value in self.model.graph.input if value.name not in stored}

    @cached_property
    def outputs(self) -> dict[str, onnx.ValueInfoProto]:
        return {value.name: value for value in self.model.graph.output}

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self.model.graph.node for name in node.output if name}

    @cached_property
    def varying(self) -> frozenset[str]:
        """Tensors whose numbers depend on an input's numbers. A shape does not, once the batch is 1."""
        result = set(self.inputs)
        for node in self.model.graph.node:  # in topological order, as ONNX demands
            if node.op_type not in ("Shape", "Size") and not result.isdisjoint(operands(node)):
                result.update(node.output)
        return frozenset(result)

    def ancestors(self, name: str, stop_at: frozenset[str] = frozenset()) -> frozenset[str]:
        """`name` and every tensor it is computed from, without looking behind `stop_at`."""
        seen, todo = {name}, [name]
        while todo:
            tensor = todo.pop()
            if tensor in self.producers and tensor not in stop_at:
                fresh = set(operands(self.producers[tensor])) - seen
                seen |= fresh
                todo += fresh
        return frozenset(seen)

    def nodes(self, tensors: frozenset[str]) -> list[onnx.NodeProto]:
        """The nodes that compute `tensors`."""
        return [node for node in self.model.graph.node if not tensors.isdisjoint(node.output)]

    def inputs_of(self, name: str) -> list[str]:
        needed = self.ancestors(name)
        return [name for name in self.inputs if name in needed]

    def only(self, outputs: list[str]) -> onnx.ModelProto:
        """A copy of the model without what only other outputs need."""
        import onnx

        needed = frozenset[str]().union(*map(self.ancestors, outputs))
        whole = self.model.graph
        graph = onnx.helper.make_graph(
            self.nodes(needed),
            whole.name or "policy",
            [value for name, value in self.inputs.items() if name in needed],
            [value for name, value in self.outputs.items() if name in outputs],
            [tensor for tensor in whole.initializer if tensor.name in needed],
        )
        return onnx.helper.make_model(graph, ir_version=self.model.ir_version, opset_imports=self.model.opset_import)
