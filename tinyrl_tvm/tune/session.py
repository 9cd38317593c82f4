# SPDX-License-Identifier: Apache-2.0
"""A tuning session: MetaSchedule's task scheduler and cost model with our search, builder and runner.

    TaskScheduler -> KnobSearch     which settings of which task
                  -> TrialBuilder   a firmware each, on every processor of this machine
                  -> TrialRunner    on as many devices as there are; a record is written the moment a trial ends
                  -> XGBModel       learns from the results, and is asked by the search

What CMSIS-NN can compute is measured by it first: it has no knobs, so that there is nothing to search.

MetaSchedule's loop is C++ and cannot be interrupted, so it runs in a thread of its own and asks, wherever it calls back
into Python, whether it should stop.

The same seed gives the same winners wherever a device gives the same costs: results reach the search in the order they
were asked for, whichever device was first.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_ffi import structural_hash

from schedules import LlvmOptions
from schedules.kernels import Layout
from tinyrl_tvm.device.emulator import Emulate
from tinyrl_tvm.device.farm import Lost
from tinyrl_tvm.device.workers import Workers
from tinyrl_tvm.errors import NoAnswer, TinyrlError
from tinyrl_tvm.records import CmsisNN, Origin, Record
from tinyrl_tvm.targets import Board, Target, target_named
from tinyrl_tvm.tune.checkout import build_of
from tinyrl_tvm.tune.firmware import Bench, Rejected
from tinyrl_tvm.tune.search import Search
from tinyrl_tvm.tune.task import Setting, Task, setting_of

if TYPE_CHECKING:
    from tvm import ir

Code = tuple[int, Layout, LlvmOptions, int]

BATCH = 16
TIMEOUT_S = 20.0
REASON_LENGTH = 200


@dataclass(frozen=True)
class Device:
    """Where trials run: `emulate` on `board`, at most `at_a_time` of them; there were `number` to begin with.
    `link` is how their firmware talks."""

    name: str
    board: Board
    emulate: Emulate
    at_a_time: int = field(default_factory=lambda: os.cpu_count() or 1)
    number: int = 1
    close: Callable[[], None] = lambda: None
    link: str = "semihosting"

    @property
    def origin(self) -> Origin:
        return Origin(self.board.target, self.name, "ticks" if self.link == "uart" else "instructions")


@dataclass(frozen=True)
class Plan:
    """`trials` in all, those of earlier records included; `seed` decides the order in which settings are tried."""

    trials: int
    tuner: str = "xgb"
    seed: int = 0
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise TinyrlError(f"{self.trials} trials measure nothing; give --trials 1 or more")
        if not 0 < self.timeout_s < float("inf"):
            raise TinyrlError(f"a --timeout of {self.timeout_s:g} s leaves no time; give seconds, as 20")
        if not 0 <= self.seed < 2**31 - 1:
            raise TinyrlError(f"--seed {self.seed} is out of range; give 0 to {2**31 - 2}")


@dataclass(frozen=True)
class Outcome:
    """What a task came to. Costs are None where nothing right was measured; `at_default` is that of the rule's own
    choices, `best` that of `choices`, `by_cmsis_nn` that of CMSIS-NN in their place."""

    task: Task
    trials: int
    rejected: int
    at_default: float | None
    best: float | None
    choices: Setting
    by_cmsis_nn: float | None = None

    @property
    def offloads(self) -> bool:
        """As `compile` decides: a tie is ours."""
        return None not in (self.best, self.by_cmsis_nn) and self.cheapest != self.best

    @property
    def cheapest(self) -> float | None:
        """None while ours has no cost: nothing is decided then."""
        return self.best if self.best is None or self.by_cmsis_nn is None else min(self.best, self.by_cmsis_nn)


@contextlib.contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """While this lasts Ctrl-C adds to the list and raises nothing: threads that were being started would outlive the
    session, and a second Ctrl-C would leave its folder and its processes behind."""
    interrupts: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


class Session:
    """One run of the tuner. `on_record(task, record)` hears of every trial as it ends, in a thread of the session's."""

    def __init__(
        self,
        tasks: Sequence[Task],
        device: Device,
        plan: Plan,
        known: Iterable[Record] = (),
        on_record: Callable[[Task, Record], None] = lambda task, record: None,
    ) -> None:
        self.tasks, self.device, self.plan = tuple(tasks), device, plan
        self.target: Target = target_named(device.board.target)
        self.searches = {task.index: Search(task, plan.tuner, plan.seed) for task in self.tasks}
        self.trials: list[tuple[Task, Setting]] = []  # by number
        self.costs: dict[tuple[int, Setting], float | None] = {}  # by task and setting, as trials end
        self.offloaded: dict[int, float | None] = {}  # costs of CMSIS-NN by task
        self._builds = {t.index: CmsisNN(t.offload.function, build_of(t.offload.function)) for t in tasks if t.offload}
        self._codes: dict[Code, Setting] = {}
        self._on_record = on_record
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._remember(known)
        self.known = len(self.costs) + len(self.offloaded)
        self.possible = sum(task.trials for task in self.tasks)
        self.unasked = max(0, min(plan.trials, self.possible) - self.known)

    def run(self) -> tuple[Outcome, ...]:
        """Raises TinyrlError when the device cannot be used, and KeyboardInterrupt when it was stopped; in either case
        every trial that ended has been recorded."""
        if self.unasked == 0:
            return self.outcomes()
        with (
            _interrupts_noted() as interrupts,
            tempfile.TemporaryDirectory(prefix="tinyrl-tune-") as folder,
            Workers() as workers,
        ):
            starting = workers.start(min(os.cpu_count() or 1, self.unasked))
            loop = threading.Thread(target=self._guarded, args=(Path(folder), workers), name="MetaSchedule")
            loop.start()
            while loop.is_alive() and not interrupts:
                loop.join(0.2)  # a wait without an end would not hear Ctrl-C
            self._stop.set()
            if interrupts:
                self.device.close()  # a call of a server that hangs need not be waited for
            for thread in (loop, *starting):
                thread.join()
        if interrupts:
            raise KeyboardInterrupt
        if self._failure is not None:
            raise self._failure
        return self.outcomes()

    def outcomes(self) -> tuple[Outcome, ...]:
        return tuple(self._outcome(task) for task in self.tasks)

    def _outcome(self, task: Task) -> Outcome:
        with self._lock:
            costs = {setting: cost for (index, setting), cost in self.costs.items() if index == task.index}
            offloaded = [self.offloaded[task.index]] if task.index in self.offloaded else []
        right = {setting: cost for setting, cost in costs.items() if cost is not None}
        # of equals the default, then the first in order: never the one that happened to end first
        best = min(right, key=lambda setting: (right[setting], setting != task.default, setting), default=task.default)
        trials = [*costs.values(), *offloaded]
        default, rejected = costs.get(task.default), trials.count(None)
        return Outcome(task, len(trials), rejected, default, right.get(best), best, *offloaded)

    def _remember(self, known: Iterable[Record]) -> None:
        # costs of another device compare with nothing; of a knob that is gone, or new, there is nothing to reuse
        for record, task in itertools.product([r for r in known if r.origin == self.device.origin], self.tasks):
            if record.kernel != task.signature:
                continue
            setting = setting_of(record.choices)
            if record.cmsis_nn is not None:
                if record.cmsis_nn == self._builds.get(task.index):
                    self.offloaded[task.index] = record.cost
            elif setting in task.settings:
                self.costs[task.index, setting] = record.cost
                self.searches[task.index].knows(setting, record.cost)

    # ---- what the loop in MetaSchedule's thread asks ----

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    @property
    def measured(self) -> int:
        return sum(len(search.costs) for search in self.searches.values())

    def number_of(self, task: Task, setting: Setting) -> int:
        self.trials.append((task, setting))
        return len(self.trials) - 1

    def scheduled(self, task: Task, setting: Setting) -> ir.IRModule | None:
        """None where choices do not go together, where they give code that another setting gave, or where TVM refuses
        the schedule, which is recorded."""
        try:
            module, code = self._code(task, setting)
        except ValueError:
            self.possible -= 1  # the rule's own word
            return None
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            self._ended(task, setting, None, f"does not schedule: {reason}")
            self.searches[task.index].knows(setting, None)
            self.unasked -= 1
            return None
        if self._codes.setdefault(code, setting) != setting:  # four rows at most of a kernel that has two
            self.possible -= 1
            return None
        return module

    def _code(self, task: Task, setting: Setting) -> tuple[ir.IRModule, Code]:
        """The schedule of a setting, and what tells its code from another's."""
        placed = task.placed(setting)
        module = placed.module(placed.family, "main")
        return module, (task.index, placed.layout, placed.llvm, structural_hash(module))

    def _know_codes(self) -> None:
        """Of earlier records: a setting that would give the same code is not measured again either."""
        for index, setting in [known for known, cost in self.costs.items() if cost is not None]:
            (task,) = (task for task in self.tasks if task.index == index)
            self._codes.setdefault(self._code(task, setting)[1], setting)

    def learn(self, number: int) -> None:
        task, setting = self.trials[number]
        if (task.index, setting) in self.costs:
            self.searches[task.index].knows(setting, self.costs[task.index, setting])

    def build(self, bench: Bench, number: int, module: ir.IRModule) -> Path | None:
        """The firmware of a trial; None when it was rejected, or the session stops."""
        task, setting = self.trials[number]
        if self.stopped:
            return None
        try:
            return bench.build(number, task, task.placed(setting), module)
        except Rejected as error:
            if not self.stopped:
                self._ended(task, setting, None, str(error))
        except BaseException as error:
            self._fail(error)
        return None

    def measure(self, bench: Bench, number: int, firmware: Path) -> float | None:
        """The cost of a trial; None when it was rejected, or the session stops."""
        task, setting = self.trials[number]
        if self.stopped:
            return None
        cost, rejected = None, None
        try:
            cost = bench.measure(self.device.emulate, firmware)
        except Rejected as error:
            rejected = str(error)
        except Lost as error:  # no fault of the schedule's, and no other would be measured either
            self._fail(error)
            return None
        except NoAnswer as error:
            if setting == task.default:  # not a bad schedule but a bad board: every other would wait as long
                self._fail(self._silent(task, "as it is by default"))
                return None
            rejected = str(error)
        except BaseException as error:
            self._fail(error)
            return None
        finally:
            shutil.rmtree(firmware.parent)
        self._ended(task, setting, cost, rejected)
        return cost

    def _offload(self, bench: Bench, task: Task) -> None:
        """Measure the task's layer as CMSIS-NN computes it."""
        cost, rejected = None, None
        try:
            firmware = bench.build_offload(self.number_of(task, ()), task)
            cost = bench.measure(self.device.emulate, firmware)
        except Rejected as error:
            rejected = str(error)
        except NoAnswer:  # a bad board, for all that is known yet
            self._fail(self._silent(task, "by CMSIS-NN"))
        if not self.stopped:
            self._ended(task, (), cost, rejected, self._builds[task.index])

    def _ended(
        self, task: Task, setting: Setting, cost: float | None, rejected: str | None, cmsis_nn: CmsisNN | None = None
    ) -> None:
        with self._lock:
            if cmsis_nn is None:
                self.costs[task.index, setting] = cost
            else:
                self.offloaded[task.index] = cost
            at_default = self.costs.get((task.index, task.default))
        reason = rejected[:REASON_LENGTH] if rejected is not None else None
        record = Record(self.device.origin, task.signature, dict(setting), cost, at_default, reason, cmsis_nn)
        try:
            self._on_record(task, record)
        except BaseException as error:  # a disk that is full
            self._fail(error)

    def _silent(self, task: Task, how: str) -> TinyrlError:
        return TinyrlError(
            f"{self.device.name} did not answer within {self.plan.timeout_s:g} s, asked for '{task.name}' {how}; "
            "is the board there? a slow one needs a longer --timeout"
        )

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error
        self._stop.set()

    # ---- the loop ----

    def _guarded(self, folder: Path, workers: Workers) -> None:
        try:
            self._loop(folder, workers)
        except BaseException as error:
            if not self.stopped:
                self._fail(error)

    def _loop(self, folder: Path, workers: Workers) -> None:
        from tvm.s_tir import meta_schedule as ms

        from tinyrl_tvm.tune import metaschedule as parts

        self._know_codes()
        model = parts.cost_model(self) if self.plan.tuner == "xgb" else None
        functions = tuple(dict.fromkeys(made.function for made in self._builds.values()))
        bench = Bench(self.device.board, folder, workers, self.plan.timeout_s, self.device.link, functions)
        for task in self.tasks:
            if task.offload is not None and task.index not in self.offloaded and self.unasked and not self.stopped:
                self.unasked -= 1
                self._offload(bench, task)
        if self.stopped or not self.unasked:
            return
        contexts = [parts.tune_context(self, task, self.searches[task.index]) for task in self.tasks]
        if model is not None:
            for task, context in zip(self.tasks, contexts, strict=True):
                parts.teach(model, self, task, context)
        firmwares: dict[int, Future[Path | None]] = {}
        with (
            ThreadPoolExecutor(os.cpu_count() or 1, "build") as builds,
            ThreadPoolExecutor(self.device.at_a_time, "run") as runs,
        ):
            ms.task_scheduler.GradientBased(seed=self.plan.seed + 1).tune(
                contexts,
                [float(task.count) for task in self.tasks],
                max_trials_global=self.unasked,
                max_trials_per_task=self.unasked,
                num_trials_per_iter=self._batch_size(),
                builder=parts.TrialBuilder(self, bench, builds, firmwares),
                runner=parts.TrialRunner(self, bench, runs, firmwares),
                measure_callbacks=[] if model is None else [ms.measure_callback.UpdateCostModel()],
                database=None,
                cost_model=model,
            )

    def _batch_size(self) -> int:
        """Small beside the trials a task can have, so that the search learns; large enough to keep the devices busy."""
        a_task = self.unasked // len(self.tasks)
        # the scheduler waits for a task's batch before it asks for the next: devices idle while its last trials run
        return max(1, min(BATCH, a_task // 3), min(4 * self.device.number, 2 * BATCH, self.unasked))
