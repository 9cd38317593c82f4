/* SPDX-License-Identifier: Apache-2.0 */
#define CODE int8_t
#include "elementwise.h"

arm_cmsis_nn_status arm_elementwise_mul_s8(
    const int8_t *input_1_vect, const int8_t *input_2_vect, const int32_t input_1_offset, const int32_t input_2_offset,
    int8_t *output, const int32_t out_offset, const int32_t out_mult, const int32_t out_shift,
    const int32_t out_activation_min, const int32_t out_activation_max, const int32_t block_size)
{
    return product(
        input_1_vect, input_2_vect, input_1_offset, input_2_offset, output, out_offset, out_mult, out_shift,
        out_activation_min, out_activation_max, block_size);
}
