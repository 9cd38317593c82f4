# SPDX-License-Identifier: Apache-2.0
"""What an action may be computed with, and what is refused by name."""

from __future__ import annotations

from tinyrl_tvm.errors import TinyrlError, UnsupportedOp
from tinyrl_tvm.frontends.onnx.graph import Graph
from tinyrl_tvm.frontends.onnx.quantised import check_quantisation
from tinyrl_tvm.frontends.onnx.sentences import named, one_line, quoted

# What an action may be computed with. Convolutions, recurrent layers and attention are missing.
SUPPORTED_OPS = frozenset(
    {"Gemm", "MatMul", "BatchNormalization", "LayerNormalization"}
    | {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sign", "Pow", "Sqrt", "Exp", "Log", "Reciprocal", "Erf"}
    | {"Sum", "Mean"}
    | {"Clip", "Min", "Max", "Floor", "Ceil", "Round"}
    | {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Mish", "HardSwish", "Softplus"}
    | {"Tanh", "Sigmoid", "HardSigmoid", "Softsign", "Softmax", "LogSoftmax"}
    | {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceLogSumExp", "ArgMax", "ArgMin"}
    | {"Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "IsNaN"}
    | {"Cast", "Constant", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand"}
    | {"Concat", "Split", "Slice", "Gather", "OneHot"}
    | {"QuantizeLinear", "DequantizeLinear"}
)
# What a policy of another kind is made of, and what to say of it.
NOT_YET = {
    **dict.fromkeys(("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool"), "convolutional networks"),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "Loop", "Scan"), "recurrent networks"),
    **dict.fromkeys(("Attention", "MultiHeadAttention"), "attention layers"),
}
SAMPLING_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def check_operators(graph: Graph, needed: frozenset[str], source: str) -> None:
    for node in graph.nodes(needed):
        if node.op_type in SAMPLING_OPS:
            raise UnsupportedOp(
                f"'{source}' samples its action, with {node.op_type} at node {named(node)}, so the same observation "
                "gives different answers; export it again with deterministic=True"
            )
    check_quantisation(graph, needed, source)
    for node in graph.nodes(needed & graph.varying):  # whatever else is there is a constant by the time TVM compiles
        if node.domain not in ("", "ai.onnx") or node.op_type not in SUPPORTED_OPS:
            operator = ".".join(filter(None, (node.domain, node.op_type)))
            why = (
                f"policies are feed-forward networks of dense layers; {NOT_YET[operator]} are refused"
                if operator in NOT_YET
                else f"supported: {', '.join(sorted(SUPPORTED_OPS))}"
            )
            raise UnsupportedOp(f"{one_line(operator)} at node {named(node)} of '{source}' cannot be compiled; {why}")


def check_weights(graph: Graph, action: str, source: str) -> None:
    import numpy as np
    from onnx import numpy_helper

    needed = graph.ancestors(action)
    for tensor in graph.model.graph.initializer:
        if tensor.name in needed and tensor.data_type == tensor.FLOAT and np.isnan(numpy_helper.to_array(tensor)).any():
            raise TinyrlError(
                f"weight {quoted([tensor.name])} of '{source}' contains NaN, so the training diverged; "
                "export an earlier checkpoint"
            )
