# SPDX-License-Identifier: Apache-2.0
"""Probabilities: softmax over runs of logits, the action of a policy that tells how likely it would take each.

Softmax        float32 -> float32   exp of ours: no libm, no division, the same bits on every core
SoftmaxCodes   int8 -> float32      `fixedpoint.softmax_int8`, which is `arm_softmax_s8`, then (code + 128) / 256
SoftmaxInt16   int16 -> float32     `fixedpoint.softmax_int16`, which is `arm_softmax_s16`, then code / 32768

All take as many instructions for one row of logits as for another: what depends on a number is a mask, not a branch.
Their runs are short and come once an inference, so that every family of cores runs them as they are described here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from schedules.arithmetic import add, doubling_high_multiply, polynomial, reciprocal, rounding_shift_right, ties_away

if TYPE_CHECKING:
    from schedules.kernels import Layout, Parameter

# Seven digits, because TVM's C target prints no more: both codegens then have the same numbers.
LOG2_E = 1.442695
LN_2 = (6.931472e-01, -1.904654e-09)  # the float32 next to ln 2, and what it lacks
# exp(r) for |r| <= ln 2 / 2: Taylor's, of which the last term is 2e-9 relative.
EXP = (1.0, 1.0, 0.5, 1.666667e-01, 4.166667e-02, 8.333333e-03, 1.388889e-03, 1.984127e-04)
# A logit that lies further below the largest counts as this far: e^-64 is no probability anybody acts on, and a number below
# 2^-126, which some cores take for zero, is never met.
FARTHEST_BITS = 0x42800000  # 64.0
_MAGNITUDE = 0x7FFFFFFF
_GREATEST, _NOT_A_NUMBER = 0x7F7FFFFF, 0x7FC00000

# The cubic of gemmlowp's exp on [-1/4, 0], in Q31: exp(-1/8), a third; then exp(-2^(k - 2)) for k = 0, 1, ...
EXP_EIGHTH, THIRD = 1895147668, 715827883
EXP_QUARTERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
# 48/17 and -32/17 in Q29, from which Newton's steps towards 1 / x begin.
RECIPROCAL_START = (1515870810, -1010580540)

KNOTS = 513  # entries of a table that is read on lines between them, 128 places each
CELLS = 24  # numbers of one step that are read more than once
Keep = Callable[[Any], Any]


@dataclass(frozen=True)
class Softmax:
    """out = exp(logit - largest) / sum, over each run of logits: float32, in these steps and this order.

        y = -min(|logit - largest|, 64)           k = trunc(fma(y, log2 e, -1/2))
        r = fma(k, -ln2_low, fma(k, -ln2, y))     e = 2^k (1 + r (1 + r (1/2 + ...)))       fused at every step
        out = e * reciprocal(((e[0] + e[1]) + e[2]) + ...)

    Within (n + 8) 2^-24 of softmax in exact numbers for a run of n. A logit that is no finite number makes all of its run
    not a number.
    """

    runs: tuple[int, ...]

    @property
    def n(self) -> int:
        return sum(self.runs)

    @property
    def summary(self) -> str:
        return f"softmax of {_words(self.runs)}, float32"

    def parameters(self, _: Layout) -> tuple[Parameter, ...]:
        return ()

    def describe(self, _: Layout) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("softmax")
            T.func_attr({"tirx.noalias": True})
            x = T.arg("logits", T.Buffer((self.n,), "float32"))
            y = T.arg("out", T.Buffer((self.n,), "float32"))
            for index, start, run in _spans(self.runs):
                best = IRBuilder.name("best", T.sblock_alloc_buffer((1,), "float32"))
                total = IRBuilder.name("total", T.sblock_alloc_buffer((1,), "float32"))
                broken = IRBuilder.name("broken", T.sblock_alloc_buffer((1,), "int32"))
                with T.sblock(f"begin_{index}"):
                    T.reads(x[start])
                    T.writes(best[0], broken[0], total[0])
                    T.buffer_store(best, x[start], [0])
                    T.buffer_store(total, T.float32(0), [0])
                    T.buffer_store(broken, T.int32(0), [0])
                with _each(run, f"largest_{index}") as v:
                    T.reads(x[start + v], best[0], broken[0])
                    T.writes(best[0], broken[0])
                    T.buffer_store(best, T.max(best[0], x[start + v]), [0])
                    # past the greatest float there are infinities and what is not a number
                    room = T.int32(_GREATEST) - T.bitwise_and(_bits(x[start + v]), T.int32(_MAGNITUDE))
                    T.buffer_store(broken, T.bitwise_or(broken[0], _negative(room)), [0])
                with _each(run, f"exp_{index}") as v:
                    T.reads(x[start + v], best[0], total[0])
                    T.writes(y[start + v], total[0])
                    power = T.bind(exp(_below(x[start + v], best[0])))
                    T.buffer_store(y, power, [start + v])
                    T.buffer_store(total, add(total[0], power), [0])
                with T.sblock(f"invert_{index}"):
                    T.reads(total[0], broken[0])
                    T.writes(total[0])
                    inverse = reciprocal(T.float32(-1) * total[0])
                    mark = T.bitwise_and(broken[0], T.int32(_NOT_A_NUMBER))
                    T.buffer_store(total, T.reinterpret("float32", T.bitwise_or(_bits(inverse), mark)), [0])
                with _each(run, f"divide_{index}") as v:
                    T.reads(y[start + v], total[0])
                    T.writes(y[start + v])
                    T.buffer_store(y, y[start + v] * total[0], [start + v])
        return builder.get()


@dataclass(frozen=True)
class SoftmaxCodes:
    """Softmax of int8 codes, over each run of them: out = (softmax_int8(codes) + 128) / 256, float32 and exact.

    multiplier, shift and least_difference are those of `fixedpoint.softmax_scaling`, one a run.
    """

    runs: tuple[int, ...]
    multiplier: tuple[int, ...]
    shift: tuple[int, ...]
    least_difference: tuple[int, ...]

    @property
    def n(self) -> int:
        return sum(self.runs)

    @property
    def summary(self) -> str:
        return f"softmax of {_words(self.runs)}, int8"

    def parameters(self, _: Layout) -> tuple[Parameter, ...]:
        return ()

    def describe(self, _: Layout) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("softmax_codes")
            T.func_attr({"tirx.noalias": True})
            x = T.arg("codes", T.Buffer((self.n,), "int8"))
            y = T.arg("out", T.Buffer((self.n,), "float32"))
            power = IRBuilder.name("power", T.sblock_alloc_buffer((max(self.runs),), "int32"))
            cells = IRBuilder.name("kept", T.sblock_alloc_buffer((CELLS,), "int32"))
            for index, start, run in _spans(self.runs):
                multiplier, shift = self.multiplier[index], self.shift[index]
                best, total, inverse, over = _begin(x, cells, (index, start, run), -128)
                with _each(run, f"exp_{index}") as v:
                    T.reads(x[start + v], best[0], total[0], cells[0:CELLS])
                    T.writes(power[v], total[0], cells[0:CELLS])
                    keep = _keeper(cells)
                    difference = keep(T.Cast("int32", x[start + v]) - best[0])
                    near = keep(T.bitwise_not(_negative(difference - T.int32(self.least_difference[index]))))
                    scaled = T.bitwise_and(difference, near) * T.int32(1 << shift)
                    value = keep(doubling_high_multiply(scaled, T.int32(multiplier)))
                    value = keep(T.bitwise_and(exp_q31(value, keep), near))
                    T.buffer_store(power, value, [v])
                    # half away from zero in two steps, for the first of them may be next to int32's end; likewise below
                    rounded = T.shift_right(T.shift_right(value, T.int32(11)) + T.int32(1), T.int32(1))
                    T.buffer_store(total, total[0] + rounded, [0])
                with T.sblock(f"invert_{index}"):
                    T.reads(total[0], over[0], cells[0:CELLS])
                    T.writes(inverse[0], over[0], cells[0:CELLS])
                    # a run is between 2^19 and 2^27: how often it has to be doubled to reach 2^31
                    bits = sum((_one_from(total[0], 1 << bit) for bit in range(20, 27)), T.int32(0))
                    T.buffer_store(over, bits, [0])
                    unsigned = T.shift_left(T.Cast("uint32", total[0]), T.Cast("uint32", T.int32(12) - over[0]))
                    fraction = T.Cast("int32", unsigned - T.uint32(1 << 31))
                    T.buffer_store(inverse, inverse_q31(fraction, _keeper(cells)), [0])
                with _each(run, f"divide_{index}") as v:
                    T.reads(power[v], inverse[0], over[0], cells[0:CELLS])
                    T.writes(y[start + v], cells[0:CELLS])
                    keep = _keeper(cells)
                    product = doubling_high_multiply(inverse[0], power[v])
                    doubled = T.shift_right(product, T.int32(22) + over[0])
                    code = keep(T.shift_right(doubled + T.int32(1), T.int32(1)))
                    code = code - T.shift_right(code, T.int32(8))  # 256, a probability of one, is 255
                    T.buffer_store(y, T.Cast("float32", code) * T.float32(1 / 256), [start + v])
        return builder.get()


@dataclass(frozen=True)
class SoftmaxInt16:
    """Softmax of int16 codes, over each run of them: out = softmax_int16(codes) / 32768, float32 and exact.

    multiplier and shift are those of `fixedpoint.softmax_int16_scaling`, one a run; powers and inverses (513,) int16 are
    `softmax_int16_tables`.
    """

    runs: tuple[int, ...]
    multiplier: tuple[int, ...]
    shift: tuple[int, ...]
    powers: np.ndarray = field(repr=False)
    inverses: np.ndarray = field(repr=False)

    @property
    def n(self) -> int:
        return sum(self.runs)

    @property
    def summary(self) -> str:
        return f"softmax of {_words(self.runs)}, int16"

    def parameters(self, _: Layout) -> tuple[Parameter, ...]:
        from schedules.kernels import Parameter  # which imports this file

        return (Parameter("powers", self.powers), Parameter("inverses", self.inverses))

    def describe(self, _: Layout) -> tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("softmax_int16")
            T.func_attr({"tirx.noalias": True})
            x = T.arg("codes", T.Buffer((self.n,), "int16"))
            powers = T.arg("powers", T.Buffer((KNOTS,), "int16"))
            inverses = T.arg("inverses", T.Buffer((KNOTS,), "int16"))
            y = T.arg("out", T.Buffer((self.n,), "float32"))
            power = IRBuilder.name("power", T.sblock_alloc_buffer((max(self.runs),), "int32"))
            cells = IRBuilder.name("kept", T.sblock_alloc_buffer((CELLS,), "int32"))
            for index, start, run in _spans(self.runs):
                multiplier, shift = self.multiplier[index], self.shift[index]
                best, total, inverse, over = _begin(x, cells, (index, start, run), -(2**15))
                with _each(run, f"exp_{index}") as v:
                    T.reads(x[start + v], best[0], total[0], powers[0:KNOTS], cells[0:CELLS])
                    T.writes(power[v], total[0], cells[0:CELLS])
                    keep = _keeper(cells)
                    difference = T.Cast("int32", x[start + v]) - best[0]
                    scaled = keep(doubling_high_multiply(difference * T.int32(1 << max(shift, 0)), T.int32(multiplier)))
                    if shift < 0:
                        scaled = _half_away(scaled, -shift)
                    place = keep(scaled + T.int32(65535))
                    value = keep(_on_a_line(powers, keep(_or_zero(place)), keep))
                    T.buffer_store(power, value, [v])
                    T.buffer_store(total, total[0] + value, [0])
                with T.sblock(f"invert_{index}"):
                    T.reads(total[0], over[0], inverses[0:KNOTS], cells[0:CELLS])
                    T.writes(inverse[0], over[0], cells[0:CELLS])
                    keep = _keeper(cells)
                    # a run is over 2^14 and below 2^23: how often it has been doubled
                    bits = sum((_one_from(total[0], 1 << bit) for bit in range(15, 23)), T.int32(0))
                    T.buffer_store(over, bits, [0])
                    # to 2^30 and up, then to 2^16 in two steps, for half a unit more may be past int32's end
                    near = T.shift_right(T.shift_left(total[0], T.int32(16) - over[0]), T.int32(13))
                    fraction = keep(T.shift_right(near + T.int32(1), T.int32(1)) - T.int32(2**16))
                    place = keep(fraction - T.shift_right(fraction, T.int32(16)))  # 2^16 is taken for what is before
                    T.buffer_store(inverse, _on_a_line(inverses, place, keep), [0])
                with _each(run, f"divide_{index}") as v:
                    T.reads(power[v], inverse[0], over[0])
                    T.writes(y[start + v])
                    doubled = T.shift_right(power[v] * inverse[0], T.int32(13) + over[0])
                    code = T.shift_right(doubled + T.int32(1), T.int32(1))
                    # seven digits of 32768 are all of it, of 1 / 32768 not; every compiler multiplies
                    T.buffer_store(y, T.Cast("float32", code) / T.float32(32768), [start + v])
        return builder.get()


def _begin(x: Any, cells: Any, span: tuple[int, int, int], least: int) -> tuple[Any, ...]:
    """The numbers of a run of codes, none below `least`: the largest of it, its sum from zero, and two to come."""
    index, start, run = span
    best, total, inverse, over = (
        IRBuilder.name(name, T.sblock_alloc_buffer((1,), "int32")) for name in ("best", "total", "inverse", "over")
    )
    with T.sblock(f"begin_{index}"):
        T.reads()
        T.writes(best[0], total[0])
        T.buffer_store(best, T.int32(least), [0])
        T.buffer_store(total, T.int32(0), [0])
    with _each(run, f"largest_{index}") as v:
        T.reads(x[start + v], best[0], cells[0:CELLS])
        T.writes(best[0], cells[0:CELLS])
        more = _keeper(cells)(T.Cast("int32", x[start + v]) - best[0])
        T.buffer_store(best, best[0] + _or_zero(more), [0])
    return best, total, inverse, over


def exp(y: Any) -> Any:
    """exp(y) for -64 <= y <= 0."""
    k = T.bind(T.Cast("int32", T.fma(y, T.float32(LOG2_E), T.float32(-0.5))))
    whole = T.Cast(
        "float32", k
    )  # unbound: TVM would write it out at both readers, and leave a variable that nobody reads
    r = T.bind(T.fma(whole, T.float32(-LN_2[1]), T.fma(whole, T.float32(-LN_2[0]), y)))
    return T.reinterpret("float32", _bits(T.bind(polynomial(EXP, r))) + k * T.int32(1 << 23))


def _below(x: Any, best: Any) -> Any:
    """-min(|x - best|, 64), in the bits of it: what is not a number is 64 below as well."""
    magnitude = T.bind(T.bitwise_and(_bits(T.bind(x - best)), T.int32(_MAGNITUDE)))
    near = T.min(magnitude, T.int32(FARTHEST_BITS))
    return T.bind(T.reinterpret("float32", T.bitwise_or(near, T.int32(-(2**31)))))


def exp_q31(value: Any, keep: Keep) -> Any:
    """exp(value / 2^26) in Q31, value <= 0: gemmlowp's exp_on_negative_values for five integer bits.

    value = a - quarters / 4 with a in [-1/4, 0): exp(a) by its series about -1/8, times a constant for every bit of quarters.
    """
    quarter = T.int32(1 << 24)
    part = keep(T.bitwise_and(value, quarter - T.int32(1)) - quarter)
    quarters = keep(part - value)
    x = keep(part * T.int32(32) + T.int32(1 << 28))
    square = keep(doubling_high_multiply(x, x))
    fourth = _half_away(keep(doubling_high_multiply(square, square)), 2)
    cubic = keep(fourth + doubling_high_multiply(square, x))
    third = keep(doubling_high_multiply(cubic, T.int32(THIRD)) + square)
    series = _half_away(third, 1) + x
    result = keep(T.int32(EXP_EIGHTH) + doubling_high_multiply(T.int32(EXP_EIGHTH), series))
    for bit, constant in enumerate(EXP_QUARTERS, start=24):
        there = T.int32(0) - T.bitwise_and(T.shift_right(quarters, T.int32(bit)), T.int32(1))
        less = doubling_high_multiply(result, T.int32(constant)) - result
        result = keep(result + T.bitwise_and(less, there))
    nothing = keep(T.bitwise_not(_negative(value)))
    return T.bitwise_or(T.bitwise_and(result, T.bitwise_not(nothing)), T.bitwise_and(T.int32(2**31 - 1), nothing))


def inverse_q31(fraction: Any, keep: Keep) -> Any:
    """1 / (1 + fraction / 2^31) in Q31, fraction >= 0: gemmlowp's one_over_one_plus_x_for_x_in_0_1.

    No step leaves int32, so that its saturations are left out but the last one, where one itself is 2^31 - 1.
    """
    half = T.Cast("int32", T.shift_right(T.Cast("int64", fraction) + T.int64(2**31), T.int64(1)))
    half = keep(half)
    x = keep(T.int32(RECIPROCAL_START[0]) + doubling_high_multiply(half, T.int32(RECIPROCAL_START[1])))
    for _ in range(3):
        error = keep(T.int32(1 << 29) - doubling_high_multiply(half, x))
        x = keep(x + doubling_high_multiply(x, error) * T.int32(4))
    most = T.int32((1 << 30) - 1)
    over = keep(_negative(most - x))
    doubled = T.shift_left(T.bitwise_and(x, most), T.int32(1))
    return T.bitwise_or(T.bitwise_and(doubled, T.bitwise_not(over)), T.bitwise_and(T.int32(2**31 - 1), over))


def _on_a_line(table: Any, place: Any, keep: Keep) -> Any:
    """Between two entries of a table, for a place of 16 bits; ties up. `fixedpoint._on_a_line`."""
    entry = keep(T.shift_right(place, T.int32(7)))
    below = keep(T.Cast("int32", table[entry]))
    rise = T.Cast("int32", table[entry + T.int32(1)]) - below
    return below + rounding_shift_right(rise * T.bitwise_and(place, T.int32(127)), 7)


def _keeper(cells: Any) -> Keep:
    """Numbers that are read twice lie in cells: TVM's simplifier writes a bound one out wherever it is read, twice a step."""
    places = iter(range(CELLS))

    def keep(value: Any) -> Any:
        place = next(places)
        T.buffer_store(cells, value, [place])
        return cells[place]

    return keep


def _half_away(value: Any, shift: int) -> Any:
    return rounding_shift_right(ties_away(value), shift)


def _negative(value: Any) -> Any:
    """-1 for a negative number, else 0."""
    return T.shift_right(value, T.int32(31))


def _or_zero(value: Any) -> Any:
    """0 for a negative number."""
    return T.bitwise_and(value, T.bitwise_not(_negative(value)))


def _one_from(value: Any, least: int) -> Any:
    """1 where value >= least, else 0."""
    return T.int32(1) + _negative(value - T.int32(least))


def _bits(value: Any) -> Any:
    return T.reinterpret("int32", value)


def _spans(runs: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Number, start and length of every run."""
    start = 0
    for index, run in enumerate(runs):
        yield index, start, run
        start += run


class _each:  # noqa: N801 - it stands in for T.serial
    """`with _each(run, name) as v:` a loop of one block, in the order of v."""

    def __init__(self, run: int, name: str) -> None:
        self.run, self.name = run, name

    def __enter__(self) -> Any:
        self.loop = T.serial(self.run)
        n = self.loop.__enter__()
        self.block = T.sblock(self.name)
        self.block.__enter__()
        return T.axis.opaque(self.run, IRBuilder.name("n", n))

    def __exit__(self, *error: Any) -> None:
        self.block.__exit__(*error)
        self.loop.__exit__(*error)


def _words(runs: tuple[int, ...]) -> str:
    return " + ".join(map(str, runs))
