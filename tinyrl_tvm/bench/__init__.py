# SPDX-License-Identifier: Apache-2.0
"""Measure a policy on several devices, and say it on one page.

    LIBRARY.tar + devices -> measure.py -> Bench -> report.py -> report.html

`pedigree` is what the library says of its own making, `answers` how answers differ, `plots` draws them.
"""
