# SPDX-License-Identifier: Apache-2.0
"""What a user can mend: one sentence that says what came, what would do and what to try next.

The command line prints these bare and exits 1; any other exception is our own bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TinyrlError(Exception):
    """Something the user gave, or this machine lacks; the message is complete without a traceback."""


class NoAnswer(TinyrlError):
    """A device did not answer in time."""


class UnsupportedOp(TinyrlError):
    """The policy needs an operator that no stage here can compile; the message names its node."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> TinyrlError:
    """`no target 'stm32f5'; have: host, cortex-m55. Did you mean 'cortex-m55'?`"""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return TinyrlError(f"no {kind} '{name}'; have: {', '.join(known)}.{hint}")
