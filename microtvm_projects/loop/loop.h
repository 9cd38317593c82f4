/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control loop: sensor -> policy -> actuator -> update, at a fixed tick.
 *
 * Tick k is due k / control_hz seconds after the first, on the clock, whatever the ticks before it took: nothing drifts.
 * A tick whose work ends after the next one is due has missed its deadline. What has become due meanwhile is skipped, never
 * made up for, and the loop waits for the next tick that is still to come.
 * When the policy's status is not 0, or the sensor has no observation, the actuator gets the safe action.
 */
#ifndef LOOP_H
#define LOOP_H

#include <stdint.h>

#include "loop_config.h"
#include "spread.h"
#include "vectors.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LOOP_ZEROS, LOOP_HOLD };

struct loop_config {
    uint32_t clock_hz;   /* of loop_now() */
    uint32_t control_hz; /* not 0 */
    uint32_t ticks;      /* 0: no end */
    int batch;           /* no tick: as fast as it goes */
    int safe_action;     /* LOOP_ZEROS, or LOOP_HOLD: the last good action, zeros before there is one */
};

/* Spreads are in ticks of the clock. In batch mode there are no deadlines, and only `inference` is measured. */
struct loop_statistics {
    uint32_t ticks;           /* that ran */
    uint32_t missed;          /* of these, ended after the next one was due */
    uint32_t skipped;         /* did not run: they were past when the one before them ended */
    uint32_t sensor_failures; /* ran with the safe action, for want of an observation */
    uint32_t policy_failures; /* ran with the safe action, for the policy's status was not 0 */
    struct spread lateness;   /* from when a tick was due until it began */
    struct spread period;     /* from the beginning of a tick to that of the next */
    struct spread inference;  /* the call of the policy, and a reading of the clock */
};

/* Returns 0, or 1 when the sensor said LOOP_BROKEN. What the actuator holds when the loop ends is up to the caller. */
int loop_run(const struct loop_config *config, struct loop_statistics *statistics);

/* End the loop before its next tick. May be called by an interrupt or a signal handler. */
void loop_stop(void);

/* Prints the statistics; the histograms too, at LOOP_DEBUG. */
void loop_report(const struct loop_config *config, const struct loop_statistics *statistics);

/* Your robot: robot.c has all three. */

enum {
    LOOP_OBSERVED,       /* the observation is there */
    LOOP_NO_OBSERVATION, /* not this time: the safe action */
    LOOP_END,            /* there will be no more */
    LOOP_BROKEN          /* there will be no more, and there should have been */
};

/* Fill the observation: all inputs joined, raw, as the environment gives them. */
int sensor_read(float observation[N_OBS]);

void actuator_write(const policy_action action[N_ACTIONS]);

/* After the actuator, in every tick: kick the watchdog, step a filter. `statistics` are those before this tick. */
void loop_update(const struct loop_statistics *statistics);

/* The platform supplies these. */

/* Ticks of a clock that never wraps and never goes back. */
uint64_t loop_now(void);

/* Sleep until loop_now() is `time`, or less: the loop asks again until it is. */
void loop_wait_until(uint64_t time);

/* What there is to say. Of a kind that comes again and again only the first is more than LOOP_DEBUG: a tick that is late
   must not be later for saying so. */

enum { LOOP_ERROR, LOOP_WARN, LOOP_INFO, LOOP_DEBUG };

extern int loop_log_level;

#define LOOP_LOGS(level) ((level) <= LOOP_LOG_COMPILED && (level) <= loop_log_level)

/* LOOP_LOG(LOOP_WARN, "the deadline is missed at tick ", tick) */
#define LOOP_LOG(level, text, number) \
    do { \
        if (LOOP_LOGS(level)) { \
            loop_log(level, text, number); \
        } \
    } while (0)

void loop_log(int level, const char *text, uint32_t number);

#ifdef __cplusplus
}
#endif

#endif
