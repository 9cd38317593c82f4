/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From reset to main(), and what happens when the core faults.
 * Register addresses: Armv6-M, Armv7-M and Armv8-M Architecture Reference Manuals, DDI 0419, DDI 0403, DDI 0553.
 */
#include <stdint.h>

#include "console.h"
#include "host.h"

#define CPACR (*(volatile uint32_t *)0xE000ED88u)
#define CCR (*(volatile uint32_t *)0xE000ED14u)
#define CFSR (*(volatile uint32_t *)0xE000ED28u)
#define MPU_CTRL (*(volatile uint32_t *)0xE000ED94u)
#define MPU_RBAR (*(volatile uint32_t *)0xE000ED9Cu)
#define MPU_RASR (*(volatile uint32_t *)0xE000EDA0u)

#define HAS_STACK_LIMIT (__ARM_ARCH >= 8)
#define HAS_MPU (__ARM_ARCH == 7) /* the others have a stack limit, or none at all */
#define HAS_FAULT_STATUS (__ARM_ARCH_ISA_THUMB >= 2) /* Armv6-M knows that something is wrong, not what */

#define CPACR_FULL_ACCESS_TO_FPU_AND_MVE (0xFu << 20)
#define CCR_LOW_OVERHEAD_LOOPS (1u << 19)
#define CFSR_STACK_LIMIT (1u << 20)
#define CFSR_DATA_ACCESS_OR_STACKING (1u << 1 | 1u << 4) /* denied by the MPU */
#define MPU_CTRL_ENABLE_WITH_DEFAULT_MAP 5u
#define MPU_RBAR_REGION_0 0x10u
#define MPU_RASR_256_BYTES_NO_ACCESS (1u << 28 | 7u << 1 | 1u)

/* From the linker script. */
extern uint32_t data_start[], data_end[], bss_start[], bss_end[], stack_guard[], stack_bottom[], stack_top[];
extern const uint32_t data_in_flash[];

int main(void);
void Reset_Handler(void);
void Fault_Handler(void);
void SysTick_Handler(void); /* counts */
void start(void);
void report_fault(const uint32_t *frame);

/* A fault may come from a stack that is full: its report runs on one of its own. */
uint32_t fault_stack[128] __attribute__((aligned(8)));

#if HAS_MPU
/* Nothing may touch the 256 bytes below the stack: what lies below RAM does not always refuse a write. */
static void guard_stack(void)
{
    MPU_RBAR = (uint32_t)(uintptr_t)stack_guard | MPU_RBAR_REGION_0;
    MPU_RASR = MPU_RASR_256_BYTES_NO_ACCESS;
    MPU_CTRL = MPU_CTRL_ENABLE_WITH_DEFAULT_MAP;
    __asm__ volatile("dsb\nisb" ::: "memory");
}
#endif

/* Called by Reset_Handler once the FPU is on. Volatile: a copying loop must not become a call of the library's memcpy. */
__attribute__((used, noreturn)) void start(void)
{
    const uint32_t *from = data_in_flash;
    for (volatile uint32_t *to = data_start; to < data_end; to++) {
        *to = *from++;
    }
    for (volatile uint32_t *to = bss_start; to < bss_end; to++) {
        *to = 0;
    }
#if HAS_MPU
    guard_stack();
#endif
    host_meet();
    host_leave(main());
}

/* Enables what the core has before any code that may use it, and guards the stack's low end where it can. */
__attribute__((naked, noreturn)) void Reset_Handler(void)
{
    __asm__ volatile(
#if HAS_STACK_LIMIT
        "ldr r0, =stack_bottom\n"
        "msr msplim, r0\n"
#endif
#if defined(__ARM_FP)
        "ldr r0, =%c[cpacr]\n"
        "ldr r1, [r0]\n"
        "orr r1, r1, %[access]\n"
        "str r1, [r0]\n"
#endif
#if defined(__ARM_FEATURE_MVE)
        "ldr r0, =%c[ccr]\n"
        "ldr r1, [r0]\n"
        "orr r1, r1, %[loops]\n"
        "str r1, [r0]\n"
#endif
        "dsb\n"
        "isb\n"
        "ldr r0, =start\n"
        "bx r0\n"
        ".ltorg\n"
        :
        : [cpacr] "i"(&CPACR), [access] "i"(CPACR_FULL_ACCESS_TO_FPU_AND_MVE), [ccr] "i"(&CCR),
          [loops] "i"(CCR_LOW_OVERHEAD_LOOPS));
}

/* r0 = the frame the core pushed; then a fresh stack for the report. */
__attribute__((naked, noreturn)) void Fault_Handler(void)
{
    __asm__ volatile("mrs r0, msp\n"
#if HAS_STACK_LIMIT
                     "mov r1, #0\n"
                     "msr msplim, r1\n"
#endif
                     "ldr r1, =fault_stack + %c[size]\n"
                     "msr msp, r1\n"
                     "ldr r1, =report_fault\n"
                     "bx r1\n"
                     ".ltorg\n"
                     :
                     : [size] "i"(sizeof fault_stack));
}

#if HAS_FAULT_STATUS
static const char *cause_of(uint32_t cfsr)
{
    static const struct {
        uint32_t mask;
        const char *cause;
    } CAUSES[] = {
        {1u << 16, "undefined instruction"},
        {1u << 17, "invalid execution state"},
        {1u << 19, "coprocessor, FPU or MVE not available"},
        {1u << 24, "unaligned access"},
        {1u << 25, "division by zero"},
        {0xffu << 8, "bus error"},
        {0xffu, "memory protection"},
    };
    for (uint32_t i = 0; i < sizeof CAUSES / sizeof CAUSES[0]; i++) {
        if ((cfsr & CAUSES[i].mask) != 0) {
            return CAUSES[i].cause;
        }
    }
    return "unexpected exception";
}
#endif

/* frame: r0 r1 r2 r3 r12 lr pc xpsr */
__attribute__((used, noreturn)) void report_fault(const uint32_t *frame)
{
    uint32_t exception;
    __asm__ volatile("mrs %0, ipsr" : "=r"(exception));
    int stack_is_full = frame < stack_bottom;
    const char *cause = exception == 3 ? "hard fault" : "unexpected exception";
#if HAS_FAULT_STATUS
    const uint32_t cfsr = CFSR;
    stack_is_full |= (cfsr & (CFSR_STACK_LIMIT | CFSR_DATA_ACCESS_OR_STACKING)) != 0;
    cause = cause_of(cfsr);
#endif
    console_text("\n\nFAULT ");
    console_text(stack_is_full ? "stack overflow" : cause);
    console_text(", exception ");
    console_unsigned(exception);
    if (!stack_is_full) { /* on a full stack the core pushes no frame */
        const uint8_t pc[4] = {(uint8_t)(frame[6] >> 24), (uint8_t)(frame[6] >> 16), (uint8_t)(frame[6] >> 8),
                               (uint8_t)frame[6]};
        console_text(", pc 0x");
        console_bytes(pc, sizeof pc);
    }
    console_text("\n");
    host_leave(1);
}

typedef void handler(void);

/* The core reads this at reset: first the stack, then a handler for each exception. */
__attribute__((section(".vectors"), used)) static const struct {
    uint32_t *stack;
    handler *handlers[15];
} vectors = {
    stack_top,
    {
        Reset_Handler,
        Fault_Handler, /* NMI */
        Fault_Handler, /* HardFault */
        Fault_Handler, /* MemManage */
        Fault_Handler, /* BusFault */
        Fault_Handler, /* UsageFault */
        Fault_Handler, /* SecureFault */
        0,
        0,
        0,
        Fault_Handler, /* SVCall */
        Fault_Handler, /* DebugMonitor */
        0,
        Fault_Handler, /* PendSV */
        SysTick_Handler,
    },
};
