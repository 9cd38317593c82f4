/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BATCH_H
#define BATCH_H

#include <stddef.h>
#include <stdint.h>

#include "vectors.h"

/* Answer n rows: observations (n, N_OBS) -> actions (n, N_ACTIONS), statuses (n). */
void answer_rows(const float *observations, size_t n, policy_action *actions, int32_t *statuses);

/* Wall time of n inferences over the test vectors, in nanoseconds per inference. */
double nanoseconds_per_inference(size_t n);

#endif
