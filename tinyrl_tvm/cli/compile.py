# SPDX-License-Identifier: Apache-2.0
"""`tinyrl-tvm compile`: a policy file becomes a model library."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinyrl_tvm.cli import tvmc as tvmc_words
from tinyrl_tvm.cli.console import json_option, progress, refuse_unwritable, say, say_json, say_table, tell
from tinyrl_tvm.errors import TinyrlError, unknown_name
from tinyrl_tvm.targets import TARGETS

if TYPE_CHECKING:
    from relay_passes.partition_cmsis_nn import Offload
    from relay_passes.report import Change
    from tinyrl_tvm.pipeline import Compiled

STAGES = ("relax", "tir", "c", "asm")
STDOUT = Path("-")
UNITS = {"": 1, "K": 1024, "M": 1024 * 1024}


class Size(click.ParamType):
    """Bytes: 131072, 128K or 1M."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,12})\s*([KM]?)(i?B)?", value.strip(), re.IGNORECASE)
        if match is None:
            self.fail(f"'{value}' is no size; give bytes as 131072, 128K or 1M", param, ctx)
        return int(match[1]) * UNITS[match[2].upper()]


@click.command("compile", short_help="Compile an exported policy to a model library.")
@click.argument("policy", type=click.Path(path_type=Path))
@click.option(
    "--target",
    metavar="NAME",
    help=f"The core to compile for (required): {', '.join(TARGETS)}; or cmsis-nn,c with --target-cmsis-nn-mcpu=CORE.",
)
@click.option(
    "--precision",
    metavar="int8|int16|float32",
    help="Default: int8 with --calibration or for a QDQ model, else float32.",
)
@click.option("--calibration", type=click.Path(path_type=Path), help="Rollout observations: .npz, .npy or .csv.")
@click.option("--output", metavar="TENSOR", help="Which output of the policy is the action. The file is -o.")
@click.option("--module-name", metavar="NAME", help="Prefix of every C symbol. Default: the policy's name.")
@click.option(
    "-o", "--output-file", type=click.Path(path_type=Path), help="The library to write. Default: POLICY's name, .tar."
)
@click.option(
    "--tuning-records",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="What 'tinyrl-tvm tune' found. Default: the records that ship for the target.",
)
@click.option("--flash", type=Size(), help="What parameters and code may take, e.g. 128K; kept by 'micro build'.")
@click.option("--ram", type=Size(), help="What the workspace may take, e.g. 32K.")
@click.option("--stack", type=Size(), help="What a call may take of the stack, e.g. 4K.")
@click.option("--dump-code", metavar="STAGE,...", help=f"Also write OUT.STAGE for: {', '.join(STAGES)}.")
@click.option(
    "--dump-offloads",
    metavar="-|FILE",
    type=click.Path(path_type=Path),
    help="Say of every layer whether CMSIS-NN computes it, and why; - is standard output.",
)
@tvmc_words.tvmc_options
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Tell each stage and its time on stderr.")
def compile_verb(
    *,
    policy: Path,
    target: str | None,
    precision: str | None,
    calibration: Path | None,
    output: str | None,
    module_name: str | None,
    output_file: Path | None,
    tuning_records: Path | None,
    flash: int | None,
    ram: int | None,
    stack: int | None,
    dump_code: str | None,
    dump_offloads: Path | None,
    as_json: bool,
    verbose: bool,
    **tvmc: Any,
) -> None:
    """Compile POLICY, an .onnx file, to a model library.

    Note that -o is the file to write, as with every compiler; its long form is --output-file. --output is something
    else: the name of the tensor that is the action, for a policy whose action cannot be told by its structure.

    A calibration .npz holds an array `calibration`, or one named as the policy's input, or a single one; an array
    `observations` in it becomes the test vectors that the library carries.

    tvmc's command lines for microcontrollers work as they stand: --target=cmsis-nn,c --target-cmsis-nn-mcpu=cortex-m55
    --target-c-mcpu --runtime=crt --executor=aot --pass-config tir.usmp.enable=1 and the like.

    \b
    --json: library, module, target, precision, source, sha256, inputs, action, parameter_bytes, workspace_bytes,
      library_bytes, test_vectors, dumped {stage: path}, notes [], offloads [{kernel, function, reason}],
      memory {flash, ram, stack: {predicted_bytes, margin_bytes, budget_bytes, contributors []}},
      passes [{pass, removed, added, saved_operators, saved_bytes}]
    """
    if target is None:
        raise click.UsageError(f"no --target; have: {', '.join(TARGETS)}")
    core, cmsis_nn = tvmc_words.target_of(target, tvmc)
    if dump_offloads and not cmsis_nn:
        raise TinyrlError("--dump-offloads tells what CMSIS-NN computes; give --target cmsis-nn,c")
    if as_json and dump_offloads == STDOUT:
        raise TinyrlError("--json says what --dump-offloads - would; give one of them")
    without_effect = tvmc_words.notes(tvmc)
    if output is not None and output.endswith(".tar"):
        raise TinyrlError(f"--output names the policy's action, not a file; did you mean -o {output}?")
    library_path = output_file or Path(f"{policy.stem}.tar")
    dumps = {stage: Path(f"{library_path}.{stage}") for stage in _stages(dump_code)}
    offloads_path = dump_offloads if dump_offloads not in (None, STDOUT) else None
    for path in (library_path, *dumps.values(), *([offloads_path] if offloads_path else [])):
        refuse_unwritable(path, policy, calibration, tuning_records)

    with progress(verbose) as begin:
        begin("load the compiler")
        from tinyrl_tvm.library import write_whole
        from tinyrl_tvm.memory import Budget
        from tinyrl_tvm.pipeline import compile_policy

        compiled = compile_policy(
            policy,
            target=core,
            cmsis_nn=cmsis_nn,
            precision=precision,
            calibration=calibration,
            output=output,
            module_name=module_name,
            tuning_records=tuning_records,
            budget=Budget(flash, ram, stack),
            progress=begin,
        )
    for stage, path in dumps.items():
        write_whole(path, compiled.stages[stage].encode())
    if offloads_path:
        write_whole(offloads_path, _offload_table(compiled.offloads).encode())
    compiled.library.save(library_path)

    for note in without_effect:
        tell(f"note: {note}")
    answer = _answer(compiled, library_path, dumps)
    if as_json:
        say_json(answer)
    else:
        if dump_offloads == STDOUT:
            say(_offload_table(compiled.offloads).rstrip())
        _say(answer, dumps, compiled.changes, compiled.reason)


def _stages(dump_code: str | None) -> list[str]:
    stages = [stage.strip() for stage in dump_code.split(",")] if dump_code is not None else []
    for stage in stages:
        if stage not in STAGES:
            raise unknown_name("stage", stage, STAGES)
    return stages


def _offload_table(offloads: tuple[Offload, ...]) -> str:
    width = max(len(offload.kernel) for offload in offloads)
    return "".join(f"{offload.kernel:{width}}  {_place(offload)}\n" for offload in offloads)


def _place(offload: Offload) -> str:
    return f"CMSIS-NN  {offload.function}: {offload.reason}" if offload.function else f"TVM       {offload.reason}"


def _answer(compiled: Compiled, library_path: Path, dumps: dict[str, Path]) -> dict[str, Any]:
    library = compiled.library
    interface, memory = library.interface, library.module["memory"]["functions"]["main"][0]
    return {
        "library": str(library_path),
        "module": library.name,
        "target": interface["target"],
        "precision": compiled.precision,
        "source": interface["source"],
        "sha256": interface["sha256"],
        "inputs": interface["inputs"],
        "action": interface["action"],
        "parameter_bytes": memory["constants_size_bytes"],
        "workspace_bytes": memory["workspace_size_bytes"],
        "memory": interface["memory"],
        "library_bytes": library_path.stat().st_size,
        "test_vectors": interface["test_vectors"],
        "dumped": {stage: str(path) for stage, path in dumps.items()},
        "notes": list(compiled.notes),
        "offloads": [dataclasses.asdict(offload) for offload in compiled.offloads],
        "passes": [
            {
                "pass": change.pass_name,
                "removed": dict(change.removed),
                "added": dict(change.added),
                "saved_operators": change.saved_operators,
                "saved_bytes": change.saved_bytes,
            }
            for change in compiled.changes
        ],
    }


def _say(answer: dict[str, Any], dumps: dict[str, Path], changes: tuple[Change, ...], reason: str) -> None:
    say_table(
        f"{answer['source']} for {answer['target']}",
        ("pass", "what it did", "operators saved", "bytes saved"),
        [(change.pass_name, str(change), change.saved_operators, change.saved_bytes) for change in changes],
    )
    for note in answer["notes"]:
        say(f"note: {note}")
    say(f"precision: {answer['precision']} ({reason})")
    say(f"parameters: {answer['parameter_bytes']:,} B, workspace: {answer['workspace_bytes']:,} B")
    flash, stack = answer["memory"]["flash"], answer["memory"]["stack"]
    say(
        f"predicted: flash {flash['predicted_bytes']:,} ± {flash['margin_bytes']:,} B, "
        f"stack {stack['predicted_bytes']:,} ± {stack['margin_bytes']:,} B"
    )
    for stage, path in dumps.items():
        empty = "" if path.stat().st_size else ", empty: this target has C alone"
        say(f"{stage}: '{path}'{empty}")
    say(f"wrote '{answer['library']}' ({answer['library_bytes']:,} B), module '{answer['module']}'")
