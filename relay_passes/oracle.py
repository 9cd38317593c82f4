# SPDX-License-Identifier: Apache-2.0
"""What an int8 policy must answer, by the law in `fixedpoint.py`: the judge of every kernel on every target.

It evaluates the graph as QuantizeInt8 and FoldLut leave it, before anything is lowered, laid out or scheduled.
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


def _quantize(obs: np.ndarray, inverse: np.ndarray, zero_point: np.ndarray, low: int, high: int) -> np.ndarray:
    narrow = high <= 127
    codes = fixedpoint.quantize_observation(obs, inverse, zero_point, bits=8 if narrow else 16)
    return np.clip(codes, low, high).astype(np.int8 if narrow else np.int32)


def _requantize(
    accumulator: np.ndarray, multiplier: np.ndarray, shift: int, zero_point: int, low: int, high: int
) -> np.ndarray:
    return _narrow(fixedpoint.requantize(accumulator, multiplier, -shift), zero_point, low, high)


def _shift(accumulator: np.ndarray, shift: int, zero_point: int, low: int, high: int) -> np.ndarray:
    return _narrow(fixedpoint.shift_right(accumulator.astype(np.int64), shift), zero_point, low, high)


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


LAW: dict[str, Callable[..., np.ndarray]] = {
    "tinyrl.quantize": _quantize,
    "tinyrl.shift": _shift,
    "tinyrl.requantize": _requantize,
    "tinyrl.lookup": fixedpoint.lookup,
    "tinyrl.interpolate": fixedpoint.interpolate,
    "tinyrl.softmax": _softmax,
}
