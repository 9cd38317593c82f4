/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic is that of relay_passes/fixedpoint.py, in 64 bits. There is no status: what the real library would take on
 * trust, or has no bits for, becomes a row of the code 42, which no row of probabilities is. */
#include <string.h>

#include "arm_nnfunctions.h"

#define WRONG 42
#define Q31_MAX INT32_MAX

static int64_t floor_shift(int64_t value, int32_t bits)
{
    const int64_t unit = (int64_t)1 << bits;
    return (value >= 0 ? value : value - (unit - 1)) / unit;
}

static int64_t product(int64_t a, int64_t b) { return floor_shift(a * b + ((int64_t)1 << 30), 31); }

static int64_t divided(int64_t value, int32_t bits) /* ties away from zero */
{
    const int64_t magnitude = ((value < 0 ? -value : value) + ((int64_t)1 << (bits - 1))) >> bits;
    return value < 0 ? -magnitude : magnitude;
}

static int64_t power(int64_t value) /* exp(value / 2^26), value <= 0 */
{
    static const int32_t quarter[] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    const int64_t whole = (-value - 1) / (1 << 24); /* quarters, so that the part left is in [-1/4, 0) */
    const int64_t part = value + whole * (1 << 24);
    const int64_t x = part * 32 + (1 << 28), square = product(x, x);
    const int64_t cubic = divided(product(square, square), 2) + product(square, x);
    int64_t result = 1895147668 + product(1895147668, x + divided(product(cubic, 715827883) + square, 1));
    if (value == 0) {
        return Q31_MAX;
    }
    for (int32_t bit = 0; bit < 7; bit++) {
        result = (whole >> bit) & 1 ? product(result, quarter[bit]) : result;
    }
    return result;
}

static int64_t inverse(int64_t fraction) /* 1 / (1 + fraction / 2^31) */
{
    const int64_t half = (fraction + ((int64_t)1 << 31)) / 2;
    int64_t x = 1515870810 + product(half, -1010580540);
    for (int32_t step = 0; step < 3; step++) {
        x += product(x, ((int64_t)1 << 29) - product(half, x)) * 4;
    }
    return 2 * x > Q31_MAX ? Q31_MAX : 2 * x;
}

void arm_softmax_s8(
    const int8_t *input, const int32_t num_rows, const int32_t row_size, const int32_t mult, const int32_t shift,
    const int32_t diff_min, int8_t *output)
{
    if (!input || !output || num_rows < 1 || row_size < 1) {
        return;
    }
    memset(output, WRONG, (size_t)(num_rows * row_size));
    /* a sum of more than 255 numbers, or a difference that is shifted out of 32 bits, has no room */
    if (row_size > 255 || mult < (1 << 30) || shift < 0 || shift > 30 || diff_min > 0
        || -(int64_t)diff_min * ((int64_t)1 << shift) > (int64_t)31 << 26
        || ((uintptr_t)input < (uintptr_t)(output + num_rows * row_size)
            && (uintptr_t)output < (uintptr_t)(input + num_rows * row_size))) {
        return;
    }
    for (int32_t row = 0; row < num_rows; row++, input += row_size, output += row_size) {
        int32_t largest = input[0], headroom = 0;
        int64_t sum = 0;
        for (int32_t i = 1; i < row_size; i++) {
            largest = input[i] > largest ? input[i] : largest;
        }
        for (int32_t i = 0; i < row_size; i++) {
            const int64_t difference = input[i] - largest;
            sum += difference < diff_min ? 0 : divided(power(product(difference * ((int64_t)1 << shift), mult)), 12);
        }
        while ((sum << headroom) < ((int64_t)1 << 31)) {
            headroom++;
        }
        const int64_t scale = inverse((sum << headroom) - ((int64_t)1 << 31));
        for (int32_t i = 0; i < row_size; i++) {
            const int64_t difference = input[i] - largest;
            const int64_t q31 = difference < diff_min ? 0 : power(product(difference * ((int64_t)1 << shift), mult));
            const int64_t steps = divided(product(scale, q31), 35 - headroom);
            output[i] = (int8_t)((steps > 255 ? 255 : steps) - 128);
        }
    }
}
