# SPDX-License-Identifier: Apache-2.0
"""The CMSIS-NN that trials call: the checkout that CMSIS_NN_PATH names, by the compiler that CMSIS_NN_CC names.

The bench's project compiles it, by `cmsis_nn.mk` as every project does; here is what has to be known before.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from tinyrl_tvm import cmsis_nn, toolchain
from tinyrl_tvm.errors import TinyrlError


def checkout(functions: Iterable[str]) -> Path:
    """Where it lies. Raises TinyrlError, as a build does, when there is none or it lacks what `functions` need."""
    functions = tuple(functions)
    since, named = cmsis_nn.since(functions), os.environ.get("CMSIS_NN_PATH")
    if not named:
        raise TinyrlError(f"the policy calls CMSIS-NN: set CMSIS_NN_PATH to a checkout of it, {since} or newer")
    for file in ("Include/arm_nnfunctions.h", *cmsis_nn.sources(functions)):
        if not Path(named, file).is_file():
            raise TinyrlError(f"no {file} in CMSIS_NN_PATH={named}: the policy needs CMSIS-NN {since} or newer")
    return Path(named)


def build_of(function: str) -> str:
    """What tells one build of `function` from another that may cost something else: its sources, and its compiler."""
    root = checkout([function])
    files = [*sorted(root.glob("Include/*.h")), *(root / source for source in cmsis_nn.sources([function]))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    words = shlex.split(os.environ.get("CMSIS_NN_CC", "")) or [str(toolchain.find("arm-none-eabi-gcc"))]
    version = toolchain.version(words[0])
    if version is None:
        raise TinyrlError(f"no compiler '{words[0]}', which CMSIS_NN_CC names")
    return f"{digest[:16]} by {' '.join([version, *words[1:]])}"
