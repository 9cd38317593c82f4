/* SPDX-License-Identifier: Apache-2.0 */
/* There is no libc here. What the policy asks of it becomes instructions of WebAssembly (bulk memory). */
#ifndef STRING_H
#define STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t count);
void *memset(void *to, int value, size_t count);

#endif
