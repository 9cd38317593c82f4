# SPDX-License-Identifier: Apache-2.0
"""What the families' patterns share: a pattern is a piece of a kernel's description and the code that takes its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T


def registered(name: str, function: Callable[[bool], tirx.PrimFunc]) -> str:
    """The pattern `function(False)` and what takes its place, `function(True)`, under a name that tensorize knows."""
    if TensorIntrin.get(name, allow_missing=True) is None:
        TensorIntrin.register(name, function(False), function(True))
    return name


def dot_products(
    name: str, rows: int, n_in: int, fast: Callable[[Any, Any, Any], None], codes: str = "int8", weights: str = "int8"
) -> str:
    """acc[row] + weight[row] . x, for each of `rows`; `fast(x, weight, acc)` writes what takes its place.

    x (n_in,) `codes`, weight (rows, n_in) `weights`, acc (rows,) int32.
    """

    def function(replaced: bool) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("dots")
            x = T.arg("x", T.Buffer((n_in,), codes, offset_factor=1))
            weight = T.arg("weight", T.Buffer((rows, n_in), weights, offset_factor=1))
            acc = T.arg("acc", T.Buffer((rows,), "int32", offset_factor=1))
            with T.sblock("root"):
                T.reads(acc[0:rows], x[0:n_in], weight[0:rows, 0:n_in])
                T.writes(acc[0:rows])
                if replaced:
                    fast(x, weight, acc)
                else:
                    # one row has no loop to match
                    with T.grid(*([rows] * (rows > 1)), n_in) as loops, T.sblock("accumulate"):
                        row = T.axis.spatial(rows, loops[0]) if rows > 1 else 0
                        k = T.axis.reduce(n_in, loops[1] if rows > 1 else loops)
                        code = x[k] if codes == "int32" else T.Cast("int32", x[k])
                        T.buffer_store(acc, acc[row] + code * T.Cast("int32", weight[row, k]), [row])
        return builder.get()

    return registered(name, function)


def largest_divisor(value: int, at_most: int) -> int:
    """The largest divisor of `value` that is at most `at_most`, or 1."""
    return max((d for d in range(1, at_most + 1) if value % d == 0), default=1)
