/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MEASURE_H
#define MEASURE_H

#include <stdint.h>

/* Print "instructions per inference: 1234.56". True under QEMU's -icount shift=0, where virtual time is instructions. */
void measure_instructions(void);

/* Print "stack bytes: 128": how deep a call of the policy goes. */
void measure_stack(void);

/* Print what a call takes when so many calls take so many ticks: "1234.56". */
void console_instructions(uint32_t ticks, uint32_t calls);

#endif
