# SPDX-License-Identifier: Apache-2.0
"""Everything in a model, wherever it is kept: inner graphs, constants, names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and the branches and bodies inside it."""
    yield graph
    for node in graph.node:
        for inner in _inner_graphs(node):
            yield from graphs(inner)


def _inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for one in node.attribute for graph in (*([one.g] if one.HasField("g") else []), *one.graphs)]


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant of the model, wherever it is kept."""
    nodes = [node for function in model.functions for node in function.node]
    for graph in graphs(model.graph):
        yield from graph.initializer
        nodes += graph.node
    for node in nodes:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def texts(model: onnx.ModelProto) -> Iterator[str]:
    """Every name in the model; protobuf gives bytes for one that is not UTF-8."""
    for graph in graphs(model.graph):
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for value in (*graph.input, *graph.output):
            yield value.name
            yield from (axis.dim_param for axis in value.type.tensor_type.shape.dim)
    for tensor in tensors(model):
        yield from (tensor.name, *(entry.value for entry in tensor.external_data))


def operands(node: onnx.NodeProto) -> list[str]:
    """What a node reads, the outer tensors that its branches mention included."""
    names = [name for name in node.input if name]
    for graph in (graph for inner in _inner_graphs(node) for graph in graphs(inner)):
        names += [name for child in graph.node for name in child.input if name]
        names += [value.name for value in graph.output]
    return names
