/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic is that of relay_passes/fixedpoint.py, in 64 bits. What the real library has no bits for it refuses here:
 * differences that are shifted out of 32 bits, and a sum that rounds up to the next power of two. */
#include <stddef.h>

#include "arm_nnfunctions.h"
#include "requantized.h"

static int64_t floored(int64_t value, int32_t bits)
{
    const int64_t unit = (int64_t)1 << bits;
    return (value >= 0 ? value : value - (unit - 1)) / unit;
}

static int64_t line(const int16_t *table, int64_t place) /* 128 places between two entries */
{
    const int64_t below = table[place / 128], above = table[place / 128 + 1];
    return below + floored((above - below) * (place % 128) + 64, 7);
}

static int64_t power(int64_t difference, int32_t mult, int32_t shift, const int16_t *table)
{
    const int64_t place = requantized(difference, mult, shift) + 65535;
    return line(table, place < 0 ? 0 : place);
}

arm_cmsis_nn_status arm_softmax_s16(
    const int16_t *input, const int32_t num_rows, const int32_t row_size, const int32_t mult, const int32_t shift,
    const cmsis_nn_softmax_lut_s16 *softmax_params, int16_t *output)
{
    if (!input || !output || num_rows < 1 || row_size < 1 || row_size > 255 || mult < (1 << 30) || shift < -31
        || shift > 15 || !softmax_params || !softmax_params->exp_lut || !softmax_params->one_by_one_lut
        || softmax_params->exp_lut[512] != INT16_MAX || softmax_params->one_by_one_lut[0] != INT16_MAX
        || ((uintptr_t)input < (uintptr_t)(output + num_rows * row_size)
            && (uintptr_t)output < (uintptr_t)(input + num_rows * row_size))) {
        return ARM_CMSIS_NN_ARG_ERROR;
    }
    for (int32_t row = 0; row < num_rows; row++, input += row_size, output += row_size) {
        int32_t largest = input[0], doubled = 0;
        int64_t sum = 0;
        for (int32_t i = 1; i < row_size; i++) {
            largest = input[i] > largest ? input[i] : largest;
        }
        for (int32_t i = 0; i < row_size; i++) {
            sum += power(input[i] - largest, mult, shift, softmax_params->exp_lut);
        }
        while (sum >> doubled >= (int64_t)1 << 15) {
            doubled++;
        }
        const int64_t fraction = floored((sum << (16 - doubled)) + (1 << 13), 14) - (1 << 16);
        if (fraction >= 1 << 16) {
            return ARM_CMSIS_NN_ARG_ERROR;
        }
        const int64_t inverse = line(softmax_params->one_by_one_lut, fraction);
        for (int32_t i = 0; i < row_size; i++) {
            const int64_t part = power(input[i] - largest, mult, shift, softmax_params->exp_lut);
            const int64_t steps = floored(part * inverse + ((int64_t)1 << (13 + doubled)), 14 + doubled);
            output[i] = (int16_t)(steps > INT16_MAX ? steps - (1 << 16) : steps);
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}
