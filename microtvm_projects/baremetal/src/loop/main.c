/* SPDX-License-Identifier: Apache-2.0 */
/* The control loop on the bare metal; loop_config.h has its settings. */
#include "board.h"
#include "console.h"
#include "loop.h"
#include "ticks.h"

#if LOOP_CONTROL_HZ > TICK_HZ
#error "LOOP_CONTROL_HZ is more than the board's clock counts"
#endif

int main(void)
{
    static const struct loop_config CONFIG = {TICK_HZ, LOOP_CONTROL_HZ, LOOP_TICKS, LOOP_BATCH, LOOP_SAFE_ACTION};
    static struct loop_statistics statistics;
    ticks_start();
    const int failed = loop_run(&CONFIG, &statistics);
    ticks_stop();
    console_text("loop of " POLICY_NAME "\n");
    loop_report(&CONFIG, &statistics);
    console_text("done\n");
    return failed;
}
