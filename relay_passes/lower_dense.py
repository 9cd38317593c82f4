# SPDX-License-Identifier: Apache-2.0
"""Turn every dense layer, with all that follows it, into one call of a kernel.

    matmul(int8) -> add -> tinyrl.requantize -> tinyrl.lookup     becomes   tinyrl.dense_codes
    matmul(int16) -> add -> tinyrl.shift                          becomes   tinyrl.dense_int16
    matmul(int8) -> add -> argmax                                 becomes   tinyrl.head_decision
    matmul(int8) -> add -> astype -> multiply -> minimum ...      becomes   tinyrl.head_scale
    matmul(int8) -> add -> tinyrl.requantize -> tinyrl.interpolate -> add -> astype -> multiply ...   tinyrl.head_table
    matmul(int8) -> add -> tinyrl.requantize -> tinyrl.softmax    becomes   tinyrl.dense_codes -> tinyrl.softmax
    matmul -> add -> tanh                                         becomes   tinyrl.dense_float
    matmul -> add -> tanh -> multiply -> add -> clip              becomes   tinyrl.head_float
    matmul -> add -> nn.softmax                                   becomes   tinyrl.head_float -> tinyrl.softmax_float

What reads int16 codes in place of int8 ones has a name that ends in _int16, and what gives them as well.

Weights become (n_out, n_in), rows an output; an array that is absent is an empty one. What a kernel computes is in the
words of the operators it replaces; how it is laid out and scheduled is a later stage's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import StringImm, Var
from tvm.relax import op

from .chain import Binding, Function, UnsupportedGraph, read_chain
from .dataflow import bindings, dtype_of, known, op_name, rewrite_main
from .head import Decision, Probabilities, read_decision, read_head, split_bounds

FLOAT_FUNCTIONS = {(): "identity", ("nn.relu",): "relu", ("tanh",): "tanh", ("sigmoid",): "sigmoid"}
NONE: np.ndarray = np.zeros(0, np.float32)
F32_MAX = float(np.finfo(np.float32).max)  # no bound, for an observation that is finite


@tvm.transform.module_pass(opt_level=0, name="LowerDense")
class LowerDense:
    """matmul -> add -> ... becomes one call of a kernel."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        line = list(bindings(module["main"]))
        starts = [i for i, (_, value) in enumerate(line) if op_name(value) == "matmul"]
        if any(call_name(value) == "tinyrl.quantize" for _, value in line):
            replaced = _integer_kernels(line, starts)
        else:
            replaced = _float_kernels(module, line, starts)
        return rewrite_main(module, lambda var, _: replaced.get(var), output=line[-1][0])


def call_name(value: relax.Expr) -> str:
    """`tinyrl.quantize` for a call of that function, the empty string for anything else."""
    if op_name(value) != "call_dps_packed":
        return ""
    return str(value.args[0].global_symbol)


def call_arguments(value: relax.Expr) -> list[relax.Expr]:
    return list(value.args[1].fields)


def _integer_kernels(line: Sequence[Binding], starts: list[int]) -> dict[Var, relax.Expr]:
    kernels: dict[Var, relax.Expr] = {}
    for start, end in zip(starts, [*starts[1:], len(line)], strict=True):
        matmul, add = line[start][1], line[start + 1][1]
        tail = line[start + 2 : end]
        weight, bias = known(matmul.args[1]).T, known(add.args[1])
        # matmul wants codes and weights of one type: a wide first layer's weights have 16 bits, those under int16 have 8
        weight = weight.astype({"int32": np.int16}.get(str(weight.dtype), np.int8))
        n = len(bias)
        softmax = call_name(tail[-1][1]) == "tinyrl.softmax"  # of the last layer's codes
        if softmax:
            tail = tail[:-1]
        if end < len(line) or softmax:
            result = tail[-1][0]
            dtype = dtype_of(result)
            name = "tinyrl.dense_int16" if dtype == "int16" else f"tinyrl.dense_codes{_suffix(matmul.args[0])}"
            kernels[result] = _call(name, n, dtype, matmul.args[0], weight, bias, *_codes(tail))
        else:
            kernels[line[-1][0]] = _integer_head(matmul.args[0], weight, bias, tail)
    return kernels


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


def _float_kernels(module: tvm.IRModule, line: Sequence[Binding], starts: list[int]) -> dict[Var, relax.Expr]:
    chain = read_chain(module)
    kernels: dict[Var, relax.Expr] = {}
    x: relax.Expr = _joined(chain.inputs)
    if np.isfinite(chain.limits).any():
        x = _call(
            "tinyrl.clamp",
            chain.limits[0].size,
            "float32",
            x,
            *(_bound(np.clip(v, -F32_MAX, F32_MAX)) for v in chain.limits),
        )
    for layer in chain.layers[:-1]:
        name = _float_function(layer.function)
        arrays = (np.ascontiguousarray(layer.weight.T), layer.bias)
        result = layer.function.result
        kernels[result] = _call("tinyrl.dense_float", len(layer.bias), "float32", x, *arrays, StringImm(name))
        x = result
    last, n = chain.layers[-1], len(chain.layers[-1].bias)
    weight = np.ascontiguousarray(last.weight.T)
    head = read_head(chain)
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
