# SPDX-License-Identifier: Apache-2.0
"""Read an exported policy: an .onnx file becomes a `Policy`.

    bytes -> ModelProto     file.py       bounded, inside its folder
    -> float32, batch 1     prepass.py    functions inlined, constants folded
    -> the action           action.py     found by structure, for exporters name tensors as they like
    -> checked              operators.py  what cannot be compiled is refused by name
                            quantised.py  and so are codes that are not int8
    -> Relax                relax.py

Every other output is imported too, so that PruneCritic can remove it and say what that saved.
onnx takes a quarter of a second to load, TVM a whole one; `tinyrl-tvm --help` needs neither, so functions import them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tinyrl_tvm.errors import TinyrlError, UnsupportedOp, unknown_name
from tinyrl_tvm.frontends.onnx.action import action_of
from tinyrl_tvm.frontends.onnx.file import parse, read_bounded, read_external_data
from tinyrl_tvm.frontends.onnx.operators import check_operators, check_weights
from tinyrl_tvm.frontends.onnx.prepass import (
    drop_empty_axes_flag,
    folded,
    make_batch_one,
    make_float32,
    without_functions,
)
from tinyrl_tvm.frontends.onnx.quantised import spell_as_onnx
from tinyrl_tvm.frontends.onnx.relax import action_spec, imported, input_spec
from tinyrl_tvm.frontends.onnx.sentences import REEXPORT, one_line, quoted
from tinyrl_tvm.policy import Policy


def load(path: Path, output: str | None = None) -> Policy:
    """Read the policy in `path`; `output` names the action where the graph does not show which output it is."""
    data = read_bounded(path)
    model = parse(data, path.name)
    notes = list(read_external_data(model, path))
    model = without_functions(model, path.name)
    drop_empty_axes_flag(model)
    spell_as_onnx(model)
    notes += make_float32(model, path.name)
    notes += make_batch_one(model)

    graph, refusal = folded(model)
    unreadable = TinyrlError(f"ONNX Runtime cannot read '{path.name}': {refusal}; {REEXPORT}")
    try:
        action = output or action_of(graph, path.name)
    except TinyrlError as err:
        if refusal and not isinstance(err, UnsupportedOp):
            raise unreadable from None  # shapes are unknown then, and so is what they would have settled
        raise
    if action not in graph.outputs:
        raise unknown_name("output", action, map(one_line, graph.outputs))
    if refusal and len(graph.outputs) > 1:  # perhaps by an operator that only the critic has
        actor, refusal_of_actor = folded(graph.only([action]))
        if not refusal_of_actor:
            notes.append(f"left out {quoted(name for name in graph.outputs if name != action)}: {refusal}")
            graph, refusal = actor, ""
    inputs = tuple(input_spec(graph.inputs[name], path.name) for name in graph.inputs_of(action))
    if not inputs:
        raise TinyrlError(f"output {quoted([action])} of '{path.name}' depends on no input; try another --output")
    check_operators(graph, graph.ancestors(action), path.name)
    if refusal:
        raise unreadable
    check_weights(graph, action, path.name)

    module, outputs, left_out = imported(graph, action, path.name)
    index = outputs.index(action)
    return Policy(
        module=module,
        inputs=inputs,
        action=action_spec(module, index, action, path.name),
        action_index=index,
        source=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        notes=(*notes, *left_out),
    )
