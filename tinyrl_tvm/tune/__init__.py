# SPDX-License-Identifier: Apache-2.0
"""Choose schedules by measurement: every trial is a firmware that runs on a device and is checked against the oracle.

    task.py      the distinct kernels of a policy, and the settings of their knobs
    oracle.py    what a kernel is asked, and what it must answer
    firmware.py  a kernel in a firmware of its own: built, run, judged, counted
    search.py    which settings to try next: MetaSchedule's search strategy and cost model over knobs
    session.py   MetaSchedule's task scheduler with our builder, our runner and our records

Why a search strategy of ours: MetaSchedule's own mutate sampling decisions inside one traced schedule of one function.
A knob here may change the layout of the weights, and with it the function itself, so a setting is a whole schedule.
"""
