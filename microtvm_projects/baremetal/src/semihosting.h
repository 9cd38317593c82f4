/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Semihosting: the debugger, here QEMU, does what an operating system would. Arm defined it, RISC-V took it over.
 * Source: "Semihosting for AArch32 and AArch64", ARM IHI 0100.
 */
#ifndef SEMIHOSTING_H
#define SEMIHOSTING_H

#include <stddef.h>
#include <stdint.h>

#define SEMIHOSTING_READ 1  /* fopen's "rb" */
#define SEMIHOSTING_WRITE 5 /* fopen's "wb" */

/* A handle, or -1. */
int semihosting_open(const char *path, uint32_t mode);
void semihosting_close(int handle);

/* Both return how many bytes were NOT moved: 0 is success. */
size_t semihosting_read(int handle, void *bytes, size_t count);
size_t semihosting_write(int handle, const void *bytes, size_t count);

/* End the program; the debugger's exit status is 0 when `status` is 0, else 1. */
void semihosting_exit(int status) __attribute__((noreturn));

#endif
