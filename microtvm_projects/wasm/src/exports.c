/* SPDX-License-Identifier: Apache-2.0 */
/* What JavaScript sees of the policy besides its own call: buffers to write to and read from, and a call on them. */
#include "vectors.h"

float observation[N_OBS]; /* all inputs joined in order */
policy_action action[N_ACTIONS];

int32_t answer(void);

int32_t answer(void)
{
    return (int32_t)POLICY_CALL(POLICY, observation, action);
}
