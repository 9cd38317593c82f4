# SPDX-License-Identifier: Apache-2.0
"""Records of tuning: what is read back, what is skipped, what is refused, and which choices a kernel gets from them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from schedules import RULES, Rule
from schedules import kernels as k
from schedules.kernels import Layout
from schedules.signature import Signature, signature
from schedules.tuned import place_tuned, shipped
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.records import CmsisNN, Origin, Record, RecordFile, Records, parse, read, tvm_version
from tinyrl_tvm.targets import BOARDS

ORIGIN = Origin("cortex-m55", "qemu mps3-an547")
DENSE = Signature("DenseCodes", 64, 64, (("multiplier", "int32"), ("weight", "int8")))
WON = Record(ORIGIN, DENSE, {"rows": 8, "unroll": 2}, 700.5, 731.0)
LOST = Record(ORIGIN, DENSE, {"rows": 4, "unroll": 2}, 731.0, 731.0)
OFFLOADED = Record(ORIGIN, DENSE, {}, 650.0, None, None, CmsisNN("arm_fully_connected_s8", "GCC 12"))
REJECTED = Record(ORIGIN, DENSE, {"rows": 2, "unroll": 2}, None, 731.0, "wrong answers: 3 of 64")


def saved(path: Path, *records: Record) -> Path:
    with RecordFile(path) as file:
        for record in records:
            file.append(record)
    return path


def changed(record: Record, **fields: object) -> bytes:
    return json.dumps(json.loads(record.to_line()) | fields).encode() + b"\n"


# ---- the file ----


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = saved(tmp_path / "r.json", WON, LOST, REJECTED)
    assert read(path, "cortex-m55") == Records((WON, LOST, REJECTED))
    assert path.read_bytes().count(b"\n") == 3


def test_a_trial_of_cmsis_nn_is_told_from_one_of_ours(tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(OFFLOADED, origin=Origin("cortex-m55", "board"))
    rebuilt = dataclasses.replace(OFFLOADED, cost=600.0, cmsis_nn=CmsisNN("arm_fully_connected_s8", "clang 19"))
    path = saved(tmp_path / "r.json", LOST, OFFLOADED, rebuilt, elsewhere, WON)
    records = read(path, "cortex-m55")
    assert records == Records((LOST, OFFLOADED, rebuilt, elsewhere, WON))
    assert records.winners() == {DENSE: WON.choices}
    assert records.by_cmsis_nn(WON, "arm_fully_connected_s8") == rebuilt  # the last that was measured there
    assert records.by_cmsis_nn(WON, "arm_fully_connected_per_channel_s8") is None
    assert Records((WON, elsewhere)).by_cmsis_nn(WON, "arm_fully_connected_s8") is None
    with pytest.raises(ValueError, match="leaves no choices"):
        dataclasses.replace(OFFLOADED, choices={"rows": 8})


def test_a_file_is_added_to(tmp_path: Path) -> None:
    path = saved(tmp_path / "r.json", WON)
    with RecordFile(path, [LOST]) as file:
        file.append(REJECTED)
    assert read(path, "cortex-m55").records == (WON, LOST, REJECTED)


def test_a_session_that_found_nothing_leaves_no_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "r.json")
    assert not path.exists()
    assert saved(saved(path, WON)).read_bytes() == WON.to_line()


def test_half_a_line_does_not_count_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = saved(tmp_path / "r.json", WON)
    path.write_bytes(path.read_bytes() + LOST.to_line()[:40])
    saved(path, REJECTED)
    records = read(path, "cortex-m55")
    assert records.records == (WON, REJECTED)
    assert records.notes == (f"'{path}': line 2 skipped, which is no tuning record",)


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe",
        b'{"format": 1',
        b"[" * 100_000,
        changed(WON, cost="fast").strip(),
        changed(WON, cost=None).strip(),
        changed(WON, cost=-1).strip(),
        changed(WON, cost=True).strip(),
        WON.to_line().replace(b"700.5", b"NaN").strip(),
        changed(WON, rejected="both").strip(),
        changed(WON, choices={"rows": "8"}).strip(),
        changed(WON, choices=[1]).strip(),
        changed(WON, device=3).strip(),
        changed(WON, kernel="dense").strip(),
        changed(WON, unit="\x1b[2J").strip(),
        changed(WON, choices=None).strip(),
        changed(WON, cmsis_nn={"function": "arm_fully_connected_s8", "build": "GCC 12"}).strip(),
        changed(OFFLOADED, choices={}).strip(),
        changed(OFFLOADED, cmsis_nn="arm_fully_connected_s8").strip(),
        changed(OFFLOADED, cmsis_nn={"function": "arm_fully_connected_s8"}).strip(),
        changed(OFFLOADED, cmsis_nn={"function": 7, "build": "GCC 12"}).strip(),
        changed(OFFLOADED, cmsis_nn={"function": "arm_fully_connected_s8", "build": ["GCC 12"]}).strip(),
        changed(WON, kernel={"kind": "DenseCodes", "n_in": 0, "n_out": 4, "traits": {}}).strip(),
        changed(WON, kernel={"kind": "DenseCodes", "n_in": 4.0, "n_out": 4, "traits": {}}).strip(),
    ],
    ids=lambda line: line[:60].decode(errors="replace"),
)
def test_a_corrupt_record_is_skipped_and_named(line: bytes) -> None:
    records = parse(LOST.to_line() + line + b"\n" + WON.to_line(), "r.json", "cortex-m55")
    assert records.records == (LOST, WON)
    assert records.notes == ("'r.json': line 2 skipped, which is no tuning record",)


def test_many_corrupt_records_are_one_note() -> None:
    (note,) = parse(WON.to_line() + b"x\n" * 9, "r.json", "cortex-m55").notes
    assert note == "'r.json': lines 2, 3, 4, 5, 6, ... skipped, which are no tuning records"


def refusal(data: bytes, target: str = "cortex-m55") -> str:
    with pytest.raises(TinyrlError) as raised:
        parse(data, "r.json", target)
    return str(raised.value)


def test_records_of_another_target_are_refused() -> None:
    assert refusal(WON.to_line(), "cortex-m4") == (
        "'r.json' line 1 is of target 'cortex-m55', not of 'cortex-m4'; give records of that target"
    )


def test_records_of_another_tvm_are_refused() -> None:
    assert refusal(WON.to_line() + changed(WON, tvm="0.26.0")) == (
        f"'r.json' line 2 was measured with TVM 0.26.0, this is {tvm_version()}, whose code differs; "
        "tune again, into another file"
    )


def test_records_of_another_format_are_refused() -> None:
    assert refusal(changed(WON, format=2)) == ("'r.json' line 1 is of format 2, this tinyrl-tvm reads 1; tune again")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    for data in (b"PK\x03\x04\n", b"", b"\n"):
        assert refusal(data) == "'r.json' holds no tuning record; 'tinyrl-tvm tune' writes such files"
    with pytest.raises(TinyrlError, match=r"cannot read tuning records from '.*nowhere\.json': No such file"):
        read(tmp_path / "nowhere.json", "cortex-m55")


def test_the_least_cost_wins_and_a_rejected_trial_never() -> None:
    assert Records((LOST, WON, REJECTED)).winners() == {DENSE: WON.choices}
    assert Records((REJECTED,)).winners() == {}


def test_costs_of_two_devices_are_not_compared() -> None:
    board = Origin("cortex-m55", "board at /dev/ttyACM0", "ticks")
    slow, fast = (dataclasses.replace(record, origin=board, cost=record.cost - 700) for record in (LOST, WON))
    assert Records((slow, LOST, WON)).winners() == {DENSE: WON.choices}
    assert Records((WON, LOST, slow)).winners() == {DENSE: LOST.choices}  # the board came last: its one record counts
    assert Records((WON, slow, fast)).best() == {DENSE: fast}


# ---- the kernel a record is of ----


def codes(n_in: int, n_out: int, *, table: bool = False, relu: bool = False) -> k.DenseCodes:
    rng = np.random.default_rng(0)
    return k.DenseCodes(
        weight=rng.integers(-127, 128, (n_out, n_in)).astype(np.int8),
        bias=rng.integers(-999, 999, n_out).astype(np.int32),
        multiplier=np.full(n_out, 2**30, np.int32),
        shift=5,
        zero_point=0,
        low=0 if relu else -128,
        high=127,
        table=np.arange(256).astype(np.int8) if table else None,
    )


def test_values_do_not_make_another_kernel() -> None:
    kernel = codes(16, 32)
    assert signature(dataclasses.replace(kernel, bias=kernel.bias + 1, shift=7)) == signature(kernel)


@pytest.mark.parametrize(
    "other",
    [
        codes(17, 32),
        codes(16, 33),
        codes(16, 32, table=True),
        codes(16, 32, relu=True),
        dataclasses.replace(codes(16, 32), multiplier=None),
        dataclasses.replace(codes(16, 32), weight=np.zeros((32, 16), np.int16)),
        k.DenseHead(np.zeros((32, 16), np.int8), np.zeros(32, np.int32), k.Positive()),
        k.DenseHead(np.zeros((32, 16), np.int8), np.zeros(32, np.int32), k.ArgMax((32,))),
        k.DenseHead(np.zeros((32, 16), np.int8), np.zeros(32, np.int32), k.ArgMax((16, 16))),
        k.DenseFloat(np.zeros((32, 16), np.float32), np.zeros(32, np.float32), "tanh"),
        k.DenseFloat(np.zeros((32, 16), np.float32), np.zeros(32, np.float32), "relu"),
        k.Quantize(np.ones(16, np.float32), None, -128, 127, "int8"),
        k.Clamp(np.zeros(16, np.float32), np.ones(16, np.float32)),
    ],
    ids=lambda kernel: str(signature(kernel)),
)
def test_what_changes_the_code_makes_another_kernel(other: k.Kernel) -> None:
    assert signature(other) != signature(codes(16, 32))
    assert Signature.from_json(json.loads(json.dumps(signature(other).to_json()))) == signature(other)


# ---- choices for a kernel ----


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> str:
    """A family whose layers take `rows` that divide their outputs."""

    def layout(kernel: k.DenseCodes, choices: dict[str, int]) -> Layout:
        if len(kernel.bias) % choices["rows"]:
            raise ValueError("rows that do not divide the outputs")
        return Layout(len(kernel.bias), 1, 1, 1, 1, kernel.weight.shape[1])

    rule = Rule(layout, lambda *_: None, lambda kernel: {"rows": (1, 2, 4, 8, 16)})
    monkeypatch.setitem(RULES, "test", {k.DenseCodes: rule, k.Quantize: RULES["portable"][k.Quantize]})
    return "test"


def test_a_recorded_kernel_takes_its_own_choices(family: str) -> None:
    kernel = codes(16, 32)
    winners = {signature(codes(17, 32)): {"rows": 2}, signature(kernel): {"rows": 8}}
    placed, known = place_tuned(kernel, family, winners)
    assert (placed.choices, known) == ({"rows": 8}, signature(kernel))


def test_an_unseen_shape_takes_the_nearest_of_its_kind(family: str) -> None:
    winners = {
        signature(codes(16, 64)): {"rows": 8},
        signature(codes(16, 256)): {"rows": 16},
        signature(codes(16, 48, table=True)): {"rows": 2},
    }
    placed, known = place_tuned(codes(16, 48), family, winners)
    assert (placed.choices, known) == ({"rows": 8}, signature(codes(16, 64)))


def test_choices_that_do_not_fit_a_shape_are_passed_over(family: str) -> None:
    near, far = signature(codes(16, 64)), signature(codes(16, 256))
    placed, known = place_tuned(codes(16, 68), family, {near: {"rows": 8}, far: {"rows": 4}})
    assert (placed.choices, known) == ({"rows": 4}, far)
    for stale in ({"rows": 8}, {"columns": 1}, {"rows": 3}):
        placed, known = place_tuned(codes(16, 68), family, {near: stale})
        assert (placed.choices, known) == ({"rows": 1}, None)


def test_blocks_that_would_pad_a_shape_are_passed_over() -> None:
    near, far = signature(codes(16, 30)), signature(codes(16, 64))
    for n_out, rows, taken_from in ((35, 5, near), (32, 3, far)):
        placed, known = place_tuned(codes(16, n_out), "dsp", {near: {"rows": 5}, far: {"rows": 3}})
        assert (placed.choices["rows"], known) == (rows, taken_from)


def test_another_kind_of_code_says_nothing(family: str) -> None:
    placed, known = place_tuned(codes(16, 32), family, {signature(codes(16, 32, relu=True)): {"rows": 8}})
    assert (placed.choices, known) == ({"rows": 1}, None)


def test_a_kernel_without_a_choice_needs_no_record(family: str) -> None:
    kernel = k.Quantize(np.ones(4, np.float32), None, -128, 127, "int8")
    assert place_tuned(kernel, family, {signature(kernel): {"rows": 2}})[1] is None


# ---- the records that ship ----


@pytest.mark.parametrize("target", sorted({board.target for board in BOARDS.values()}))
def test_the_records_that_ship_are_of_a_target_and_hold_winners_alone(target: str) -> None:
    resource = shipped(target)
    records = parse(resource.read_bytes(), resource.name, target)
    assert not records.notes
    assert len(records.winners()) == len(records.records)
    for record in records.records:
        assert record.cost is not None and record.default_cost is not None
        assert record.cost <= record.default_cost
