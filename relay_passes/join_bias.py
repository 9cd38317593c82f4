# SPDX-License-Identifier: Apache-2.0
"""Make a MatMul and the Add behind it one dense layer, in a quantised model.

    matmul -> quantize -> dequantize -> add(constant)      becomes   matmul -> add(constant)

Why: quantised as two operators, a layer would round its sums to 8 bits before the bias is added; a Gemm adds it to the int32
accumulators. The answer is the more exact one, and what the inner codes clipped is not.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import Var

from .dataflow import definitions, op_name, rewrite_main
from .evaluate import constants_of
from .qdq import pairs


@tvm.transform.module_pass(opt_level=0, name="JoinBias")
class JoinBias:
    """matmul -> quantize -> dequantize -> add becomes matmul -> add."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        values, known, constants = definitions(module["main"]), pairs(module), constants_of(module)

        def product(arg: relax.Expr) -> relax.Expr:
            """The matmul whose codes `arg` has, else `arg`."""
            pair = known.get(arg) if isinstance(arg, Var) else None
            return pair.source if pair is not None and op_name(values.get(pair.source)) == "matmul" else arg

        def replace(_: Var, value: relax.Expr) -> relax.Expr | None:
            if op_name(value) != "add" or not any(not isinstance(arg, Var) or arg in constants for arg in value.args):
                return None
            return relax.op.add(*(product(arg) for arg in value.args))

        return rewrite_main(module, replace)
