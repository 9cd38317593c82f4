# SPDX-License-Identifier: Apache-2.0
"""Scheduled TIR to a freestanding function over plain pointers, as C or as assembly.

TVM's own build wraps every function for its runtime (`MakePackedAPI`). Without that pass, and with each buffer parameter
replaced by a pointer, the code generators print a function that needs nothing: no runtime, no libc.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm import ir, tirx
    from tvm.target import Target

# defined in templates/float.c.jinja
IN_C = FMA, ADD, BITS, FROM_BITS = "tinyrl_fma", "tinyrl_add", "tinyrl_bits", "tinyrl_from_bits"
FIRST = 99  # over TVM's own lowering, which is at 10


def c_source(module: ir.IRModule) -> str:
    """The functions of `module` in C, as TVM's `c` target prints them."""
    from tvm.target import Target

    return _build(module, Target("c"), alignment=1).inspect_source()


def assembly(module: ir.IRModule, target: Target) -> str:
    """The functions of `module` in LLVM's assembly for `target`."""
    return _build(module, target, alignment=16).inspect_source("asm")


def listing_and_object(module: ir.IRModule, target: Target) -> tuple[str, bytes]:
    """The functions of `module` in LLVM's assembly for `target`, and the ELF object of the same code."""
    code = _build(module, target, alignment=16)
    with tempfile.TemporaryDirectory(prefix="tinyrl-object-") as folder:
        path = Path(folder, "kernel.o")
        code.write_to_file(str(path), "o")
        return code.inspect_source("asm"), path.read_bytes()


def _build(module: ir.IRModule, target: Target, alignment: int) -> Any:
    import tvm

    _round_as_described()
    with tvm.transform.PassContext(config={"tirx.enable_buffer_level_predication": target.kind.name == "llvm"}):
        lowered = _passes(target)(module)
    functions = {var.name_hint: _with_pointers(_rolled(f), alignment) for var, f in lowered.functions_items()}
    return tvm.get_global_func(f"target.build.{target.kind.name}")(tvm.IRModule(functions), target)


@functools.cache
def _round_as_described() -> None:
    """Tell TVM what a fused multiply-add becomes, and for C also a float's bits.

    Why: TVM's C target knows no fused multiply-add, and casts pointers to get at bits, which breaks C's aliasing rules; its
    LLVM target takes `llvm.fmuladd`, which is two roundings unless the target may contract.
    """
    from tvm import tirx
    from tvm.target.codegen import llvm_lookup_intrinsic_id

    fma = llvm_lookup_intrinsic_id("llvm.fma")

    def fma_in_c(call: ir.Call) -> Any:
        a, b, c = call.args
        if isinstance(b, tirx.FloatImm) and b.value == 1:
            return tirx.call_extern("float32", ADD, a, c)
        return tirx.call_extern("float32", FMA, a, b, c)

    def bits_in_c(call: ir.Call) -> Any:
        dtype = str(call.ty.dtype)
        return tirx.call_extern(dtype, BITS if dtype == "int32" else FROM_BITS, *call.args)

    def fma_in_llvm(call: ir.Call) -> Any:
        return tirx.call_llvm_pure_intrin(call.ty.dtype, fma, *call.args)

    for name, target, lowering in (
        ("tirx.fma", "c", fma_in_c),
        ("tirx.fma", "llvm", fma_in_llvm),
        ("tirx.reinterpret", "c", bits_in_c),
    ):
        tirx.op.register_intrin_lowering(name, target=target, f=lowering, level=FIRST)


def _passes(target: Target) -> Any:
    """TVM's default s_tir pipeline for a CPU, less host splitting and the packed interface."""
    from tvm import ir, s_tir, tirx

    s, t = s_tir.transform, tirx.transform
    return ir.transform.Sequential(
        [
            t.BindTarget(target),
            # first in C: a call there is one that the simplifier may not repeat wherever its value is used
            *([t.LowerIntrin()] if target.kind.name == "c" else []),
            s.CanonicalizeLoop(),
            s.LowerInitBlock(),
            s.PlanAndUpdateBufferAllocationLocation(),
            s.ConvertBlocksToOpaque(),
            s.CompactBufferAllocation(),
            s.LowerMatchBuffer(),
            t.StmtSimplify(),
            s.LowerOpaqueBlock(),
            t.FlattenBuffer(),
            t.NarrowDataType(32),
            s.LoopPartition(),
            t.VectorizeLoop(True),
            t.StorageRewrite(),
            t.UnrollLoop(),
            s.RenormalizeSplitPattern(),
            t.StmtSimplify(),
            t.RemoveNoOp(),
            t.LowerIntrin(),
        ]
    )


def _rolled(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Hide from LLVM how often the loops go round that a schedule marked: it would write a short one out whole.

    Why not LLVM's own means: TVM passes no metadata of loops on, and the options of its unroller have no effect.
    """
    import tvm_ffi
    from tvm import tirx

    from schedules.knobs import ROLLED
    from schedules.mve_intrinsics import opaque

    def hide(loop: tirx.For) -> Any:
        if ROLLED not in loop.annotations:
            return loop
        return tirx.For(loop.loop_var, loop.min, opaque(loop.extent), loop.kind, loop.body)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, hide)))


def _with_pointers(function: tirx.PrimFunc, alignment: int) -> tirx.PrimFunc:
    """Replace every buffer parameter by a pointer variable of its element type.

    `alignment` bytes are promised of each pointer: LLVM then loads sixteen int8 with `vldrw`, whose offsets reach four
    times as far as `vldrb`'s.
    """
    import tvm_ffi
    from tvm import ir, tirx

    buffer_data = ir.Op.get("tirx.buffer_data")
    parameters: list[Any] = []
    pointers: list[tuple[Any, Any]] = []
    for parameter in function.params:
        if isinstance(parameter.ty, tirx.buffer.BufferType):
            pointer = ir.Var(parameter.name, ir.PointerType(parameter.ty.dtype))
            pointers.append((parameter, pointer))
            parameters.append(pointer)
        else:
            parameters.append(parameter)

    def replace(call: ir.Call) -> Any:
        if call.op.same_as(buffer_data):
            for parameter, pointer in pointers:
                if call.args[0].same_as(parameter):
                    return pointer
        return call

    body = tvm_ffi.structural_map(function.body, (ir.Call, replace))
    if alignment > 1:
        for _, pointer in pointers:
            body = tirx.AttrStmt(pointer, "storage_alignment", tirx.const(alignment, "int32"), body)
    return tirx.PrimFunc(parameters, body, function.ret_type, function.attrs)
