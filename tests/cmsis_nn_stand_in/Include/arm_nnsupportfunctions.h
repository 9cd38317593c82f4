/* SPDX-License-Identifier: Apache-2.0 */
/* What tells the release of CMSIS-NN apart: the first came with 6.0.0, the second with 7.0.0. A test takes them away. */
#ifndef ARM_NNSUPPORTFUNCTIONS_H
#define ARM_NNSUPPORTFUNCTIONS_H

#include "arm_nnfunctions.h"

#if !defined(STAND_IN_RELEASE)
#define STAND_IN_RELEASE 7
#endif
#if STAND_IN_RELEASE >= 6
#define MAX_COL_COUNT (512)
#endif
#if STAND_IN_RELEASE >= 7
#define REVERSE_TCOL_EFFICIENT_THRESHOLD (16)
#endif

#endif
