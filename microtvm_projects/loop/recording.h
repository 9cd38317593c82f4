/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Observations from a file instead of a sensor, CSV:
 *
 *     position,velocity      names, or none
 *     0.25,-1.5e-3           N_OBS numbers: all inputs joined, raw; also nan, inf, -inf
 *
 * Without a file they are the test vectors that the project carries.
 */
#ifndef RECORDING_H
#define RECORDING_H

#include "vectors.h"

/* What sensor_read() returns. A file that cannot be understood is LOOP_BROKEN, and its line is told. */
int recording_read(float observation[N_OBS]);

/* The platform supplies these. */

/* The file's name, or a null pointer when there is none. */
const char *recording_open(void);

/* The file's next byte, -1 at its end. */
int recording_byte(void);

void recording_write(const policy_action action[N_ACTIONS]);

#endif
