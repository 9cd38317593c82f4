# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tinyrl_tvm.project.platforms.platform import ANY_RELEASE, Platform

HOST = Platform(
    "host",
    "plain C99 for this machine: a shared library and a program that replays the test vectors",
    products=("out/libpolicy.so", "out/replay"),
    compiles_checkout=True,
    cmsis_nn=lambda _: ANY_RELEASE,
)
