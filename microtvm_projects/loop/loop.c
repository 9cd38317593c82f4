/* SPDX-License-Identifier: Apache-2.0 */
#include "loop.h"

#include "console.h"

static volatile uint8_t is_stopping;

void loop_stop(void)
{
    is_stopping = 1;
}

/* Where a tick lies on the clock. Full seconds go from `tick` to `second`: no tick is ever rounded away, and no product
   outgrows its 64 bits, however long the loop runs. */
struct place {
    uint64_t second; /* on the clock, at which tick 0 was due */
    uint32_t tick;   /* less than control_hz */
};

static uint64_t due(const struct loop_config *config, const struct place *place)
{
    return place->second + (uint64_t)place->tick * config->clock_hz / config->control_hz;
}

static void advance(const struct loop_config *config, struct place *place, uint64_t ticks)
{
    const uint64_t tick = place->tick + ticks;
    place->second += tick / config->control_hz * config->clock_hz;
    place->tick = (uint32_t)(tick % config->control_hz);
}

static uint64_t ticks_within(const struct loop_config *config, uint64_t time)
{
    return time / config->clock_hz * config->control_hz + time % config->clock_hz * config->control_hz / config->clock_hz;
}

/* The next tick that is still to come; returns how many were skipped for it. */
static uint64_t next_tick(const struct loop_config *config, struct place *place, uint64_t now)
{
    uint64_t skipped = 0;
    advance(config, place, 1);
    if (now > due(config, place)) {
        skipped = ticks_within(config, now - due(config, place));
        advance(config, place, skipped);
        for (; now > due(config, place); skipped++) { /* at most twice, for both are rounded down */
            advance(config, place, 1);
        }
    }
    return skipped;
}

static void complain(const char *text, uint32_t times, uint32_t tick)
{
    if (times == 1) {
        LOOP_LOG(LOOP_WARN, text, tick);
    } else {
        LOOP_LOG(LOOP_DEBUG, text, tick);
    }
}

int loop_run(const struct loop_config *config, struct loop_statistics *statistics)
{
    static const struct loop_statistics NOTHING;
    policy_action action[N_ACTIONS] = {0};
    struct place place = {loop_now(), 0};
    uint64_t before = 0; /* when the last tick began */
    int sensed = LOOP_OBSERVED;

    *statistics = NOTHING;
    while (config->ticks == 0 || statistics->ticks < config->ticks) {
        const uint64_t wanted = due(config, &place);
        while (!config->batch && !is_stopping && loop_now() < wanted) {
            loop_wait_until(wanted);
        }
        if (is_stopping) {
            break;
        }
        const uint64_t begun = loop_now();

        float observation[N_OBS];
        policy_action answer[N_ACTIONS];
        int is_good = 0;
        sensed = sensor_read(observation);
        if (sensed == LOOP_OBSERVED) {
            const uint64_t asked = loop_now();
            is_good = POLICY_CALL(POLICY, observation, answer) == 0;
            spread_add(&statistics->inference, loop_now() - asked);
            if (!is_good) {
                complain("the policy refuses the observation at tick ", ++statistics->policy_failures, statistics->ticks);
            }
        } else if (sensed == LOOP_NO_OBSERVATION) {
            complain("the sensor fails at tick ", ++statistics->sensor_failures, statistics->ticks);
        } else {
            break;
        }
        for (uint32_t i = 0; i < N_ACTIONS; i++) {
            if (is_good) {
                action[i] = answer[i];
            } else if (config->safe_action == LOOP_ZEROS) {
                action[i] = 0;
            }
        }
        actuator_write(action);
        loop_update(statistics);

        if (!config->batch) {
            spread_add(&statistics->lateness, begun - wanted);
            if (statistics->ticks > 0) {
                spread_add(&statistics->period, begun - before);
            }
            before = begun;
            const uint64_t skipped = next_tick(config, &place, loop_now());
            if (skipped > 0) {
                statistics->skipped += (uint32_t)skipped;
                complain("the deadline is missed at tick ", ++statistics->missed, statistics->ticks);
            }
        }
        statistics->ticks++;
    }
    is_stopping = 0;
    return sensed == LOOP_BROKEN;
}

int loop_log_level = LOOP_LOG_LEVEL;

void loop_log(int level, const char *text, uint32_t number)
{
    static const char *const NAMES[] = {"error: ", "warn: ", "info: ", "debug: "};
    console_text(NAMES[level]);
    console_text(text);
    console_unsigned(number);
    console_text("\n");
}

static void print_number(const char *name, uint32_t value)
{
    console_text(name);
    console_unsigned(value);
}

static void print_spread(const char *name, const struct spread *spread)
{
    if (spread->count == 0) {
        return;
    }
    console_text(name);
    print_number(": least ", spread->least);
    print_number(" greatest ", spread->greatest);
    print_number(" mean ", spread_mean(spread));
    print_number(" deviation ", spread_deviation(spread));
    console_text("\n");
    for (unsigned bin = 0; LOOP_LOGS(LOOP_DEBUG) && bin < SPREAD_BINS; bin++) {
        if (spread->histogram[bin] != 0) {
            print_number("  from ", bin == 0 ? 0 : (uint32_t)1 << bin);
            print_number(": ", spread->histogram[bin]);
            console_text("\n");
        }
    }
}

void loop_report(const struct loop_config *config, const struct loop_statistics *statistics)
{
    print_number("ticks ", statistics->ticks);
    print_number(" missed ", statistics->missed);
    print_number(" skipped ", statistics->skipped);
    print_number(" sensor failures ", statistics->sensor_failures);
    print_number(" policy failures ", statistics->policy_failures);
    print_number("\nclock Hz ", config->clock_hz);
    console_text("\n");
    print_spread("lateness", &statistics->lateness);
    print_spread("period", &statistics->period);
    print_spread("inference", &statistics->inference);
}
