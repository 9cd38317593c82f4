# SPDX-License-Identifier: Apache-2.0
"""The Model Library Format archive: what `compile` writes and every later verb reads.

    metadata.json                              sizes, interface and pedigree
    codegen/host/include/tvmgen_<name>.h       the C contract
    codegen/host/src/<name>_*.c .S             the code: shell, parameters, portable kernels, kernels of the target
    parameters/<name>.params                   the quantised weights, TVM's own format
    src/<name>.relax                           the graph, for people; never parsed back
    test/vectors.npz                           observations and the answers the library must give

It is microTVM's layout, version 7, with `src/*.relax` in the place of `src/*.relay`; hence version 8.
Source: apache/tvm v0.18.0, python/tvm/micro/model_library_format.py.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tinyrl_tvm.errors import TinyrlError

FORMAT_VERSION = 8
MAX_LIBRARY_BYTES = 256 * 1024 * 1024  # a library is untrusted input; the largest honest one here is under 10 MiB
MAX_LIBRARY_FILES = 1000


@dataclass(frozen=True)
class ModelLibrary:
    """A compiled policy. `files` maps a path inside the archive to its bytes, `metadata.json` included."""

    files: Mapping[str, bytes]

    def __post_init__(self) -> None:
        metadata = self.metadata
        modules = metadata.get("modules")
        if metadata.get("version") != FORMAT_VERSION or not isinstance(modules, dict) or len(modules) != 1:
            raise TinyrlError(
                f"this library is of format version {metadata.get('version')!r}, this tinyrl-tvm reads version "
                f"{FORMAT_VERSION} with one module; compile the policy again"
            )
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.name):
            raise TinyrlError(f"this library's module is called {self.name!r}, which is no C identifier")

    @property
    def metadata(self) -> dict[str, Any]:
        return json.loads(self.files["metadata.json"])

    @property
    def name(self) -> str:
        """The module's name: a C identifier that prefixes every symbol."""
        return next(iter(self.metadata["modules"]))

    @property
    def module(self) -> dict[str, Any]:
        """The module's entry in the metadata; `module['tinyrl']` holds the keys that are ours."""
        return self.metadata["modules"][self.name]

    @property
    def interface(self) -> dict[str, Any]:
        """Ours: target, precision, inputs, action, tolerance; see `emit/archive.py`."""
        return self.module["tinyrl"]

    def vectors(self) -> dict[str, np.ndarray]:
        """`observations` (n, n_obs) float32 rows of all inputs joined, `expected` (n, n_actions) what the library
        must answer, `float_action` (n, n_actions) what the float policy answers."""
        with np.load(io.BytesIO(self.files["test/vectors.npz"]), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def save(self, path: Path) -> None:
        """Write the archive. The same files give the same bytes: order, owner and times are fixed."""
        write_whole(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        seconds = export_seconds()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name in sorted(self.files):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime, entry.mode = len(self.files[name]), seconds, 0o644
                entry.uname = entry.gname = "root"
                archive.addfile(entry, io.BytesIO(self.files[name]))
        return buffer.getvalue()

    @staticmethod
    def load(path: Path) -> ModelLibrary:
        """Read an archive written by `save`. Raises TinyrlError for anything else."""
        path = Path(path)
        if not path.is_file():
            raise TinyrlError(f"no library at '{path}'; 'tinyrl-tvm compile policy.onnx -o {path.name}' writes one")
        try:
            with tarfile.open(path, mode="r:") as archive:
                files = _read_members(archive, path)
        except (tarfile.TarError, EOFError, OSError) as error:
            if path.suffix.lower() == ".onnx":
                raise TinyrlError(
                    f"'{path}' is a policy and no model library yet; 'tinyrl-tvm compile {path}' makes one of it"
                ) from None
            raise TinyrlError(f"'{path}' is not a model library: {error}") from None
        if "metadata.json" not in files:
            raise TinyrlError(f"'{path}' is not a model library: it has no metadata.json")
        try:
            return ModelLibrary(files)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise TinyrlError(f"'{path}' is not a model library: metadata.json is damaged ({error})") from None


def _read_members(archive: tarfile.TarFile, path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    total = 0
    for entry in archive:
        name = PurePosixPath(entry.name)
        if entry.isdir():
            continue
        if not entry.isfile() or name.is_absolute() or ".." in name.parts:
            raise TinyrlError(f"'{path}' is not a model library: it holds '{entry.name}', which leaves its folder")
        total += entry.size
        if total > MAX_LIBRARY_BYTES or len(files) >= MAX_LIBRARY_FILES:
            raise TinyrlError(f"'{path}' is larger than any model library ({MAX_LIBRARY_BYTES} bytes)")
        stream = archive.extractfile(entry)
        assert stream is not None
        files[str(name)] = stream.read()
    return files


def export_seconds() -> int:
    """The time every file carries: SOURCE_DATE_EPOCH, else 1980-01-01, the oldest date zip can hold."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "315532800")
    if not text.isdecimal():
        raise TinyrlError(f"SOURCE_DATE_EPOCH is {text!r}; give seconds since 1970, or unset it")
    return int(text)


def write_whole(path: Path, data: bytes) -> None:
    """Write to a temporary name beside `path`, then rename: a reader never sees half a file."""
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise TinyrlError(f"cannot write '{path}': {error.strerror}; choose another output path") from None
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise TinyrlError(f"cannot write '{path}': {error.strerror}; choose another output path") from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
