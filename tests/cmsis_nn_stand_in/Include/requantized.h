/* SPDX-License-Identifier: Apache-2.0 */
/* relay_passes/fixedpoint.py's requantize, in 64 bits. */
#ifndef REQUANTIZED_H
#define REQUANTIZED_H

#include <stdint.h>

static int64_t requantized(int64_t value, int64_t multiplier, int32_t shift)
{
    const int32_t right = shift < 0 ? -shift : 0;
    const int64_t shifted = shift > 0 ? value * ((int64_t)1 << shift) : value;
    const int64_t product = shifted * multiplier + ((int64_t)1 << 30);
    const int64_t high = (product >= 0 ? product : product - (((int64_t)1 << 31) - 1)) / ((int64_t)1 << 31); /* floor */
    const int64_t half = right ? (int64_t)1 << (right - 1) : 0;
    const int64_t magnitude = ((high < 0 ? -high : high) + half) / ((int64_t)1 << right); /* ties away from zero */
    return high < 0 ? -magnitude : magnitude;
}

#endif
