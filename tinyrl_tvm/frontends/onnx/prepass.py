# SPDX-License-Identifier: Apache-2.0
"""The model before import: one graph, float32, batch 1, constants folded."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.frontends.onnx.graph import Graph
from tinyrl_tvm.frontends.onnx.sentences import REEXPORT, one_line, quoted
from tinyrl_tvm.frontends.onnx.walking import graphs, tensors

if TYPE_CHECKING:
    import onnx

MAX_FOLDED_BYTES = 16 * 1024 * 1024  # one folded constant; a stranger's graph could ask for any size


def without_functions(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """Torch's dynamo exporter may leave parts of the graph in functions; TVM reads none."""
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model) if model.functions else model
    except Exception as err:  # of several unrelated types
        raise TinyrlError(f"'{source}' is not a valid ONNX model: {one_line(str(err))}; {REEXPORT}") from err


def drop_empty_axes_flag(model: onnx.ModelProto) -> None:
    """Mend the export that Stable-Baselines3's documentation shows, as torch 2.9 and later write it.

    They write opset 18 and convert that down to the documented 17, but leave a flag of 18 on the ReduceLogSumExp of
    every discrete policy, which ONNX Runtime then refuses. 0 means what the operator did before it had the flag.
    """
    for graph in graphs(model.graph):
        for node in graph.node:
            kept = [one for one in node.attribute if one.name != "noop_with_empty_axes" or one.i != 0]
            if len(kept) < len(node.attribute):
                del node.attribute[:]
                node.attribute.extend(kept)


def make_float32(model: onnx.ModelProto, source: str) -> list[str]:
    """float64 and float16 weights and observations become float32, which is what the firmware computes in."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    kinds = onnx.TensorProto
    others = {kinds.DOUBLE: "float64", kinds.FLOAT16: "float16", kinds.BFLOAT16: "bfloat16"}
    found = set()
    largest = np.finfo(np.float32).max
    for tensor in tensors(model):
        if tensor.data_type in others:
            found.add(tensor.data_type)
            try:
                values = numpy_helper.to_array(tensor).astype(np.float64)
            except Exception as err:
                raise TinyrlError(f"weight {quoted([tensor.name])} of '{source}' is damaged; export it again") from err
            values = np.where(
                np.isinf(values), values, np.clip(values, -largest, largest)
            )  # a -1e300 mask stays finite
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    for graph in graphs(model.graph):
        graph.ClearField("value_info")  # inferred again
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in others:
                found.add(value.type.tensor_type.elem_type)
                value.type.tensor_type.elem_type = kinds.FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in ("to", "dtype") and attribute.i in others:
                    attribute.i = kinds.FLOAT
    return [f"{' and '.join(sorted(others[kind] for kind in found))} computed as float32"] if found else []


def make_batch_one(model: onnx.ModelProto) -> Iterator[str]:
    """A robot asks about one observation at a time: a dynamic first axis becomes 1."""
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        if axes and not axes[0].HasField("dim_value"):
            yield f"batch axis {quoted([axes[0].dim_param or '?'])} of input {quoted([value.name])} set to 1"
            axes[0].dim_value = 1
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")  # it may name the axis just fixed; inferred again


def folded(model: onnx.ModelProto) -> tuple[Graph, str]:
    """The model with its constants folded by ONNX Runtime; or the model as it is, and why ONNX Runtime refuses it.

    Only the basic level: it keeps to ONNX operators, the higher ones fuse into operators TVM does not know.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.add_session_config_entry(
            "optimization.constant_folding_max_output_size_in_bytes", str(MAX_FOLDED_BYTES)
        )
        options.intra_op_num_threads = 1  # nothing is run; a pool of threads would cost more than the folding
        options.log_severity_level = 4  # a refusal comes back as an exception; more would only litter stderr
        refusal = ""
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # or it prints each refusal to stdout, and tries again
            )
            model = onnx.load_model(options.optimized_model_filepath, load_external_data=False)
        except Exception as err:  # onnxruntime's exceptions share no base class
            refusal = one_line(
                re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (.*failed:)?", "", str(err), flags=re.DOTALL)
            )
    with contextlib.suppress(Exception):  # a shape that cannot be inferred stays unknown
        model = onnx.shape_inference.infer_shapes(
            model, data_prop=True
        )  # ONNX Runtime writes down only what it changed
    return Graph(model), refusal
