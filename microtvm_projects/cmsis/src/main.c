/* SPDX-License-Identifier: Apache-2.0 */
/* Is the policy right on this device? Then answers for whoever brings observations. */
#include "console.h"
#include "replay.h"
#include "semihosting.h"
#include "stream.h"
#include "vectors.h"

int main(void)
{
    console_text("policy " POLICY_NAME "\n");
    const int wrong = replay_vectors();
    const int streamed = stream_observations();
    console_text("done\n"); /* its absence tells a crash from a wrong answer */
    semihosting_exit(wrong == 0 && streamed == 0 ? 0 : 1);
}
