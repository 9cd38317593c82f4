/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include <stdint.h>

#include "console.h"
#include "semihosting.h"
#include "vectors.h"

static int answer_every_row(int observations, int actions, int statuses)
{
    float row[N_OBS];
    uint32_t rows = 0;
    for (;; rows++) {
        const size_t missing = semihosting_read(observations, row, sizeof row);
        if (missing == sizeof row) {
            break;
        }
        if (missing != 0) {
            console_text("observations.bin ends within a row\n");
            return 1;
        }
        policy_action action[N_ACTIONS] = {0};
        const int32_t status = (int32_t)POLICY_CALL(POLICY, row, action);
        if (semihosting_write(actions, action, sizeof action) != 0
            || semihosting_write(statuses, &status, sizeof status) != 0) {
            console_text("cannot write the answers\n");
            return 1;
        }
    }
    console_text("streamed ");
    console_unsigned(rows);
    console_text("\n");
    return 0;
}

int stream_observations(void)
{
    const int observations = semihosting_open("observations.bin", SEMIHOSTING_READ);
    if (observations < 0) {
        return 0;
    }
    const int actions = semihosting_open("actions.bin", SEMIHOSTING_WRITE);
    const int statuses = semihosting_open("statuses.bin", SEMIHOSTING_WRITE);
    int failed = 1;
    if (actions < 0 || statuses < 0) {
        console_text("cannot write actions.bin and statuses.bin here\n");
    } else {
        failed = answer_every_row(observations, actions, statuses);
    }
    semihosting_close(statuses);
    semihosting_close(actions);
    semihosting_close(observations);
    return failed;
}
