/* SPDX-License-Identifier: Apache-2.0 */
/* A serial line: 8 bits, no parity, 1 stop bit, UART_BAUD (board.h). Polled, so that it asks nothing of the rest. */
#ifndef UART_H
#define UART_H

#include <stdint.h>

void uart_start(void);

/* Both wait. */
uint8_t uart_receive(void);
void uart_send(uint8_t byte);

#endif
