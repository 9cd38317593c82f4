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

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Var
from tvm.relax import op

from .dataflow import shape_of
from .fixedpoint import ZERO_POINT_MAX, softmax_int8, softmax_scaling
from .head import Decision, Probabilities
from .network import Function, Layer, Merge, Network, Node, UnsupportedGraph, read_network
from .replay import Replay
from .write_int8 import (
    INT32_MAX,
    LARGEST_FACTORS,
    MAX_SHIFT,
    Codes,
    Writer,
    far_zero,
    merge_factors,
    multipliers,
    saturation,
    scalar,
)

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
# A sum's code is no finer than this part of a code of what is added.
MERGED_STEPS = 16
# How far a logit may rise over the largest that calibration saw, of the logits' span, before it counts no more.
LOGIT_MARGIN = 0.1


@tvm.transform.module_pass(opt_level=0, name="QuantizeInt8")
class QuantizeInt8:
    """matmul -> add -> relu becomes matmul(int8) -> add(int32) -> tinyrl.requantize.

    `rows` are calibration observations, one array (n_rows, n) a main input. `wide_first_layer` allows a first layer of
    few observations 16-bit weights; a library of int8 kernels has no such layer.
    """

    def __init__(self, *rows: np.ndarray, wide_first_layer: bool = True) -> None:
        self.rows, self.wide_first_layer = rows, wide_first_layer

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        return calibrated(module, self.rows, lambda network, replay: Calibrated(network, replay, self.wide_first_layer))


def calibrated(
    module: tvm.IRModule, rows: Sequence[np.ndarray], writer: Callable[[Network, Replay], Writer]
) -> tvm.IRModule:
    """`module` with the `main` that `writer` makes of its network and of what `rows` say about it."""
    network = read_network(module)
    written = writer(network, Replay(module, network, rows)).write()
    module = module.clone()
    module[module.get_global_var("main")] = written
    return relax.transform.DeadCodeElimination(["main"])(module)


class Calibrated(Writer):
    """Writes nodes at the scales that hurt the outputs least, on what calibration saw. `wide_code` is the largest that wide
    codes take for what it saw."""

    wide_code: float = WIDE_CODE
    largest_factors: int = LARGEST_FACTORS

    def __init__(self, network: Network, replay: Replay, wide_first_layer: bool) -> None:
        super().__init__(network)
        self.replay, self.seen = replay, replay.seen
        self.widest = WIDE_OBSERVATIONS if wide_first_layer else 0
        if isinstance(self.action, Probabilities) and not (self.action.logits.low is self.action.logits.high is None):
            raise UnsupportedGraph(
                f"a softmax reads logits that are clipped, and {self.dtype} has one of codes alone; "
                "compile with --precision float32"
            )

    def answer(self, observations: Var) -> relax.Expr:
        first: Callable[[Codes, Layer], Codes] = self.layer
        inverse, zero_point = self.wide_codes(self.wide_code, WIDE_LIMIT)
        # a code is computed in float32, which has no 14 bits for a range this far from zero
        near = np.abs(zero_point).max() <= ZERO_POINT_MAX
        if self.network.last.source is not None and len(inverse) <= self.widest and near:
            first, read = self.wide_layer, self.wide_observations(observations, inverse, zero_point.astype(np.int32))
        else:
            read = self.quantized_observations(observations)
        codes: dict[Var | None, Codes] = {None: read}
        for node in self.replay.nodes[:-1]:
            of = [codes[source] for source in node.sources]
            if isinstance(node, Layer):
                written = (self.layer if node.source is not None else first)(of[0], node)
            elif isinstance(node, Merge):
                written = self.merge(of[0], of[1], node)
            else:
                written = self.function_codes(of[0], node.function)
            codes[node.function.result] = written
        return self.head(codes[self.network.last.source], self.network.last)

    def wide_codes(
        self, seen_at: float, limit: int, farthest: float = np.inf, apart: float = 32.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """(inverse scale, zero point) of codes up to `limit`, of which what was seen takes those up to `seen_at`: about the
        middle of what observations are clipped to, else about zero, or about the middle of what was seen where that
        reaches more than `apart` of its own spans from zero, but at most `farthest` codes."""
        low, high = self.network.limits
        seen = self.seen[None]
        clipped = np.isfinite(low) & np.isfinite(high)
        middle = (seen.low + seen.high) / 2
        centre = np.where(seen.reach <= apart * (seen.high - seen.low), 0.0, middle)
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
        output = self.output(layer, floor=scale)
        shift = self.shift_alone(codes, layer, scale, output)
        if shift is None:
            accumulator = self.accumulate(codes, weight, layer.bias, scale)
            multiplier, shift = multipliers(scale / output.scale)
            how = (accumulator, multiplier, shift, int(output.zero_point))
            return self.answer_codes("tinyrl.requantize", how, output, layer.function)
        scale, output = _shifted(scale, output, shift)
        return self.shifted_codes(codes, weight, layer, scale, output, shift, "int8")

    def shifted_codes(
        self, codes: Codes, weight: np.ndarray, layer: Layer, scale: np.ndarray, output: Codes, shift: int, dtype: str
    ) -> Codes:
        """A layer whose scales lie 2^shift apart. Its bias carries the zero point, which nothing has to add then."""
        bias = layer.bias + output.zero_point * output.scale
        accumulator = self.accumulate(codes, weight, bias, scale, dtype)
        return self.answer_codes("tinyrl.shift", (accumulator, shift, 0), output, layer.function)

    def shift_alone(self, codes: Codes, layer: Layer, scale: np.ndarray, output: Codes) -> int | None:
        """The shift that requantises a layer without multipliers, or None where the outputs would feel it.

        The scales of weights and outputs then lie a power of two apart: where they do not by themselves, one of them is
        coarser than it needs to be. A multiplier an output costs three instructions and four bytes for every four.
        """
        before = self.replay.before(layer)
        exact = self.replay.through(layer, before.rows, before.at)
        felt = {
            shift: self.error(codes, layer, *_shifted(scale, output, shift), exact) for shift in range(1, MAX_SHIFT + 1)
        }
        best = min(felt, key=lambda shift: felt[shift])
        return best if felt[best] <= SHIFT_ERROR * self.error(codes, layer, scale, output, exact) else None

    def error(self, codes: Codes, layer: Layer, scale: np.ndarray, output: Codes, exact: np.ndarray) -> float:
        """Error of the outputs for weights at `scale` and codes at `output`, all else being float."""
        function, before = layer.function, self.replay.before(layer)
        step = scale / np.reshape(codes.scale, (-1, 1))
        weight = np.rint(layer.weight / step) * step
        far = far_zero(codes.zero_point, len(weight)) * codes.scale
        values = (before.rows + far) @ weight - far @ layer.weight + layer.bias
        low, high = (0, 255) if output.zero_point == -128 else (-128, 127)
        steps = np.clip(np.rint(values / output.scale), low, high)
        if low and function.body:
            values = _table(function, float(output.scale))[steps.astype(int) + 128]
        else:
            values = steps * output.scale
        return error_of(self.replay.outputs(layer, values, before.at), exact)

    def wide_observations(self, obs: Var, inverse: np.ndarray, zero_point: np.ndarray) -> Codes:
        n = len(inverse)
        codes = self.call("tinyrl.quantize", obs, inverse, zero_point, -WIDE_LIMIT, WIDE_LIMIT, dtype="int32", n=n)
        return Codes(codes, 1 / inverse.astype(np.float64), zero_point.astype(np.float64))

    def wide_layer(self, wide: Codes, layer: Layer) -> Codes:
        weight = layer.weight.astype(np.float64) * wide.scale.reshape(-1, 1)
        # accumulators are output codes times 2^shift: as many bits as the weights and the sums leave room for
        largest_weight = np.abs(weight).max(0, initial=0.0)
        largest_sum = np.abs(weight).sum(0) * WIDE_LIMIT + np.abs(layer.bias - wide.zero_point @ weight)
        output = self.output(layer, floor=np.maximum(largest_weight * 2 / 32767, largest_sum * 4 / INT32_MAX))
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
        low, high = of_runs(np.min, seen.low, runs), of_runs(np.max, seen.high, runs)
        top = high + LOGIT_MARGIN * (high - low)
        bias = layer.bias - np.repeat(top, runs)
        weight = layer.weight.astype(np.float64) * np.reshape(codes.scale, (-1, 1))
        scale = self.weight_scale(weight, codes.zero_point, bias)
        floors = of_runs(np.max, scale, runs)
        rows = np.split(seen.rows, np.cumsum(runs)[:-1], axis=1)
        scales = [_logit_scale(*run) for run in zip(rows, low, top, floors, strict=True)]
        multiplier, shift = multipliers(scale / np.repeat(scales, runs))
        accumulator = self.accumulate(codes, weight, bias, scale)
        how = (multiplier, shift, 127, -128, 127)
        logits = self.call("tinyrl.requantize", accumulator, *how, dtype="int8", n=len(scale))
        return self.probabilities(logits, runs, scales)

    def merge(self, x: Codes, y: Codes, node: Merge) -> Codes:
        """Two tensors of one scale each."""
        scale, other = float(x.scale), float(y.scale)
        if node.operator == "multiply":
            output = self.output(node, floor=np.array([scale * other]))
            (multiplier,), shift = multipliers(np.array([scale * other / float(output.scale)]))
            how = (x.var, y.var, *_zero_points(x, y), int(multiplier), shift, int(output.zero_point.item()))
            return self.answer_codes("tinyrl.multiply", how, output, node.function)
        output = self.output(node, floor=np.array([max(scale, other) / MERGED_STEPS]))
        factors, shift = merge_factors(scale / float(output.scale), other / float(output.scale), self.largest_factors)
        if node.operator == "subtract":
            factors = (factors[0], -factors[1])
        added = (x.var, y.var, *_zero_points(x, y), *factors, shift, int(output.zero_point.item()))
        return self.answer_codes("tinyrl.add", added, output, node.function)

    def is_whole(self, node: Node) -> bool:
        """Whether a node's codes have one scale: what is read element by element cannot take in a scale an element."""
        return isinstance(node, Merge) or any(not isinstance(reader, Layer) for reader in self.replay.readers(node))

    def output(self, node: Node, floor: np.ndarray) -> Codes:
        """Scale and zero point of a node's codes: of what a clamp narrows to, else of what the function is read at.

        A unit's scale below its `floor` would ask for more bits than its accumulator has.
        """
        function = node.function
        if _is_relu(function):
            scale = np.maximum(self.relu_scale(node), floor)
            if self.is_whole(node):
                scale = scale.max()
            if function.operators == ("nn.relu",) or np.all(255 * scale <= _upper_bound(function)):
                return Codes(function.result, scale, np.asarray(-128.0))
        limit = saturation(function, float(self.seen[function.source].reach.max()))
        widest = self.table_scale(node, limit / 127)
        return Codes(function.result, np.asarray(max(widest, float(floor.max()))), np.asarray(0.0))

    def answer_codes(self, name: str, how: tuple[Any, ...], output: Codes, function: Function) -> Codes:
        codes = self.call(name, *how, -128, 127, dtype="int8", n=shape_of(how[0])[1])
        codes = replace(output, var=codes)
        if int(output.zero_point) == -128 or not function.body:  # a clamp is all of the function
            return codes
        return self.function_codes(codes, function)

    def function_codes(self, codes: Codes, function: Function) -> Codes:
        """Codes of a function of codes of one scale."""
        zero = int(codes.zero_point)
        value = self.emit(
            op.dequantize(codes.var, scalar(float(codes.scale)), relax.const(np.int8(zero)), out_dtype="float32")
        )
        value = self.function(value, function)
        step, zero = _symmetric_or_not(function((np.arange(-128.0, 128.0) - zero) * codes.scale))
        codes = self.emit(op.quantize(value, scalar(step), relax.const(np.int8(zero)), out_dtype="int8"))
        return Codes(codes, np.asarray(step), np.asarray(float(zero)))

    def relu_scale(self, node: Node) -> np.ndarray:
        """A scale a unit (n,): between one for all and each its own, clipped a little or not, by what the outputs feel
        least.

        A unit's scale is folded into the next layers' rows, so that the finer its codes, the coarser the others' weights.
        """
        before, seen = self.seen[node.function.source], self.seen[node.function.result]
        # a unit that seldom fires was seen at less than it will reach
        likely = before.rows.mean(0) + LIKELY_DEVIATIONS * before.rows.std(0)
        high = np.maximum(seen.high, np.minimum(likely, seen.high.max()))
        high = np.where(seen.high > 0, high, max(float(seen.high.max()), 0.0) or 1.0)
        exact = self.replay.outputs(node, seen.rows, seen.at)
        whole = self.is_whole(node)
        best, least = high / 255, np.inf
        for own in (0.0,) if whole else (1.0, 0.75, 0.5, 0.25, 0.0):
            for kept in (1.0, 0.9):
                scale = kept * high**own * high.max() ** (1 - own) / 255
                codes = np.clip(np.rint(seen.rows / scale), 0, 255)
                if whole:
                    outputs = self.replay.outputs(node, codes * scale, seen.at)
                else:
                    outputs = self.replay.outputs(node, codes, seen.at, functools.partial(_rounded, scale=scale))
                error = error_of(outputs, exact)
                if error < least:
                    best, least = scale, error
        return best

    def table_scale(self, node: Node, largest: float) -> float:
        """The scale of the codes a node's function is read at, at most `largest`, that the outputs feel least."""
        function, seen = node.function, self.seen[node.function.source]
        exact = self.replay.outputs(node, function(seen.rows.ravel()).reshape(seen.rows.shape), seen.at)
        best, least = largest, np.inf
        for kept in np.linspace(1, 0.3, 15):
            scale = kept * largest
            table = _table(function, scale)
            codes = np.clip(np.rint(seen.rows / scale) if scale else 0 * seen.rows, -128, 127).astype(int)
            error = error_of(self.replay.outputs(node, table[codes + 128], seen.at), exact)
            if error < least:
                best, least = scale, error
        return best or 1.0


def _rounded(layer: Layer, scale: np.ndarray) -> np.ndarray:
    """The rounded weights of a layer that reads codes at `scale` (n_in,)."""
    weight = layer.weight.astype(np.float64) * scale.reshape(-1, 1)
    step = _weight_scale(weight, np.zeros(1), np.zeros(1))
    rounded: np.ndarray = np.rint(weight / step) * step
    return rounded


def _zero_points(x: Codes, y: Codes) -> tuple[int, int]:
    return int(x.zero_point.item()), int(y.zero_point.item())


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


def of_runs(choose: Callable[[np.ndarray], Any], values: np.ndarray, runs: tuple[int, ...]) -> np.ndarray:
    """One number of each run of `values` (n, ...)."""
    return np.array([float(choose(part)) for part in np.split(values, np.cumsum(runs)[:-1])])


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
