# SPDX-License-Identifier: Apache-2.0
"""The platforms a project can be generated for: a file each, and this table."""

from __future__ import annotations

from tinyrl_tvm.errors import unknown_name
from tinyrl_tvm.project.platforms.arduino import ARDUINO
from tinyrl_tvm.project.platforms.baremetal import BAREMETAL
from tinyrl_tvm.project.platforms.cmsis import CMSIS
from tinyrl_tvm.project.platforms.esp_idf import ESP_IDF
from tinyrl_tvm.project.platforms.host import HOST
from tinyrl_tvm.project.platforms.platform import Option, Platform
from tinyrl_tvm.project.platforms.wasm import WASM
from tinyrl_tvm.project.platforms.zephyr import ZEPHYR

__all__ = ["PLATFORMS", "Option", "Platform", "platform_named"]

PLATFORMS = {platform.name: platform for platform in (HOST, BAREMETAL, WASM, ARDUINO, CMSIS, ESP_IDF, ZEPHYR)}


def platform_named(name: str) -> Platform:
    if name not in PLATFORMS:
        raise unknown_name("platform", name, PLATFORMS)
    return PLATFORMS[name]
