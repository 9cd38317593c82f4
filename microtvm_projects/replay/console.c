/* SPDX-License-Identifier: Apache-2.0 */
#include "console.h"

static const char DIGITS[] = "0123456789abcdef";

void console_unsigned(uint32_t value)
{
    char text[11]; /* 4294967295 and the end mark */
    size_t start = sizeof text - 1;
    text[start] = '\0';
    do {
        text[--start] = DIGITS[value % 10];
        value /= 10;
    } while (value != 0);
    console_text(text + start);
}

void console_signed(int32_t value)
{
    if (value < 0) {
        console_text("-");
        console_unsigned(0u - (uint32_t)value); /* -INT32_MIN does not fit an int32_t */
    } else {
        console_unsigned((uint32_t)value);
    }
}

void console_bytes(const void *bytes, size_t count)
{
    const uint8_t *byte = bytes;
    for (size_t i = 0; i < count; i++) {
        const char text[3] = {DIGITS[byte[i] >> 4], DIGITS[byte[i] & 15], '\0'};
        console_text(text);
    }
}
