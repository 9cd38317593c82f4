/* SPDX-License-Identifier: Apache-2.0 */
/* In a file of its own, so that no compiler can see through a call of it. */
#include "vectors.h"

#pragma GCC diagnostic ignored "-Wunused-parameter"

int no_policy(POLICY_PARAMETERS)
{
    return 0;
}
