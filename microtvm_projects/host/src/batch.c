/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */
#include "batch.h"

#include <time.h>

void answer_rows(const float *observations, size_t n, policy_action *actions, int32_t *statuses)
{
    for (size_t row = 0; row < n; row++) {
        statuses[row] = (int32_t)POLICY_CALL(POLICY, observations + row * N_OBS, actions + row * N_ACTIONS);
    }
}

static double nanoseconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

double nanoseconds_per_inference(size_t n)
{
    policy_function *volatile policy = POLICY; /* volatile: the compiler must not see through the loop */
    policy_action action[N_ACTIONS];
    const double start = nanoseconds_now();
    for (size_t i = 0; i < n; i++) {
        policy_function *call = policy;
        (void)POLICY_CALL(call, test_observations[i % N_VECTORS], action);
    }
    return (nanoseconds_now() - start) / (double)n;
}
