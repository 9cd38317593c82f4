# SPDX-License-Identifier: Apache-2.0
"""CMSIS-NN as this compiler knows it: the functions it calls, the files these are in, and what of a policy one computes.

Source: CMSIS-NN 7.0.0 and 99f736a, Include/arm_nnfunctions.h and Source/.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from schedules import Parameter
    from schedules.elementwise import AddCodes, MultiplyCodes

_FULLY_CONNECTED, _SUPPORT = "Source/FullyConnectedFunctions", "Source/NNSupportFunctions"
_SOFTMAX, _BASIC_MATH = "Source/SoftmaxFunctions", "Source/BasicMathFunctions"


@dataclass(frozen=True)
class Function:
    """A function of CMSIS-NN: the release that brought it as we call it, and the sources it needs."""

    since: str
    sources: tuple[str, ...]


FUNCTIONS = {
    "arm_fully_connected_s8": Function(
        "6.0.0", (f"{_FULLY_CONNECTED}/arm_fully_connected_s8.c", f"{_SUPPORT}/arm_nn_vec_mat_mult_t_s8.c")
    ),
    "arm_fully_connected_per_channel_s8": Function(
        "7.0.0",
        (f"{_FULLY_CONNECTED}/arm_fully_connected_per_channel_s8.c", f"{_SUPPORT}/arm_nn_vec_mat_mult_t_per_ch_s8.c"),
    ),
    "arm_fully_connected_s16": Function(
        "6.0.0", (f"{_FULLY_CONNECTED}/arm_fully_connected_s16.c", f"{_SUPPORT}/arm_nn_vec_mat_mult_t_s16.c")
    ),
    "arm_softmax_s8": Function("6.0.0", (f"{_SOFTMAX}/arm_softmax_s8.c", f"{_SOFTMAX}/arm_nn_softmax_common_s8.c")),
    "arm_softmax_s16": Function("6.0.0", (f"{_SOFTMAX}/arm_softmax_s16.c",)),
    **{
        name: Function("6.0.0", (f"{_BASIC_MATH}/{name}.c",))
        for name in (
            "arm_elementwise_add_s8",
            "arm_elementwise_add_s16",
            "arm_elementwise_mul_s8",
            "arm_elementwise_mul_s16",
        )
    },
}


def since(functions: Iterable[str]) -> str:
    """The oldest release that has all of `functions`."""
    return max((FUNCTIONS[name].since for name in functions), key=numbers, default="")


def numbers(release: str) -> tuple[int, ...]:
    """(7, 0, 0) of 7.0.0, for comparisons."""
    return tuple(map(int, release.split(".")))


def sources(functions: Iterable[str]) -> tuple[str, ...]:
    """The files of a checkout that `functions` need."""
    return tuple(dict.fromkeys(path for name in functions for path in FUNCTIONS[name].sources))


def groups(functions: Iterable[str]) -> tuple[str, ...]:
    """The groups that `functions` need, as Zephyr's Kconfig calls them: FULLYCONNECTED, NNSUPPORT, ..."""
    folders = (path.split("/")[1] for path in sources(functions))
    return tuple(sorted({folder.removesuffix("Functions").upper() for folder in folders}))


@dataclass(frozen=True)
class FullyConnected:
    """A dense layer that `function` computes: weight (n_out, n_in) int8, bias (n_out,) int32, which is what the kernel sums
    are as well; multiplier and shift (n_out,) or (1,) int32 as `arm_nn_requantize` takes them; `table` (256,) int8, entry
    code + 128, or None, is applied to its codes. Of int16 codes the bias has 64 bits, and codes are interpolated in the
    table, (257,) int16.
    """

    function: str
    weight: np.ndarray = field(repr=False)
    bias: np.ndarray = field(repr=False)
    multiplier: np.ndarray = field(repr=False)
    shift: np.ndarray = field(repr=False)
    output_offset: int
    low: int
    high: int
    table: np.ndarray | None = field(repr=False)

    def __post_init__(self) -> None:
        assert self.function in FUNCTIONS

    @property
    def sources(self) -> int:
        return 1

    @property
    def codes(self) -> str:
        return "int16" if self.function == "arm_fully_connected_s16" else "int8"

    @property
    def per_channel(self) -> bool:
        return self.function == "arm_fully_connected_per_channel_s8"

    @property
    def summary(self) -> str:
        n_out, n_in = self.weight.shape
        return f"dense {n_in} -> {n_out}, {self.function}{', through a table' if self.table is not None else ''}"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        from schedules import Parameter  # it loads TVM

        wide = self.codes == "int16"
        bias = self.bias.astype(np.int64) if wide else self.bias
        parameters = [Parameter("weight", self.weight), Parameter("bias", bias)]
        if self.per_channel:
            parameters += [Parameter("multiplier", self.multiplier), Parameter("shift", self.shift)]
        if self.table is not None:
            # entry of the unsigned byte: 0.., -128..-1
            parameters.append(Parameter("table", self.table if wide else np.roll(self.table, 128)))
        return tuple(parameters)

    @property
    def parameter_bytes(self) -> int:
        return sum(parameter.values.nbytes for parameter in self.parameters)

    @property
    def arguments(self) -> tuple[tuple[str, str, int], ...]:
        """Name, dtype and length of its input and of its output; its parameters lie beside its code."""
        n_out, n_in = self.weight.shape
        return (("codes", self.codes, n_in), ("out", self.codes, n_out))


@dataclass(frozen=True)
class Softmax:
    """Probabilities that `function` computes of each run of codes: with multiplier and shift, one a run, as it takes them."""

    function: str
    runs: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray

    codes: ClassVar[str]

    def __post_init__(self) -> None:
        assert self.function in FUNCTIONS

    @property
    def sources(self) -> int:
        return 1

    @property
    def n(self) -> int:
        return int(self.runs.sum())

    @property
    def summary(self) -> str:
        return f"softmax of {' + '.join(map(str, self.runs))}, {self.function}"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return ()

    @property
    def parameter_bytes(self) -> int:
        return sum(parameter.values.nbytes for parameter in self.parameters)

    @property
    def arguments(self) -> tuple[tuple[str, str, int], ...]:
        """As of a layer."""
        return (("codes", self.codes, self.n), ("out", "float32", self.n))


@dataclass(frozen=True)
class SoftmaxInt8(Softmax):
    """Of 256 steps; `least_difference` is one a run."""

    least_difference: np.ndarray

    codes: ClassVar[str] = "int8"


@dataclass(frozen=True)
class SoftmaxInt16(Softmax):
    """Of 32768 steps; `powers` and `inverses` (513,) int16 are the tables of exp and 1 / (1 + x)."""

    powers: np.ndarray = field(repr=False)
    inverses: np.ndarray = field(repr=False)

    codes: ClassVar[str] = "int16"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        from schedules import Parameter  # it loads TVM

        return (Parameter("powers", self.powers), Parameter("inverses", self.inverses))


@dataclass(frozen=True)
class Elementwise:
    """The sum or the product that `function` computes of two tensors of codes as `kernel` of ours would; its table is left
    to C behind the call."""

    function: str
    kernel: AddCodes | MultiplyCodes

    def __post_init__(self) -> None:
        assert self.function in FUNCTIONS

    @property
    def sources(self) -> int:
        return self.kernel.sources

    @property
    def numbers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the function takes between its tensors, and behind them but for the number of elements.

        A code is shifted to the left as far as a factor is long, so that neither of the first two products rounds.
        """
        from schedules.elementwise import AddCodes

        kernel, (offset, other) = self.kernel, (-zero for zero in self.kernel.zero_points)
        bounds = (kernel.low, kernel.high)
        if not isinstance(kernel, AddCodes):
            return (offset, other), (kernel.zero_point, kernel.multiplier, -kernel.shift, *bounds)
        left = 20 if kernel.dtype == "int8" else 15
        first, second = (factor << (31 - left) for factor in kernel.factors)
        between = (offset, first, 0, other, second, 0, left)
        return between, (kernel.zero_point, 1 << 30, 1 - kernel.shift, *bounds)

    @property
    def summary(self) -> str:
        return f"{self.kernel.verb} {self.kernel.n}, {self.function}{', through a table' if self.table is not None else ''}"

    @property
    def table(self) -> np.ndarray | None:
        return self.kernel.table

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.kernel.parameters(None)

    @property
    def parameter_bytes(self) -> int:
        return sum(parameter.values.nbytes for parameter in self.parameters)

    @property
    def arguments(self) -> tuple[tuple[str, str, int], ...]:
        """As of a layer."""
        return tuple((name, self.kernel.dtype, self.kernel.n) for name in ("x", "y", "out"))


Offloaded = FullyConnected | Softmax | Elementwise
