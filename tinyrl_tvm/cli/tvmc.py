# SPDX-License-Identifier: Apache-2.0
"""tvmc's own words for a microcontroller, so that its command lines work as they stand:

    --target=cmsis-nn,c --target-cmsis-nn-mcpu=cortex-m55 --target-c-mcpu=cortex-m55     ->  cortex-m55, with CMSIS-NN
    --runtime=crt --executor=aot --pass-config tir.usmp.enable=1 ...                     ->  accepted, with a note
    --runtime=cpp --executor=graph --output-format=so                                    ->  refused

Source: apache/tvm v0.18.0, python/tvm/driver/tvmc/compiler.py and apps/microtvm/cmsisnn/run_demo.sh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click

from tinyrl_tvm.errors import TinyrlError, unknown_name
from tinyrl_tvm.targets import TARGETS

CORES = tuple(name for name in TARGETS if name.startswith("cortex-m"))
KINDS = ("cmsis-nn", "c")
YES, NO = ("1", "true", "True"), ("0", "false", "False")


@dataclass(frozen=True)
class Word:
    """An option of tvmc: the values that can be honoured, what is said of one that changes nothing, and why others are
    refused. Without values it is always refused, and without a refusal never."""

    values: tuple[str, ...] = ()
    note: str = ""
    refusal: str = ""


_ALIGNED = (
    ("1", "2", "4", "8", "16"),
    "parameters and workspace are aligned to 16 bytes",
    "16 bytes are what there is",
)
_ONE_WORKSPACE = (
    "the workspace is one array, which TVMGEN_<NAME>_WORKSPACE puts into a section and <name>_predict_in takes from its "
    "caller"
)

OPTIONS = {
    "runtime": Word(
        ("crt",), "the library is plain C and needs no runtime", "the library has no runtime to be linked to"
    ),
    "runtime-crt-system-lib": Word(note="the library is plain C and needs no runtime"),
    "executor": Word(("aot",), "the calls are always compiled ahead of time", "there is no interpreter of graphs"),
    "executor-aot-interface-api": Word(("c",), refusal="the library is called as C, through its header"),
    "executor-aot-unpacked-api": Word(YES, refusal="there is no packed calling convention"),
    "executor-aot-link-params": Word(YES, refusal="the parameters are always constants of the library"),
    "output-format": Word(("mlf",), refusal="a model library is what 'micro create' and 'run' read"),
    "opt-level": Word(("0", "1", "2", "3"), "every pass always runs", "tvmc's levels are these"),
    "executor-aot-workspace-byte-alignment": Word(*_ALIGNED),
    "executor-aot-constant-byte-alignment": Word(*_ALIGNED),
    "target-cmsis-nn-mattr": Word(refusal="the name of a core says what it has"),
    "target-cmsis-nn-debug_last_error": Word(
        NO, "a kernel that fails is a status of predict", "there is no last error"
    ),
    "target-c-march": Word(refusal="the name of a core says what it has, as in --target-c-mcpu"),
    "cross-compiler": Word(note="no library is linked here; a project's own build calls a compiler"),
    "cross-compiler-options": Word(note="no library is linked here; a project's own build calls a compiler"),
    "desired-layout": Word(note="dense layers have no layout to choose"),
    "desired-layout-ops": Word(note="dense layers have no layout to choose"),
    "disabled-pass": Word(refusal="no pass can be left out"),
    "print-ir-before": Word(refusal="--dump-code relax,tir,c,asm writes every stage beside the library"),
    "print-ir-after": Word(refusal="--dump-code relax,tir,c,asm writes every stage beside the library"),
    "input-shapes": Word(note="the file says its shapes, and one observation is answered at a time"),
    "model-format": Word(("onnx",), refusal="a policy is an ONNX file"),
    "workspace-pools": Word(refusal=_ONE_WORKSPACE),
    "workspace-pools-targets": Word(refusal=_ONE_WORKSPACE),
    "workspace-pools-size-hint-bytes": Word(refusal=f"{_ONE_WORKSPACE}, --ram bounds it"),
    **{
        f"workspace-pools-{fact}": Word(refusal=_ONE_WORKSPACE)
        for fact in (
            "clock-frequency-hz",
            "read-bandwidth-bytes-per-cycle",
            "write-bandwidth-bytes-per-cycle",
            "read-latency-cycles",
            "write-latency-cycles",
            "target-burst-bytes",
        )
    },
}
SHORT = {"opt-level": "-O"}
PASS_CONFIG = {
    "tir.usmp.enable": Word(YES, "the workspace is always planned by the compiler", "nothing else gives the workspace"),
    "tir.usmp.algorithm": Word(
        ("greedy_by_size", "greedy_by_conflicts", "hill_climb"),
        "the workspace is planned greedily by size",
        "the workspace is planned greedily by size",
    ),
    "tir.usmp.use_workspace_io": Word(NO, "observation and action are always arrays of the caller's", "they stay so"),
    "tir.disable_storage_rewrite": Word(
        (*YES, *NO), "the workspace is planned for all layers at once", "it is a yes or no"
    ),
    "tir.disable_vectorize": Word(
        (*YES, *NO), "the schedules of the core decide what is a vector", "it is a yes or no"
    ),
}


def tvmc_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of OPTIONS, `--pass-config` and the targets' own, for a verb that takes them as `**tvmc`."""
    for name in (*(f"target-{kind}-mcpu" for kind in KINDS), *OPTIONS):
        command = click.option(*([SHORT[name]] if name in SHORT else []), f"--{name}", hidden=True)(command)
    return click.option("--pass-config", multiple=True, hidden=True)(command)


def target_of(target: str, tvmc: Mapping[str, Any]) -> tuple[str, bool]:
    """One of TARGETS, and whether CMSIS-NN is to have what it can compute; a name that tvmc does not use is left as it is."""
    parts = [part.split() for part in target.split(",")]
    kinds = [part[0] if part else "" for part in parts]
    cores = {kind: tvmc[f"target_{kind.replace('-', '_')}_mcpu"] for kind in KINDS}
    for kind, core in cores.items():
        if core is not None and kind not in kinds:
            raise TinyrlError(f"--target-{kind}-mcpu is of the target '{kind}', which --target {target} does not name")
    if len(kinds) == 1 and kinds[0] not in KINDS:
        return target, False
    if kinds not in (["c"], ["cmsis-nn", "c"]):
        raise TinyrlError(f"no targets '{target}'; have: cmsis-nn,c, or c, or one of {', '.join(TARGETS)}")
    given = [core for core in cores.values() if core is not None] + [_mcpu(word) for part in parts for word in part[1:]]
    if len(set(given)) > 1:
        raise TinyrlError(f"the targets are of several cores, {' and '.join(dict.fromkeys(given))}; give one")
    if not given and kinds == ["c"]:
        return "portable", False
    if not given:
        raise TinyrlError(f"CMSIS-NN for which core? Give --target-cmsis-nn-mcpu; have: {', '.join(CORES)}")
    if given[0] not in CORES:
        raise unknown_name("core", given[0], CORES)
    return given[0], "cmsis-nn" in kinds


def _mcpu(word: str) -> str:
    """The core of `-mcpu=cortex-m55`, an option inside a target."""
    name, _, value = word.partition("=")
    if name != "-mcpu" or not value:
        raise TinyrlError(f"no option '{word}' of a target; have: -mcpu=CORE")
    return value


def notes(tvmc: Mapping[str, Any]) -> list[str]:
    """What there is to say of the words that were given. Raises TinyrlError for one that cannot be honoured."""
    return [note for option, word, value in _given(tvmc) if (note := _note(option, word, value))]


def _given(tvmc: Mapping[str, Any]) -> Iterator[tuple[str, Word, str]]:
    for name, word in OPTIONS.items():
        value = tvmc[name.replace("-", "_")]
        if value is not None:
            yield f"--{name}", word, value
    for name, value in _configurations(tvmc["pass_config"]):
        yield f"--pass-config {name}", PASS_CONFIG[name], value


def _configurations(given: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise TinyrlError(f"--pass-config {text} has no value; give NAME=VALUE")
        if name not in PASS_CONFIG:
            raise unknown_name("pass config", name, PASS_CONFIG)
        yield name, value


def _note(option: str, word: Word, value: str) -> str:
    if word.refusal and value not in word.values:
        have = f"; have: {', '.join(word.values)}" if word.values else ""
        raise TinyrlError(f"{option}={value} cannot be honoured: {word.refusal}{have}")
    return f"{option}={value} changes nothing: {word.note}" if word.note else ""
