/* SPDX-License-Identifier: Apache-2.0 */
/* Source: "RISC-V Semihosting", riscv-non-isa/riscv-semihosting. */
#include "core.h"

uint32_t core_semihosting(uint32_t operation, uint32_t argument)
{
    register uint32_t a0 __asm__("a0") = operation;
    register uint32_t a1 __asm__("a1") = argument;
    /* Three instructions of 32 bits, within one page, are the debugger's sign. */
    __asm__ volatile(".balign 16\n"
                     ".option push\n"
                     ".option norvc\n"
                     "slli zero, zero, 0x1f\n"
                     "ebreak\n"
                     "srai zero, zero, 7\n"
                     ".option pop\n"
                     : "+r"(a0)
                     : "r"(a1)
                     : "memory");
    return a0;
}

__attribute__((naked)) uint32_t *core_stack_pointer(void)
{
    __asm__ volatile("mv a0, sp\n"
                     "ret\n");
}
