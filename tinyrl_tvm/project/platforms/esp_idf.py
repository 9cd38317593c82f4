# SPDX-License-Identifier: Apache-2.0
"""A component for ESP-IDF: a folder of the policy's name, as the component manager wants it, with an example in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyrl_tvm import __version__
from tinyrl_tvm.project.platforms.platform import Layout, Option, Options, Platform

EXAMPLE = "{{name}}/examples/replay"

# The chips of one core, and our target for it: none for Xtensa, where C for any core is compiled.
CHIPS: Mapping[str, str | None] = {
    "esp32": None,
    "esp32s2": None,
    "esp32s3": None,
    "esp32c2": "rv32imc",
    "esp32c3": "rv32imc",
    "esp32c6": "rv32imc",
    "esp32h2": "rv32imc",
}


def _holes(options: Options, _: Sequence[str]) -> dict[str, Any]:
    return {"chip": options["chip"], "version": __version__}


ESP_IDF = Platform(
    "esp-idf",
    "a component for ESP-IDF, with an example that replays the test vectors",
    products=(f"{EXAMPLE}/build/replay.elf",),
    layout=Layout(code="{{name}}", replay=f"{EXAMPLE}/main", model="model.tar"),
    options=(Option("chip", tuple(CHIPS), "esp32c3", "the chip to build the example for"),),
    command=("idf.py", "-C", EXAMPLE, "build"),
    flash=("idf.py", "-C", EXAMPLE, "{{ '-p' if port }}", "{{ port }}", "flash"),
    tools=lambda _: ("idf.py",),
    target=lambda options: CHIPS[options["chip"]],
    holes=_holes,
)
