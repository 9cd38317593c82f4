/* SPDX-License-Identifier: Apache-2.0 */
/* The debugger's files as recording. */
#include "loop.h"
#include "recording.h"
#include "semihosting.h"

#define OBSERVATIONS "observations.csv"
#define ACTIONS "actions.bin"

static int observations, actions;

const char *recording_open(void)
{
    observations = semihosting_open(OBSERVATIONS, SEMIHOSTING_READ);
    if (observations < 0) {
        return 0;
    }
    actions = semihosting_open(ACTIONS, SEMIHOSTING_WRITE);
    return OBSERVATIONS;
}

int recording_byte(void)
{
    static uint8_t bytes[256];
    static size_t next, count;
    if (next == count) {
        count = sizeof bytes - semihosting_read(observations, bytes, sizeof bytes);
        next = 0;
        if (count == 0) {
            return -1;
        }
    }
    return bytes[next++];
}

/* As bytes: float32 or int32, little-endian, N_ACTIONS a row. */
void recording_write(const policy_action action[N_ACTIONS])
{
    if (actions > 0 && semihosting_write(actions, action, N_ACTIONS * sizeof action[0]) != 0) {
        LOOP_LOG(LOOP_ERROR, "cannot write " ACTIONS ", bytes a row: ", (uint32_t)(N_ACTIONS * sizeof action[0]));
        semihosting_exit(1);
    }
}
