# SPDX-License-Identifier: Apache-2.0
"""The file, and the weights beside it, read as a stranger's: sizes are bounded, paths stay in the model's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.frontends.onnx.sentences import REEXPORT, one_line, quoted
from tinyrl_tvm.frontends.onnx.walking import tensors, texts

if TYPE_CHECKING:
    import onnx

MAX_MODEL_BYTES = 256 * 1024 * 1024  # the file, and its external data; no microcontroller holds a tenth of it
OPSETS = (9, 25)  # what TVM 0.27's importer and ONNX Runtime both read; torch writes 17 to 20


def read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MODEL_BYTES + 1)
    except OSError as err:
        raise TinyrlError(f"cannot read '{path}': {err.strerror}; give the path of an .onnx file") from err
    if len(data) > MAX_MODEL_BYTES:
        raise TinyrlError(f"'{path.name}' is over {MAX_MODEL_BYTES // 2**20} MiB, too much for a microcontroller")
    return data


def parse(data: bytes, source: str) -> onnx.ModelProto:
    import onnx

    try:
        # not onnx.load: it picks a parser by the file's ending, and opens external data wherever that points
        model = onnx.load_model_from_string(data)
    except Exception:  # protobuf's own type, which has no stubs; it says nothing a user could act on
        model = onnx.ModelProto()
    whole = model.graph.node and model.opset_import and all(isinstance(text, str) for text in texts(model))
    if not whole and data[:1] == b"\x08":  # every exporter writes field 1, ir_version, first
        raise TinyrlError(f"'{source}' is an ONNX file cut short or damaged ({len(data):,} B); copy or export it again")
    if not whole:
        raise TinyrlError(f"'{source}' is {_kind_of_file(data)}; export the policy with torch.onnx.export")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise TinyrlError(f"'{source}' is of ONNX opset {opset}, {OPSETS[0]} to {OPSETS[1]} can be read; {REEXPORT}")
    if model.graph.sparse_initializer:
        raise TinyrlError(f"'{source}' stores sparse weights, which TVM cannot read; export dense ones")
    return model


def _kind_of_file(data: bytes) -> str:
    if not data:
        return "empty"
    if data.startswith(b"PK\x03\x04"):
        return "not an ONNX file but a zip archive, such as model.save() writes"
    if data.startswith(b"version https://git-lfs"):
        return "not an ONNX file but a Git LFS pointer to one, which `git lfs pull` replaces"
    return "not an ONNX file"


def read_external_data(model: onnx.ModelProto, path: Path) -> Iterator[str]:
    """Bring weights kept in files beside the model into it. The names of those files come from a stranger."""
    import onnx

    files: dict[str, bytes] = {}
    room_bytes = MAX_MODEL_BYTES  # counted a tensor, for many tensors may claim the same bytes of a file
    for tensor in tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in files:
            files[location] = _read_beside(path, location)
        content = files[location]
        try:
            start = int(entries.get("offset", "0"))
            stop = start + int(entries.get("length", str(len(content) - start)))
        except ValueError:
            start, stop = 0, -1
        if not 0 <= start <= stop <= len(content):
            raise TinyrlError(
                f"'{path.name}' keeps weight {quoted([tensor.name])} in {quoted([location])}, which is cut short or "
                f"damaged ({len(content):,} B); copy or export both files again"
            )
        room_bytes -= stop - start
        if room_bytes < 0:
            raise TinyrlError(
                f"the weights of '{path.name}' need over {MAX_MODEL_BYTES // 2**20} MiB, too much for a microcontroller"
            )
        tensor.raw_data = content[start:stop]
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.ClearField("external_data")
    for location, content in files.items():
        yield f"weights read from {quoted([location])}, SHA-256 {hashlib.sha256(content).hexdigest()}"


def _read_beside(path: Path, location: str) -> bytes:
    said = f"'{path.name}' keeps weights in {quoted([location])}"
    folder = path.parent.resolve()
    paths = PurePosixPath(location), PureWindowsPath(location)  # by the rules of both: a file travels
    inside = bool(location) and "\0" not in location and not any(one.anchor or ".." in one.parts for one in paths)
    try:
        target = (folder / location).resolve() if inside else folder
        if not inside or not target.is_relative_to(folder):
            raise TinyrlError(f"{said}, which is outside the model's own folder; export it again into one folder")
        with target.open("rb") as file:
            content = file.read(MAX_MODEL_BYTES + 1)
    except FileNotFoundError as err:
        raise TinyrlError(f"{said}, which is missing; copy that file beside the model") from err
    except (OSError, RuntimeError) as err:  # before Python 3.13 a loop of symbolic links is a RuntimeError
        raise TinyrlError(f"{said}, which cannot be read: {one_line(str(err))}; export it again") from err
    if len(content) > MAX_MODEL_BYTES:
        raise TinyrlError(f"{said}, which is over {MAX_MODEL_BYTES // 2**20} MiB, too much for a microcontroller")
    return content
