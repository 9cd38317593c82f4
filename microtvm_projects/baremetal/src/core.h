/* SPDX-License-Identifier: Apache-2.0 */
/* What only the core's own assembly can say. */
#ifndef CORE_H
#define CORE_H

#include <stdint.h>

/* The debugger's answer; semihosting.c has the operations and their arguments. */
uint32_t core_semihosting(uint32_t operation, uint32_t argument);

/* The caller's. */
uint32_t *core_stack_pointer(void);

#endif
