/* SPDX-License-Identifier: Apache-2.0 */
#define CODE int16_t
#define LEAST_LEFT 0
#include "elementwise.h"

arm_cmsis_nn_status arm_elementwise_add_s16(
    const int16_t *input_1_vect, const int16_t *input_2_vect, const int32_t input_1_offset, const int32_t input_1_mult,
    const int32_t input_1_shift, const int32_t input_2_offset, const int32_t input_2_mult, const int32_t input_2_shift,
    const int32_t left_shift, int16_t *output, const int32_t out_offset, const int32_t out_mult, const int32_t out_shift,
    const int32_t out_activation_min, const int32_t out_activation_max, const int32_t block_size)
{
    return sum(
        input_1_vect, input_2_vect, input_1_offset, input_1_mult, input_1_shift, input_2_offset, input_2_mult, input_2_shift,
        left_shift, output, out_offset, out_mult, out_shift, out_activation_min, out_activation_max, block_size);
}
