/* SPDX-License-Identifier: Apache-2.0 */
/* Text out. console_text() is all that a platform supplies; the rest is in console.c. No printf: it would not fit every device. */
#ifndef CONSOLE_H
#define CONSOLE_H

#include <stddef.h>
#include <stdint.h>

void console_text(const char *text);

void console_unsigned(uint32_t value);
void console_signed(int32_t value);

/* Two hex digits a byte, in the order of memory. */
void console_bytes(const void *bytes, size_t count);

#endif
