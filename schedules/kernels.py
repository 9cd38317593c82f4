# SPDX-License-Identifier: Apache-2.0
"""What each kernel computes: one record a kind, with its packed parameters and its portable TIR.

A kernel is described once. The description, lightly scheduled, becomes the C twin; scheduled by the rule of a core feature
(`schedules/mve.py`) it becomes that core's code. Both read the same packed bytes, so a library carries its weights once.

Shapes: `n_in` inputs, `n_out` outputs; weight (n_out, n_in). `Layout` says how they fall into blocks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from schedules.arithmetic import (
    ACTIVATIONS,
    add,
    clamp,
    doubling_high_multiply,
    high_multiply,
    interpolate,
    lookup,
    round_half_away,
    rounding_shift_right,
    ties_away,
)
from schedules.elementwise import Elementwise
from schedules.softmax import Softmax, SoftmaxCodes, SoftmaxInt16


@dataclass(frozen=True)
class Layout:
    """Outputs in blocks of lanes * pair * odd, inputs in chunks; both padded with zeros.

    Why three levels in a block: MVE narrows two vectors into the even and odd lanes of one, twice. If the vectors hold
    output lane*pair*odd + pair*odd + odd the interleaving leaves them in their natural order, at no cost.
    `origin` elements into the weights is where their pointer points: a vector load reaches 508 bytes to either side.
    `joint` is for pairs that are summed together, chunk by chunk of one load of the inputs.
    """

    blocks: int
    odd: int
    pair: int
    lanes: int
    chunks: int
    chunk: int
    origin: int = 0
    joint: bool = False
    bias_origin: int = 0

    @property
    def n_out(self) -> int:
        return self.blocks * self.odd * self.pair * self.lanes

    @property
    def n_in(self) -> int:
        return self.chunks * self.chunk

    @property
    def group(self) -> tuple[int, int, int, int]:
        return (self.blocks, self.odd, self.pair, self.lanes)

    def pack_outputs(self, values: np.ndarray) -> np.ndarray:
        """(n_out, ...) in natural order -> (blocks, odd, pair, lanes, ...)."""
        padded = np.zeros((self.n_out, *values.shape[1:]), values.dtype)
        padded[: len(values)] = values
        return np.moveaxis(
            padded.reshape(self.blocks, self.lanes, self.pair, self.odd, *values.shape[1:]), (3, 2, 1), (1, 2, 3)
        )

    def pack_weight(self, weight: np.ndarray) -> np.ndarray:
        """(n_out, n_in) -> (blocks, odd, pair, chunks, lanes, chunk), the order a schedule consumes it in; joint pairs
        have (blocks, odd, chunks, pair, lanes, chunk)."""
        padded = np.zeros((weight.shape[0], self.n_in), weight.dtype)
        padded[:, : weight.shape[1]] = weight
        split = self.pack_outputs(padded).reshape(*self.group, self.chunks, self.chunk)
        packed = split.swapaxes(3, 4)
        return np.ascontiguousarray(packed.swapaxes(2, 3) if self.joint else packed)


@dataclass(frozen=True)
class Parameter:
    """A constant array of a kernel as it lies in flash; the kernel gets a pointer to element `origin`."""

    name: str
    values: np.ndarray
    origin: int = 0


@dataclass(frozen=True)
class Quantize:
    """Observations to codes: out = clamp(round(obs * inverse_scale) + zero_point), ties away from zero.

    inverse_scale (n,) float32, zero_point (n,) int32 or None; low and high bound the code.
    `dtype` is "int8", or "int32" for the 14-bit codes of a wide first layer.
    """

    inverse_scale: np.ndarray
    zero_point: np.ndarray | None
    low: int
    high: int
    dtype: str

    @property
    def summary(self) -> str:
        return f"{len(self.inverse_scale)} observations to {self.dtype} codes"

    def parameters(self, _: Layout) -> tuple[Parameter, ...]:
        # doubled: `round_half_away` takes twice the number it rounds
        parameters = [Parameter("doubled_inverse_scale", (2 * self.inverse_scale).astype(np.float32))]
        if self.zero_point is not None:
            parameters.append(Parameter("zero_point", self.zero_point.astype(np.int32)))
        return tuple(parameters)

    def code(self, observation: Any, doubled_inverse_scale: Any, zero_point: Any) -> Any:
        """The code of one observation as an int32; `zero_point` may be None."""
        # clamped before it is converted, which is undefined in C for what does not fit an int32; 2^20 is past every code
        low, high = (2 * self.low, 2 * self.high) if zero_point is None else (-(2**20), 2**20)
        code = round_half_away(T.max(T.min(observation * doubled_inverse_scale, T.float32(high)), T.float32(low)))
        return code if zero_point is None else clamp(code + zero_point, self.low, self.high)

    def describe(self, _: Layout) -> tirx.PrimFunc:
        n = len(self.inverse_scale)
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("quantize")
            T.func_attr({"tirx.noalias": True})
            x = T.arg("obs", T.Buffer((n,), "float32"))
            scale = T.arg("doubled_inverse_scale", T.Buffer((n,), "float32"))
            zero = T.arg("zero_point", T.Buffer((n,), "int32")) if self.zero_point is not None else None
            y = T.arg("codes", T.Buffer((n,), self.dtype))
            with T.serial(n) as i:
                IRBuilder.name("i", i)
                with T.sblock("quantize"):
                    v = T.axis.spatial(n, i)
                    code = self.code(x[v], scale[v], None if zero is None else zero[v])
                    T.buffer_store(y, T.Cast(self.dtype, code), [v])
        return builder.get()


@dataclass(frozen=True)
class Clamp:
    """Observations of a float policy, clipped: out = min(max(obs, low), high); low, high (n,) float32."""

    low: np.ndarray
    high: np.ndarray

    @property
    def summary(self) -> str:
        return f"{len(self.low)} observations, clipped"

    def parameters(self, _: Layout) -> tuple[Parameter, ...]:
        return (Parameter("low", self.low), Parameter("high", self.high))

    def describe(self, _: Layout) -> tirx.PrimFunc:
        n = len(self.low)
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("clamp")
            T.func_attr({"tirx.noalias": True})
            x, low, high = (T.arg(name, T.Buffer((n,), "float32")) for name in ("obs", "low", "high"))
            y = T.arg("out", T.Buffer((n,), "float32"))
            with T.serial(n) as i, T.sblock("clamp"):
                v = T.axis.spatial(n, IRBuilder.name("i", i))
                T.buffer_store(y, T.min(T.max(x[v], low[v]), high[v]), [v])
        return builder.get()


@dataclass(frozen=True)
class DenseCodes:
    """A dense layer from integer codes to int8 codes.

        accumulator = weight @ codes + bias                                  int32
        out = table[clamp(requantize(accumulator) + zero_point, low, high)]  int8; without a table, the code itself

    weight (n_out, n_in) int8 for int8 codes, or int16 for the 14-bit codes of a first layer of few observations; bias
    (n_out,) int32; multiplier (n_out,) int32, or None where the weights' scale was chosen so that the shift alone
    requantises; `shift` to the right, at most 16 (an immediate of the narrowing instruction); table (256,) int8, entry
    code + 128, or None.

    Why 16-bit first layers: with 4 observations a 16-lane dot product idles three quarters of its lanes, and 8 bits is a
    coarse ruler for the one layer whose inputs are physical quantities. It has a float layer's accuracy in half its flash.
    """

    weight: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray | None
    shift: int
    zero_point: int
    low: int
    high: int
    table: np.ndarray | None

    reads: ClassVar[str] = "int8"
    writes: ClassVar[str] = "int8"

    @property
    def wide(self) -> bool:
        return self.weight.dtype == np.int16

    @property
    def hides_negatives(self) -> bool:
        """A clamp at the zero point (ReLU) hides how negatives were rounded."""
        return self.multiplier is None or self.low >= self.zero_point or self.shift == 0

    @property
    def narrowing(self) -> int:
        """What is shifted off what `scale` gives."""
        return self.shift

    @property
    def stored_multiplier(self) -> np.ndarray | None:
        """The multiplier as it lies in flash."""
        return self.multiplier

    @property
    def summary(self) -> str:
        n_out, n_in = self.weight.shape
        return f"dense {n_in} -> {n_out}, {self.weight.dtype}{', through a table' if self.table is not None else ''}"

    def parameters(self, layout: Layout) -> tuple[Parameter, ...]:
        requant = [layout.pack_outputs(self.bias)]
        if self.stored_multiplier is not None:
            requant.append(layout.pack_outputs(self.stored_multiplier))
        parameters = [
            Parameter("weight", layout.pack_weight(self.weight), layout.origin),
            Parameter("requant", np.ascontiguousarray(np.stack(requant, axis=3))),
        ]
        if self.table is not None:
            parameters.append(Parameter("table", self.entries()))
        return tuple(parameters)

    def entries(self) -> np.ndarray:
        assert self.table is not None
        return np.roll(self.table, 128)  # entry of the unsigned byte: 0.., -128..-1

    def scale(self, accumulator: Any, requant: Any) -> Any:
        """`requant(j)` gives the output's bias for j = 0 and its multiplier for j = 1."""
        if self.multiplier is None:
            return accumulator + requant(0)
        high = doubling_high_multiply(accumulator + requant(0), requant(1))
        return high if self.hides_negatives else ties_away(high)

    def code(self, scaled: Any) -> Any:
        """The code before the table, as an int32."""
        return clamp(rounding_shift_right(scaled, self.narrowing) + T.int32(self.zero_point), self.low, self.high)

    def narrow(self, scaled: Any, table: Any) -> Any:
        code = self.code(scaled)
        return T.Cast("int8", code) if table is None else lookup(table, code)

    def describe(self, layout: Layout) -> tirx.PrimFunc:
        blocks, odd, pair, lanes = layout.group
        chunks, chunk = layout.chunks, layout.chunk
        # a dot product starts at zero: from elsewhere it could not be matched
        from_bias = self.wide and chunk == 1
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("dense_codes")
            T.func_attr({"tirx.noalias": True})
            x = T.arg("codes", T.Buffer((chunks, chunk), "int32" if self.wide else self.reads))
            shape = (blocks, odd, *((chunks, pair) if layout.joint else (pair, chunks)), lanes, chunk)
            weight = T.arg("weight", T.Buffer(shape, str(self.weight.dtype), elem_offset=-layout.origin))
            per_output = 1 if self.multiplier is None else 2
            requant = T.arg("requant", T.Buffer((blocks, odd, pair, per_output, lanes), "int32"))
            table: Any = None
            if self.table is not None:
                table = T.arg("table", T.Buffer(self.table.shape, str(self.table.dtype)))
            y = T.arg("out", T.Buffer((blocks, lanes, pair, odd), self.writes))
            interpolated = interpolates(self)
            read_at = IRBuilder.name("read_at", T.sblock_alloc_buffer(y.shape, self.writes)) if interpolated else y
            acc = IRBuilder.name("acc", T.sblock_alloc_buffer(layout.group, "int32"))
            scaled = IRBuilder.name("scaled", T.sblock_alloc_buffer(layout.group, "int32"))
            with T.grid(*layout.group, chunks, chunk) as loops, T.sblock("accumulate"):
                b, o, p, l, c, k = T.axis.remap("SSSSRR", _named("boplck", loops))
                with T.init():
                    T.buffer_store(acc, requant[b, o, p, 0, l] if from_bias else T.int32(0), [b, o, p, l])
                place = [b, o, *((c, p) if layout.joint else (p, c)), l, k]
                product = _int32(x, [c, k]) * _int32(weight, place)
                T.buffer_store(acc, acc[b, o, p, l] + product, [b, o, p, l])
            with T.grid(*layout.group) as loops, T.sblock("scale"):
                b, o, p, l = T.axis.remap("SSSS", _named("bopl", loops))
                total = acc[b, o, p, l]
                value = total if from_bias else self.scale(total, lambda j: requant[b, o, p, j, l])
                T.buffer_store(scaled, value, [b, o, p, l])
            with T.grid(*layout.group) as loops, T.sblock("narrow"):
                b, o, p, l = T.axis.remap("SSSS", _named("bopl", loops))
                if table is not None and not interpolated:
                    T.reads(scaled[b, o, p, l], table[0:256])
                    T.writes(y[b, l, p, o])
                T.buffer_store(read_at, self.narrow(scaled[b, o, p, l], table), [b, l, p, o])
            if interpolated:
                with T.grid(*layout.group) as loops, T.sblock("interpolate"):
                    b, o, p, l = T.axis.remap("SSSS", _named("bopl", loops))
                    T.reads(read_at[b, l, p, o], table[0:257])
                    T.writes(y[b, l, p, o])
                    value = interpolate(table, T.Cast("int32", read_at[b, l, p, o]))
                    T.buffer_store(y, T.Cast("int16", value), [b, l, p, o])
        return builder.get()


@dataclass(frozen=True)
class ArgMax:
    """The largest of each run of outputs, the first of equals: int32 indices. `runs` are their lengths (MultiDiscrete
    has several), read from int32 accumulators or float outputs."""

    runs: tuple[int, ...]


@dataclass(frozen=True)
class Positive:
    """1 where an output is positive, else 0: int32. The mode of independent Bernoullis (MultiBinary)."""


@dataclass(frozen=True)
class ToFloat:
    """out = accumulator * scale, then clipped: float32. scale, low, high (n_out,) float32, the bounds or None."""

    scale: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class ThroughTable:
    """A squashed output, interpolated in a table of 16-bit values.

        code = clamp16(requantize(accumulator))     int16, per-output multiplier, one shift
        value = interpolate(table, code)            (257,) int16, entry every 256 codes
        out = (value + offset) * scale, clipped     float32: one product, so there is nothing to contract

    multiplier, offset (n_out,) int32; scale, low, high (n_out,) float32, the bounds or None.
    """

    multiplier: np.ndarray
    shift: int
    table: np.ndarray
    offset: np.ndarray
    scale: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Activate:
    """A float output: fma(activation(accumulator), scale, offset), clipped. Arrays (n_out,) float32, or None."""

    activation: str
    scale: np.ndarray | None = None
    offset: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None


Answer = ArgMax | Positive | ToFloat | ThroughTable | Activate


@dataclass(frozen=True)
class DenseHead:
    """The last dense layer and the action read off its accumulators: no requantisation in between.

    weight (n_out, n_in) int8 with bias int32, or both float32; `answer` says what becomes of the accumulators.

    Floats are summed in four lanes, each input in the lane k mod 4, in the order of the inputs and rounded once a step:

        lane[k mod 4] = fma(x[k], weight[k], lane[k mod 4]) for k = 0, 1, ..., n_in - 1, from 0
        accumulator = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + bias

    Why lanes: a head has too few outputs to fill a vector with them.
    """

    weight: np.ndarray
    bias: np.ndarray
    answer: Answer

    reads: ClassVar[str] = "int8"

    @property
    def floating(self) -> bool:
        return self.weight.dtype == np.float32

    @property
    def n_answers(self) -> int:
        return len(self.answer.runs) if isinstance(self.answer, ArgMax) else len(self.bias)

    @property
    def answer_dtype(self) -> str:
        return "int32" if isinstance(self.answer, ArgMax | Positive) else "float32"

    @property
    def summary(self) -> str:
        n_out, n_in = self.weight.shape
        return f"dense {n_in} -> {n_out}, {self.weight.dtype}, then {type(self.answer).__name__}"

    def parameters(self, layout: Layout) -> tuple[Parameter, ...]:
        parameters = [Parameter("weight", layout.pack_weight(self.weight), layout.origin), Parameter("bias", self.bias)]
        for name in ("multiplier", "table", "scale", "offset", "low", "high"):
            values = getattr(self.answer, name, None)
            if values is not None:
                parameters.append(Parameter(name, values))
        return tuple(parameters)

    def describe(self, layout: Layout) -> tirx.PrimFunc:
        (n_out, n_in), answer = self.weight.shape, self.answer
        dtype, acc_dtype = ("float32", "float32") if self.floating else (self.reads, "int32")
        blocks, lanes, chunks, chunk = layout.blocks, layout.lanes, layout.chunks, layout.chunk
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("dense_head")
            T.func_attr({"tirx.noalias": True})
            # floats end where the caller's array does; codes are padded with their weights
            x = T.arg(
                *(("x", T.Buffer((n_in,), dtype)) if self.floating else ("codes", T.Buffer((chunks, chunk), dtype)))
            )
            shape = (blocks, 1, 1, chunks, lanes, chunk)
            weight = T.Buffer(shape, str(self.weight.dtype), elem_offset=-layout.origin)
            arrays = {"weight": T.arg("weight", weight)}
            for parameter in self.parameters(layout)[1:]:
                kind = str(parameter.values.dtype)
                arrays[parameter.name] = T.arg(parameter.name, T.Buffer(parameter.values.shape, kind))
            y = T.arg("out", T.Buffer((self.n_answers,), self.answer_dtype))
            total = IRBuilder.name("total", T.sblock_alloc_buffer((n_out,), acc_dtype))
            sums = (self._describe_lanes if self.floating else self._describe_sums)(layout, x, arrays["weight"])
            plus = add if self.floating else operator.add
            with T.serial(n_out) as n, T.sblock("total"):
                v = T.axis.spatial(n_out, IRBuilder.name("n", n))
                T.buffer_store(total, plus(sums(v), arrays["bias"][v]), [v])
            if isinstance(answer, ArgMax):
                start = 0
                for index, run in enumerate(answer.runs):
                    _describe_arg_max(total, y, index, start, run, acc_dtype)
                    start += run
            else:
                with T.serial(n_out) as n, T.sblock("answer"):
                    v = T.axis.spatial(n_out, IRBuilder.name("n", n))
                    if "table" in arrays:
                        T.reads(total[v], arrays["table"][0:257], *(arrays[a][v] for a in arrays if a in _PER_OUTPUT))
                        T.writes(y[v])
                    T.buffer_store(y, self._value(total[v], arrays, v), [v])
        return builder.get()

    def _describe_sums(self, layout: Layout, x: Any, weight: Any) -> Callable[[Any], Any]:
        """Integers add up to the same in any order; the sum of an output, given its index."""
        rows = layout.blocks * layout.lanes
        acc = IRBuilder.name("acc", T.sblock_alloc_buffer((rows,), "int32"))
        with T.grid(layout.blocks, layout.lanes, layout.chunks, layout.chunk) as loops, T.sblock("accumulate"):
            b, l, c, k = T.axis.remap("SSRR", _named("blck", loops))
            row = b * layout.lanes + l
            with T.init():
                T.buffer_store(acc, T.int32(0), [row])
            T.buffer_store(acc, acc[row] + _int32(x, [c, k]) * _int32(weight, [b, 0, 0, c, l, k]), [row])
        return lambda v: acc[v]

    def _describe_lanes(self, layout: Layout, x: Any, weight: Any) -> Callable[[Any], Any]:
        """Floats in four lanes; inputs beyond the last four are added as an output's lanes are put together."""
        (full, rest), rows = divmod(self.weight.shape[1], 4), layout.blocks * layout.lanes
        zero = T.float32(0)
        acc = IRBuilder.name("acc", T.sblock_alloc_buffer((rows, 4), "float32")) if full else None
        if acc is not None:
            with T.grid(layout.blocks, layout.lanes, full, 4) as loops, T.sblock("accumulate"):
                b, l, c, k = T.axis.remap("SSRS", _named("blck", loops))
                row = b * layout.lanes + l
                with T.init():
                    T.buffer_store(acc, zero, [row, k])
                T.buffer_store(acc, T.fma(x[4 * c + k], weight[b, 0, 0, c, l, k], acc[row, k]), [row, k])

        def lane(v: Any, k: int) -> Any:
            value = zero if acc is None else acc[v, k]
            if k >= rest:
                return value
            return T.fma(x[4 * full + k], weight[v // layout.lanes, 0, 0, full, v % layout.lanes, k], value)

        return lambda v: add(add(lane(v, 0), lane(v, 1)), add(lane(v, 2), lane(v, 3)))

    def _value(self, total: Any, arrays: dict[str, Any], v: Any) -> Any:
        answer = self.answer
        if isinstance(answer, Positive):
            return T.Cast("int32", total > (T.float32(0) if self.floating else T.int32(0)))
        if isinstance(answer, ThroughTable):
            high = doubling_high_multiply(total, arrays["multiplier"][v])
            if answer.shift > 0:
                high = ties_away(high)
            code = T.bind(clamp(rounding_shift_right(high, answer.shift), -32768, 32767))
            value = T.Cast("float32", interpolate(arrays["table"], code) + arrays["offset"][v]) * arrays["scale"][v]
        elif isinstance(answer, ToFloat):
            value = T.Cast("float32", total) * arrays["scale"][v]
        else:
            assert isinstance(answer, Activate)
            value = ACTIVATIONS[answer.activation](total)
            if answer.scale is not None and answer.offset is not None:
                value = T.fma(value, arrays["scale"][v], arrays["offset"][v])
            elif answer.scale is not None:
                value = value * arrays["scale"][v]
            elif answer.offset is not None:
                value = add(value, arrays["offset"][v])
        if answer.high is not None:
            value = T.min(value, arrays["high"][v])
        if answer.low is not None:
            value = T.max(value, arrays["low"][v])
        return value


@dataclass(frozen=True)
class DenseFloat:
    """A float32 dense layer: out = activation(weight @ x + bias), accumulated in this order, rounded once a step:

        sum = bias;  sum = fma(x[k], weight[k], sum) for k = 0, 1, ..., n_in - 1

    weight (n_out, n_in) float32, bias (n_out,) float32.
    """

    weight: np.ndarray
    bias: np.ndarray
    activation: str

    @property
    def summary(self) -> str:
        n_out, n_in = self.weight.shape
        return f"dense {n_in} -> {n_out}, float32, {self.activation}"

    def parameters(self, layout: Layout) -> tuple[Parameter, ...]:
        return (
            Parameter("weight", layout.pack_weight(self.weight), layout.origin),
            Parameter("bias", np.ascontiguousarray(layout.pack_outputs(self.bias)), layout.bias_origin),
        )

    def describe(self, layout: Layout) -> tirx.PrimFunc:
        blocks, lanes, inputs = layout.blocks, layout.lanes, layout.chunks
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("dense_float")
            T.func_attr({"tirx.noalias": True})
            x = T.arg("x", T.Buffer((inputs,), "float32"))
            weight = T.arg("weight", T.Buffer((blocks, inputs, lanes), "float32", elem_offset=-layout.origin))
            bias = T.arg("bias", T.Buffer((blocks, lanes), "float32", elem_offset=-layout.bias_origin))
            y = T.arg("out", T.Buffer((blocks, lanes), "float32"))
            acc = IRBuilder.name("acc", T.sblock_alloc_buffer((blocks, lanes), "float32"))
            with T.grid(blocks, lanes, inputs) as loops, T.sblock("accumulate"):
                b, l, k = T.axis.remap("SSR", _named("blk", loops))
                with T.init():
                    T.buffer_store(acc, bias[b, l], [b, l])
                T.buffer_store(acc, T.fma(x[k], weight[b, k, l], acc[b, l]), [b, l])
            with T.grid(blocks, lanes) as loops, T.sblock("activate"):
                b, l = T.axis.remap("SS", _named("bl", loops))
                T.buffer_store(y, ACTIVATIONS[self.activation](acc[b, l]), [b, l])
        return builder.get()


# ---- codes of 16 bits under weights of 8: the same kernels, but for what a layer reads and how it comes back to codes ----


@dataclass(frozen=True)
class QuantizeInt16(Quantize):
    """Observations to int16 codes."""


@dataclass(frozen=True)
class DenseInt16(DenseCodes):
    """A dense layer from int16 codes, or the 14-bit ones of a first layer of few observations, to int16 codes.

        out = clamp((accumulator * multiplier + 2^(shift - 1)) >> shift, low, high), interpolated in the table if there is one

    weight int8, or int16 for a first layer's 14-bit codes; multiplier (n_out,) int32 below 2^15, or None where the shift
    alone requantises; zero_point 0; table (257,) int16 or None.

    Below 2^15 a multiplier has room for the shift, so that the high word of a product is what int8's is:

        (a m + 2^(s - 1)) >> s  =  (a (m << 31 - s) + 2^30) >> 31                      for 15 <= s <= 31
                                =  ((a m >> 31) + 2^(s - 32)) >> s - 31                for s > 31
    """

    reads: ClassVar[str] = "int16"
    writes: ClassVar[str] = "int16"

    @property
    def summary(self) -> str:
        n_out, n_in = self.weight.shape
        return (
            f"dense {n_in} -> {n_out}, {self.weight.dtype} to int16{', interpolated' if self.table is not None else ''}"
        )

    def entries(self) -> np.ndarray:
        assert self.table is not None
        return self.table

    @property
    def in_high_word(self) -> bool:
        """Whether the requantised accumulator is the high word of a product: not where the shift is short."""
        return self.multiplier is not None and self.shift >= 15

    @property
    def narrowing(self) -> int:
        return self.shift if self.multiplier is None else max(self.shift - 31, 0)

    @property
    def stored_multiplier(self) -> np.ndarray | None:
        if self.multiplier is None or not self.in_high_word:
            return self.multiplier
        return self.multiplier << max(31 - self.shift, 0)

    def scale(self, accumulator: Any, requant: Any) -> Any:
        total = accumulator + requant(0)
        if self.multiplier is None:
            return total
        if self.in_high_word:
            return (high_multiply if self.narrowing else doubling_high_multiply)(total, requant(1))
        product = T.Cast("int64", total) * T.Cast("int64", requant(1))
        return T.Cast("int32", T.shift_right(product + T.int64((1 << self.shift) >> 1), T.int64(self.shift)))

    def narrow(self, scaled: Any, table: Any) -> Any:
        return T.Cast("int16", self.code(scaled))


@dataclass(frozen=True)
class HeadOfInt16(DenseHead):
    """The last dense layer of int16 codes."""

    reads: ClassVar[str] = "int16"


def interpolates(kernel: DenseCodes) -> bool:
    """Whether codes are read between two entries of a table, a step of its own."""
    return kernel.table is not None and kernel.writes == "int16"


Kernel = Quantize | Clamp | DenseCodes | DenseHead | DenseFloat | Elementwise | Softmax | SoftmaxCodes | SoftmaxInt16

_PER_OUTPUT = {"multiplier", "offset", "scale", "low", "high"}


def _describe_arg_max(total: Any, y: Any, index: int, start: int, run: int, dtype: str) -> None:
    """out[index] = argmax(total[start : start + run]) without a branch, the first of equals."""
    best = IRBuilder.name("best", T.sblock_alloc_buffer((1,), dtype))
    with T.sblock(f"first_{index}"):
        T.reads(total[start])
        T.writes(best[0], y[index])
        T.buffer_store(best, total[start], [0])
        T.buffer_store(y, T.int32(0), [index])
    if run == 1:
        return
    with T.serial(run - 1) as n, T.sblock(f"choose_{index}"):
        v = T.axis.opaque(run - 1, IRBuilder.name("n", n))
        T.reads(total[start + 1 + v], best[0], y[index])
        T.writes(best[0], y[index])
        candidate = total[start + 1 + v]
        T.buffer_store(y, T.Select(candidate > best[0], v + 1, y[index]), [index])
        T.buffer_store(best, T.max(best[0], candidate), [0])


def _named(names: str, loops: Any) -> list[Any]:
    return [IRBuilder.name(name, loop) for name, loop in zip(names, loops, strict=True)]


def _int32(buffer: Any, indices: list[Any]) -> Any:
    value = buffer[tuple(indices)]
    return value if str(buffer.dtype) == "int32" else T.Cast("int32", value)
