# SPDX-License-Identifier: Apache-2.0
"""MetaSchedule with our parts plugged in: search, builder, runner, features; and without the minute it takes to load.

A module that MetaSchedule hands back carries the number of its trial as an attribute of its function.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm.runtime
import tvm.s_tir
from tvm import ir
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.builder import BuilderResult, PyBuilder
from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor
from tvm.s_tir.meta_schedule.runner import PyRunner, PyRunnerFuture, RunnerResult
from tvm.s_tir.meta_schedule.search_strategy import PySearchStrategy

from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.tune.search import ENOUGH_TO_LEARN, Search

if TYPE_CHECKING:
    from tinyrl_tvm.tune.firmware import Bench
    from tinyrl_tvm.tune.session import Session
    from tinyrl_tvm.tune.task import Setting, Task

INTRINSICS = "tvm.s_tir.tensor_intrin"
TRIAL = "tinyrl.trial"

# It reports every batch as a table to the log; what is worth saying, the session says.
logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.ERROR)


@contextlib.contextmanager
def quick_to_load() -> Iterator[None]:
    """While this lasts, `import tvm.s_tir.tensor_intrin` costs nothing, as making a TuneContext does.

    The package's `__init__` parses the tensor intrinsics of CUDA, Hexagon, x86 and others from their TVMScript: 60 s, for
    functions that no rule of ours names. A package that is in `sys.modules` is not executed, so one made from the real
    package's own spec, and never run, satisfies the import, and its submodules can still be imported by whoever wants
    one. Afterwards the process is left as it was.
    """
    if INTRINSICS in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(INTRINSICS)
    assert spec is not None
    sys.modules[INTRINSICS] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[INTRINSICS]


def tune_context(session: Session, task: Task, search: Search) -> Any:
    function = _numbered(session, task, task.default)
    with quick_to_load():
        return ms.TuneContext(
            mod=function,
            target=session.target.tvm(),
            # the settings are the search's business; MetaSchedule wants a space to begin with
            space_generator=ms.space_generator.ScheduleFn(
                lambda schedule: schedule, sch_rules=[], postprocs=[], mutator_probs={}
            ),
            search_strategy=KnobSearch(session, search),
            task_name=task.name,
            rand_state=session.plan.seed + 1,
            num_threads=1,
        )


def cost_model(session: Session) -> Any:
    """MetaSchedule's own, on one thread so that the same seed learns the same."""
    try:
        import xgboost  # noqa: F401
    except ImportError:
        raise TinyrlError(
            "--tuner xgb needs xgboost: pip install 'tinyrl-tvm[tune]'; --tuner evolutionary does without"
        ) from None
    model = ms.cost_model.XGBModel
    return model(extractor=KnobFeatures(session), num_warmup_samples=ENOUGH_TO_LEARN, num_tuning_cores=1)


def teach(model: Any, session: Session, task: Task, context: Any) -> None:
    """Costs from earlier records."""
    costs = session.searches[task.index].costs
    if costs:
        candidates = [_candidate(_numbered(session, task, setting)) for setting in costs]
        model.update(context, candidates, [_result(cost) for cost in costs.values()])


def _numbered(session: Session, task: Task, setting: Setting) -> ir.IRModule:
    """The task's function as described, carrying the number of a setting: for what looks at knobs and not at loops."""
    return _with_number(task.described, session.number_of(task, setting))


def _with_number(module: ir.IRModule, number: int) -> ir.IRModule:
    return ir.IRModule({"main": module["main"].with_attr(TRIAL, number)})


def _candidate(module: ir.IRModule) -> Any:
    return ms.MeasureCandidate(Schedule(module), [])


def _number(module: ir.IRModule) -> int:
    (variable,) = module.get_global_vars()
    return int(module[variable].attrs[TRIAL])


def _result(cost: float | None) -> RunnerResult:
    """MetaSchedule counts in seconds; an instruction stands for a nanosecond."""
    return RunnerResult(None, "rejected") if cost is None else RunnerResult([cost * 1e-9], None)


@derived_object
class KnobSearch(PySearchStrategy):
    """The search of one task, as MetaSchedule's scheduler asks for it."""

    def __init__(self, session: Session, search: Search) -> None:
        super().__init__()
        self.session, self.search = session, search
        self.context: Any = None
        self.model: Any = None
        self.batch_size = 1

    def _initialize_with_tune_context(self, context: Any) -> None:
        self.context = context

    def pre_tuning(
        self,
        max_trials: int,
        num_trials_per_iter: int,
        design_spaces: Any,
        database: Any = None,
        cost_model: Any = None,
    ) -> None:
        self.model, self.batch_size = cost_model, num_trials_per_iter

    def post_tuning(self) -> None:
        self.model = None

    def generate_measure_candidates(self) -> list[Any] | None:
        session, task = self.session, self.search.task
        size = min(self.batch_size, session.unasked)
        if session.stopped or size == 0:
            return None
        candidates = []
        learnt = self.model is not None and session.measured >= ENOUGH_TO_LEARN
        for setting in self.search.batch(size, self._predict if learnt else None):
            module = session.scheduled(task, setting)
            if module is not None:
                candidates.append(_candidate(_with_number(module, session.number_of(task, setting))))
            if len(candidates) == min(size, session.unasked):
                break
        session.unasked -= len(candidates)
        return candidates or None

    def _predict(self, settings: Sequence[Setting]) -> np.ndarray:
        candidates = [_candidate(_numbered(self.session, self.search.task, setting)) for setting in settings]
        return np.asarray(self.model.predict(self.context, candidates), np.float64)

    def notify_runner_results(self, measure_candidates: list[Any], results: list[Any]) -> None:
        for candidate in measure_candidates:
            self.session.learn(_number(candidate.sch.mod))


@derived_object
class TrialBuilder(PyBuilder):
    """Firmwares, as many at a time as there are processors."""

    def __init__(self, session: Session, bench: Bench, pool: Executor) -> None:
        super().__init__()
        self.session, self.bench, self.pool = session, bench, pool

    def build(self, build_inputs: list[Any]) -> list[Any]:
        def firmware(given: Any) -> Path | None:
            return self.session.build(self.bench, _number(given.mod), given.mod)

        built = self.pool.map(firmware, build_inputs)
        return [BuilderResult(str(path), None) if path else BuilderResult(None, "rejected") for path in built]


@derived_object
class TrialRunner(PyRunner):
    """Trials go to the devices as these become free."""

    def __init__(self, session: Session, bench: Bench, pool: Executor) -> None:
        super().__init__()
        self.session, self.bench, self.pool = session, bench, pool

    def run(self, runner_inputs: list[Any]) -> list[Any]:
        def measure(path: str) -> float | None:
            return self.session.measure(self.bench, Path(path))

        return [Awaited(self.pool.submit(measure, str(given.artifact_path))) for given in runner_inputs]


@derived_object
class Awaited(PyRunnerFuture):
    """Never done before it is asked for: MetaSchedule then takes results in the order it asked for them, and not in the
    order devices happened to end, which no seed decides."""

    def __init__(self, future: Future[float | None]) -> None:
        super().__init__()
        self.future = future

    def done(self) -> bool:
        return False

    def result(self) -> Any:
        return _result(self.future.result())


@derived_object
class KnobFeatures(PyFeatureExtractor):
    """The knobs of all tasks, and the size of the kernel: (1, n) a candidate.

    Why not MetaSchedule's features of the loops: a tensorized body is opaque to them, and what LLVM is told of the core
    is not in the schedule at all.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        names = sorted({name for task in session.tasks for name in task.knobs})
        self.columns = {name: index for index, name in enumerate(names)}
        self.session = session

    def extract_from(self, context: Any, candidates: list[Any]) -> list[Any]:
        return [tvm.runtime.tensor(self._row(_number(candidate.sch.mod))) for candidate in candidates]

    def _row(self, number: int) -> np.ndarray:
        task, setting = self.session.trials[number]
        row: np.ndarray = np.full((1, len(self.columns) + 3), -1.0, np.float32)
        for name, value in setting:
            row[0, self.columns[name]] = value
        row[0, -3:] = task.index, np.log2(task.signature.n_in), np.log2(task.signature.n_out)
        return row
