# SPDX-License-Identifier: Apache-2.0
"""Kernels of tensors element by element: the sum or the product of two, a function of one.

AddCodes       out = f(clamp(((x - zero_x) * factor_x + (y - zero_y) * factor_y) / 2^shift + zero_point, low, high))
MultiplyCodes  out = f(clamp(requantize((x - zero_x) * (y - zero_y)) + zero_point, low, high))
MapCodes       out = f(x)
MergeFloat     out = activation(x + y), activation(x - y) or activation(x * y)
MapFloat       out = activation(x)

Codes are int8, with f a table of 256, or int16, with f a line between 257 entries; f may be absent of the first two. A sum
rounds ties away from zero: with even factors that is what `arm_elementwise_add_s8` and `_s16` do in three steps.

None has parameters but its table: factors are constants in the code. They read and write the workspace alone, so that a
rule may have them reach past the last element: to a whole vector.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from schedules.arithmetic import (
    ACTIVATIONS,
    add,
    clamp,
    doubling_high_multiply,
    interpolate,
    lookup,
    rounding_shift_right,
    ties_away,
)

if TYPE_CHECKING:
    from schedules.kernels import Layout, Parameter

Value = Callable[[Sequence[Any], Any], Any]


def describe(n: int, dtype: str, sources: int, value: Value, table: np.ndarray | None = None) -> tirx.PrimFunc:
    """out[i] = value([x[i], y[i]], table) for n elements of `dtype`, or value([x[i]], table) of one source."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("elementwise")
        T.func_attr({"tirx.noalias": True})
        tensors = [T.arg(name, T.Buffer((n,), dtype)) for name in ("x", "y")[:sources]]
        entries = None if table is None else T.arg("table", T.Buffer(table.shape, str(table.dtype)))
        out = T.arg("out", T.Buffer((n,), dtype))
        with T.serial(n) as i, T.sblock("merge"):
            v = T.axis.spatial(n, IRBuilder.name("i", i))
            T.reads(*(tensor[v] for tensor in tensors), *([] if entries is None else [entries[0 : entries.shape[0]]]))
            T.writes(out[v])
            T.buffer_store(out, value([tensor[v] for tensor in tensors], entries), [v])
    return builder.get()


@dataclass(frozen=True)
class _OfCodes:
    """n codes of `dtype`; `table` (256,) int8, (257,) int16, or None."""

    n: int
    dtype: str
    table: np.ndarray | None

    sources: ClassVar[int] = 2
    verb: ClassVar[str]

    @property
    def summary(self) -> str:
        return f"{self.verb} {self.n}, {self.dtype}{', through a table' if self.table is not None else ''}"

    def parameters(self, _: Layout | None) -> tuple[Parameter, ...]:
        from schedules.kernels import Parameter

        if self.table is None:
            return ()
        # entry of the unsigned byte: 0.., -128..-1
        return (Parameter("table", np.roll(self.table, 128) if self.dtype == "int8" else self.table),)

    @property
    def code_name(self) -> str:
        """What tells its code from another's."""
        values = [getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in ("n", "table")]
        words = f"{type(self).__name__}_{values}_{self.table is not None}".replace("-", "m")
        return re.sub(r"\W+", "_", words)

    def value(self, elements: Sequence[Any], table: Any, called: bool) -> Any:
        """The answer to codes, one of each source; the table is `called` where a pattern has to match it."""
        code = self.code(*(T.Cast("int32", element) for element in elements))
        if table is not None and self.dtype == "int8":
            return lookup(table, code) if called else table[T.bitwise_and(code, T.int32(255))]
        return T.Cast(self.dtype, code if table is None else interpolate(table, T.bind(code)))

    def describe(self, layout: Layout) -> tirx.PrimFunc:
        value = functools.partial(self.value, called=layout.lanes > 1)
        return describe(layout.n_out, self.dtype, self.sources, value, self.table)

    def code(self, *codes: Any) -> Any:
        """The code before the table, of codes as int32."""
        raise NotImplementedError


@dataclass(frozen=True)
class AddCodes(_OfCodes):
    """factors even, below 2^20 of int8 codes and 2^15 of int16 ones, the second negative for a difference; shift 1 to 16."""

    zero_points: tuple[int, int]
    factors: tuple[int, int]
    shift: int
    zero_point: int
    low: int
    high: int

    verb: ClassVar[str] = "sum of"

    def code(self, *codes: Any) -> Any:
        (x, y), (factor_x, factor_y) = codes, self.factors
        offset = -sum(zero * factor for zero, factor in zip(self.zero_points, self.factors, strict=True))
        total = x * T.int32(factor_x) + y * T.int32(factor_y) + T.int32(offset)
        return _bounded(self, rounding_shift_right(ties_away(total), self.shift))


@dataclass(frozen=True)
class MultiplyCodes(_OfCodes):
    """multiplier below 2^31 and shift to the right, as `requantize` takes them."""

    zero_points: tuple[int, int]
    multiplier: int
    shift: int
    zero_point: int
    low: int
    high: int

    verb: ClassVar[str] = "product of"

    def code(self, *codes: Any) -> Any:
        return self.narrowed(doubling_high_multiply(self.product(*codes), T.int32(self.multiplier)))

    def product(self, x: Any, y: Any) -> Any:
        zero_x, zero_y = self.zero_points
        return (x - T.int32(zero_x)) * (y - T.int32(zero_y))

    def narrowed(self, high: Any) -> Any:
        return _bounded(self, rounding_shift_right(ties_away(high) if self.shift else high, self.shift))


@dataclass(frozen=True)
class MapCodes(_OfCodes):
    sources: ClassVar[int] = 1
    verb: ClassVar[str] = "function of"

    def code(self, *codes: Any) -> Any:
        return codes[0]


@dataclass(frozen=True)
class MergeFloat:
    """`operator` is "add", "subtract" or "multiply", rounded once; `activation` a key of ACTIVATIONS."""

    n: int
    operator: str
    activation: str

    sources: ClassVar[int] = 2
    dtype: ClassVar[str] = "float32"

    @property
    def summary(self) -> str:
        verb = {"add": "sum", "subtract": "difference", "multiply": "product"}[self.operator]
        return f"{verb} of {self.n}, float32, {self.activation}"

    def parameters(self, _: Layout) -> tuple[Parameter, ...]:
        return ()

    def describe(self, layout: Layout) -> tirx.PrimFunc:
        def value(elements: Sequence[Any], _: None) -> Any:
            x, y = elements
            if self.operator == "multiply":
                merged = x * y
            else:
                merged = add(y * T.float32(-1), x) if self.operator == "subtract" else add(x, y)
            return ACTIVATIONS[self.activation](merged)

        return describe(layout.n_out, "float32", 2, value)


@dataclass(frozen=True)
class MapFloat:
    """`activation` is a key of ACTIVATIONS."""

    n: int
    activation: str

    sources: ClassVar[int] = 1
    dtype: ClassVar[str] = "float32"

    @property
    def summary(self) -> str:
        return f"{self.activation} of {self.n}, float32"

    def parameters(self, _: Layout) -> tuple[Parameter, ...]:
        return ()

    def describe(self, layout: Layout) -> tirx.PrimFunc:
        return describe(layout.n_out, "float32", 1, lambda x, _: ACTIVATIONS[self.activation](x[0]))


Elementwise = AddCodes | MultiplyCodes | MapCodes | MergeFloat | MapFloat


def _bounded(kernel: AddCodes | MultiplyCodes, value: Any) -> Any:
    return clamp(value + T.int32(kernel.zero_point), kernel.low, kernel.high)
