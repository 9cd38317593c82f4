/* SPDX-License-Identifier: Apache-2.0 */
/* The control loop on this machine:  loop [--config loop.json] */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "console.h"
#include "loop.h"
#include "platform.h"
#include "settings.h"

static void interrupted(int signal_number)
{
    (void)signal_number;
    loop_stop();
}

int main(int argc, char **argv)
{
    static struct settings settings = {
        {CLOCK_HZ, LOOP_CONTROL_HZ, LOOP_TICKS, LOOP_BATCH, LOOP_SAFE_ACTION},
        "",
        "",
    };
    static struct loop_statistics statistics;

    if (argc == 3 && strcmp(argv[1], "--config") == 0) {
        if (settings_read(argv[2], &settings) != 0) {
            return 1;
        }
    } else if (argc != 1) {
        fprintf(stderr, "error: this takes nothing but --config FILE\n");
        return 1;
    }
    if (files_open(settings.observations, settings.actions) != 0) {
        return 1;
    }
    signal(SIGINT, interrupted);
    signal(SIGTERM, interrupted);
    int failed = loop_run(&settings.config, &statistics);
    failed |= files_close();
    console_report();
    console_text("loop of " POLICY_NAME "\n");
    loop_report(&settings.config, &statistics);
    console_text("done\n");
    return failed != 0;
}
