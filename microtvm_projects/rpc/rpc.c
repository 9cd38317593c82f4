/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc.h"

#include "ticks.h"
#include "vectors.h"

#define MAGIC_0 0xb1u
#define MAGIC_1 0x7eu

enum { HELLO = 0x01, ASK = 0x02, REPORT = 0x03, GREETED = 0x81, ANSWERED = 0x82, NOT_GREETED = 0x83, REPORTED = 0x84 };

typedef struct {
    uint8_t magic[2];
    uint8_t version;
    uint8_t kind;
    uint32_t sequence;
    uint32_t length; /* of what follows, less the CRC */
} frame_header;

#define HEADER_BYTES sizeof(frame_header)
#define CRC_BYTES 4u

/* Every part is a multiple of four bytes, so these lie in memory as they are sent. */
static union {
    uint8_t bytes[HEADER_BYTES + 4u * N_OBS + CRC_BYTES];
    struct {
        frame_header header;
        float observation[N_OBS];
    } ask;
} question;

typedef struct {
    int32_t status;
    uint32_t ticks;
    uint32_t inferences; /* since the reset */
    policy_action action[N_ACTIONS];
} policy_answer;

static union {
    uint8_t bytes[HEADER_BYTES + sizeof(policy_answer) + CRC_BYTES];
    struct {
        frame_header header;
        union { /* an answer is the longest: 3 words and an action at least */
            uint32_t sizes[3];
            policy_answer policy;
            rpc_text text;
        } part;
    } frame;
} answer;

static int is_greeted;

uint32_t rpc_crc(uint32_t crc, const uint8_t *bytes, size_t count)
{
    crc = ~crc;
    for (size_t i = 0; i < count; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1u)));
        }
    }
    return ~crc;
}

static uint32_t crc_at(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* Of the frame that begins with the `have` bytes of the question, as far as they tell; 0 when it is none. */
static size_t bytes_of_question(size_t have)
{
    const frame_header *const header = &question.ask.header;
    if ((have > 0 && header->magic[0] != MAGIC_0) || (have > 1 && header->magic[1] != MAGIC_1)) {
        return 0;
    }
    if (have < HEADER_BYTES) {
        return HEADER_BYTES;
    }
    const int is_ours = header->version == RPC_VERSION;
    if ((header->kind == HELLO || (header->kind == REPORT && is_ours)) && header->length == 0) {
        return HEADER_BYTES + CRC_BYTES;
    }
    if (header->kind == ASK && is_ours && header->length == sizeof question.ask.observation) {
        return sizeof question.bytes;
    }
    return 0;
}

/* Wait for a sound frame; 0 when the host is gone. */
static int receive_question(void)
{
    size_t have = 0;
    for (;;) {
        const size_t wanted = bytes_of_question(have);
        if (have < wanted) {
            const size_t received = rpc_receive(question.bytes + have, wanted - have);
            if (received == 0) {
                return 0;
            }
            have += received;
        } else if (wanted != 0 && rpc_crc(0, question.bytes, wanted - CRC_BYTES) == crc_at(question.bytes + wanted - CRC_BYTES)) {
            return 1;
        } else {
            if (!is_greeted) {
                rpc_stray(question.bytes[0]);
            }
            have--;
            volatile uint8_t *byte = question.bytes; /* else it is the library's memmove, which would blur the size of the policy */
            for (size_t i = 0; i < have; i++) {
                byte[i] = byte[i + 1];
            }
        }
    }
}

static int send_answer(uint8_t kind, size_t length)
{
    frame_header *const header = &answer.frame.header;
    header->magic[0] = MAGIC_0;
    header->magic[1] = MAGIC_1;
    header->version = RPC_VERSION;
    header->kind = kind;
    header->sequence = question.ask.header.sequence;
    header->length = (uint32_t)length;
    const size_t end = HEADER_BYTES + length;
    const uint32_t crc = rpc_crc(0, answer.bytes, end);
    for (size_t i = 0; i < CRC_BYTES; i++) {
        answer.bytes[end + i] = (uint8_t)(crc >> (8 * i));
    }
    return rpc_send(answer.bytes, end + CRC_BYTES);
}

/* Volatile: both are called by the same machine code, which is as long where the policy is the empty one. */
static policy_function *const volatile SUBJECTS[2] = {no_policy, POLICY};

/* The ticks of a call, less those of the same call of a function that does nothing. */
static void ask_policy(void)
{
    policy_answer *const into = &answer.frame.part.policy;
    const float *const row = question.ask.observation;
    uint32_t ticks[2];
    for (int i = 0; i < 2; i++) {
        policy_function *const call = SUBJECTS[i];
        const uint32_t start = ticks_now();
        into->status = (int32_t)POLICY_CALL(call, row, into->action);
        ticks[i] = ticks_now() - start;
    }
    into->ticks = ticks[1] > ticks[0] ? ticks[1] - ticks[0] : 0;
}

/* Answers the question; returns how long the answer is, less what every frame has. */
static size_t carry_out(uint8_t kind)
{
    static uint32_t inferences;
    if (kind == REPORT) {
        rpc_text printed;
        ticks_stop(); /* the report has uses of its own for the counter */
        rpc_report(&printed);
        ticks_start();
        answer.frame.part.text = printed;
        return sizeof printed;
    }
    ask_policy();
    answer.frame.part.policy.inferences = ++inferences;
    return sizeof(policy_answer);
}

void rpc_serve(void)
{
    uint32_t answered = 0; /* its number; the answer is still in place */
    uint8_t kind = ANSWERED;
    size_t length = 0;
    int has_answered = 0, is_gone = 0;
    is_greeted = 0;
    ticks_start();
    while (!is_gone && receive_question()) {
        const frame_header *const header = &question.ask.header;
        if (header->kind == HELLO) {
            is_greeted = 1;
            has_answered = 0; /* to another host, which may have used the same numbers */
            answer.frame.part.sizes[0] = N_OBS;
            answer.frame.part.sizes[1] = N_ACTIONS;
            answer.frame.part.sizes[2] = ACTION_IS_FLOAT;
            is_gone = send_answer(GREETED, sizeof answer.frame.part.sizes);
        } else if (!is_greeted) {
            is_gone = send_answer(NOT_GREETED, 0);
        } else {
            if (!has_answered || header->sequence != answered) {
                kind = header->kind == REPORT ? REPORTED : ANSWERED;
                length = carry_out(header->kind);
                answered = header->sequence;
                has_answered = 1;
            }
            is_gone = send_answer(kind, length);
        }
    }
    ticks_stop();
}
