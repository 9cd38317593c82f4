/* SPDX-License-Identifier: Apache-2.0 */
/* Both functions of the stand-in: `step` is 1 where every output has a multiplier and a shift, 0 where all share one.
 * The arithmetic is that of relay_passes/fixedpoint.py, in 64 bits. */
#ifndef FULLY_CONNECTED_H
#define FULLY_CONNECTED_H

#include <stddef.h>

#include "arm_nnfunctions.h"
#include "requantized.h"

static int is_in(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

static int arguments_are_right(
    const cmsis_nn_context *ctx, const cmsis_nn_fc_params *p, const cmsis_nn_dims *input, const int8_t *x,
    const cmsis_nn_dims *filter, const int8_t *weight, const cmsis_nn_dims *bias_dims, const int32_t *bias,
    const cmsis_nn_dims *output, const int8_t *out)
{
    if (!ctx || !p || !input || !x || !filter || !weight || !bias_dims || !bias || !output || !out) {
        return 0;
    }
    if (input->n < 1 || input->h * input->w * input->c != filter->n || filter->n < 1 || output->n != input->n
        || output->c != filter->c || output->c < 1 || bias_dims->c != output->c) {
        return 0;
    }
    if (!is_in(p->input_offset, -127, 128) || p->filter_offset != 0 || !is_in(p->output_offset, -128, 127)
        || !is_in(p->activation.min, -128, p->activation.max) || p->activation.max > 127) {
        return 0;
    }
    if ((uintptr_t)x < (uintptr_t)(out + output->n * output->c) && (uintptr_t)out < (uintptr_t)(x + input->n * filter->n)) {
        return 0; /* an output over an input that is still to be read */
    }
#if defined(ARM_MATH_MVEI)
    const int32_t *sums = ctx->buf;
    if (!sums || ctx->size != filter->c * (int32_t)sizeof(int32_t)) {
        return 0;
    }
    for (int32_t row = 0; row < filter->c; row++) {
        int64_t sum = bias[row];
        for (int32_t k = 0; k < filter->n; k++) {
            sum += (int64_t)p->input_offset * weight[row * filter->n + k];
        }
        if (sums[row] != sum) {
            return 0;
        }
    }
#else
    if (ctx->buf || ctx->size != 0) {
        return 0; /* a build without Helium asks for no buffer */
    }
#endif
    return 1;
}

static arm_cmsis_nn_status fully_connected(
    const cmsis_nn_context *ctx, const cmsis_nn_fc_params *p, const int32_t *multiplier, const int32_t *shift, int32_t step,
    const cmsis_nn_dims *input, const int8_t *x, const cmsis_nn_dims *filter, const int8_t *weight,
    const cmsis_nn_dims *bias_dims, const int32_t *bias, const cmsis_nn_dims *output, int8_t *out)
{
    if (!arguments_are_right(ctx, p, input, x, filter, weight, bias_dims, bias, output, out) || !multiplier || !shift) {
        return ARM_CMSIS_NN_ARG_ERROR;
    }
    for (int32_t i = 0; i < output->n * output->c; i++) {
        const int32_t row = i % output->c, batch = i / output->c;
        int64_t sum = bias[row];
        for (int32_t k = 0; k < filter->n; k++) {
            sum += (int64_t)(x[batch * filter->n + k] + p->input_offset) * weight[row * filter->n + k];
        }
        if (!is_in(sum, INT32_MIN, INT32_MAX) || !is_in(shift[step * row], -31, 30) || multiplier[step * row] == INT32_MIN) {
            return ARM_CMSIS_NN_ARG_ERROR;
        }
        const int64_t code = requantized(sum, multiplier[step * row], shift[step * row]) + p->output_offset;
        const int64_t above = code < p->activation.min ? p->activation.min : code;
        out[i] = (int8_t)(above > p->activation.max ? p->activation.max : above);
    }
    return ARM_CMSIS_NN_SUCCESS;
}

#endif
