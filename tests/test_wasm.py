# SPDX-License-Identifier: Apache-2.0
"""Policies as WebAssembly modules answer in node as they must, and a module that does not is one sentence."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policies import arg_max, compile_model, dense_policy, greater, multi_discrete, squashed, unscaled
from test_project import POLICIES, hand_written_library, observations_of, only_on_path, run_make
from test_schedules import REQUANTISATIONS, adversarial, codes_of, library_of, shown, walk

from tinyrl_tvm import toolchain
from tinyrl_tvm.device import micro, node
from tinyrl_tvm.device.measurement import Measurement
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.pipeline import compile_policy
from tinyrl_tvm.project import Project, build, create

REFERENCE = Path(__file__).parents[1] / "benchmarks" / "policies"


def built(library: ModelLibrary, folder: Path) -> Project:
    project = create(library, folder / "project", "wasm")
    build(project)
    return project


def in_node(library: ModelLibrary, folder: Path) -> Measurement:
    return micro.run(built(library, folder))


# ---- parity ----


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("name", ["P1", "P2", "P3", "cartpole", "pendulum"])
def test_reference_policies_answer_in_node_as_they_must(name: str, precision: str, tmp_path: Path) -> None:
    rows = REFERENCE / f"{name}.npz"
    compiled = compile_policy(REFERENCE / f"{name}.onnx", target="wasm32", precision=precision, calibration=rows)
    measured = in_node(compiled.library, tmp_path)
    assert measured.parity == "PASS"
    if precision == "int8":
        np.testing.assert_array_equal(measured.actions, compiled.library.vectors()["expected"])


SHAPES: dict[str, tuple[tuple[int, ...], dict[str, Any], str]] = {
    "ones": ((1, 1, 1, 1), {}, "wasm32"),
    "odd, through tables": ((9, 17, 33, 5), {"activation": "Tanh", "head": unscaled(-2, 3)}, "wasm32"),
    "a squashed head": ((18, 100, 37), {"head": squashed()}, "wasm32"),
    "more inputs than the 16-bit copy holds": ((520, 33, 12), {"head": arg_max}, "wasm32"),
    "choices": ((3, 130, 9), {"head": multi_discrete(3, 2, 4)}, "wasm32"),
    "switches": ((8, 31, 5), {"head": greater}, "wasm32"),
    "several inputs": ((7, 20, 2), {"inputs": {"a": (3,), "b": (2, 2)}}, "wasm32"),
    "another target's C": ((6, 40, 3), {}, "cortex-m55"),
}


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("name", SHAPES)
def test_policies_of_any_size_and_head_answer_as_they_must(name: str, precision: str, tmp_path: Path) -> None:
    sizes, options, target = SHAPES[name]
    model = dense_policy(sizes, **options)
    assert (
        in_node(compile_model(model, tmp_path, precision=precision, target=target).library, tmp_path).parity == "PASS"
    )


@pytest.mark.parametrize("case", REQUANTISATIONS[1::3], ids=str)
def test_a_layer_of_codes_rounds_by_the_law(case: tuple[Any, ...], tmp_path: Path) -> None:
    *limits, n_in, n_out, table = case
    layer = adversarial(*limits, n_in=n_in, n_out=n_out, table=table)
    library = library_of([codes_of(n_in), layer, shown(n_out)], walk(n_in), target="wasm32")
    np.testing.assert_array_equal(in_node(library, tmp_path).actions, library.vectors()["expected"])


# ---- what is measured ----


def test_a_measurement_says_time_and_size_and_counts_no_instructions(tmp_path: Path) -> None:
    library = compile_model(dense_policy((4, 64, 2)), tmp_path, target="wasm32").library
    project = built(library, tmp_path)
    measured = micro.run(project, timed=True)
    assert measured.device == "node"
    assert measured.wall_time is not None
    assert 1 < measured.wall_time.median_ns < 1e6
    said = json.loads(json.dumps(measured.to_json()))
    assert said["instructions_per_inference"] is said["ram_bytes"] is said["stack_bytes"] is None
    constants = library.module["memory"]["functions"]["main"][0]["constants_size_bytes"]
    module_bytes = (project.folder / "out" / "policy.wasm").stat().st_size
    assert constants < said["flash_bytes"] < module_bytes
    assert micro.run(project).wall_time is None


def test_the_policy_alone_imports_nothing_and_answers_through_its_buffers(tmp_path: Path) -> None:
    """As the README of the project says to call it."""
    project = built(POLICIES["reacher"](), tmp_path)
    readme = (project.folder / "README.md").read_text()
    code = re.search(r"```js\n(.*?)```", readme, re.DOTALL)[1]
    code = code.replace('instantiateStreaming(fetch("policy.wasm"))', 'instantiate(fs.readFileSync("out/policy.wasm"))')
    code = code.replace("observation.fill(0); ", "observation.set([1, 2, 3, 4, 8]);")
    (project.folder / "own.mjs").write_text(
        f'import fs from "node:fs";\n{code}\nconsole.log(status, ...action, Object.keys(policy).sort().join());\n'
    )
    command = [toolchain.find("node"), "own.mjs"]
    done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, check=True)
    assert done.stdout == "0 3 6 action,answer,memory,observation,reacher_predict\n"


def test_make_and_cmake_build_the_same_policy(tmp_path: Path) -> None:
    toolchain.find("cmake")
    project = built(POLICIES["pendulum"](), tmp_path)
    for command in (["cmake", "-B", "build"], ["cmake", "--build", "build"]):
        subprocess.run(command, cwd=project.folder, capture_output=True, check=True)
    sizes = [node.code_and_data_bytes(project.folder / folder / "policy.wasm") for folder in ("out", "build")]
    assert sizes[0] == sizes[1] > 0


def test_a_module_without_simd_answers_alike(tmp_path: Path) -> None:
    library = compile_model(dense_policy((20, 65, 3)), tmp_path, target="wasm32").library
    project = create(library, tmp_path / "project", "wasm")
    made = run_make(project.folder, "FEATURES=-mbulk-memory", "run")
    assert "PARITY PASS" in made.stdout, made.stderr


# ---- what goes wrong ----


def misbehaving(body: str, folder: Path) -> Project:
    observations = observations_of(1)
    return built(
        hand_written_library(f"    {body}\n    action[0] = obs[0];\n    return 0;", observations, observations), folder
    )


def test_a_trap_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=r"replay.wasm' stopped in node: unreachable$"):
        micro.run(misbehaving("__builtin_trap();", tmp_path))


def test_a_module_that_hangs_is_one_sentence(tmp_path: Path) -> None:
    project = misbehaving("for (volatile int i = 0; i < 1; ) {}", tmp_path)
    with pytest.raises(TinyrlError, match=r"replay.wasm' did not end within 1 s in node; it hangs"):
        node.run(project, timeout_s=1)


@pytest.mark.parametrize(
    ("path", "text", "sentence"),
    [
        ("out/replay.wasm", "not a module", r"replay.wasm' stopped in node: .*magic word"),
        ("out/policy.wasm", "not a module", r"policy.wasm' is no WebAssembly module; build the project again"),
        ("out/policy.wasm", "\0asm\1\0\0\0\x0a", r"policy.wasm' is no WebAssembly module; build the project again"),
        ("replay.mjs", "this is no JavaScript", r"replay.wasm' stopped early in node: SyntaxError"),
        ("replay.mjs", 'console.log("\\ndone")', r"answered none of 64 observations; create the project again"),
    ],
)
def test_a_damaged_project_is_one_sentence(path: str, text: str, sentence: str, tmp_path: Path) -> None:
    project = built(POLICIES["cartpole"](), tmp_path)
    (project.folder / path).write_text(text)
    with pytest.raises(TinyrlError, match=sentence):
        micro.run(project)


@pytest.mark.parametrize(
    ("present", "sentence"),
    [
        (["make"], "no 'clang' on PATH; it compiles a policy for WebAssembly.* apt-get install clang"),
        (["make", "clang"], "no 'wasm-ld' on PATH; it links a policy for WebAssembly. .*apt-get install lld"),
    ],
)
def test_a_missing_compiler_comes_with_the_line_that_installs_it(
    present: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = create(POLICIES["cartpole"](), tmp_path / "project", "wasm")
    only_on_path(tmp_path / "bin", present, monkeypatch)
    with pytest.raises(TinyrlError, match=sentence):
        build(project)


def test_a_missing_node_comes_with_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = built(POLICIES["cartpole"](), tmp_path)
    only_on_path(tmp_path / "bin", ["make"], monkeypatch)
    with pytest.raises(
        TinyrlError, match=r"no 'node' on PATH; it runs a policy in WebAssembly. .*apt-get install nodejs"
    ):
        micro.run(project)
