/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From reset to main(), and what happens when the core traps.
 * Registers and causes: "The RISC-V Instruction Set Manual, Volume II: Privileged Architecture".
 */
#include <stdint.h>

#include "console.h"
#include "host.h"

/* From the linker script. */
extern uint32_t data_start[], data_end[], bss_start[], bss_end[], stack_bottom[];
extern const uint32_t data_in_flash[];

int main(void);
void reset(void);
void trap(void);
void start(void);
void report_trap(uint32_t cause, uint32_t pc, uint32_t stack_pointer);

/* A trap may come from a stack that is full: its report runs on one of its own. */
uint32_t trap_stack[128] __attribute__((aligned(16)));

/* Called by reset() once there is a stack. Volatile: a copying loop must not become a call of the library's memcpy. */
__attribute__((used, noreturn)) void start(void)
{
    const uint32_t *from = data_in_flash;
    for (volatile uint32_t *to = data_start; to < data_end; to++) {
        *to = *from++;
    }
    for (volatile uint32_t *to = bss_start; to < bss_end; to++) {
        *to = 0;
    }
    host_meet();
    host_leave(main());
}

/*
 * Locks the flash against writing, also by machine mode, as no debugger does it on this board: what runs past the low
 * end of RAM traps. Pmpaddr0 holds an address in words, whose low ones give the size of the region.
 */
__attribute__((naked, noreturn, section(".reset"))) void reset(void)
{
    __asm__ volatile(".option push\n"
                     ".option arch, +zicsr\n"
                     ".option norelax\n"
                     "la gp, __global_pointer$\n"
                     ".option pop\n"
                     ".option push\n"
                     ".option arch, +zicsr\n"
                     "la sp, stack_top\n"
                     "la t0, trap\n"
                     "csrw mtvec, t0\n"
                     "la t0, flash_protection\n"
                     "csrw pmpaddr0, t0\n"
                     "li t0, 0x9d\n" /* locked, naturally aligned power of two, execute, read */
                     "csrw pmpcfg0, t0\n"
                     "tail start\n"
                     ".option pop\n");
}

/* A fresh stack for the report. */
__attribute__((naked, noreturn, aligned(4))) void trap(void)
{
    __asm__ volatile(".option push\n"
                     ".option arch, +zicsr\n"
                     "csrr a0, mcause\n"
                     "csrr a1, mepc\n"
                     "mv a2, sp\n"
                     "la sp, trap_stack + %c[size]\n"
                     "tail report_trap\n"
                     ".option pop\n"
                     :
                     : [size] "i"(sizeof trap_stack));
}

static const char *cause_of(uint32_t cause, uint32_t stack_pointer)
{
    static const char *const CAUSES[] = {
        "misaligned instruction", "instruction access", "undefined instruction", "breakpoint",
        "unaligned access",       "bus error",          "unaligned access",      "bus error",
    };
    if (stack_pointer < (uint32_t)(uintptr_t)stack_bottom) {
        return "stack overflow";
    }
    return cause < sizeof CAUSES / sizeof CAUSES[0] ? CAUSES[cause] : "unexpected exception";
}

__attribute__((used, noreturn)) void report_trap(uint32_t cause, uint32_t pc, uint32_t stack_pointer)
{
    const uint8_t bytes[4] = {(uint8_t)(pc >> 24), (uint8_t)(pc >> 16), (uint8_t)(pc >> 8), (uint8_t)pc};
    console_text("\n\nFAULT ");
    console_text(cause_of(cause, stack_pointer));
    console_text(", exception ");
    console_unsigned(cause);
    console_text(", pc 0x");
    console_bytes(bytes, sizeof bytes);
    console_text("\n");
    host_leave(1);
}
