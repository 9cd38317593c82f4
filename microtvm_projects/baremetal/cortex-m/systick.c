/* SPDX-License-Identifier: Apache-2.0 */
#include "ticks.h"

#define ICSR (*(volatile uint32_t *)0xE000ED04u)
#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)

#define COUNTER_BITS 24
#define COUNTER_TOP ((1u << COUNTER_BITS) - 1u)
#define ICSR_SYSTICK_PENDING (1u << 26)
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
    uint32_t before, counter, pending;
    do { /* again when the counter wrapped between the reads, or is at 0: there it has interrupted but not yet begun anew */
        before = wraps;
        counter = SYST_CVR;
        pending = ICSR & ICSR_SYSTICK_PENDING;
    } while (before != wraps || counter == 0);
    if (pending && counter > COUNTER_TOP / 2) { /* it began anew before it was read, and its interrupt waits */
        before++;
    }
    return (before << COUNTER_BITS) + (COUNTER_TOP - counter);
}
