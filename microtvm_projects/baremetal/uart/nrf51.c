/* SPDX-License-Identifier: Apache-2.0 */
/* The UART of Nordic's nRF51. Source: nRF51 Series Reference Manual 3.0, chapter 29. */
#include "uart.h"

#include "board.h"

#define STARTRX (*(volatile uint32_t *)(UART_ADDRESS + 0x000u))
#define STARTTX (*(volatile uint32_t *)(UART_ADDRESS + 0x008u))
#define RXDRDY (*(volatile uint32_t *)(UART_ADDRESS + 0x108u))
#define TXDRDY (*(volatile uint32_t *)(UART_ADDRESS + 0x11Cu))
#define ENABLE (*(volatile uint32_t *)(UART_ADDRESS + 0x500u))
#define PSELTXD (*(volatile uint32_t *)(UART_ADDRESS + 0x50Cu))
#define PSELRXD (*(volatile uint32_t *)(UART_ADDRESS + 0x514u))
#define RXD (*(volatile uint32_t *)(UART_ADDRESS + 0x518u))
#define TXD (*(volatile uint32_t *)(UART_ADDRESS + 0x51Cu))
#define BAUDRATE (*(volatile uint32_t *)(UART_ADDRESS + 0x524u))

#define ENABLE_ENABLED 4u

void uart_start(void)
{
    PSELTXD = UART_TX_PIN;
    PSELRXD = UART_RX_PIN;
    /* The fraction of the clock in 32 bits, of which the last twelve must be 0. */
    BAUDRATE = (uint32_t)((((uint64_t)UART_BAUD << 32) / UART_CLOCK_HZ + 0x800u) & 0xfffff000u);
    ENABLE = ENABLE_ENABLED;
    STARTTX = 1;
    STARTRX = 1;
}

uint8_t uart_receive(void)
{
    while (RXDRDY == 0) {
    }
    RXDRDY = 0; /* before the byte is taken: the next may be there already, and says so again */
    return (uint8_t)RXD;
}

void uart_send(uint8_t byte)
{
    TXDRDY = 0;
    TXD = byte;
    while (TXDRDY == 0) {
    }
}
