/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What can be said of the loop in a file, one flat JSON object. A setting that is left out is that of loop_config.h:
 *
 *     {"control_hz": 100, "batch": false, "ticks": 0, "safe_action": "zeros", "log_level": "info",
 *      "observations": "observations.csv", "actions": "actions.csv"}
 */
#ifndef SETTINGS_H
#define SETTINGS_H

#include "loop.h"

#define PATH_BYTES 1024

struct settings {
    struct loop_config config;
    char observations[PATH_BYTES], actions[PATH_BYTES]; /* empty: the test vectors, and not written */
};

/* Returns 0, or says on stderr what is wrong, and in which line. */
int settings_read(const char *path, struct settings *settings);

#endif
