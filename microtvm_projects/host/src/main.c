/* SPDX-License-Identifier: Apache-2.0 */
/* Replay the test vectors on this machine and time the policy. */
#include <stdio.h>

#include "batch.h"
#include "console.h"
#include "replay.h"

#define TIMED_INFERENCES 10000

void console_text(const char *text)
{
    fputs(text, stdout);
}

int main(void)
{
    printf("policy %s\n", POLICY_NAME);
    const int wrong = replay_vectors();
    printf("nanoseconds per inference (wall time on this machine): %.1f\n", nanoseconds_per_inference(TIMED_INFERENCES));
    printf("done\n");
    return wrong == 0 ? 0 : 1;
}
