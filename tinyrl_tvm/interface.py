# SPDX-License-Identifier: Apache-2.0
"""What a library promises: how its policy is called, and the test vectors it must answer. Both are checked, since a
library comes from a stranger."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

import numpy as np

from tinyrl_tvm.cmsis_nn import FUNCTIONS
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.targets import TARGETS

FAMILIES = frozenset({"portable", *(target.kernels for target in TARGETS.values())})

# Vectors live in flash beside the policy; the rest of a long recording is streamed to the device when it runs.
MAX_BUILT_IN_VECTORS = 64
MAX_BUILT_IN_BYTES = 64 * 1024

C_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_LAYER_TEXT = 300
C_TYPES = {"float32": "float", "int32": "int32_t"}


@dataclass(frozen=True)
class Input:
    """One observation tensor; `offset` is where it starts in a row of all inputs joined."""

    name: str
    c_name: str
    length: int
    offset: int


@dataclass(frozen=True)
class Layer:
    """A call that an inference is made of: the C `function`, what it computes, the family of our kernels or the function of
    CMSIS-NN that is its `place`, and the `reason` for that; bytes of its parameters, numbers in its output, either with the
    padding of its blocks."""

    function: str
    summary: str
    place: str
    reason: str
    parameter_bytes: int
    output_length: int

    def __post_init__(self) -> None:
        if not C_IDENTIFIER.fullmatch(self.function) or self.place not in FAMILIES | FUNCTIONS.keys():
            raise ValueError(f"a layer '{self.function}' in '{self.place}'")
        if not all(text.isprintable() and len(text) <= MAX_LAYER_TEXT for text in (self.summary, self.reason)):
            raise ValueError(f"what is said of the layer '{self.function}'")
        sizes = [self.parameter_bytes, self.output_length]
        if any(type(size) is not int or size < 0 for size in sizes):
            raise ValueError(f"sizes {sizes} of the layer '{self.function}'")

    @property
    def in_cmsis_nn(self) -> bool:
        return self.place in FUNCTIONS


@dataclass(frozen=True)
class Interface:
    """How a library's policy is called: `library.interface`, checked. `cmsis_nn` are the functions of CMSIS-NN it calls,
    `layers` its calls in order, empty in a library of an earlier release."""

    name: str
    target: str
    inputs: tuple[Input, ...]
    n_actions: int
    action_name: str
    action_c_name: str
    action_dtype: str
    tolerance: float
    cmsis_nn: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        names = [self.name, self.action_c_name, *(tensor.c_name for tensor in self.inputs)]
        sizes = [self.n_actions, *(tensor.length for tensor in self.inputs)]
        if not all(isinstance(tensor.name, str) for tensor in self.inputs):
            raise ValueError("the name of an input is no text")
        if not all(C_IDENTIFIER.fullmatch(name) for name in names):
            raise ValueError(f"a name in {names} is not a C identifier")
        if not self.inputs or any(type(size) is not int or size <= 0 for size in sizes):
            raise ValueError(f"sizes {sizes} are not all positive")
        if self.action_dtype not in C_TYPES or self.target not in TARGETS:
            raise ValueError(f"action type '{self.action_dtype}', target '{self.target}'")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"tolerance {self.tolerance}")
        if not set(self.cmsis_nn) <= set(FUNCTIONS):
            raise ValueError(f"functions of CMSIS-NN {self.cmsis_nn}")
        if len({layer.function for layer in self.layers}) != len(self.layers):
            raise ValueError("two layers share a function")

    @property
    def n_obs(self) -> int:
        return sum(tensor.length for tensor in self.inputs)

    @staticmethod
    def of(library: ModelLibrary) -> Interface:
        try:
            entry = library.interface
            inputs: list[Input] = []
            for tensor in entry["inputs"]:
                offset = sum(earlier.length for earlier in inputs)
                inputs.append(Input(tensor["name"], tensor["c_name"], tensor["length"], offset))
            action = entry["action"]
            return Interface(
                name=library.name,
                target=entry["target"],
                inputs=tuple(inputs),
                n_actions=action["length"],
                action_name=action["name"],
                action_c_name=action["c_name"],
                action_dtype=action["dtype"],
                tolerance=float(entry["tolerance"]),
                cmsis_nn=tuple(entry.get("cmsis_nn", ())),
                layers=tuple(Layer(**layer) for layer in entry.get("layers", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TinyrlError(
                f"the library's metadata.json does not describe a policy ({error}); compile the policy again"
            ) from None


@dataclass(frozen=True)
class Vectors:
    """Test vectors: observations (n, n_obs) float32, answers (n, n_actions), and `built_in`, the rows that a project
    carries in its own sources. `float_answers` (n, n_actions) are the float policy's; None in a library that lacks
    them."""

    observations: np.ndarray = field(repr=False)
    answers: np.ndarray = field(repr=False)
    built_in: np.ndarray = field(repr=False)
    float_answers: np.ndarray | None = field(default=None, repr=False)

    @property
    def carried(self) -> Vectors:
        """Those that a project carries alone."""
        rows = self.built_in
        of_float = None if self.float_answers is None else self.float_answers[rows]
        return Vectors(self.observations[rows], self.answers[rows], np.arange(len(rows)), of_float)

    @staticmethod
    def of(library: ModelLibrary) -> Vectors:
        interface = Interface.of(library)
        try:
            arrays = library.vectors()
            observations = np.ascontiguousarray(arrays["observations"], np.float32)
            answers = np.ascontiguousarray(arrays["expected"], interface.action_dtype)
            float_answers = arrays.get("float_action")
            n = len(observations)
            shapes = observations.shape == (n, interface.n_obs) and answers.shape == (n, interface.n_actions)
            if n == 0 or not shapes or not (np.isfinite(observations).all() and np.isfinite(answers).all()):
                raise ValueError(f"shapes {observations.shape} and {answers.shape}, or a value that is not finite")
            if float_answers is not None:
                float_answers = np.ascontiguousarray(float_answers, interface.action_dtype)
                if float_answers.shape != answers.shape or not np.isfinite(float_answers).all():
                    raise ValueError(f"float_action of shape {float_answers.shape}, or a value that is not finite")
        except (KeyError, ValueError, TypeError, EOFError, OSError) as error:
            raise TinyrlError(f"the library's test vectors cannot be used: {error}; compile the policy again") from None
        row_bytes = observations[0].nbytes + answers[0].nbytes
        built_in_n = max(1, min(n, MAX_BUILT_IN_VECTORS, MAX_BUILT_IN_BYTES // row_bytes))
        return Vectors(observations, answers, np.linspace(0, n - 1, built_in_n).astype(np.int64), float_answers)
