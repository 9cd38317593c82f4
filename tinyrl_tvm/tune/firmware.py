# SPDX-License-Identifier: Apache-2.0
"""A kernel in a firmware of its own: how it is built, what it prints, and what that means.

The board's start-up code, console and counter come from a project that `project.create` writes, compiled once; its own
Makefile is asked for the commands, so that a trial is compiled as a user's firmware is. A trial then costs one run of
the assembler and the linker.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
import zlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from schedules import LlvmOptions, Parameter, PlacedKernel, place
from schedules import kernels as k
from tinyrl_tvm import project as projects
from tinyrl_tvm import toolchain
from tinyrl_tvm.cmsis_nn import FullyConnected
from tinyrl_tvm.device.emulator import Emulate
from tinyrl_tvm.device.farm import Lost
from tinyrl_tvm.device.workers import Died, Workers
from tinyrl_tvm.emit import lower
from tinyrl_tvm.emit.archive import archive
from tinyrl_tvm.emit.assembly import function_text
from tinyrl_tvm.emit.c_library import C_TYPES, print_layer
from tinyrl_tvm.emit.program import ALIGNMENT, ITEM_BYTES, Program
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.policy import TensorSpec
from tinyrl_tvm.targets import Board, Target, target_named
from tinyrl_tvm.tune.oracle import Exam, exam
from tinyrl_tvm.tune.task import Task

FUNCTION = "trial_kernel"
MAX_ROWS = 32
QUESTION_BYTES = 8192  # they lie in RAM, and the smallest board has 16 KiB

TRIAL = re.compile(r"^trial (\d+)$", re.MULTILINE)
VERDICT = re.compile(r"^wrong (\d+) of (\d+), overruns (\d+)$", re.MULTILINE)
FIRST_WRONG = re.compile(r"^first wrong: (.*)$", re.MULTILINE)
COUNT = re.compile(r"^hundredths (\d+)$", re.MULTILINE)


class Rejected(Exception):
    """A trial that cannot win: it does not build, it answers wrongly, or it does not answer; the message says which."""


@dataclass(frozen=True)
class Commands:
    """How the project's own Makefile compiles `src/main.c` and links the firmware, for other files in their place."""

    folder: Path
    compile: tuple[str, ...]
    link: tuple[str, ...]


class Bench:
    """Builds trials for one board, in one folder, some by `functions` of CMSIS-NN. Calls may come from several threads."""

    def __init__(
        self,
        board: Board,
        folder: Path,
        workers: Workers,
        timeout_s: float,
        link: str = "semihosting",
        functions: tuple[str, ...] = (),
    ) -> None:
        self.board, self.target = board, target_named(board.target)
        self._folder, self._workers, self._timeout_s = folder, workers, timeout_s
        self._commands = _commands(board, folder / "board", link, functions)
        self._exams: dict[Task, Exam] = {}
        self._harnesses: dict[str, Path] = {}
        self._identities: dict[Path, int] = {}
        self._lock = threading.Lock()

    def build(self, number: int, task: Task, placed: PlacedKernel, module: Any) -> Path:
        """The firmware of trial `number`, from the scheduled `module` of one function. Raises Rejected."""
        return self._linked(self._sources(number), task, placed, self._assembled(module, placed.llvm), [])

    def build_offload(self, number: int, task: Task) -> Path:
        """The firmware of trial `number`, in which CMSIS-NN computes the task's layer. Raises Rejected."""
        assert task.offload is not None
        sources = self._sources(number)
        source, made = sources / "layer.c", sources / "layer.o"
        source.write_bytes(print_layer(task.offload, "trial", FUNCTION))
        (sources / "tvmgen_trial_kernels.h").write_text(_header(task.offload, self._exam(task)))
        files = {"src/main.c": [str(source)], "out/src/main.c.o": [str(made)]}
        self._run(_replaced(self._commands.compile, files))
        return self._linked(sources, task, task.offload, "", [str(made)])

    def _sources(self, number: int) -> Path:
        sources = self._folder / f"trial{number}" / "sources"  # below the folder that a device sees
        sources.mkdir(parents=True)
        return sources

    def _linked(
        self, sources: Path, task: Task, placed: PlacedKernel | FullyConnected, listing: str, objects: list[str]
    ) -> Path:
        """`placed`, whose code is `listing` or in `objects`, with what it is asked."""
        questions = self._exam(task)
        _, dtype, length = placed.arguments[0]
        data = {"questions": _padded(questions.questions, _stride(placed), length, dtype), "answers": questions.answers}
        data |= {parameter.name: parameter.values for parameter in _passed(placed)}
        identity = zlib.crc32(listing.encode())
        for values in data.values():
            identity = zlib.crc32(np.ascontiguousarray(values).tobytes(), identity)
        for made in objects:
            identity = zlib.crc32(Path(made).read_bytes(), identity)
        for name, values in data.items():
            np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tofile(sources / f"{name}.bin")
        (sources / "kernel.S").write_text(
            _template("trial.S.jinja").render(
                summary=placed.summary,
                listing=listing,
                identity=identity,
                arrays=[
                    {"name": name, "section": ".data", "flags": "aw"}
                    if name == "questions"
                    else {"name": name, "section": ".rodata", "flags": "a"}
                    for name in data
                ],
            )
        )
        harness = self._harness(_header(placed, questions))
        firmware = sources.parent / "firmware.elf"
        self._identities[firmware] = identity
        files = [str(sources / "kernel.S"), str(harness), *objects]
        link = _replaced(self._commands.link, {"out/src/main.c.o": files})
        self._run([*link, f"-Wa,-I{sources}", "-o", str(firmware)])
        return firmware

    def measure(self, emulate: Emulate, firmware: Path) -> float:
        """Instructions a call. Raises Rejected, and NoAnswer when the device keeps silent."""
        try:
            printed = emulate(self.board, firmware, firmware.parent, self._timeout_s)
        except NoAnswer:
            raise
        except TinyrlError as error:
            raise Rejected(str(error).replace(f"'{firmware}' ", "")) from None
        # a flasher may say that all went well, and an earlier trial still be there
        if (said := TRIAL.search(printed)) and int(said[1]) != self._identities[firmware]:
            raise Lost("the board runs another firmware than it was flashed with; look at the command that flashes it")
        return judge(printed)

    def _assembled(self, module: Any, options: LlvmOptions) -> str:
        def call() -> str:
            return self._workers.call(_assembly, module, self.target.name, options, timeout_s=self._timeout_s)

        try:
            try:
                return call()
            except Died:  # once may be bad luck: a process that was killed as it started
                return call()
        except NoAnswer:
            raise Rejected(f"LLVM did not end within {self._timeout_s:g} s") from None
        except Died:
            raise Rejected("LLVM cannot compile it and ended") from None
        except Exception as error:  # TVM has a dozen kinds; the last line says what
            raise Rejected(f"does not compile: {_last_line(error)}") from None

    def _exam(self, task: Task) -> Exam:
        with self._lock:
            if task not in self._exams:
                *arrays, _ = task.placed(task.default).arguments
                _, dtype, length = arrays[0]
                n_rows = max(4, min(MAX_ROWS, QUESTION_BYTES // (length * ITEM_BYTES[dtype])))
                self._exams[task] = exam(task.kernel, n_rows)
            return self._exams[task]

    def _harness(self, header: str) -> Path:
        """The object of `trial.c` for a header; most trials of a task share one."""
        with self._lock:
            if header not in self._harnesses:
                folder = self._folder / f"harness{len(self._harnesses)}"
                folder.mkdir()
                (folder / "trial.h").write_text(header)
                (folder / "trial.c").write_text(_text("trial.c"))
                out = folder / "trial.o"
                files = {"src/main.c": [str(folder / "trial.c")], "out/src/main.c.o": [str(out)]}
                self._run([*_replaced(self._commands.compile, files), f"-I{folder}"])
                self._harnesses[header] = out
            return self._harnesses[header]

    def _run(self, command: list[str]) -> None:
        try:
            done = subprocess.run(
                command,
                cwd=self._commands.folder,
                env=toolchain.build_environment(),
                capture_output=True,
                text=True,
                timeout=self._timeout_s,
                check=False,
                start_new_session=True,  # a linker that Ctrl-C ended is no reason to reject a trial
            )
        except subprocess.TimeoutExpired:
            raise Rejected(f"the build did not end within {self._timeout_s:g} s") from None
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if re.search("rror:|undefined|overflowed", line)]
            reason = (lines or done.stderr.splitlines() or ["no reason given"])[0]
            raise Rejected(f"does not build: {reason.replace(f'{self._folder}/', '')}")


def judge(printed: str) -> float:
    """What a trial's firmware printed, as instructions a call. Raises Rejected where an answer is wrong."""
    verdict, count = VERDICT.search(printed), COUNT.search(printed)
    if not (verdict and count):
        raise Rejected("the firmware does not report as a trial")
    wrong, total, overruns = (int(number) for number in verdict.groups())
    if wrong:
        first = FIRST_WRONG.search(printed)
        raise Rejected(f"wrong answers: {wrong:,} of {total:,}; {first[1] if first else ''}")
    if overruns:
        raise Rejected("writes beyond its output")
    return round(int(count[1]) / 100, 1)  # the hundredths are the tick's, and must not decide between equals


def _assembly(module: Any, target: str, options: LlvmOptions) -> str:
    """In a worker's process: LLVM's global options are one process's, so two threads must not generate code at once."""
    (variable,) = module.get_global_vars()
    import tvm

    function = module[variable].with_attr("global_symbol", FUNCTION)  # MetaSchedule calls every function main
    renamed = tvm.IRModule({FUNCTION: function})
    return function_text(lower.assembly(renamed, target_named(target).tvm(options)), FUNCTION)


def _commands(board: Board, folder: Path, link: str, functions: tuple[str, ...]) -> Commands:
    library = empty_library(target_named(board.target), functions)
    project = projects.create(library, folder, "baremetal", {"board": board.name, "link": link})
    projects.build(project)
    listing = subprocess.run(
        [toolchain.find("make"), "--no-print-directory", "-n", "-B", "out/firmware.elf"],
        cwd=project.folder,
        env=toolchain.build_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [tuple(shlex.split(line)) for line in listing.replace("\\\n", " ").splitlines()]
    (compile_main,) = (words for words in lines if "src/main.c" in words and "-c" in words)
    (link_firmware,) = (words for words in lines if words[-1] == "out/firmware.elf" and "out/src/main.c.o" in words)
    return Commands(
        project.folder,
        tuple(word for word in compile_main if word not in {"-MMD", "-MP"}),
        tuple(word for word in link_firmware[:-2] if not word.startswith("-Wl,-Map")),
    )


def empty_library(target: Target, functions: tuple[str, ...] = ()) -> Any:
    """The smallest policy there is: what a project needs so that the rest of it can be built, `functions` of CMSIS-NN
    included."""
    limit: np.ndarray = np.ones(1, np.float32)
    kernel = place(k.Clamp(-limit, limit), target.kernels)
    spec = TensorSpec("obs", (1,), "float32")
    program = Program(
        "empty", target, "float32", (spec,), TensorSpec("action", (1,), "float32"), (kernel,), ((-1,),), ""
    )
    zero: np.ndarray = np.zeros((1, 1), np.float32)
    vectors = {"observations": zero, "expected": zero, "float_action": zero}
    facts = {"tolerance": 0.0, "source": "tune", "sha256": 64 * "0", "cmsis_nn": list(functions)}
    return archive(program, "", vectors, facts)


def _replaced(command: tuple[str, ...], words: dict[str, list[str]]) -> list[str]:
    return [new for word in command for new in words.get(word, [word])]


def _padded(questions: np.ndarray, stride: int, length: int, dtype: str) -> np.ndarray:
    """Rows of `stride` elements; what a kernel may read beyond its inputs, up to `length`, is garbage."""
    n_rows, n_in = questions.shape
    rows = np.zeros((n_rows, stride), dtype)
    rows[:, :n_in] = questions
    rows[:, n_in:length] = np.resize(np.array([85, -86, 127, -128, 1]), (n_rows, length - n_in))
    return rows


def _stride(placed: PlacedKernel | FullyConnected) -> int:
    """Elements from one question to the next."""
    _, dtype, length = placed.arguments[0]
    return -(-length * ITEM_BYTES[dtype] // ALIGNMENT) * ALIGNMENT // ITEM_BYTES[dtype]


def _passed(placed: PlacedKernel | FullyConnected) -> tuple[Parameter, ...]:
    """The parameters that a call passes; those of a layer of CMSIS-NN lie beside its code."""
    return () if isinstance(placed, FullyConnected) else placed.parameters


def _header(placed: PlacedKernel | FullyConnected, questions: Exam) -> str:
    (_, input_dtype, _), *_, (_, output_dtype, output_length) = placed.arguments
    return _template("trial.h.jinja").render(
        summary=placed.summary,
        name=FUNCTION,
        input_type=C_TYPES[input_dtype],
        output_type=C_TYPES[output_dtype],
        n_rows=len(questions.questions),
        n_answers=questions.answers.shape[1],
        input_stride=_stride(placed),
        output_length=output_length,
        parameters=[
            {"name": p.name, "ctype": C_TYPES[str(p.values.dtype)], "origin": p.origin} for p in _passed(placed)
        ],
        has_status=isinstance(placed, FullyConnected),
    )


def _text(name: str) -> str:
    return resources.files("tinyrl_tvm.tune").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - C and assembly; nothing in them comes from a model but numbers
    )
    return environment.from_string(_text(name))


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
