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
* An arg max reads the int32 accumulators; a continuous action is the accumulators times a scale. Probabilities are those of
  8-bit logits, a scale a run: about their top, because a softmax reads how far the others are below it.
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
from .fixedpoint import ZERO_POINT_MAX, softmax_int8, softmax_scaling
from .head import Continuous, Decision, Probabilities
from .write_int8 import INT32_MAX, MAX_SHIFT, Codes, Writer, far_zero, multipliers, saturation, scalar

# Above this many observations 16-lane dot products of int8 beat 4-lane ones of int32.
WIDE_OBSERVATIONS = 8
# 13 bits for the calibrated range, and a code reaches four times as far.
WIDE_CODE, WIDE_LIMIT = 4095, 16383
# A shift alone requantises a layer where the outputs' error grows to no more than this many times.
SHIFT_ERROR = 1.5
# A unit's codes reach this many standard deviations over its mean, even where calibration saw less.
LIKELY_DEVIATIONS = 5.0
# Codes per unit of an observation are a float32.
TINY = 1e-30
# How far a logit may rise over the largest that calibration saw, of the logits' span, before it counts no more.
LOGIT_MARGIN = 0.1
# Rows that choose a layer's clipping, of those that gave the ranges.
SAMPLES = 512


@tvm.transform.module_pass(opt_level=0, name="QuantizeInt8")
class QuantizeInt8:
    """matmul -> add -> relu becomes matmul(int8) -> add(int32) -> tinyrl.requantize.

    `rows` are calibration observations, one array (n_rows, n) a main input. `wide_first_layer` allows a first layer of
    few observations 16-bit weights; a library of int8 kernels has no such layer.
    """

    def __init__(self, *rows: np.ndarray, wide_first_layer: bool = True) -> None:
        self.rows, self.wide_first_layer = rows, wide_first_layer

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        chain = read_chain(module)
        seen = observe(module, chain, self.rows)
        module = module.clone()
        module[module.get_global_var("main")] = Calibrated(chain, seen, self.wide_first_layer).write()
        return relax.transform.DeadCodeElimination(["main"])(module)


@dataclass(frozen=True)
class Seen:
    """What calibration saw of a tensor: each element's least and greatest value (n,), and some of its rows."""

    low: np.ndarray
    high: np.ndarray
    rows: np.ndarray

    @property
    def reach(self) -> np.ndarray:
        return np.maximum(np.abs(self.low), np.abs(self.high))


def observe(module: tvm.IRModule, chain: Chain, rows: Sequence[np.ndarray]) -> dict[Var | None, Seen]:
    """What every layer puts out before and after its function; of the joined observations under None."""
    joined = np.concatenate([np.asarray(part, np.float64).reshape(len(part), -1) for part in rows], axis=1)
    joined = np.clip(joined, *chain.limits)
    wanted = {var for layer in chain.layers for var in (layer.function.source, layer.function.result)}
    seen: dict[Var | None, Seen] = {}

    def watch(var: Var | None, values: np.ndarray) -> None:
        if var is None or var in wanted:
            values = values.reshape(len(values), -1)
            at = {*range(0, len(values), -(-len(values) // SAMPLES)), *values.argmax(0), *values.argmin(0)}
            some = values[sorted(at)]
            seen[var] = Seen(values.min(0), values.max(0), some)

    watch(None, joined)
    evaluate(module, *rows, watch=watch, dtype=np.float64)
    return seen


class Calibrated(Writer):
    """Writes layers at the scales that hurt the outputs least, on what calibration saw. `wide_code` is the largest that wide
    codes take for what it saw."""

    wide_code: float = WIDE_CODE

    def __init__(self, chain: Chain, seen: dict[Var | None, Seen], wide_first_layer: bool) -> None:
        super().__init__(chain)
        self.seen = seen
        self.widest = WIDE_OBSERVATIONS if wide_first_layer else 0
        layers = list(chain.layers)
        if isinstance(self.action, Continuous):  # a squashed action feels its layer's errors squashed
            layers[-1] = replace(layers[-1], function=self.action.function)
        if isinstance(self.action, Probabilities) and not (self.action.logits.low is self.action.logits.high is None):
            raise UnsupportedGraph(
                "a softmax reads logits that are clipped, and int8 has one of codes alone; compile with --precision float32"
            )
        self.behind = {layer.function.result: layers[i + 1 :] for i, layer in enumerate(chain.layers)}
        sources = [None, *(layer.function.result for layer in chain.layers)]
        self.into = {layer.function.result: seen[source] for layer, source in zip(chain.layers, sources, strict=False)}

    def answer(self, observations: Var) -> relax.Expr:
        first, *others = self.chain.layers
        inverse, zero_point = self.wide_codes(self.wide_code, WIDE_LIMIT)
        # a code is computed in float32, which has no 14 bits for a range this far from zero
        near = np.abs(zero_point).max() <= ZERO_POINT_MAX
        if others and len(first.weight) <= self.widest and near:
            codes = self.wide_layer(observations, first, inverse, zero_point.astype(np.int32))
        else:
            codes = self.quantized_observations(observations)
            others = [first, *others]
        for layer in others[:-1]:
            codes = self.layer(codes, layer)
        return self.head(codes, others[-1])

    def wide_codes(self, seen_at: float, limit: int, farthest: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
        """(inverse scale, zero point) of codes up to `limit`, of which what was seen takes those up to `seen_at`: about the
        middle of what observations are clipped to, else about zero, or about the middle of what was seen where that lies
        far from zero, but at most `farthest` codes."""
        low, high = self.chain.limits
        seen = self.seen[None]
        clipped = np.isfinite(low) & np.isfinite(high)
        middle = (seen.low + seen.high) / 2
        centre = np.where(seen.reach <= 32 * (seen.high - seen.low), 0.0, middle)
        centre = np.where(clipped, (np.where(clipped, low, 0.0) + np.where(clipped, high, 0.0)) / 2, centre)
        reach = np.maximum(np.abs(seen.low - centre), np.abs(seen.high - centre))
        reach = np.minimum(limit / seen_at * np.where(reach > 0, reach, 1.0), np.where(clipped, high - centre, np.inf))
        inverse = limit / np.where(reach > TINY, reach, 1.0)
        inverse = np.minimum(inverse, farthest / np.maximum(np.abs(centre), TINY)).astype(np.float32)
        return inverse, np.rint(-centre * inverse)

    def quantized_observations(self, obs: Var) -> Codes:
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
        return Codes(call, 1 / inverse.astype(np.float64), zero_point.astype(np.float64))

    def layer(self, codes: Codes, layer: Layer) -> Codes:
        # the features' scales join the weights before these get scales of their own
        weight = layer.weight.astype(np.float64) * np.reshape(codes.scale, (-1, 1))
        scale = self.weight_scale(weight, codes.zero_point, layer.bias)
        output = self.output(layer.function, floor=scale)
        shift = self.shift_alone(codes, layer, scale, output)
        if shift is None:
            accumulator = self.accumulate(codes, weight, layer.bias, scale)
            multiplier, shift = multipliers(scale / output.scale)
            how = (multiplier, shift, int(output.zero_point))
            return self.answer_codes("tinyrl.requantize", accumulator, how, output, layer.function)
        scale, output = _shifted(scale, output, shift)
        return self.shifted_codes(codes, weight, layer, scale, output, shift, "int8")

    def shifted_codes(
        self, codes: Codes, weight: np.ndarray, layer: Layer, scale: np.ndarray, output: Codes, shift: int, dtype: str
    ) -> Codes:
        """A layer whose scales lie 2^shift apart. Its bias carries the zero point, which nothing has to add then."""
        bias = layer.bias + output.zero_point * output.scale
        accumulator = self.accumulate(codes, weight, bias, scale, dtype)
        return self.answer_codes("tinyrl.shift", accumulator, (shift, 0), output, layer.function)

    def shift_alone(self, codes: Codes, layer: Layer, scale: np.ndarray, output: Codes) -> int | None:
        """The shift that requantises a layer without multipliers, or None where the outputs would feel it.

        The scales of weights and outputs then lie a power of two apart: where they do not by themselves, one of them is
        coarser than it needs to be. A multiplier an output costs three instructions and four bytes for every four.
        """
        exact = outputs_of(self.into[layer.function.result].rows, [layer, *self.behind[layer.function.result]])
        felt = {
            shift: self.error(codes, layer, *_shifted(scale, output, shift), exact) for shift in range(1, MAX_SHIFT + 1)
        }
        best = min(felt, key=lambda shift: felt[shift])
        return best if felt[best] <= SHIFT_ERROR * self.error(codes, layer, scale, output, exact) else None

    def error(self, codes: Codes, layer: Layer, scale: np.ndarray, output: Codes, exact: np.ndarray) -> float:
        """Error of the outputs for weights at `scale` and codes at `output`, all else being float."""
        function, behind = layer.function, self.behind[layer.function.result]
        step = scale / np.reshape(codes.scale, (-1, 1))
        weight = np.rint(layer.weight / step) * step
        far = far_zero(codes.zero_point, len(weight)) * codes.scale
        values = (self.into[function.result].rows + far) @ weight - far @ layer.weight + layer.bias
        low, high = (0, 255) if output.zero_point == -128 else (-128, 127)
        steps = np.clip(np.rint(values / output.scale), low, high)
        if low and function.body:
            values = _table(function, float(output.scale))[steps.astype(int) + 128]
        else:
            values = steps * output.scale
        return error_of(outputs_of(values, behind), exact)

    def wide_layer(self, obs: Var, layer: Layer, inverse: np.ndarray, zero_point: np.ndarray) -> Codes:
        n = len(inverse)
        codes = self.call("tinyrl.quantize", obs, inverse, zero_point, -WIDE_LIMIT, WIDE_LIMIT, dtype="int32", n=n)
        wide = Codes(codes, 1 / inverse.astype(np.float64), zero_point.astype(np.float64))
        weight = layer.weight.astype(np.float64) * wide.scale.reshape(-1, 1)
        # accumulators are output codes times 2^shift: as many bits as the weights and the sums leave room for
        largest_weight = np.abs(weight).max(0, initial=0.0)
        largest_sum = np.abs(weight).sum(0) * WIDE_LIMIT + np.abs(layer.bias - zero_point @ weight)
        output = self.output(layer.function, floor=np.maximum(largest_weight * 2 / 32767, largest_sum * 4 / INT32_MAX))
        needed = np.maximum(largest_weight / 32767, largest_sum * 2 / INT32_MAX) / output.scale
        shift = int(np.clip(np.floor(-np.log2(max(float(needed.max()), 1e-9))), 1, MAX_SHIFT))
        return self.shifted_codes(wide, weight, layer, output.scale / 2.0**shift, output, shift, "int32")

    def weight_scale(self, weight: np.ndarray, zero_point: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return _weight_scale(weight, zero_point, bias)

    def head(self, codes: Codes, layer: Layer) -> relax.Expr:
        if isinstance(self.action, Probabilities):
            return self.likely(codes, layer, self.action.runs)
        weight = layer.weight.astype(np.float64) * np.reshape(codes.scale, (-1, 1))
        scale = self.weight_scale(weight, codes.zero_point, layer.bias)
        if isinstance(self.action, Decision) and not self.action.positive:
            # only accumulators of one scale can be compared; a sign is a sign in any
            runs = np.split(scale, np.cumsum(self.action.runs)[:-1])
            scale = np.concatenate([np.full(len(run), run.max()) for run in runs])
        accumulator = self.accumulate(codes, weight, layer.bias, scale)
        return self.read_off(accumulator, scale, 1.25 * float(self.seen[layer.function.source].reach.max()))

    def likely(self, codes: Codes, layer: Layer, runs: tuple[int, ...]) -> relax.Expr:
        """Probabilities of the last layer's codes: of each run the code 127 is a little over the largest logit seen."""
        seen = self.seen[layer.function.source]
        ends = np.cumsum(runs)[:-1]
        low, high = (np.array([choose(part) for part in np.split(values, ends)])
                     for choose, values in ((np.min, seen.low), (np.max, seen.high)))  # fmt: skip
        top = high + LOGIT_MARGIN * (high - low)
        bias = layer.bias - np.repeat(top, runs)
        weight = layer.weight.astype(np.float64) * np.reshape(codes.scale, (-1, 1))
        scale = self.weight_scale(weight, codes.zero_point, bias)
        floors = [float(part.max()) for part in np.split(scale, ends)]
        rows = np.split(seen.rows, ends, axis=1)
        scales = [_logit_scale(*run) for run in zip(rows, low, top, floors, strict=True)]
        multiplier, shift = multipliers(scale / np.repeat(scales, runs))
        accumulator = self.accumulate(codes, weight, bias, scale)
        how = (multiplier, shift, 127, -128, 127)
        logits = self.call("tinyrl.requantize", accumulator, *how, dtype="int8", n=len(scale))
        return self.probabilities(logits, runs, scales)

    def output(self, function: Function, floor: np.ndarray) -> Codes:
        """Scale and zero point of a layer's codes: of what a clamp narrows to, else of what the function is read at.

        A unit's scale below its `floor` would ask for more bits than its accumulator has.
        """
        behind = self.behind[function.result]
        if _is_relu(function):
            scale = np.maximum(_relu_scale(self.seen[function.source], self.seen[function.result], behind), floor)
            if function.operators == ("nn.relu",) or np.all(255 * scale <= _upper_bound(function)):
                return Codes(function.result, scale, np.asarray(-128.0))
        limit = saturation(function, float(self.seen[function.source].reach.max()))
        widest = _table_scale(function, self.seen[function.source], limit / 127, behind)
        return Codes(function.result, np.asarray(max(widest, float(floor.max()))), np.asarray(0.0))

    def answer_codes(
        self, name: str, accumulator: Var, how: tuple[Any, ...], output: Codes, function: Function
    ) -> Codes:
        zero = int(output.zero_point)
        codes = self.call(name, accumulator, *how, -128, 127, dtype="int8", n=shape_of(accumulator)[1])
        if zero == -128 or not function.body:  # a clamp is all of the function
            return Codes(codes, output.scale, output.zero_point)
        value = self.emit(
            op.dequantize(codes, scalar(float(output.scale)), relax.const(np.int8(zero)), out_dtype="float32")
        )
        value = self.function(value, function)
        step, zero = _symmetric_or_not(function(np.arange(-128.0, 128.0) * output.scale))
        codes = self.emit(op.quantize(value, scalar(step), relax.const(np.int8(zero)), out_dtype="int8"))
        return Codes(codes, np.asarray(step), np.asarray(float(zero)))


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


def _relu_scale(before: Seen, seen: Seen, behind: Sequence[Layer]) -> np.ndarray:
    """A scale a unit (n,): between one for all and each its own, clipped a little or not, by what the outputs feel least.

    A unit's scale is folded into the next layer's row, so that the finer its codes, the coarser the others' weights.
    """
    # a unit that seldom fires was seen at less than it will reach
    likely = before.rows.mean(0) + LIKELY_DEVIATIONS * before.rows.std(0)
    high = np.maximum(seen.high, np.minimum(likely, seen.high.max()))
    high = np.where(seen.high > 0, high, max(float(seen.high.max()), 0.0) or 1.0)
    exact = outputs_of(seen.rows, behind)
    best, least = high / 255, np.inf
    for own in (1.0, 0.75, 0.5, 0.25, 0.0):
        for kept in (1.0, 0.9):
            scale = kept * high**own * high.max() ** (1 - own) / 255
            weight = behind[0].weight.astype(np.float64) * scale.reshape(-1, 1)
            step = _weight_scale(weight, np.zeros(1), np.zeros(1))
            codes = np.clip(np.rint(seen.rows / scale), 0, 255)
            error = error_of(outputs_of(codes, behind, np.rint(weight / step) * step), exact)
            if error < least:
                best, least = scale, error
    return best


def _table_scale(function: Function, seen: Seen, largest: float, behind: Sequence[Layer]) -> float:
    """The scale of the codes a function is read at, at most `largest`, that the outputs feel least."""
    exact = outputs_of(function(seen.rows.ravel()).reshape(seen.rows.shape), behind)
    best, least = largest, np.inf
    for kept in np.linspace(1, 0.3, 15):
        scale = kept * largest
        table = _table(function, scale)
        codes = np.clip(np.rint(seen.rows / scale) if scale else 0 * seen.rows, -128, 127).astype(int)
        error = error_of(outputs_of(table[codes + 128], behind), exact)
        if error < least:
            best, least = scale, error
    return best or 1.0


def _logit_scale(rows: np.ndarray, low: float, top: float, floor: float) -> float:
    """The scale of a run's codes (n, run) below `top` that its probabilities feel least: what lies far below has none."""
    power = np.exp(rows - rows.max(1, keepdims=True))
    exact = power / power.sum(1, keepdims=True)
    best, least = floor, np.inf
    for kept in np.linspace(1, 0.2, 9):
        scale = max(kept * (top - low) / 255, floor)
        codes = np.clip(np.rint((rows - top) / scale) + 127, -128, 127).astype(np.int8)
        error = error_of((softmax_int8(codes, *softmax_scaling(scale)) + 128.0) / 256, exact)
        if error < least:
            best, least = scale, error
    return best


def _table(function: Function, scale: float) -> np.ndarray:
    """What the codes -128..127 at `scale` become, (256,), themselves codes again."""
    table = function(np.arange(-128.0, 128.0) * scale)
    step, zero = _symmetric_or_not(table)
    return (np.clip(np.rint(table / step) + zero, -128, 127) - zero) * step


def _shifted(scale: np.ndarray, output: Codes, shift: int) -> tuple[np.ndarray, Codes]:
    """Scales of weights (n_out,) and of codes, a power of two apart and neither finer than it was."""
    floor = np.ldexp(scale, shift)
    coarse = np.maximum(output.scale, floor if output.scale.ndim else floor.max())
    return np.broadcast_to(np.ldexp(coarse, -shift), scale.shape), replace(output, scale=coarse)


def error_of(outputs: np.ndarray, exact: np.ndarray) -> float:
    """How far `outputs` are from `exact`: the fourth-power mean, which a few rows far off weigh in as many small ones."""
    return float(np.mean((outputs - exact) ** 4) ** 0.25)


def outputs_of(rows: np.ndarray, layers: Sequence[Layer], first_weight: np.ndarray | None = None) -> np.ndarray:
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
