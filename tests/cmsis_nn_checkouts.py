# SPDX-License-Identifier: Apache-2.0
"""The CMSIS-NNs that tests of its backend run against: the strict stand-in, and yours where CMSIS_NN_PATH says so."""

from __future__ import annotations

import os
from pathlib import Path

STAND_IN = Path(__file__).parent / "cmsis_nn_stand_in"
CHECKOUTS = {"stand-in": STAND_IN}
if "CMSIS_NN_PATH" in os.environ:
    CHECKOUTS["real"] = Path(os.environ["CMSIS_NN_PATH"]).resolve()
