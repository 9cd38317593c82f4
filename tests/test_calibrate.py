# SPDX-License-Identifier: Apache-2.0
"""Observations from files: every format that is read, and the sentence for every one that is not."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinyrl_tvm import calibrate
from tinyrl_tvm.calibrate import read_observations, split_inputs
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.policy import TensorSpec

ROWS = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)


def taking(**shapes: tuple[int, ...]) -> Any:
    """A policy as far as calibration looks at one."""
    inputs = tuple(TensorSpec(name, shape, "float32") for name, shape in shapes.items())
    return SimpleNamespace(inputs=inputs, source="policy.onnx")


VECTOR = taking(obs=(3,))
DICT = taking(joints=(2,), map=(2, 2))


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "rows.npz"
    np.savez(path, **arrays)
    return path


def npy(folder: Path, array: Any, **options: Any) -> Path:
    path = folder / "rows.npy"
    np.save(path, array, **options)
    return path


def csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "rows.csv"
    path.write_text(text, encoding=encoding)
    return path


def raw(name: str, data: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    return write


# ---- what is read ----

READABLE: dict[str, Callable[[Path], Path]] = {
    "npz, calibration": lambda folder: npz(folder, calibration=ROWS, other=ROWS[:1]),
    "npz, named as the input": lambda folder: npz(folder, obs=ROWS, other=ROWS[:1]),
    "npz, the only array": lambda folder: npz(folder, whatever=ROWS),
    "npz, compressed": lambda folder: (np.savez_compressed(folder / "c.npz", a=ROWS), folder / "c.npz")[1],
    "npz, calibration before the input": lambda folder: npz(folder, calibration=ROWS, obs=ROWS[:1]),
    "npz, beside observations": lambda folder: npz(folder, some=ROWS, observations=ROWS[:5]),
    "npz, observations alone": lambda folder: npz(folder, observations=ROWS),
    "npy": lambda folder: npy(folder, ROWS),
    "npy, float64": lambda folder: npy(folder, ROWS.astype(np.float64)),
    "npy, by columns": lambda folder: npy(folder, np.asfortranarray(ROWS)),
    "npy, an axis more": lambda folder: npy(folder, ROWS[:, None]),
    "csv": lambda folder: csv(folder, "\n".join(",".join(map(repr, row.tolist())) for row in ROWS)),
    "csv, with a header": lambda folder: csv(
        folder, "x,y,z\n" + "\n".join(",".join(map(repr, row.tolist())) for row in ROWS) + "\n"
    ),
    "csv, as Excel saves it": lambda folder: csv(
        folder, "\r\n".join(",".join(map(repr, row.tolist())) for row in ROWS), "utf-8-sig"
    ),
}


@pytest.mark.parametrize("write", READABLE.values(), ids=READABLE)
def test_rows_are_read_from(write: Callable[[Path], Path], tmp_path: Path) -> None:
    found = read_observations(write(tmp_path), VECTOR).calibration
    assert found is not None
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, ROWS)


def test_one_row_may_come_without_its_axis(tmp_path: Path) -> None:
    found = read_observations(npy(tmp_path, ROWS[0]), VECTOR)
    np.testing.assert_array_equal(found.calibration, ROWS[:1])
    np.testing.assert_array_equal(found.vectors, ROWS[:1])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_, np.float16])
def test_any_kind_of_number_is_taken(dtype: Any, tmp_path: Path) -> None:
    rows = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    np.testing.assert_array_equal(read_observations(npy(tmp_path, rows), VECTOR).calibration, rows.astype(np.float32))


def test_several_inputs_are_joined_in_their_order(tmp_path: Path) -> None:
    joints, maps = ROWS[:, :2], np.random.default_rng(1).normal(size=(100, 2, 2)).astype(np.float32)
    wanted = np.concatenate([joints, maps.reshape(100, 4)], axis=1)
    first = {"calibration": wanted, "map": -maps, "joints": joints}
    for arrays in ({"map": maps, "joints": joints}, {"calibration": wanted}, {"anything": wanted}, first):
        found = read_observations(npz(tmp_path, **arrays), DICT).calibration
        np.testing.assert_array_equal(found, wanted)
    parts = split_inputs(wanted, DICT.inputs)
    np.testing.assert_array_equal(parts[0], joints)
    np.testing.assert_array_equal(parts[1], maps)


# ---- test vectors ----


def test_observations_are_the_vectors_and_the_log_says_so(tmp_path: Path) -> None:
    found = read_observations(npz(tmp_path, calibration=ROWS, observations=ROWS[5:9]), VECTOR)
    np.testing.assert_array_equal(found.vectors, ROWS[5:9])
    assert found.vectors_from == "'observations' in 'rows.npz'"


def test_without_observations_64_seeded_rows_are_the_vectors(tmp_path: Path) -> None:
    found = read_observations(npy(tmp_path, ROWS), VECTOR)
    assert found.vectors.shape == (64, 3)
    assert found.vectors_from == "calibration rows, seed 0"
    places = [int(np.flatnonzero((row == ROWS).all(1))[0]) for row in found.vectors]
    assert places == sorted(set(places))  # each once, in the order they were recorded
    np.testing.assert_array_equal(read_observations(npy(tmp_path, ROWS), VECTOR).vectors, found.vectors)
    assert len(read_observations(npy(tmp_path, ROWS[:10]), VECTOR).vectors) == 10


def test_without_a_file_64_seeded_random_rows_are_the_vectors() -> None:
    found = read_observations(None, DICT)
    assert found.calibration is None
    assert found.vectors.shape == (64, 6)
    assert found.vectors_from == "random numbers, seed 0"
    np.testing.assert_array_equal(found.vectors, read_observations(None, DICT).vectors)


def test_a_long_recording_is_thinned_to_4096_vectors(tmp_path: Path) -> None:
    rows = np.arange(3 * 10_000, dtype=np.float32).reshape(-1, 3)
    found = read_observations(npz(tmp_path, calibration=rows, observations=rows), VECTOR)
    assert len(found.vectors) == 4096
    np.testing.assert_array_equal(found.vectors[[0, -1]], rows[[0, -1]])
    assert found.calibration is not None and len(found.calibration) == 10_000


def test_an_input_called_observations_is_an_input_first(tmp_path: Path) -> None:
    """Of several inputs one may have the name that else means the vectors."""
    policy = taking(observations=(2,), goal=(1,))
    found = read_observations(npz(tmp_path, observations=ROWS[:, :2], goal=ROWS[:, 2:]), policy)
    np.testing.assert_array_equal(found.calibration, ROWS)
    assert found.vectors.shape == (64, 3)
    policy = taking(calibration=(2,), goal=(1,))
    found = read_observations(npz(tmp_path, calibration=ROWS[:, :2], goal=ROWS[:, 2:]), policy)
    np.testing.assert_array_equal(found.calibration, ROWS)


# ---- what is not ----


def with_nan(row: int, value: float = np.nan) -> np.ndarray:
    rows = ROWS.copy()
    rows[row, 1] = value
    return rows


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def npy_bytes(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def damaged(data: bytes) -> bytes:
    """A byte in the middle of the compressed numbers is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def headed(shape: str) -> bytes:
    """An .npy of a hundred bytes whose header promises another shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00v\x00" + header.encode() + bytes(100)


NUMBERS = "'{path}' is not a {suffix} of numbers: "
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no file": (
        lambda folder: folder / "none.npz",
        "no calibration file at '{path}'; give rollout observations as .npz, .npy or .csv",
    ),
    "a folder": (
        lambda folder: folder,
        "no calibration file at '{path}'; give rollout observations as .npz, .npy or .csv",
    ),
    "another format": (
        raw("rows.pkl", b"..."),
        "cannot read calibration from 'rows.pkl'; have: .npz, .npy, .csv",
    ),
    "no zip": (raw("rows.npz", b"not a zip"), NUMBERS + "File is not a zip file"),
    "an empty npz file": (raw("rows.npz", b""), NUMBERS + "File is not a zip file"),
    "no npy": (raw("rows.npy", b"not an npy file, but long enough"), NUMBERS + ".*"),
    "an empty npy file": (raw("rows.npy", b""), NUMBERS + "No data left in file"),
    "half an npy": (raw("rows.npy", npy_bytes(ROWS)[:600]), NUMBERS + ".*"),
    "a shape of terabytes": (raw("rows.npy", headed("(1000000000000, 3)")), NUMBERS + ".*"),
    "a shape of terabytes in a zip": (
        raw("rows.npz", zipped(**{"a.npy": headed("(10000000000, 300)")})),
        NUMBERS + ".*",
    ),
    "a shape past counting": (raw("rows.npy", headed("(" + 30 * "9" + ", 3)")), NUMBERS + ".*"),
    "a shape that is a sum": (raw("rows.npy", headed("(10**9, 3)")), NUMBERS + ".*"),
    "a header that never ends": (raw("rows.npy", headed("((((((")), NUMBERS + ".*"),
    "a damaged npz": (raw("rows.npz", damaged(zipped(**{"a.npy": npy_bytes(ROWS)}))), NUMBERS + ".*"),
    "pickles": (
        lambda folder: npy(folder, np.array([{"a": 1}]), allow_pickle=True),
        NUMBERS + "it holds pickled Python objects, which are not read",
    ),
    "pickles in a zip": (
        lambda folder: npz(folder, calibration=np.array([{"a": 1}], object)),
        NUMBERS + "it holds pickled Python objects, which are not read",
    ),
    "a note in the zip": (raw("rows.npz", zipped(**{"readme.txt": b"hello"})), NUMBERS + "'readme.txt' is no array"),
    "an npz of nothing": (
        raw("rows.npz", zipped()),
        "'{path}' has the arrays none; name one of them 'calibration', or as the policy's input: obs",
    ),
    "words": (
        lambda folder: npy(folder, np.array([["a", "b", "c"]])),
        "calibration in '{path}' holds '<U1', not numbers; give observations as float32",
    ),
    "complex": (
        lambda folder: npy(folder, ROWS.astype(np.complex64)),
        "calibration in '{path}' holds 'complex64', not numbers; give observations as float32",
    ),
    "records": (
        lambda folder: npy(folder, np.zeros(3, [("x", "f4"), ("y", "f4")])),
        "calibration in '{path}' holds '[('x', '<f4'), ('y', '<f4')]', not numbers; give observations as float32",
    ),
    "two arrays": (
        lambda folder: npz(folder, a=ROWS, b=ROWS),
        "'{path}' has the arrays a, b; name one of them 'calibration', or as the policy's input: obs",
    ),
    "no rows": (
        lambda folder: npz(folder, calibration=ROWS[:0]),
        "calibration in '{path}' is empty; give at least one row of 3 numbers",
    ),
    "a number": (
        lambda folder: npy(folder, np.float32(1)),
        "calibration in '{path}' is empty; give at least one row of 3 numbers",
    ),
    "too wide": (
        lambda folder: npy(folder, np.ones((5, 4))),
        "calibration in '{path}' has rows of 4 numbers, 'policy.onnx' takes 3; "
        "record observations of the environment it was trained in",
    ),
    "one long row": (
        lambda folder: npy(folder, np.ones(300)),
        "calibration in '{path}' has rows of 1 numbers, 'policy.onnx' takes 3; "
        "record observations of the environment it was trained in",
    ),
    "NaN": (
        lambda folder: npy(folder, with_nan(17)),
        "calibration in '{path}' has a NaN or an infinity in row 17; remove such rows, they have no int8 code",
    ),
    "infinite": (
        lambda folder: npy(folder, with_nan(3, np.inf)),
        "calibration in '{path}' has a NaN or an infinity in row 3; remove such rows, they have no int8 code",
    ),
    "past float32": (
        lambda folder: npy(folder, with_nan(3).astype(np.float64) * 0 + 1e39),
        "calibration in '{path}' has a NaN or an infinity in row 0; remove such rows, they have no int8 code",
    ),
    "NaN in observations": (
        lambda folder: npz(folder, calibration=ROWS, observations=with_nan(2)),
        "'observations' in '{path}' has a NaN or an infinity in row 2; remove such rows, they have no int8 code",
    ),
    "observations too wide": (
        lambda folder: npz(folder, calibration=ROWS, observations=np.ones((2, 9))),
        "'observations' in '{path}' has rows of 9 numbers, 'policy.onnx' takes 3; "
        "record observations of the environment it was trained in",
    ),
    "an empty csv": (
        lambda folder: csv(folder, ""),
        "calibration in '{path}' is empty; give at least one row of 3 numbers",
    ),
    "a csv of a header": (
        lambda folder: csv(folder, "x,y,z\n"),
        "calibration in '{path}' is empty; give at least one row of 3 numbers",
    ),
    "a ragged csv": (lambda folder: csv(folder, "1,2,3\n1,2\n"), NUMBERS + ".*"),
    "words in a csv": (lambda folder: csv(folder, "1,2,3\n1,two,3\n"), NUMBERS + ".*"),
    "a csv that is no text": (raw("rows.csv", bytes(range(256))), NUMBERS + ".*"),
    "a csv of nan": (
        lambda folder: csv(folder, "1,2,3\n1,nan,3\n"),
        "calibration in '{path}' has a NaN or an infinity in row 1; remove such rows, they have no int8 code",
    ),
}


@pytest.mark.parametrize(("write", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_will_not_do_is_refused_in_a_sentence(write: Any, sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    sentence = sentence.replace("{path}", str(path)).replace("{suffix}", path.suffix)
    with pytest.raises(TinyrlError) as raised:
        read_observations(path, VECTOR)
    if sentence.endswith(".*"):  # the reason is numpy's
        assert re.fullmatch(re.escape(sentence.removesuffix(".*")) + r".+", str(raised.value))
    else:
        assert str(raised.value) == sentence
    assert "\n" not in str(raised.value)


def test_no_damage_is_a_traceback(tmp_path: Path) -> None:
    """Bytes changed at random in the header, in the zip's records, in the numbers: rows, or a sentence."""
    rng = np.random.default_rng(0)
    files = {
        "rows.npy": npy_bytes(ROWS),
        "rows.npz": zipped(**{"a.npy": npy_bytes(ROWS)}),
        "rows.csv": b"x,y,z\n1,2,3\n4,5,6\n",
    }
    refused = 0
    for name, data in files.items():
        for _ in range(400):
            changed = bytearray(data)
            for place in rng.integers(0, min(len(data), 160) if rng.random() < 0.5 else len(data), rng.integers(1, 4)):
                changed[place] = rng.integers(0, 256)
            path = raw(name, bytes(changed))(tmp_path)
            try:
                found = read_observations(path, VECTOR).calibration
                assert found is not None and np.isfinite(found).all()
            except TinyrlError as error:
                refused += 1
                assert "\n" not in str(error)
    assert 200 < refused < 1200


def test_inputs_of_different_lengths_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path, joints=np.ones((5, 2)), map=np.ones((4, 2, 2)))
    with pytest.raises(TinyrlError) as raised:
        read_observations(path, DICT)
    assert str(raised.value) == f"'{path}' has different numbers of rows for joints, map; give as many of each"


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    path = npz(tmp_path, joints=np.ones((5, 2)), mapp=np.ones((5, 2, 2)))
    with pytest.raises(TinyrlError) as raised:
        read_observations(path, DICT)
    assert str(raised.value) == (
        f"'{path}' has the arrays joints, mapp; name one of them 'calibration', or as the policy's inputs: joints, map"
    )


def test_a_file_too_large_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "MAX_BYTES", 100)
    path = npy(tmp_path, ROWS)
    with pytest.raises(TinyrlError) as raised:
        read_observations(path, VECTOR)
    assert str(raised.value) == f"'{path}' has 1,328 bytes, over 100; a few thousand rows will do"


def test_a_small_file_that_unpacks_to_any_size_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.npz"
    np.savez_compressed(path, calibration=np.zeros((100_000, 3)))
    monkeypatch.setattr(calibrate, "MAX_BYTES", 100_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(TinyrlError) as raised:
        read_observations(path, VECTOR)
    assert str(raised.value) == f"'{path}' is not a .npz of numbers: it unpacks to over 100,000 bytes"
