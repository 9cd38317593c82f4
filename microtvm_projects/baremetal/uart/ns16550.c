/* SPDX-License-Identifier: Apache-2.0 */
/* The UART that every PC had, a byte a register. Source: National Semiconductor, PC16550D data sheet. */
#include "uart.h"

#include "board.h"

#define DATA (*(volatile uint8_t *)(UART_ADDRESS + 0u))
#define DIVISOR_LOW DATA
#define DIVISOR_HIGH (*(volatile uint8_t *)(UART_ADDRESS + 1u))
#define FIFO_CONTROL (*(volatile uint8_t *)(UART_ADDRESS + 2u))
#define LINE_CONTROL (*(volatile uint8_t *)(UART_ADDRESS + 3u))
#define LINE_STATUS (*(volatile uint8_t *)(UART_ADDRESS + 5u))

#define FIFO_ENABLE 1u
#define LINE_8_BITS 3u
#define LINE_DIVISOR_ACCESS 0x80u
#define STATUS_RX_READY 1u
#define STATUS_TX_EMPTY 0x20u

void uart_start(void)
{
    const uint32_t divisor = (UART_CLOCK_HZ + 8 * UART_BAUD) / (16 * UART_BAUD);
    LINE_CONTROL = LINE_8_BITS | LINE_DIVISOR_ACCESS;
    DIVISOR_LOW = (uint8_t)divisor;
    DIVISOR_HIGH = (uint8_t)(divisor >> 8);
    LINE_CONTROL = LINE_8_BITS;
    FIFO_CONTROL = FIFO_ENABLE;
}

uint8_t uart_receive(void)
{
    while ((LINE_STATUS & STATUS_RX_READY) == 0) {
    }
    return DATA;
}

void uart_send(uint8_t byte)
{
    while ((LINE_STATUS & STATUS_TX_EMPTY) == 0) {
    }
    DATA = byte;
}
