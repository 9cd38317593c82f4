# SPDX-License-Identifier: Apache-2.0
"""Write the integer `main` of a policy, layer after layer, at scales that are given.

    codes -> matmul(int8) -> add(int32) -> tinyrl.requantize        a hidden layer's codes
    codes -> matmul(int8) -> add(int32) -> astype -> multiply       the last layer's answer, or its arg max
    codes -> matmul(int8) -> add(int32) -> tinyrl.requantize -> tinyrl.softmax        or its probabilities; of int16 codes
                                           tinyrl.requantize_int16 -> tinyrl.softmax_int16

    x = scale * (code - zero_point)      weights symmetric, one scale an output      bias int32 at scale_x * scale_w

Whose scales they are, QuantizeInt8's or the file's own, is for those who call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Var
from tvm.relax import op

from .dataflow import shape_of
from .fixedpoint import (
    SOFTMAX_MOST,
    common_shift_multipliers,
    softmax_int16_scaling,
    softmax_int16_tables,
    softmax_scaling,
)
from .head import Continuous, Decision, Probabilities, read_head
from .network import Function, Network, UnsupportedGraph

# The narrowing instruction shifts by an immediate of at most 16.
MAX_SHIFT = 16
INT32_MAX = 2**31 - 1
# The factors of a sum of int8 codes are at most this together: CMSIS-NN shifts a code by 20 bits to the left.
LARGEST_FACTORS = 2**19


@dataclass(frozen=True)
class Codes:
    """A tensor of codes: x = scale * (code - zero_point), scale one number, or one an element."""

    var: Var
    scale: np.ndarray
    zero_point: np.ndarray


class Writer:
    """Writes the integer main of `network`; `answer` says what of. `dtype` is that of the codes a layer reads."""

    dtype = "int8"

    def __init__(self, network: Network) -> None:
        self.network, self.action = network, read_head(network)
        if isinstance(self.action, Probabilities):  # here, for a builder that is left open complains on stderr
            _check_probabilities(self.action, self.dtype)
        self.builder = relax.BlockBuilder()

    def write(self) -> relax.Function:
        params = [relax.Var(param.name, param.ty) for param in self.network.inputs]
        with self.builder.function("main", params):
            with self.builder.dataflow():
                output = self.builder.emit_output(self.answer(self.observations(params)))
            self.builder.emit_func_output(output)
        return self.builder.get()["main"]

    def answer(self, observations: Var) -> relax.Expr:
        raise NotImplementedError

    def observations(self, params: list[Var]) -> Var:
        """All inputs joined, (1, n)."""
        flat = [
            self.emit(op.reshape(p, (1, int(np.prod(shape_of(p)))))) if len(shape_of(p)) != 2 else p for p in params
        ]
        return flat[0] if len(flat) == 1 else self.emit(op.concat(flat, axis=1))

    def read_off(self, accumulator: Var, scale: np.ndarray, reach: float) -> relax.Expr:
        """The action made of accumulators at `scale` (n_out,); no function is read further out than `reach`."""
        head = self.action
        assert not isinstance(head, Probabilities)  # made of codes
        if isinstance(head, Decision):
            return self.decide(accumulator, head)
        if not head.function.body and not np.any(head.offset):
            value = self.emit(op.astype(accumulator, "float32"))
            return self.clipped(op.multiply(value, relax.const((scale * head.scale).astype(np.float32))), head)
        limit = self.limit(head.function, reach)
        code_scale = max(limit / 32767, float(scale.max()))
        multiplier, shift = multipliers(scale / code_scale)
        value = self.call(
            "tinyrl.requantize", accumulator, multiplier, shift, 0, -32768, 32767, dtype="int16", n=len(scale)
        )
        value = self.emit(op.dequantize(value, scalar(code_scale), relax.const(np.int16(0)), out_dtype="float32"))
        value = self.function(value, head.function)
        value = self.emit(op.multiply(value, relax.const(head.scale.astype(np.float32))))
        return self.clipped(op.add(value, relax.const(head.offset.astype(np.float32))), head)

    def limit(self, function: Function, reach: float) -> float:
        """Where the codes that the action's function is read at end."""
        return saturation(function, reach)

    def probabilities(self, codes: Var, runs: tuple[int, ...], scales: Sequence[float]) -> relax.Expr:
        """The softmax of each run of codes, of which there is a scale a run."""
        int16 = self.dtype == "int16"
        scaling = np.array([(softmax_int16_scaling if int16 else softmax_scaling)(scale) for scale in scales], np.int32)
        arrays = [np.array(runs, np.int32), *(np.ascontiguousarray(column) for column in scaling.T)]
        name, tables = ("tinyrl.softmax_int16", softmax_int16_tables()) if int16 else ("tinyrl.softmax", ())
        return self.call(name, codes, *arrays, *tables, dtype="float32", n=sum(runs))

    def decide(self, accumulator: Var, decision: Decision) -> relax.Expr:
        if decision.positive:
            return op.greater(accumulator, relax.const(np.int32(0)))
        if len(decision.runs) == 1:
            return op.argmax(accumulator, axis=1)
        parts, start = [], 0
        for run in decision.runs:
            part = self.emit(op.strided_slice(accumulator, axes=[1], begin=[start], end=[start + run]))
            parts.append(self.emit(op.argmax(part, axis=1, keepdims=True)))
            start += run
        return op.concat(parts, axis=1)

    def clipped(self, value: relax.Expr, head: Continuous) -> relax.Expr:
        if head.high is not None:
            value = op.minimum(self.emit(value), relax.const(head.high.astype(np.float32)))
        if head.low is not None:
            value = op.maximum(self.emit(value), relax.const(head.low.astype(np.float32)))
        return value

    def accumulate(
        self, codes: Codes, weight: np.ndarray, bias: np.ndarray, scale: Any, dtype: str | None = None
    ) -> Var:
        """weight (n_in, n_out) a code and bias, at `scale` an output -> int32 accumulators."""
        integers = np.rint(weight / scale)
        # what the zero point adds is taken off in the rounded weights it is added in; but where zero is no code, every
        # code is as far from it, and the error of the rounding would be as many times larger
        far = far_zero(codes.zero_point, len(weight))
        offset = (np.broadcast_to(codes.zero_point, len(far)) - far) @ integers + np.rint(far @ weight / scale)
        product = self.emit(op.matmul(codes.var, relax.const(integers.astype(dtype or self.dtype)), out_dtype="int32"))
        return self.emit(op.add(product, relax.const((np.rint(bias / scale) - offset).astype(np.int32))))

    def function(self, value: Var, function: Function) -> Var:
        """The function's own operators, on another tensor."""
        renamed = {function.source: value}
        for var, expr in function.body:
            args = [renamed.get(arg, arg) if isinstance(arg, Var) else arg for arg in expr.args]
            renamed[var] = self.emit(tvm.ir.Call(expr.op, args, expr.attrs, expr.ty_args))
        return renamed[function.result]

    def call(self, name: str, *args: Any, dtype: str, n: int) -> Var:
        """Call a function of `fixedpoint.py`'s by name: arrays and numbers are constants, the answer is (1, n)."""
        exprs = [_expr(arg) for arg in args]
        return self.emit(op.call_dps_packed(name, exprs, out_ty=relax.TensorType((1, n), dtype)))

    def emit(self, expr: relax.Expr) -> Var:
        return self.builder.emit(expr)


def _check_probabilities(action: Probabilities, dtype: str) -> None:
    logits = action.logits
    if logits.function.body or np.any(logits.scale != 1) or np.any(logits.offset):
        raise UnsupportedGraph(
            f"a softmax reads what is computed of the last dense layer's output, and {dtype} has one of its own codes alone; "
            "compile the float policy with --precision float32"
        )
    if max(action.runs) > SOFTMAX_MOST:
        raise UnsupportedGraph(
            f"a softmax of {max(action.runs)} numbers; {dtype} computes {SOFTMAX_MOST} at most; "
            "compile the float policy with --precision float32"
        )


def _expr(arg: Any) -> relax.Expr:
    if isinstance(arg, np.ndarray):
        return relax.const(arg)
    return relax.prim_value(arg) if isinstance(arg, int) else arg


def scalar(value: float) -> relax.Expr:
    return relax.const(np.float32(value))


def far_zero(zero_point: np.ndarray, n: int) -> np.ndarray:
    """Zero points (n,) that are no code of their own feature; 0 for the others."""
    points: np.ndarray = np.broadcast_to(zero_point, n)
    return np.where(np.abs(points) > 128, points, 0.0)


def multipliers(real: np.ndarray) -> tuple[np.ndarray, int]:
    """(multiplier (n,) int32, right shift) with real = multiplier * 2^(-31 - shift); real at most 1."""
    multiplier, left = common_shift_multipliers(real)
    shift = -left
    if shift > MAX_SHIFT:
        return np.rint(np.ldexp(real, 31 + MAX_SHIFT)).astype(np.int32), MAX_SHIFT
    if shift < 0:  # exactly 1, the floor of an output's scale
        return np.minimum(np.rint(np.ldexp(real, 31)), INT32_MAX).astype(np.int32), 0
    return multiplier, shift


def merge_factors(x: float, y: float, largest: int = LARGEST_FACTORS) -> tuple[tuple[int, int], int]:
    """(factors, right shift) with x = factor * 2^-shift and likewise y, factors even and their sum at most `largest`.

    Even, because CMSIS-NN halves a sum before it shifts it, which must be no rounding of its own.
    """
    shift = min(MAX_SHIFT, int(np.floor(np.log2((largest - 4) / (x + y)))))
    first, second = (2 * round(ratio * 2.0 ** (shift - 1)) for ratio in (x, y))
    return (first, second), shift


def saturation(function: Function, largest: float, steps: int = 255) -> float:
    """The least limit beyond which the function's codes, of so many steps, do not change, at most `largest`.

    tanh's last code ends at 3.1: finer codes for the steep middle, where a range up to 8 would spend half on ones.
    """
    if not function.body or largest == 0:
        return largest
    points = largest * np.linspace(0, 1, 2049)
    sides = [function(points), function(-points)]
    half_code = (max(side.max() for side in sides) - min(side.min() for side in sides)) / steps / 2
    settled = np.all([np.abs(side - side[-1]) <= half_code for side in sides], axis=0)
    changing = np.flatnonzero(~settled)
    return float(points[min(changing[-1] + 1, 2048)]) if len(changing) else largest
