# SPDX-License-Identifier: Apache-2.0
"""Evaluate `main` in numpy, for many observations at once.

    main(obs: (1, n_obs)) -> (1, n_actions)   and   rows (n_rows, n_obs)   give   (n_rows, n_actions)

Every value carries one axis more than the module says, in front: the rows.  Constants have length 1 there, and
broadcast.  So each operator does to each row exactly what the module does to its batch of one, reshapes included.

Why: calibration needs the value of every variable for every row (`watch`), the integer passes need an oracle that
is not the compiler under test, and the pass tests need values before and after.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import Call, GenericConst, GlobalVar, Tuple, TupleGetItem, Var

from .dataflow import bindings, dtype_of, op_name, shape_of, variables
from .operators import ELEMENTWISE, OPERATORS, Value, align

Watch = Callable[[Var, np.ndarray], None]

LARGEST_FOLDED = 1 << 24  # elements of a folded constant; a stranger's graph could ask for any number


def evaluate(
    module: tvm.IRModule,
    *inputs: np.ndarray,
    watch: Watch | None = None,
    calls: Mapping[str, Callable[..., np.ndarray]] | None = None,
    dtype: type[np.floating] = np.float32,
) -> np.ndarray | tuple[np.ndarray, ...]:
    """What `main` answers to each row of `inputs`, the leading axis of each.

    `watch(var, rows)` sees every input and every tensor on the way.  `calls` gives the numpy meaning of functions the
    module calls by name (`R.call_pure_packed`, `R.call_dps_packed`, `R.call_tir`): they take rows, constants as they
    are and attributes as Python numbers, and return rows.  float32 tensors are computed in `dtype`.
    """
    main = module["main"]
    if len(inputs) != len(main.params):
        raise ValueError(f"main takes {len(main.params)} inputs, got {len(inputs)}")
    machine = _Machine(module, calls or {}, np.dtype(dtype))
    for param, rows in zip(main.params, inputs, strict=True):
        machine.define(param, machine.from_rows(rows, param), watch)
    with np.errstate(all="ignore"):  # a policy may well take log(0) or overflow exp, as the device would
        for var, value in bindings(main):
            machine.define(var, machine.value_of(value), watch)
    return machine.rows_of(main.body.body)  # one row only, if the answer depends on no input


def _is_too_large(var: Var) -> bool:
    return isinstance(var.ty, relax.TensorType) and math.prod(shape_of(var)) > LARGEST_FOLDED


def constants_of(module: tvm.IRModule, dtype: type[np.floating] = np.float32) -> dict[Var, np.ndarray]:
    """Every tensor of `main` that no input reaches, and its value: folded constants, without a compiler."""
    machine = _Machine(module, {}, np.dtype(dtype))
    with np.errstate(all="ignore"):
        for var, value in bindings(module["main"]):
            if op_name(value) == "shape_of":  # the shape of an observation is known, though its value is not
                machine.values[var] = shape_of(value.args[0])
            elif not _is_too_large(var) and all(read in machine.values for read in variables(value)):
                with contextlib.suppress(UnknownOperatorError):
                    machine.values[var] = machine.value_of(value)
    return {var: value[0] for var, value in machine.values.items() if isinstance(value, np.ndarray)}


def evaluate_expr(
    expr: relax.Expr, values: Mapping[Var, np.ndarray], dtype: type[np.floating] = np.float32
) -> np.ndarray:
    """The value of one expression, given those of the variables it reads, all with the rows in front."""
    machine = _Machine(tvm.IRModule(), {}, np.dtype(dtype))
    machine.values.update(values)
    return machine.value_of(expr)


def tir_bound(module: tvm.IRModule, callee: relax.Expr) -> tuple[str, float | None] | None:
    """`("maximum", None)` when the TIR function called is the maximum of its two arguments, element by element, and
    `("maximum", 0.5)` when it is that of its one argument and 0.5; likewise "minimum".  Else None.
    """
    function = module[callee] if isinstance(callee, GlobalVar) else None
    if not isinstance(function, tirx.PrimFunc):
        return None
    stores: list[Any] = []
    tvm_ffi.structural_walk(function.body, (tirx.BufferStore, stores.append))
    if len(stores) != 1 or not isinstance(stores[0].value, tvm.ir.prim.expr.Max | tvm.ir.prim.expr.Min):
        return None
    kind = "maximum" if isinstance(stores[0].value, tvm.ir.prim.expr.Max) else "minimum"
    sides = [stores[0].value.a, stores[0].value.b]
    bound = next((float(side.value) for side in sides if isinstance(side, tirx.FloatImm)), None)
    loads = [side for side in sides if not isinstance(side, tirx.FloatImm)]
    same_place = all(_reads_place(load, list(stores[0].indices)) for load in loads)
    return (kind, bound) if same_place and len(loads) == len(function.params) - 1 else None


def _reads_place(load: Any, place: list[Any]) -> bool:
    """Whether `load` reads the element at `place`, axes counted from the right and axes of length one at 0."""
    if not isinstance(load, tvm.ir.TensorLoad):
        return False
    indices = list(load.indices)
    aligned = place[len(place) - len(indices) :]
    return all(
        i.same_as(j) or (isinstance(i, tirx.IntImm) and int(i) == 0) for i, j in zip(indices, aligned, strict=True)
    )


class UnknownOperatorError(ValueError):
    """No meaning in numpy is known for a call."""


class _Machine:
    """The variables' values so far, and how an expression becomes one."""

    def __init__(
        self, module: tvm.IRModule, calls: Mapping[str, Callable[..., np.ndarray]], dtype: np.dtype[Any]
    ) -> None:
        self.module, self.calls, self.dtype = module, calls, dtype
        self.values: dict[Var, Value] = {}

    def define(self, var: Var, value: Value, watch: Watch | None) -> None:
        self.values[var] = value
        if watch is not None and isinstance(var.ty, relax.TensorType):
            watch(var, self.rows_of(var))

    def value_of(self, expr: relax.Expr) -> Value:
        value: Value
        match expr:
            case Var():
                value = self.values[expr]
            case GenericConst():
                value = self.as_float(expr.value.numpy())[np.newaxis]
            case Tuple():
                value = tuple(self.value_of(field) for field in expr.fields)
            case TupleGetItem():
                value = self.value_of(expr.tuple_value)[expr.index]
            case relax.ShapeExpr():
                value = tuple(int(extent) for extent in expr.values)
            case Call():
                value = self.call(expr)
            case _:
                value = expr.value  # a number or a string written in the program
        return value

    def call(self, call: Call) -> Value:
        name = op_name(call)
        if name in ("call_tir", "call_dps_packed"):
            return self.call_by_name(call, call.args[0], call.args[1].fields)
        if name == "call_pure_packed":
            return self.call_by_name(call, call.args[0], call.args[1:])
        args = [self.value_of(arg) for arg in call.args]
        if name in ELEMENTWISE:
            return self.as_float(ELEMENTWISE[name](*align(args, len(shape_of(call)))))
        if name in OPERATORS:
            return self.as_float(OPERATORS[name](call, *args))
        raise UnknownOperatorError(f"cannot evaluate '{name or call.op}'")

    def call_by_name(self, call: Call, callee: relax.Expr, args: list[relax.Expr]) -> Value:
        name = str(callee.global_symbol if isinstance(callee, relax.ExternFunc) else callee.name_hint)
        if name in self.calls:
            return self.from_rows(self.calls[name](*(self.rows_of(arg) for arg in args)), call)
        kind, bound = tir_bound(self.module, callee) or (None, None)
        if kind is None:
            raise UnknownOperatorError(f"cannot evaluate a call of '{name}': give its meaning in `calls`")
        sides = [self.value_of(arg) for arg in args] + ([] if bound is None else [self.dtype.type(bound)])
        return ELEMENTWISE[kind](*align(sides, len(shape_of(call))))

    def rows_of(self, expr: relax.Expr) -> Any:
        """As the world outside sees a value: rows in place of the module's batch of one."""
        if isinstance(expr, GenericConst):
            return self.as_float(expr.value.numpy())
        value = self.value_of(expr)
        if isinstance(value, tuple) and not isinstance(expr, relax.ShapeExpr):
            types = expr.ty.fields
            return tuple(_without_batch(field, ty) for field, ty in zip(value, types, strict=True))
        return _without_batch(value, expr.ty) if isinstance(value, np.ndarray) else value

    def from_rows(self, rows: np.ndarray, expr: relax.Expr) -> np.ndarray:
        rows, shape = np.asarray(rows), shape_of(expr)
        if rows.shape[1:] == (shape[1:] if shape[:1] == (1,) else shape):
            return self.as_float(rows.reshape(len(rows), *shape).astype(self.numpy_dtype(expr)))
        raise ValueError(f"expected rows for a tensor of shape {shape}, got an array of shape {rows.shape}")

    def numpy_dtype(self, expr: relax.Expr) -> np.dtype[Any]:
        dtype = np.dtype(dtype_of(expr))
        return self.dtype if dtype == np.float32 else dtype

    def as_float(self, value: Value) -> Value:
        """float32 in the module is `dtype` here."""
        if isinstance(value, np.ndarray) and value.dtype in (np.float32, np.float64):
            return value.astype(self.dtype, copy=False)
        return value


def _without_batch(value: np.ndarray, ty: relax.TensorType) -> np.ndarray:
    return value[:, 0] if value.ndim > 1 and int(ty.shape.values[0]) == 1 else value
