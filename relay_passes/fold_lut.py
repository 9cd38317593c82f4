# SPDX-License-Identifier: Apache-2.0
"""Replace a function of codes by a table.

    codes int8  -> dequantize -> tanh -> quantize                    becomes   codes -> tinyrl.lookup(table of 256)
    codes int16 -> dequantize -> tanh -> quantize                    becomes   codes -> tinyrl.interpolate(table of 257)
    codes int16 -> dequantize -> tanh -> multiply scale -> add low   becomes   codes -> tinyrl.interpolate(table of 257)
                                                                                     -> add -> astype -> multiply

The function may be any elementwise one, in however many operators it is written. A squashed action is interpolated
between 257 entries of 16 bits, because eight bits would be seen in it, and so is what makes 16-bit codes; an action's
product and sum are folded so that the last step is one product of floats.

Why: 256 answers are fewer than a polynomial has instructions, and exact; newlib's tanhf alone costs 12,000.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Var
from tvm.relax import op

from .dataflow import bindings, dtype_of, known, op_name, rewrite_main, shape_of
from .head import split_bounds
from .network import Binding, UnsupportedGraph, elementwise

TABLE_MAX = 32767
OFFSET_MAX = 2**30


@tvm.transform.module_pass(opt_level=0, name="FoldLut")
class FoldLut:
    """dequantize -> function -> quantize becomes tinyrl.lookup."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        line = list(bindings(module["main"]))
        replaced: dict[Var, relax.Expr] = {}
        for start, (_, value) in enumerate(line):
            if op_name(value) != "dequantize":
                continue
            end = next((i for i in range(start, len(line)) if op_name(line[i][1]) == "quantize"), None)
            if end is not None:
                table = _lookup if dtype_of(value.args[0]) == "int8" else _line_between
                replaced[line[end][0]] = table(line[start : end + 1])
            else:  # the function may itself end in a sum; the head's product and sum are the last before its bounds
                run, _, _ = split_bounds(line[start:], shape_of(value)[1])
                replaced |= _interpolated(run)
        return rewrite_main(module, lambda var, _: replaced.get(var))


def _lookup(run: list[Binding]) -> relax.Expr:
    (source, dequantize), *body, (_, quantize) = run
    scale, zero = _scale_of(quantize)
    values = _of_codes(dequantize, source, body)(np.arange(-128.0, 128.0))
    table = np.clip(np.rint(values / scale) + zero, -128, 127).astype(np.int8)
    codes = dequantize.args[0]
    ty = relax.TensorType(shape_of(codes), "int8")
    return op.call_dps_packed("tinyrl.lookup", [codes, relax.const(table)], out_ty=ty)


def _line_between(run: list[Binding]) -> relax.Expr:
    (source, dequantize), *body, (_, quantize) = run
    step, _ = _scale_of(quantize)
    values = _of_codes(dequantize, source, body)(256.0 * np.arange(-128.0, 129.0))
    table = np.clip(np.rint(values / step), -TABLE_MAX, TABLE_MAX).astype(np.int16)
    codes = dequantize.args[0]
    ty = relax.TensorType(shape_of(codes), "int16")
    return op.call_dps_packed("tinyrl.interpolate", [codes, relax.const(table)], out_ty=ty)


def _interpolated(run: list[Binding]) -> dict[Var, relax.Expr]:
    """Three bindings take the place of the run's last three: table, sum of integers, product."""
    (source, dequantize), *body, (product, multiply), (total, add) = run
    values = _of_codes(dequantize, source, body)(256.0 * np.arange(-128.0, 129.0))
    entry = max(float(np.abs(values).max()) / TABLE_MAX, 1e-12)
    table = np.rint(values / entry).astype(np.int16)
    addend: np.ndarray = known(add.args[1]).astype(np.float64)
    scale = entry * known(multiply.args[1]).astype(np.float64)
    # the sum is one of int32: an action that moves little beside its offset, or not at all, moves in coarser steps
    coarsest = np.abs(addend) / OFFSET_MAX
    scale = np.where(np.abs(scale) < coarsest, np.copysign(coarsest, scale), scale)
    offset = np.rint(addend / np.where(scale == 0, 1.0, scale)).astype(np.int32)
    codes = dequantize.args[0]
    ty = relax.TensorType(shape_of(codes), "int32")
    return {
        source: op.call_dps_packed("tinyrl.interpolate", [codes, relax.const(table)], out_ty=ty),
        product: op.add(source, relax.const(offset)),
        total: op.multiply(op.astype(product, "float32"), relax.const(scale.astype(np.float32))),
    }


def _of_codes(dequantize: relax.Expr, source: Var, body: list[Binding]) -> Callable[[np.ndarray], np.ndarray]:
    scale, zero = _scale_of(dequantize)
    function = elementwise(source, body)

    def of_codes(codes: np.ndarray) -> np.ndarray:
        values = function((codes - zero) * scale)
        if not np.isfinite(values).all():
            raise UnsupportedGraph("an activation is not finite over the codes it is read at; it has no table")
        return values

    return of_codes


def _scale_of(value: relax.Expr) -> tuple[float, float]:
    scale, zero = (known(arg) for arg in value.args[1:3])
    return float(scale), float(zero)
