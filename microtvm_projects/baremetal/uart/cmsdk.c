/* SPDX-License-Identifier: Apache-2.0 */
/* The UART of Arm's MPS2 and MPS3 boards. Source: Cortex-M System Design Kit, DDI 0479, "APB UART". */
#include "uart.h"

#include "board.h"

#define DATA (*(volatile uint32_t *)(UART_ADDRESS + 0x00u))
#define STATE (*(volatile uint32_t *)(UART_ADDRESS + 0x04u))
#define CTRL (*(volatile uint32_t *)(UART_ADDRESS + 0x08u))
#define BAUDDIV (*(volatile uint32_t *)(UART_ADDRESS + 0x10u))

#define STATE_TX_FULL 1u
#define STATE_RX_FULL 2u
#define CTRL_TX_AND_RX 3u

void uart_start(void)
{
    BAUDDIV = (UART_CLOCK_HZ + UART_BAUD / 2) / UART_BAUD;
    CTRL = CTRL_TX_AND_RX;
}

uint8_t uart_receive(void)
{
    while ((STATE & STATE_RX_FULL) == 0) {
    }
    return (uint8_t)DATA;
}

void uart_send(uint8_t byte)
{
    while ((STATE & STATE_TX_FULL) != 0) {
    }
    DATA = byte;
}
