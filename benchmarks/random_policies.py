# SPDX-License-Identifier: Apache-2.0
"""Policies that nobody tuned for: dense, of any sizes, with seeded weights; and their layers, read back from ONNX."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CALIBRATION_ROWS, VECTORS = 1024, 64


@dataclass(frozen=True, eq=False)
class Layer:
    """weight (n_out, n_in) and bias (n_out,) float32; `activation` is "Relu", "Tanh" or "" for none."""

    weight: np.ndarray
    bias: np.ndarray
    activation: str


def write(folder: Path, sizes: tuple[int, ...], activation: str, seed: int) -> Path:
    """The policy `sizes`, observation first, as an ONNX file, and beside it a .npz of observations to calibrate with and
    to test. Weights keep the size of what passes through them, so that every layer has something to say."""
    rng = np.random.default_rng(seed)
    nodes, constants, tensor = [], [], "obs"
    for index, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        last = index == len(sizes) - 2
        bound = np.sqrt(3 / n_in)
        arrays = {f"w{index}": rng.uniform(-bound, bound, (n_out, n_in)), f"b{index}": rng.uniform(-0.3, 0.3, n_out)}
        constants += [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
        product = "action" if last else f"z{index}"
        nodes.append(helper.make_node("Gemm", [tensor, *arrays], [product], transB=1))
        if not last:
            tensor = f"h{index}"
            nodes.append(helper.make_node(activation, [product], [tensor]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n])
        for name, n in (("obs", sizes[0]), ("action", sizes[-1]))
    ]
    graph = helper.make_graph(nodes, "policy", [ends[0]], [ends[1]], constants)
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    path = folder / f"random_{'_'.join(str(size) for size in sizes)}_{activation.lower()}.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    rows = rng.normal(size=(CALIBRATION_ROWS + VECTORS, sizes[0])).astype(np.float32)
    np.savez(path.with_suffix(".npz"), calibration=rows[:CALIBRATION_ROWS], observations=rows[CALIBRATION_ROWS:])
    return path


def layers_of(path: Path) -> list[Layer]:
    """Of a file that is nothing but Gemm (transB) and Relu or Tanh between them."""
    graph = onnx.load(path).graph
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    layers: list[Layer] = []
    for node in graph.node:
        if node.op_type == "Gemm":
            layers.append(Layer(arrays[node.input[1]], arrays[node.input[2]], ""))
        else:
            assert node.op_type in ("Relu", "Tanh") and not layers[-1].activation, node.op_type
            layers[-1] = Layer(layers[-1].weight, layers[-1].bias, node.op_type)
    return layers
