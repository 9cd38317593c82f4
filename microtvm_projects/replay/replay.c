/* SPDX-License-Identifier: Apache-2.0 */
#include "replay.h"

#include <stdint.h>

#include "console.h"
#include "vectors.h"

#if ACTION_IS_FLOAT
static uint32_t bits_of(float value)
{
    const union {
        float value;
        uint32_t bits;
    } both = {value};
    return both.bits;
}

/* Exponent bits, not value != value: a compiler told -ffast-math folds that one away. */
static int is_finite(float value)
{
    return (bits_of(value) & 0x7f800000u) != 0x7f800000u;
}

static int is_same(float answer, float expected)
{
    if (!is_finite(answer) || !is_finite(expected)) {
        return 0;
    }
    if (bits_of(answer) == bits_of(expected)) {
        return 1;
    }
    const float error = answer > expected ? answer - expected : expected - answer;
    return TOLERANCE > 0.0f && error <= TOLERANCE; /* without a tolerance even -0.0 is not 0.0 */
}
#else
static int is_same(policy_action answer, policy_action expected)
{
    return answer == expected;
}
#endif

static int is_right(uint32_t row, int status, const policy_action *action)
{
    if (status != 0) {
        return 0;
    }
    for (uint32_t i = 0; i < N_ACTIONS; i++) {
        if (!is_same(action[i], test_answers[row][i])) {
            return 0;
        }
    }
    return 1;
}

#if VECTORS_IN_FLASH
/* A policy takes its observation from RAM. */
static const float *observation_of(uint32_t row)
{
    static float observation[N_OBS];
    for (uint32_t i = 0; i < N_OBS; i++) {
        observation[i] = test_observations[row][i];
    }
    return observation;
}
#else
static const float *observation_of(uint32_t row)
{
    return test_observations[row];
}
#endif

int replay_vectors(void)
{
    uint32_t right = 0;
    for (uint32_t row = 0; row < N_VECTORS; row++) {
        policy_action action[N_ACTIONS] = {0};
        const float *const observation = observation_of(row);
        const int status = POLICY_CALL(POLICY, observation, action);
        if (is_right(row, status, action)) {
            right++;
        }
        console_text("answer ");
        console_unsigned(row);
        console_text(" status ");
        console_signed((int32_t)status);
        console_text(" action ");
        console_bytes(action, sizeof action);
        console_text("\n");
    }
    console_text(right == N_VECTORS ? "PARITY PASS (" : "PARITY FAIL (");
    console_unsigned(right);
    console_text(" of ");
    console_unsigned(N_VECTORS);
    console_text(")\n");
    return (int)(N_VECTORS - right);
}
