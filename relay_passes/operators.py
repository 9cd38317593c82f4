# SPDX-License-Identifier: Apache-2.0
"""What each Relax operator means, in numpy: two tables, and the functions too long for a line of them.

Every tensor has one axis more than the module says, in front: the rows (see evaluate.py); an axis named in a call does
not count it.  Source: TVM's operator definitions; ONNX's where TVM's leave a choice (round: ties go to even).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir import Call

from .dataflow import dtype_of, shape_of

Value = Any  # an array with the rows in front, a tuple of such, or a Python number, string or shape

_erf = np.vectorize(math.erf, otypes=[np.float64])


def align(args: list[Value], rank: int) -> list[Value]:
    """Broadcasting counts axes from the right, but the rows must stay in front."""
    return [
        arg.reshape(arg.shape[0], *(1,) * (rank + 1 - arg.ndim), *arg.shape[1:]) if isinstance(arg, np.ndarray) else arg
        for arg in args
    ]


def _axis(axis: Any, rank: int) -> int:
    """An axis of the module's tensor, as an axis of the value with its rows in front."""
    return int(axis) % rank + 1


def _axes(axes: Any, rank: int) -> tuple[int, ...]:
    return tuple(_axis(axis, rank) for axis in (range(rank) if axes is None else axes))


def _divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if np.issubdtype(x.dtype, np.floating):
        return x / y
    return np.trunc(x / y).astype(x.dtype)  # integers divide as in C


def _matmul(call: Call, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    out_dtype = np.dtype(dtype_of(call))
    integer = np.issubdtype(out_dtype, np.integer)
    if integer:
        # Below 2**53 float64 sums integers exactly, many times faster than numpy's integer product.
        exact = np.float64 if _magnitude(x) * _magnitude(y) * x.shape[-1] < 2**53 else np.dtype(object)
        x, y = x.astype(exact), y.astype(exact)
    x = x[:, np.newaxis] if x.ndim == 2 else x  # a vector is a row on the left, a column on the right
    y = y[..., np.newaxis] if y.ndim == 2 else y
    x, y = align([x, y], max(x.ndim, y.ndim) - 1)
    # One (n_rows, k) @ (k, n) product instead of n_rows products of one row.
    product = x[:, 0] @ y[0] if x.ndim == 3 and x.shape[1] == len(y) == 1 else np.matmul(x, y)
    product = product.reshape(max(len(x), len(y)), *shape_of(call))
    if integer:
        limits = np.iinfo(out_dtype)
        if product.size and (product.min() < limits.min or product.max() > limits.max):
            raise OverflowError(
                f"a matmul overflows {out_dtype}: its sums reach [{product.min():.0f}, {product.max():.0f}]"
            )
    return product.astype(out_dtype) if integer else product


def _magnitude(x: np.ndarray) -> float:
    return max(-float(x.min(initial=0)), float(x.max(initial=0)))


def _softmax(call: Call, x: np.ndarray) -> np.ndarray:
    axis = _axis(call.attrs.axis, x.ndim - 1)
    exp = np.exp(x - x.max(axis, keepdims=True))
    return exp / exp.sum(axis, keepdims=True)


def _log_softmax(call: Call, x: np.ndarray) -> np.ndarray:
    axis = _axis(call.attrs.axis, x.ndim - 1)
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def _reduce(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda call, x: function(x, axis=_axes(call.attrs.axis, x.ndim - 1), keepdims=bool(call.attrs.keepdims))


def _arg_reduce(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def evaluate_one(call: Call, x: np.ndarray) -> np.ndarray:
        keepdims = bool(call.attrs.keepdims)
        if call.attrs.axis is None:
            x = x.reshape(len(x), -1)
            return function(x, axis=1).astype(dtype_of(call)).reshape(len(x), *shape_of(call))
        return function(x, axis=_axis(call.attrs.axis, x.ndim - 1), keepdims=keepdims).astype(dtype_of(call))

    return evaluate_one


def _reshape(call: Call, x: np.ndarray, *_: Value) -> np.ndarray:
    return x.reshape(len(x), *shape_of(call))


def _concat(call: Call, fields: tuple[np.ndarray, ...]) -> np.ndarray:
    n_rows = max(len(field) for field in fields)
    fields = tuple(np.broadcast_to(field, (n_rows, *field.shape[1:])) for field in fields)
    return np.concatenate(fields, axis=_axis(call.attrs.axis, fields[0].ndim - 1))


def _stack(call: Call, fields: tuple[np.ndarray, ...]) -> np.ndarray:
    n_rows = max(len(field) for field in fields)
    fields = tuple(np.broadcast_to(field, (n_rows, *field.shape[1:])) for field in fields)
    return np.stack(fields, axis=_axis(call.attrs.axis, fields[0].ndim))


def _split(call: Call, x: np.ndarray) -> tuple[np.ndarray, ...]:
    sections = call.attrs.indices_or_sections
    at = [int(i) for i in sections] if not isinstance(sections, int | tirx.IntImm) else int(sections)
    return tuple(np.split(x, at, axis=_axis(call.attrs.axis, x.ndim - 1)))


def _strided_slice(call: Call, x: np.ndarray, axes: Value, *bounds: Value) -> np.ndarray:
    begin, end, strides = (*bounds, None)[:3]
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        step = int(strides[i]) if strides is not None else 1
        stop: int | None = int(end[i])
        if step < 0 and stop is not None and stop < -x.shape[_axis(axis, x.ndim - 1)]:
            stop = None
        index[_axis(axis, x.ndim - 1)] = slice(int(begin[i]), stop, step)
    return x[tuple(index)]


def _take(call: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    if len(indices) != 1:
        raise ValueError("cannot evaluate 'take' with computed indices")
    axis = 1 if call.attrs.axis is None else _axis(call.attrs.axis, x.ndim - 1)
    return np.take(x, indices[0], axis=axis, mode="wrap")  # a negative index counts from the end


def _gather_elements(call: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.take_along_axis(x, indices, axis=_axis(call.attrs.axis, x.ndim - 1))


def _one_hot(call: Call, indices: np.ndarray, on: Value, off: Value) -> np.ndarray:
    depth, axis = int(call.attrs.depth), _axis(call.attrs.axis, indices.ndim)
    hot = np.moveaxis(indices[..., np.newaxis] == np.arange(depth), -1, axis)
    return np.where(hot, np.asarray(on), np.asarray(off)).astype(dtype_of(call))


def _layer_norm(call: Call, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    axes = _axes(call.attrs.axes, x.ndim - 1)
    centred = x - x.mean(axes, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + float(call.attrs.epsilon))
    gamma, beta = align([gamma, beta], x.ndim - 1)
    return unit * gamma + beta


def _batch_norm(call: Call, x: np.ndarray, *parameters: np.ndarray) -> tuple[np.ndarray, ...]:
    if call.attrs.training:
        raise ValueError("cannot evaluate 'nn.batch_norm' in training mode")
    gamma, beta, mean, variance = (_per_channel(call, parameter, x.ndim - 1) for parameter in parameters)
    y = (x - mean) / np.sqrt(variance + call.attrs.epsilon) * gamma + beta
    return y, parameters[2], parameters[3]


def _per_channel(call: Call, parameter: np.ndarray, rank: int) -> np.ndarray:
    if parameter.ndim <= 1:
        return parameter
    shape = [1] * (rank + 1)
    shape[_axis(call.attrs.axis, rank)] = -1
    return parameter.reshape(shape)


def _quantize(call: Call, x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    limits = np.iinfo(dtype_of(call))
    scale, zero_point = (_per_channel(call, parameter, x.ndim - 1) for parameter in (scale, zero_point))
    return np.clip(np.round(x / scale) + zero_point, limits.min, limits.max).astype(dtype_of(call))


def _dequantize(call: Call, x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    scale, zero_point = (_per_channel(call, parameter, x.ndim - 1) for parameter in (scale, zero_point))
    return (x.astype(np.int64) - zero_point.astype(np.int64)) * scale


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# Functions of one element, or of elements at the same place.
ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": _divide, "power": np.power,
    "floor_divide": np.floor_divide, "floor_mod": np.mod, "mod": np.fmod, "maximum": np.maximum, "minimum": np.minimum,
    "negative": np.negative, "abs": np.abs, "sign": np.sign, "square": np.square, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "exp": np.exp, "log": np.log, "erf": _erf,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "atan": np.arctan, "asin": np.arcsin, "acos": np.arccos,
    "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "sigmoid": _sigmoid,
    "round": np.round, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc,
    "isnan": np.isnan, "isinf": np.isinf, "isfinite": np.isfinite,
    "equal": np.equal, "not_equal": np.not_equal, "less": np.less, "less_equal": np.less_equal,
    "greater": np.greater, "greater_equal": np.greater_equal, "logical_not": np.logical_not,
    "logical_and": np.logical_and, "logical_or": np.logical_or, "logical_xor": np.logical_xor,
    "where": np.where,
    "nn.relu": lambda x: np.maximum(x, 0), "nn.silu": lambda x: x * _sigmoid(x), "nn.gelu": _gelu,
    "nn.gelu_tanh": _gelu_tanh,
}  # fmt: skip

# Everything that looks at shapes, axes or attributes.
OPERATORS: dict[str, Callable[..., Value]] = {
    "matmul": _matmul,
    "astype": lambda call, x: x.astype(dtype_of(call)),
    "clip": lambda call, x, low, high: np.clip(x, x.dtype.type(low), x.dtype.type(high)),
    "nn.leakyrelu": lambda call, x: np.where(x > 0, x, x * call.attrs.alpha),
    "nn.softplus": lambda call, x: np.logaddexp(0, x * call.attrs.beta) / call.attrs.beta,
    "nn.selu": lambda call, x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "nn.prelu": lambda call, x, slope: np.where(x > 0, x, x * _per_channel(call, slope, x.ndim - 1)),
    "nn.softmax": _softmax, "nn.log_softmax": _log_softmax,
    "nn.layer_norm": _layer_norm, "nn.batch_norm": _batch_norm,
    "max": _reduce(np.max), "min": _reduce(np.min), "sum": _reduce(np.sum), "mean": _reduce(np.mean),
    "prod": _reduce(np.prod), "variance": _reduce(np.var), "std": _reduce(np.std),
    "argmax": _arg_reduce(np.argmax), "argmin": _arg_reduce(np.argmin),
    "reshape": _reshape, "flatten": _reshape, "nn.batch_flatten": _reshape, "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_to": lambda call, x, shape: np.broadcast_to(align([x], len(shape))[0], (len(x), *shape)),
    "permute_dims": lambda call, x: np.transpose(
        x, (0, *(_axes(call.attrs.axes, x.ndim - 1) if call.attrs.axes is not None else range(x.ndim - 1, 0, -1)))
    ),
    "concat": _concat, "stack": _stack, "split": _split, "strided_slice": _strided_slice,
    "take": _take, "gather_elements": _gather_elements, "one_hot": _one_hot,
    "shape_of": lambda call, x: tuple(x.shape[1:]),
    "shape_to_tensor": lambda call, shape: np.array(shape, np.int64)[np.newaxis],
    "zeros": lambda call, shape: np.zeros((1, *shape), dtype_of(call)),
    "ones": lambda call, shape: np.ones((1, *shape), dtype_of(call)),
    "full": lambda call, shape, value: np.broadcast_to(value, (1, *shape)).astype(dtype_of(call)),
    "quantize": _quantize, "dequantize": _dequantize,
}  # fmt: skip
