# SPDX-License-Identifier: Apache-2.0
"""Every kernel, laid out for Cortex-M55, answers by the law in `fixedpoint.py`: as MVE assembly on QEMU, and as C here.

    Quantize -> DenseCodes -> DenseHead(identity -> ToFloat)    shows every code of a layer as a float
    Quantize -> DenseHead(...)                                  shows an answer

A kernel is asked through a whole library, as a user's is, because a kernel alone has no buffers to overrun. Its
accumulators are put where a rounding could go wrong: biases are ties, and a feature of weight one walks past them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from policies import SANITIZERS, replay

from relay_passes import fixedpoint
from schedules import Choices, Kernel, place
from schedules import kernels as k
from tinyrl_tvm.device import host, qemu
from tinyrl_tvm.emit.archive import archive
from tinyrl_tvm.emit.program import Program
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.policy import TensorSpec
from tinyrl_tvm.project import build, create
from tinyrl_tvm.targets import target_named

INT32_MAX = 2**31 - 1
# A rounding shift adds half a step in 32 bits; no accumulator of QuantizeInt8 comes nearer to the end than 2^28 bits allow.
LARGEST = INT32_MAX - 2**15


# ---- the law, kernel by kernel ----


def law(kernel: Kernel, x: np.ndarray) -> np.ndarray:
    """What `kernel` must answer to rows x (n, n_in), by `fixedpoint.py` alone."""
    match kernel:
        case k.Quantize(inverse, zero_point, low, high):
            zero_point = 0 if zero_point is None else zero_point
            with np.errstate(over="ignore", under="ignore"):
                scaled = np.clip((x * inverse).astype(np.float64), -(2.0**40), 2.0**40)
            away = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)  # exact: float32 plus one half fits float64
            return np.clip(away + zero_point, low, high).astype(np.int64)
        case k.DenseInt16():
            accumulator = fixedpoint.dense_int8(x, kernel.weight, kernel.bias)
            if kernel.multiplier is None:
                value = fixedpoint.shift_right(accumulator.astype(np.int64), kernel.shift)
            else:
                value = fixedpoint.requantize_int16(accumulator, kernel.multiplier, 15 - kernel.shift)
            codes = np.clip(value, kernel.low, kernel.high)
            return codes if kernel.table is None else fixedpoint.interpolate(codes, kernel.table)
        case k.DenseCodes():
            accumulator = fixedpoint.dense_int8(x, kernel.weight, kernel.bias)
            if kernel.multiplier is None:
                value = (accumulator.astype(np.int64) + ((1 << kernel.shift) >> 1)) >> kernel.shift
            else:
                value = fixedpoint.requantize(accumulator, kernel.multiplier, -kernel.shift).astype(np.int64)
            codes = np.clip(value + kernel.zero_point, kernel.low, kernel.high)
            return codes if kernel.table is None else fixedpoint.lookup(codes, kernel.table)
        case k.SoftmaxCodes():
            ends = np.cumsum(kernel.runs)[:-1]
            how = zip(np.split(x, ends, axis=1), kernel.multiplier, kernel.shift, kernel.least_difference, strict=True)
            steps = np.concatenate([fixedpoint.softmax_int8(*run) for run in how], axis=1)
            return ((steps.astype(np.int32) + 128) / 256).astype(np.float32)
        case k.SoftmaxInt16():
            ends, tables = np.cumsum(kernel.runs)[:-1], (kernel.powers, kernel.inverses)
            each = zip(np.split(x, ends, axis=1), kernel.multiplier, kernel.shift, strict=True)
            steps = np.concatenate([fixedpoint.softmax_int16(*run, *tables) for run in each], axis=1)
            return (steps / 32768).astype(np.float32)
    assert isinstance(kernel, k.DenseHead)
    return answer(kernel.answer, fixedpoint.dense_int8(x, kernel.weight, kernel.bias))


def answer(kind: k.Answer, accumulator: np.ndarray) -> np.ndarray:
    if isinstance(kind, k.Positive):
        return (accumulator > 0).astype(np.int32)
    if isinstance(kind, k.ArgMax):
        runs = np.split(accumulator, np.cumsum(kind.runs)[:-1], axis=1)
        return np.stack([fixedpoint.argmax(run) for run in runs], axis=1)
    assert isinstance(kind, k.ToFloat | k.ThroughTable)
    if isinstance(kind, k.ThroughTable):
        value = fixedpoint.requantize(accumulator, kind.multiplier, -kind.shift)
        accumulator = fixedpoint.interpolate(np.clip(value, -32768, 32767), kind.table) + kind.offset
    values = fixedpoint.dequantize(accumulator, kind.scale)
    low, high = -np.inf if kind.low is None else kind.low, np.inf if kind.high is None else kind.high
    return np.clip(values, np.float32(low), np.float32(high))


# ---- a library of kernels ----


def library_of(
    kernels: Sequence[Kernel],
    observations: np.ndarray,
    target: str = "cortex-m55",
    choices: Mapping[int, Choices] | None = None,
) -> ModelLibrary:
    """A library whose expected answers are the law's; `choices` are those of the kernels that have other than defaults."""
    observations = np.asarray(observations, np.float32)
    x: np.ndarray = observations
    for kernel in kernels:
        x = law(kernel, x)
    dtype = "float32" if np.issubdtype(x.dtype, np.floating) else "int32"
    core = target_named(target)
    program = Program(
        name="kernel",
        target=core,
        precision="int8",
        inputs=(TensorSpec("obs", (observations.shape[1],), "float32"),),
        action=TensorSpec("action", (x.shape[1],), dtype),
        kernels=tuple(place(kernel, core.kernels, (choices or {}).get(i)) for i, kernel in enumerate(kernels)),
        sources=tuple((index - 1,) for index in range(len(kernels))),
        pedigree="Written by a test.",
    )
    expected = x.astype(dtype)
    vectors = {"observations": observations, "expected": expected, "float_action": expected}
    return archive(program, "", vectors, {"tolerance": 0.0, "source": "a test", "sha256": 64 * "0"})


def agrees_everywhere(library: ModelLibrary, folder: Path) -> None:
    """As assembly on QEMU; and as C here, where an overrun or an undefined step is fatal."""
    project = create(library, folder / "project", "baremetal")
    build(project)
    measured = qemu.run(project)
    np.testing.assert_array_equal(measured.actions, library.vectors()["expected"])
    assert measured.parity == "PASS"
    assert not measured.statuses.any()
    assert "PARITY PASS" in replay(library, folder, "gcc", "-O1", *SANITIZERS)


def walk(n_in: int, seed: int = 0) -> np.ndarray:
    """64 observations that are codes already: the first feature walks from -32 to 31, the others are random."""
    rows = np.random.default_rng(seed).integers(-128, 128, (64, n_in))
    rows[:, 0] = np.arange(-32, 32)
    return rows.astype(np.float32)


def codes_of(n_in: int) -> k.Quantize:
    """Observations that are codes become these codes."""
    return k.Quantize(np.ones(n_in, np.float32), None, -128, 127, "int8")


def shown(n: int) -> k.DenseHead:
    """A head that answers with the codes it reads."""
    return k.DenseHead(np.eye(n, dtype=np.int8), np.zeros(n, np.int32), k.ToFloat(np.ones(n, np.float32)))


# ---- a layer of codes ----

# multipliers of every kind: halves, whose products tie; the ends; a channel far smaller than its layer's largest
MULTIPLIERS = (2**30, 2**30 + 1, INT32_MAX, 3 << 29, 1_431_655_766, 1 << 20, 1, 0)


def ties(shift: int, multiplier: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Biases at or next to a tie of the second rounding, for codes from below the lowest to above the highest."""
    code = rng.integers(-140, 140, len(multiplier))
    value = code * 2**shift + 2**shift // 2 + rng.integers(-1, 2, len(multiplier))  # what the multiplication must give
    bias = np.rint(value * 2.0**31 / np.maximum(multiplier, 1.0))
    return np.clip(bias, -LARGEST + 2**20, LARGEST - 2**20).astype(np.int32)


def adversarial(
    shift: int, zero_point: int, low: int, high: int, *, n_in: int, n_out: int, table: bool
) -> k.DenseCodes:
    rng = np.random.default_rng([shift, zero_point + 128, n_in, n_out])
    multiplier = np.resize(np.array(MULTIPLIERS, np.int64), n_out)
    bias = ties(shift, multiplier, rng)
    bias[-2:] = [-LARGEST + 2**20, LARGEST - 2**20][-min(2, n_out) :]
    weight = np.zeros((n_out, n_in), np.int8)
    weight[:, 0] = rng.integers(-2, 3, n_out)
    weight[: n_out // 4] = rng.integers(-127, 128, (n_out // 4, n_in))  # a quarter are dot products like any other
    codes = rng.permutation(256).astype(np.int16) - 128
    return k.DenseCodes(
        weight,
        bias,
        multiplier.astype(np.int32),
        shift,
        zero_point,
        low,
        high,
        codes.astype(np.int8) if table else None,
    )


# shift, zero point, low, high, n_in, n_out, table. Zero point 0 and a low below it let negatives show how they tie.
REQUANTISATIONS = [
    (0, 0, -128, 127, 16, 64, False),
    (0, -128, -128, 127, 5, 33, False),
    (1, 0, -128, 127, 17, 61, False),
    (2, -128, -128, 127, 1, 64, False),
    (3, 5, -128, 127, 3, 64, True),
    (4, -7, -100, 90, 15, 47, False),
    (5, 0, -128, 127, 33, 64, True),
    (6, 0, 0, 127, 16, 64, False),
    (7, -128, -128, 127, 64, 64, False),
    (8, 127, -128, 127, 16, 64, False),
    (9, 0, -128, 127, 100, 100, False),
    (10, -128, -128, 0, 16, 64, False),
    (11, -128, -128, 127, 65, 49, True),
    (12, 0, -128, 127, 256, 64, False),
    (13, 40, 40, 127, 31, 64, False),
    (14, 0, -127, 127, 272, 64, True),
    (15, 0, -128, 127, 16, 64, False),
    (16, 0, -128, 127, 16, 64, False),
    (16, -128, -128, 127, 300, 100, False),
    (16, 0, -128, 127, 520, 61, True),
]


@pytest.mark.parametrize(("shift", "zero_point", "low", "high", "n_in", "n_out", "table"), REQUANTISATIONS)
def test_a_layer_of_codes_rounds_by_the_law(shift, zero_point, low, high, n_in, n_out, table, tmp_path: Path) -> None:
    layer = adversarial(shift, zero_point, low, high, n_in=n_in, n_out=n_out, table=table)
    kernels = [codes_of(n_in), layer, shown(n_out)]
    agrees_everywhere(library_of(kernels, walk(n_in)), tmp_path)


def test_the_cases_above_tell_the_roundings_apart() -> None:
    """Else they would prove nothing: ties to even, up, or rounding once, each give another code somewhere."""
    differ = {"up": 0, "once": 0, "even": 0}
    for shift, zero_point, low, high, n_in, n_out, _ in REQUANTISATIONS:
        layer = adversarial(shift, zero_point, low, high, n_in=n_in, n_out=n_out, table=False)
        x = law(codes_of(n_in), walk(n_in))
        accumulator = fixedpoint.dense_int8(x, layer.weight, layer.bias).astype(np.int64)
        high_word = (accumulator * layer.multiplier + 2**30) >> 31
        others = {
            "up": (high_word + ((1 << shift) >> 1)) >> shift,
            "once": fixedpoint.requantize(accumulator, layer.multiplier, -shift, rounding="single"),
            "even": np.rint(high_word / 2.0**shift),
        }
        for name, value in others.items():
            differ[name] += int((np.clip(value + zero_point, low, high) != law(layer, x)).sum())
    assert min(differ.values()) > 50, differ


# ---- a wide first layer: 14-bit codes, 16-bit weights, no multiplier ----


@pytest.mark.parametrize("n_in", [1, 2, 3, 5, 6, 7, 8])
def test_a_wide_layer_shifts_by_the_law(n_in: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(n_in)
    n_out, shift = 16 * n_in - 3, 2 * n_in
    rows = rng.integers(-16383, 16384, (64, n_in)).astype(np.float32)
    rows[:, 0] = np.arange(-32, 32)
    quantize = k.Quantize(np.ones(n_in, np.float32), None, -16383, 16383, "int32")
    weight = rng.integers(-32767, 32768, (n_out, n_in)) // n_in
    weight[::2] = 0
    weight[::2, 0] = rng.integers(-2, 3, len(weight[::2]))  # these walk past a tie of the shift
    bias = rng.integers(-140, 140, n_out) * 2**shift + 2**shift // 2
    has_table = n_in % 2 == 0
    zero_point, low = [(-128, -128), (0, -128), (0, 0)][n_in % 3]
    table = (rng.permutation(256) - 128).astype(np.int8) if has_table else None
    layer = k.DenseCodes(weight.astype(np.int16), bias.astype(np.int32), None, shift, zero_point, low, 127, table)
    agrees_everywhere(library_of([quantize, layer, shown(n_out)], rows), tmp_path)


# ---- observations ----

# as multiples of a code: ties, their neighbours, and what no integer can hold
EDGES = [0.5, 1.5, 2.5, 126.5, 127.5, 128.5, np.nextafter(np.float32(0.5), np.float32(0)), 0.0, 1e-45, 1e-39, 1e-30]
EDGES += [np.nextafter(np.float32(1.5), np.float32(2)), 1000.4, 1048575.9, 1e9, 2147483648.0, 1e19, 3.4e38]
EDGE_ROWS = np.array([*EDGES, *(-np.array(EDGES))], np.float32)


@pytest.mark.parametrize(
    ("n", "zero_point"), [(1, None), (3, 1), (4, -128), (4, None), (15, -300), (17, 1), (32, None)]
)
def test_observations_round_away_from_zero_and_saturate(n: int, zero_point: int | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(n)
    scale = np.exp2(rng.integers(-6, 7, n)).astype(np.float32)  # powers of two keep the edges ties
    scale[0] = 1.0
    rows = rng.permuted(np.tile(EDGE_ROWS, (n, 1)), axis=1).T
    with np.errstate(over="ignore", under="ignore"):
        rows = np.clip((rows / scale).astype(np.float64), -3.4e38, 3.4e38).astype(np.float32)
    zeros = None if zero_point is None else np.full(n, zero_point, np.int32) + np.arange(n, dtype=np.int32)
    quantize = k.Quantize(scale, zeros, -128, 127, "int8")
    agrees_everywhere(library_of([quantize, shown(n)], rows), tmp_path)


def test_wide_codes_saturate_at_their_limit(tmp_path: Path) -> None:
    """Windows of 512 codes around zero and around both limits show every wide code that could be wrong."""
    limit = 16383
    offsets = np.array([0, -limit, limit], np.int32)
    rows = np.concatenate([EDGE_ROWS, np.arange(-16385.5, -16380), np.arange(16380.5, 16386)])[:, np.newaxis]
    quantize = k.Quantize(np.ones(1, np.float32), None, -limit, limit, "int32")
    layer = k.DenseCodes(np.ones((3, 1), np.int16), offsets, None, 1, 0, -128, 127, None)
    finest = k.DenseCodes(np.full((3, 1), 2, np.int16), 2 * offsets, None, 1, 0, -128, 127, None)
    agrees_everywhere(library_of([quantize, layer, shown(3)], rows), tmp_path)
    (tmp_path / "finest").mkdir()
    agrees_everywhere(library_of([quantize, finest, shown(3)], rows), tmp_path / "finest")


# ---- heads ----


def head_of(answer_kind: k.Answer, bias: np.ndarray, n_in: int, seed: int = 0) -> k.DenseHead:
    """The first feature walks past the biases; a quarter of the outputs are dot products like any other."""
    rng = np.random.default_rng(seed)
    n_out = len(bias)
    weight = np.zeros((n_out, n_in), np.int8)
    weight[:, 0] = rng.integers(-3, 4, n_out)
    weight[: n_out // 4] = rng.integers(-127, 128, (n_out // 4, n_in))
    return k.DenseHead(weight, bias.astype(np.int32), answer_kind)


@pytest.mark.parametrize("n_out", range(1, 21))
def test_a_head_of_any_length_answers_by_the_law(n_out: int, tmp_path: Path) -> None:
    """Each length with another kind of answer, another number of inputs, and accumulators that a float rounds."""
    rng = np.random.default_rng(n_out)
    n_in = [16, 1, 17, 33, 100, 64, 300][n_out % 7]
    scale = rng.uniform(1e-5, 1e-3, n_out).astype(np.float32)
    bias = rng.integers(-(2**28), 2**28, n_out)
    bounds = (np.sort(rng.normal(size=(2, n_out)) * 2**28 * 1e-4, axis=0)).astype(np.float32)
    kinds = [
        k.ToFloat(scale),
        k.ToFloat(scale, *bounds),
        k.ToFloat(scale, high=bounds[1]),
        k.ToFloat(scale, low=bounds[0]),
        k.ArgMax((n_out,)),
        k.Positive(),
    ]
    kind = kinds[n_out % len(kinds)]
    if isinstance(kind, k.ArgMax | k.Positive):
        bias = rng.integers(-40, 40, n_out)
    agrees_everywhere(library_of([codes_of(n_in), head_of(kind, bias, n_in)], walk(n_in)), tmp_path)


@pytest.mark.parametrize("runs", [(1,), (2,), (20,), (1, 1), (3, 2, 4), (1, 5, 1, 2), (7, 13)], ids=str)
def test_arg_max_takes_the_first_of_equals(runs: tuple[int, ...], tmp_path: Path) -> None:
    n_out = sum(runs)
    rng = np.random.default_rng(n_out)
    weight = rng.integers(-1, 2, (n_out, 16)).astype(np.int8)
    weight[:, 2:] = 0  # two features of small numbers: equal sums are the rule
    rows = np.zeros((64, 16))
    rows[:, :2] = rng.integers(-2, 3, (64, 2))
    head = k.DenseHead(weight, rng.integers(-1, 2, n_out).astype(np.int32) - 2**28, k.ArgMax(runs))
    sums = fixedpoint.dense_int8(rows.astype(np.int64), head.weight, head.bias)
    widest = np.split(sums, np.cumsum(runs)[:-1], axis=1)[int(np.argmax(runs))]
    if max(runs) > 1:
        assert ((widest == widest.max(1, keepdims=True)).sum(1) > 1).sum() > 10
    agrees_everywhere(library_of([codes_of(16), head], rows), tmp_path)


def test_positive_is_above_zero_not_at_it(tmp_path: Path) -> None:
    head = k.DenseHead(np.ones((3, 1), np.int8), np.array([-1, 0, 1], np.int32), k.Positive())
    library = library_of([codes_of(1), head], walk(1))
    at_zero = library.vectors()["observations"][:, 0] == 0
    np.testing.assert_array_equal(library.vectors()["expected"][at_zero], [[0, 0, 1]])
    agrees_everywhere(library, tmp_path)


@pytest.mark.parametrize("shift", [0, 1, 5, 11, 16])
def test_a_squashed_head_interpolates_by_the_law(shift: int, tmp_path: Path) -> None:
    """Codes tie, saturate 16 bits at both ends, and fall between entries of steep and random tables."""
    rng = np.random.default_rng(shift)
    n_out = 7 + shift
    multiplier = np.resize(np.array([2**30, INT32_MAX, 3 << 29, 2**30 + 1, 1 << 24], np.int64), n_out)
    code = rng.integers(-33000, 33000, n_out)
    bias = np.rint((code * 2.0**shift + 2**shift // 2) * 2.0**31 / multiplier)
    bias = np.clip(bias, -LARGEST + 2**20, LARGEST - 2**20)
    table = rng.integers(-32767, 32768, 257)
    table[:3], table[-3:] = [-32768, 32767, -32768], [32767, -32768, 32767]
    offset = rng.integers(-(2**20), 2**20, n_out).astype(np.int32)
    scale = rng.uniform(-1e-3, 1e-3, n_out).astype(np.float32)
    bounds = np.array([[-700.0], [600.0]], np.float32).repeat(n_out, 1)
    kind = k.ThroughTable(
        multiplier.astype(np.int32),
        shift,
        table.astype(np.int16),
        offset,
        scale,
        *(bounds if shift % 2 else (None, None)),
    )
    agrees_everywhere(library_of([codes_of(17), head_of(kind, bias, 17)], walk(17)), tmp_path)


# ---- the same integers under every compiler and flag ----

FLAGS = [
    ("-O0",),
    ("-O3",),
    ("-Ofast",),
    ("-O2", "-ffp-contract=fast", "-march=native"),  # native: on this machine, a fused multiply-add exists to be chosen
    ("-O2", "-ffp-contract=off"),
    ("-O3", "-flto"),  # the kernels beside their caller: a cast that breaks aliasing would show
]


@pytest.fixture(scope="module")
def exercised() -> ModelLibrary:
    """Every kind of integer kernel in one chain, on observations at the edges."""
    rng = np.random.default_rng(9)
    rows = rng.permuted(np.tile(np.concatenate([EDGE_ROWS, walk(1)[:28, 0]]), (17, 1)), axis=1).T
    table = (np.sin(np.arange(257) / 9) * 32767).astype(np.int16)
    squash = k.ThroughTable(
        rng.integers(2**29, 2**31, 5).astype(np.int32), 3, table, np.arange(5, dtype=np.int32) * 999,
        np.full(5, 1e-3, np.float32), np.full(5, -20, np.float32), np.full(5, 25, np.float32),
    )  # fmt: skip
    weight = rng.integers(-127, 128, (5, 33)).astype(np.int8)
    kernels = [
        k.Quantize(rng.uniform(0.5, 2, 17).astype(np.float32), rng.integers(-9, 9, 17), -128, 127, "int8"),
        adversarial(6, 0, -128, 127, n_in=17, n_out=64, table=True),
        adversarial(9, -128, -128, 127, n_in=64, n_out=33, table=False),
        k.DenseHead(weight, rng.integers(-9999, 9999, 5).astype(np.int32), squash),
    ]
    library = library_of(kernels, rows)
    assert len(np.unique(library.vectors()["expected"], axis=0)) > 32
    return library


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_integers_do_not_depend_on_compiler_flags(exercised, compiler: str, flags, tmp_path: Path) -> None:
    assert "PARITY PASS (64 of 64)" in replay(exercised, tmp_path, compiler, *flags)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_no_step_is_undefined_and_no_read_outside(exercised, compiler: str, tmp_path: Path) -> None:
    flags = ("-O1", *SANITIZERS)
    assert "PARITY PASS (64 of 64)" in replay(exercised, tmp_path, compiler, *flags)


def test_the_portable_layout_answers_the_same(exercised, tmp_path: Path) -> None:
    """--target portable lays the weights out in natural order; the law is the same."""
    vectors = exercised.vectors()
    rng = np.random.default_rng(9)
    kernels = [
        k.Quantize(rng.uniform(0.5, 2, 17).astype(np.float32), rng.integers(-9, 9, 17), -128, 127, "int8"),
        adversarial(6, 0, -128, 127, n_in=17, n_out=64, table=True),
        head_of(k.ArgMax((20, 13)), rng.integers(-99, 99, 33), 64),
    ]
    library = library_of(kernels, vectors["observations"], target="portable")
    assert host.run(library).parity == "PASS"
    assert "PARITY PASS" in replay(library, tmp_path, "clang", "-O1", *SANITIZERS)
