# SPDX-License-Identifier: Apache-2.0
"""Make a float policy one of 16-bit codes and 8-bit weights, after training, with ranges seen on calibration rows.

    obs -> matmul -> add -> relu -> matmul -> add -> tanh -> matmul -> add                                  becomes
    obs -> tinyrl.quantize -> matmul(int) -> add(int32) -> tinyrl.shift                             (ReLU is its clamp)
        -> matmul(int16) -> add(int32) -> tinyrl.requantize_int16 -> dequantize -> tanh -> quantize
        -> matmul(int16) -> add(int32) -> astype -> multiply

    x = scale * code, but for observations      weights of int8's range, one scale an output      bias int32

* A layer of ReLU, or of no function, has a scale an output, folded into the next layer's columns: 16 bits have room for
  such scales to differ, so they are those under which the 8-bit weights on both sides hurt the outputs least. Where they
  lie a power of two over the accumulators', a shift requantises, and one multiplier serves all, which CMSIS-NN asks for.
* Any other function is read at codes of one scale, by a multiplier an output; or by one, with weights of one scale, where
  CMSIS-NN is to compute the layer. It is a line between 257 values: `limit` says at which range that is the closest.
* A softmax reads codes of one scale a run. The last of them lies over the largest logit seen, and none is spent on what is
  so far below all rows' largest that it has no probability.
* Accumulators have 32 bits, and no code can make one overflow: where weights and codes could, the weights are coarser.

Why: steps of 1/65536 of a range in place of 1/256, for policies that act on small differences of large numbers.

Source: TFLite's 16x8 specification, for symmetric codes of zero point 0; `fixedpoint.requantize_int16` is the law.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Var
from tvm.relax import op

from .dataflow import shape_of
from .fixedpoint import SOFTMAX_REACH, quantize_multiplier, reduce_multiplier
from .network import Function, Layer, Network, Node, UnsupportedGraph
from .quantize_int8 import SHIFT_ERROR, WIDE_LIMIT, Calibrated, calibrated, error_of, of_runs
from .replay import Replay
from .write_int8 import Codes, far_zero, saturation, scalar

CODE = 32767
# A code reaches this many times as far as calibration saw; tables and actions do not, they are level out there or clipped.
HEADROOM = 2.0
# The largest accumulator, but for the rounding of its weights: as much again fits 32 bits.
REACH = 2**30
# Codes are computed in float32: an observation may lie so many codes from zero.
FARTHEST = 2**18
# The factors of a sum are at most this together: CMSIS-NN shifts a code by 15 bits to the left.
LARGEST_FACTORS = 2**15
# The largest multiplier has 15 bits; the smallest is at most so many times smaller.
LEAST_MULTIPLIERS = 128.0
# Where one cannot have the codes that its range asks for, the others have this many times fewer at most.
COARSEST = 16.0


@tvm.transform.module_pass(opt_level=0, name="QuantizeInt16")
class QuantizeInt16:
    """matmul -> add -> relu becomes matmul(int16) -> add(int32) -> tinyrl.shift.

    `rows` are calibration observations, one array (n_rows, n) a main input. `one_multiplier` writes only layers that
    arm_fully_connected_s16 has: 8-bit weights, one multiplier for all outputs.
    """

    def __init__(self, *rows: np.ndarray, one_multiplier: bool = False) -> None:
        self.rows, self.one_multiplier = rows, one_multiplier

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        return calibrated(module, self.rows, lambda network, replay: _Calibrated(network, replay, self.one_multiplier))


class _Calibrated(Calibrated):
    """Writes layers of 16-bit codes. What chooses the observations' scales and the action's is int8's."""

    dtype = "int16"
    wide_code = WIDE_LIMIT / HEADROOM
    largest_factors = LARGEST_FACTORS

    def __init__(self, network: Network, replay: Replay, one_multiplier: bool) -> None:
        super().__init__(network, replay, wide_first_layer=not one_multiplier)
        self.one_multiplier = one_multiplier

    def quantized_observations(self, obs: Var) -> Codes:
        """Codes about zero, or about the middle of what was seen where zero is none of it: the rounding of 8-bit weights
        is felt as far as codes lie from theirs."""
        finest, nearest = (self.wide_codes(CODE / HEADROOM, CODE, far, apart=1.0)[0] for far in (np.inf, FARTHEST))
        # one that lies too far from zero for its range has large weights a code: the others' need not be much smaller
        coarser = float(np.clip((finest / nearest).max(), 1, COARSEST))
        inverse, zero_point = self.wide_codes(CODE / HEADROOM / coarser, CODE, FARTHEST, apart=1.0)
        bounds, n = (-CODE - 1, CODE), len(inverse)
        codes = self.call("tinyrl.quantize", obs, inverse, zero_point.astype(np.int32), *bounds, dtype="int16", n=n)
        return Codes(codes, 1 / inverse.astype(np.float64), zero_point)

    def limit(self, function: Function, reach: float) -> float:
        return limit(function, reach)

    def weight_scale(self, weight: np.ndarray, zero_point: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return self.finest(weight, zero_point, bias, 127, CODE + 1)

    def finest(
        self, weight: np.ndarray, zero_point: np.ndarray, bias: np.ndarray, largest_weight: int, largest_code: int
    ) -> np.ndarray:
        """Scales (n_out,) of weights (n_in, n_out) a code, no finer than leaves every sum within 32 bits."""
        magnitude = np.abs(weight)
        held = np.abs(bias - np.broadcast_to(zero_point, len(weight)) @ weight)  # with what the zero points add
        scale = np.maximum(magnitude.max(0) / largest_weight, (magnitude.sum(0) * largest_code + held) / REACH)
        return np.where(scale > 0, scale, max(float(scale.max()), 1e-9))  # an output of zeros takes any scale

    def wide_layer(self, wide: Codes, layer: Layer) -> Codes:
        return self.coded(wide, layer, CODE, WIDE_LIMIT, "int32")

    def layer(self, codes: Codes, layer: Layer) -> Codes:
        return self.coded(codes, layer, 127, CODE + 1, "int16")

    def coded(self, codes: Codes, layer: Layer, largest_weight: int, largest_code: int, dtype: str) -> Codes:
        weight = layer.weight.astype(np.float64) * np.reshape(codes.scale, (-1, 1))
        finest = self.finest(weight, codes.zero_point, layer.bias, largest_weight, largest_code)
        function, n = layer.function, len(finest)
        seen = self.seen[function.source]
        if function.operators in ((), ("nn.relu",)):
            return self.scaled(codes, layer, weight, finest, dtype)
        # a value of 2^15 codes has an accumulator of 2^16 or more
        code_scale = max(limit(function, HEADROOM * float(seen.reach.max())) / CODE, 2 * float(finest.max()))
        bounds = (0, -CODE - 1, CODE)
        if dtype == "int32":  # 16-bit weights: those of one scale are fine enough, and a shift requantises
            shift = min(int(np.floor(np.log2(code_scale / finest.max()))), 15)
            accumulator = self.accumulate(codes, weight, layer.bias, np.full(n, code_scale / 2**shift), dtype)
            read_at = self.call("tinyrl.shift", accumulator, shift, *bounds, dtype="int16", n=n)
        else:
            scale = np.full(n, finest.max()) if self.one_multiplier else _near(finest, np.full(n, code_scale))
            accumulator = self.accumulate(codes, weight, layer.bias, scale, dtype)
            multiplier, shift = multipliers(scale / code_scale)
            read_at = self.call("tinyrl.requantize_int16", accumulator, multiplier, shift, *bounds, dtype="int16", n=n)
        return self.function_codes(Codes(read_at, np.asarray(code_scale), np.zeros(1)), function)

    def function_codes(self, codes: Codes, function: Function) -> Codes:
        code_scale = float(codes.scale)
        value = self.emit(op.dequantize(codes.var, scalar(code_scale), relax.const(np.int16(0)), out_dtype="float32"))
        value = self.function(value, function)
        step = float(np.abs(_entries(function, code_scale)).max()) / CODE or 1.0
        result = self.emit(op.quantize(value, scalar(step), relax.const(np.int16(0)), out_dtype="int16"))
        return Codes(result, np.asarray(step), np.zeros(1))

    def output(self, node: Node, floor: np.ndarray) -> Codes:
        """A merge's codes: twice as far as calibration saw, or as a function is read at."""
        function = node.function
        shown = function.operators in ((), ("nn.relu",))
        reach = HEADROOM * float(self.seen[function.result if shown else function.source].reach.max())
        if not shown:
            reach = limit(function, reach)
        return Codes(function.source, np.asarray(max(reach / CODE, float(floor.max())) or 1.0), np.zeros(1))

    def answer_codes(self, name: str, how: tuple[Any, ...], output: Codes, function: Function) -> Codes:
        relu = function.operators == ("nn.relu",)
        bounds, n = (0 if relu else -CODE - 1, CODE), shape_of(how[0])[1]
        codes = Codes(self.call(name, *how, *bounds, dtype="int16", n=n), output.scale, output.zero_point)
        return codes if relu or not function.body else self.function_codes(codes, function)

    def scaled(self, codes: Codes, layer: Layer, weight: np.ndarray, finest: np.ndarray, dtype: str) -> Codes:
        """A layer of ReLU or no function: a scale an output, and a shift, unless the outputs would feel that there is no
        multiplier for each."""
        seen, relu = self.seen[layer.function.source], bool(layer.function.body)
        reach = HEADROOM * (np.maximum(seen.high, 0.0) if relu else seen.reach)
        reach = np.where(reach > 0, reach, max(float(reach.max()), CODE * float(finest.min())))
        whole = self.is_whole(layer)
        shares = (0.0,) if whole else (1.0, 0.75, 0.5, 0.25, 0.0)
        together = [reach**own * reach.max() ** (1 - own) / CODE for own in shares]
        if whole:
            finest = np.full_like(finest, finest.max())
        shift = _shift(reach / (CODE * finest))
        shifted = [(finest, np.ldexp(finest, shift), shift)]
        for output in together:
            shift = int(np.clip(np.floor(np.log2((output / finest).min())), 0, 15))
            scale = np.maximum(np.ldexp(output, -shift), finest)
            shifted.append((scale, np.ldexp(scale, shift), shift))
        before = self.replay.before(layer)
        exact = self.replay.through(layer, before.rows, before.at)
        felt = [self.felt(codes, layer, scale, output, exact) for scale, output, _ in shifted]
        best = int(np.argmin(felt))
        bounds = (0, 0 if relu else -CODE - 1, CODE)
        if dtype != "int32" and not self.one_multiplier:
            multiplied = [(_near(finest, output), output) for output in np.maximum(together, 2 * finest)]
            errors = [self.felt(codes, layer, *scales, exact) for scales in multiplied]
            if SHIFT_ERROR * min(errors) < felt[best]:
                scale, output = multiplied[int(np.argmin(errors))]
                accumulator = self.accumulate(codes, weight, layer.bias, scale, dtype)
                multiplier, shift = multipliers(scale / output)
                result = self.call(
                    "tinyrl.requantize_int16", accumulator, multiplier, shift, *bounds, dtype="int16", n=len(finest)
                )
                return Codes(result, output[0] if whole else output, np.zeros(1))
        scale, output, shift = shifted[best]
        accumulator = self.accumulate(codes, weight, layer.bias, scale, dtype)
        result = self.call("tinyrl.shift", accumulator, shift, *bounds, dtype="int16", n=len(finest))
        return Codes(result, output[0] if whole else output, np.zeros(1))

    def likely(self, codes: Codes, layer: Layer, runs: tuple[int, ...]) -> relax.Expr:
        seen = self.seen[layer.function.source]
        least_leader = of_runs(lambda part: part.max(0).min(), seen.rows.T, runs)
        low = np.maximum(of_runs(np.min, seen.low, runs), least_leader - SOFTMAX_REACH)
        high = of_runs(np.max, seen.high, runs)
        top = high + (HEADROOM - 1) / 2 * (high - low)
        weight = layer.weight.astype(np.float64) * np.reshape(codes.scale, (-1, 1))
        bias = layer.bias - np.repeat(top, runs)
        coarsest = of_runs(np.max, self.weight_scale(weight, codes.zero_point, bias), runs)
        # twice what a multiplier needs, for what the codes' own zero adds to the bias
        scales: np.ndarray = np.maximum(HEADROOM * (high - low) / (2 * CODE), 4 * coarsest)
        if self.one_multiplier:  # codes have bits to spare for it, weights have not
            scales = coarsest * (scales / coarsest).max()
        output: np.ndarray = np.repeat(scales, runs)
        bias = bias + CODE * output
        finest = self.weight_scale(weight, codes.zero_point, bias)
        scale = (finest / output).max() * output if self.one_multiplier else _near(finest, output)
        multiplier, shift = multipliers(scale / output)
        accumulator = self.accumulate(codes, weight, bias, scale)
        how = (multiplier, shift, 0, -CODE - 1, CODE)
        logits = self.call("tinyrl.requantize_int16", accumulator, *how, dtype="int16", n=len(scale))
        return self.probabilities(logits, runs, list(scales))

    def felt(self, codes: Codes, layer: Layer, scale: np.ndarray, output: np.ndarray, exact: np.ndarray) -> float:
        """Error of the outputs for weights at `scale`, codes at `output`, and the next weights under them."""
        before = self.replay.before(layer)
        rows, at = before.rows, before.at
        step = scale / np.reshape(codes.scale, (-1, 1))
        far = far_zero(codes.zero_point, len(layer.weight)) * codes.scale
        weight = np.rint(layer.weight / step) * step
        values = (rows + far) @ weight - far @ layer.weight + layer.bias
        low = 0 if layer.function.body else -CODE - 1
        values = np.clip(np.rint(values / output), low, CODE)
        if self.is_whole(layer):
            return error_of(self.replay.outputs(layer, values * output, at), exact)

        def rounded(reader: Layer) -> np.ndarray:
            weight = reader.weight * output.reshape(-1, 1)
            step = self.weight_scale(weight, np.zeros(1), reader.bias)
            return np.rint(weight / step) * step

        return error_of(self.replay.outputs(layer, values, at, rounded), exact)


def multipliers(real: np.ndarray) -> tuple[np.ndarray, int]:
    """(multiplier (n,) int32 below 2^15, right shift) with real = multiplier * 2^-shift, for 0 < real <= 1/2.

    The largest as `reduce_multiplier` makes it of its 31 bits, so that one that serves all is CMSIS-NN's.
    """
    largest, left = quantize_multiplier(float(real.max()))
    shift = 15 - int(left)
    multiplier = np.minimum(np.rint(np.ldexp(real, shift)), reduce_multiplier(largest))
    return multiplier.astype(np.int32), shift


def limit(function: Function, largest: float) -> float:
    """The range, at most `largest`, at which 257 values with lines between them are closest to the function up to there."""
    points = largest * np.linspace(-1, 1, 4097)
    exact = function(points)
    if not np.isfinite(exact).all():
        raise UnsupportedGraph("an activation is not finite on the observations calibrated with; it has no int16 codes")
    widest = saturation(function, largest, 65535)
    best, least = largest, np.inf
    for reach in widest * np.linspace(1, 0.4, 25):
        knots = reach * np.arange(-128, 129) / 128
        error = float(np.abs(np.interp(points, knots, function(knots)) - exact).max())
        if error < least:
            best, least = float(reach), error
    return best or 1.0


def _shift(ratio: np.ndarray) -> int:
    """The least shift after which no output's codes end before its range: `ratio` are accumulators of it, a code each."""
    return int(np.clip(np.ceil(np.log2(max(float(ratio.max()), 1.0))), 0, 15))


def _near(scale: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Scales no so much finer than codes need that their multipliers, which have a shift in common, were a few bits."""
    return np.maximum(scale, output * (scale / output).max() / LEAST_MULTIPLIERS)


def _entries(function: Function, scale: float) -> np.ndarray:
    return function(256.0 * np.arange(-128, 129) * scale)
