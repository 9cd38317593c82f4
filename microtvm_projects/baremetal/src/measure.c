/* SPDX-License-Identifier: Apache-2.0 */
/* What one inference costs: the policy's loop minus the same loop around a function that does nothing. */
#include "measure.h"

#include <stdint.h>

#include "board.h"
#include "console.h"
#include "core.h"
#include "ticks.h"
#include "vectors.h"

/* A thousand inferences at least, every vector equally often. Of a slow policy fewer will do: ticks are exact to two. */
#define MOST_ROUNDS ((1000 + N_VECTORS - 1) / N_VECTORS)
#define ENOUGH_TICKS (1u << 24)

#define PAINT 0xa5c3965au

/* Volatile, so that policy and empty function are called by the very same machine code. */
static policy_function *volatile subject;
static volatile uint32_t rounds;

static __attribute__((noinline)) uint32_t ticks_of_subject(void)
{
    policy_function *const call = subject;
    const uint32_t last = rounds;
    policy_action action[N_ACTIONS];
    const uint32_t start = ticks_now();
    for (uint32_t round = 0; round < last; round++) {
        for (uint32_t row = 0; row < N_VECTORS; row++) {
            (void)POLICY_CALL(call, test_observations[row], action);
        }
    }
    return ticks_now() - start;
}

void console_instructions(uint32_t ticks, uint32_t calls)
{
    const uint64_t hundredths = (uint64_t)ticks * INSTRUCTIONS_PER_100_TICKS / calls;
    const uint32_t whole = (uint32_t)(hundredths / 100), rest = (uint32_t)(hundredths % 100);
    console_unsigned(whole);
    console_text(rest < 10 ? ".0" : ".");
    console_unsigned(rest);
    console_text("\n");
}

void measure_instructions(void)
{
    ticks_start();
    subject = POLICY;
    rounds = 1;
    uint32_t ticks = ticks_of_subject();
    const uint32_t enough = ENOUGH_TICKS / (ticks + 1) + 1;
    if (enough > 1) {
        rounds = enough < MOST_ROUNDS ? enough : MOST_ROUNDS;
        ticks = ticks_of_subject();
    }
    subject = no_policy;
    ticks -= ticks_of_subject();
    ticks_stop();

    console_text("instructions per inference: ");
    console_instructions(ticks, rounds * N_VECTORS);
}

/* Paint everything below this frame, call, and look for the lowest word that lost its paint. */
static __attribute__((noinline)) uint32_t stack_of_subject(void)
{
    extern uint32_t stack_bottom[]; /* from the linker script */
    policy_function *const call = subject;
    policy_action action[N_ACTIONS];
    const volatile uint32_t *const top = core_stack_pointer();

    volatile uint32_t *word = stack_bottom;
    for (; word < top; word++) {
        *word = PAINT;
    }
    for (uint32_t row = 0; row < N_VECTORS; row++) {
        (void)POLICY_CALL(call, test_observations[row], action);
    }
    for (word = stack_bottom; word < top && *word == PAINT; word++) {
    }
    return (uint32_t)((uintptr_t)top - (uintptr_t)word);
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
