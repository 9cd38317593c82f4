# SPDX-License-Identifier: Apache-2.0
"""The kernel calls that LowerDense leaves in `main`, as kernels that `schedules` can lay out for a core; and those of
CMSIS-NN that PartitionCmsisNN leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyrl_tvm.cmsis_nn import FullyConnected, Offloaded, Softmax

if TYPE_CHECKING:
    from tvm import IRModule

    from schedules import Kernel


def kernels_of(module: IRModule) -> tuple[Kernel | Offloaded, ...]:
    """The kernels of a lowered policy, in calling order."""
    from relay_passes.dataflow import bindings
    from relay_passes.lower_dense import call_arguments, call_name

    calls = [(call_name(value), call_arguments(value)[1:]) for _, value in bindings(module["main"]) if call_name(value)]
    return tuple(_kernel(name, [_value(arg) for arg in arguments]) for name, arguments in calls)


def _kernel(name: str, arguments: list[Any]) -> Kernel | Offloaded:
    from relay_passes import partition_cmsis_nn
    from schedules import kernels as k

    if name.startswith(partition_cmsis_nn.PREFIX):
        function = name.removeprefix(partition_cmsis_nn.PREFIX)
        kind = Softmax if function == partition_cmsis_nn.SOFTMAX else FullyConnected
        return kind(function, *arguments)
    if name in ("tinyrl.softmax", "tinyrl.softmax_float"):
        of_each_run = [tuple(map(int, values)) for values in arguments]
        return (k.SoftmaxCodes if name == "tinyrl.softmax" else k.Softmax)(*of_each_run)
    kinds: dict[str, Callable[..., Kernel]] = {
        "tinyrl.quantize": _quantize,
        "tinyrl.clamp": k.Clamp,
        "tinyrl.dense_int16": k.DenseInt16,
        "tinyrl.dense_codes_int16": k.DenseCodesOfInt16,
        "tinyrl.dense_codes": k.DenseCodes,
        "tinyrl.dense_float": k.DenseFloat,
    }
    if name in kinds:
        return kinds[name](*arguments)
    weight, bias, *answer = arguments
    head = k.HeadOfInt16 if name.endswith("_int16") else k.DenseHead
    return head(weight, bias, _answer(name.removesuffix("_int16"), answer))


def _quantize(inverse: np.ndarray, zero_point: np.ndarray, low: int, high: int) -> Kernel:
    from relay_passes.oracle import code_dtype
    from schedules import kernels as k

    dtype = code_dtype(high)
    kind = k.QuantizeInt16 if dtype == "int16" else k.Quantize
    return kind(inverse, zero_point if np.any(zero_point) else None, low, high, dtype)


def _answer(name: str, arguments: list[Any]) -> Any:
    from schedules import kernels as k

    if name == "tinyrl.head_decision":
        (runs,) = arguments
        return k.ArgMax(tuple(int(run) for run in runs)) if runs[0] else k.Positive()
    kinds = {"tinyrl.head_scale": k.ToFloat, "tinyrl.head_table": k.ThroughTable, "tinyrl.head_float": k.Activate}
    return kinds[name](*arguments)


def _value(argument: Any) -> Any:
    """An array, None for an empty one, a number or a string."""
    from relay_passes.dataflow import constant

    values = constant(argument)
    if values is not None:
        return values if values.size else None
    return argument.value if isinstance(argument.value, str) else int(argument.value)
