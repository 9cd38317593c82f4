/* SPDX-License-Identifier: Apache-2.0 */
/* The core's own counter as the loop's clock. */
#include "loop.h"
#include "ticks.h"

/* The counter's 32 bits, and how often they were full: true as long as it is asked more often than that. */
uint64_t loop_now(void)
{
    static uint64_t now;
    now += (uint32_t)(ticks_now() - (uint32_t)now);
    return now;
}

/* The loop asks for the time again and again. With a timer that wakes the core, set it here and sleep: wfi. */
void loop_wait_until(uint64_t time)
{
    (void)time;
}
