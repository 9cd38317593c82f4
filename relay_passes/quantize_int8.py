# SPDX-License-Identifier: Apache-2.0
"""Make a float policy an int8 one, after training, with ranges seen on calibration rows.

    obs -> matmul -> add -> relu -> matmul -> add -> tanh -> matmul -> add                                  becomes
    obs -> tinyrl.quantize -> matmul(int) -> add(int32) -> tinyrl.requantize                        (ReLU is its clamp)
        -> matmul(int8) -> add(int32) -> tinyrl.requantize -> dequantize -> tanh -> quantize      (FoldLut's to finish)
        -> matmul(int8) -> add(int32) -> astype -> multiply

    x = scale * (code - zero_point)      weights symmetric, one scale an output      bias int32 at scale_x * scale_w

What a policy compiler may do and a vision compiler does not:
* Observations arrive as floats, so every feature has a scale of its own; it folds into the first layer's columns.
* A first layer of few features takes 14-bit codes and 16-bit weights, whose scale is a power of two away from the output's:
  a shift requantises, and the layer is as good as a float one.
* An arg max reads the int32 accumulators; a continuous action is the accumulators times a scale.
* What a layer's codes clip, and how far its units' scales differ, is what hurts the last layer's outputs least: the
  largest value ever seen is rare on a rollout, and every code spent on it is a finer step lost for the rest.

Source: the TFLite 8-bit quantisation specification, for scales, zero points and the int32 bias; `fixedpoint.py` is the law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Var
from tvm.relax import op

from .chain import Chain, Function, Layer, UnsupportedGraph, read_chain
from .dataflow import shape_of
from .evaluate import evaluate
from .fixedpoint import ZERO_POINT_MAX, common_shift_multipliers
from .head import Continuous, Decision, read_head

# Above this many observations 16-lane dot products of int8 beat 4-lane ones of int32.
WIDE_OBSERVATIONS = 8
# 13 bits for the calibrated range, and a code reaches four times as far.
WIDE_CODE, WIDE_LIMIT = 4095, 16383
# The narrowing instruction shifts by an immediate of at most 16.
MAX_SHIFT = 16
INT32_MAX = 2**31 - 1
# A shift alone requantises a layer where the outputs' error grows to no more than this many times.
SHIFT_ERROR = 1.5
# A unit's codes reach this many standard deviations over its mean, even where calibration saw less.
LIKELY_DEVIATIONS = 5.0
# Codes per unit of an observation are a float32.
TINY = 1e-30
# Rows that choose a layer's clipping, of those that gave the ranges.
SAMPLES = 512


@tvm.transform.module_pass(opt_level=0, name="QuantizeInt8")
class QuantizeInt8:
    """matmul -> add -> relu becomes matmul(int8) -> add(int32) -> tinyrl.requantize.

    `rows` are calibration observations, one array (n_rows, n) a main input.
    """

    def __init__(self, *rows: np.ndarray) -> None:
        self.rows = rows

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        chain = read_chain(module)
        seen = _observe(module, chain, self.rows)
        module = module.clone()
        module[module.get_global_var("main")] = _Writer(chain, seen).write()
        return relax.transform.DeadCodeElimination(["main"])(module)


@dataclass(frozen=True)
class _Seen:
    """What calibration saw of a tensor: each element's least and greatest value (n,), and some of its rows."""

    low: np.ndarray
    high: np.ndarray
    rows: np.ndarray

    @property
    def reach(self) -> np.ndarray:
        return np.maximum(np.abs(self.low), np.abs(self.high))


@dataclass(frozen=True)
class _Codes:
    """A tensor of codes: x = scale * (code - zero_point), scale one number, or one an element."""

    var: Var
    scale: np.ndarray
    zero_point: np.ndarray


def _observe(module: tvm.IRModule, chain: Chain, rows: Sequence[np.ndarray]) -> dict[Var | None, _Seen]:
    """What every layer puts out before and after its function; of the joined observations under None."""
    joined = np.concatenate([np.asarray(part, np.float64).reshape(len(part), -1) for part in rows], axis=1)
    joined = np.clip(joined, *chain.limits)
    wanted = {var for layer in chain.layers for var in (layer.function.source, layer.function.result)}
    seen: dict[Var | None, _Seen] = {}

    def watch(var: Var | None, values: np.ndarray) -> None:
        if var is None or var in wanted:
            values = values.reshape(len(values), -1)
            at = {*range(0, len(values), -(-len(values) // SAMPLES)), *values.argmax(0), *values.argmin(0)}
            some = values[sorted(at)]
            seen[var] = _Seen(values.min(0), values.max(0), some)

    watch(None, joined)
    evaluate(module, *rows, watch=watch, dtype=np.float64)
    return seen


class _Writer:
    """Writes the integer main, layer after layer."""

    def __init__(self, chain: Chain, seen: dict[Var | None, _Seen]) -> None:
        self.chain, self.seen = chain, seen
        head = read_head(chain)
        layers = list(chain.layers)
        if isinstance(head, Continuous):  # a squashed action feels its layer's errors squashed
            layers[-1] = replace(layers[-1], function=head.function)
        self.behind = {layer.function.result: layers[i + 1 :] for i, layer in enumerate(chain.layers)}
        sources = [None, *(layer.function.result for layer in chain.layers)]
        self.into = {layer.function.result: seen[source] for layer, source in zip(chain.layers, sources, strict=False)}
        self.builder = relax.BlockBuilder()

    def write(self) -> relax.Function:
        params = [relax.Var(param.name, param.ty) for param in self.chain.inputs]
        with self.builder.function("main", params):
            with self.builder.dataflow():
                first, *others = self.chain.layers
                inverse, zero_point = self.wide_codes()
                # a code is computed in float32, which has no 14 bits for a range this far from zero
                near = np.abs(zero_point).max() <= ZERO_POINT_MAX
                if others and len(first.weight) <= WIDE_OBSERVATIONS and near:
                    codes = self.wide_layer(self.observations(params), first, inverse, zero_point.astype(np.int32))
                else:
                    codes = self.quantized_observations(self.observations(params))
                    others = [first, *others]
                for layer in others[:-1]:
                    codes = self.layer(codes, layer)
                output = self.builder.emit_output(self.head(codes, others[-1]))
            self.builder.emit_func_output(output)
        return self.builder.get()["main"]

    def wide_codes(self) -> tuple[np.ndarray, np.ndarray]:
        """(inverse scale, zero point) of wide codes: about the middle of what observations are clipped to, else about
        zero, or about the middle of what was seen where that lies far from zero."""
        low, high = self.chain.limits
        seen = self.seen[None]
        clipped = np.isfinite(low) & np.isfinite(high)
        middle = (seen.low + seen.high) / 2
        centre = np.where(seen.reach <= 32 * (seen.high - seen.low), 0.0, middle)
        centre = np.where(clipped, (np.where(clipped, low, 0.0) + np.where(clipped, high, 0.0)) / 2, centre)
        reach = np.maximum(np.abs(seen.low - centre), np.abs(seen.high - centre))
        reach = np.minimum(
            WIDE_LIMIT / WIDE_CODE * np.where(reach > 0, reach, 1.0), np.where(clipped, high - centre, np.inf)
        )
        inverse = (WIDE_LIMIT / np.where(reach > TINY, reach, 1.0)).astype(np.float32)
        return inverse, np.rint(-centre * inverse)

    def observations(self, params: list[Var]) -> Var:
        """All inputs joined, (1, n)."""
        flat = [
            self.emit(op.reshape(p, (1, int(np.prod(shape_of(p)))))) if len(shape_of(p)) != 2 else p for p in params
        ]
        return flat[0] if len(flat) == 1 else self.emit(op.concat(flat, axis=1))

    def quantized_observations(self, obs: Var) -> _Codes:
        """int8 codes over each feature's calibrated range, which the codes' ends clip."""
        low, high = self.seen[None].low, self.seen[None].high
        largest = np.maximum(np.abs(low), np.abs(high))
        # a code is computed in float32: a range much narrower than its distance from zero has no 255 steps there
        scale = np.maximum((high - low) / 255, largest / 2**18)
        # a feature that never moved lies on a code, not between two
        never_moved = high - low <= 1e-6 * largest
        scale = np.where(never_moved, np.where(largest > TINY, largest, 1.0) / 128, np.maximum(scale, TINY))
        inverse = (1 / scale).astype(np.float32)
        zero_point = np.rint(np.where(never_moved, 0, -128) - low * inverse).astype(np.int32)
        call = self.call("tinyrl.quantize", obs, inverse, zero_point, -128, 127, dtype="int8", n=len(scale))
        return _Codes(call, 1 / inverse.astype(np.float64), zero_point.astype(np.float64))

    def layer(self, codes: _Codes, layer: Layer) -> _Codes:
        # the features' scales join the weights before these get scales of their own
        weight = layer.weight.astype(np.float64) * np.reshape(codes.scale, (-1, 1))
        scale = _weight_scale(weight, codes.zero_point, layer.bias)
        output = self.output(layer.function, floor=scale)
        shift = self.shift_alone(codes, layer, scale, output)
        if shift is None:
            accumulator = self.accumulate(codes, weight, layer.bias, scale)
            multiplier, shift = _multipliers(scale / output.scale)
            how = (multiplier, shift, int(output.zero_point))
            return self.answer_codes("tinyrl.requantize", accumulator, how, output, layer.function)
        scale, output = _shifted(scale, output, shift)
        return self.shifted_codes(codes, weight, layer, scale, output, shift, "int8")

    def shifted_codes(
        self, codes: _Codes, weight: np.ndarray, layer: Layer, scale: np.ndarray, output: _Codes, shift: int, dtype: str
    ) -> _Codes:
        """A layer whose scales lie 2^shift apart. Its bias carries the zero point, which nothing has to add then."""
        bias = layer.bias + output.zero_point * output.scale
        accumulator = self.accumulate(codes, weight, bias, scale, dtype)
        return self.answer_codes("tinyrl.shift", accumulator, (shift, 0), output, layer.function)

    def shift_alone(self, codes: _Codes, layer: Layer, scale: np.ndarray, output: _Codes) -> int | None:
        """The shift that requantises a layer without multipliers, or None where the outputs would feel it.

        The scales of weights and outputs then lie a power of two apart: where they do not by themselves, one of them is
        coarser than it needs to be. A multiplier an output costs three instructions and four bytes for every four.
        """
        exact = _outputs(self.into[layer.function.result].rows, [layer, *self.behind[layer.function.result]])
        felt = {
            shift: self.error(codes, layer, *_shifted(scale, output, shift), exact) for shift in range(1, MAX_SHIFT + 1)
        }
        best = min(felt, key=lambda shift: felt[shift])
        return best if felt[best] <= SHIFT_ERROR * self.error(codes, layer, scale, output, exact) else None

    def error(self, codes: _Codes, layer: Layer, scale: np.ndarray, output: _Codes, exact: np.ndarray) -> float:
        """Error of the outputs for weights at `scale` and codes at `output`, all else being float."""
        function, behind = layer.function, self.behind[layer.function.result]
        step = scale / np.reshape(codes.scale, (-1, 1))
        weight = np.rint(layer.weight / step) * step
        far = _far_zero(codes.zero_point, len(weight)) * codes.scale
        values = (self.into[function.result].rows + far) @ weight - far @ layer.weight + layer.bias
        low, high = (0, 255) if output.zero_point == -128 else (-128, 127)
        steps = np.clip(np.rint(values / output.scale), low, high)
        if low and function.body:
            values = _table(function, float(output.scale))[steps.astype(int) + 128]
        else:
            values = steps * output.scale
        return _error(_outputs(values, behind), exact)

    def wide_layer(self, obs: Var, layer: Layer, inverse: np.ndarray, zero_point: np.ndarray) -> _Codes:
        n = len(inverse)
        codes = self.call("tinyrl.quantize", obs, inverse, zero_point, -WIDE_LIMIT, WIDE_LIMIT, dtype="int32", n=n)
        wide = _Codes(codes, 1 / inverse.astype(np.float64), zero_point.astype(np.float64))
        weight = layer.weight.astype(np.float64) * wide.scale.reshape(-1, 1)
        # accumulators are output codes times 2^shift: as many bits as the weights and the sums leave room for
        largest_weight = np.abs(weight).max(0, initial=0.0)
        largest_sum = np.abs(weight).sum(0) * WIDE_LIMIT + np.abs(layer.bias - zero_point @ weight)
        output = self.output(layer.function, floor=np.maximum(largest_weight * 2 / 32767, largest_sum * 4 / INT32_MAX))
        needed = np.maximum(largest_weight / 32767, largest_sum * 2 / INT32_MAX) / output.scale
        shift = int(np.clip(np.floor(-np.log2(max(float(needed.max()), 1e-9))), 1, MAX_SHIFT))
        return self.shifted_codes(wide, weight, layer, output.scale / 2.0**shift, output, shift, "int32")

    def head(self, codes: _Codes, layer: Layer) -> relax.Expr:
        weight = layer.weight.astype(np.float64) * np.reshape(codes.scale, (-1, 1))
        head = read_head(self.chain)
        scale = _weight_scale(weight, codes.zero_point, layer.bias)
        if isinstance(head, Decision):
            if not head.positive:  # only accumulators of one scale can be compared; a sign is a sign in any
                runs = np.split(scale, np.cumsum(head.runs)[:-1])
                scale = np.concatenate([np.full(len(run), run.max()) for run in runs])
            return self.decide(self.accumulate(codes, weight, layer.bias, scale), head)
        accumulator = self.accumulate(codes, weight, layer.bias, scale)
        if not head.function.body and not np.any(head.offset):
            value = self.emit(op.astype(accumulator, "float32"))
            return self.clipped(op.multiply(value, relax.const((scale * head.scale).astype(np.float32))), head)
        limit = _saturation(head.function, 1.25 * float(self.seen[head.function.source].reach.max()))
        code_scale = max(limit / 32767, float(scale.max()))
        multiplier, shift = _multipliers(scale / code_scale)
        value = self.call(
            "tinyrl.requantize", accumulator, multiplier, shift, 0, -32768, 32767, dtype="int16", n=len(scale)
        )
        value = self.emit(op.dequantize(value, _scalar(code_scale), relax.const(np.int16(0)), out_dtype="float32"))
        value = self.function(value, head.function)
        value = self.emit(op.multiply(value, relax.const(head.scale.astype(np.float32))))
        return self.clipped(op.add(value, relax.const(head.offset.astype(np.float32))), head)

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

    def output(self, function: Function, floor: np.ndarray) -> _Codes:
        """Scale and zero point of a layer's codes: of what a clamp narrows to, else of what the function is read at.

        A unit's scale below its `floor` would ask for more bits than its accumulator has.
        """
        behind = self.behind[function.result]
        if _is_relu(function):
            scale = np.maximum(_relu_scale(self.seen[function.source], self.seen[function.result], behind), floor)
            if function.operators == ("nn.relu",) or np.all(255 * scale <= _upper_bound(function)):
                return _Codes(function.result, scale, np.asarray(-128.0))
        limit = _saturation(function, float(self.seen[function.source].reach.max()))
        widest = _table_scale(function, self.seen[function.source], limit / 127, behind)
        return _Codes(function.result, np.asarray(max(widest, float(floor.max()))), np.asarray(0.0))

    def answer_codes(
        self, name: str, accumulator: Var, how: tuple[Any, ...], output: _Codes, function: Function
    ) -> _Codes:
        zero = int(output.zero_point)
        codes = self.call(name, accumulator, *how, -128, 127, dtype="int8", n=shape_of(accumulator)[1])
        if zero == -128 or not function.body:  # a clamp is all of the function
            return _Codes(codes, output.scale, output.zero_point)
        value = self.emit(
            op.dequantize(codes, _scalar(float(output.scale)), relax.const(np.int8(zero)), out_dtype="float32")
        )
        value = self.function(value, function)
        step, zero = _symmetric_or_not(function(np.arange(-128.0, 128.0) * output.scale))
        codes = self.emit(op.quantize(value, _scalar(step), relax.const(np.int8(zero)), out_dtype="int8"))
        return _Codes(codes, np.asarray(step), np.asarray(float(zero)))

    def accumulate(self, codes: _Codes, weight: np.ndarray, bias: np.ndarray, scale: Any, dtype: str = "int8") -> Var:
        """weight (n_in, n_out) a code and bias, at `scale` an output -> int32 accumulators."""
        integers = np.rint(weight / scale)
        # what the zero point adds is taken off in the rounded weights it is added in; but where zero is no code, every
        # code is as far from it, and the error of the rounding would be as many times larger
        far = _far_zero(codes.zero_point, len(weight))
        offset = (np.broadcast_to(codes.zero_point, len(far)) - far) @ integers + np.rint(far @ weight / scale)
        product = self.emit(op.matmul(codes.var, relax.const(integers.astype(dtype)), out_dtype="int32"))
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


def _expr(arg: Any) -> relax.Expr:
    if isinstance(arg, np.ndarray):
        return relax.const(arg)
    return relax.prim_value(arg) if isinstance(arg, int) else arg


def _scalar(value: float) -> relax.Expr:
    return relax.const(np.float32(value))


def _far_zero(zero_point: np.ndarray, n: int) -> np.ndarray:
    """Zero points (n,) that are no code of their own feature; 0 for the others."""
    points: np.ndarray = np.broadcast_to(zero_point, n)
    return np.where(np.abs(points) > 128, points, 0.0)


def _is_relu(function: Function) -> bool:
    """ReLU, or ReLU6 and its like: where codes end before the upper bound, it clips nothing more."""
    if function.operators == ("nn.relu",):
        return True
    return function.operators == ("clip",) and float(function.body[0][1].args[1].value) == 0.0


def _upper_bound(function: Function) -> float:
    return float(function.body[0][1].args[2].value)


def _weight_scale(weight: np.ndarray, zero_point: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Symmetric int8 scales (n_out,) for weight (n_in, n_out) of codes with a zero point.

    No smaller than leaves the int32 bias, which the zero point is folded into, half of an accumulator's range.
    """
    reach = np.abs(weight).max(0, initial=0.0)
    folded = np.abs(bias) + np.abs(np.broadcast_to(zero_point, len(weight))) @ np.abs(weight)
    scale = np.maximum(reach / 127, folded / 2**30)
    return np.where(scale > 0, scale, max(float(scale.max()), 1e-9))  # an output of zeros takes any scale


def _multipliers(real: np.ndarray) -> tuple[np.ndarray, int]:
    """(multiplier (n,) int32, right shift) with real = multiplier * 2^(-31 - shift); real at most 1."""
    multiplier, left = common_shift_multipliers(real)
    shift = -left
    if shift > MAX_SHIFT:
        return np.rint(np.ldexp(real, 31 + MAX_SHIFT)).astype(np.int32), MAX_SHIFT
    if shift < 0:  # exactly 1, the floor of an output's scale
        return np.minimum(np.rint(np.ldexp(real, 31)), INT32_MAX).astype(np.int32), 0
    return multiplier, shift


def _saturation(function: Function, largest: float) -> float:
    """The least limit beyond which the function's codes do not change, at most `largest`.

    tanh's last code ends at 3.1: finer codes for the steep middle, where a range up to 8 would spend half on ones.
    """
    if not function.body or largest == 0:
        return largest
    points = largest * np.linspace(0, 1, 2049)
    sides = [function(points), function(-points)]
    half_code = (max(side.max() for side in sides) - min(side.min() for side in sides)) / 255 / 2
    settled = np.all([np.abs(side - side[-1]) <= half_code for side in sides], axis=0)
    changing = np.flatnonzero(~settled)
    return float(points[min(changing[-1] + 1, 2048)]) if len(changing) else largest


def _relu_scale(before: _Seen, seen: _Seen, behind: Sequence[Layer]) -> np.ndarray:
    """A scale a unit (n,): between one for all and each its own, clipped a little or not, by what the outputs feel least.

    A unit's scale is folded into the next layer's row, so that the finer its codes, the coarser the others' weights.
    """
    # a unit that seldom fires was seen at less than it will reach
    likely = before.rows.mean(0) + LIKELY_DEVIATIONS * before.rows.std(0)
    high = np.maximum(seen.high, np.minimum(likely, seen.high.max()))
    high = np.where(seen.high > 0, high, max(float(seen.high.max()), 0.0) or 1.0)
    exact = _outputs(seen.rows, behind)
    best, least = high / 255, np.inf
    for own in (1.0, 0.75, 0.5, 0.25, 0.0):
        for kept in (1.0, 0.9):
            scale = kept * high**own * high.max() ** (1 - own) / 255
            weight = behind[0].weight.astype(np.float64) * scale.reshape(-1, 1)
            step = _weight_scale(weight, np.zeros(1), np.zeros(1))
            codes = np.clip(np.rint(seen.rows / scale), 0, 255)
            error = _error(_outputs(codes, behind, np.rint(weight / step) * step), exact)
            if error < least:
                best, least = scale, error
    return best


def _table_scale(function: Function, seen: _Seen, largest: float, behind: Sequence[Layer]) -> float:
    """The scale of the codes a function is read at, at most `largest`, that the outputs feel least."""
    exact = _outputs(function(seen.rows.ravel()).reshape(seen.rows.shape), behind)
    best, least = largest, np.inf
    for kept in np.linspace(1, 0.3, 15):
        scale = kept * largest
        table = _table(function, scale)
        codes = np.clip(np.rint(seen.rows / scale) if scale else 0 * seen.rows, -128, 127).astype(int)
        error = _error(_outputs(table[codes + 128], behind), exact)
        if error < least:
            best, least = scale, error
    return best or 1.0


def _table(function: Function, scale: float) -> np.ndarray:
    """What the codes -128..127 at `scale` become, (256,), themselves codes again."""
    table = function(np.arange(-128.0, 128.0) * scale)
    step, zero = _symmetric_or_not(table)
    return (np.clip(np.rint(table / step) + zero, -128, 127) - zero) * step


def _shifted(scale: np.ndarray, output: _Codes, shift: int) -> tuple[np.ndarray, _Codes]:
    """Scales of weights (n_out,) and of codes, a power of two apart and neither finer than it was."""
    floor = np.ldexp(scale, shift)
    coarse = np.maximum(output.scale, floor if output.scale.ndim else floor.max())
    return np.broadcast_to(np.ldexp(coarse, -shift), scale.shape), replace(output, scale=coarse)


def _error(outputs: np.ndarray, exact: np.ndarray) -> float:
    """How far `outputs` are from `exact`: the fourth-power mean, which a few rows far off weigh in as many small ones."""
    return float(np.mean((outputs - exact) ** 4) ** 0.25)


def _outputs(rows: np.ndarray, layers: Sequence[Layer], first_weight: np.ndarray | None = None) -> np.ndarray:
    """What `layers` make of `rows`, in float; `first_weight` takes the place of the first one's."""
    for layer in layers:
        weight = layer.weight.astype(np.float64) if first_weight is None else first_weight
        rows = rows @ weight + layer.bias
        first_weight = None
        if layer.function.body:
            rows = layer.function(rows.ravel()).reshape(rows.shape)
    return rows


def _symmetric_or_not(values: np.ndarray) -> tuple[float, int]:
    """(scale, zero_point) of int8 codes for `values`: zero at code 0 unless that would waste over a quarter of them."""
    if not np.isfinite(values).all():
        raise UnsupportedGraph("an activation is not finite on the observations calibrated with; it has no int8 codes")
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    symmetric = max(-low, high) / 127
    asymmetric = (high - low) / 255
    if symmetric == 0:
        return 1.0, 0
    if asymmetric > 0.75 * symmetric:
        return symmetric, 0
    return asymmetric, round(-128 - low / asymmetric)
