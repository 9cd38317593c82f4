# SPDX-License-Identifier: Apache-2.0
"""Observations from a file: rows that give the int8 ranges, and rows that become the library's test vectors.

    .npz   the array `calibration`, else one array an input, named as it, else the only one; `observations` are vectors
    .npy   one array            .csv   numbers, a header line or none

Rows are (n, n_obs) float32, the inputs of the policy joined in their order; (n, *shape) is flattened.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.policy import Policy, TensorSpec

MAX_BYTES = 1024**3
MAX_VECTORS = 4096  # a library carries its vectors; more rows say nothing new
DEFAULT_VECTORS = 64
SEED = 0


@dataclass(frozen=True, eq=False)
class Observations:
    """`calibration` (n, n_obs) or None without a file; `vectors` (m, n_obs); where the vectors come from, for the log."""

    calibration: np.ndarray | None = field(repr=False)
    vectors: np.ndarray = field(repr=False)
    vectors_from: str


def read_observations(path: Path | None, policy: Policy) -> Observations:
    """What `--calibration` gives, or seeded random rows. Raises TinyrlError for rows the policy cannot take."""
    n_obs = sum(spec.length for spec in policy.inputs)
    rng = np.random.default_rng(SEED)
    if path is None:
        return Observations(
            None, rng.normal(size=(DEFAULT_VECTORS, n_obs)).astype(np.float32), "random numbers, seed 0"
        )
    arrays = _read(Path(path))
    calibration = _rows(_calibration(arrays, path, policy.inputs), f"calibration in '{path}'", n_obs, policy)
    is_input = len(policy.inputs) > 1 and "observations" in (spec.name for spec in policy.inputs)
    if "observations" in arrays and len(arrays) > 1 and not is_input:
        vectors = _rows(arrays["observations"], f"'observations' in '{path}'", n_obs, policy)
        if len(vectors) > MAX_VECTORS:
            vectors = vectors[np.linspace(0, len(vectors) - 1, MAX_VECTORS).astype(int)]
        return Observations(calibration, vectors, f"'observations' in '{Path(path).name}'")
    chosen = np.sort(rng.choice(len(calibration), min(DEFAULT_VECTORS, len(calibration)), replace=False))
    return Observations(calibration, calibration[chosen], "calibration rows, seed 0")


def split_inputs(rows: np.ndarray, inputs: tuple[TensorSpec, ...]) -> list[np.ndarray]:
    """Joined rows (n, n_obs) as one array (n, *shape) an input."""
    ends = np.cumsum([spec.length for spec in inputs])[:-1]
    parts = np.split(rows, ends, axis=1)
    return [part.reshape(len(rows), *spec.shape) for part, spec in zip(parts, inputs, strict=True)]


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise TinyrlError(f"no calibration file at '{path}'; give rollout observations as .npz, .npy or .csv")
    if path.stat().st_size > MAX_BYTES:
        raise TinyrlError(
            f"'{path}' has {path.stat().st_size:,} bytes, over {MAX_BYTES:,}; a few thousand rows will do"
        )
    readers = {".npz": _read_npz, ".npy": _read_npy, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise TinyrlError(f"cannot read calibration from '{path.name}'; have: {', '.join(readers)}")
    try:
        return readers[path.suffix.lower()](path)
    except Exception as error:  # damaged bytes lead numpy and zipfile to a dozen kinds, zlib's and tokenize's too
        raise TinyrlError(f"'{path}' is not a {path.suffix.lower()} of numbers: {why_not_numbers(error)}") from None


def why_not_numbers(error: Exception) -> str:
    """numpy's reason in a line; its advice to unpickle a file one trusts is not passed on."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "it holds pickled Python objects, which are not read" if "allow_pickle" in str(error) else reason


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:  # a small file may unpack to any size
        if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
            raise ValueError(f"it unpacks to over {MAX_BYTES:,} bytes")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of any other file
            raise ValueError(f"'{name}' is no array")
    return arrays


def _read_npy(path: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path, allow_pickle=False)}


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    with path.open(encoding="utf-8-sig") as stream:
        first = stream.readline()
    header = any(not _is_number(word) for word in first.split(","))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numpy warns of an empty file; the rows are counted below
        return {path.stem: np.loadtxt(path, delimiter=",", skiprows=int(header), ndmin=2, encoding="utf-8-sig")}


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _calibration(arrays: Mapping[str, np.ndarray], path: Path, inputs: tuple[TensorSpec, ...]) -> np.ndarray:
    names = [spec.name for spec in inputs]
    every_input = all(name in arrays for name in names)
    one_of_several = every_input and len(names) > 1 and "calibration" in names
    if "calibration" in arrays and not one_of_several:
        return arrays["calibration"]
    if len(names) == 1 and every_input:
        return arrays[names[0]]
    if every_input:
        columns = [np.atleast_1d(arrays[name]) for name in names]
        if len({len(column) for column in columns}) != 1:
            raise TinyrlError(f"'{path}' has different numbers of rows for {', '.join(names)}; give as many of each")
        return np.concatenate([column.reshape(len(column), math.prod(column.shape[1:])) for column in columns], axis=1)
    others = [name for name in arrays if name != "observations"] or list(arrays)
    if len(others) == 1:
        return arrays[others[0]]
    raise TinyrlError(
        f"'{path}' has the arrays {', '.join(arrays) or 'none'}; name one of them 'calibration', "
        f"or as the policy's input{'s' if len(names) > 1 else ''}: {', '.join(names)}"
    )


def _rows(array: np.ndarray, what: str, n_obs: int, policy: Policy) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise TinyrlError(f"{what} holds '{array.dtype}', not numbers; give observations as float32")
    if array.size == 0 or array.ndim == 0:
        raise TinyrlError(f"{what} is empty; give at least one row of {n_obs} numbers")
    rows = array.reshape(1, -1) if array.ndim == 1 and array.size == n_obs else array.reshape(len(array), -1)
    if rows.shape[1] != n_obs:
        raise TinyrlError(
            f"{what} has rows of {rows.shape[1]} numbers, '{policy.source}' takes {n_obs}; "
            f"record observations of the environment it was trained in"
        )
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(rows, np.float32)
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise TinyrlError(f"{what} has a NaN or an infinity in row {row}; remove such rows, they have no int8 code")
    return rows
