# SPDX-License-Identifier: Apache-2.0
"""Turn every node, a dense layer or a merge, with all that follows it, into one call of a kernel.

    matmul(int8) -> add -> tinyrl.requantize -> tinyrl.lookup     becomes   tinyrl.dense_codes
    matmul(int16) -> add -> tinyrl.shift                          becomes   tinyrl.dense_int16
    matmul(int8) -> add -> argmax                                 becomes   tinyrl.head_decision
    matmul(int8) -> add -> astype -> multiply -> minimum ...      becomes   tinyrl.head_scale
    matmul(int8) -> add -> tinyrl.requantize -> tinyrl.interpolate -> add -> astype -> multiply ...   tinyrl.head_table
    matmul(int8) -> add -> tinyrl.requantize -> tinyrl.softmax    becomes   tinyrl.dense_codes -> tinyrl.softmax
    matmul(int16) -> ... -> tinyrl.softmax_int16                  becomes   tinyrl.dense_int16 -> tinyrl.softmax_int16
    tinyrl.add -> tinyrl.lookup                                   becomes   tinyrl.add_codes
    tinyrl.multiply                                               becomes   tinyrl.multiply_codes
    tinyrl.lookup, of codes that others read                      becomes   tinyrl.map_codes
    matmul -> add -> tanh                                         becomes   tinyrl.dense_float
    add -> nn.relu                                                becomes   tinyrl.add_float
    matmul -> add -> tanh -> multiply -> add -> clip              becomes   tinyrl.head_float
    matmul -> add -> nn.softmax                                   becomes   tinyrl.head_float -> tinyrl.softmax_float

What reads int16 codes in place of int8 ones has a name that ends in _int16, and what gives them as well.

Weights become (n_out, n_in), rows an output; an array that is absent is an empty one. What a kernel computes is in the
words of the operators it replaces; how it is laid out and scheduled is a later stage's choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import StringImm, Var
from tvm.relax import op

from .dataflow import bindings, dtype_of, known, op_name, rewrite_main, shape_of, use_counts
from .head import Decision, Probabilities, read_decision, read_head, split_bounds
from .network import Binding, Function, Layer, Merge, UnsupportedGraph, first_layer, read_network

FLOAT_FUNCTIONS = {(): "identity", ("nn.relu",): "relu", ("tanh",): "tanh", ("sigmoid",): "sigmoid"}
_MERGES, _TABLES = ("tinyrl.add", "tinyrl.multiply"), ("tinyrl.lookup", "tinyrl.interpolate")
_SOFTMAXES = ("tinyrl.softmax", "tinyrl.softmax_int16")
_WORDS = {"int8": "codes", "int16": "int16"}
NONE: np.ndarray = np.zeros(0, np.float32)
F32_MAX = float(np.finfo(np.float32).max)  # no bound, for an observation that is finite


@tvm.transform.module_pass(opt_level=0, name="LowerDense")
class LowerDense:
    """matmul -> add -> ... becomes one call of a kernel."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        line = list(bindings(module["main"]))
        if any(call_name(value) == "tinyrl.quantize" for _, value in line):
            replaced = _integer_kernels(line, use_counts(module["main"]))
        else:
            replaced = _float_kernels(module, line)
        return rewrite_main(module, lambda var, _: replaced.get(var), output=line[-1][0])


def call_name(value: relax.Expr) -> str:
    """`tinyrl.quantize` for a call of that function, the empty string for anything else."""
    if op_name(value) != "call_dps_packed":
        return ""
    return str(value.args[0].global_symbol)


def call_arguments(value: relax.Expr) -> list[relax.Expr]:
    return list(value.args[1].fields)


def _integer_kernels(line: Sequence[Binding], readers: Mapping[Var, int]) -> dict[Var, relax.Expr]:
    kernels: dict[Var, relax.Expr] = {}
    starts = [i for i, (_, value) in enumerate(line) if op_name(value) == "matmul" or _is_elementwise(value, readers)]
    for start, end in zip(starts, [*starts[1:], len(line)], strict=True):
        if op_name(line[start][1]) != "matmul":
            result = line[end - 1][0]
            kernels[result] = _elementwise_kernel(dtype_of(result), [value for _, value in line[start:end]])
            continue
        matmul, add = line[start][1], line[start + 1][1]
        tail = line[start + 2 : end]
        weight, bias = known(matmul.args[1]).T, known(add.args[1])
        # matmul wants codes and weights of one type: a wide first layer's weights have 16 bits, those under int16 have 8
        weight = weight.astype({"int32": np.int16}.get(str(weight.dtype), np.int8))
        n = len(bias)
        softmax = call_name(tail[-1][1]) in _SOFTMAXES  # of the last layer's codes
        if softmax:
            tail = tail[:-1]
        if end < len(line) or softmax:
            result = tail[-1][0]
            dtype = dtype_of(result)
            arguments = (matmul.args[0], weight, bias, *_codes(tail))
            kernels[result] = _call(f"tinyrl.dense_{_WORDS[dtype]}", n, dtype, *arguments)
        else:
            kernels[line[-1][0]] = _integer_head(matmul.args[0], weight, bias, tail)
    return kernels


def _is_elementwise(value: relax.Expr, readers: Mapping[Var, int]) -> bool:
    """Whether it is a kernel of its own: a merge, or a table that is not the only one to read its codes."""
    name = call_name(value)
    return name in _MERGES or (name in _TABLES and readers[call_arguments(value)[0]] > 1)


def _elementwise_kernel(dtype: str, values: Sequence[relax.Expr]) -> relax.Expr:
    name, arguments = call_name(values[0]), call_arguments(values[0])
    kind = f"tinyrl.{'map' if name in _TABLES else name.removeprefix('tinyrl.')}_{_WORDS[dtype]}"
    if name in _MERGES:
        arguments.append(call_arguments(values[1])[1] if len(values) > 1 else relax.const(NONE.astype(dtype)))
    return _call(kind, shape_of(arguments[0])[1], dtype, *arguments)


def _codes(tail: Sequence[Binding]) -> list[Any]:
    """multiplier, shift, zero point, low, high and table of a layer's codes."""
    name, (_, *how) = call_name(tail[0][1]), call_arguments(tail[0][1])
    multiplier = NONE.astype(np.int32) if name == "tinyrl.shift" else known(how.pop(0))
    table = known(call_arguments(tail[1][1])[1]) if len(tail) > 1 else NONE.astype(np.int8)
    return [multiplier, *how, table]


def _integer_head(x: Var, weight: np.ndarray, bias: np.ndarray, tail: Sequence[Binding]) -> relax.Expr:
    n, suffix = len(bias), _suffix(x)
    decision = read_decision(tail, n)
    if decision is not None:
        return _decision(x, weight, bias, decision, suffix)
    steps, low, high = split_bounds(tail, n)
    scale = known(steps[-1][1].args[1])
    bounds = [_bound(low), _bound(high)]
    if len(steps) == 2:  # astype, multiply
        return _call(f"tinyrl.head_scale{suffix}", n, "float32", x, weight, bias, scale, *bounds)
    requantize, interpolate, add = (value for _, value in steps[:3])
    _, multiplier, shift, *_ = call_arguments(requantize)
    table = known(call_arguments(interpolate)[1])
    offset = known(add.args[1])
    arrays = (known(multiplier), shift, table, offset, scale)
    return _call(f"tinyrl.head_table{suffix}", n, "float32", x, weight, bias, *arrays, *bounds)


def _float_kernels(module: tvm.IRModule, line: Sequence[Binding]) -> dict[Var, relax.Expr]:
    network = read_network(module)
    kernels: dict[Var, relax.Expr] = {}
    observations: relax.Expr = _joined(network.inputs)
    if np.isfinite(network.limits).any():
        features = line[first_layer(line)][1].args[0]  # a clip, which all layers read that read observations
        bounds = (_bound(np.clip(v, -F32_MAX, F32_MAX)) for v in network.limits)
        kernels[features] = _call("tinyrl.clamp", network.limits[0].size, "float32", observations, *bounds)
        observations = features
    for node in network.nodes[:-1]:
        name, result = StringImm(_float_function(node.function)), node.function.result
        of = [observations if source is None else source for source in node.sources]
        if isinstance(node, Layer):
            arrays = (np.ascontiguousarray(node.weight.T), node.bias)
            kernels[result] = _call("tinyrl.dense_float", len(node.bias), "float32", *of, *arrays, name)
        else:
            kind = node.operator if isinstance(node, Merge) else "map"
            kernels[result] = _call(f"tinyrl.{kind}_float", shape_of(of[0])[1], "float32", *of, name)
    last, n = network.last, len(network.last.bias)
    x = observations if last.source is None else last.source
    weight = np.ascontiguousarray(last.weight.T)
    head = read_head(network)
    if isinstance(head, Decision):
        kernels[line[-1][0]] = _decision(x, weight, last.bias, head)
        return kernels
    result = line[-1][0]
    if isinstance(head, Probabilities):
        kernels[result] = _call("tinyrl.softmax_float", n, "float32", head.row, np.array(head.runs, np.int32))
        result, head = head.row, head.logits
    name = _float_function(head.function)
    scale = head.scale.astype(np.float32) if np.any(head.scale != 1) else NONE
    offset = head.offset.astype(np.float32) if np.any(head.offset) else NONE
    arguments = (weight, last.bias, StringImm(name), scale, offset, _bound(head.low), _bound(head.high))
    kernels[result] = _call("tinyrl.head_float", n, "float32", x, *arguments)
    return kernels


def _joined(inputs: Sequence[Var]) -> relax.Expr:
    return inputs[0] if len(inputs) == 1 else relax.Tuple(list(inputs))


def _float_function(function: Function) -> str:
    if function.operators not in FLOAT_FUNCTIONS:
        known = ", ".join(" ".join(names) or "none" for names in FLOAT_FUNCTIONS)
        raise UnsupportedGraph(
            f"the activation {' -> '.join(function.operators)} has no float32 kernel; have: {known}. "
            f"int8 compiles any elementwise activation: try --precision int8 with --calibration"
        )
    return FLOAT_FUNCTIONS[function.operators]


def _suffix(x: Var) -> str:
    return "_int16" if dtype_of(x) == "int16" else ""


def _decision(x: relax.Expr, weight: np.ndarray, bias: np.ndarray, decision: Decision, suffix: str = "") -> relax.Expr:
    runs = np.array([0] if decision.positive else decision.runs, np.int32)  # a run of 0 asks for each output's sign
    n = len(bias) if decision.positive else len(runs)
    return _call(f"tinyrl.head_decision{suffix}", n, "int32", x, weight, bias, runs)


def _bound(values: np.ndarray | None) -> np.ndarray:
    return NONE if values is None else np.asarray(values, np.float32)


def _call(name: str, n: int, dtype: str, *args: Any) -> relax.Expr:
    exprs = [relax.const(np.ascontiguousarray(arg)) if isinstance(arg, np.ndarray) else arg for arg in args]
    return op.call_dps_packed(name, exprs, out_ty=relax.TensorType((1, n), dtype))
