/* SPDX-License-Identifier: Apache-2.0 */
#ifndef STREAM_H
#define STREAM_H

/*
 * When the debugger's folder holds "observations.bin" (rows of N_OBS little-endian float32, all inputs joined), answer
 * every row: "actions.bin" gets N_ACTIONS values a row, "statuses.bin" one int32 a row. A row at a time, so any number
 * of rows fits. Prints "streamed <rows>". Returns 0, also when there is no such file.
 */
int stream_observations(void);

#endif
