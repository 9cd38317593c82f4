# SPDX-License-Identifier: Apache-2.0
"""Names and messages out of a model, fit for a sentence: on one line and short, whatever they contain."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

REEXPORT = "export it again with opset_version=18"  # the oldest that both of torch's exporters write themselves


def quoted(names: Iterable[str]) -> str:
    """`'a', 'b'`: names out of a model, on one line and short whatever they contain."""
    return ", ".join(repr(name if len(name) <= 80 else f"{name[:77]}...") for name in names)


def named(node: onnx.NodeProto) -> str:
    return quoted([node.name or node.output[0]])  # nodes need no name, their outputs do


def one_line(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip(" .")
    return text if len(text) <= 200 else f"{text[:197]}..."
