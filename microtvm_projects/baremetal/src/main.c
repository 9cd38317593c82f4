/* SPDX-License-Identifier: Apache-2.0 */
/* The policy on the bare metal: is it right, what does it cost, and answers for whoever brings observations. */
#include "console.h"
#include "measure.h"
#include "replay.h"
#include "stream.h"
#include "vectors.h"

int main(void)
{
    console_text("policy " POLICY_NAME "\n");
    const int wrong = replay_vectors();
    measure_instructions();
    measure_stack();
    const int streamed = stream_observations();
    console_text("done\n"); /* its absence tells a crash from a wrong answer */
    return wrong == 0 && streamed == 0 ? 0 : 1;
}
