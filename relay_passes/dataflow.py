# SPDX-License-Identifier: Apache-2.0
"""Read `main` as one straight line of bindings, and write it again.

A policy has no control flow: `main` is a list `var = op(args)` and one output.  A pass therefore needs three things only:
what a variable stands for (`definitions`), which constant an expression is (`constant`), and a way to write the line
again with some bindings replaced (`rewrite_main`).

Why not `relax.dpl.rewrite_call`: it rewrites one match at a time, so a chain of foldings would round to float32 at each
step; and it cannot change what the function returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, Tuple, TupleGetItem, Var

# Operators that may only change the shape, not the elements or their order.
LAYOUT_OPS = ("reshape", "flatten", "nn.batch_flatten", "squeeze", "expand_dims")

Replace = Callable[[Var, relax.Expr], relax.Expr | None]


def op_name(expr: relax.Expr) -> str:
    """`nn.relu` for a call of `relax.nn.relu`, the empty string for anything that is no operator call."""
    if isinstance(expr, Call) and isinstance(expr.op, tvm.ir.Op):
        return expr.op.name.removeprefix("relax.")
    return ""


def shape_of(expr: relax.Expr) -> tuple[int, ...]:
    """The static shape of a tensor expression."""
    return tuple(int(extent) for extent in expr.ty.shape.values)


def dtype_of(expr: relax.Expr) -> str:
    """The element type of a tensor expression, as numpy names it."""
    return str(expr.ty.dtype)


def constant(expr: relax.Expr) -> np.ndarray | None:
    """The array an inlined constant holds; None for anything computed."""
    return expr.value.numpy() if isinstance(expr, GenericConst) else None


def known(expr: relax.Expr) -> np.ndarray:
    """The array of an expression that is a constant by the form of the graph."""
    values = constant(expr)
    assert values is not None, expr
    return values


def bindings(function: relax.Function) -> Iterator[tuple[Var, relax.Expr]]:
    """Every `var = value` of a straight-line function, in order."""
    for block in function.body.blocks:
        for binding in block.bindings:
            if not isinstance(binding, relax.VarBinding) or isinstance(binding.value, relax.If):
                raise ValueError(f"'{binding.var.name}' branches or has a dynamic shape; policies are straight lines")
            yield binding.var, binding.value


def definitions(function: relax.Function) -> dict[Var, relax.Expr]:
    """What each bound variable stands for."""
    return dict(bindings(function))


def variables(expr: relax.Expr) -> Iterator[Var]:
    """Every variable an expression reads, as often as it reads it."""
    if isinstance(expr, Var):
        yield expr
    elif isinstance(expr, Call):
        for arg in expr.args:
            yield from variables(arg)
    elif isinstance(expr, Tuple):
        for field in expr.fields:
            yield from variables(field)
    elif isinstance(expr, TupleGetItem):
        yield from variables(expr.tuple_value)


def use_counts(function: relax.Function) -> Counter[Var]:
    """How many times each variable is read; being the output counts as one."""
    counts = Counter(read for _, value in bindings(function) for read in variables(value))
    counts[function.body.body] += 1
    return counts


def rewrite_main(
    module: tvm.IRModule,
    replace: Replace = lambda var, value: None,
    output: relax.Expr | None = None,
    drop_unused_inputs: bool = False,
) -> tvm.IRModule:
    """Write `main` again: bindings for which `replace` gives an expression get that value, `output` becomes what it
    returns, and only what the output needs is written.  Both speak in the old function's variables.
    """
    old = module["main"]
    output = old.body.body if output is None else output

    kept: list[tuple[Var, relax.Expr]] = []
    needed = set(variables(output))
    for var, value in reversed(list(bindings(old))):  # backwards, so that a dead value never asks for its inputs
        if var in needed:
            new_value = replace(var, value)
            kept.append((var, value if new_value is None else new_value))
            needed.update(variables(kept[-1][1]))
            if var.same_as(output) and isinstance(kept[-1][1], Var):
                output = kept[-1][1]  # `gv = lv5`: lv5 is what main returns
    params = [param for param in old.params if param in needed or not drop_unused_inputs]

    builder = relax.BlockBuilder()
    renamed: dict[Var, Var] = {}
    with builder.function("main", params):
        with builder.dataflow():
            for var, value in reversed(kept):
                write = builder.emit_output if var.same_as(output) else builder.emit
                new_value = substitute(value, renamed)
                renamed[var] = new_value if isinstance(new_value, Var) else write(new_value)
            result = renamed[output] if output in renamed else builder.emit_output(substitute(output, renamed))
        builder.emit_func_output(result)
    attrs = {key: value for key, value in (old.attrs or {}).items() if key != "global_symbol"}
    if "num_input" in attrs:
        attrs["num_input"] = len(params)
    written = builder.get()
    written[written.get_global_var("main")] = written["main"].with_attrs(attrs)
    module = module.clone()  # or the caller's module would change
    del module["main"]  # with its global variable, whose type is the old one
    module.update(written)
    return relax.transform.DeadCodeElimination(["main"])(module)  # drops functions nobody calls any more


def without_twins(module: tvm.IRModule) -> tvm.IRModule:
    """`main` with one binding for all that compute the same of the same."""
    # a twin becomes an alias of the first, and then nothing
    return rewrite_main(tvm.transform.Sequential([relax.transform.EliminateCommonSubexpr()])(module))


def substitute(expr: relax.Expr, renamed: Mapping[Var, relax.Expr]) -> relax.Expr:
    """`expr` of what variables are `renamed` to."""
    if isinstance(expr, Var):
        return renamed.get(expr, expr)
    if isinstance(expr, Call):
        return Call(expr.op, [substitute(arg, renamed) for arg in expr.args], expr.attrs, expr.ty_args)
    if isinstance(expr, Tuple):
        return Tuple([substitute(field, renamed) for field in expr.fields])
    if isinstance(expr, TupleGetItem):
        return TupleGetItem(substitute(expr.tuple_value, renamed), expr.index)
    return expr
