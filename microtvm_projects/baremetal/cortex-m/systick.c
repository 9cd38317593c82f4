/* SPDX-License-Identifier: Apache-2.0 */
#include "ticks.h"

#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)

#define COUNTER_BITS 24
#define COUNTER_TOP ((1u << COUNTER_BITS) - 1u)
#define ENABLE_WITH_INTERRUPT_FROM_CORE_CLOCK 7u

static volatile uint32_t wraps;

void SysTick_Handler(void); /* in the vector table */

void SysTick_Handler(void)
{
    wraps++;
}

void ticks_start(void)
{
    wraps = 0;
    SYST_RVR = COUNTER_TOP;
    SYST_CVR = 0;
    SYST_CSR = ENABLE_WITH_INTERRUPT_FROM_CORE_CLOCK;
    while (SYST_CVR == 0) { /* the reload takes a tick; read before it, the counter would seem about to wrap */
    }
}

void ticks_stop(void)
{
    SYST_CSR = 0;
}

uint32_t ticks_now(void)
{
    uint32_t before, counter;
    do { /* again when the counter wrapped between the two reads */
        before = wraps;
        counter = SYST_CVR;
    } while (before != wraps);
    return (before << COUNTER_BITS) + (COUNTER_TOP - counter);
}
