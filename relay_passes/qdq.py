# SPDX-License-Identifier: Apache-2.0
"""A model quantised by somebody else: `dequantize(quantize(x))`, a pair, says which int8 codes a tensor has.

    code = saturate(round(x / scale) + zero_point)        x = scale * (code - zero_point)

Two things are read off a pair: the `Grid` of its codes, for the integer policy, and the ends of their range. A pair without
its rounding is a clip to that range: of a ReLU, a quantiser often leaves nothing else.

Source: ONNX Runtime's static quantiser, python/tools/quantization/qdq_quantizer.py; uint8 codes are int8 codes plus 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Var

from .dataflow import bindings, constant, definitions, dtype_of, op_name, variables
from .network import UnsupportedGraph


@dataclass(frozen=True)
class Grid:
    """int8 codes of a tensor: x = scale * (code - zero_point)."""

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not np.finfo(np.float32).tiny <= self.scale < 2.0**90 or not -128 <= self.zero_point <= 127:
            raise UnsupportedGraph(
                f"codes of scale {self.scale:g} and zero point {self.zero_point}, counted as int8; "
                "a scale is a positive number that leaves float32 room, a zero point a code"
            )

    @property
    def ends(self) -> tuple[float, float]:
        """What the least and the greatest code stand for."""
        return self.scale * (-128 - self.zero_point), self.scale * (127 - self.zero_point)

    def codes(self, values: np.ndarray | float) -> np.ndarray:
        """As ONNX's QuantizeLinear: in float32, and ties go to even."""
        with np.errstate(over="ignore"):
            steps = np.asarray(values, np.float32) / np.float32(self.scale)
        return np.clip(np.rint(steps) + self.zero_point, -128, 127)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """As ONNX's DequantizeLinear, in float32."""
        return np.float32(self.scale) * np.asarray(codes - self.zero_point, np.float32)


@dataclass(frozen=True)
class Pair:
    """dequantize(quantize(source)), of which `grid` are the codes."""

    source: Var
    grid: Grid


def is_quantized(module: tvm.IRModule) -> bool:
    """Whether tensors of `main` have codes; weights alone do not make an integer policy."""
    return any(op_name(value) == "quantize" for _, value in bindings(module["main"]))


def pairs(module: tvm.IRModule) -> dict[Var, Pair]:
    """Every pair of `main`, by the variable of its dequantize. Raises UnsupportedGraph where codes are read otherwise."""
    values = definitions(module["main"])
    found = {}
    for var, value in values.items():
        codes = [arg for arg in variables(value) if op_name(values.get(arg)) == "quantize"]
        if op_name(value) == "dequantize" and isinstance(value.args[0], Var):
            if not codes:
                raise UnsupportedGraph(
                    "a DequantizeLinear reads codes that no QuantizeLinear made; observations are quantised in the model"
                )
            written, read = _grid(values[codes[0]]), _grid(value)
            if written != read:
                raise UnsupportedGraph(f"codes are written at {written} and read at {read}; they must be the same")
            found[var] = Pair(values[codes[0]].args[0], read)
        elif codes:
            name = op_name(value) or "the output"
            raise UnsupportedGraph(
                f"'{name}' reads int8 codes; between QuantizeLinear and it a DequantizeLinear is missing"
            )
    if op_name(values.get(module["main"].body.body)) == "quantize":
        raise UnsupportedGraph("the action is int8 codes; leave the DequantizeLinear behind it in the model")
    return found


def _grid(value: relax.Expr) -> Grid:
    scale, zero_point = (constant(arg) for arg in value.args[1:3])
    dtype = dtype_of(value) if op_name(value) == "quantize" else dtype_of(value.args[0])
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1:
        raise UnsupportedGraph(
            "activations are quantised per channel, or at a computed scale; quantise them per tensor"
        )
    if dtype not in ("int8", "uint8"):
        raise UnsupportedGraph(f"activations are quantised to {dtype}; have: int8, uint8")
    return Grid(float(scale.reshape(())), int(zero_point.reshape(())) - (128 if dtype == "uint8" else 0))
