/* SPDX-License-Identifier: Apache-2.0 */
/* SysTick as a 32-bit tick counter. */
#ifndef SYSTICK_H
#define SYSTICK_H

#include <stdint.h>

void systick_start(void);
void systick_stop(void);
uint32_t systick_ticks(void);

void SysTick_Handler(void); /* in the vector table */

#endif
