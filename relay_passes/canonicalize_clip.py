# SPDX-License-Identifier: Apache-2.0
"""Give every clamp one form.

    call_tir(maximum, x, where(isnan(lo), -inf, lo)) -> call_tir(minimum, ., where(isnan(hi), inf, hi))
    max(stack(x, lo), axis=0)                        -> min(stack(., hi), axis=0)
    maximum(x, lo)                                   -> minimum(., hi)
                                                                                     become   clip(x, lo, hi)

`max(x, 0)` alone becomes `nn.relu(x)`, another lone bound a clip whose other end is infinite, clamps of clamps one.
Bounds that differ between features stay `maximum(x, (1, n))` and `minimum(., (1, n))`.

Why: TVM's ONNX importer writes `Clip` the first way (its bounds are tensors, and NaN means no bound) and `Max`/`Min`
the second; later passes should see one clamp, not six spellings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Var

from .dataflow import bindings, constant, dtype_of, op_name, rewrite_main, shape_of, use_counts
from .evaluate import constants_of, tir_bound

Bound = np.ndarray | np.floating[Any]


@dataclass(frozen=True)
class _Clamp:
    """low <= y <= high for y computed from `x`; scalars, or arrays of x's shape."""

    x: Var
    low: Bound
    high: Bound


@tvm.transform.module_pass(opt_level=0, name="CanonicalizeClip")
class CanonicalizeClip:
    """maximum -> minimum, however spelt, becomes clip."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        clamps = _clamps(module)
        return rewrite_main(module, lambda var, _: _write(clamps[var]) if var in clamps else None)


def _clamps(module: tvm.IRModule) -> dict[Var, _Clamp]:
    """Every variable of `main` that is a clamp, with the clamps it alone reads merged."""
    known = constants_of(module)
    values, uses = dict(bindings(module["main"])), use_counts(module["main"])
    clamps: dict[Var, _Clamp] = {}
    for var, value in values.items():
        step = _step(module, var, value, values, known)
        if step is None:
            continue
        inner = _Clamp(step.x, np.float32(-np.inf), np.float32(np.inf))
        if uses[step.x] == 1:  # else the clamp is there anyway, and all who read it should read the same
            inner = clamps.get(step.x, inner)
        # max(min(max(x, low), high), l) = min(max(x, max(low, l)), max(high, l)), and so for the other end.
        clamps[var] = _Clamp(
            inner.x,
            np.minimum(np.maximum(inner.low, step.low), step.high),
            np.minimum(np.maximum(inner.high, step.low), step.high),
        )
    return clamps


def _step(
    module: tvm.IRModule, var: Var, value: relax.Expr, values: dict[Var, relax.Expr], known: dict[Var, np.ndarray]
) -> _Clamp | None:
    """The clamp this one binding does."""
    if not isinstance(var.ty, relax.TensorType) or dtype_of(var) != "float32":
        return None
    if op_name(value) == "clip":
        x, low, high = value.args
        return _Clamp(x, np.float32(low.value), np.float32(high.value))
    kind, args = _extremum(module, value, values)
    for x, expr in (args, args[::-1]) if len(args) == 2 else ():
        bound = known.get(expr) if isinstance(expr, Var) else constant(expr)
        if bound is None or np.isnan(bound).any() or x in known or not isinstance(x, Var):
            continue
        if shape_of(x) == shape_of(var):
            same = bool((bound == bound.flat[0]).all())
            end: Bound = np.float32(bound.flat[0]) if same else bound.astype(np.float32)
            infinity = np.float32(np.inf)
            return _Clamp(x, end, infinity) if kind == "maximum" else _Clamp(x, -infinity, end)
    return None


def _extremum(
    module: tvm.IRModule, value: relax.Expr, values: dict[Var, relax.Expr]
) -> tuple[str, tuple[relax.Expr, ...]]:
    """`maximum` or `minimum` and what it is taken of; nothing for any other operator."""
    name = op_name(value)
    if name in ("maximum", "minimum"):
        return name, tuple(value.args)
    if name == "nn.relu":
        return "maximum", (value.args[0], relax.const(0.0))
    if name == "call_tir" and (found := tir_bound(module, value.args[0])) is not None:
        kind, bound = found
        return kind, (*value.args[1].fields, *([] if bound is None else [relax.const(bound, "float32")]))
    if name in ("max", "min") and list(value.attrs.axis or []) == [0] and not value.attrs.keepdims:
        stack: relax.Expr = values.get(value.args[0])
        if op_name(stack) == "stack" and stack.attrs.axis == 0:
            return f"{name}imum", tuple(_broadcast_from(field, values) for field in stack.args[0].fields)
    return "", ()


def _broadcast_from(field: relax.Expr, values: dict[Var, relax.Expr]) -> relax.Expr:
    """The importer broadcasts everything it stacks, even to the shape it has."""
    value: relax.Expr = values.get(field) if isinstance(field, Var) else None
    return value.args[0] if op_name(value) == "broadcast_to" else field


def _write(clamp: _Clamp) -> relax.Expr:
    low, high = clamp.low, clamp.high
    if np.ndim(low) == 0 and np.ndim(high) == 0:
        if np.isneginf(low) and np.isposinf(high):
            return clamp.x
        if low == 0 and np.isposinf(high):
            return relax.op.nn.relu(clamp.x)
        return relax.op.clip(clamp.x, float(low), float(high))
    expr = clamp.x
    if not np.isneginf(low).all():
        expr = relax.op.maximum(expr, relax.const(np.broadcast_to(low, shape_of(clamp.x)).copy(), "float32"))
    if not np.isposinf(high).all():
        expr = relax.op.minimum(expr, relax.const(np.broadcast_to(high, shape_of(clamp.x)).copy(), "float32"))
    return expr
