/* SPDX-License-Identifier: Apache-2.0 */
/*
 * observations.bin -> ticks.bin: ticks of REPEATS calls with each row, after those of REPEATS calls of the empty policy.
 * Many calls, since a tick is some thirty instructions and one instruction more in one row has to show.
 */
#include <stdint.h>

#include "console.h"
#include "semihosting.h"
#include "ticks.h"
#include "vectors.h"

#define REPEATS 100

/* Volatile, so that policy and empty function are called by the very same machine code. */
static policy_function *volatile subject;

static __attribute__((noinline)) uint32_t ticks_of_subject(const float row[N_OBS])
{
    policy_function *const call = subject;
    policy_action action[N_ACTIONS];
    const uint32_t start = ticks_now();
    for (uint32_t repeat = 0; repeat < REPEATS; repeat++) {
        (void)POLICY_CALL(call, row, action);
    }
    return ticks_now() - start;
}

int main(void)
{
    console_text("policy " POLICY_NAME "\n");
    float row[N_OBS] = {0};
    const int observations = semihosting_open("observations.bin", SEMIHOSTING_READ);
    const int written = semihosting_open("ticks.bin", SEMIHOSTING_WRITE);
    if (observations < 0 || written < 0) {
        console_text("cannot open observations.bin or ticks.bin\n");
        return 1;
    }
    ticks_start();
    subject = no_policy;
    do {
        const uint32_t ticks = ticks_of_subject(row);
        if (semihosting_write(written, &ticks, sizeof ticks) != 0) {
            console_text("cannot write ticks.bin\n");
            return 1;
        }
        subject = POLICY;
    } while (semihosting_read(observations, row, sizeof row) == 0);
    semihosting_close(written);
    semihosting_close(observations);
    console_text("done\n");
    return 0;
}
