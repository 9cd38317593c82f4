/* SPDX-License-Identifier: Apache-2.0 */
#include "spread.h"

#define MOST_VALUES 0x80000000u

void spread_add(struct spread *spread, uint64_t value)
{
    if (spread->count == MOST_VALUES) {
        return;
    }
    const uint32_t x = value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
    if (spread->count == 0 || x < spread->least) {
        spread->least = x;
    }
    if (x > spread->greatest) {
        spread->greatest = x;
    }
    spread->count++;
    spread->sum += x;

    const uint64_t square = (uint64_t)x * x;
    uint64_t word = (uint64_t)spread->squares[0] + (uint32_t)square;
    spread->squares[0] = (uint32_t)word;
    word = (word >> 32) + spread->squares[1] + (square >> 32);
    spread->squares[1] = (uint32_t)word;
    spread->squares[2] += (uint32_t)(word >> 32);

    unsigned bin = 0;
    while ((x >> bin) > 1) {
        bin++;
    }
    spread->histogram[bin]++;
}

uint32_t spread_mean(const struct spread *spread)
{
    return spread->count == 0 ? 0 : (uint32_t)(spread->sum / spread->count);
}

/* number -= value * 2^(32 * place); the result is known not to be negative */
static void subtract(uint32_t number[3], uint64_t value, int place)
{
    uint32_t borrow = 0;
    for (int i = place; i < 3; i++) {
        const uint64_t taken = (value & UINT32_MAX) + borrow;
        borrow = number[i] < taken;
        number[i] = (uint32_t)(number[i] - taken);
        value >>= 32;
    }
}

static uint32_t square_root(uint64_t value)
{
    uint64_t root = 0;
    for (uint64_t bit = (uint64_t)1 << 31; bit != 0; bit >>= 1) {
        if ((root + bit) * (root + bit) <= value) {
            root += bit;
        }
    }
    return (uint32_t)root;
}

/* sum of (x - mean)^2 = squares - mean * (2 * sum - count * mean), also with the mean rounded down; 96 bits hold all of it */
uint32_t spread_deviation(const struct spread *spread)
{
    if (spread->count == 0) {
        return 0;
    }
    const uint64_t mean = spread_mean(spread);
    const uint64_t factor = 2 * spread->sum - spread->count * mean;
    uint32_t number[3] = {spread->squares[0], spread->squares[1], spread->squares[2]};
    subtract(number, mean * (factor & UINT32_MAX), 0);
    subtract(number, mean * (factor >> 32), 1);

    uint64_t variance = 0, rest = 0;
    for (int i = 2; i >= 0; i--) { /* less than 2^62: the highest word of the quotient is 0 */
        rest = rest << 32 | number[i];
        variance = variance << 32 | rest / spread->count;
        rest %= spread->count;
    }
    return square_root(variance);
}
