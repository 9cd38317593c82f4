# SPDX-License-Identifier: Apache-2.0
"""Put a layer of ones between observations and what merges them, and behind a merge that ends the network.

    obs -> f -> add(obs)                 becomes   obs -> matmul(ones) -> add(zeros) -> add(f(obs))
    ... -> add -> argmax                 becomes   ... -> add -> matmul(ones) -> add(zeros) -> argmax

Why: layers read raw observations at a scale for each, and an action is read off a layer's sums, which say more than codes.
With these two a merge has codes on all sides, and nothing after this pass asks where it stands.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Var
from tvm.relax import op

from .dataflow import bindings, rewrite_main, shape_of, variables, without_twins
from .network import is_dense, unanchored


@tvm.transform.module_pass(opt_level=0, name="AnchorMerges")
class AnchorMerges:
    """add(obs, y) becomes add(add(matmul(obs, ones), zeros), y), and a last add(x, y) add(matmul(add(x, y), ones), zeros)."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        line = list(bindings(module["main"]))
        features, last = unanchored(line)
        first = next(index for index, (_, value) in enumerate(line) if is_dense(value))
        behind = {
            var
            for var, value in line[first:]
            if not is_dense(value) and any(v.same_as(features) for v in variables(value))
        }
        if not behind and last is None:
            return module

        def replace(var: Var, value: relax.Expr) -> relax.Expr | None:
            if var in behind:
                args = [_ones(arg, shape_of(arg)[-1]) if arg.same_as(features) else arg for arg in value.args]
                value = Call(value.op, args, value.attrs, value.ty_args)
            if last is not None and var.same_as(last):
                return _ones(value, shape_of(var)[-1])
            return value if var in behind else None

        return without_twins(rewrite_main(module, replace))  # what merges observations twice reads one layer of ones


def _ones(tensor: relax.Expr, n: int) -> relax.Expr:
    product = op.matmul(tensor, relax.const(np.eye(n, dtype=np.float32)))
    return op.add(product, relax.const(np.zeros((1, n), np.float32)))
