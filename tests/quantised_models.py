# SPDX-License-Identifier: Apache-2.0
"""Policies quantised by ONNX Runtime's static quantiser, as its users do it, and QDQ graphs no quantiser writes.

model = quantised(dense_policy((6, 16, 3)), per_channel=True, ActivationSymmetric=True)
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from policies import input_shapes, observations_for

INT8, UINT8, INT16 = QuantType.QInt8, QuantType.QUInt8, QuantType.QInt16


class _Rows(CalibrationDataReader):
    def __init__(self, model: onnx.ModelProto, rows: np.ndarray) -> None:
        self.feeds = _feeds(model, rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def _feeds(model: onnx.ModelProto, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    shapes = input_shapes(model)
    ends = np.cumsum([int(np.prod(shape)) for _, shape in shapes])[:-1]
    for row in rows:
        yield {n: part.reshape(1, *shape) for (n, shape), part in zip(shapes, np.split(row, ends), strict=True)}


def quantised(
    model: onnx.ModelProto,
    rows: np.ndarray | None = None,
    *,
    activations: QuantType = INT8,
    weights: QuantType = INT8,
    per_channel: bool = False,
    form: QuantFormat = QuantFormat.QDQ,
    operators: Sequence[str] | None = None,
    leave_out: Sequence[str] | None = None,
    **extra: Any,
) -> onnx.ModelProto:
    """`extra` are ONNX Runtime's extra options: ActivationSymmetric, WeightSymmetric, QuantizeBias, ..."""
    rows = observations_for(model, 128) if rows is None else rows
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises a pre-processing that this needs none of
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "quantised.onnx"
            quantize_static(
                copy.deepcopy(model), path, _Rows(model, rows), quant_format=form, per_channel=per_channel,
                activation_type=activations, weight_type=weights, extra_options=extra,
                op_types_to_quantize=operators, nodes_to_exclude=leave_out,
            )  # fmt: skip
            return onnx.load(path)
    finally:
        logging.disable(disabled)


def with_matmuls(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every Gemm written as MatMul and Add."""
    model = copy.deepcopy(model)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Gemm":
            nodes.append(node)
            continue
        x, weight, bias = node.input
        product, turned = f"{node.output[0]}_product", f"{weight}_turned"
        model.graph.initializer.append(numpy_helper.from_array(values[weight].T.copy(), turned))
        nodes.append(helper.make_node("MatMul", [x, turned], [product], name=f"{node.name}_product"))
        nodes.append(helper.make_node("Add", [product, bias], list(node.output), name=f"{node.name}_bias"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def with_initializer(model: onnx.ModelProto, name: str, values: np.ndarray) -> onnx.ModelProto:
    """The model with other values in one of its constants."""
    model = copy.deepcopy(model)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


def last_scale(model: onnx.ModelProto) -> float:
    """The scale of the codes that are quantised last, those of the action."""
    last = [node for node in model.graph.node if node.op_type == "QuantizeLinear"][-1]
    return float(constant(model, last.input[1]))
