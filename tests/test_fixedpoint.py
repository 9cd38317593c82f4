# SPDX-License-Identifier: Apache-2.0
"""The oracle against the C it claims to be, spelled once more and slowly: Python's integers, one number at a time."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay_passes import fixedpoint

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
HALF_Q31 = 2**30

# --- the C, from gemmlowp's fixedpoint.h, CMSIS-NN's arm_nnsupportfunctions.h and LiteRT's `round` --------------------


def wrapped(value):
    return (value - INT32_MIN) % 2**32 + INT32_MIN


def c_division(numerator, denominator):
    """C's `/` truncates, Python's `//` floors."""
    quotient = abs(numerator) // denominator
    return quotient if numerator >= 0 else -quotient


def c_double_rounding(accumulator, multiplier, shift):
    shifted = wrapped(accumulator << max(shift, 0))
    if shifted == multiplier == INT32_MIN:
        high = INT32_MAX
    else:
        nudge = 1 << 30 if shifted * multiplier >= 0 else 1 - (1 << 30)
        high = c_division(shifted * multiplier + nudge, 1 << 31)
    mask = (1 << max(-shift, 0)) - 1
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    return (high >> max(-shift, 0)) + (1 if high & mask > threshold else 0)


def c_single_rounding(accumulator, multiplier, shift):
    product, divisor = accumulator * multiplier, 1 << (31 - shift)
    nearest = (abs(product) + divisor // 2) // divisor  # C's `round`: away from zero
    return min(max(nearest if product >= 0 else -nearest, INT32_MIN), INT32_MAX)


C = {"double": c_double_rounding, "single": c_single_rounding}


def rounded_away(value):
    """A Fraction to the nearest integer, ties away from zero."""
    whole = math.floor(abs(value) + Fraction(1, 2))
    return whole if value >= 0 else -whole


# --- where rounding goes wrong ---------------------------------------------------------------------------------------

edges = st.sampled_from([INT32_MIN, INT32_MIN + 1, -HALF_Q31, -2, -1, 0, 1, 2, HALF_Q31, INT32_MAX - 1, INT32_MAX])
int32s = st.integers(INT32_MIN, INT32_MAX) | st.integers(-70_000, 70_000) | edges
multipliers = (
    st.integers(0, INT32_MAX) | st.integers(HALF_Q31, INT32_MAX) | st.sampled_from([0, 1, HALF_Q31, INT32_MAX])
)
shifts = st.integers(fixedpoint.SHIFT_MIN, fixedpoint.SHIFT_MAX)


@st.composite
def near_ties(draw):
    """An accumulator whose result lies within one accumulator step of q + 1/2, so both steps see ties and near-ties."""
    multiplier = draw(st.integers(HALF_Q31, INT32_MAX) | st.just(HALF_Q31))
    shift = draw(st.integers(-24, 8))
    target = Fraction(2 * draw(st.integers(-140, 140)) + 1, 2)
    accumulator = round(target * Fraction(2) ** (31 - shift) / multiplier) + draw(st.integers(-1, 1))
    return min(max(accumulator, INT32_MIN), INT32_MAX), multiplier, shift


def adversarial_layer(seed, channels=64, rows=200):
    """The same on arrays: accumulators (rows, channels), a multiplier and a shift a channel."""
    random = np.random.default_rng(seed)
    shift = random.integers(-24, 9, channels)
    normalised = random.integers(HALF_Q31, INT32_MAX, channels, endpoint=True)
    multiplier = np.where(random.random(channels) < 0.5, HALF_Q31, normalised).astype(np.int32)
    target = random.integers(-140, 141, (rows, channels)) + 0.5
    accumulator = np.rint(target * 2.0 ** (31 - shift) / multiplier) + random.integers(-1, 2, (rows, channels))
    return np.clip(accumulator, INT32_MIN, INT32_MAX).astype(np.int32), multiplier, shift


# --- requantize ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", C)
@given(accumulator=int32s, multiplier=multipliers, shift=shifts)
@example(INT32_MIN, INT32_MAX, 30)
@example(INT32_MAX, INT32_MAX, 30)
@example(INT32_MIN, INT32_MAX, 0)
@example(INT32_MIN, INT32_MAX, -31)
@example(1, HALF_Q31, 0)
@example(-1, HALF_Q31, 0)
def test_requantize_equals_the_c_on_any_numbers(rounding, accumulator, multiplier, shift):
    got = fixedpoint.requantize(accumulator, multiplier, shift, rounding)
    assert got.dtype == np.int32
    assert got == C[rounding](accumulator, multiplier, shift)


@pytest.mark.parametrize("rounding", C)
@given(near_ties())
def test_requantize_equals_the_c_next_to_ties(rounding, case):
    assert fixedpoint.requantize(*case, rounding) == C[rounding](*case)


@pytest.mark.parametrize("rounding", C)
@pytest.mark.parametrize("seed", range(3))
def test_requantize_of_a_layer_is_requantize_of_each_channel(rounding, seed):
    accumulator, multiplier, shift = adversarial_layer(seed)
    slowly = [
        [C[rounding](*case) for case in zip(row, multiplier.tolist(), shift.tolist(), strict=True)]
        for row in accumulator.tolist()
    ]
    np.testing.assert_array_equal(fixedpoint.requantize(accumulator, multiplier, shift, rounding), slowly)


@given(near_ties())
def test_single_rounding_is_the_nearest_integer_and_a_tie_goes_away_from_zero(case):
    accumulator, multiplier, shift = case
    exact = Fraction(accumulator * multiplier) * Fraction(2) ** (shift - 31)
    assert fixedpoint.requantize(*case, "single") == rounded_away(exact)


@given(near_ties())
def test_double_rounding_strays_by_at_most_its_first_rounding(case):
    accumulator, multiplier, shift = case
    exact = Fraction(accumulator * multiplier) * Fraction(2) ** (shift - 31)
    first = Fraction(2) ** min(shift, 0) / 2
    second = Fraction(1, 2) if shift < 0 else 0
    assert abs(int(fixedpoint.requantize(*case, "double")) - exact) <= first + second


def test_the_first_rounding_sends_ties_up_and_the_second_away_from_zero():
    odd = np.array([3, 1, -1, -3])  # no shift, so only the product rounds: 1.5, 0.5, -0.5, -1.5
    assert fixedpoint.requantize(odd, HALF_Q31, 0).tolist() == [2, 1, 0, -1]
    assert fixedpoint.requantize(odd, HALF_Q31, 0, "single").tolist() == [2, 1, -1, -2]
    even = np.array([6, 2, -2, -6])  # whole after the product, so only the shift rounds: 1.5, 0.5, -0.5, -1.5
    assert fixedpoint.requantize(even, HALF_Q31, -1).tolist() == [2, 1, -1, -2]
    assert fixedpoint.requantize(even, HALF_Q31, -1, "single").tolist() == [2, 1, -1, -2]


def test_double_rounding_can_turn_a_quarter_into_one():
    """0.25 -> 0.5 in Q31, up to 1, then 1/2 away from zero: the price of the device's law, and why it is counted."""
    assert fixedpoint.requantize(1, HALF_Q31, -1, "double") == 1
    assert fixedpoint.requantize(1, HALF_Q31, -1, "single") == 0


def test_gemmlowp_and_helium_multiply_alike_around_every_tie():
    """gemmlowp truncates after a signed nudge, vqrdmulh shifts after adding 2^30: the same near each tie."""
    for whole in (-3, -2, -1, 0, 1, 2):
        for residue in (-1, 0, 1, HALF_Q31 - 1, HALF_Q31, HALF_Q31 + 1):
            product = (whole << 31) + residue
            nudge = HALF_Q31 if product >= 0 else 1 - HALF_Q31
            assert c_division(product + nudge, 1 << 31) == (product + HALF_Q31) >> 31


def test_the_most_negative_product_saturates():
    for rounding in C:
        assert fixedpoint.requantize(INT32_MIN, INT32_MIN, 0, rounding) == INT32_MAX


def test_a_left_shift_too_far_wraps_under_double_and_saturates_under_single():
    assert fixedpoint.requantize(HALF_Q31, HALF_Q31, 2) == 0  # 2^30 * 4 leaves 32 bits as 0
    assert fixedpoint.requantize(HALF_Q31, HALF_Q31, 1) == -HALF_Q31  # and 2^30 * 2 as -2^31, as vshl has it
    assert fixedpoint.requantize(HALF_Q31, HALF_Q31, 3, "single") == INT32_MAX
    assert fixedpoint.requantize(-HALF_Q31, HALF_Q31, 3, "single") == INT32_MIN


def plausible_layer(seed=0, rows=4_000, channels=64):
    """Accumulators as a 64-wide int8 layer has them, and scales that use the int8 range."""
    random = np.random.default_rng(seed)
    accumulator = np.rint(random.normal(0, 20_000, (rows, channels))).astype(np.int32)
    return accumulator, *fixedpoint.quantize_multiplier(random.uniform(30, 60, channels) / 20_000)


def test_the_two_roundings_differ_on_plausible_layers_but_rarely():
    layer = plausible_layer()
    double = fixedpoint.requantize(*layer, "double").astype(np.int64)
    single = fixedpoint.requantize(*layer, "single")
    differing, outputs = np.count_nonzero(double != single), double.size
    assert outputs == 256_000
    assert 0 < differing < outputs / 100, f"{differing} of {outputs}"
    assert np.abs(double - single).max() == 1  # never by more than one code


def test_the_two_roundings_agree_when_no_shift_follows():
    """The twin: without a right shift there is no second rounding, and these scales make no exact ties."""
    accumulator, multiplier, _ = plausible_layer()
    double, single = (fixedpoint.requantize(accumulator, multiplier, 0, rounding) for rounding in C)
    assert np.count_nonzero(double != single) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1 << 31, 1, 0), ValueError, "accumulator spans 2,147,483,648 .* -2,147,483,648 to 2,147,483,647"),
        ((1, 1 << 31, 0), ValueError, "multiplier spans"),
        ((1, 1, 31), ValueError, "shift spans 31 to 31; have: -31 to 30"),
        ((1, 1, -32), ValueError, "shift spans"),
        ((1.0, 1, 0), TypeError, "accumulator has dtype float64; have: integers"),
        ((True, 1, 0), TypeError, "accumulator has dtype bool"),
        ((1, 1, 0, "stochastic"), ValueError, "no rounding 'stochastic'; have: double, single"),
    ],
)
def test_requantize_refuses(arguments, error, text):
    with pytest.raises(error, match=text):
        fixedpoint.requantize(*arguments)


# --- scales ----------------------------------------------------------------------------------------------------------


@given(st.floats(2.0**-32, 2.0**29))
@example(1.0)
@example(0.5)
@example(math.nextafter(1.0, 0))
@example(2.0**-32)
def test_a_multiplier_is_normalised_and_within_half_a_step_of_its_scale(real):
    multiplier, shift = (int(part) for part in fixedpoint.quantize_multiplier(real))
    assert HALF_Q31 <= multiplier <= INT32_MAX
    assert abs(Fraction(real) - multiplier * Fraction(2) ** (shift - 31)) <= Fraction(2) ** (shift - 32)


def test_a_multiplier_rounds_its_tie_away_from_zero():
    assert fixedpoint.quantize_multiplier((HALF_Q31 + 0.5) / 2**31)[0] == HALF_Q31 + 1


def test_a_scale_just_under_one_carries_into_the_shift():
    assert [int(part) for part in fixedpoint.quantize_multiplier(1 - 2.0**-33)] == [HALF_Q31, 1]


@pytest.mark.parametrize("real", [0.0, 2.0**-34, 5e-324])
def test_a_scale_too_small_for_int32_is_zero(real):
    assert [int(part) for part in fixedpoint.quantize_multiplier(real)] == [0, 0]


def test_multipliers_come_in_the_shape_of_their_scales():
    multiplier, shift = fixedpoint.quantize_multiplier(np.array([[0.5, 0.0], [1.5, 0.003]]))
    assert multiplier.dtype == shift.dtype == np.int32
    assert multiplier.tolist() == [[HALF_Q31, 0], [3 << 29, round(0.003 * 2**39)]]
    assert shift.tolist() == [[0, 0], [1, -8]]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_a_common_shift_is_the_largest_channels_and_every_channel_keeps_half_a_step_of_it(real):
    multiplier, shift = fixedpoint.common_shift_multipliers(np.array(real))
    largest_multiplier, largest_shift = fixedpoint.quantize_multiplier(max(real))
    assert (multiplier.max(), shift) == (largest_multiplier, largest_shift)
    assert multiplier.dtype == np.int32 and type(shift) is int
    for scale, part in zip(real, multiplier.tolist(), strict=True):
        assert abs(Fraction(scale) - part * Fraction(2) ** (shift - 31)) <= Fraction(2) ** (shift - 32)


def test_a_common_shift_gives_the_codes_that_a_shift_a_channel_gives_within_one():
    """A channel within a factor of two of the largest has the same pair; a smaller one has fewer bits to round from."""
    accumulator, *_ = plausible_layer()
    real = np.random.default_rng(1).uniform(0.0001, 0.003, 64)
    own_multiplier, own_shift = fixedpoint.quantize_multiplier(real)
    multiplier, shift = fixedpoint.common_shift_multipliers(real)
    same = own_shift == shift
    assert 0 < same.sum() < same.size
    np.testing.assert_array_equal(multiplier[same], own_multiplier[same])
    own = fixedpoint.requantize(accumulator, own_multiplier, own_shift).astype(np.int64)
    assert np.abs(own - fixedpoint.requantize(accumulator, multiplier, shift)).max() <= 1


@pytest.mark.parametrize("quantize", [fixedpoint.quantize_multiplier, fixedpoint.common_shift_multipliers])
@pytest.mark.parametrize("real", [[-0.1], [math.nan], [math.inf], [0.5, -1e-9], [2.0**30], [1e300]])
def test_a_scale_that_is_none_is_refused(quantize, real):
    with pytest.raises(ValueError, match=r"negative or not finite|left shift over 30"):
        quantize(np.array(real))


def test_a_layer_without_channels_is_refused():
    with pytest.raises(ValueError, match="at least one channel"):
        fixedpoint.common_shift_multipliers(np.array([]))


# --- accumulators and codes ------------------------------------------------------------------------------------------


@given(st.data())
def test_dense_is_the_sum_of_products_of_pythons_integers(data):
    inputs, outputs = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    code_type, weight_type = data.draw(st.sampled_from([("int8", "int8"), ("int16", "int8"), ("int8", "int16")]))
    draw = {
        dtype: st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for dtype in ("int8", "int16", "int32")
    }
    codes = data.draw(st.lists(draw[code_type], min_size=inputs, max_size=inputs))
    weight = data.draw(
        st.lists(st.lists(draw[weight_type], min_size=inputs, max_size=inputs), min_size=outputs, max_size=outputs)
    )
    bias = data.draw(st.lists(st.integers(-(2**30), 2**30), min_size=outputs, max_size=outputs))
    exact = [sum(w * c for w, c in zip(row, codes, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
    got = fixedpoint.dense_int8(np.array(codes, code_type), np.array(weight, weight_type), np.array(bias, np.int32))
    assert got.dtype == np.int32
    assert got.tolist() == exact


def test_dense_takes_leading_axes_as_samples():
    random = np.random.default_rng(0)
    codes, weight = random.integers(-128, 128, (2, 3, 5), np.int8), random.integers(-127, 128, (4, 5), np.int8)
    bias = random.integers(-1000, 1000, 4, np.int32)
    got = fixedpoint.dense_int8(codes, weight, bias)
    assert got.shape == (2, 3, 4)
    np.testing.assert_array_equal(got[1, 2], fixedpoint.dense_int8(codes[1, 2], weight, bias))


@pytest.mark.parametrize("bias", [INT32_MAX - 16_384 + 1, INT32_MIN])
def test_dense_refuses_an_accumulator_beyond_int32_and_only_then(bias):
    sign = 1 if bias > 0 else -1
    codes, weight = np.array([-128], np.int8), np.array([[-128 * sign]], np.int16)
    with pytest.raises(OverflowError, match="int32 ends at 2,147,483,647"):
        fixedpoint.dense_int8(codes, weight, np.array([bias], np.int32))
    edge = bias - 1 if bias > 0 else bias + 16_384
    assert fixedpoint.dense_int8(codes, weight, np.array([edge], np.int32)) == (INT32_MAX if bias > 0 else INT32_MIN)


def test_dense_refuses_shapes_that_do_not_fit():
    codes, weight, bias = np.zeros((2, 3), np.int8), np.zeros((4, 3), np.int8), np.zeros(4, np.int32)
    for arguments in ((codes[:, :2], weight, bias), (codes, weight, bias[:1]), (codes, weight[0], bias)):
        with pytest.raises(ValueError, match="do not fit"):
            fixedpoint.dense_int8(*arguments)


@given(int32s, st.integers(-128, 127), st.integers(-128, 127), st.integers(-128, 127))
def test_clamp_adds_the_zero_point_without_wrapping(value, zero_point, one_end, other_end):
    low, high = sorted((one_end, other_end))
    got = fixedpoint.clamp_int8(value, zero_point, low, high)
    assert got.dtype == np.int8
    assert got == min(max(value + zero_point, low), high)


def test_clamp_refuses_a_range_that_is_none():
    for low, high in ((-129, 127), (-128, 128), (5, 4)):
        with pytest.raises(ValueError, match="is not a range of int8"):
            fixedpoint.clamp_int8(0, 0, low, high)


# --- observations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@given(st.data())
def test_an_observation_rounds_its_one_float32_product_away_from_zero(bits, data):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    observation = np.float32(data.draw(st.floats(width=32, allow_nan=False, allow_infinity=False)))
    inverse_scale = np.float32(data.draw(st.sampled_from([1.0, 0.5, 12.7]) | st.floats(0, 2.0**20, width=32)))
    # a feature that stays far from zero has its zero point far outside the codes
    zero_point = data.draw(st.integers(low, high) | st.integers(-fixedpoint.ZERO_POINT_MAX, fixedpoint.ZERO_POINT_MAX))
    with np.errstate(over="ignore"):
        product = float(observation * inverse_scale)
    if math.isinf(product):
        expected = low if product < 0 else high
    else:
        expected = min(max(rounded_away(Fraction(product)) + zero_point, low), high)
    got = fixedpoint.quantize_observation(observation, inverse_scale, zero_point, bits)
    assert got.dtype == f"int{bits}"
    assert got == expected


def test_ties_of_an_observation_go_away_from_zero_and_their_neighbours_do_not():
    below_half = np.nextafter(np.float32(0.5), np.float32(0))  # float32: adding 0.5 to it gives 1
    observation = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, below_half, -below_half])
    assert fixedpoint.quantize_observation(observation, 1.0).tolist() == [1, 2, 3, -1, -2, -3, 0, 0]


def test_the_product_is_float32_before_it_rounds():
    """In float64 this product is just below 2.5 and rounds to 2; in float32 it is 2.5 and rounds to 3."""
    observation, inverse_scale = np.float32(0.1), np.float32(25)
    assert float(observation) * float(inverse_scale) != 2.5 and observation * inverse_scale == np.float32(2.5)
    assert fixedpoint.quantize_observation(observation, inverse_scale) == 3


def test_each_feature_has_its_own_scale_and_zero_point():
    observation = np.float32([[1, 1, 1], [-1, 200, -200]])
    got = fixedpoint.quantize_observation(observation, np.float32([1, 10, 100]), np.int32([0, -5, 5]))
    assert got.tolist() == [[1, 5, 105], [-1, 127, -128]]


def test_huge_observations_saturate():
    huge = np.float32([3e38, -3e38])
    assert fixedpoint.quantize_observation(huge, np.float32(1e6), 5).tolist() == [127, -128]  # the product is infinite
    assert fixedpoint.quantize_observation(huge, np.float32(1), 5, 16).tolist() == [32767, -32768]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_observation_or_scale_that_is_not_finite_is_refused(bad):
    for observation, inverse_scale in ((bad, 1.0), (1.0, bad)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            fixedpoint.quantize_observation(np.float32([0, observation]), np.float32(inverse_scale))


def test_a_code_of_another_width_or_a_zero_point_out_of_reach_is_refused():
    with pytest.raises(ValueError, match="no code of 12 bits; have: 8, 16"):
        fixedpoint.quantize_observation(np.float32(1), np.float32(1), 0, 12)
    with pytest.raises(ValueError, match="zero_point spans 262,273"):
        fixedpoint.quantize_observation(np.float32(1), np.float32(1), fixedpoint.ZERO_POINT_MAX + 1, 8)


# --- tables and answers ----------------------------------------------------------------------------------------------


def test_lookup_reads_every_entry_at_its_code():
    table = np.random.default_rng(0).integers(-128, 128, 256, np.int8)
    codes = np.arange(-128, 128, dtype=np.int8)
    got = fixedpoint.lookup(codes, table)
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, table)


def test_interpolate_is_the_formula_on_every_code():
    """All 65,536 codes, against Python's integers; the table jumps from end to end, so both signs meet their ties."""
    random = np.random.default_rng(0)
    table = random.integers(-(2**15), 2**15, 257, np.int16)
    table[100:104] = [-32768, 32767, -32768, 32767]
    codes = np.arange(-(2**15), 2**15).astype(np.int16)
    entries = table.tolist()
    slowly = []
    for code in codes.tolist():
        entry, fraction = divmod(code + 2**15, 256)
        slowly.append(
            math.floor(
                Fraction(entries[entry] * (256 - fraction) + entries[entry + 1] * fraction, 256) + Fraction(1, 2)
            )
        )
    got = fixedpoint.interpolate(codes, table)
    assert got.dtype == np.int16
    assert got.tolist() == slowly


def test_interpolate_of_a_straight_table_is_the_code_itself():
    table = np.clip((np.arange(257) - 128) * 256, -(2**15), 2**15 - 1).astype(np.int16)
    codes = np.arange(-(2**15), 2**15 - 256).astype(np.int16)  # the last entry is clipped
    np.testing.assert_array_equal(fixedpoint.interpolate(codes, table), codes)


@pytest.mark.parametrize(("read", "length"), [(fixedpoint.lookup, 256), (fixedpoint.interpolate, 257)])
def test_a_table_of_another_length_is_refused(read, length):
    with pytest.raises(ValueError, match=rf"table has shape \(255,\); have: \({length},\)"):
        read(np.int8(0), np.zeros(255, np.int8))


@given(int32s, st.floats(2.0**-30, 1.0, width=32))
@example(2**24 + 1, 1.0)
@example(2**24 + 3, 1.0)
def test_dequantize_rounds_the_conversion_and_the_product_and_nothing_else(accumulator, scale):
    got = fixedpoint.dequantize(np.int32(accumulator), np.float32(scale))
    assert got.dtype == np.float32
    assert got == np.float32(float(np.float32(accumulator)) * scale)  # 48 bits: exact in float64, then one rounding


def test_dequantize_takes_a_scale_a_channel():
    got = fixedpoint.dequantize(np.int32([[1, 2], [3, 4]]), np.float32([0.5, 0.25]))
    assert got.tolist() == [[0.5, 0.5], [1.5, 1.0]]


def test_argmax_is_the_first_of_the_largest():
    got = fixedpoint.argmax(np.int32([[1, 3, 3], [INT32_MIN, INT32_MIN, INT32_MIN], [0, -1, INT32_MAX]]))
    assert got.dtype == np.int32
    assert got.tolist() == [1, 0, 2]


# ---- int16 ----


def test_int16_rounds_once_with_ties_up() -> None:
    """By fractions; CMSIS-NN's two steps and TFLite's one are the same number."""
    rng = np.random.default_rng(0)
    accumulator = np.concatenate([rng.integers(-(2**31), 2**31, 4000), rng.integers(-9, 10, 4000)])
    multiplier, shift = rng.integers(2**14, 2**15, 8000), rng.integers(-12, 1, 8000)
    accumulator[:4000] >>= np.maximum(shift[:4000] + 2, 0)
    accumulator[-1000:] = rng.integers(-9, 10, 1000) * 2 + 1
    multiplier[-1000:], shift[-1000:] = 2**14, 0  # halves
    got = fixedpoint.requantize_int16(accumulator, multiplier, shift)
    for value, acc, mult, left in zip(
        got.tolist(), accumulator.tolist(), multiplier.tolist(), shift.tolist(), strict=True
    ):
        assert value == math.floor(Fraction(acc * mult, 2 ** (15 - left)) + Fraction(1, 2))
        assert value == ((acc * mult >> (14 - left)) + 1) >> 1  # arm_nn_requantize_s64
        assert value == (acc * mult + (1 << (14 - left))) >> (15 - left)  # MultiplyByQuantizedMultiplier


def test_a_multiplier_is_reduced_as_cmsis_nn_reduces_it() -> None:
    ends = [0, 1, 2**15 - 1, 2**15, 2**30, 0x7FFE7FFF, 0x7FFE8000, 0x7FFEFFFF, 0x7FFF0000, 2**31 - 1]
    multiplier = np.concatenate([ends, np.random.default_rng(0).integers(2**30, 2**31, 1000)])
    wanted = [(m + (1 << 15)) >> 16 if m < 0x7FFF0000 else 0x7FFF for m in multiplier.tolist()]
    np.testing.assert_array_equal(fixedpoint.reduce_multiplier(multiplier), wanted)


@pytest.mark.parametrize(
    ("accumulator", "multiplier", "shift", "error", "said"),
    [
        (2**31, 2**15 - 1, 0, OverflowError, "a requantised accumulator spans 2,147,418,112"),
        (2**47, 1, -20, ValueError, "accumulator spans"),
        (1, 2**15, 0, ValueError, "multiplier spans 32,768"),
        (1, -1, 0, ValueError, "multiplier spans -1"),
        (1, 1, 8, ValueError, "shift spans 8 to 8; have: -31 to 7"),
        (1, 1, -32, ValueError, "shift spans -32"),
        (1.0, 1, 0, TypeError, "accumulator has dtype float64"),
    ],
)
def test_int16_refuses_what_the_device_would_not_compute(
    accumulator: float, multiplier: int, shift: int, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=re.escape(said)):
        fixedpoint.requantize_int16(np.array([accumulator]), multiplier, shift)
