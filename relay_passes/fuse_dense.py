# SPDX-License-Identifier: Apache-2.0
"""Make every linear stretch one dense layer.

    x -> subtract mean -> divide std -> matmul permute_dims(w) -> multiply s -> add t  becomes  x -> matmul W -> add b

    y = x @ W + b     x (1, k)   W (k, n)   b (n,)   y (1, n)

A stretch is a composition of affine maps of a tensor's elements; (W1, b1) then (W2, b2) is (W1 @ W2, b1 @ W2 + b2), an
elementwise map being a diagonal W.  It ends where the next operator is not affine, where a value has a second reader,
and where one dense would hold more parameters than two.  A stretch without a matmul becomes `multiply`, then `add`, of
constants.  What is computed from constants alone is folded on the way.

Why: one form for every later pass, and fewer multiplications.  Everything is computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import TupleGetItem, Var

from .dataflow import (
    LAYOUT_OPS,
    bindings,
    constant,
    definitions,
    dtype_of,
    op_name,
    rewrite_main,
    shape_of,
    use_counts,
)
from .evaluate import constants_of, evaluate_expr

SELECTIONS = ("permute_dims", "strided_slice", "take", "mean", "sum", "broadcast_to")
# A selection is looked at as a matrix while that is small; an image's is not.
LARGEST_SELECTION = 1 << 22


@tvm.transform.module_pass(opt_level=0, name="FuseDense")
class FuseDense:
    """affine -> matmul -> affine becomes matmul -> add."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        module = rewrite_main(module)  # what is dead must not count as a second reader
        constants = constants_of(module, np.float64)
        with np.errstate(all="ignore"):  # what does not stay finite is not fused
            affine = _affine_maps(module["main"], constants)

        def replace(var: Var, value: relax.Expr) -> relax.Expr | None:
            if var in constants:
                return relax.const(constants[var].astype(dtype_of(var)))
            return affine[var].write(var) if var in affine and op_name(value) != "concat" else None

        return rewrite_main(module, replace)


@dataclass(frozen=True)
class _Affine:
    """x @ weight + bias when `weight` is a matrix, x * weight + bias when it is a vector or a number; x flat.

    A free map only moves or averages elements: it holds no parameters and is written as it stands.
    """

    x: relax.Expr
    weight: np.ndarray
    bias: np.ndarray
    free: bool = False

    @property
    def is_matrix(self) -> bool:
        return self.weight.ndim == 2

    @property
    def is_dense(self) -> bool:
        return self.is_matrix and not self.free

    @property
    def is_scale(self) -> bool:
        return not self.is_matrix and not self.free

    @property
    def n_parameters(self) -> int:
        if self.free:
            return 0
        return self.weight.size + (self.weight.shape[1] if self.is_dense else self.bias.size)

    def then(self, outer: _Affine) -> _Affine:
        """The map that applies self, then `outer`."""
        free = self.free and outer.free
        if not outer.is_matrix:
            return _Affine(self.x, self.weight * outer.weight, self.bias * outer.weight + outer.bias, free)
        rows = np.broadcast_to(self.bias, len(outer.weight))
        diagonal = self.weight[:, np.newaxis] if self.weight.ndim else self.weight
        weight = self.weight @ outer.weight if self.is_matrix else diagonal * outer.weight
        return _Affine(self.x, weight, rows @ outer.weight + outer.bias, free)

    def fits_float32(self) -> bool:
        largest = max(np.abs(self.weight).max(initial=0), np.abs(self.bias).max(initial=0))
        return bool(largest <= np.finfo(np.float32).max)  # also false for NaN

    def write(self, var: Var) -> relax.Expr | None:
        """As operators that give `var`; None to leave it as it is."""
        if self.free:
            return self.x if not self.is_matrix and self.x.ty == var.ty else None
        n_in, n_out = _n_elements(self.x), _n_elements(var)
        expr = self.x if shape_of(self.x) == (1, n_in) else relax.op.reshape(self.x, (1, n_in))
        if self.is_matrix:
            expr = relax.op.matmul(expr, _const(self.weight))
            expr = relax.op.add(expr, _const(np.broadcast_to(self.bias, n_out)))
        else:
            expr = relax.op.multiply(expr, _const(self.weight)) if (self.weight != 1).any() else expr
            expr = relax.op.add(expr, _const(self.bias)) if (self.bias != 0).any() else expr
        return expr if shape_of(var) == (1, n_out) else relax.op.reshape(expr, shape_of(var))


def _affine_maps(main: relax.Function, constants: Mapping[Var, np.ndarray]) -> dict[Var, _Affine]:
    """Every affine variable, as a map of the variable its stretch begins with."""
    uses, values = use_counts(main), definitions(main)
    affine: dict[Var, _Affine] = {}
    for var, value in bindings(main):
        stretch = _concat(value, affine) if op_name(value) == "concat" else _step(var, value, values, constants)
        while stretch is not None and (inner := affine.get(stretch.x)) is not None:
            longer = _join(inner, stretch, only_reader=uses[stretch.x] == 1)
            if longer is None:
                break
            stretch = longer
        if stretch is not None:
            affine[var] = stretch
    return affine


def _join(inner: _Affine, outer: _Affine, only_reader: bool) -> _Affine | None:
    """Both in one, if that is a gain; `only_reader`: `outer` alone reads what `inner` computes."""
    if not only_reader and (inner.is_dense or not (outer.is_dense or inner.free)):
        return None  # the inner one is computed anyway; but a dense takes a scale in for nothing
    joined = inner.then(outer)
    if joined.is_dense and not (inner.is_dense or outer.is_dense):
        return None  # a selection and a scale are no matmul
    gain = not joined.is_dense or joined.n_parameters <= inner.n_parameters + outer.n_parameters
    return joined if gain and joined.fits_float32() else None


def _step(
    var: Var, value: relax.Expr, values: Mapping[Var, relax.Expr], constants: Mapping[Var, np.ndarray]
) -> _Affine | None:
    """The affine map one binding does; None when it is none."""
    if not isinstance(var.ty, relax.TensorType) or dtype_of(var) != "float32" or var in constants:
        return None
    name = op_name(value)
    if name == "matmul":
        x, weight = value.args[0], _known(value.args[1], constants)
        if weight is None or weight.ndim != 2 or not isinstance(x, Var) or shape_of(x) != (1, len(weight)):
            return None
        step = _Affine(x, weight, np.zeros(()))
        return step if step.fits_float32() else None
    if name in LAYOUT_OPS + SELECTIONS + ("astype",):
        return _selection(var, value, constants)
    source = values.get(value.tuple_value) if isinstance(value, TupleGetItem) and value.index == 0 else None
    if op_name(source) == "nn.batch_norm":
        return _batch_norm(var, source, constants)
    x, weight, bias = _elementwise(name, value, constants)
    return _diagonal(var, x, weight, bias)


def _concat(value: relax.Expr, affine: Mapping[Var, _Affine]) -> _Affine | None:
    """concat(x1 * s1 + t1, x2) as concat(x1, x2) * s + t; only a dense or a scale behind it makes use of that."""
    parts = list(value.args[0].fields)
    if any(len(shape_of(part)) != 2 or shape_of(part)[0] != 1 for part in parts) or int(value.attrs.axis) % 2 != 1:
        return None
    identity = np.ones(()), np.zeros(())
    xs, weights, biases = [], [], []
    for part in parts:
        scale = affine.get(part)
        scaled = scale is not None and scale.is_scale and shape_of(scale.x) == shape_of(part)
        x, weight, bias = (scale.x, scale.weight, scale.bias) if scale is not None and scaled else (part, *identity)
        xs.append(x)
        weights.append(np.broadcast_to(weight, shape_of(part)[1]))
        biases.append(np.broadcast_to(bias, shape_of(part)[1]))
    if all(x.same_as(part) for x, part in zip(xs, parts, strict=True)):
        return None
    joined = relax.BlockBuilder().normalize(relax.op.concat(xs, axis=1))
    return _Affine(joined, np.concatenate(weights), np.concatenate(biases))


def _elementwise(
    name: str, value: relax.Expr, constants: Mapping[Var, np.ndarray]
) -> tuple[relax.Expr | None, np.ndarray, np.ndarray]:
    """x, weight and bias of `x * weight + bias`, as arithmetic spells it; no x for any other operator."""
    zero, one = np.zeros(()), np.ones(())
    if name == "negative":
        return value.args[0], -one, zero
    if name not in ("add", "subtract", "multiply", "divide"):
        return None, one, zero
    (x, y), left, right = value.args, _known(value.args[0], constants), _known(value.args[1], constants)
    if right is not None:
        return {
            "add": (x, one, right),
            "subtract": (x, one, -right),
            "multiply": (x, right, zero),
            "divide": (x, one / right, zero),
        }[name]
    if left is not None and name != "divide":
        return {"add": (y, one, left), "subtract": (y, -one, left), "multiply": (y, left, zero)}[name]
    return None, one, zero


def _batch_norm(var: Var, call: relax.Expr, constants: Mapping[Var, np.ndarray]) -> _Affine | None:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, along the axis of the channels."""
    gamma, beta, mean, variance = (_known(arg, constants) for arg in call.args[1:])
    if call.attrs.training or gamma is None or beta is None or mean is None or variance is None:
        return None
    weight = gamma / np.sqrt(variance + call.attrs.epsilon)
    channels = [1] * len(shape_of(var))
    channels[int(call.attrs.axis)] = -1
    return _diagonal(var, call.args[0], weight.reshape(channels), (beta - mean * weight).reshape(channels))


def _diagonal(var: Var, x: relax.Expr | None, weight: np.ndarray, bias: np.ndarray) -> _Affine | None:
    """An elementwise map, if its constants do not broadcast x to another shape."""
    if not isinstance(x, Var) or x.ty != var.ty:
        return None
    step = _Affine(x, _per_feature(weight, shape_of(x)), _per_feature(bias, shape_of(x)))
    return step if step.fits_float32() else None


def _selection(var: Var, value: relax.Expr, constants: Mapping[Var, np.ndarray]) -> _Affine | None:
    """What only moves or averages elements: the identity, or the matrix read off the unit vectors."""
    x, *others = value.args
    if not isinstance(x, Var) or dtype_of(x) != "float32":
        return None
    n_in, n_out = _n_elements(x), _n_elements(var)
    if op_name(value) in (*LAYOUT_OPS, "astype") and n_in == n_out:
        return _Affine(x, np.ones(()), np.zeros(()), free=True)
    if n_in * n_out > LARGEST_SELECTION or any(isinstance(arg, Var) and arg not in constants for arg in others):
        return None
    known = {arg: constants[arg][np.newaxis] for arg in others if isinstance(arg, Var)}
    rows = evaluate_expr(value, {x: np.eye(n_in).reshape(n_in, *shape_of(x)), **known}, dtype=np.float64)
    return _Affine(x, rows.reshape(n_in, n_out), np.zeros(()), free=True)


def _known(expr: relax.Expr, constants: Mapping[Var, np.ndarray]) -> np.ndarray | None:
    array = constants.get(expr) if isinstance(expr, Var) else constant(expr)
    return None if array is None else array.astype(np.float64)


def _per_feature(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """As a number if all features share it, else as a vector of the flat features."""
    same = bool((array == array.flat[0]).all())
    return array.reshape(-1)[0] if same else np.broadcast_to(array, shape).reshape(-1)


def _n_elements(expr: relax.Expr) -> int:
    return math.prod(shape_of(expr))


def _const(array: np.ndarray) -> relax.Expr:
    return relax.const(np.array(array, np.float32, order="C"))
