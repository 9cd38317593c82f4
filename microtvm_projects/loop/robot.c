/* SPDX-License-Identifier: Apache-2.0 */
/* Replace this file: it plays a recording where your robot has sensors and motors. loop.h says what each must do. */
#include "loop.h"
#include "recording.h"

int sensor_read(float observation[N_OBS])
{
    return recording_read(observation);
}

void actuator_write(const policy_action action[N_ACTIONS])
{
    recording_write(action);
}

void loop_update(const struct loop_statistics *statistics)
{
    (void)statistics;
}
