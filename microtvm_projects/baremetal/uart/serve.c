/* SPDX-License-Identifier: Apache-2.0 */
/* A host at the other end of a serial line: text and frames (rpc.h) share it. No debugger is needed, and none is called. */
#include "console.h"
#include "host.h"
#include "rpc.h"
#include "uart.h"

static rpc_text said;

void console_text(const char *text)
{
    for (; *text != '\0'; text++) {
        const uint8_t byte = (uint8_t)*text;
        said.crc = rpc_crc(said.crc, &byte, 1);
        said.length++;
        uart_send(byte);
    }
}

size_t rpc_receive(uint8_t *bytes, size_t most)
{
    (void)most; /* one at least */
    bytes[0] = uart_receive();
    return 1;
}

int rpc_send(const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uart_send(bytes[i]);
    }
    return 0;
}

void rpc_report(rpc_text *printed)
{
    said.crc = 0;
    said.length = 0;
    (void)report();
    console_text("done\n");
    *printed = said;
}

/* A reader with a terminal presses Enter. */
void rpc_stray(uint8_t byte)
{
    if (byte == '\r' || byte == '\n') {
        rpc_text printed;
        rpc_report(&printed);
    }
}

void host_meet(void)
{
    uart_start();
}

int host_serve(void)
{
    rpc_serve();
    return 0;
}

/* There is nobody to tell: wait for the reset. */
void host_leave(int status)
{
    (void)status;
    for (;;) {
    }
}
