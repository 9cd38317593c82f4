/* SPDX-License-Identifier: Apache-2.0 */
/* The counter of retired instructions: a tick is an instruction. */
#include "ticks.h"

void ticks_start(void)
{
}

void ticks_stop(void)
{
}

uint32_t ticks_now(void)
{
    uint32_t retired;
    __asm__ volatile(".option push\n"
                     ".option arch, +zicsr\n"
                     "csrr %0, minstret\n"
                     ".option pop\n"
                     : "=r"(retired));
    return retired;
}
