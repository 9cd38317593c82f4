/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic is that of relay_passes/fixedpoint.py. What the real library computes in fewer bits on some cores, it
 * refuses here: sums of products beyond 32 bits, and values that lose bits as they are requantised. */
#include <stddef.h>

#include "arm_nnfunctions.h"

static int is_in(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

static int64_t rounded(int64_t product, int32_t right) /* to the nearest, ties up */
{
    const int64_t one = (int64_t)1 << right, up = product + one / 2;
    return (up >= 0 ? up : up - (one - 1)) / one;
}

static int arguments_are_right(
    const cmsis_nn_context *ctx, const cmsis_nn_fc_params *p, const cmsis_nn_per_tensor_quant_params *q,
    const cmsis_nn_dims *input, const int16_t *x, const cmsis_nn_dims *filter, const int8_t *weight,
    const cmsis_nn_dims *bias_dims, const int64_t *bias, const cmsis_nn_dims *output, const int16_t *out)
{
    if (!ctx || !p || !q || !input || !x || !filter || !weight || !bias_dims || !bias || !output || !out) {
        return 0;
    }
    if (input->n < 1 || input->h * input->w * input->c != filter->n || filter->n < 1 || output->n != input->n
        || output->c != filter->c || output->c < 1 || bias_dims->c != output->c) {
        return 0;
    }
    if (p->input_offset != 0 || p->filter_offset != 0 || p->output_offset != 0
        || !is_in(p->activation.min, INT16_MIN, p->activation.max) || p->activation.max > INT16_MAX) {
        return 0; /* codes are symmetric: nothing reads an offset */
    }
    if ((uintptr_t)x < (uintptr_t)(out + output->n * output->c) && (uintptr_t)out < (uintptr_t)(x + input->n * filter->n)) {
        return 0; /* an output over an input that is still to be read */
    }
    return !ctx->buf && ctx->size == 0 && is_in(q->shift, -31, 7) && q->multiplier > 0; /* no build asks for a buffer */
}

arm_cmsis_nn_status arm_fully_connected_s16(
    const cmsis_nn_context *ctx, const cmsis_nn_fc_params *p, const cmsis_nn_per_tensor_quant_params *q,
    const cmsis_nn_dims *input, const int16_t *x, const cmsis_nn_dims *filter, const int8_t *weight,
    const cmsis_nn_dims *bias_dims, const int64_t *bias, const cmsis_nn_dims *output, int16_t *out)
{
    if (!arguments_are_right(ctx, p, q, input, x, filter, weight, bias_dims, bias, output, out)) {
        return ARM_CMSIS_NN_ARG_ERROR;
    }
    const int64_t multiplier = q->multiplier < 0x7FFF0000 ? rounded(q->multiplier, 16) : 0x7FFF;
    for (int32_t i = 0; i < output->n * output->c; i++) {
        const int32_t row = i % output->c, batch = i / output->c;
        int64_t sum = 0;
        for (int32_t k = 0; k < filter->n; k++) {
            sum += (int32_t)x[batch * filter->n + k] * weight[row * filter->n + k];
            if (!is_in(sum, INT32_MIN, INT32_MAX)) {
                return ARM_CMSIS_NN_ARG_ERROR;
            }
        }
        const int64_t code = rounded((sum + bias[row]) * multiplier, 15 - q->shift);
        if (!is_in(code, -((int64_t)1 << 30), ((int64_t)1 << 30) - 1)) {
            return ARM_CMSIS_NN_ARG_ERROR;
        }
        const int64_t above = code < p->activation.min ? p->activation.min : code;
        out[i] = (int16_t)(above > p->activation.max ? p->activation.max : above);
    }
    return ARM_CMSIS_NN_SUCCESS;
}
