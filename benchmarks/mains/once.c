/* SPDX-License-Identifier: Apache-2.0 */
/* One inference and nothing else, so that a trace of the whole program is short. */
#include "console.h"
#include "vectors.h"

/* Volatile, so that the call is a call. */
static policy_function *volatile subject = POLICY;

int main(void)
{
    policy_action action[N_ACTIONS];
    policy_function *const call = subject;
    const int status = POLICY_CALL(call, test_observations[0], action);
    console_text("done\n");
    return status;
}
