# SPDX-License-Identifier: Apache-2.0
"""Layers that CMSIS-NN computes: bit for bit what the oracle says, on this machine and on every Cortex-M, by a strict
stand-in of its interface and, where CMSIS_NN_PATH is set, by the real library."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cmsis_nn_checkouts import CHECKOUTS, STAND_IN
from merged_policies import gate, idle, merged_policy, pre_activated, residual
from policies import (
    arg_max,
    clipped,
    compile_model,
    dense_policy,
    multi_discrete,
    probabilities,
    probabilities_of,
    squashed,
)
from quantised_models import UINT8, quantised
from test_emit import COMPILERS, WARNINGS, unpack
from test_quantize_int8 import policy, random_weights, rows_for
from tvm.relax import op

from relay_passes import FoldLut, LowerDense, QuantizeInt16
from relay_passes.partition_cmsis_nn import offloads
from tinyrl_tvm import cmsis_nn, toolchain
from tinyrl_tvm.device import host, qemu
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.pipeline import Compiled
from tinyrl_tvm.project import build, create, load
from tinyrl_tvm.targets import BOARDS, Board

PER_TENSOR, PER_CHANNEL = "arm_fully_connected_s8", "arm_fully_connected_per_channel_s8"
OF_INT16 = "arm_fully_connected_s16"
SOFTMAX, SOFTMAX_INT16 = "arm_softmax_s8", "arm_softmax_s16"
MERGES = "arm_elementwise_add_s8", "arm_elementwise_mul_s8"
MERGES_INT16 = "arm_elementwise_add_s16", "arm_elementwise_mul_s16"
JOINED = dense_policy(
    (13, 40, 20, 9), inputs={"joints": (3,), "map": (2, 3), "goal": (4,)}, head=multi_discrete(3, 2, 4)
)

WEIGHTS = random_weights((20, 16, 3))

# Widths that fill no vector of 16 codes, nor four rows, nor two; and every way a layer's codes come about.
MODELS: dict[str, onnx.ModelProto] = {
    "relu": dense_policy((4, 33, 17, 3), head=clipped(-1, 1)),
    "tanh": dense_policy((6, 31, 16, 5), activation="Tanh", head=squashed()),
    "joined": JOINED,
    "qdq": quantised(dense_policy((20, 37, 12, 3), head=arg_max)),
    "qdq_per_channel": quantised(dense_policy((5, 18, 21, 2), head=clipped(-1, 1)), per_channel=True),
    "qdq_tanh": quantised(dense_policy((7, 19, 6, 2), activation="Tanh"), activations=UINT8, per_channel=True),
    "probabilities": dense_policy((5, 18, 21, 9), head=probabilities_of(4, 2, 3), gain=2.0),
    "qdq_probabilities": quantised(dense_policy((6, 17, 4), head=probabilities, gain=2.0)),
    "qdq_one_input": quantised(dense_policy((1, 1, 5, 1))),
    "residual": merged_policy(residual(6, 33, 3), 6, 3, head=clipped(-1, 1)),
    "residual_tanh": merged_policy(residual(6, 18, 3, "Tanh"), 6, 3),
    "gate": merged_policy(gate(9, 35, 2), 9, 2),
    "qdq_residual": quantised(merged_policy(residual(7, 21, 2), 7, 2)),
    "qdq_gate": quantised(merged_policy(gate(5, 19, 2), 5, 2)),
    "int16_residual": merged_policy(residual(6, 17, 3, "Tanh"), 6, 3),
    "int16_gate": merged_policy(gate(9, 35, 2), 9, 2),
    "int16_idle": merged_policy(idle(6, 17, 3), 6, 3),  # a product under a multiplier of 0
    "int16_relu": dense_policy((4, 33, 17, 3), head=clipped(-1, 1)),
    "int16_tanh": dense_policy((6, 31, 16, 5), activation=["Tanh", "Sigmoid"], head=arg_max),
    "int16_probabilities": dense_policy((5, 18, 21, 9), head=probabilities_of(4, 2, 3), gain=2.0),
    "int16_many": dense_policy((530, 18, 6, 2)),  # past 512 inputs CMSIS-NN sums what is left in another loop
}
with_every_model = pytest.mark.parametrize("name", MODELS)
with_every_checkout = pytest.mark.parametrize("checkout", CHECKOUTS)
CORTEX_M = [board for board in BOARDS.values() if board.architecture.name == "cortex-m"]


@functools.cache
def compiled(name: str, target: str = "cortex-m55", offloaded: bool = True) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        precision = "int16" if name.startswith("int16") else "int8"
        return compile_model(
            MODELS[name], Path(folder), target=target, precision=precision, cmsis_nn=offloaded, name=name
        )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMSIS_NN_PATH", str(STAND_IN))
    return STAND_IN


def layers_of(library: ModelLibrary) -> str:
    (text,) = [data.decode() for path, data in library.files.items() if path.endswith("_lib3.c")]
    return text


# ---- answers ----


@with_every_checkout
@with_every_model
def test_this_machine_answers_as_the_oracle(name: str, checkout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMSIS_NN_PATH", str(CHECKOUTS[checkout]))
    result = host.run(compiled(name).library)
    assert result.parity == "PASS"
    assert not result.statuses.any()


@with_every_checkout
@with_every_model
def test_helium_answers_as_the_oracle(
    name: str, checkout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on_board(compiled(name).library, BOARDS["mps3-an547"], checkout, tmp_path, monkeypatch).parity == "PASS"


@with_every_checkout
@pytest.mark.parametrize(
    "name",
    [
        "tanh",
        "qdq_per_channel",
        "qdq",
        "probabilities",
        "int16_tanh",
        "int16_probabilities",
        "qdq_residual",
        "int16_gate",
    ],
)
@pytest.mark.parametrize("board", CORTEX_M, ids=lambda board: board.name)
def test_every_core_answers_as_the_oracle(
    board: Board, name: str, checkout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = on_board(compiled(name, board.target).library, board, checkout, tmp_path, monkeypatch)
    assert result.parity == "PASS"
    assert not result.statuses.any()


def on_board(library: ModelLibrary, board: Board, checkout: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CMSIS_NN_PATH", str(CHECKOUTS[checkout]))
    project = folder / "project"
    if not project.exists():
        create(library, project, "baremetal", {"board": board.name})
    build(load(project))
    return qemu.run(load(project))


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("qdq")])
def test_a_quantised_model_has_the_same_answers_with_our_own_kernels(name: str) -> None:
    own, offloaded = compiled(name, offloaded=False).library, compiled(name).library
    np.testing.assert_array_equal(own.vectors()["expected"], offloaded.vectors()["expected"])
    assert layers_of(offloaded)
    assert not Interface.of(own).cmsis_nn


# ---- what is offloaded ----


def test_every_hidden_layer_is_offloaded_and_the_ends_are_not() -> None:
    for name in MODELS:
        first, *hidden, last = compiled(name).offloads
        assert first.function is None
        assert first.reason == "it reads float observations, CMSIS-NN reads codes"
        if "probabilities" in name:
            assert last.function == (SOFTMAX_INT16 if name.startswith("int16") else SOFTMAX)
        else:
            assert last.function is None
            assert "its int32 sums" in last.reason
        assert all(
            layer.function
            in ((OF_INT16, *MERGES_INT16) if name.startswith("int16") else (PER_TENSOR, PER_CHANNEL, *MERGES))
            for layer in hidden
        )
    assert {layer.function for layer in compiled("qdq").offloads[1:-1]} == {PER_TENSOR}
    assert PER_CHANNEL in {layer.function for layer in compiled("qdq_per_channel").offloads}
    assert all(layer.reason.endswith("; a table in C follows") for layer in compiled("tanh").offloads[1:-1])


def test_a_softmax_is_a_call_for_each_of_its_runs() -> None:
    decided = compiled("probabilities").offloads[-1]
    assert (decided.kernel, decided.function) == ("softmax 9", SOFTMAX)
    assert decided.reason == "it reads codes, a call for each of 3; C makes floats of the codes it gives"
    calls = re.findall(
        r"arm_softmax_s8\(codes(.*?), 1, (\d+), .*, steps(.*)\);", layers_of(compiled("probabilities").library)
    )
    assert calls == [("", "4", ""), (" + 4", "2", " + 4"), (" + 6", "3", " + 6")]
    assert SOFTMAX in Interface.of(compiled("probabilities").library).cmsis_nn


def test_a_softmax_that_is_called_wrongly_shows(tmp_path: Path) -> None:
    """It has no status: the stand-in answers what is no probability."""
    library = compiled("qdq_probabilities").library
    (call,) = re.findall(r"arm_softmax_s8\(codes, 1, 4, (\d+), (\d+), (-\d+), steps\)", layers_of(library))
    multiplier, shift, least = call
    old = f"1, 4, {multiplier}, {shift}, {least}, steps"
    for index, new in enumerate((f"1, 4, {multiplier}, 31, {least}, steps", f"1, 4, {multiplier}, {shift}, 1, steps")):
        assert "PARITY FAIL" in answer(library, tmp_path / str(index), edit=(old, new))


def test_a_softmax_of_int16_has_its_tables_and_a_status() -> None:
    library = compiled("int16_probabilities").library
    decided = compiled("int16_probabilities").offloads[-1]
    assert decided.reason == "it reads codes, a call for each of 3; C makes floats of the codes it gives"
    calls = re.findall(
        r"if \(arm_softmax_s16\(codes(.*?), 1, (\d+), \d+, -?\d+, &tables, steps(.*)\) != ARM", layers_of(library)
    )
    assert calls == [("", "4", ""), (" + 4", "2", " + 4"), (" + 6", "3", " + 6")]
    assert Interface.of(library).layers[-1].parameter_bytes == 2 * 2 * 513
    assert "arm_softmax_s8" not in layers_of(library)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("powers_4, inverses_4}", "powers_4, 0}"),
        ("powers_4, inverses_4}", "inverses_4, powers_4}"),
        (", 1, 4, ", ", 0, 4, "),
        (", &tables, steps)", ", 0, steps)"),
        (", &tables, steps)", " + 20, &tables, steps)"),
        (", &tables, steps)", ", &tables, (int16_t *)codes)"),
    ],
    ids=["no table", "tables exchanged", "no rows", "no tables", "shift", "in place"],
)
def test_a_softmax_of_int16_that_is_called_wrongly_is_a_status(old: str, new: str, tmp_path: Path) -> None:
    said = answer(compiled("int16_probabilities").library, tmp_path, edit=(old, new))
    assert "status 2" in said
    assert "PARITY FAIL" in said


@pytest.mark.usefixtures("stand_in")
def test_a_softmax_that_cmsis_nn_has_no_bits_for_stays_with_us(tmp_path: Path) -> None:
    model = dense_policy((5, 18, 9), head=probabilities)
    made = compile_model(model, tmp_path, precision="int16", cmsis_nn=True)
    *_, layer, last = made.offloads
    assert (layer.function, last.function) == (OF_INT16, None)
    assert last.reason == "of 9 numbers arm_softmax_s16 doubles a sum that it has no bit for"
    assert SOFTMAX_INT16 not in Interface.of(made.library).cmsis_nn
    assert host.run(made.library).parity == "PASS"


def test_without_cmsis_nn_nothing_is_decided() -> None:
    assert compiled("relu", offloaded=False).offloads == ()


@with_every_model
def test_the_library_names_its_layers_and_says_of_each_what_dump_offloads_says(name: str) -> None:
    made = compiled(name)
    layers = Interface.of(made.library).layers
    assert [layer.reason for layer in layers] == [offload.reason for offload in made.offloads]
    assert [layer.place if layer.in_cmsis_nn else None for layer in layers] == [o.function for o in made.offloads]
    memory = made.library.module["memory"]["functions"]
    assert [layer.function for layer in layers] == [f["function_name"] for f in memory["operator_functions"]]
    assert sum(layer.parameter_bytes for layer in layers) == memory["main"][0]["constants_size_bytes"]


@pytest.mark.parametrize(
    ("target", "precision", "place", "reason"),
    [
        ("cortex-m55", "int8", "mve", "no other kernels were asked for"),
        ("host", "int8", "simd", "no other kernels were asked for"),
        ("cortex-m3", "float32", "portable", "the core has no unit for floats, for which the C compiler does as well"),
    ],
)
def test_a_layer_of_ours_names_the_family_of_its_kernels(
    target: str, precision: str, place: str, reason: str, tmp_path: Path
) -> None:
    library = compile_model(MODELS["relu"], tmp_path, target=target, precision=precision).library
    assert {(layer.place, layer.reason) for layer in Interface.of(library).layers} == {(place, reason)}


def test_a_float_policy_is_refused_with_what_would_make_it_int8(tmp_path: Path) -> None:
    sentence = (
        "CMSIS-NN computes int8 and int16 policies, and 'policy.onnx' is a float one; give some observations of a "
    )
    with pytest.raises(TinyrlError, match=re.escape(f"{sentence}rollout with --calibration observations.npz")):
        compile_model(MODELS["relu"], tmp_path, precision="float32", cmsis_nn=True)


def test_a_policy_of_one_layer_calls_nothing(tmp_path: Path) -> None:
    library = compile_model(dense_policy((4, 3)), tmp_path, cmsis_nn=True).library
    assert not Interface.of(library).cmsis_nn
    assert not any(path.endswith("_lib3.c") for path in library.files)
    assert host.run(library).parity == "PASS"


# ---- the contract ----


def answer(library: ModelLibrary, folder: Path, *flags: str, edit: tuple[str, str] | None = None) -> str:
    """What the policy, its layers edited, prints of its test vectors, built with `flags` against the stand-in."""
    project = create(library, folder / "project", "host").folder
    (source,) = project.glob("policy/src/*_lib3.c")
    if edit is not None:
        old, new = edit
        assert old in source.read_text()
        source.write_text(source.read_text().replace(old, new))
    command = ["make", "out/replay", f"CMSIS_NN_PATH={STAND_IN}", f"CFLAGS={' '.join(flags)}"]
    made = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[:3000]
    return subprocess.run([project / "out" / "replay"], capture_output=True, text=True, check=False).stdout


@with_every_model
def test_kernel_sums_are_given_and_right_where_a_build_asks_for_them(name: str, tmp_path: Path) -> None:
    """The stand-in built as Helium's, on this machine."""
    assert "PARITY PASS" in answer(compiled(name).library, tmp_path, "-DARM_MATH_MVEI")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{(void *)(bias), (int32_t)sizeof(bias)}", "{0, 0}"),
        ("{(void *)(bias), (int32_t)sizeof(bias)}", "{(void *)(bias), 4}"),
        (".input_offset = 0", ".input_offset = 1"),
        (".filter_offset = 0", ".filter_offset = 1"),
        (".activation = {-128, 127}", ".activation = {-128, 128}"),
        ("filter = {.n = 20", "filter = {.n = 19"),
        ("output = {.n = 1, .h = 1, .w = 1, .c = 37}", "output = {.n = 1, .h = 1, .w = 1, .c = 36}"),
        ("bias_1, &output, out)", "bias_1, &output, (int8_t *)codes)"),
    ],
    ids=["no sums", "short sums", "wrong sums", "filter offset", "clamp", "depth", "rows", "in place"],
)
def test_a_broken_contract_is_a_status_and_an_action_of_zeros(old: str, new: str, tmp_path: Path) -> None:
    """The stand-in refuses; with the twin above, what it lets pass is right."""
    said = answer(compiled("qdq").library, tmp_path, "-DARM_MATH_MVEI", edit=(old, new))
    assert "status 2" in said
    assert "PARITY FAIL" in said


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("context = {0, 0}", "context = {(void *)bias_1, 8}"),
        (".input_offset = 0", ".input_offset = 1"),
        (".output_offset = 0", ".output_offset = 1"),
        (".activation = {0, 32767}", ".activation = {0, 32768}"),
        ("filter = {.n = 33", "filter = {.n = 32"),
        ("bias_1, &output, out)", "bias_1, &output, (int16_t *)codes)"),
        ("requantization = {1073741824, ", "requantization = {1073741824, 40 + "),
    ],
    ids=["a buffer", "input offset", "output offset", "clamp", "depth", "in place", "shift"],
)
def test_a_broken_contract_of_int16_is_a_status_and_an_action_of_zeros(old: str, new: str, tmp_path: Path) -> None:
    said = answer(compiled("int16_relu").library, tmp_path, "-DARM_MATH_MVEI", edit=(old, new))
    assert "status 2" in said
    assert "PARITY FAIL" in said


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("qdq_residual", ", 20, out", ", 15, out"),  # where a build with DSP instructions would lose the sign
        ("qdq_residual", "(x, y, ", "(x, y, -1 + "),
        ("qdq_residual", "(x, y, ", "(x, y, 999 + "),
        ("qdq_gate", "out, ", "(int8_t *)x, "),
        ("qdq_gate", ", 19) != ARM", ", 0) != ARM"),
        ("int16_residual", "(x, y, 0", "(x, y, 1"),
        ("int16_gate", ", -32768, 32767", ", -32768, 32768"),
    ],
    ids=["left shift", "zero point", "offset", "in place", "size", "offset of int16", "clamp"],
)
def test_a_merge_that_is_called_wrongly_shows(name: str, old: str, new: str, tmp_path: Path) -> None:
    text = layers_of(compiled(name).library)
    merge = next(line for line in text.splitlines() if "arm_elementwise" in line and "(x, y" in line)
    said = answer(compiled(name).library, tmp_path, edit=(merge, merge.replace(old, new, 1)))
    assert "PARITY FAIL" in said
    assert ("status 2" in said) == ("-1 + " not in new)


def test_merges_are_offloaded_and_maps_are_not(tmp_path: Path) -> None:
    functions = {offload.kernel: offload.function for offload in compiled("residual_tanh").offloads}
    assert functions["sum of 18"] == "arm_elementwise_add_s8"
    assert {o.kernel: o.function for o in compiled("int16_gate").offloads}["product of 35"] == "arm_elementwise_mul_s16"
    model = merged_policy(pre_activated(5, 18, 2), 5, 2)
    made = compile_model(model, tmp_path, cmsis_nn=True)
    (reason,) = {offload.reason for offload in made.offloads if offload.kernel == "function of 18"}
    assert reason == "CMSIS-NN has no table of codes"


def test_an_output_with_a_multiplier_of_its_own_stays_with_us() -> None:
    module = LowerDense()(FoldLut()(QuantizeInt16(rows_for(WEIGHTS))(policy(WEIGHTS, op.tanh))))
    reasons = [offload.reason for offload in offloads(module) if offload.kernel == "dense 20 -> 16"]
    assert reasons == ["every output has a multiplier, arm_fully_connected_s16 takes one"]


def test_a_build_without_helium_gives_no_buffer(tmp_path: Path) -> None:
    edit = ("#define KERNEL_SUMS(bias) {0, 0}", "#define KERNEL_SUMS(bias) {(void *)(bias), 4}")
    assert "status 2" in answer(compiled("qdq").library, tmp_path, edit=edit)


# ---- the emitted C ----


@with_every_checkout
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(
    "name", ["tanh", "qdq_per_channel", "int16_tanh", "int16_probabilities", "residual_tanh", "int16_residual"]
)
def test_the_layers_compile_without_a_warning(name: str, compiler: str, checkout: str, tmp_path: Path) -> None:
    (source,) = [path for path in unpack(compiled(name).library, tmp_path) if path.name.endswith("_lib3.c")]
    assert complaints(source, CHECKOUTS[checkout], *COMPILERS[compiler], *WARNINGS) == ""


def complaints(source: Path, checkout: Path, *command: str) -> str:
    include = ("-isystem", checkout / "Include", "-I", source.parents[1] / "include")
    done = subprocess.run(
        [*command, *include, "-c", source, "-o", source.with_suffix(".o")], capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) == bool(done.stderr)
    return done.stderr


@pytest.mark.parametrize(
    ("name", "flag", "sentence"),
    [
        ("qdq", "-DSTAND_IN_RELEASE=5", "this CMSIS-NN is older than 6.0.0; the policy needs 6.0.0 or newer"),
        ("qdq_per_channel", "-DSTAND_IN_RELEASE=5", "older than 6.0.0; the policy needs 7.0.0 or newer"),
        (
            "qdq_per_channel",
            "-DSTAND_IN_RELEASE=6",
            "older than 7.0.0, which brought arm_fully_connected_per_channel_s8",
        ),
        ("qdq", "-DCMSIS_NN_USE_SINGLE_ROUNDING", "build CMSIS-NN and the policy without CMSIS_NN_USE_SINGLE_ROUNDING"),
    ],
)
def test_a_library_that_cannot_serve_is_an_error_of_the_preprocessor(
    name: str, flag: str, sentence: str, tmp_path: Path
) -> None:
    (source,) = [path for path in unpack(compiled(name).library, tmp_path) if path.name.endswith("_lib3.c")]
    assert sentence in complaints(source, STAND_IN, "gcc", flag)
    if name == "qdq" and "SINGLE" not in flag:
        assert complaints(source, STAND_IN, "gcc", "-DSTAND_IN_RELEASE=6") == ""


def test_headers_that_are_not_found_say_where_to_put_them(tmp_path: Path) -> None:
    (source,) = [path for path in unpack(compiled("qdq").library, tmp_path) if path.name.endswith("_lib3.c")]
    assert "put the Include folder of CMSIS-NN 6.0.0 or newer on the include path" in complaints(
        source, tmp_path, "gcc"
    )


def test_the_parameters_are_constants_that_can_be_moved(tmp_path: Path) -> None:
    library = compiled("qdq_per_channel").library
    arrays = re.findall(r"^(.*)\b(\w+)\[\d+\] ALIGNED", layers_of(library), re.MULTILINE)
    assert [name for _, name in arrays] == [
        f"{p}_{n}" for n in (1, 2) for p in ("weight", "bias", "multiplier", "shift")
    ]
    assert all(prefix.startswith("TVMGEN_QDQ_PER_CHANNEL_PARAMETERS static const") for prefix, _ in arrays)


# ---- projects ----


def refusal(folder: Path) -> str:
    with pytest.raises(TinyrlError) as raised:
        build(load(folder))
    return str(raised.value)


@pytest.mark.parametrize("platform", ["host", "baremetal"])
def test_a_build_says_what_it_misses_of_cmsis_nn(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = create(compiled("qdq").library, tmp_path / "project", platform).folder
    monkeypatch.delenv("CMSIS_NN_PATH", raising=False)
    assert refusal(folder) == (
        "the build failed: the policy calls CMSIS-NN: set CMSIS_NN_PATH to a checkout of it, 6.0.0 or newer"
    )
    checkout = tmp_path / "checkout"
    shutil.copytree(STAND_IN, checkout)
    missing = cmsis_nn.FUNCTIONS[PER_TENSOR].sources[1]
    (checkout / missing).unlink()
    monkeypatch.setenv("CMSIS_NN_PATH", str(checkout))
    assert f"no {missing} in CMSIS_NN_PATH={checkout}" in refusal(folder)
    assert subprocess.run(["make", "clean"], cwd=folder, env={"PATH": "/usr/bin:/bin"}, check=False).returncode == 0


@pytest.mark.parametrize("platform", ["host", "baremetal"])
def test_another_checkout_is_compiled_anew_and_the_same_is_not(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = create(compiled("qdq").library, tmp_path / "project", platform).folder
    checkout = tmp_path / "checkout"
    shutil.copytree(STAND_IN, checkout)
    objects: list[list[int]] = []
    for path in (STAND_IN, STAND_IN, checkout):
        monkeypatch.setenv("CMSIS_NN_PATH", str(path))
        build(load(folder))
        made = [*folder.glob("out/cmsis_nn/**/*.o"), *folder.glob("out/policy/src/*_lib3.c.o")]
        assert len(made) == 3
        objects.append([item.stat().st_mtime_ns for item in made])
    first, same, other = objects
    assert first == same
    assert all(late > early for early, late in zip(same, other, strict=True))


@with_every_checkout
@pytest.mark.parametrize("name", ["relu", "qdq_per_channel"])
def test_a_compiler_of_its_own_makes_the_same_answers_and_is_another_library(
    name: str, checkout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for command in (None, f"{toolchain.find('clang')} --target=arm-none-eabi --sysroot=/usr/lib/arm-none-eabi"):
        if command:
            monkeypatch.setenv("CMSIS_NN_CC", command)
        result = on_board(compiled(name).library, BOARDS["mps3-an547"], checkout, tmp_path, monkeypatch)
        assert result.parity == "PASS"
        counts.append(result.instructions_per_inference)
    assert len(set(counts)) == 2


def test_a_platform_that_cannot_build_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TinyrlError, match="the library calls CMSIS-NN, which 'wasm' does not build; have: host, baremetal"
    ):
        create(compiled("qdq").library, tmp_path / "project", "wasm")


def test_cmake_builds_what_make_builds(tmp_path: Path, stand_in: Path) -> None:
    for platform, product in (("host", "replay"), ("baremetal", "firmware.elf")):
        folder = create(compiled("qdq_per_channel").library, tmp_path / platform, platform).folder
        for command in (["cmake", "-B", "build"], ["cmake", "--build", "build"]):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:2000]
        assert (folder / "build" / product).is_file()
    said = subprocess.run([tmp_path / "host" / "build" / "replay"], capture_output=True, text=True, check=False).stdout
    assert "PARITY PASS" in said


def test_a_project_without_cmsis_nn_has_nothing_of_it(tmp_path: Path) -> None:
    folder = create(compiled("qdq", offloaded=False).library, tmp_path / "project", "baremetal").folder
    assert not any(
        "cmsis" in path.read_text(errors="ignore").lower() for path in folder.rglob("*.[chtm]*") if path.is_file()
    )


def test_functions_nobody_knows_are_no_interface(tmp_path: Path) -> None:
    library = compiled("qdq").library
    metadata = library.files["metadata.json"].replace(b"arm_fully_connected_s8", b"system")
    with pytest.raises(TinyrlError, match="does not describe a policy"):
        Interface.of(ModelLibrary({**library.files, "metadata.json": metadata}))
