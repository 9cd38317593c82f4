# SPDX-License-Identifier: Apache-2.0
"""The kernel calls that LowerDense leaves in `main`, as kernels that `schedules` can lay out for a core; and those of
CMSIS-NN that PartitionCmsisNN leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyrl_tvm.cmsis_nn import Elementwise, FullyConnected, Offloaded, SoftmaxInt8, SoftmaxInt16

if TYPE_CHECKING:
    from tvm import IRModule

    from schedules import Kernel


def kernels_of(module: IRModule) -> tuple[Kernel | Offloaded, ...]:
    """The kernels of a lowered policy, in calling order."""
    from tvm.ir import Tuple, Var

    from relay_passes.dataflow import bindings, shape_of
    from relay_passes.lower_dense import call_arguments, call_name

    calls = [
        (call_name(value), shape_of(var)[-1], call_arguments(value))
        for var, value in bindings(module["main"])
        if call_name(value)
    ]
    return tuple(
        _kernel(name, n, [_value(arg) for arg in arguments if not isinstance(arg, Tuple | Var)])
        for name, n, arguments in calls
    )


def sources_of(module: IRModule) -> tuple[tuple[int, ...], ...]:
    """The kernels whose answers each kernel of a lowered policy reads, by their places in calling order; -1 stands for the
    observations."""
    from tvm.ir import Tuple, Var

    from relay_passes.dataflow import bindings
    from relay_passes.lower_dense import call_arguments, call_name

    calls = [(var, call_arguments(value)) for var, value in bindings(module["main"]) if call_name(value)]
    places = {var: index for index, (var, _) in enumerate(calls)}
    return tuple(
        tuple(places.get(arg, -1) if isinstance(arg, Var) else -1 for arg in arguments if isinstance(arg, Tuple | Var))
        for _, arguments in calls
    )


def _kernel(name: str, n: int, arguments: list[Any]) -> Kernel | Offloaded:
    from relay_passes import partition_cmsis_nn
    from schedules import elementwise
    from schedules import kernels as k

    if name.startswith(partition_cmsis_nn.PREFIX):
        function = name.removeprefix(partition_cmsis_nn.PREFIX)
        if function in partition_cmsis_nn.ELEMENTWISE:
            operator, dtype = partition_cmsis_nn.ELEMENTWISE[function]
            computed = _elementwise(operator, dtype, n, arguments)
            assert isinstance(computed, elementwise.AddCodes | elementwise.MultiplyCodes)
            return Elementwise(function, computed)
        kinds_of_call = {partition_cmsis_nn.SOFTMAX: SoftmaxInt8, partition_cmsis_nn.SOFTMAX_INT16: SoftmaxInt16}
        return kinds_of_call.get(function, FullyConnected)(function, *arguments)
    if name in ("tinyrl.softmax", "tinyrl.softmax_int16", "tinyrl.softmax_float"):
        kinds_of_softmax = {"softmax": k.SoftmaxCodes, "softmax_int16": k.SoftmaxInt16, "softmax_float": k.Softmax}
        # what there is one of a run, and tables of 16 bits
        how = [tuple(map(int, values)) if values.dtype == np.int32 else values for values in arguments]
        return kinds_of_softmax[name.removeprefix("tinyrl.")](*how)
    operator, _, of = name.removeprefix("tinyrl.").partition("_")
    if operator in ("add", "subtract", "multiply", "map"):
        return _elementwise(operator, of, n, arguments)
    kinds: dict[str, Callable[..., Kernel]] = {
        "tinyrl.quantize": _quantize,
        "tinyrl.clamp": k.Clamp,
        "tinyrl.dense_int16": k.DenseInt16,
        "tinyrl.dense_codes": k.DenseCodes,
        "tinyrl.dense_float": k.DenseFloat,
    }
    if name in kinds:
        return kinds[name](*arguments)
    weight, bias, *answer = arguments
    head = k.HeadOfInt16 if name.endswith("_int16") else k.DenseHead
    return head(weight, bias, _answer(name.removesuffix("_int16"), answer))


def _elementwise(operator: str, of: str, n: int, arguments: list[Any]) -> Kernel:
    from schedules import elementwise as k

    if of == "float":
        (activation,) = arguments
        return k.MapFloat(n, activation) if operator == "map" else k.MergeFloat(n, operator, activation)
    *how, table = arguments
    dtype = "int16" if of == "int16" else "int8"
    if operator == "map":
        return k.MapCodes(n, dtype, table)
    zero_x, zero_y, *how = how
    if operator == "multiply":
        return k.MultiplyCodes(n, dtype, table, (zero_x, zero_y), *how)
    factor_x, factor_y, *how = how
    return k.AddCodes(n, dtype, table, (zero_x, zero_y), (factor_x, factor_y), *how)


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
