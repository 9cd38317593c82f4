/* SPDX-License-Identifier: Apache-2.0 */
/* Is the policy right on this chip, and how fast? */
#include <stdio.h>

#include "console.h"
#include "esp_timer.h"
#include "replay.h"
#include "vectors.h"

#define TIMED_INFERENCES 1000

void app_main(void);

void console_text(const char *text)
{
    fputs(text, stdout);
}

static void time_policy(void)
{
    policy_action action[N_ACTIONS];
    const int64_t start = esp_timer_get_time();
    for (uint32_t i = 0; i < TIMED_INFERENCES; i++) {
        (void)POLICY_CALL(POLICY, test_observations[i % N_VECTORS], action);
    }
    const int64_t nanoseconds = (esp_timer_get_time() - start) * 1000 / TIMED_INFERENCES;
    console_text("nanoseconds per inference: ");
    console_unsigned((uint32_t)nanoseconds);
    console_text("\n");
}

void app_main(void)
{
    console_text("policy " POLICY_NAME "\n");
    (void)replay_vectors();
    time_policy();
    console_text("done\n");
}
