/* SPDX-License-Identifier: Apache-2.0 */
#include "semihosting.h"

#include "console.h"
#include "core.h"
#include "host.h"

enum {
    SYS_OPEN = 0x01,
    SYS_CLOSE = 0x02,
    SYS_WRITE0 = 0x04,
    SYS_WRITE = 0x05,
    SYS_READ = 0x06,
    SYS_EXIT = 0x18
};

#define STOPPED_APPLICATION_EXIT 0x20026u
#define STOPPED_RUN_TIME_ERROR 0x20023u

static uint32_t address_of(const void *place)
{
    return (uint32_t)(uintptr_t)place;
}

int semihosting_open(const char *path, uint32_t mode)
{
    uint32_t length = 0;
    const volatile char *end = path; /* else it is the library's strlen, whose alignment blurs the size of the policy */
    while (*end++ != '\0') {
        length++;
    }
    const uint32_t block[3] = {address_of(path), mode, length};
    return (int)core_semihosting(SYS_OPEN, address_of(block));
}

void semihosting_close(int handle)
{
    const uint32_t block[1] = {(uint32_t)handle};
    (void)core_semihosting(SYS_CLOSE, address_of(block));
}

size_t semihosting_read(int handle, void *bytes, size_t count)
{
    const uint32_t block[3] = {(uint32_t)handle, address_of(bytes), (uint32_t)count};
    return core_semihosting(SYS_READ, address_of(block));
}

size_t semihosting_write(int handle, const void *bytes, size_t count)
{
    const uint32_t block[3] = {(uint32_t)handle, address_of(bytes), (uint32_t)count};
    return core_semihosting(SYS_WRITE, address_of(block));
}

void semihosting_exit(int status)
{
    (void)core_semihosting(SYS_EXIT, status == 0 ? STOPPED_APPLICATION_EXIT : STOPPED_RUN_TIME_ERROR);
    for (;;) {
    }
}

void host_meet(void)
{
}

void host_leave(int status)
{
    semihosting_exit(status);
}

/* A call to the debugger is slow, so text is sent a line at a time. */
void console_text(const char *text)
{
    static char line[128];
    static uint32_t length;
    if (length >= sizeof line - 1) { /* a stack that grew through here has left its traces */
        length = 0;
    }
    for (; *text != '\0'; text++) {
        line[length++] = *text;
        if (*text == '\n' || length == sizeof line - 1) {
            line[length] = '\0';
            (void)core_semihosting(SYS_WRITE0, address_of(line));
            length = 0;
        }
    }
}
