# SPDX-License-Identifier: Apache-2.0
"""Observations as every device takes them: float32 rows, all inputs of the policy joined in order.

{"obs": (n, 3), "goal": (n, 2)}  ->  (n, 5)
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from tinyrl_tvm.calibrate import why_not_numbers
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface


def read_observations(path: Path, interface: Interface) -> np.ndarray:
    """A .npz with one array an input, named as the input, samples along the first axis. A policy with a single input
    takes a single array of any name."""
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:  # numpy takes more than a .npz
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise TinyrlError(f"no observations at '{path}'") from None
    except Exception as error:  # damaged bytes lead numpy and zipfile to a dozen kinds
        raise TinyrlError(f"'{path}' is not a .npz of numbers: {why_not_numbers(error)}") from None
    return joined(interface, arrays)


def joined(interface: Interface, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, n_obs) from one array an input."""
    wanted = [tensor.name for tensor in interface.inputs]
    if len(wanted) == 1 and len(arrays) == 1:
        return observation_rows(interface, _flat(next(iter(arrays.values()))))
    if missing := [name for name in wanted if name not in arrays]:
        raise TinyrlError(
            f"no observations for {_quoted(missing)}; '{interface.name}' takes {_quoted(wanted)}, "
            f"given: {_quoted(arrays) or 'nothing'}; name the arrays as the inputs are"
        )
    columns = [_flat(np.asarray(arrays[name])) for name in wanted]
    for tensor, column in zip(interface.inputs, columns, strict=True):
        if column.shape[1:] != (tensor.length,) or len(column) != len(columns[0]):
            raise TinyrlError(
                f"observations '{tensor.name}' of shape {arrays[tensor.name].shape}; '{interface.name}' takes "
                f"{tensor.length} numbers a sample, as many samples of each input"
            )
    return observation_rows(interface, np.concatenate(columns, axis=1))


def observation_rows(interface: Interface, observations: np.ndarray) -> np.ndarray:
    """Checked, as float32. A single sample may come without its axis."""
    rows = np.asarray(observations)
    if rows.dtype.kind not in "fiub":
        raise TinyrlError(f"observations are numbers, not '{rows.dtype}'")
    if rows.ndim == 1:
        rows = rows[np.newaxis]
    if rows.ndim != 2 or rows.shape[1] != interface.n_obs or len(rows) == 0:
        parts = " + ".join(f"{tensor.name} {tensor.length}" for tensor in interface.inputs)
        raise TinyrlError(
            f"observations of shape {np.shape(observations)}; '{interface.name}' takes (n, {interface.n_obs}): {parts}"
        )
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which the policy answers with a status
        return np.ascontiguousarray(rows, np.float32)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _flat(array: np.ndarray) -> np.ndarray:
    """(n, 3, 8, 8) -> (n, 192)"""
    return array.reshape(len(array), -1) if array.ndim > 2 and len(array) else array
