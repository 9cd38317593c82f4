/* SPDX-License-Identifier: Apache-2.0 */
/* The core's counter of time, as 32 bits. */
#ifndef TICKS_H
#define TICKS_H

#include <stdint.h>

void ticks_start(void);
void ticks_stop(void);
uint32_t ticks_now(void);

#endif
