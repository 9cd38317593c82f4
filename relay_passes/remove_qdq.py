# SPDX-License-Identifier: Apache-2.0
"""Take the rounding out of a quantised model: the float policy that its integers stand for.

    x -> quantize -> dequantize -> matmul      becomes   x -> clip(range of the codes) -> matmul
    x -> quantize -> dequantize -> argmax      becomes   x -> argmax
    softmax -> quantize -> dequantize          becomes   softmax

Why a clip: a quantiser drops a ReLU, or a Clip, that the ends of the codes do as well; without them the policy would be
linear. A decision looks at the order of its logits alone, and codes keep it, but for ties. Probabilities end of themselves
where their codes do, within a code.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import Var

from .dataflow import bindings, definitions, dtype_of, op_name, rewrite_main, variables, without_twins
from .qdq import pairs

_ORDERING = ("argmax", "greater", "strided_slice")


@tvm.transform.module_pass(opt_level=0, name="RemoveQdq")
class RemoveQdq:
    """quantize -> dequantize becomes clip."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        main, known = module["main"], pairs(module)
        values = definitions(main)
        decides = dtype_of(main.body.body) != "float32"
        readers: dict[Var, set[str]] = {}
        for _var, value in bindings(main):
            for read in variables(value):
                readers.setdefault(read, set()).add(op_name(value))

        def replace(var: Var, value: relax.Expr) -> relax.Expr | None:
            if var not in known:
                return None
            source, (low, high) = known[var].source, known[var].grid.ends
            if decides and readers[var] <= {*_ORDERING}:
                return source
            if op_name(values.get(source)) == "nn.softmax" and low <= 0 and high >= 1 - 1 / 128:
                return source
            return relax.op.clip(source, low, high)

        return without_twins(rewrite_main(module, replace))  # every reader had a pair of its own
