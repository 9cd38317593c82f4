# SPDX-License-Identifier: Apache-2.0
"""compile_policy: what it chooses when not told, what it says of what it did, and what it refuses before it begins."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from policies import (
    Graph,
    arg_max,
    compile_model,
    dense_policy,
    greater,
    multi_discrete,
    observations_for,
    save,
    squashed,
)

from relay_passes.report import Change
from tinyrl_tvm.device import host
from tinyrl_tvm.errors import TinyrlError, UnsupportedOp
from tinyrl_tvm.interface import Interface, Vectors
from tinyrl_tvm.memory import RESOURCES, Budget, Contract
from tinyrl_tvm.pipeline import Compiled, compile_policy, module_identifier
from tinyrl_tvm.targets import TARGETS

MODEL = dense_policy((6, 16, 12, 3), activation="Tanh")


def compiled(folder: Path, model: onnx.ModelProto = MODEL, **options: Any) -> Compiled:
    return compile_policy(save(model, folder), target=options.pop("target", "cortex-m55"), **options)


def rows_in(folder: Path, model: onnx.ModelProto = MODEL, **arrays: np.ndarray) -> Path:
    path = folder / "rows.npz"
    np.savez(path, **(arrays or {"calibration": observations_for(model)}))
    return path


def error(folder: Path, model: onnx.ModelProto = MODEL, kind: type[TinyrlError] = TinyrlError, **options: Any) -> str:
    """The sentence of a compile that is refused, which writes nothing."""
    path = save(model, folder)
    before = sorted(folder.iterdir())
    with pytest.raises(kind) as raised:
        compile_policy(path, **{"target": "cortex-m55", **options})
    assert sorted(folder.iterdir()) == before
    return str(raised.value)


# ---- precision ----


def test_precision_is_int8_with_calibration_else_float32(tmp_path: Path) -> None:
    assert compiled(tmp_path).precision == "float32"
    assert compiled(tmp_path, calibration=rows_in(tmp_path)).precision == "int8"
    asked = compiled(tmp_path, calibration=rows_in(tmp_path), precision="float32")
    assert asked.precision == asked.library.interface["precision"] == "float32"


def test_int8_without_calibration_says_what_to_give(tmp_path: Path) -> None:
    assert error(tmp_path, precision="int8") == (
        "int8 needs the ranges of observations; give some of a rollout with --calibration observations.npz"
    )


def test_an_unknown_precision_or_target_is_answered_with_a_guess(tmp_path: Path) -> None:
    assert error(tmp_path, precision="int4") == "no precision 'int4'; have: float32, int16, int8. Did you mean 'int8'?"
    assert error(tmp_path, target="cortex-m5") == (
        f"no target 'cortex-m5'; have: {', '.join(sorted(TARGETS))}. Did you mean 'cortex-m55'?"
    )


def test_what_is_wrong_with_the_options_is_said_before_the_file_is_looked_for(tmp_path: Path) -> None:
    missing = tmp_path / "missing.onnx"
    with pytest.raises(TinyrlError, match="no target"):
        compile_policy(missing, target="cortex-m5")
    with pytest.raises(TinyrlError) as raised:
        compile_policy(missing, target="host")
    assert str(raised.value) == f"no policy at '{missing}'; give an .onnx file"


def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "policy.zip"
    path.write_bytes(b"PK")
    with pytest.raises(TinyrlError) as raised:
        compile_policy(path, target="host")
    assert str(raised.value) == "cannot read 'policy.zip' as a policy; have: .onnx"


# ---- budgets ----


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_a_budget_one_byte_short_is_refused_and_one_that_can_be_met_is_not(precision: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"target": "cortex-m55", "precision": precision, "calibration": rows_in(tmp_path)}
    contract = Contract.of(compiled(tmp_path, **options).library)
    assert contract is not None
    flash, ram, stack = (contract.predicted(resource).least_bytes for resource in RESOURCES)
    met = compiled(tmp_path, **options, budget=Budget(flash, ram, stack))
    assert Contract.of(met.library) == replace(contract, budget=Budget(flash, ram, stack))
    assert sum("'micro build' measures and decides" in note for note in met.notes) == 2  # RAM is exact
    smaller = "a smaller network"
    advice = f"try {'--precision int8 with --calibration, or ' * (precision == 'float32')}{smaller}"
    part, number = r"\w+( parameters| code)? \([\d,]+ B\)", r"[0-9,]+"
    for budget, sentence in {
        Budget(
            flash_bytes=flash - 1
        ): f"at least {flash:,} B of flash, --flash gives {flash - 1:,} B; the largest parts "
        f"are {part}, {part} and {part}; {advice}",
        Budget(ram_bytes=ram - 1): f"{ram:,} B of RAM, --ram gives {ram - 1:,} B; the largest parts are "
        rf"workspace \({ram:,} B\); {advice}",
        Budget(
            stack_bytes=stack - 1
        ): f"at least {stack:,} B of stack, --stack gives {stack - 1:,} B; the largest parts "
        rf"are \w+( frame)? \({number} B\) and \w+( frame)? \({number} B\); {advice}",
    }.items():
        assert re.fullmatch(f"the policy needs {sentence}", error(tmp_path, **options, budget=budget))


def test_the_sizes_in_the_metadata_are_those_of_the_code(tmp_path: Path) -> None:
    library = compiled(tmp_path, calibration=rows_in(tmp_path)).library
    (main,) = library.module["memory"]["functions"]["main"]
    header = library.files["codegen/host/include/tvmgen_policy.h"].decode()
    assert f"#define TVMGEN_POLICY_WORKSPACE_SIZE {main['workspace_size_bytes']}\n" in header
    shell = library.files["codegen/host/src/policy_lib0.c"].decode()
    sizes = {"int8_t": 1, "int16_t": 2, "int32_t": 4, "float": 4}
    arrays = re.findall(r"static const TINYRL_FLASH (\w+) \w+\[(\d+)\]", shell)
    assert sum(sizes[ctype] * int(length) for ctype, length in arrays) == main["constants_size_bytes"]


def test_the_parameters_file_is_what_tvm_reads(tmp_path: Path) -> None:
    import tvm

    library = compiled(tmp_path, calibration=rows_in(tmp_path)).library
    arrays = tvm.runtime.load_param_dict(library.files["parameters/policy.params"])
    (main,) = library.module["memory"]["functions"]["main"]
    assert sum(array.numpy().nbytes for array in arrays.values()) == main["constants_size_bytes"]
    assert any(name.endswith(".weight") for name in arrays)


# ---- what it says ----


def test_the_log_says_where_the_vectors_come_from(tmp_path: Path) -> None:
    rows = observations_for(MODEL)
    said = [
        compiled(tmp_path).notes,
        compiled(tmp_path, calibration=rows_in(tmp_path, calibration=rows)).notes,
        compiled(tmp_path, calibration=rows_in(tmp_path, calibration=rows, observations=rows[:7])).notes,
    ]
    assert [[note for note in notes if note.startswith("test vectors")] for notes in said] == [
        ["test vectors: 64 rows, random numbers, seed 0"],
        ["test vectors: 64 rows, calibration rows, seed 0"],
        ["test vectors: 7 rows, 'observations' in 'rows.npz'"],
    ]


def test_the_log_says_which_vectors_float32_could_not_tell(tmp_path: Path) -> None:
    model = dense_policy((3, 2), head=arg_max, weights=[(np.array([[1.0, 0, 0], [-1, 0, 0]]), np.zeros(2))])
    rows = observations_for(model, 10)
    rows[4] = [-1e-40, 0, 0]  # the second action's, but the first's where it counts as zero
    notes = compiled(tmp_path, model, precision="float32", calibration=rows_in(tmp_path, calibration=rows)).notes
    assert notes == (
        "test vectors: 9 rows, calibration rows, seed 0",
        "1 test vectors left out: a number on the way is past 3.4e38, or below 1.2e-38",
    )


def test_every_pass_accounts_for_itself_in_order(tmp_path: Path) -> None:
    model = dense_policy((6, 16, 3), head=arg_max, critic=True)
    done = compiled(tmp_path, model, calibration=rows_in(tmp_path, model))
    assert all(isinstance(change, Change) for change in done.changes)
    assert [change.pass_name for change in done.changes] == [
        *("PruneCritic", "CanonicalizeClip", "SimplifyActionHead", "FuseDense", "AnchorMerges"),
        *("QuantizeInt8", "FoldLut", "LowerDense"),
    ]
    assert "output" in str(done.changes[0])
    assert sum(change.saved_bytes for change in done.changes) > 0


def test_progress_names_each_stage_once(tmp_path: Path) -> None:
    for options, stages in (
        ({}, ["import", "simplify", "schedule", "print"]),
        ({"calibration": rows_in(tmp_path)}, ["import", "simplify", "quantise", "schedule", "print"]),
    ):
        seen: list[str] = []
        compiled(tmp_path, **options, progress=seen.append)
        assert seen == stages


def test_every_stage_can_be_read(tmp_path: Path) -> None:
    stages = compiled(tmp_path, calibration=rows_in(tmp_path)).stages
    assert list(stages) == ["relax", "tir", "c", "asm"]
    titles = re.findall("^# ---- (.*)$", stages["relax"], re.MULTILINE)
    assert titles == ["imported", "simplified", "to compile", "lowered"]
    assert "tinyrl.dense_codes" in stages["relax"]
    assert stages["tir"].count("# ---- mve") == stages["tir"].count("# ---- portable") == 4
    assert "int policy_predict(" in stages["c"]
    assert "vmlava" in stages["asm"]
    for target, family in (("portable", "portable"), ("host", "simd")):
        printed = compiled(tmp_path, calibration=rows_in(tmp_path), target=target).stages
        assert printed["asm"] == ""
        assert set(re.findall("^# ---- (.*)$", printed["tir"], re.MULTILINE)) == {family}


def test_a_library_knows_its_policy_and_not_its_folder(tmp_path: Path) -> None:
    library = compiled(tmp_path).library
    assert library.interface["source"] == "policy.onnx"
    assert library.interface["sha256"] == hashlib.sha256((tmp_path / "policy.onnx").read_bytes()).hexdigest()
    assert not any(str(tmp_path).encode() in data for data in library.files.values())


# ---- names ----


@pytest.mark.parametrize(
    ("name", "identifier"),
    [("cartpole", "cartpole"), ("cart-pole v1", "cart_pole_v1"), ("2048", "tensor_2048"), ("float", "tensor_float")],
)
def test_a_module_has_a_c_name(name: str, identifier: str, tmp_path: Path) -> None:
    assert module_identifier(name) == identifier
    library = compile_model(MODEL, tmp_path, name=name).library
    assert library.name == identifier
    assert f"codegen/host/include/tvmgen_{identifier}.h" in library.files


def test_a_module_name_given_wins_over_the_files(tmp_path: Path) -> None:
    assert compiled(tmp_path, module_name="my robot").library.name == "my_robot"


# ---- interface ----


@pytest.mark.parametrize(
    ("head", "dtype", "n_actions"),
    [(squashed(), "float32", 9), (arg_max, "int32", 1), (multi_discrete(3, 4, 2), "int32", 3), (greater, "int32", 9)],
    ids=["continuous", "discrete", "multi-discrete", "multi-binary"],
)
@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_a_head_makes_its_kind_of_action(head: Any, dtype: str, n_actions: int, precision: str, tmp_path: Path) -> None:
    library = compile_model(dense_policy((6, 16, 9), head=head), tmp_path, precision=precision, target="host").library
    interface = Interface.of(library)
    assert (interface.action_dtype, interface.n_actions) == (dtype, n_actions)
    vectors = library.vectors()
    assert vectors["expected"].shape == vectors["float_action"].shape == (len(vectors["observations"]), n_actions)
    assert Vectors.of(library).answers.dtype == dtype
    assert host.run(library).parity == "PASS"


def test_an_input_that_only_the_critic_reads_is_not_asked_for(tmp_path: Path) -> None:
    """Calibration rows are then those of the inputs that are left."""
    weight = {name: np.random.default_rng(0).normal(size=(n, 1)).astype(np.float32) for name, n in (("a", 3), ("b", 2))}
    nodes = [
        helper.make_node("MatMul", ["obs", "wa"], ["action"]),
        helper.make_node("Concat", ["obs", "privileged"], ["all"], axis=1),
        helper.make_node("MatMul", ["all", "wb"], ["value"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(weight["a"], "wa"),
        onnx.numpy_helper.from_array(np.ones((5, 1), np.float32), "wb"),
    ]
    shapes = {"privileged": 2, "obs": 3}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in shapes.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("action", "value")]
    model = helper.make_model(
        helper.make_graph(nodes, "policy", inputs, outputs, constants),
        ir_version=9, opset_imports=[helper.make_opsetid("", 17)],
    )  # fmt: skip
    rows = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    done = compiled(tmp_path, model, calibration=rows_in(tmp_path, calibration=rows), target="host", output="action")
    assert [tensor["name"] for tensor in done.library.interface["inputs"]] == ["obs"]
    vectors = done.library.vectors()
    np.testing.assert_allclose(vectors["float_action"], vectors["observations"] @ weight["a"], rtol=1e-5, atol=1e-6)


# ---- what cannot be compiled ----


def test_what_no_kernel_does_is_one_sentence_with_the_files_name(tmp_path: Path) -> None:
    assert error(tmp_path, dense_policy((4, 8, 2), activation="Gelu"), UnsupportedOp) == (
        "'policy.onnx': the activation nn.gelu has no float32 kernel; have: none, nn.relu, tanh, sigmoid. "
        "int8 compiles any elementwise activation: try --precision int8 with --calibration"
    )
    model = dense_policy((4, 8, 2), activation="Gelu")
    assert compiled(tmp_path, model, calibration=rows_in(tmp_path, model)).precision == "int8"  # as it advises


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_the_sign_of_a_function_is_refused_as_what_it_is(precision: str, tmp_path: Path) -> None:
    def head(graph: Graph, x: str, n: int) -> tuple[str, int, list[int]]:
        return greater(graph, graph.add("Relu", x), n)

    model = dense_policy((4, 8, 3), head=head)
    options = {"calibration": rows_in(tmp_path, model)} if precision == "int8" else {}
    assert error(tmp_path, model, UnsupportedOp, **options) == (
        "'policy.onnx': 'nn.relu -> greater' of the last layer's output cannot be compiled; "
        "of decisions by sign there is: > 0"
    )


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_a_graph_of_other_merges_is_refused_in_both_precisions(precision: str, tmp_path: Path) -> None:
    """The quotient of two layers' outputs."""
    model = dense_policy((4, 4, 4, 2))
    add = helper.make_node("Div", ["t1", "t3"], ["sum"], name="/ratio/Div")
    nodes = list(model.graph.node)
    position = next(i for i, node in enumerate(nodes) if node.output[0] == "t3") + 1
    nodes[position].input[0] = "sum"
    nodes.insert(position, add)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    said = error(tmp_path, model, UnsupportedOp, precision=precision, calibration=rows_in(tmp_path, model))
    assert said.startswith("'policy.onnx': ")
    assert said.endswith(
        "'divide' of two layers' outputs cannot be compiled; of tensors of one shape there are: add, subtract, multiply"
    )
    assert "\n" not in said


def test_slices_in_another_order_are_refused_not_swapped(tmp_path: Path) -> None:
    model = dense_policy((9, 8, 9), head=multi_discrete(3, 4, 2))
    (concat,) = (node for node in model.graph.node if node.op_type == "Concat")
    concat.input[:] = list(concat.input)[::-1]
    for precision in ("int8", "float32"):
        said = error(tmp_path, model, UnsupportedOp, precision=precision, calibration=rows_in(tmp_path, model))
        assert said == "'policy.onnx': arg max of slices of 9 outputs; every output must take part, once and in order"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("esp32", "portable"),
        ("ESP32-C3", "rv32imc"),
        ("llvm", "host"),
        ("cortex-m0+", "cortex-m0"),
        ("rp2350", "cortex-m33"),
    ],
)
def test_a_chip_is_told_its_target(given: str, meant: str, tmp_path: Path) -> None:
    said = error(tmp_path, target=given)
    assert said == f"no target '{given}'; compile for '{meant}', which runs there"


def test_calibration_that_never_moves_is_doubted(tmp_path: Path) -> None:
    rows = tmp_path / "rows.npz"
    for value, doubted in ((np.ones((50, 6), np.float32), True), (np.eye(6, dtype=np.float32), False)):
        np.savez(rows, calibration=value)
        notes = compiled(tmp_path, dense_policy((6, 8, 2)), calibration=rows).notes
        assert any("calibration rows are the same: the ranges are guesses" in note for note in notes) == doubted
