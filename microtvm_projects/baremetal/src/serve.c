/* SPDX-License-Identifier: Apache-2.0 */
/* A host behind a debugger: it asks over two named pipes, which the debugger opens like files, or wants a report. */
#include "console.h"
#include "host.h"
#include "rpc.h"
#include "semihosting.h"
#include "stream.h"

static int questions, answers;

size_t rpc_receive(uint8_t *bytes, size_t most)
{
    const size_t missing = semihosting_read(questions, bytes, most); /* of a pipe the debugger reads what there is */
    return missing < most ? most - missing : 0;
}

int rpc_send(const uint8_t *bytes, size_t count)
{
    return semihosting_write(answers, bytes, count) != 0;
}

/* The debugger prints it: none of it comes through the pipe. */
void rpc_report(rpc_text *printed)
{
    (void)report();
    printed->length = 0;
    printed->crc = 0;
}

void rpc_stray(uint8_t byte)
{
    (void)byte;
}

/* When there is a pipe questions.pipe, answer its questions to answers.pipe until it closes. Returns whether there was. */
static int serve_pipes(void)
{
    questions = semihosting_open("questions.pipe", SEMIHOSTING_READ);
    if (questions < 0) {
        return 0;
    }
    answers = semihosting_open("answers.pipe", SEMIHOSTING_WRITE);
    if (answers < 0) {
        console_text("cannot write answers.pipe here\n");
    } else {
        rpc_serve();
        semihosting_close(answers);
    }
    semihosting_close(questions);
    return 1;
}

int host_serve(void)
{
    if (serve_pipes()) {
        return 0;
    }
    const int failed = report();
    return stream_observations() != 0 || failed;
}
