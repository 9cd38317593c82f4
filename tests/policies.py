# SPDX-License-Identifier: Apache-2.0
"""Random dense policies as ONNX files, of any size, activation, head and tensor names: seeded, and without torch.

    model = dense_policy((4, 16, 3), activation="Tanh", head=arg_max, seed=1)
    compiled = compile_model(model, folder, precision="int8")

    inputs -> [flatten, join] -> Gemm -> activation -> ... -> Gemm -> head -> action
                                                  \\-> Gemm -> value             (critic=True)

Weights are drawn as torch draws them, so that activations neither vanish nor explode; then scaled, if a test asks.

Why not torch: a test of a shape, a name or an extreme weight should not need two gigabytes and three seconds.
"""

from __future__ import annotations

import itertools
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.pipeline import Compiled, compile_policy
from tinyrl_tvm.project import create

OPSET = 20  # the first with Gelu
Head = Callable[["Graph", str, int], tuple[str, int, list[int]]]


class Graph:
    """Nodes and initialisers in the order they are asked for; `add` and `constant` give the new tensor's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"/{op}_{len(self.nodes)}", **attributes))
        return output

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name


# ---- activations: the ONNX operator of the name, or what takes several ----


def _silu(graph: Graph, x: str) -> str:
    return graph.add("Mul", x, graph.add("Sigmoid", x))


def _relu6(graph: Graph, x: str) -> str:
    return graph.add("Clip", x, graph.constant(0.0), graph.constant(6.0))


ACTIVATIONS: dict[str, Callable[[Graph, str], str]] = {
    "Identity": lambda graph, x: x,
    "Silu": _silu,
    "Relu6": _relu6,
    "LeakyRelu": lambda graph, x: graph.add("LeakyRelu", x, alpha=0.1),
    "Square": lambda graph, x: graph.add("Mul", x, x),
}


def activate(graph: Graph, x: str, activation: str) -> str:
    if activation in ACTIVATIONS:
        return ACTIVATIONS[activation](graph, x)
    return graph.add(activation, x)


# ---- heads: (graph, last layer's output, its length) -> (tensor, its type, its shape) ----


def logits(graph: Graph, x: str, n: int) -> tuple[str, int, list[int]]:
    return x, TensorProto.FLOAT, [1, n]


def arg_max(graph: Graph, x: str, n: int) -> tuple[str, int, list[int]]:
    return graph.add("ArgMax", x, axis=1, keepdims=0), TensorProto.INT64, [1]


def greater(graph: Graph, x: str, n: int) -> tuple[str, int, list[int]]:
    """MultiBinary: the mode of independent Bernoullis."""
    return graph.add("Round", graph.add("Sigmoid", x)), TensorProto.FLOAT, [1, n]


def multi_discrete(*runs: int) -> Head:
    def head(graph: Graph, x: str, n: int) -> tuple[str, int, list[int]]:
        assert sum(runs) == n
        ends = np.cumsum(runs)
        axis = graph.constant([1], np.int64)
        slices = [
            graph.add("Slice", x, graph.constant([end - run], np.int64), graph.constant([end], np.int64), axis)
            for run, end in zip(runs, ends, strict=True)
        ]
        answers = [graph.add("ArgMax", part, axis=1, keepdims=1) for part in slices]
        return graph.add("Concat", *answers, axis=1), TensorProto.INT64, [1, len(runs)]

    return head


def probabilities(graph: Graph, x: str, n: int) -> tuple[str, int, list[int]]:
    return graph.add("Softmax", x, axis=1), TensorProto.FLOAT, [1, n]


def probabilities_of(*runs: int) -> Head:
    """MultiDiscrete: those of every part."""

    def head(graph: Graph, x: str, n: int) -> tuple[str, int, list[int]]:
        ends, axis = np.cumsum(runs), graph.constant([1], np.int64)
        parts = [
            graph.add("Slice", x, graph.constant([end - run], np.int64), graph.constant([end], np.int64), axis)
            for run, end in zip(runs, ends, strict=True)
        ]
        return graph.add("Concat", *(graph.add("Softmax", p, axis=1) for p in parts), axis=1), TensorProto.FLOAT, [1, n]

    return head


def clipped(low: float, high: float) -> Head:
    def head(graph: Graph, x: str, n: int) -> tuple[str, int, list[int]]:
        return graph.add("Clip", x, graph.constant(low), graph.constant(high)), TensorProto.FLOAT, [1, n]

    return head


def squashed(activation: str = "Tanh") -> Head:
    def head(graph: Graph, x: str, n: int) -> tuple[str, int, list[int]]:
        return activate(graph, x, activation), TensorProto.FLOAT, [1, n]

    return head


def unscaled(low: Sequence[float] | float, high: Sequence[float] | float, activation: str = "Tanh") -> Head:
    """As Stable-Baselines3 unscales a squashed action: low + 0.5 * (a + 1) * (high - low)."""

    def head(graph: Graph, x: str, n: int) -> tuple[str, int, list[int]]:
        lower, upper = (np.broadcast_to(np.asarray(bound, np.float32), n) for bound in (low, high))
        unit = graph.add("Add", activate(graph, x, activation), graph.constant(1.0))
        half = graph.add("Mul", unit, graph.constant(0.5))
        spread = graph.add("Mul", half, graph.constant(upper - lower))
        return graph.add("Add", spread, graph.constant(lower)), TensorProto.FLOAT, [1, n]

    return head


# ---- whole policies ----


def dense_policy(
    sizes: Sequence[int],
    *,
    activation: str | Sequence[str] = "Relu",
    head: Head = logits,
    seed: int = 0,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    action_name: str = "action",
    batch: int | str = 1,
    critic: bool = False,
    weights: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    gain: float = 1.0,
    normalised: tuple[Any, Any, float] | None = None,
) -> onnx.ModelProto:
    """`sizes` are those of the observation, the hidden layers and the last layer; `inputs` are shapes without a batch,
    joined in order, by default one vector `obs`. `weights` are (n_out, n_in) and (n_out,) of every layer. `normalised` is
    VecNormalize's (mean, deviation, clip)."""
    rng = np.random.default_rng(seed)
    graph = Graph()
    shapes = dict(inputs) if inputs is not None else {"obs": (sizes[0],)}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == sizes[0]
    flat = [graph.add("Flatten", name, axis=1) if len(shape) != 1 else name for name, shape in shapes.items()]
    x = flat[0] if len(flat) == 1 else graph.add("Concat", *flat, axis=1)
    if normalised is not None:
        mean, deviation, clip = normalised
        centred = graph.add("Sub", x, graph.constant(np.broadcast_to(mean, sizes[0])))
        x = graph.add("Div", centred, graph.constant(np.broadcast_to(deviation, sizes[0])))
        x = graph.add("Clip", x, graph.constant(-clip), graph.constant(clip))
    activations = [activation] * (len(sizes) - 2) if isinstance(activation, str) else list(activation)
    features = x
    for index, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        if weights is not None:
            weight, bias = weights[index]
        else:
            bound = gain * np.sqrt(3 / n_in)
            weight, bias = rng.uniform(-bound, bound, (n_out, n_in)), rng.uniform(-0.3, 0.3, n_out) * gain
        x = graph.add("Gemm", x, graph.constant(weight), graph.constant(bias), transB=1)
        if index < len(sizes) - 2:
            x = features = activate(graph, x, activations[index])
    action, dtype, shape = head(graph, x, sizes[-1])
    graph.add("Identity", action, output=action_name)
    outputs = [helper.make_tensor_value_info(action_name, dtype, [batch, *shape[1:]])]
    if critic:
        n = sizes[-2] if len(sizes) > 2 else sizes[0]
        value = graph.add("Gemm", features, graph.constant(rng.normal(size=(1, n))), graph.constant([0.0]), transB=1)
        graph.add("Identity", value, output="value")
        outputs.append(helper.make_tensor_value_info("value", TensorProto.FLOAT, [batch, 1]))
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "policy",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape]) for name, shape in shapes.items()],
            outputs,
            graph.constants,
        ),
        ir_version=9,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


def observations_for(model: onnx.ModelProto, n_rows: int = 256, seed: int = 0, scale: Any = 1.0) -> np.ndarray:
    """Seeded normal rows (n_rows, n_obs), all inputs joined."""
    return (np.random.default_rng(seed + 1000).normal(size=(n_rows, width(model))) * scale).astype(np.float32)


def width(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(shape)) for _, shape in input_shapes(model))


def input_shapes(model: onnx.ModelProto) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (entry.name, tuple(int(dim.dim_value) for dim in entry.type.tensor_type.shape.dim[1:]))
        for entry in model.graph.input
    ]


def reference_answers(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    """The first output's, by ONNX Runtime, one row at a time: (n, n_actions)."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shapes = input_shapes(model)
    ends = np.cumsum([int(np.prod(shape)) for _, shape in shapes])[:-1]
    answers = []
    for row in rows:
        parts = np.split(row, ends)
        feed = {name: part.reshape(1, *shape) for (name, shape), part in zip(shapes, parts, strict=True)}
        answers.append(np.asarray(session.run(None, feed)[0]).reshape(-1))
    return np.array(answers)


def compile_model(
    model: onnx.ModelProto,
    folder: Path,
    *,
    precision: str = "int8",
    target: str = "cortex-m55",
    calibration: np.ndarray | None = None,
    vectors: np.ndarray | None = None,
    name: str = "policy",
    **options: Any,
) -> Compiled:
    """Compile with `calibration` rows and test `vectors`; both by default seeded rows of the policy's own width."""
    path = save(model, folder, name)
    calibration = observations_for(model) if calibration is None else calibration
    vectors = calibration[:64] if vectors is None else vectors
    rows = folder / f"{name}.npz"
    np.savez(rows, calibration=calibration, observations=vectors)
    return compile_policy(path, target=target, precision=precision, calibration=rows, **options)


def save(model: onnx.ModelProto, folder: Path, name: str = "policy") -> Path:
    path = folder / f"{name}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path.write_bytes(model.SerializeToString(deterministic=True))
    return path


# ---- asking a library on this machine, under any compiler and flags ----


def replay(library: ModelLibrary, folder: Path, *command: str) -> str:
    """What the library's C twin prints of its test vectors, built in one call of a compiler; PARITY is its last word.

    `command` is the compiler and its flags: ("clang", "-Ofast"). A build that fails or a run that stops is an AssertionError.
    """
    project = folder / "replayed"
    if not project.exists():
        create(library, project, "host")
    (project / "src" / "main.c").write_text(_MAIN)  # the project's own also takes the time of ten thousand calls
    sources = [*sorted(project.glob("policy/src/*.c")), *sorted(project.glob("src/*.c"))]
    program = project / "replay"
    built = subprocess.run(
        [*command, "-std=c99", "-Ipolicy/include", "-Isrc", *sources, "-lm", "-o", program],
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, f"{ran.stdout[-300:]}{ran.stderr[:3000]}"  # a sanitizer stopped it
    return ran.stdout


_MAIN = """
#include <stdio.h>
#include "console.h"
#include "replay.h"
void console_text(const char *text) { fputs(text, stdout); }
int main(void) { return replay_vectors() < 0; }
"""
# Undefined arithmetic, conversions that do not fit and reads outside an array end the program.
SANITIZERS = (
    "-g",
    "-fsanitize=undefined,address,float-cast-overflow,float-divide-by-zero",
    "-fno-sanitize-recover=all",
)
