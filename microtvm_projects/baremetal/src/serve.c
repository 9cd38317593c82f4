/* SPDX-License-Identifier: Apache-2.0 */
/* A host that asks over two named pipes, which the debugger opens like files. */
#include "serve.h"

#include "console.h"
#include "rpc.h"
#include "semihosting.h"

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

int serve_host(void)
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
