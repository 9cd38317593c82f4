# SPDX-License-Identifier: Apache-2.0
"""How often the codes of an int8 or int16 policy end at a limit: what quantisation cut off, a layer or merge at a time.

    accumulators -> tinyrl.requantize(..., low, high)        at_low = #(code == low), at_high = #(code == high)
    codes, codes -> tinyrl.add(..., low, high)               likewise

It evaluates the graph that the oracle evaluates, so that what it counts is what happens on the device.
Not every limit is a loss: a ReLU is level below zero, a tanh at both ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tvm
from tvm.ir import Var

from .dataflow import bindings, op_name, shape_of
from .evaluate import evaluate
from .head import Continuous, read_head
from .lower_dense import call_arguments, call_name
from .network import Function, Map, read_network
from .oracle import LAW

FAR = np.array([-2e6, -1e6, 1e6, 2e6])  # a function that does not change out there is level
_OF_SUMS = ("tinyrl.shift", "tinyrl.requantize", "tinyrl.requantize_int16")
_OF_CODES = {"tinyrl.add": "sum", "tinyrl.multiply": "product"}

# a layer or merge, its limits, and whether its function is level below and above
_Place = tuple[str, int, int, bool, bool]


@dataclass(frozen=True)
class Clipped:
    """Codes of one layer or merge over the rows: of `n_codes`, how many are the least and the greatest there are; and whether
    its own function is level there, so that nothing is lost."""

    layer: str
    n_codes: int
    at_low: int
    at_high: int
    level_low: bool
    level_high: bool


def clipped(policy: tvm.IRModule, module: tvm.IRModule, *rows: np.ndarray) -> tuple[Clipped, ...]:
    """Of every layer and merge of `module` that writes codes, in order, for observations, one array (n_rows, ...) an input.
    `policy` is the float one."""
    counted: list[Clipped] = []
    quantising = dict(_quantising(policy, module))

    def watch(var: Var, codes: np.ndarray) -> None:
        if var in quantising:
            layer, low, high, level_low, level_high = quantising[var]
            at_low, at_high = (int(np.count_nonzero(codes == limit)) for limit in (low, high))
            counted.append(Clipped(layer, codes.size, at_low, at_high, level_low, level_high))

    evaluate(module, *rows, watch=watch, calls=LAW, dtype=np.float32)
    return tuple(counted)


def _quantising(policy: tvm.IRModule, module: tvm.IRModule) -> Iterator[tuple[Var, _Place]]:
    """Every variable that a quantising call writes: which and where."""
    network = read_network(policy)
    head = read_head(network)
    # a map is a table alone, which cuts nothing off
    functions = [node.function for node in network.nodes[:-1] if not isinstance(node, Map)]
    functions += [head.function] if isinstance(head, Continuous) else []
    remaining = iter(functions)
    layer = ""
    for var, value in bindings(module["main"]):
        if op_name(value) == "matmul":
            n_in, n_out = shape_of(value.args[1])
            layer = f"dense {n_in} -> {n_out}"
        name = call_name(value)
        if name == "tinyrl.quantize":
            yield var, (f"quantize {shape_of(var)[-1]}", *_limits(value), False, False)
        elif name in _OF_SUMS:
            yield var, (layer, *_limits(value), *_level(next(remaining, None)))
        elif name in _OF_CODES:
            merge = f"{_OF_CODES[name]} of {shape_of(var)[-1]}"
            yield var, (merge, *_limits(value), *_level(next(remaining, None)))


def _limits(value: tvm.ir.Call) -> tuple[int, int]:
    low, high = (int(argument.value) for argument in call_arguments(value)[-2:])
    return low, high


def _level(function: Function | None) -> tuple[bool, bool]:
    """Below and above. None is a decision, which reads its last layer's codes as they are."""
    if function is None:
        return False, False
    least, less, great, greatest = function(FAR)
    return bool(least == less), bool(great == greatest)
