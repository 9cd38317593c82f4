/* SPDX-License-Identifier: Apache-2.0 */
/* What each layer costs: an inference with many calls of it, less one with a single call, less the loop's own cost. */
#include "console.h"
#include "measure.h"
#include "profile.h"
#include "ticks.h"
#include "vectors.h"

/* A thousand calls at least, of every vector equally many. Of a slow policy fewer will do: ticks are exact to four. */
#define MOST_CALLS (1000 / N_VECTORS + 2)
#define ENOUGH_TICKS (1u << 22)

static uint32_t ticks_of_sweep(uint32_t layer, uint32_t calls)
{
    const uint32_t start = ticks_now();
    profile_sweep(layer, calls);
    return ticks_now() - start;
}

static uint32_t ticks_of_loops(uint32_t calls)
{
    const uint32_t start = ticks_now();
    profile_loops(calls);
    return ticks_now() - start;
}

int main(void)
{
    console_text("profile of " POLICY_NAME "\n");
    ticks_start();
    const uint32_t single = ticks_of_sweep(N_LAYERS, 1);
    const uint32_t enough = ENOUGH_TICKS / (single + 1) + 2;
    const uint32_t calls = enough < MOST_CALLS ? enough : MOST_CALLS;
    const uint32_t loops = ticks_of_loops(calls) - ticks_of_loops(1);
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        const uint32_t both = ticks_of_sweep(layer, calls) - single;
        console_text("layer ");
        console_unsigned(layer);
        console_text(" instructions: ");
        console_instructions(both > loops ? both - loops : 0, (calls - 1) * N_VECTORS);
    }
    ticks_stop();
    console_text("done\n");
    return 0;
}
