# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tinyrl_tvm.project.platforms.platform import LOOP_FILES, Platform

HOST = Platform(
    "host",
    "plain C99 for this machine: a shared library and a program that replays the test vectors",
    products=("out/libpolicy.so", "out/replay"),
    borrows=LOOP_FILES,
    builds_cmsis_nn=True,
)
