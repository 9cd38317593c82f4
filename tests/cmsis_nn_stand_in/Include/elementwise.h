/* SPDX-License-Identifier: Apache-2.0 */
/* All sums and products of the stand-in. CODE is what they are of, LEAST_LEFT the least shift to the left of a sum: a build
 * with DSP instructions keeps 16 bits of an int8 code, whose sign the shift has to push out. Codes of int16 have no offsets.
 * The arithmetic is that of relay_passes/fixedpoint.py, in 64 bits, without a look at how a sum was shifted to be exact. */
#ifndef ELEMENTWISE_H
#define ELEMENTWISE_H

#include "arm_nnfunctions.h"
#include "requantized.h"

static int is_offset(int32_t offset, int32_t low, int32_t high)
{
    return sizeof(CODE) == 1 ? low <= offset && offset <= high : offset == 0;
}

static int elements_are_right(
    const CODE *x, const CODE *y, int32_t offset_x, int32_t offset_y, const CODE *out, int32_t offset, int32_t multiplier,
    int32_t shift, int32_t low, int32_t high, int32_t size)
{
    const int32_t most = sizeof(CODE) == 1 ? 127 : 32767;
    if (!x || !y || !out || size < 1 || multiplier < 0 || shift > 0 || shift < -30) {
        return 0;
    }
    if (!is_offset(offset_x, -127, 128) || !is_offset(offset_y, -127, 128) || !is_offset(offset, -128, 127)) {
        return 0;
    }
    if (low < -most - 1 || low > high || high > most) {
        return 0;
    }
    return (x + size <= out || out + size <= x) && (y + size <= out || out + size <= y);
}

static CODE narrowed(int64_t value, int32_t offset, int32_t multiplier, int32_t shift, int32_t low, int32_t high)
{
    const int64_t code = requantized(value, multiplier, shift) + offset;
    return (CODE)(code < low ? low : code > high ? high : code);
}

static int fits(int64_t value) { return INT32_MIN <= value && value <= INT32_MAX; }

#if defined(LEAST_LEFT)
static arm_cmsis_nn_status sum(
    const CODE *x, const CODE *y, int32_t offset_x, int32_t multiplier_x, int32_t shift_x, int32_t offset_y,
    int32_t multiplier_y, int32_t shift_y, int32_t left, CODE *out, int32_t offset, int32_t multiplier, int32_t shift,
    int32_t low, int32_t high, int32_t size)
{
    if (!elements_are_right(x, y, offset_x, offset_y, out, offset, multiplier, shift, low, high, size) || left < LEAST_LEFT
        || left > 24 || shift_x > 0 || shift_y > 0) {
        return ARM_CMSIS_NN_ARG_ERROR;
    }
    for (int32_t i = 0; i < size; i++) {
        const int64_t shifted_x = (x[i] + offset_x) * ((int64_t)1 << left);
        const int64_t shifted_y = (y[i] + offset_y) * ((int64_t)1 << left);
        const int64_t total =
            requantized(shifted_x, multiplier_x, shift_x) + requantized(shifted_y, multiplier_y, shift_y);
        if (!fits(shifted_x) || !fits(shifted_y) || !fits(total)) {
            return ARM_CMSIS_NN_ARG_ERROR;
        }
        out[i] = narrowed(total, offset, multiplier, shift, low, high);
    }
    return ARM_CMSIS_NN_SUCCESS;
}
#else
static arm_cmsis_nn_status product(
    const CODE *x, const CODE *y, int32_t offset_x, int32_t offset_y, CODE *out, int32_t offset, int32_t multiplier,
    int32_t shift, int32_t low, int32_t high, int32_t size)
{
    if (!elements_are_right(x, y, offset_x, offset_y, out, offset, multiplier, shift, low, high, size)) {
        return ARM_CMSIS_NN_ARG_ERROR;
    }
    for (int32_t i = 0; i < size; i++) {
        out[i] = narrowed((int64_t)(x[i] + offset_x) * (y[i] + offset_y), offset, multiplier, shift, low, high);
    }
    return ARM_CMSIS_NN_SUCCESS;
}
#endif

#endif
