# SPDX-License-Identifier: Apache-2.0
"""Policies with skip connections and gates: what the graph is read as, what each kernel computes, and that a policy acts as
the float one does, on every core."""

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from merged_policies import (
    Weights,
    branches,
    difference,
    gate,
    merged_policy,
    obs_skip,
    pre_activated,
    product,
    residual,
)
from policies import (
    SANITIZERS,
    activate,
    arg_max,
    clipped,
    compile_model,
    observations_for,
    probabilities,
    reference_answers,
    replay,
    squashed,
)
from quantised_models import UINT8, quantised
from tvm import relax
from tvm.relax import op

from relay_passes import AnchorMerges, FuseDense, fixedpoint
from relay_passes.network import Layer, Map, Merge, UnsupportedGraph, read_network
from relay_passes.write_int8 import LARGEST_FACTORS, merge_factors
from schedules import place
from schedules.elementwise import AddCodes, Elementwise, MapCodes, MultiplyCodes
from tinyrl_tvm.device import host, qemu
from tinyrl_tvm.emit.program import Tensor, arrange
from tinyrl_tvm.errors import UnsupportedOp
from tinyrl_tvm.pipeline import Compiled
from tinyrl_tvm.project import build, create
from tinyrl_tvm.targets import BOARDS, Board

# Widths that fill vectors of four and of sixteen, and that do not.
MODELS: dict[str, onnx.ModelProto] = {
    "residual": merged_policy(residual(6, 32, 3), 6, 3, head=clipped(-1, 1)),
    "residual_tanh": merged_policy(residual(6, 17, 3, "Tanh"), 6, 3, head=arg_max),
    "pre_activated": merged_policy(pre_activated(12, 31, 2), 12, 2, head=squashed()),
    "difference": merged_policy(difference(5, 18, 4), 5, 4, head=probabilities, gain=1.5),
    "gate": merged_policy(gate(9, 33, 2), 9, 2),
    "obs_skip": merged_policy(obs_skip(6, 20), 6, 6),
    "product": merged_policy(product(4, 3), 4, 3, head=arg_max),
    "branches": merged_policy(branches(7, 21, 3), 7, 3),
}
PRECISIONS = ("int8", "int16", "float32")


# ---- what a graph is read as ----


def graph_of(build_body: Any, n_obs: int = 4) -> tvm.IRModule:
    """`main`, of what `build_body(emit, obs)` gives."""
    builder = relax.BlockBuilder()
    obs = relax.Var("obs", relax.TensorType((1, n_obs), "float32"))
    with builder.function("main", [obs]):
        with builder.dataflow():
            output = builder.emit_output(build_body(builder.emit, obs))
        builder.emit_func_output(output)
    return builder.get()


def dense(emit: Any, x: relax.Expr, n_in: int = 4, n_out: int = 4) -> relax.Expr:
    weight = np.random.default_rng(n_in).normal(size=(n_in, n_out)).astype(np.float32)
    return emit(op.add(emit(op.matmul(x, relax.const(weight))), relax.const(np.ones(n_out, np.float32))))


def test_a_residual_is_a_merge_of_two_layers() -> None:
    def body(emit: Any, obs: relax.Expr) -> relax.Expr:
        h = emit(op.nn.relu(dense(emit, obs)))
        h = emit(op.tanh(emit(op.add(dense(emit, h), h))))
        return op.add(emit(op.matmul(h, relax.const(np.eye(4, dtype=np.float32)))), relax.const(np.ones(4, np.float32)))

    first, second, merge, last = read_network(graph_of(body)).nodes
    assert isinstance(first, Layer)
    assert isinstance(second, Layer)
    assert isinstance(merge, Merge)
    assert isinstance(last, Layer)
    assert first.sources == (None,)
    assert first.function.operators == ("nn.relu",)
    assert second.function.operators == ()
    assert (merge.operator, merge.function.operators) == ("add", ("tanh",))
    assert [source.same_as(node.function.result) for source, node in zip(merge.sources, (second, first), strict=True)]
    assert last.source.same_as(merge.function.result)


def test_what_is_read_before_and_behind_its_function_is_a_layer_and_a_map() -> None:
    def body(emit: Any, obs: relax.Expr) -> relax.Expr:
        h = dense(emit, obs)
        y = dense(emit, emit(op.tanh(emit(op.nn.relu(h)))))
        return op.add(dense(emit, emit(op.multiply(h, y))), relax.const(np.zeros((1, 4), np.float32)))

    first, mapped, second, merge, _ = read_network(graph_of(body)).nodes
    assert isinstance(mapped, Map)
    assert first.function.operators == ()
    assert mapped.function.operators == ("nn.relu", "tanh")
    assert second.sources[0].same_as(mapped.function.result)
    assert merge.sources[0].same_as(first.function.result)


def test_what_all_readers_share_belongs_to_the_layer() -> None:
    def body(emit: Any, obs: relax.Expr) -> relax.Expr:
        h = emit(op.nn.relu(dense(emit, obs)))
        return dense(emit, emit(op.add(dense(emit, emit(op.tanh(h))), h)))

    first, mapped, *_ = read_network(FuseDense()(graph_of(lambda emit, obs: emit(body(emit, obs))))).nodes
    assert first.function.operators == ("nn.relu",)
    assert mapped.function.operators == ("tanh",)


def test_a_tensor_with_itself_is_a_function() -> None:
    """x * sigmoid(x), however many operators that takes."""

    def body(emit: Any, obs: relax.Expr) -> relax.Expr:
        h = dense(emit, obs)
        h = emit(op.multiply(h, emit(op.sigmoid(h))))
        return op.add(emit(op.matmul(h, relax.const(np.eye(4, dtype=np.float32)))), relax.const(np.ones(4, np.float32)))

    first, _ = read_network(graph_of(body)).nodes
    assert first.function.operators == ("sigmoid", "multiply")


def test_observations_and_the_end_get_a_layer_of_ones() -> None:
    def body(emit: Any, obs: relax.Expr) -> relax.Expr:
        return op.add(emit(op.tanh(dense(emit, obs))), obs)

    module = graph_of(body)
    with pytest.raises(UnsupportedGraph, match="run AnchorMerges first"):
        read_network(module)
    anchored = AnchorMerges()(module)
    first, ones, merge, last = read_network(anchored).nodes
    assert {type(node) for node in (first, ones, last)} == {Layer}
    assert isinstance(merge, Merge)
    for layer in (ones, last):
        np.testing.assert_array_equal(layer.weight, np.eye(4))
        np.testing.assert_array_equal(layer.bias, np.zeros(4))
    chain = graph_of(lambda emit, obs: emit(op.tanh(dense(emit, obs))))
    tvm.ir.assert_structural_equal(AnchorMerges()(chain), chain)


def test_observations_that_are_merged_twice_get_one_layer_of_ones() -> None:
    def body(emit: Any, obs: relax.Expr) -> relax.Expr:
        y = dense(emit, obs)
        return dense(emit, emit(op.multiply(emit(op.add(y, obs)), obs)))

    network = read_network(AnchorMerges()(graph_of(lambda emit, obs: emit(body(emit, obs)))))
    assert [type(node).__name__ for node in network.nodes] == ["Layer", "Layer", "Merge", "Merge", "Layer"]


def test_what_scales_merged_observations_is_part_of_the_ones() -> None:
    """In whatever order a graph has its branches: here what is no layer comes first."""

    def body(emit: Any, obs: relax.Expr) -> relax.Expr:
        scaled = emit(op.multiply(obs, relax.const(np.arange(1, 5, dtype=np.float32).reshape(1, 4))))
        squashed = emit(op.tanh(emit(op.subtract(scaled, relax.const(np.float32(2.0))))))
        y = dense(emit, obs)
        return dense(emit, emit(op.multiply(emit(op.add(squashed, y)), obs)))

    graph = graph_of(lambda emit, obs: emit(body(emit, obs)))
    scaling, ones, layer, *_ = sorted(
        (node for node in read_network(AnchorMerges()(graph)).nodes if node.sources == (None,)),
        key=lambda node: (node.function.operators != ("tanh",), not np.array_equal(node.weight, np.eye(4))),
    )
    np.testing.assert_array_equal(scaling.weight, np.diag([1, 2, 3, 4]))
    np.testing.assert_array_equal(scaling.bias, np.full(4, -2))
    assert scaling.function.operators == ("tanh",)
    np.testing.assert_array_equal(ones.weight, np.eye(4))
    assert layer.function.operators == ()


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (
            op.divide,
            "'divide' of two layers' outputs cannot be compiled; of tensors of one shape there are: add, subtract",
        ),
        (op.maximum, "'maximum' of two layers' outputs cannot be compiled"),
        (
            lambda x, y: op.concat([x, y], axis=1),
            "'concat' after a dense layer cannot be compiled; policies are compiled as",
        ),
    ],
)
def test_other_ways_to_join_layers_are_refused_by_name(merge: Any, message: str) -> None:
    def body(emit: Any, obs: relax.Expr) -> relax.Expr:
        h = emit(merge(dense(emit, obs), emit(op.tanh(dense(emit, obs)))))
        return emit(
            op.add(
                emit(op.matmul(h, relax.const(np.ones((h.ty.shape[1].value, 2), np.float32)))),
                relax.const(np.ones(2, np.float32)),
            )
        )

    with pytest.raises(UnsupportedGraph, match=message):
        read_network(graph_of(body))


def test_tensors_of_two_shapes_are_no_merge() -> None:
    """An attention: one number a row scales the others."""

    def body(emit: Any, obs: relax.Expr) -> relax.Expr:
        h = emit(op.multiply(dense(emit, obs), dense(emit, obs, 4, 1)))
        return emit(
            op.add(emit(op.matmul(h, relax.const(np.eye(4, dtype=np.float32)))), relax.const(np.ones(4, np.float32)))
        )

    with pytest.raises(UnsupportedGraph, match="of tensors of one shape there are"):
        read_network(graph_of(body))


def test_a_merge_of_what_is_no_function_of_observations_is_refused() -> None:
    def body(emit: Any, obs: relax.Expr) -> relax.Expr:
        turned = emit(op.take(obs, relax.const(np.array([1, 2, 3, 0])), axis=1))
        y = dense(emit, obs)
        return dense(emit, emit(op.add(turned, y)))

    with pytest.raises(UnsupportedGraph, match=r"'lv.*' reads the observation in another way than 'lv.*' does"):
        read_network(graph_of(lambda emit, obs: emit(body(emit, obs))))


def test_a_second_way_to_read_the_observation_is_refused() -> None:
    def body(emit: Any, obs: relax.Expr) -> relax.Expr:
        scaled = emit(op.multiply(obs, relax.const(np.arange(1, 5, dtype=np.float32).reshape(1, 4))))
        raised = emit(op.add(obs, relax.const(np.arange(1, 5, dtype=np.float32).reshape(1, 4))))
        h = emit(op.add(dense(emit, scaled), emit(op.tanh(dense(emit, raised)))))
        return emit(
            op.add(emit(op.matmul(h, relax.const(np.eye(4, dtype=np.float32)))), relax.const(np.ones(4, np.float32)))
        )

    with pytest.raises(UnsupportedGraph, match="reads the observation in another way than"):
        read_network(graph_of(body))


# ---- the arithmetic of a sum ----


@given(
    st.floats(2**-12, 16), st.floats(2**-12, 16),
    st.integers(-128, 127), st.integers(-128, 127), st.integers(-128, 127), st.integers(-128, 127), st.booleans(),
)  # fmt: skip
def test_a_sum_of_codes_is_what_cmsis_nn_makes_in_three_steps(
    ratio_x: float, ratio_y: float, x: int, y: int, zero_x: int, zero_y: int, subtracted: bool
) -> None:
    (first, second), shift = merge_factors(ratio_x, ratio_y)
    assert first % 2 == second % 2 == 0
    assert 1 <= shift <= 16
    assert first + second <= LARGEST_FACTORS
    second = -second if subtracted else second
    zeros = zero_x, zero_y
    ours = fixedpoint.add_codes(np.array([x]), np.array([y]), zeros, (first, second), shift)
    parts = [
        fixedpoint.requantize(np.array([(code - zero) << 20]), factor << 11, 0).astype(np.int64)
        for code, zero, factor in ((x, zero_x, first), (y, zero_y, second))
    ]
    assert ours == fixedpoint.requantize(sum(parts), 1 << 30, 1 - shift)
    exact = (x - zero_x) * ratio_x + (y - zero_y) * ratio_y * (-1 if subtracted else 1)
    assert abs(float(ours[0]) - exact) <= 0.5 + 2 * 255 / 2**shift


# ---- where tensors lie ----


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 4)), min_size=1, max_size=12))
def test_no_tensor_lies_on_another_that_is_in_use(drawn: list[tuple[int, int]]) -> None:
    tensors = [Tensor(n_bytes, index - 1, index - 1 + used) for index, (n_bytes, used) in enumerate(drawn)]
    offsets, size = arrange(tensors)
    for (first, at), (second, other) in itertools.combinations(zip(tensors, offsets, strict=True), 2):
        assert not first.meets(second) or at + first.n_bytes <= other or other + second.n_bytes <= at
    assert size == max(at + tensor.n_bytes for tensor, at in zip(tensors, offsets, strict=True))
    in_use = [sum(t.n_bytes for t in tensors if t.written <= step <= t.read) for step in range(-1, len(tensors) + 4)]
    assert size >= max(in_use)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_a_chain_takes_no_more_than_two_buffers_by_turns(sizes: list[int]) -> None:
    _, size = arrange([Tensor(16 * n, index, index + 1) for index, n in enumerate(sizes)])
    assert size <= 16 * (max(sizes[0::2]) + max(sizes[1::2], default=0))


# ---- answers ----


@functools.cache
def compiled(name: str, precision: str, target: str = "cortex-m55") -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        return compile_model(MODELS[name], Path(folder), precision=precision, target=target, name=name)


with_every_model = pytest.mark.parametrize("name", MODELS)
with_every_precision = pytest.mark.parametrize("precision", PRECISIONS)
# The largest error beside the outputs' deviation, of policies whose weights are drawn, not trained.
LARGEST_ERROR = {"int8": 0.15, "int16": 0.05, "float32": 1e-5}


@with_every_precision
@with_every_model
def test_a_merged_policy_acts_as_the_float_one(name: str, precision: str) -> None:
    vectors = compiled(name, precision).library.vectors()
    expected = reference_answers(MODELS[name], vectors["observations"])
    answered = vectors["expected"]
    if answered.dtype == np.int32:
        assert np.mean(answered == expected) >= (0.9 if precision == "int8" else 0.98)
    else:
        assert np.abs(answered - expected).max() <= LARGEST_ERROR[precision] * expected.std()


@with_every_precision
@with_every_model
def test_helium_answers_as_the_oracle(name: str, precision: str, tmp_path: Path) -> None:
    assert parity(compiled(name, precision), BOARDS["mps3-an547"], tmp_path) == "PASS"


@with_every_precision
@pytest.mark.parametrize("name", ["residual_tanh", "pre_activated", "gate"])
@pytest.mark.parametrize("board", [b for b in BOARDS.values() if b.name != "mps3-an547"], ids=lambda board: board.name)
def test_every_core_answers_as_the_oracle(board: Board, name: str, precision: str, tmp_path: Path) -> None:
    assert parity(compiled(name, precision, board.target), board, tmp_path) == "PASS"


def parity(made: Compiled, board: Board, folder: Path) -> str:
    project = create(made.library, folder / "project", "baremetal", {"board": board.name})
    build(project)
    return str(qemu.run(project).parity)


@with_every_precision
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@with_every_model
def test_the_c_twin_answers_as_the_oracle_and_does_nothing_undefined(
    name: str, compiler: str, precision: str, tmp_path: Path
) -> None:
    for flags in (("-O1", *SANITIZERS), *([("-Ofast",)] if precision == "float32" else [])):
        printed = replay(compiled(name, precision).library, tmp_path, compiler, *flags)
        assert "PARITY PASS" in printed, (flags, printed)


@pytest.mark.parametrize("name", MODELS)
def test_the_host_answers_as_the_oracle(name: str) -> None:
    for precision in PRECISIONS:
        assert host.run(compiled(name, precision, "host").library).parity == "PASS"


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("residual", {AddCodes}), ("pre_activated", {AddCodes, MapCodes}), ("gate", {MultiplyCodes}),
    ],
)  # fmt: skip
def test_merges_of_codes_are_vectors_on_helium(name: str, kinds: set[type]) -> None:
    made = compiled(name, "int8")
    elementwise = [kernel for kernel in made.kernels if isinstance(kernel, Elementwise)]
    assert {type(kernel) for kernel in elementwise} == kinds
    for kernel in elementwise:
        placed = place(kernel, "mve")
        assert placed.layout.lanes == (16 if isinstance(kernel, MapCodes) else 4)
    listing = made.stages["asm"]
    assert {AddCodes: "vmla.s32", MultiplyCodes: "vqrdmulh.s32"}[min(kinds, key=lambda kind: kind.__name__)] in listing


# ---- models that are quantised already ----

QUANTISED = {name: model for name, model in MODELS.items() if name != "difference"}  # ONNX Runtime leaves a Sub float


@pytest.mark.parametrize(
    "options", [{}, {"per_channel": True}, {"activations": UINT8}], ids=["int8", "channel", "uint8"]
)
@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_merge_answers_as_onnx_runtime(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = quantised(QUANTISED[name], **options)
    made = compile_model(model, tmp_path, precision=None)
    vectors = made.library.vectors()
    expected = reference_answers(model, vectors["observations"])
    if vectors["expected"].dtype == np.int32:
        assert np.mean(vectors["expected"] == expected) >= 0.95
    else:
        # a code can be one off ONNX Runtime's, which rescales floats, and an action is read off sums
        assert np.abs(vectors["expected"] - expected).max() <= 0.12 * expected.std()
    assert host.run(made.library).parity == "PASS"


@pytest.mark.parametrize("activation", ["Tanh", "Relu"])
@pytest.mark.parametrize("first", [True, False], ids=["before the layer", "behind it"])
def test_a_function_of_quantised_observations_is_not_lost(activation: str, first: bool, tmp_path: Path) -> None:
    def body(graph: Weights, x: str) -> str:
        if first:
            function, y = activate(graph, x, activation), graph.dense(x, 6, 6, "Relu")
        else:
            y, function = graph.dense(x, 6, 6, "Relu"), activate(graph, x, activation)
        return graph.dense(graph.add("Mul", function, y), 6, 3)

    model = quantised(merged_policy(body, 6, 3))
    made = compile_model(model, tmp_path, precision=None)
    vectors = made.library.vectors()
    expected = reference_answers(model, vectors["observations"])
    assert np.abs(vectors["expected"] - expected).max() <= 0.12 * expected.std()
    assert host.run(made.library).parity == "PASS"


def test_a_layer_may_read_quantised_observations_and_a_function_of_them_at_once(tmp_path: Path) -> None:
    def body(graph: Weights, x: str) -> str:
        lifted = graph.dense(graph.add("Add", activate(graph, x, "Tanh"), x), 6, 9, "Relu")
        return graph.dense(graph.add("Add", lifted, graph.dense(x, 6, 9)), 9, 3)

    model = quantised(merged_policy(body, 6, 3))
    vectors = compile_model(model, tmp_path, precision=None).library.vectors()
    expected = reference_answers(model, vectors["observations"])
    assert np.abs(vectors["expected"] - expected).max() <= 0.12 * expected.std()


def test_a_merge_that_was_left_float_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOp, match="without codes; a policy is compiled to integers as a whole"):
        compile_model(quantised(MODELS["difference"]), tmp_path, precision=None)


def test_observations_that_several_layers_read_are_clipped_once(tmp_path: Path) -> None:
    def body(graph: Weights, x: str) -> str:
        return branches(7, 16, 3)(graph, graph.add("Clip", x, graph.constant(-1.0), graph.constant(1.0)))

    model = merged_policy(body, 7, 3)
    made = compile_model(model, tmp_path, precision="float32", target="host", calibration=2 * observations_for(model))
    assert [type(kernel).__name__ for kernel in made.kernels].count("Clamp") == 1
    assert host.run(made.library).parity == "PASS"
