# SPDX-License-Identifier: Apache-2.0
"""A policy as every stage hands it on: a Relax module, and what its tensors are called outside.

    module["main"](*inputs) -> action, or a tuple whose `action_index`-th tensor is the action

Weights are constants of the module. Every tensor has a batch axis of 1 in the module; its `TensorSpec` leaves that out.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # TVM takes a second to load, and `tinyrl-tvm --help` does not need it
    from tvm import IRModule

DTYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the policy for one sample: its name as the exporter wrote it, its shape without the batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a tensor needs a name")
        if not all(isinstance(n, int) and n > 0 for n in self.shape):
            raise ValueError(f"tensor {self.name!r} needs a shape of positive integers, not {self.shape!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"tensor {self.name!r} is {self.dtype}; have: {', '.join(DTYPES)}")

    @property
    def length(self) -> int:
        """Numbers in one sample; 1 for a shape of ()."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Policy:
    """A policy between two stages. `inputs` are the parameters of `module["main"]`, in order."""

    module: IRModule
    inputs: tuple[TensorSpec, ...]
    action: TensorSpec
    action_index: int  # which of the returned tuple; 0 for a single tensor
    source: str  # the file's name without its folder, so that the same policy gives the same bytes anywhere
    sha256: str
    notes: tuple[str, ...] = ()  # what the import left out or changed, one sentence each, for the compile log

    def __post_init__(self) -> None:
        n_params = len(self.module["main"].params)
        if not self.inputs or n_params != len(self.inputs):
            raise ValueError(f"{self.source}: main takes {n_params} tensors, {len(self.inputs)} are described")
        if len({spec.name for spec in self.inputs}) != len(self.inputs):
            raise ValueError(f"{self.source}: two inputs share a name")
        if self.action_index < 0:
            raise ValueError(f"{self.source}: action index {self.action_index} is negative")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.source}: {self.sha256!r} is not a SHA-256 in hexadecimal")


# The C API puts every name into a struct field, and in capitals into a macro `TVMGEN_<MOD>_<NAME>_SIZE`.
_RESERVED = frozenset(
    # C, up to C23
    {"auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern", "float"}
    | {"for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed", "sizeof"}
    | {"static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while", "alignas", "alignof"}
    | {"asm", "bool", "constexpr", "false", "fortran", "nullptr", "static_assert", "thread_local", "true", "typeof"}
    # C++, for the header is included from there too
    | {"and", "and_eq", "bitand", "bitor", "catch", "char8_t", "char16_t", "char32_t", "class", "compl", "concept"}
    | {"consteval", "constinit", "const_cast", "co_await", "co_return", "co_yield", "decltype", "delete", "explicit"}
    | {"dynamic_cast", "export", "friend", "mutable", "namespace", "new", "noexcept", "not", "not_eq", "operator", "or"}
    | {"or_eq", "private", "protected", "public", "reinterpret_cast", "requires", "static_cast", "template", "this"}
    | {"throw", "try", "typeid", "typename", "typeof_unqual", "using", "virtual", "wchar_t", "xor", "xor_eq"}
    # macros that GNU C and the standard headers spell in small letters
    | {"linux", "unix", "arm", "i386", "assert", "complex", "errno", "imaginary", "stdin", "stdout", "stderr"}
    # ours: the macro TVMGEN_<MOD>_WORKSPACE_SIZE, and words of the generated shell
    | {"workspace", "inputs", "outputs", "status"}
)
_LONGEST_NAME = 48  # with `tvmgen_`, a module's name and `_SIZE` it stays well inside what tools print on a line


def c_names(names: Sequence[str]) -> list[str]:
    """One C identifier a tensor name, in order: valid in C and C++, and still unique in capitals.

    `observation` stays itself, `obs[0]` becomes `obs_0`, `float` becomes `tensor_float`, `56` becomes `tensor_56`.
    """
    taken: set[str] = set()
    result = []
    for name in names:
        stem = c_name = _identifier(name)
        count = 1
        while c_name.upper() in taken:  # in capitals, because `Obs` and `obs` would share a macro
            count += 1
            c_name = f"{stem}_{count}"
        taken.add(c_name.upper())
        result.append(c_name)
    return result


def _identifier(name: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    word = re.sub(r"[^0-9A-Za-z]+", "_", ascii_name).strip("_")[:_LONGEST_NAME].rstrip("_")
    if word.isupper():
        word = word.lower()  # a name all in capitals is some vendor header's macro: PI and F in Arduino's, for one
    if not word or word[0].isdigit() or word.lower() in _RESERVED or word.endswith("_t"):  # int8_t, size_t
        word = f"tensor_{word}".rstrip("_")  # in front: `float_` would make FLOAT__SIZE, and C++ reserves a double "__"
    return word
