/* SPDX-License-Identifier: Apache-2.0 */
/* How a measured number spreads, in integers alone. */
#ifndef SPREAD_H
#define SPREAD_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPREAD_BINS 32

struct spread {
    uint32_t count; /* all below are 0 while it is 0 */
    uint32_t least, greatest;
    uint64_t sum;
    uint32_t squares[3];            /* their sum, the lowest word first */
    uint32_t histogram[SPREAD_BINS]; /* bin b: 2^b and above, below 2^(b+1); 0 lies in bin 0 */
};

/* A value past 32 bits counts as the greatest that fits them. After 2^31 values no more are taken, so that no sum overflows. */
void spread_add(struct spread *spread, uint64_t value);

/* Both rounded down, 0 of nothing. */
uint32_t spread_mean(const struct spread *spread);
uint32_t spread_deviation(const struct spread *spread);

#ifdef __cplusplus
}
#endif

#endif
