/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DECIMAL_H
#define DECIMAL_H

/* The float nearest to what is written, ties to even: "1", "-0.5", "1.25e-3", "nan", "-inf". Returns 0 when it is no number.
   Why not strtof: newlib's takes memory from the heap, and host and board shall see the same bits. */
int decimal_to_float(const char *text, float *value);

#endif
