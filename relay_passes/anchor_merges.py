# SPDX-License-Identifier: Apache-2.0
"""Put a layer of ones between observations and what reads them otherwise than a layer does, and behind a merge that ends
the network.

    obs -> f -> add(obs)                 becomes   obs -> matmul(ones) -> add(zeros) -> add(f(obs))
    ... -> add -> argmax                 becomes   ... -> add -> matmul(ones) -> add(zeros) -> argmax

Why: layers read raw observations at a scale for each, and an action is read off a layer's sums, which say more than codes.
With these two a merge has codes on all sides, and nothing after this pass asks where it stands.

What scales the observations on the way to a merge, and not to a layer, becomes part of the ones: FuseDense has taken it into
the layers' weights before, and layers and ones read the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Var
from tvm.relax import op

from .dataflow import bindings, rewrite_main, shape_of, substitute, variables, without_twins
from .fuse_dense import FuseDense
from .network import Binding, first_layer, is_dense, last_merge


@tvm.transform.module_pass(opt_level=0, name="AnchorMerges")
class AnchorMerges:
    """add(obs, y) becomes add(add(matmul(obs, ones), zeros), y), and a last add(x, y) add(matmul(add(x, y), ones), zeros)."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        module = _with_ones_in_front(module)
        last = last_merge(list(bindings(module["main"])))
        if last is None:
            return module
        return rewrite_main(module, lambda var, value: _ones(value, shape_of(var)[-1]) if var.same_as(last) else None)


def _with_ones_in_front(module: tvm.IRModule) -> tvm.IRModule:
    line = list(bindings(module["main"]))
    features = _features(line)
    readers = {
        var for var, value in line if not is_dense(value) and any(read.same_as(features) for read in variables(value))
    }
    if not readers:
        return module

    def replace(var: Var, value: relax.Expr) -> relax.Expr | None:
        return substitute(value, {features: _ones(features, shape_of(features)[-1])}) if var in readers else None

    # ones for each first: those that two read would take in no scale
    return without_twins(tvm.transform.Sequential([FuseDense()])(rewrite_main(module, replace)))


def _features(line: Sequence[Binding]) -> Var:
    """What the layers read that read observations: the first there is, in whatever order the layers come."""
    place = {var: index for index, (var, _) in enumerate(line)}
    sources: list[Var] = [value.args[0] for _, value in line[first_layer(line) :] if is_dense(value)]
    return min(sources, key=lambda var: place.get(var, -1))


def _ones(tensor: relax.Expr, n: int) -> relax.Expr:
    product = op.matmul(tensor, relax.const(np.eye(n, dtype=np.float32)))
    return op.add(product, relax.const(np.zeros((1, n), np.float32)))
