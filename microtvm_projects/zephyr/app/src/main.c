/* SPDX-License-Identifier: Apache-2.0 */
/* Replay the test vectors of the policy on the console. */
#include <zephyr/sys/printk.h>

#include "console.h"
#include "replay.h"
#include "vectors.h"

void console_text(const char *text)
{
	printk("%s", text);
}

int main(void)
{
	console_text("policy " POLICY_NAME "\n");
	(void)replay_vectors();
	console_text("done\n");
	return 0;
}
