/* SPDX-License-Identifier: Apache-2.0 */
#include "fully_connected.h"

arm_cmsis_nn_status arm_fully_connected_per_channel_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_fc_params *fc_params, const cmsis_nn_per_channel_quant_params *quant_params,
    const cmsis_nn_dims *input_dims, const int8_t *input_data, const cmsis_nn_dims *filter_dims, const int8_t *kernel,
    const cmsis_nn_dims *bias_dims, const int32_t *bias_data, const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    return fully_connected(
        ctx, fc_params, quant_params ? quant_params->multiplier : NULL, quant_params ? quant_params->shift : NULL, 1,
        input_dims, input_data, filter_dims, kernel, bias_dims, bias_data, output_dims, output_data);
}
