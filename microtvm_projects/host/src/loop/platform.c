/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200112L /* clock_nanosleep */
#include "platform.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "console.h"
#include "loop.h"
#include "recording.h"

uint64_t loop_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * CLOCK_HZ + (uint64_t)now.tv_nsec;
}

void loop_wait_until(uint64_t time)
{
    const struct timespec until = {(time_t)(time / CLOCK_HZ), (long)(time % CLOCK_HZ)};
    (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0); /* a signal ends it: the loop looks whether to stop */
}

static int is_reporting;

void console_report(void)
{
    is_reporting = 1;
}

void console_text(const char *text)
{
    fputs(text, is_reporting ? stdout : stderr);
}

static const char *observations_name;
static FILE *observations, *actions;

static FILE *opened(const char *path, const char *mode)
{
    FILE *const file = fopen(path, mode);
    if (file == 0) {
        fprintf(stderr, "error: cannot open '%s': %s\n", path, strerror(errno));
    }
    return file;
}

int files_open(const char *observations_path, const char *actions_path)
{
    if (observations_path[0] != '\0') {
        observations_name = observations_path;
        observations = opened(observations_path, "rb");
        if (observations == 0) {
            return 1;
        }
    }
    if (actions_path[0] != '\0') {
        actions = opened(actions_path, "w");
        if (actions == 0) {
            return 1;
        }
        for (int i = 0; i < N_ACTIONS; i++) {
            fprintf(actions, "%saction%d", i == 0 ? "" : ",", i);
        }
        fputc('\n', actions);
    }
    return 0;
}

int files_close(void)
{
    int failed = 0;
    if (observations != 0) {
        failed |= ferror(observations);
        fclose(observations);
    }
    if (actions != 0) {
        failed |= ferror(actions);
        failed |= fclose(actions);
    }
    if (failed) {
        fputs("error: the observations cannot be read to their end, or not all actions be written\n", stderr);
    }
    return failed;
}

const char *recording_open(void)
{
    return observations_name;
}

int recording_byte(void)
{
    const int byte = fgetc(observations);
    return byte == EOF ? -1 : byte;
}

void recording_write(const policy_action action[N_ACTIONS])
{
    if (actions == 0) {
        return;
    }
    for (int i = 0; i < N_ACTIONS; i++) {
        if (i > 0) {
            fputc(',', actions);
        }
#if ACTION_IS_FLOAT
        fprintf(actions, "%.9g", (double)action[i]); /* nine digits hold a float exactly */
#else
        fprintf(actions, "%" PRId32, action[i]);
#endif
    }
    fputc('\n', actions);
}
