/* SPDX-License-Identifier: Apache-2.0 */
#ifndef REPLAY_H
#define REPLAY_H

/*
 * Ask the policy for every test vector and compare with the expected answer. Prints a line an answer
 *
 *     answer <row> status <status> action <bytes in hex>
 *
 * and at the end "PARITY PASS (64 of 64)" or "PARITY FAIL (63 of 64)". Returns how many answers were wrong.
 */
int replay_vectors(void);

#endif
