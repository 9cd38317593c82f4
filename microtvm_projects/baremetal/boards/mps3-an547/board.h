/* SPDX-License-Identifier: Apache-2.0 */
/* Arm MPS3 with the AN547 image, as QEMU emulates it. */
#ifndef BOARD_H
#define BOARD_H

/* SysTick counts at 32 MHz of virtual time and -icount shift=0 makes an instruction a nanosecond: 31.25 a tick. */
#define INSTRUCTIONS_PER_100_TICKS 3125u

#endif
