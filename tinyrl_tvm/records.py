# SPDX-License-Identifier: Apache-2.0
"""What tuning found, in a file: a trial a line, each a JSON object, appended as it is measured.

    {"format": 1, "tvm": "0.27.0.post1", "target": "cortex-m55", "device": "qemu mps3-an547", "unit": "instructions",
     "kernel": {"kind": "DenseCodes", "n_in": 64, ...}, "choices": {"kept": 4}, "cost": 731.25, "default_cost": 763.5,
     "rejected": null}

A kernel that CMSIS-NN computed in the place of ours has no choices, and says what it was:

    {..., "choices": null, "cmsis_nn": {"function": "arm_fully_connected_s8", "build": "..."}, ...}

Why lines: a session that is stopped, or a machine that dies, costs at most the line it was writing, and that one is
told from a whole one. Records of another target or another TVM are refused, not skipped: they say nothing of what
would be compiled here, and a file of them was taken by mistake.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from tinyrl_tvm.errors import TinyrlError

if TYPE_CHECKING:
    from schedules.signature import Signature

FORMAT = 1
MAX_BYTES = 64 * 1024 * 1024  # a record has about 500 bytes
LINES_NAMED = 5


@dataclass(frozen=True)
class Origin:
    """Where a cost was measured, which is what makes two of them comparable."""

    target: str
    device: str
    unit: str = "instructions"


@dataclass(frozen=True)
class CmsisNN:
    """The `function` of CMSIS-NN that a trial called, and which `build` of it: other sources or another compiler cost
    something else."""

    function: str
    build: str

    def __post_init__(self) -> None:
        if not (isinstance(self.function, str) and isinstance(self.build, str)):
            raise TypeError("a word is none")


@dataclass(frozen=True)
class Record:
    """One trial. `cost` is None when it was rejected, and `rejected` says why; `default_cost` is what the rule's own
    choices cost, None when they were rejected or not measured yet. `cmsis_nn` is None for a kernel of our own."""

    origin: Origin
    kernel: Signature
    choices: Mapping[str, int]
    cost: float | None
    default_cost: float | None
    rejected: str | None = None
    cmsis_nn: CmsisNN | None = None

    def __post_init__(self) -> None:
        if self.cmsis_nn is not None and self.choices:
            raise ValueError("CMSIS-NN leaves no choices")
        if (self.cost is None) == (self.rejected is None):
            raise ValueError("a record has a cost or says why it was rejected")
        for cost in (self.cost, self.default_cost):
            if cost is not None and not (math.isfinite(cost) and cost >= 0):
                raise ValueError(f"a cost of {cost}")

    def to_line(self) -> bytes:
        record = {
            "format": FORMAT,
            "tvm": tvm_version(),
            "target": self.origin.target,
            "device": self.origin.device,
            "unit": self.origin.unit,
            "kernel": self.kernel.to_json(),
            "choices": None if self.cmsis_nn else dict(self.choices),
            "cost": self.cost,
            "default_cost": self.default_cost,
            "rejected": self.rejected,
        }
        if self.cmsis_nn:
            record["cmsis_nn"] = asdict(self.cmsis_nn)
        return json.dumps(record, allow_nan=False).encode() + b"\n"


@dataclass(frozen=True)
class Records:
    """A file as it was read, and what there is to say of it."""

    records: tuple[Record, ...] = ()
    notes: tuple[str, ...] = ()

    def best(self) -> dict[Signature, Record]:
        """Of our own kernels those that cost least, on the device that measured each last: a board's cycles and an
        emulator's instructions compare with nothing but themselves."""
        right = [record for record in self.records if record.cost is not None and record.cmsis_nn is None]
        last = {record.kernel: record.origin for record in right}
        best: dict[Signature, Record] = {}
        for record in right:
            known = best.get(record.kernel, record)
            assert record.cost is not None and known.cost is not None
            if record.origin == last[record.kernel] and record.cost <= known.cost:
                best[record.kernel] = record if record.cost < known.cost else known
        return best

    def winners(self) -> dict[Signature, Mapping[str, int]]:
        """The choices that cost least, for every kernel that has some."""
        return {kernel: record.choices for kernel, record in self.best().items()}

    def by_cmsis_nn(self, own: Record, function: str) -> Record | None:
        """The same kernel by `function` of CMSIS-NN, measured where `own` was; the last time, if there are several
        builds."""
        for record in reversed(self.records):
            made_of = record.cmsis_nn
            if made_of and (record.origin, record.kernel, made_of.function) == (own.origin, own.kernel, function):
                return record
        return None


def tvm_version() -> str:
    """Without importing TVM, which takes a second."""
    from importlib.metadata import version

    return version("apache-tvm")


def read(path: Path, target: str) -> Records:
    """Lines that are no records are skipped and named. Raises TinyrlError for records of another target or TVM."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TinyrlError(f"'{path}' is larger than any file of tuning records ({MAX_BYTES:,} B)")
        data = path.read_bytes()
    except OSError as error:
        raise TinyrlError(
            f"cannot read tuning records from '{path}': {error.strerror}; 'tinyrl-tvm tune' writes them"
        ) from None
    return parse(data, str(path), target)


def parse(data: bytes, name: str, target: str) -> Records:
    records, damaged = [], []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(_record(json.loads(line), f"'{name}' line {number}", target))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged.append(number)
    if not records:
        raise TinyrlError(f"'{name}' holds no tuning record; 'tinyrl-tvm tune' writes such files")
    return Records(tuple(records), (_note(name, damaged),) if damaged else ())


def _record(fields: dict[str, Any], place: str, target: str) -> Record:
    from schedules.signature import Signature

    if fields["format"] != FORMAT:
        raise TinyrlError(f"{place} is of format {fields['format']!r}, this tinyrl-tvm reads {FORMAT}; tune again")
    if fields["tvm"] != tvm_version():
        raise TinyrlError(
            f"{place} was measured with TVM {fields['tvm']}, this is {tvm_version()}, whose code differs; "
            "tune again, into another file"
        )
    if fields["target"] != target:
        raise TinyrlError(f"{place} is of target '{fields['target']}', not of '{target}'; give records of that target")
    made_of = fields.get("cmsis_nn")
    cmsis_nn = None if made_of is None else CmsisNN(made_of["function"], made_of["build"])
    if cmsis_nn is not None and fields["choices"] is not None:
        raise ValueError("CMSIS-NN leaves no choices")
    choices = fields["choices"] if cmsis_nn is None else {}
    if not all(isinstance(name, str) and type(value) is int for name, value in choices.items()):
        raise ValueError("choices are whole numbers")
    texts = (fields["device"], fields["unit"], fields["rejected"] or "")
    if not all(isinstance(text, str) for text in texts) or not fields["unit"].isprintable():
        raise ValueError("a word is none")
    return Record(
        origin=Origin(target, fields["device"], fields["unit"]),
        kernel=Signature.from_json(fields["kernel"]),
        choices=choices,
        cost=_cost(fields["cost"]),
        default_cost=_cost(fields["default_cost"]),
        rejected=fields["rejected"],
        cmsis_nn=cmsis_nn,
    )


def _cost(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a cost of {value!r}")
    return float(value)


def _note(name: str, damaged: list[int]) -> str:
    named = ", ".join(str(number) for number in damaged[:LINES_NAMED])
    more = ", ..." if len(damaged) > LINES_NAMED else ""
    if len(damaged) == 1:
        return f"'{name}': line {named} skipped, which is no tuning record"
    return f"'{name}': lines {named}{more} skipped, which are no tuning records"


class RecordFile:
    """A file to append to. Every record is on the disk before `append` returns."""

    def __init__(self, path: Path, first: Iterable[Record] = ()) -> None:
        """`first` are records that the file must have before others; Raises TinyrlError when it cannot be written."""
        self.path = path
        self._lock = threading.Lock()
        try:
            self._stream: BinaryIO = path.open("ab")
            # a session that was killed may have left half a line, which must not swallow the next
            if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                self._stream.write(b"\n")
            self._stream.writelines(record.to_line() for record in first)
            self._stream.flush()
        except OSError as error:
            raise TinyrlError(f"cannot write '{path}': {error.strerror}; choose another output path") from None

    def append(self, record: Record) -> None:
        with self._lock:
            self._stream.write(record.to_line())
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if self.path.stat().st_size == 0:  # nothing was found: no file is left that would look as if
            self.path.unlink()
