# SPDX-License-Identifier: Apache-2.0
"""What a quantised model may say: QuantizeLinear and DequantizeLinear with int8 or uint8 codes, refused by name otherwise.

    activations   int8 or uint8, one scale a tensor       weights   int8 or uint8, one scale a tensor or an output channel
    scales        constants, from 2^-126 to 2^90          biases    int32, or of any kind above, or float

Source: ONNX's QuantizeLinear and DequantizeLinear; ONNX Runtime's operators of the domain com.microsoft.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinyrl_tvm.errors import UnsupportedOp
from tinyrl_tvm.frontends.onnx.graph import Graph
from tinyrl_tvm.frontends.onnx.sentences import named, one_line
from tinyrl_tvm.frontends.onnx.walking import graphs

if TYPE_CHECKING:
    import numpy as np
    import onnx

QDQ_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
LARGEST_SCALE = 2.0**90  # 256 codes of it, and the sums of their products, are float32 numbers
# Operators on codes themselves: the quantiser's other format, and dynamic quantisation.
_ON_CODES = frozenset(
    {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    | {"QGemm", "QAttention", "MatMulNBits"}
)


def spell_as_onnx(model: onnx.ModelProto) -> None:
    """ONNX Runtime writes the two operators in its own domain too, with the same meaning."""
    for graph in graphs(model.graph):
        for node in graph.node:
            if node.domain == "com.microsoft" and node.op_type in QDQ_OPS:
                node.domain = ""


def is_on_codes(node: onnx.NodeProto) -> bool:
    return node.op_type in _ON_CODES or node.op_type.startswith("QLinear")


def check_quantisation(graph: Graph, needed: frozenset[str], source: str) -> None:
    """Refuse what the integers of an action, or of a weight it is made with, cannot be compiled from."""
    nodes = graph.nodes(needed)
    for node in nodes:
        if is_on_codes(node):
            raise UnsupportedOp(
                f"{one_line(node.op_type)} at node {named(node)} of '{source}' computes on codes; quantise the float model "
                "with onnxruntime.quantization.quantize_static(..., quant_format=QuantFormat.QDQ), which can be compiled"
            )
    constants = {tensor.name: tensor for tensor in graph.model.graph.initializer}
    for node in nodes:
        if node.op_type in QDQ_OPS:
            _check(node, constants, node.input[0] in graph.varying, source)


def _check(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], varying: bool, source: str) -> None:
    import numpy as np
    from onnx import TensorProto, helper

    def refused(why: str) -> UnsupportedOp:
        return UnsupportedOp(f"{node.op_type} at node {named(node)} of '{source}' {why}")

    kind = TensorProto.UINT8
    if len(node.input) > 2 and node.input[2]:
        if node.input[2] not in constants:
            raise refused("computes its zero point; quantise statically, with quantize_static")
        kind = constants[node.input[2]].data_type
    elif node.input[0] in constants:
        kind = constants[node.input[0]].data_type
    allowed = {TensorProto.INT8, TensorProto.UINT8} | (set() if varying else {TensorProto.INT32})
    if kind not in allowed:
        dtype = TensorProto.DataType.Name(kind).lower()
        what = "activation" if varying else "weight"
        raise refused(f"has {dtype} codes, have: int8, uint8; quantise with {what}_type=QuantType.QInt8")
    if node.input[1] not in constants:
        raise refused("computes its scale; quantise statically, with quantize_static")
    scales: np.ndarray = _values(constants[node.input[1]])
    wrong = scales[~((scales >= np.finfo(np.float32).tiny) & (scales < LARGEST_SCALE))]
    if wrong.size or not scales.size:
        said = f"{wrong[0]:g}" if wrong.size else "missing"
        raise refused(f"has a scale that is {said}; calibrate again, with rows that move every layer")
    attributes: dict[str, Any] = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if attributes.get("block_size"):
        raise refused("has a scale a block; quantise weights per tensor or per output channel")
    if varying and scales.size > 1:
        raise refused(f"has {scales.size} scales for an activation; quantise activations per tensor")


def _values(tensor: onnx.TensorProto) -> np.ndarray:
    import numpy as np
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor), np.float64).reshape(-1)
