/* SPDX-License-Identifier: Apache-2.0 */
/* The policy on the bare metal: is it right, what does it cost, and answers for whoever brings observations. */
#include "console.h"
#include "measure.h"
#include "replay.h"
#include "serve.h"
#include "stream.h"
#include "vectors.h"

int main(void)
{
    console_text("policy " POLICY_NAME "\n");
    int failed = 0;
    if (!serve_host()) {
        failed = replay_vectors() != 0;
        measure_instructions();
        measure_stack();
        failed |= stream_observations() != 0;
    }
    console_text("done\n"); /* its absence tells a crash from a wrong answer */
    return failed;
}
