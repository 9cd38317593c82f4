/* SPDX-License-Identifier: Apache-2.0 */
/* What one inference costs: the policy's loop minus the same loop around a function that does nothing. */
#include "measure.h"

#include <stdint.h>

#include "board.h"
#include "console.h"
#include "systick.h"
#include "vectors.h"

#define ROUNDS ((1000 + N_VECTORS - 1) / N_VECTORS) /* every vector equally often, a thousand inferences at least */
#define INFERENCES (ROUNDS * N_VECTORS)

#define PAINT 0xa5c3965au

/* Volatile, so that policy and empty function are called by the very same machine code. */
static policy_function *volatile subject;

static __attribute__((noinline)) uint32_t ticks_of_subject(void)
{
    policy_function *const call = subject;
    policy_action action[N_ACTIONS];
    const uint32_t start = systick_ticks();
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t row = 0; row < N_VECTORS; row++) {
            (void)POLICY_CALL(call, test_observations[row], action);
        }
    }
    return systick_ticks() - start;
}

void measure_instructions(void)
{
    systick_start();
    subject = no_policy;
    const uint32_t empty = ticks_of_subject();
    subject = POLICY;
    const uint32_t ticks = ticks_of_subject() - empty;
    systick_stop();

    /* Hundredths of an instruction; the whole ticks and the rest apart, so that 32 bits hold them. */
    const uint32_t hundredths = ticks / INFERENCES * INSTRUCTIONS_PER_100_TICKS
                                + ticks % INFERENCES * INSTRUCTIONS_PER_100_TICKS / INFERENCES;
    console_text("instructions per inference: ");
    console_unsigned(hundredths / 100);
    console_text(hundredths % 100 < 10 ? ".0" : ".");
    console_unsigned(hundredths % 100);
    console_text("\n");
}

/* Paint everything below this frame, call, and look for the lowest word that lost its paint. */
static __attribute__((noinline)) uint32_t stack_of_subject(void)
{
    extern uint32_t stack_bottom[]; /* from the linker script */
    policy_function *const call = subject;
    policy_action action[N_ACTIONS];
    uintptr_t top;
    __asm__ volatile("mov %0, sp" : "=r"(top));

    volatile uint32_t *word = stack_bottom;
    for (; (uintptr_t)word < top; word++) {
        *word = PAINT;
    }
    for (uint32_t row = 0; row < N_VECTORS; row++) {
        (void)POLICY_CALL(call, test_observations[row], action);
    }
    for (word = stack_bottom; (uintptr_t)word < top && *word == PAINT; word++) {
    }
    return (uint32_t)(top - (uintptr_t)word);
}

void measure_stack(void)
{
    subject = no_policy;
    const uint32_t empty = stack_of_subject();
    subject = POLICY;
    console_text("stack bytes: ");
    console_unsigned(stack_of_subject() - empty);
    console_text("\n");
}
