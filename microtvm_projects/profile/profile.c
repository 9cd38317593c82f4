/* SPDX-License-Identifier: Apache-2.0 */
#include "profile.h"

#include "vectors.h"

static uint32_t times_of[N_LAYERS + 1], left;

void profile_begin(uint32_t layer)
{
    left = times_of[layer]; /* no condition: it would cost more for one than for the others */
}

/* Where profile_loops could see through it, it would cost less than in the policy. */
__attribute__((noinline)) int profile_again(void)
{
    return left-- != 0;
}

static void choose(uint32_t chosen, uint32_t times)
{
    for (uint32_t layer = 0; layer <= N_LAYERS; layer++) {
        times_of[layer] = layer == chosen ? times : 1;
    }
}

void profile_sweep(uint32_t layer, uint32_t times)
{
    policy_function *volatile policy = POLICY;
    policy_action action[N_ACTIONS];
    choose(layer, times);
    for (uint32_t row = 0; row < N_VECTORS; row++) {
        policy_function *const call = policy;
        (void)POLICY_CALL(call, test_observations[row], action);
    }
}

void profile_loops(uint32_t times)
{
    choose(N_LAYERS, times);
    for (uint32_t row = 0; row < N_VECTORS; row++) {
        for (profile_begin(N_LAYERS); profile_again();) {
        }
    }
}
