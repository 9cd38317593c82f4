/* SPDX-License-Identifier: Apache-2.0 */
/* This machine: its clock, its console, and the files of a recording. */
#ifndef PLATFORM_H
#define PLATFORM_H

#define CLOCK_HZ 1000000000u /* of loop_now(): nanoseconds */

/* Paths may be empty: the test vectors, and no actions. Return 0, or say why not. */
int files_open(const char *observations, const char *actions);
int files_close(void);

/* From here on the console is stdout; before, stderr. */
void console_report(void);

#endif
