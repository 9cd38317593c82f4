/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One kernel on the bare metal: is it right, and what does it cost?
 * Inputs lie in RAM, as they do between the layers of a policy; parameters in flash. What a kernel reads past its inputs
 * is garbage, since it meets weights of zero there; what it writes past its output is a mistake.
 */
#include <stdint.h>

#include "board.h"
#include "console.h"
#include "host.h"
#include "ticks.h"
#include "trial.h"

#define GUARD 0xa5u
#define GUARD_BYTES 16
#define ENOUGH_TICKS (1u << 14) /* a count is off by a tick or two, which is then nothing */
#define MOST_CALLS (1u << 16)

static struct {
    uint8_t before[GUARD_BYTES];
    trial_output values[OUTPUT_LENGTH];
    uint8_t after[GUARD_BYTES];
} output __attribute__((aligned(16)));

#pragma GCC diagnostic ignored "-Wunused-parameter"

static KERNEL_RESULT no_kernel(KERNEL_PARAMETERS)
{
    return NO_RESULT;
}

/* Volatile, so that kernel and empty function are called by the very same machine code. */
static KERNEL_RESULT (*volatile subject)(KERNEL_PARAMETERS);

/* Bit for bit, floats too. */
static int is_right(const trial_output *answer, const trial_output *expected)
{
    for (uint32_t i = 0; i < sizeof *answer; i++) {
        if (((const uint8_t *)answer)[i] != ((const uint8_t *)expected)[i]) {
            return 0;
        }
    }
    return 1;
}

static void examine(void)
{
    uint32_t wrong = 0, overruns = 0;
    for (uint32_t row = 0; row < N_ROWS; row++) {
        uint8_t *const bytes = (uint8_t *)&output;
        for (uint32_t i = 0; i < sizeof output; i++) {
            bytes[i] = GUARD; /* in the values too: what is not written must not be last row's answer */
        }
        KERNEL_CALL(KERNEL, trial_questions[row], output.values);
        for (uint32_t i = 0; i < GUARD_BYTES; i++) {
            overruns += output.before[i] != GUARD || output.after[i] != GUARD;
        }
        for (uint32_t i = 0; i < N_ANSWERS; i++) {
            if (is_right(&output.values[i], &trial_answers[row][i])) {
                continue;
            }
            if (wrong++ == 0) {
                console_text("first wrong: question ");
                console_unsigned(row);
                console_text(" answer ");
                console_unsigned(i);
                console_text(" is ");
                console_bytes(&output.values[i], sizeof(trial_output));
                console_text(", not ");
                console_bytes(&trial_answers[row][i], sizeof(trial_output));
                console_text("\n");
            }
        }
    }
    console_text("wrong ");
    console_unsigned(wrong);
    console_text(" of ");
    console_unsigned(N_ROWS * N_ANSWERS);
    console_text(", overruns ");
    console_unsigned(overruns);
    console_text("\n");
}

static __attribute__((noinline)) uint32_t ticks_of_subject(uint32_t rounds)
{
    KERNEL_RESULT (*const call)(KERNEL_PARAMETERS) = subject;
    const uint32_t start = ticks_now();
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint32_t row = 0; row < N_ROWS; row++) {
            KERNEL_CALL(call, trial_questions[row], output.values);
        }
    }
    return ticks_now() - start;
}

static void count(void)
{
    uint32_t rounds = 1, ticks = 0;
    ticks_start();
    subject = KERNEL;
    while ((ticks = ticks_of_subject(rounds)) < ENOUGH_TICKS && rounds * N_ROWS < MOST_CALLS) {
        rounds *= 2;
    }
    subject = no_kernel;
    const uint32_t empty = ticks_of_subject(rounds);
    ticks_stop();
    const uint64_t hundredths = (uint64_t)(ticks - empty) * INSTRUCTIONS_PER_100_TICKS / (rounds * N_ROWS);
    console_text("hundredths ");
    console_unsigned((uint32_t)hundredths);
    console_text("\n");
}

int report(void)
{
    console_text("trial ");
    console_unsigned(trial_identity);
    console_text("\n");
    examine();
    count();
    return 0;
}

int main(void)
{
    (void)host_serve();
    console_text("done\n"); /* its absence tells a crash from a wrong answer */
    return 0;
}
