# SPDX-License-Identifier: Apache-2.0
"""tvmc's words: its own line for Cortex-M55 works as it stands, what has no meaning gets a note, what cannot be a refusal."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from policies import dense_policy
from quantised_models import quantised

from tinyrl_tvm.cli import cli
from tinyrl_tvm.cli.tvmc import CORES, OPTIONS, PASS_CONFIG
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.targets import TARGETS

# apps/microtvm/cmsisnn/run_demo.sh of TVM 0.18, with the policy's names in place of its model's
CANONICAL = """
tinyrl-tvm compile --target=cmsis-nn,c --target-cmsis-nn-mcpu=cortex-m55 --target-c-mcpu=cortex-m55 --runtime=crt
--executor=aot --executor-aot-interface-api=c --executor-aot-unpacked-api=1 --pass-config tir.usmp.enable=1
--pass-config tir.usmp.algorithm=hill_climb --pass-config tir.disable_storage_rewrite=1
--pass-config tir.disable_vectorize=1 ./policy.onnx --output-format=mlf --module-name=policy
"""
FLOAT = dense_policy((5, 18, 21, 2))


@pytest.fixture(autouse=True)
def _beside_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(quantised(FLOAT, per_channel=True), "policy.onnx")


def typed(line: str) -> Result:
    name, *words = shlex.split(line)
    assert name == "tinyrl-tvm"
    return CliRunner().invoke(cli, words)


def refused(line: str) -> str:
    """The one sentence of a line that is refused; nothing is written."""
    result = typed(line)
    assert (result.exit_code, result.stdout) == (1, "")
    assert sorted(path.name for path in Path().iterdir()) == ["policy.onnx"]
    assert result.stderr.count("\n") == 1
    return result.stderr.rstrip()


def compiled(words: str) -> Interface:
    result = typed(f"tinyrl-tvm compile policy.onnx {words}")
    assert result.exit_code == 0, result.stderr
    return Interface.of(ModelLibrary.load(Path("policy.tar")))


# ---- the line of tvmc's demo ----


def test_tvmcs_line_for_cortex_m55_works_as_it_stands() -> None:
    result = typed(CANONICAL)
    assert result.exit_code == 0, result.stderr
    interface = Interface.of(ModelLibrary.load(Path("policy.tar")))
    assert (interface.name, interface.target) == ("policy", "cortex-m55")
    assert interface.cmsis_nn == ("arm_fully_connected_per_channel_s8",)
    assert result.stderr.splitlines() == [
        "note: --runtime=crt changes nothing: the library is plain C and needs no runtime",
        "note: --executor=aot changes nothing: the calls are always compiled ahead of time",
        "note: --pass-config tir.usmp.enable=1 changes nothing: the workspace is always planned by the compiler",
        "note: --pass-config tir.usmp.algorithm=hill_climb changes nothing: the workspace is planned greedily by size",
        "note: --pass-config tir.disable_storage_rewrite=1 changes nothing: the workspace is planned for all layers at once",
        "note: --pass-config tir.disable_vectorize=1 changes nothing: the schedules of the core decide what is a vector",
    ]


def test_with_a_float_model_it_names_calibration() -> None:
    onnx.save(FLOAT, "policy.onnx")
    assert refused(CANONICAL) == (
        "CMSIS-NN computes int8 and int16 policies, and 'policy.onnx' is a float one; give some observations of a rollout "
        "with --calibration observations.npz"
    )


def test_the_target_may_carry_its_core() -> None:
    for target in (
        "cmsis-nn -mcpu=cortex-m7,c",
        "cmsis-nn,c -mcpu=cortex-m7",
        "cmsis-nn -mcpu=cortex-m7, c -mcpu=cortex-m7",
    ):
        assert compiled(f"--target '{target}'").target == "cortex-m7"
    assert not compiled("--target c --target-c-mcpu=cortex-m7").cmsis_nn
    assert compiled("--target c").target == "portable"
    assert not compiled("--target cortex-m55").cmsis_nn


@pytest.mark.parametrize("core", CORES)
def test_every_cortex_m_has_cmsis_nn(core: str) -> None:
    interface = compiled(f"--target cmsis-nn,c --target-cmsis-nn-mcpu={core}")
    assert interface.target == core
    assert interface.cmsis_nn


# ---- refusals ----


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--runtime=cpp", "the library has no runtime to be linked to; have: crt"),
        ("--executor=graph", "there is no interpreter of graphs; have: aot"),
        ("--output-format=so", "a model library is what 'micro create' and 'run' read; have: mlf"),
        ("--executor-aot-interface-api=packed", "the library is called as C, through its header; have: c"),
        ("--executor-aot-unpacked-api=0", "there is no packed calling convention; have: 1, true, True"),
        ("--pass-config tir.usmp.enable=0", "nothing else gives the workspace; have: 1, true, True"),
        ("--executor-aot-workspace-byte-alignment=32", "16 bytes are what there is; have: 1, 2, 4, 8, 16"),
        ("--target-cmsis-nn-mattr=+nomve", "the name of a core says what it has"),
        (
            "--workspace-pools=sram",
            "the workspace is one array, which TVMGEN_<NAME>_WORKSPACE puts into a section and <name>_predict_in takes from "
            "its caller",
        ),
        ("--print-ir-after=[FuseOps]", "--dump-code relax,tir,c,asm writes every stage beside the library"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_one_sentence(words: str, why: str) -> None:
    sentence = f"{words} cannot be honoured: {why}"
    assert refused(f"tinyrl-tvm compile policy.onnx --target cortex-m55 {words}") == sentence


ONE_OF_TARGETS = f"have: cmsis-nn,c, or c, or one of {', '.join(TARGETS)}"
WRONG_TARGETS = {
    "cmsis-nn": f"no targets 'cmsis-nn'; {ONE_OF_TARGETS}",
    "cmsis-nn,llvm": f"no targets 'cmsis-nn,llvm'; {ONE_OF_TARGETS}",
    "cmsis-nn,c": f"CMSIS-NN for which core? Give --target-cmsis-nn-mcpu; have: {', '.join(CORES)}",
    "'cmsis-nn -mattr=+nodsp,c'": "no option '-mattr=+nodsp' of a target; have: -mcpu=CORE",
    "cortex-m55 --target-c-mcpu=cortex-m55": (
        "--target-c-mcpu is of the target 'c', which --target cortex-m55 does not name"
    ),
    "cmsis-nn,c --target-cmsis-nn-mcpu=cortex-m55 --target-c-mcpu=cortex-m4": (
        "the targets are of several cores, cortex-m55 and cortex-m4; give one"
    ),
    "cmsis-nn,c --target-c-mcpu=cortex-m5": (
        f"no core 'cortex-m5'; have: {', '.join(sorted(CORES))}. Did you mean 'cortex-m55'?"
    ),
    "cortex-m55 --pass-config tir.usmp.enabled=1": (
        f"no pass config 'tir.usmp.enabled'; have: {', '.join(sorted(PASS_CONFIG))}. Did you mean 'tir.usmp.enable'?"
    ),
    "cortex-m55 --pass-config tir.usmp.enable": "--pass-config tir.usmp.enable has no value; give NAME=VALUE",
    "cortex-m55 --dump-offloads -": "--dump-offloads tells what CMSIS-NN computes; give --target cmsis-nn,c",
    "cmsis-nn,c --target-c-mcpu=cortex-m4 --dump-offloads - --json": (
        "--json says what --dump-offloads - would; give one of them"
    ),
}


@pytest.mark.parametrize("words", WRONG_TARGETS)
def test_a_target_that_makes_no_sense_is_refused_in_one_sentence(words: str) -> None:
    assert refused(f"tinyrl-tvm compile policy.onnx --target {words}") == WRONG_TARGETS[words]


@pytest.mark.parametrize(
    ("words", "note"),
    [
        ("-O 3", "note: --opt-level=3 changes nothing: every pass always runs"),
        (
            "--desired-layout NHWC:HWIO",
            "note: --desired-layout=NHWC:HWIO changes nothing: dense layers have no layout to",
        ),
        (
            "--input-shapes 'obs:[1,5]'",
            "note: --input-shapes=obs:[1,5] changes nothing: the file says its shapes, and one",
        ),
        ("--executor-aot-constant-byte-alignment=8", "parameters and workspace are aligned to 16 bytes"),
    ],
)
def test_what_has_no_meaning_here_gets_a_note(words: str, note: str) -> None:
    result = typed(f"tinyrl-tvm compile policy.onnx --target cortex-m55 {words}")
    assert result.exit_code == 0
    assert note in result.stderr


def test_every_word_has_something_to_say() -> None:
    for word in (*OPTIONS.values(), *PASS_CONFIG.values()):
        assert word.note or word.refusal
        assert word.refusal or not word.values


# ---- --dump-offloads ----

OFFLOADS = """\
quantize 5      TVM       it reads float observations, CMSIS-NN reads codes
dense 5 -> 18   CMSIS-NN  arm_fully_connected_per_channel_s8: every output has a multiplier
dense 18 -> 21  CMSIS-NN  arm_fully_connected_per_channel_s8: every output has a multiplier
dense 21 -> 2   TVM       the action is made of its int32 sums, of which CMSIS-NN gives codes alone
"""
CMSIS_NN = "--target cmsis-nn,c --target-cmsis-nn-mcpu=cortex-m55"


def test_dump_offloads_tells_every_layers_place_and_why() -> None:
    said = typed(f"tinyrl-tvm compile policy.onnx {CMSIS_NN} --dump-offloads -")
    assert said.exit_code == 0
    assert OFFLOADS in said.stdout
    assert not Path("-").exists()
    compiled(f"{CMSIS_NN} --dump-offloads offloads.txt")
    assert Path("offloads.txt").read_text() == OFFLOADS


def test_json_lists_the_offloads() -> None:
    said = typed(f"tinyrl-tvm compile policy.onnx {CMSIS_NN} --json")
    offloads = json.loads(said.stdout)["offloads"]
    assert [offload["kernel"] for offload in offloads] == [line.split("  ")[0] for line in OFFLOADS.splitlines()]
    assert offloads[1]["function"] == "arm_fully_connected_per_channel_s8"
    assert offloads[0]["function"] is None
    assert json.loads(typed("tinyrl-tvm compile policy.onnx --target cortex-m55 --json").stdout)["offloads"] == []
