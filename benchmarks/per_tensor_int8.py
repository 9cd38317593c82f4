# SPDX-License-Identifier: Apache-2.0
"""The int8 a library of vision kernels asks for: one scale and zero point a tensor, by the TFLite specification.

    observations    asymmetric, over what calibration saw           weights    symmetric, largest |w| is code 127
    ReLU            a clamp of the layer before it                  tanh       256 entries from codes to codes
    action          asymmetric, dequantised at the end

Why here: it is what our own quantiser is compared with, so it must not be our own quantiser.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from random_policies import Layer

from relay_passes import fixedpoint


@dataclass(frozen=True)
class Codes:
    """value = (code - zero_point) * scale"""

    scale: float
    zero_point: int

    @staticmethod
    def over(values: np.ndarray) -> Codes:
        """Covers `values` and zero."""
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        scale = max(high - low, 1e-6) / 255
        return Codes(scale, round(-128 - low / scale))


@dataclass(frozen=True, eq=False)
class Int8Layer:
    """weight (n_out, n_in) int8, bias (n_out,) int32 without the input's zero point in it; table (256,) int8 or None."""

    weight: np.ndarray
    bias: np.ndarray
    multiplier: int
    shift: int
    zero_point_in: int
    zero_point_out: int
    low: int
    table: np.ndarray | None

    @property
    def sums(self) -> np.ndarray:
        """The bias with the input's zero point in it: (n_out,) int32."""
        sums: np.ndarray = self.bias - self.zero_point_in * self.weight.astype(np.int32).sum(axis=1, dtype=np.int32)
        return sums

    @property
    def table_by_byte(self) -> np.ndarray | None:
        """Entry 0 for code 0, entry 255 for code -1: an index that costs no addition."""
        return None if self.table is None else np.roll(self.table, 128)


@dataclass(frozen=True, eq=False)
class Int8Policy:
    observation: Codes
    layers: list[Int8Layer]
    action: Codes

    @property
    def inverse_scale(self) -> np.float32:
        return np.float32(1 / self.observation.scale)

    @property
    def offset(self) -> np.float32:
        """Zero point, past -128, and a half: truncation rounds."""
        return np.float32(self.observation.zero_point + 128.5)

    def answers(self, rows: np.ndarray) -> np.ndarray:
        """What the policy must answer, bit for bit: (n, n_obs) float32 -> (n, n_actions) float32."""
        # in float64: compilers fuse the product and the sum on the device
        scaled = rows.astype(np.float64) * np.float64(self.inverse_scale) + np.float64(self.offset)
        codes = (np.clip(scaled, 0, 255).astype(np.int32) - 128).astype(np.int8)
        for layer in self.layers:
            accumulator = fixedpoint.dense_int8(codes, layer.weight, layer.sums)
            value = fixedpoint.requantize(accumulator, layer.multiplier, layer.shift)
            codes = fixedpoint.clamp_int8(value, layer.zero_point_out, low=layer.low)
            if layer.table is not None:
                codes = fixedpoint.lookup(codes, layer.table)
        answers: np.ndarray = (codes.astype(np.int32) - self.action.zero_point).astype(np.float32) * np.float32(
            self.action.scale
        )
        return answers


def quantized(layers: list[Layer], calibration: np.ndarray) -> Int8Policy:
    """`calibration` (n, n_obs) float32 says what every tensor holds."""
    observation = codes = Codes.over(calibration)
    values = calibration.astype(np.float64)
    found = []
    for layer in layers:
        sums = values @ layer.weight.T + layer.bias
        values = {"Relu": lambda x: np.maximum(x, 0), "Tanh": np.tanh, "": lambda x: x}[layer.activation](sums)
        dense_out = Codes.over(sums if layer.activation == "Tanh" else values)
        table, after = None, dense_out
        if layer.activation == "Tanh":
            after = Codes(1 / 128, 0)  # as TFLite fixes it
            entries = np.tanh((np.arange(-128, 128) - dense_out.zero_point) * dense_out.scale) / after.scale
            table = np.clip(np.round(entries), -128, 127).astype(np.int8)
        weight_scale = float(np.abs(layer.weight).max()) / 127
        multiplier, shift = fixedpoint.quantize_multiplier(codes.scale * weight_scale / dense_out.scale)
        found.append(
            Int8Layer(
                weight=np.round(layer.weight / weight_scale).astype(np.int8),
                bias=np.round(layer.bias / (codes.scale * weight_scale)).astype(np.int32),
                multiplier=int(multiplier),
                shift=int(shift),
                zero_point_in=codes.zero_point,
                zero_point_out=dense_out.zero_point,
                low=dense_out.zero_point if layer.activation == "Relu" else -128,
                table=table,
            )
        )
        codes = after
    return Int8Policy(observation, found, codes)
