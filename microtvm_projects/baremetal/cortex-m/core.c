/* SPDX-License-Identifier: Apache-2.0 */
#include "core.h"

uint32_t core_semihosting(uint32_t operation, uint32_t argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register uint32_t r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

__attribute__((naked)) uint32_t *core_stack_pointer(void)
{
    __asm__ volatile("mov r0, sp\n"
                     "bx lr\n");
}
