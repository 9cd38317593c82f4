# SPDX-License-Identifier: Apache-2.0
"""Random policies that are no chain of layers, as ONNX files: skip connections, gates, and what else merges two tensors.

residual       h = f(h + g(h)), twice                        obs_skip   obs + g(obs)
pre_activated  h + g(f(h)): f of what is read as it is        gate       sigmoid(a) * tanh(b)
difference     f(a) - b through a function                    product    the action itself is a merge
branches       two layers of the observations, and three of one tensor
idle           a product of what is never anything but zero
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper
from policies import OPSET, Graph, Head, activate, logits

Body = Callable[["Weights", str], str]


class Weights(Graph):
    """A graph that draws its layers' weights, as `dense_policy` does."""

    def __init__(self, seed: int, gain: float = 1.0) -> None:
        super().__init__()
        self.rng, self.gain = np.random.default_rng(seed), gain

    def dense(self, x: str, n_in: int, n_out: int, activation: str = "Identity") -> str:
        bound = self.gain * np.sqrt(3 / n_in)
        weight = self.constant(self.rng.uniform(-bound, bound, (n_out, n_in)))
        bias = self.constant(self.rng.uniform(-0.3, 0.3, n_out) * self.gain)
        return activate(self, self.add("Gemm", x, weight, bias, transB=1), activation)


def merged_policy(
    body: Body, n_obs: int, n_out: int, *, head: Head = logits, seed: int = 0, gain: float = 1.0
) -> onnx.ModelProto:
    graph = Weights(seed, gain)
    action, dtype, shape = head(graph, body(graph, "obs"), n_out)
    graph.add("Identity", action, output="action")
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "policy",
            [helper.make_tensor_value_info("obs", TensorProto.FLOAT, [1, n_obs])],
            [helper.make_tensor_value_info("action", dtype, [1, *shape[1:]])],
            graph.constants,
        ),
        ir_version=9,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


def residual(n_obs: int, width: int, n_out: int, activation: str = "Relu") -> Body:
    def body(graph: Weights, x: str) -> str:
        h = graph.dense(x, n_obs, width, activation)
        for _ in range(2):
            y = graph.dense(graph.dense(h, width, width, activation), width, width)
            h = activate(graph, graph.add("Add", h, y), activation)
        return graph.dense(h, width, n_out)

    return body


def pre_activated(n_obs: int, width: int, n_out: int) -> Body:
    def body(graph: Weights, x: str) -> str:
        h = graph.dense(x, n_obs, width)
        for activation in ("Relu", "Tanh"):
            h = graph.add("Add", h, graph.dense(activate(graph, h, activation), width, width))
        return graph.dense(h, width, n_out)

    return body


def difference(n_obs: int, width: int, n_out: int) -> Body:
    def body(graph: Weights, x: str) -> str:
        h = graph.dense(x, n_obs, width, "Relu")
        apart = graph.add("Sub", graph.dense(h, width, width, "Tanh"), h)
        return graph.dense(activate(graph, apart, "Sigmoid"), width, n_out)

    return body


def gate(n_obs: int, width: int, n_out: int) -> Body:
    def body(graph: Weights, x: str) -> str:
        h = graph.dense(x, n_obs, width, "Tanh")
        h = graph.add("Mul", graph.dense(h, width, width, "Sigmoid"), graph.dense(h, width, width, "Tanh"))
        return graph.dense(h, width, n_out)

    return body


def obs_skip(n_obs: int, width: int) -> Body:
    """As many actions as observations."""

    def body(graph: Weights, x: str) -> str:
        return graph.add("Add", x, graph.dense(graph.dense(x, n_obs, width, "Tanh"), width, n_obs))

    return body


def product(n_obs: int, n_out: int) -> Body:
    def body(graph: Weights, x: str) -> str:
        return graph.add("Mul", graph.dense(x, n_obs, n_out, "Sigmoid"), graph.dense(x, n_obs, n_out, "Tanh"))

    return body


def branches(n_obs: int, width: int, n_out: int) -> Body:
    def body(graph: Weights, x: str) -> str:
        a, b = graph.dense(x, n_obs, width, "Relu"), graph.dense(x, n_obs, width, "Sigmoid")
        h = graph.add("Mul", a, b)
        parts = [graph.dense(h, width, width, activation) for activation in ("Relu", "Tanh", "Identity")]
        return graph.dense(graph.add("Add", graph.add("Add", parts[0], parts[1]), parts[2]), width, n_out)

    return body


def idle(n_obs: int, width: int, n_out: int) -> Body:
    def body(graph: Weights, x: str) -> str:
        h = graph.dense(x, n_obs, width, "Relu")
        gain, graph.gain = graph.gain, 0.0
        parts = [graph.dense(h, width, width) for _ in range(2)]
        graph.gain = gain
        return graph.dense(activate(graph, graph.add("Mul", *parts), "Sigmoid"), width, n_out)

    return body
