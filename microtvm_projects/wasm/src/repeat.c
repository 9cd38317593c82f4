/* SPDX-License-Identifier: Apache-2.0 */
/* Inferences to time: a call from JavaScript costs as much as a small policy, so the loop is on this side of it. */
#include "vectors.h"

void repeat(uint32_t n);

void repeat(uint32_t n)
{
    policy_function *volatile policy = POLICY; /* volatile: the compiler must not see through the loop */
    policy_action answered[N_ACTIONS];
    for (uint32_t i = 0; i < n; i++) {
        policy_function *call = policy;
        (void)POLICY_CALL(call, test_observations[i % N_VECTORS], answered);
    }
}
