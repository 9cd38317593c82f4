/* SPDX-License-Identifier: Apache-2.0 */
#include "decimal.h"

#include <stdint.h>

/* A number in fixed point, the lowest word first: exact from 10^-65, which 2^-256 resolves to 40 bits, to 10^39. */
#define FRACTION_BITS 256
#define WORDS (FRACTION_BITS / 32 + 5)

#define MOST_DIGITS 19 /* the digits that a uint64_t holds; those behind them only say that there is more */
#define SMALLEST_FLOAT_BIT (FRACTION_BITS - 149)
#define INFINITY_BITS 0x7f800000u
#define NAN_BITS 0x7fc00000u

static void multiply_by_10(uint32_t number[WORDS])
{
    uint64_t carry = 0;
    for (int i = 0; i < WORDS; i++) {
        carry += (uint64_t)number[i] * 10;
        number[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

/* Returns the rest. */
static uint32_t divide_by_10(uint32_t number[WORDS])
{
    uint64_t rest = 0;
    for (int i = WORDS - 1; i >= 0; i--) {
        rest = rest << 32 | number[i];
        number[i] = (uint32_t)(rest / 10);
        rest %= 10;
    }
    return (uint32_t)rest;
}

static int bit_of(const uint32_t number[WORDS], int bit)
{
    return (int)(number[bit / 32] >> (bit % 32) & 1);
}

/* Of the number plus a little, when there is more. */
static uint32_t rounded_bits(const uint32_t number[WORDS], int is_more)
{
    int highest = WORDS * 32 - 1;
    while (highest > SMALLEST_FLOAT_BIT && !bit_of(number, highest)) {
        highest--;
    }
    const int lowest = highest - 23 > SMALLEST_FLOAT_BIT ? highest - 23 : SMALLEST_FLOAT_BIT;
    uint32_t mantissa = 0;
    for (int bit = highest; bit >= lowest; bit--) {
        mantissa = mantissa << 1 | (uint32_t)bit_of(number, bit);
    }
    for (int bit = 0; bit < lowest - 1; bit++) {
        is_more |= bit_of(number, bit);
    }
    mantissa += (uint32_t)(bit_of(number, lowest - 1) & (is_more | (int)(mantissa & 1)));
    const uint32_t bits = ((uint32_t)(lowest - SMALLEST_FLOAT_BIT) << 23) + mantissa; /* the highest bit adds 1 to the exponent */
    return bits < INFINITY_BITS ? bits : INFINITY_BITS;
}

/* digits * 10^exponent, digits of `count` figures */
static uint32_t nearest_bits(uint64_t digits, int count, int exponent, int is_more)
{
    uint32_t number[WORDS] = {0};
    if (digits == 0 || count + exponent < -45) {
        return 0;
    }
    if (count + exponent > 39) {
        return INFINITY_BITS;
    }
    number[FRACTION_BITS / 32] = (uint32_t)digits;
    number[FRACTION_BITS / 32 + 1] = (uint32_t)(digits >> 32);
    for (; exponent > 0; exponent--) {
        multiply_by_10(number);
    }
    for (; exponent < 0; exponent++) {
        is_more |= divide_by_10(number) != 0;
    }
    return rounded_bits(number, is_more);
}

static int is_digit(char character)
{
    return character >= '0' && character <= '9';
}

/* Whatever its case. */
static int is_word(const char *text, const char *word)
{
    while (*word != '\0' && (*text | 0x20) == *word) {
        text++;
        word++;
    }
    return *word == '\0' && *text == '\0';
}

/* The bits of a number without a sign; 0 when it is none. */
static int unsigned_bits(const char *text, uint32_t *bits)
{
    uint64_t digits = 0;
    int count = 0, exponent = 0, is_more = 0, is_fraction = 0, has_digits = 0;
    for (; is_digit(*text) || (*text == '.' && !is_fraction); text++) {
        if (*text == '.') {
            is_fraction = 1;
            continue;
        }
        has_digits = 1;
        if (count < MOST_DIGITS) {
            digits = digits * 10 + (uint64_t)(*text - '0');
            count += digits != 0; /* leading zeros are no figures */
            exponent -= is_fraction;
        } else {
            is_more |= *text != '0';
            exponent += !is_fraction;
        }
    }
    if (has_digits && (*text | 0x20) == 'e') {
        const int sign = text[1] == '-' ? -1 : 1;
        text += text[1] == '-' || text[1] == '+' ? 2 : 1;
        has_digits = is_digit(*text);
        int written = 0;
        for (; is_digit(*text); text++) {
            written = written < 1000 ? written * 10 + (*text - '0') : written; /* past every float, short of an overflow */
        }
        exponent += sign * written;
    }
    if (!has_digits || *text != '\0') {
        return 0;
    }
    *bits = nearest_bits(digits, count, exponent, is_more);
    return 1;
}

int decimal_to_float(const char *text, float *value)
{
    union {
        uint32_t bits;
        float value;
    } both = {0};
    const uint32_t sign = *text == '-' ? 0x80000000u : 0;
    text += *text == '-' || *text == '+';
    if (is_word(text, "nan")) {
        both.bits = NAN_BITS;
    } else if (is_word(text, "inf")) {
        both.bits = INFINITY_BITS;
    } else if (!unsigned_bits(text, &both.bits)) {
        return 0;
    }
    both.bits |= sign;
    *value = both.value;
    return 1;
}
