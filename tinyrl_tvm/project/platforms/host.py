# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tinyrl_tvm.project.platforms.platform import ANY_RELEASE, LOOP_FILES, PROFILE_FILES, Platform

HOST = Platform(
    "host",
    "plain C99 for this machine: a shared library and a program that replays the test vectors",
    products=("out/libpolicy.so", "out/replay"),
    profile="out/libprofile.so",
    borrows={path: f"src/{path.partition('/')[2]}" for path in PROFILE_FILES} | LOOP_FILES,
    compiles_checkout=True,
    cmsis_nn=lambda _: ANY_RELEASE,
)
