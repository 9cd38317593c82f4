/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the loop does when nobody says otherwise. Change it here, or on the compiler's command line:
 *
 *     make loop CFLAGS='-DLOOP_CONTROL_HZ=200 -DLOOP_SAFE_ACTION=LOOP_HOLD'
 */
#ifndef LOOP_CONFIG_H
#define LOOP_CONFIG_H

/* Ticks in a second: what the policy was trained at. */
#ifndef LOOP_CONTROL_HZ
#define LOOP_CONTROL_HZ 100
#endif
#define LOOP_MOST_CONTROL_HZ 1000000

/* 1: as fast as it goes, without a tick. */
#ifndef LOOP_BATCH
#define LOOP_BATCH 0
#endif

/* How many ticks; 0: until the sensor or loop_stop() ends the loop. */
#ifndef LOOP_TICKS
#define LOOP_TICKS 0
#endif

/* What the actuator gets when the sensor or the policy fails: LOOP_ZEROS, or the last good action, LOOP_HOLD. */
#ifndef LOOP_SAFE_ACTION
#define LOOP_SAFE_ACTION LOOP_ZEROS
#endif

/* What is said: LOOP_ERROR, LOOP_WARN, LOOP_INFO or LOOP_DEBUG, and the less important is not compiled at all. */
#ifndef LOOP_LOG_COMPILED
#define LOOP_LOG_COMPILED LOOP_DEBUG
#endif

/* Of what is compiled, what is said until loop_log_level changes. */
#ifndef LOOP_LOG_LEVEL
#define LOOP_LOG_LEVEL LOOP_INFO
#endif

#if LOOP_CONTROL_HZ < 1 || LOOP_CONTROL_HZ > LOOP_MOST_CONTROL_HZ
#error "LOOP_CONTROL_HZ is a whole number from 1 to 1000000"
#endif

#endif
