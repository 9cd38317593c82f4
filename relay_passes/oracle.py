# SPDX-License-Identifier: Apache-2.0
"""What an int8 or int16 policy must answer, by the law in `fixedpoint.py`: the judge of every kernel on every target.

It evaluates the graph as QuantizeInt8 or QuantizeInt16, and FoldLut, leave it: before anything is lowered or scheduled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm

from . import fixedpoint
from .evaluate import evaluate


def answers(module: tvm.IRModule, *rows: np.ndarray) -> np.ndarray:
    """The actions (n_rows, n_actions) for observations, one array (n_rows, ...) an input; bit for bit the device's."""
    action = evaluate(module, *rows, calls=LAW, dtype=np.float32)
    assert isinstance(action, np.ndarray)  # PruneCritic leaves one output
    return action


def code_dtype(high: int) -> str:
    """Of observations' codes up to `high`: a wide first layer's have 14 bits and lie in words."""
    return "int8" if high <= 127 else "int16" if high == 2**15 - 1 else "int32"


def _quantize(obs: np.ndarray, inverse: np.ndarray, zero_point: np.ndarray, low: int, high: int) -> np.ndarray:
    dtype = code_dtype(high)
    codes = fixedpoint.quantize_observation(obs, inverse, zero_point, bits=8 if dtype == "int8" else 16)
    return np.clip(codes, low, high).astype(dtype)


def _requantize(
    accumulator: np.ndarray, multiplier: np.ndarray, shift: int, zero_point: int, low: int, high: int
) -> np.ndarray:
    return _narrow(fixedpoint.requantize(accumulator, multiplier, -shift), zero_point, low, high)


def _requantize_int16(
    accumulator: np.ndarray, multiplier: np.ndarray, shift: int, zero_point: int, low: int, high: int
) -> np.ndarray:
    value = fixedpoint.requantize_int16(accumulator, multiplier, 15 - shift)
    return np.clip(value.astype(np.int64) + zero_point, low, high).astype(np.int16)


def _shift(accumulator: np.ndarray, shift: int, zero_point: int, low: int, high: int) -> np.ndarray:
    return _narrow(fixedpoint.shift_right(accumulator.astype(np.int64), shift), zero_point, low, high)


def _add(
    x: np.ndarray,
    y: np.ndarray,
    zero_x: int,
    zero_y: int,
    factor_x: int,
    factor_y: int,
    shift: int,
    zero_point: int,
    low: int,
    high: int,
) -> np.ndarray:
    total = fixedpoint.add_codes(x, y, (zero_x, zero_y), (factor_x, factor_y), shift)
    return _narrow(total, zero_point, low, high)


def _multiply(
    x: np.ndarray,
    y: np.ndarray,
    zero_x: int,
    zero_y: int,
    multiplier: int,
    shift: int,
    zero_point: int,
    low: int,
    high: int,
) -> np.ndarray:
    product = (x.astype(np.int32) - zero_x) * (y.astype(np.int32) - zero_y)
    return _narrow(fixedpoint.requantize(product, multiplier, -shift), zero_point, low, high)


def _narrow(values: np.ndarray, zero_point: int, low: int, high: int) -> np.ndarray:
    return np.clip(values.astype(np.int64) + zero_point, low, high).astype(np.int8 if high <= 127 else np.int16)


def _softmax(
    codes: np.ndarray, runs: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, least_difference: np.ndarray
) -> np.ndarray:
    """Probabilities, of which every code is one of 256 steps."""
    parts = np.split(codes, np.cumsum(runs)[:-1], axis=-1)
    scaling = zip(multiplier, shift, least_difference, strict=True)
    steps = [fixedpoint.softmax_int8(part, *map(int, how)) for part, how in zip(parts, scaling, strict=True)]
    return ((np.concatenate(steps, axis=-1).astype(np.int32) + 128) / 256).astype(np.float32)


def _softmax_int16(
    codes: np.ndarray,
    runs: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    powers: np.ndarray,
    inverses: np.ndarray,
) -> np.ndarray:
    """Probabilities, of which every code is one of 32768 steps."""
    parts = np.split(codes, np.cumsum(runs)[:-1], axis=-1)
    how = zip(parts, multiplier, shift, strict=True)
    steps = [fixedpoint.softmax_int16(part, int(by), int(left), powers, inverses) for part, by, left in how]
    return (np.concatenate(steps, axis=-1) / 32768).astype(np.float32)


LAW: dict[str, Callable[..., np.ndarray]] = {
    "tinyrl.quantize": _quantize,
    "tinyrl.shift": _shift,
    "tinyrl.requantize": _requantize,
    "tinyrl.requantize_int16": _requantize_int16,
    "tinyrl.add": _add,
    "tinyrl.multiply": _multiply,
    "tinyrl.lookup": fixedpoint.lookup,
    "tinyrl.interpolate": fixedpoint.interpolate,
    "tinyrl.softmax": _softmax,
    "tinyrl.softmax_int16": _softmax_int16,
}
