/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host asks the policy over a stream of bytes that may lose, invent and change some. Little-endian, in both directions:
 *
 *     magic b1 7e | version | kind | sequence u32 | length u32 | length bytes | CRC-32 (IEEE 802.3) of all before it, u32
 *
 *     hello  01, nothing                 ->  81, N_OBS, N_ACTIONS, ACTION_IS_FLOAT, each u32
 *     ask    02, N_OBS float32           ->  82, status i32, ticks u32, inferences u32, N_ACTIONS actions
 *     report 03, nothing                 ->  what the program prints, as text between frames, then
 *                                            84, length u32 and CRC-32 u32 of that text
 *                ask or report before any hello  ->  83, nothing: the device was reset, and wants to be greeted again
 *
 * An answer has its question's sequence number. A question of the number answered last gets the same answer once more,
 * and the policy is not asked, nor the text printed: who waits in vain may repeat the question. What is no frame is passed over byte by byte,
 * so that a damaged frame never hides the one behind it. A hello, and its answer, are so in every version.
 */
#ifndef RPC_H
#define RPC_H

#include <stddef.h>
#include <stdint.h>

#define RPC_VERSION 1

/* Answer until the host is gone. */
void rpc_serve(void);

typedef struct {
    uint32_t length;
    uint32_t crc;
} rpc_text;

/* The CRC-32 of what has `crc`, 0 when that is nothing, and of `bytes` after it. */
uint32_t rpc_crc(uint32_t crc, const uint8_t *bytes, size_t count);

/* The platform supplies these, and ticks.h. */

/* Wait for bytes; how many came, at most `most`, or 0 when the host is gone. */
size_t rpc_receive(uint8_t *bytes, size_t most);

/* 0, or what is not 0 when the host is gone. */
int rpc_send(const uint8_t *bytes, size_t count);

/* Print the program's report; what of it went over the stream. */
void rpc_report(rpc_text *printed);

/* A byte that begins no frame, before any host greeted: somebody may be typing. */
void rpc_stray(uint8_t byte);

#endif
