# SPDX-License-Identifier: Apache-2.0
"""The whole compile on one page: a policy file becomes a model library.

load -> passes on the float graph -> passes to integers -> lower -> place kernels for a core -> print -> archive
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tinyrl_tvm
from tinyrl_tvm.calibrate import Observations, read_observations, split_inputs
from tinyrl_tvm.cmsis_nn import Offloaded
from tinyrl_tvm.errors import TinyrlError, UnsupportedOp, unknown_name
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.memory import NO_BUDGET, Budget, Contract
from tinyrl_tvm.policy import Policy, TensorSpec, c_names
from tinyrl_tvm.records import Records
from tinyrl_tvm.targets import Target, target_named

if TYPE_CHECKING:
    import numpy as np
    from tvm import IRModule
    from tvm.transform import Pass

    from relay_passes.partition_cmsis_nn import Offload
    from relay_passes.report import Change
    from schedules import Kernel, PlacedKernel
    from tinyrl_tvm.emit.program import Program
    from tinyrl_tvm.reference import Expectations

PRECISIONS = ("int8", "int16", "float32")


@dataclass(frozen=True)
class Compiled:
    """What compile made: the library, its precision and why, the policy as `kernels` of ours and as what is `called`, both in
    calling order, where each layer runs (empty where nothing was to be offloaded), what each pass did, what there is to
    say, and the text of every stage."""

    library: ModelLibrary
    precision: str
    reason: str
    kernels: tuple[Kernel, ...] = field(repr=False)
    called: tuple[Kernel | Offloaded, ...] = field(repr=False)
    offloads: tuple[Offload, ...]
    changes: tuple[Change, ...] = field(repr=False)
    notes: tuple[str, ...]
    stages: dict[str, str] = field(repr=False)


def float_passes(policy: Policy) -> list[Pass]:
    from relay_passes import AnchorMerges, CanonicalizeClip, FuseDense, PruneCritic, SimplifyActionHead

    return [
        PruneCritic(policy.action_index),  # first: nothing after it needs to understand a critic
        CanonicalizeClip(),  # clamps have one form before anybody looks for them
        SimplifyActionHead(),  # before FuseDense: a log-softmax is no affine map, the logits under it are one
        FuseDense(),  # before quantise: scales belong to the fused output
        AnchorMerges(),  # after FuseDense, which would take a layer of ones for nothing
    ]


def quantising_passes(precision: str, rows: list[np.ndarray], cmsis_nn: bool) -> list[Pass]:
    from relay_passes import FoldLut, QuantizeInt8, QuantizeInt16

    int8 = precision == "int8"
    return [
        # a library of integer kernels has no first layer of 16-bit weights, nor one of int16 with a multiplier an output
        QuantizeInt8(*rows, wide_first_layer=not cmsis_nn) if int8 else QuantizeInt16(*rows, one_multiplier=cmsis_nn),
        FoldLut(),  # after quantise: a table maps codes to codes
    ]


def quantised_passes(policy: Policy) -> list[Pass]:
    """What a model that is quantised already goes through in place of `float_passes`."""
    from relay_passes import JoinBias

    *passes, _, _ = float_passes(
        policy
    )  # without FuseDense: it folds constants, and int8 weights would be float32 ones
    return [*passes, JoinBias()]


def unrounding_passes() -> list[Pass]:
    """From there to the float policy that the codes stand for, which int8 answers are compared with."""
    from relay_passes import AnchorMerges, CanonicalizeClip, FuseDense, RemoveQdq

    return [
        RemoveQdq(),
        CanonicalizeClip(),  # what is left of codes is a clip, which may meet a ReLU or another clip
        FuseDense(),
        AnchorMerges(),
    ]


def integer_passes() -> list[Pass]:
    """And to its integers."""
    from relay_passes import FoldLut, LowerQdq

    return [LowerQdq(), FoldLut()]


def compile_policy(
    path: Path,
    *,
    target: str,
    cmsis_nn: bool = False,
    precision: str | None = None,
    calibration: Path | None = None,
    output: str | None = None,
    module_name: str | None = None,
    tuning_records: Path | None = None,
    budget: Budget = NO_BUDGET,
    progress: Callable[[str], None] = lambda stage: None,
) -> Compiled:
    """Compile the policy in `path`. `precision` is int8 when there is `calibration` or the model is quantised already, else
    float32; schedules are chosen by `tuning_records`, else by those that ship for the target. `cmsis_nn` leaves to CMSIS-NN
    the layers of an int8 or int16 policy that it computes bit for bit, but for those that the records know to cost no more
    as our own kernels. Raises TinyrlError."""
    core = target_named(target)
    if precision not in (None, *PRECISIONS):
        raise unknown_name("precision", str(precision), PRECISIONS)
    if not path.is_file():
        raise TinyrlError(f"no policy at '{path}'; give an .onnx file")

    # these load TVM, which takes a second that `--help` and a bad option need not wait for
    from relay_passes.clipping import clipped
    from relay_passes.network import UnsupportedGraph
    from tinyrl_tvm.emit.archive import archive
    from tinyrl_tvm.kernels import kernels_of, sources_of
    from tinyrl_tvm.reference import expectations

    name = module_identifier(module_name or path.stem)
    records = _tuning_records(tuning_records, core)  # before the long work: they may be another target's

    progress("import")
    policy = _load(path, output)
    try:
        progress("simplify")
        simple, coded, changes = _simplified(policy)
        precision, reason = _precision(precision, calibration, policy.source, coded is not None)
        if cmsis_nn and precision == "float32":
            raise TinyrlError(
                f"CMSIS-NN computes int8 and int16 policies, and '{policy.source}' is a float one; give some observations of "
                "a rollout with --calibration observations.npz"
            )
        observations = read_observations(calibration, simple)
        graph = simple.module
        if precision != "float32":
            progress("quantise")
            if coded is not None:
                graph, more = _run(coded, integer_passes())
            else:
                assert observations.calibration is not None
                rows = split_inputs(observations.calibration, simple.inputs)
                graph, more = _run(graph, quantising_passes(precision, rows, cmsis_nn))
            changes += more
        kernels, lowered, decided, more = _lowered(graph, cmsis_nn, core, records)
        changes += more
        vectors = split_inputs(observations.vectors, simple.inputs)
        expected = expectations(simple.module, graph, precision, vectors)
        clips = clipped(simple.module, graph, *vectors) if precision != "float32" else ()
    except UnsupportedGraph as error:
        raise UnsupportedOp(f"'{policy.source}': {error}") from None

    progress("schedule")
    called = kernels_of(lowered)
    placed, placed_notes = _placed(kernels, called, core, records, asked=tuning_records is not None)
    reasons = tuple(offload.reason for offload in decided)
    program = _program(simple, placed, sources_of(lowered), core, precision, name, expected, reasons)
    contract = _contract(program, budget)

    progress("print")
    library = archive(
        program,
        graph.script(),
        {
            "observations": observations.vectors[expected.kept],
            "expected": expected.actions,
            "float_action": expected.float_actions,
        },
        {
            "tolerance": expected.tolerance,
            "source": policy.source,
            "sha256": policy.sha256,
            "command": _command(policy, core, cmsis_nn, precision, calibration, output, name, tuning_records),
            "clipped": [asdict(layer) for layer in clips],
            "observed": _observed(observations),
            "memory": contract.to_json(),
        },
    )
    notes = (
        *policy.notes,
        *(["the scales are the model's own; --calibration gives test vectors alone"] if coded and calibration else []),
        *_doubts(observations),
        f"test vectors: {len(expected.actions)} rows, {observations.vectors_from}",
        *expected.notes,
        *records.notes,
        *placed_notes,
        *contract.doubts,
    )
    stages = {"relax": _relax_stages(policy, simple.module, graph, lowered), **_stages(program, library)}
    return Compiled(library, precision, reason, kernels, called, decided, tuple(changes), notes, stages)


def module_identifier(name: str) -> str:
    """A module's name as a C identifier: `cart-pole v1` is `cart_pole_v1`."""
    return c_names([name])[0]


def _command(
    policy: Policy,
    core: Target,
    cmsis_nn: bool,
    precision: str,
    calibration: Path | None,
    output: str | None,
    name: str,
    tuning_records: Path | None,
) -> list[str]:
    """The words of the command that compiles the same again, for the report. Files without their folders: the same policy
    gives the same bytes anywhere."""
    target = ["cmsis-nn,c", f"--target-cmsis-nn-mcpu={core.name}"] if cmsis_nn else [core.name]
    words = ["tinyrl-tvm", "compile", policy.source, "--target", *target, "--precision", precision]
    words += ["--calibration", calibration.name] if calibration else []
    words += ["--output", output] if output else []
    words += ["--tuning-records", tuning_records.name] if tuning_records else []
    return [*words, "--module-name", name, "-o", f"{name}.tar"]


def _doubts(observations: Observations) -> tuple[str, ...]:
    """What makes the ranges of calibration rows guesses."""
    rows = observations.calibration
    if rows is None or (rows != rows[0]).any():
        return ()
    return (f"all {len(rows):,} calibration rows are the same: the ranges are guesses; give rows of a rollout",)


def _observed(observations: Observations) -> dict[str, list[float]] | None:
    """The least and the greatest of every observation in the calibration rows."""
    if observations.calibration is None:
        return None
    low, high = observations.calibration.min(axis=0), observations.calibration.max(axis=0)
    return {"low": low.tolist(), "high": high.tolist()}


def _precision(precision: str | None, calibration: Path | None, source: str, quantised: bool) -> tuple[str, str]:
    """The precision and why it is that."""
    if quantised:
        if precision not in (None, "int8"):
            lacks = "float32 weights" if precision == "float32" else "16-bit codes"
            raise TinyrlError(
                f"'{source}' is quantised to int8 (QDQ) and has no {lacks}; compile the model it was made of"
            )
        return "int8", "the model brings its own scales"
    if precision in ("int8", "int16") and calibration is None:
        raise TinyrlError(
            f"{precision} needs the ranges of observations; give some of a rollout with --calibration observations.npz"
        )
    if precision is not None:
        return precision, "as asked"
    return ("int8", "there is --calibration") if calibration else ("float32", "int8 needs --calibration")


def _load(path: Path, output: str | None) -> Policy:
    from tinyrl_tvm.frontends import onnx

    if path.suffix.lower() not in (".onnx", ""):
        raise TinyrlError(f"cannot read '{path.name}' as a policy; have: .onnx")
    return onnx.load(path, output)


def _simplified(policy: Policy) -> tuple[Policy, IRModule | None, list[Change]]:
    """The policy after the float passes: its action only, and only the inputs that this needs. A model that is quantised
    already comes twice: as the float policy it stands for, and with its codes."""
    from relay_passes import PruneCritic
    from relay_passes.qdq import is_quantized

    coded = None
    actor, _ = _run(policy.module, [PruneCritic(policy.action_index)])
    if is_quantized(actor):
        coded, changes = _run(policy.module, quantised_passes(policy))
        graph, _ = _run(coded, unrounding_passes())
    else:
        graph, changes = _run(policy.module, float_passes(policy))
    names = [param.name for param in policy.module["main"].params]
    kept = [names.index(param.name) for param in graph["main"].params]
    inputs = tuple(policy.inputs[index] for index in kept)
    return replace(policy, module=graph, inputs=inputs, action_index=0), coded, changes


def _run(module: IRModule, passes: list[Pass]) -> tuple[IRModule, list[Change]]:
    from relay_passes.report import run_passes

    return run_passes(module, passes)


def _lowered(
    graph: IRModule, cmsis_nn: bool, core: Target, records: Records
) -> tuple[tuple[Kernel, ...], IRModule, tuple[Offload, ...], list[Change]]:
    """The policy as kernels of ours and as calls of kernels, with what was decided of each when CMSIS-NN is to have some."""
    from relay_passes import LowerDense, PartitionCmsisNN
    from relay_passes.partition_cmsis_nn import offloads
    from tinyrl_tvm.kernels import kernels_of

    lowered, changes = _run(graph, [LowerDense()])
    kernels = tuple(kernel for kernel in kernels_of(lowered) if not isinstance(kernel, Offloaded))
    if not cmsis_nn:
        return kernels, lowered, (), changes
    decided = _measured(offloads(lowered), kernels, core, records)
    partitioned, more = _run(lowered, [PartitionCmsisNN(decided)])
    return kernels, partitioned, decided, changes + more


def _measured(
    possible: tuple[Offload, ...], kernels: tuple[Kernel, ...], core: Target, records: Records
) -> tuple[Offload, ...]:
    """Where each kernel runs: what CMSIS-NN can compute is left to it, unless both were measured and ours costs no more. A
    tie is ours: it needs nothing of anybody's."""
    from schedules import place
    from schedules.signature import signature

    best = records.best()

    def decided(offload: Offload, kernel: Kernel) -> Offload:
        own = best.get(signature(kernel))
        theirs = records.by_cmsis_nn(own, offload.function) if own and offload.function else None
        if own is None or own.cost is None or theirs is None:
            return offload
        try:
            place(kernel, core.kernels, own.choices)
        except ValueError:  # of a rule that has changed: what it cost is not what would be compiled
            return offload
        cost = f"measured: {{:,.1f}} {own.origin.unit}"
        if theirs.cost is not None and theirs.cost < own.cost:
            return replace(offload, reason=f"{offload.reason}; {cost.format(theirs.cost)}, ours {own.cost:,.1f}")
        other = "was rejected" if theirs.cost is None else f"{theirs.cost:,.1f}"
        return replace(offload, function=None, reason=f"{cost.format(own.cost)}, {offload.function} {other}")

    return tuple(decided(offload, kernel) for offload, kernel in zip(possible, kernels, strict=True))


def _tuning_records(path: Path | None, core: Target) -> Records:
    from schedules.tuned import shipped
    from tinyrl_tvm.records import parse, read

    if path is not None:
        return read(path, core.name)
    resource = shipped(core.name)
    return parse(resource.read_bytes(), resource.name, core.name) if resource.is_file() else Records()


def _placed(
    kernels: tuple[Kernel, ...],
    called: tuple[Kernel | Offloaded, ...],
    core: Target,
    records: Records,
    asked: bool,
) -> tuple[tuple[PlacedKernel | Offloaded, ...], tuple[str, ...]]:
    """Every kernel that is `called` as ours with the choices that were measured for it, or for the nearest that was, of which
    there is a note; so there is of records that were `asked` for and apply to none."""
    from schedules.signature import signature
    from schedules.tuned import place_tuned

    placed: list[PlacedKernel | Offloaded] = []
    winners, notes, applied = records.winners(), [], 0
    for kernel, call in zip(kernels, called, strict=True):
        if isinstance(call, Offloaded):
            placed.append(call)
            applied += signature(kernel) in winners
            continue
        tuned, known = place_tuned(kernel, core.kernels, winners)
        if known is not None and known != signature(kernel):
            notes.append(
                f"{kernel.summary}: scheduled as {known.n_in} -> {known.n_out} was tuned, which is the nearest"
            )
        placed.append(tuned)
        applied += known is not None
    if asked and not applied:
        notes.append("no tuning record is of a kernel of this policy in this precision; the defaults apply")
    return tuple(placed), tuple(dict.fromkeys(notes))


def _program(
    policy: Policy,
    kernels: tuple[PlacedKernel | Offloaded, ...],
    sources: tuple[tuple[int, ...], ...],
    core: Target,
    precision: str,
    name: str,
    expected: Expectations,
    reasons: tuple[str, ...],
) -> Program:
    from tinyrl_tvm.emit.program import Program

    action = TensorSpec(policy.action.name, (expected.actions.shape[1],), str(expected.actions.dtype))
    pedigree = (
        f"Written by tinyrl-tvm {tinyrl_tvm.__version__} from '{policy.source}' (sha256 {policy.sha256}), "
        f"{precision}, for {core.name}."
    )
    return Program(name, core, precision, policy.inputs, action, kernels, sources, pedigree, reasons)


def _contract(program: Program, budget: Budget) -> Contract:
    """What the policy will take, refused before printing where the budget cannot be met."""
    from tinyrl_tvm.emit.footprint import predict

    contract = replace(predict(program), budget=budget)
    smaller = "a smaller network"
    contract.refuse_excess(
        f"try --precision int8 with --calibration, or {smaller}" if program.precision == "float32" else f"try {smaller}"
    )
    return contract


def _relax_stages(policy: Policy, simple: IRModule, graph: IRModule, lowered: IRModule) -> str:
    titles = {"imported": policy.module, "simplified": simple, "to compile": graph, "lowered": lowered}
    return "\n".join(f"# ---- {title}\n{module.script()}\n" for title, module in titles.items())


def _stages(program: Program, library: ModelLibrary) -> dict[str, str]:
    """The TIR of every kernel, and the sources as printed."""
    kernels = program.target.kernels
    families = ("portable", kernels) if program.guard else ("portable" if program.target.guard else kernels,)
    steps, _ = program.plan
    own = [(step.placed, step.function) for step in steps if not isinstance(step.placed, Offloaded)]
    tir = [f"# ---- {f}\n{placed.module(f, name).script()}\n" for placed, name in own for f in families]
    sources = {path: data.decode() for path, data in library.files.items() if path.startswith("codegen/")}
    return {
        "tir": "\n".join(tir),
        "c": "\n".join(text for path, text in sources.items() if not path.endswith(".S")),
        "asm": "\n".join(text for path, text in sources.items() if path.endswith(".S")),
    }
