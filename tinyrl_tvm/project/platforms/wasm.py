# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tinyrl_tvm.project.platforms.platform import Platform

WASM = Platform(
    "wasm",
    "a WebAssembly module for browsers and node, and a program that replays the test vectors in node",
    products=("out/policy.wasm", "out/replay.wasm"),
    tools=lambda _: ("clang", "wasm-ld"),
)
