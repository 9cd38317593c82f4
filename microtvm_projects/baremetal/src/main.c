/* SPDX-License-Identifier: Apache-2.0 */
/* The policy on the bare metal: is it right, what does it cost, and answers for whoever brings observations. */
#include "console.h"
#include "host.h"
#include "measure.h"
#include "replay.h"
#include "vectors.h"

int report(void)
{
    const int failed = replay_vectors() != 0;
    measure_instructions();
    measure_stack();
    return failed;
}

int main(void)
{
    console_text("policy " POLICY_NAME "\n");
    const int failed = host_serve();
    console_text("done\n"); /* its absence tells a crash from a wrong answer */
    return failed;
}
