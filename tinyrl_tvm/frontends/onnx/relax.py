# SPDX-License-Identifier: Apache-2.0
"""The graph as a Relax module, and what its inputs and its action are."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.frontends.onnx.graph import Graph
from tinyrl_tvm.frontends.onnx.sentences import REEXPORT, named, one_line, quoted
from tinyrl_tvm.policy import DTYPES, TensorSpec, c_names

if TYPE_CHECKING:
    import onnx
    from tvm import IRModule


def imported(graph: Graph, action: str, source: str) -> tuple[IRModule, list[str], list[str]]:
    """The Relax module, the outputs it has, and a note for each output that had to be left out."""
    from tvm.relax.frontend.onnx import onnx_frontend

    known = onnx_frontend._get_convert_map()
    inputs = graph.inputs_of(action)
    kept, notes = [], []
    for name in graph.outputs:
        unknown = [node for node in graph.nodes(graph.ancestors(name)) if node.op_type not in known]
        foreign = [other for other in graph.inputs_of(name) if other not in inputs]
        if name == action or not (unknown or foreign):
            kept.append(name)
        elif unknown:
            notes.append(
                f"left out {quoted([name])}: TVM cannot import {unknown[0].op_type} at node {named(unknown[0])}"
            )
        else:
            notes.append(f"left out {quoted([name])}: it needs {quoted(foreign)}, which the action does not")
    try:
        return _relax(graph.only(kept), inputs), kept, notes
    except Exception as err:  # whatever an operator's converter stumbles on
        others = [name for name in kept if name != action]
        if others:
            notes.append(f"left out {quoted(others)}: TVM cannot import them: {one_line(str(err))}")
    try:
        return _relax(graph.only([action]), inputs), [action], notes
    except Exception as err:
        raise TinyrlError(f"TVM cannot import '{source}': {one_line(str(err))}; {REEXPORT}") from err


def _relax(model: onnx.ModelProto, inputs: list[str]) -> IRModule:
    from tvm.relax.frontend.onnx import from_onnx

    _rename_inputs(model.graph, inputs)
    with contextlib.redirect_stdout(io.StringIO()):  # TVM prints what it fails on, and stdout may be carrying --json
        return from_onnx(model, keep_params_in_input=False)


def _rename_inputs(graph: onnx.GraphProto, inputs: list[str]) -> None:
    """Relax's parameters are identifiers; a model's names may be anything."""
    used = {name for node in graph.node for name in (*node.input, *node.output)} | {
        one.name for one in graph.initializer
    }
    renamed = {}
    for name, c_name in zip(inputs, c_names(inputs), strict=True):
        while c_name in used - {name}:  # an inner tensor has it
            c_name += "_in"  # noqa: PLW2901
        used.add(c_name)
        renamed[name] = c_name
    for value in (*graph.input, *graph.output):  # an output may be an input handed through
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def input_spec(value: onnx.ValueInfoProto, source: str) -> TensorSpec:
    import onnx

    said = f"input {quoted([value.name])} of '{source}'"
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not tensor.elem_type:
        raise TinyrlError(f"{said} has no shape; export it again with a dummy observation of shape (1, n_obs)")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    if dtype not in DTYPES:
        raise TinyrlError(f"{said} is {dtype}, have: {', '.join(DTYPES)}; cast the observation before the export")
    sizes = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in tensor.shape.dim]
    said += f" has shape ({', '.join(map(str, sizes))})"
    if not sizes or (len(sizes) == 1 and sizes != [1]):
        wanted = ", ".join(map(str, (1, *sizes))) if sizes else "1"
        raise TinyrlError(f"{said}, without a batch axis; export it again with a dummy observation of shape ({wanted})")
    if sizes[0] != 1:
        raise TinyrlError(f"{said}, a fixed batch of {sizes[0]}; export it again with a batch of 1 or a dynamic one")
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise TinyrlError(f"{said}; every axis but the first needs a fixed size: export it again without dynamic axes")
    return TensorSpec(value.name, tuple(int(size) for size in sizes[1:]), dtype)


def action_spec(module: IRModule, index: int, name: str, source: str) -> TensorSpec:
    returned = module["main"].ret_ty
    tensor = returned.fields[index] if hasattr(returned, "fields") else returned
    dtype = str(tensor.dtype)
    if dtype not in DTYPES:
        raise TinyrlError(f"output {quoted([name])} of '{source}' is {dtype}, have: {', '.join(DTYPES)}; {REEXPORT}")
    # a size computed from the observation has no value
    sizes = [getattr(size, "value", 0) for size in tensor.shape.values] if tensor.shape is not None else [0]
    if 0 in sizes:
        raise TinyrlError(f"output {quoted([name])} of '{source}' has no fixed shape; {REEXPORT}")
    return TensorSpec(name, tuple(sizes[1:] if sizes[:1] == [1] else sizes), dtype)
