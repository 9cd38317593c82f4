# SPDX-License-Identifier: Apache-2.0
"""The promises of the emitted C, one test each: what compilers, linkers and programs on top of it may count on."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import (
    arg_max,
    clipped,
    compile_model,
    dense_policy,
    multi_discrete,
    replay,
    squashed,
    unscaled,
)

from tinyrl_tvm import toolchain
from tinyrl_tvm.device import host
from tinyrl_tvm.emit.assembly import function_text
from tinyrl_tvm.emit.c_library import array_text, comment
from tinyrl_tvm.library import ModelLibrary

# What is compiled: sizes and options of dense_policy, precision, target.
KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any], str, str]] = {
    "int8": ((4, 33, 3), {"activation": "Tanh", "head": unscaled([-2, 0, 1], [2, 1, 5])}, "int8", "cortex-m55"),
    "int8_joined": (
        (13, 40, 20, 9),
        {"inputs": {"joints": (3,), "map": (2, 3), "goal": (4,)}, "head": multi_discrete(3, 2, 4)},
        "int8",
        "cortex-m55",
    ),
    "float32": ((6, 17, 16, 5), {"activation": "Tanh", "head": squashed()}, "float32", "cortex-m55"),
    "float32_joined": ((5, 9, 12), {"inputs": {"a": (1,), "b": (4,)}, "head": arg_max}, "float32", "cortex-m55"),
    "portable": ((6, 17, 16, 5), {"activation": "Tanh", "head": clipped(-1, 1)}, "int8", "portable"),
    "host": ((20, 33, 16, 5), {"activation": ["Relu", "Tanh"], "head": clipped(-1, 1)}, "int8", "host"),
    "host_float32": ((20, 33, 16, 5), {"activation": ["Relu", "Tanh"], "head": squashed()}, "float32", "host"),
}
ARM_INCLUDES = "/usr/lib/arm-none-eabi/include"  # Debian's newlib; clang has no headers of its own for bare metal
HELIUM = ("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard")
CLANG_HELIUM = (
    "--target=thumbv8.1m.main-none-eabihf",
    "-mcpu=cortex-m55",
    "-mfloat-abi=hard",
    "-isystem",
    ARM_INCLUDES,
)
COMPILERS: dict[str, tuple[str, ...]] = {
    "gcc": ("gcc",),
    "clang": ("clang",),
    "arm gcc, cortex-m55": ("arm-none-eabi-gcc", *HELIUM),
    "arm gcc, cortex-m3": ("arm-none-eabi-gcc", "-mcpu=cortex-m3", "-mthumb"),
    "arm clang, cortex-m55": ("clang", *CLANG_HELIUM),
}
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wpedantic")
with_every_kind = pytest.mark.parametrize("kind", KINDS)
with_every_compiler = pytest.mark.parametrize("compiler", COMPILERS)


@functools.cache
def library_of(kind: str) -> ModelLibrary:
    sizes, options, precision, target = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        model = dense_policy(sizes, **options)
        return compile_model(model, Path(folder), precision=precision, target=target, name=kind).library


def unpack(library: ModelLibrary, folder: Path) -> list[Path]:
    """The library's code below `folder`; its sources."""
    for path, data in library.files.items():
        if path.startswith("codegen/host/"):
            target = folder / path.removeprefix("codegen/host/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return sorted([*folder.glob("src/*.c"), *folder.glob("src/*.S")])


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr[:3000]}"
    return done.stdout


def objects_of(library: ModelLibrary, folder: Path, *command: str) -> list[Path]:
    """The library compiled, one object a source."""
    sources = unpack(library, folder)
    objects = []
    for source in sources:
        if source.suffix == ".S" and command[0] in ("gcc", "clang") and len(command) < 3:
            continue  # another machine's assembly is empty here, and assembles to nothing
        objects.append(source.with_suffix(source.suffix + ".o"))
        run(*command, "-I", folder / "include", "-c", source, "-o", objects[-1])
    return objects


# ---- compilers ----


@with_every_compiler
@with_every_kind
def test_every_source_compiles_without_a_warning(kind: str, compiler: str, tmp_path: Path) -> None:
    for source in unpack(library_of(kind), tmp_path):
        for level in ("-O0", "-O3"):
            run(*COMPILERS[compiler], *WARNINGS, level, "-I", tmp_path / "include", "-c", source, "-o", tmp_path / "o")


def test_a_warning_is_an_error_in_the_test_above(tmp_path: Path) -> None:
    """The twin: the same command does not take what it promises to refuse."""
    for compiler in COMPILERS.values():
        source = tmp_path / "narrow.c"
        source.write_text("signed char narrow(int x);\nsigned char narrow(int x) { return x; }\n")
        done = subprocess.run(
            [*compiler, *WARNINGS, "-c", source, "-o", tmp_path / "o"], capture_output=True, check=False
        )
        assert done.returncode != 0


@with_every_kind
def test_the_c_assumes_no_32_bit_int(kind: str, tmp_path: Path) -> None:
    """MSP430 has an int of 16 bits; a constant or a product that overflows it is an error here."""
    sources = [source for source in unpack(library_of(kind), tmp_path) if source.suffix == ".c"]
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "string.h").write_text(
        "#include <stddef.h>\nvoid *memcpy(void *, const void *, size_t);\nvoid *memset(void *, int, size_t);\n"
    )
    options = ("--target=msp430", "-ffreestanding", "-isystem", stub, "-I", tmp_path / "include")
    for source in sources:
        run("clang", *options, *WARNINGS, "-fsyntax-only", source)
    (tmp_path / "wide.c").write_text("extern long wide;\nlong wide = 256 * 256;\n")
    with pytest.raises(AssertionError, match="overflow"):  # the twin
        run("clang", *options, *WARNINGS, "-fsyntax-only", tmp_path / "wide.c")


@with_every_kind
def test_the_header_is_c_plus_plus_and_links_from_it(kind: str, tmp_path: Path) -> None:
    objects = objects_of(library_of(kind), tmp_path, "gcc", "-O1")
    main = tmp_path / "main.cpp"
    guard = f"TVMGEN_{kind.upper()}"
    main.write_text(
        f'#include "tvmgen_{kind}.h"\n'
        f'extern "C" {{\n#include "tvmgen_{kind}.h"\n}}\n'
        f"int main() {{\n    alignas(16) static unsigned char workspace[{guard}_WORKSPACE_SIZE + 1];\n"
        f"    struct tvmgen_{kind}_inputs inputs = {{}};\n    struct tvmgen_{kind}_outputs outputs = {{}};\n"
        f"    return workspace[0] == 1 ? tvmgen_{kind}_run(&inputs, &outputs) : 0;\n}}\n"
    )
    for compiler in ("g++", "clang++"):
        flags = ("-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wno-missing-field-initializers")
        run(compiler, *flags, "-I", tmp_path / "include", main, *objects, "-o", tmp_path / "program")
        run(tmp_path / "program")


# ---- symbols and sections ----


def symbols(objects: Sequence[Path], option: str) -> set[str]:
    return {line.split()[-1] for line in run("nm", option, *objects).splitlines() if line.strip() and ":" not in line}


@pytest.mark.parametrize("compiler", ["gcc", "arm gcc, cortex-m55", "arm gcc, cortex-m3", "arm clang, cortex-m55"])
@with_every_kind
def test_a_policy_needs_no_library(kind: str, compiler: str, tmp_path: Path) -> None:
    """memcpy and memset are the compiler's own to ask for anywhere, as is the arithmetic a core has no instruction for."""
    for level in ("-Os", "-O3"):
        objects = objects_of(library_of(kind), tmp_path, *COMPILERS[compiler], level, "-fno-pic")
        asked = symbols(objects, "-u") - symbols(objects, "--defined-only")
        assert {name for name in asked if not name.startswith("__aeabi_")} <= {"memcpy", "memset"}
        if compiler != "arm gcc, cortex-m3":
            assert not {
                name for name in asked if re.match(r"__aeabi_[fd]", name)
            }  # no software float where there is one


@with_every_kind
def test_every_global_symbol_is_the_policys_own(kind: str, tmp_path: Path) -> None:
    for compiler in ("gcc", "arm gcc, cortex-m55"):
        objects = objects_of(library_of(kind), tmp_path, *COMPILERS[compiler], "-O2")
        lines = run("nm", "--defined-only", "--extern-only", *objects).splitlines()
        names = {line.split()[-1] for line in lines if line.strip() and not line.endswith(":")}
        assert {f"{kind}_predict", f"{kind}_predict_in", f"tvmgen_{kind}_run"} <= names
        assert all(name.startswith((f"tvmgen_{kind}_", f"{kind}_")) for name in names), names


def variables_of(path: Path) -> dict[str, tuple[str, int, bool]]:
    """Every variable of an object: its section, its offset there modulo what the section is aligned to, and 16; whether
    it can be written."""
    found = {}
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        for symbol in elf.get_section_by_name(".symtab").iter_symbols():
            if symbol["st_info"]["type"] == "STT_OBJECT":
                section = elf.get_section(symbol["st_shndx"])
                aligned = section["sh_addralign"] >= 16 and symbol["st_value"] % 16 == 0
                found[symbol.name] = (section.name, 16 if aligned else 1, bool(section["sh_flags"] & 1))
    return found


@with_every_kind
def test_parameters_are_constant_and_lie_on_16_bytes(kind: str, tmp_path: Path) -> None:
    for compiler in ("gcc", "arm gcc, cortex-m55"):
        shell, *_ = objects_of(library_of(kind), tmp_path, *COMPILERS[compiler], "-O2")
        variables = variables_of(shell)
        workspace = [name for name in variables if "workspace" in name]
        assert len(variables) > 3
        assert len(workspace) == 1
        for name, (section, alignment, writable) in variables.items():
            assert alignment == 16, name
            assert writable == (name in workspace), name
            assert section.startswith(".bss" if name in workspace else ".rodata"), name


def test_macros_move_parameters_and_workspace(tmp_path: Path) -> None:
    kind = "int8"
    moved = [
        f'-DTVMGEN_{kind.upper()}_{what}=__attribute__((section("{section}")))'
        for what, section in (("PARAMETERS", ".itcm_weights"), ("WORKSPACE", ".dtcm"))
    ]
    for compiler in ("gcc", "clang", "arm gcc, cortex-m55", "arm clang, cortex-m55"):
        shell, *_ = objects_of(library_of(kind), tmp_path, *COMPILERS[compiler], *WARNINGS, "-O2", *moved)
        for name, (section, alignment, _) in variables_of(shell).items():
            assert section == (".dtcm" if "workspace" in name else ".itcm_weights"), (compiler, name)
            assert alignment == 16


# ---- assembly ----


@pytest.mark.parametrize("kind", [name for name, (*_, target) in KINDS.items() if target == "cortex-m55"])
def test_assembly_is_instructions_and_nothing_else(kind: str, tmp_path: Path) -> None:
    """No debug sections, no unwind tables, none of TVM's half-precision helpers; each kernel in a section of its own."""
    (source,) = (path for path in unpack(library_of(kind), tmp_path) if path.suffix == ".S")
    text = source.read_text()
    for unwanted in ("hfsf2", "sfhf2", ".cfi_", ".fnstart", ".debug", ".file", ".ident", ".eabi_attribute", "tvm.fp16"):
        assert unwanted not in text
    for compiler in ("arm gcc, cortex-m55", "arm clang, cortex-m55"):
        run(*COMPILERS[compiler], "-c", source, "-o", tmp_path / "o")
        with (tmp_path / "o").open("rb") as stream:
            elf = ELFFile(stream)
            sections = [s.name for s in elf.iter_sections() if s["sh_size"] and s["sh_flags"] & 2]
            functions = [
                s for s in elf.get_section_by_name(".symtab").iter_symbols() if s["st_info"]["type"] == "STT_FUNC"
            ]
            assert sections == [f".text.{function.name}" for function in functions]
            assert all(function["st_size"] > 0 for function in functions)
            assert not any(re.search(r"debug|exidx|eh_frame", s.name) for s in elf.iter_sections())
    run("gcc", "-c", source, "-o", tmp_path / "o")  # on another machine the file is empty, not an error
    assert symbols([tmp_path / "o"], "--defined-only") == set()


def test_two_policies_link_into_one_program(tmp_path: Path) -> None:
    objects = []
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        objects += objects_of(library_of(kind), tmp_path / kind, *COMPILERS["arm gcc, cortex-m55"], "-O2")
    run("arm-none-eabi-ld", "-r", *objects, "-o", tmp_path / "both.o")


def test_labels_of_two_listings_do_not_meet() -> None:
    listing = "f:\n\t.fnstart\n\tb\t.LBB0_1\n.LBB0_1:\n\tvmla.i32\tq0, q1, r0\t@ a comment\n\tbx\tlr\n.Lfunc_end0:\n"
    one, two = function_text(listing, "f"), function_text(listing.replace("f:", "g:", 1), "g")
    assert ".Lf_BB0_1:" in one
    assert ".Lg_BB0_1:" in two
    assert "vmla.s32\tq0, q1, r0\n" in one
    assert ".fnstart" not in one


# ---- calls ----


def shared(library: ModelLibrary, folder: Path, *flags: str) -> ctypes.CDLL:
    sources = [source for source in unpack(library, folder) if source.suffix == ".c"]
    path = folder / "policy.so"
    run("gcc", *(flags or ("-O2",)), "-fPIC", "-c", "-I", folder / "include", *sources, cwd=folder)
    run(
        "gcc", "-shared", *folder.glob("*.o"), "-o", path
    )  # not by -Ofast, which would turn off denormals in this process
    return ctypes.CDLL(str(path))


class Called:
    """A library's functions for one kind, on arrays."""

    def __init__(self, kind: str, folder: Path, *flags: str) -> None:
        self.kind, self.library = kind, library_of(kind)
        self.code = shared(self.library, folder, *flags)
        interface = self.library.interface
        self.lengths = [tensor["length"] for tensor in interface["inputs"]]
        self.n_actions, self.dtype = interface["action"]["length"], interface["action"]["dtype"]
        main = self.library.module["memory"]["functions"]["main"][0]
        self.workspace_bytes = main["workspace_size_bytes"]
        self.rows, self.expected = (self.library.vectors()[name] for name in ("observations", "expected"))

    def parts(self, row: np.ndarray) -> list[np.ndarray]:
        return [np.ascontiguousarray(p, np.float32) for p in np.split(row, np.cumsum(self.lengths)[:-1])]

    def predict(self, row: np.ndarray) -> tuple[int, np.ndarray]:
        return self.call(f"{self.kind}_predict", [], row)

    def predict_in(self, workspace: np.ndarray, row: np.ndarray) -> tuple[int, np.ndarray]:
        return self.call(f"{self.kind}_predict_in", [workspace.ctypes.data], row)

    def call(self, name: str, first: list[int], row: np.ndarray) -> tuple[int, np.ndarray]:
        parts, action = self.parts(row), np.full(self.n_actions, 77, self.dtype)
        pointers = [*first, *(part.ctypes.data for part in parts), action.ctypes.data]
        return getattr(self.code, name)(*map(ctypes.c_void_p, pointers)), action

    def through_structs(self, row: np.ndarray) -> tuple[int, np.ndarray]:
        parts, action = self.parts(row), np.full(self.n_actions, 77, self.dtype)
        inputs = (ctypes.c_void_p * len(parts))(*(part.ctypes.data for part in parts))
        outputs = (ctypes.c_void_p * 1)(action.ctypes.data)
        return getattr(self.code, f"tvmgen_{self.kind}_run")(inputs, outputs), action

    def workspace(self, fill: int) -> np.ndarray:
        """Aligned, of the size the header asks for, between canaries of 16 bytes."""
        room = np.full(self.workspace_bytes + 48, 0xA5, np.uint8)
        start = -room.ctypes.data % 16 + 16
        workspace = room[start : start + self.workspace_bytes]
        workspace[:] = fill
        return workspace


@with_every_kind
def test_the_three_calls_answer_alike(kind: str, tmp_path: Path) -> None:
    policy = Called(kind, tmp_path)
    workspace = policy.workspace(0)
    for row in policy.rows[:16]:
        status, action = policy.predict(row)
        assert status == 0
        for again, other in (policy.predict_in(workspace, row), policy.through_structs(row)):
            assert again == 0
            np.testing.assert_array_equal(other, action)


@with_every_kind
def test_a_callers_workspace_is_all_a_call_touches(kind: str, tmp_path: Path) -> None:
    """Whatever was in it does not matter, and nothing before or behind it is written."""
    policy = Called(kind, tmp_path)
    for row, fill in zip(policy.rows[:16], range(0, 256, 16), strict=True):
        wanted = policy.predict(row)[1]
        workspace = policy.workspace(fill)
        np.testing.assert_array_equal(policy.predict_in(workspace, row)[1], wanted)
        room = workspace.base
        start = workspace.ctypes.data - room.ctypes.data
        assert (room[:start] == 0xA5).all()
        assert (room[start + policy.workspace_bytes :] == 0xA5).all()


@with_every_kind
def test_calls_with_workspaces_of_their_own_may_overlap(kind: str, tmp_path: Path) -> None:
    policy = Called(kind, tmp_path)
    wanted = [policy.predict(row)[1].tobytes() for row in policy.rows]

    def many(seed: int) -> list[bool]:
        workspace, order = policy.workspace(seed), np.random.default_rng(seed).integers(0, len(policy.rows), 2000)
        return [policy.predict_in(workspace, policy.rows[i])[1].tobytes() == wanted[i] for i in order]

    with ThreadPoolExecutor(8) as threads:  # ctypes lets go of the interpreter during a call
        assert all(all(right) for right in threads.map(many, range(8)))


@pytest.mark.parametrize("flags", [("-O2",), ("-Ofast",)], ids=" ".join)
@with_every_kind
def test_an_observation_that_is_no_number_gives_zeros_and_a_status(
    kind: str, flags: Sequence[str], tmp_path: Path
) -> None:
    policy = Called(kind, tmp_path, *flags)
    for place in range(len(policy.rows[0])):
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            row = policy.rows[0].copy()
            row[place] = value
            for status, action in (policy.predict(row), policy.through_structs(row)):
                assert status == 1
                np.testing.assert_array_equal(action, np.zeros(policy.n_actions))
        row[place] = 3.4e38
        assert policy.predict(row)[0] == 0
    status, action = policy.predict(policy.rows[0])
    assert (status, action.tobytes()) == (0, policy.predict(policy.rows[0])[1].tobytes())


# ---- names ----

HOSTILE = [
    (["*/ int x; /*"], 'a"b'),
    (["float"], "int"),
    (["return"], "return"),
    (["class"], "namespace"),
    (["π"], "действие"),
    (["a\nb"], "a\r\n#error"),
    (["??/"], "%s%n"),
    (["obs", "Obs", "OBS"], "oBs"),
    (["a b", "a.b", "a_b"], "a-b"),
    (["weight_1", "bias_1"], "requant_1"),
    (["doubled_inverse_scale_0", "zero_point_0"], "scale_2"),
    (["weight_2", "bias_2"], "table_1"),
    (["scratch", "workspace"], "all_finite"),
    (["policy_predict", "policy_predict_in"], "tvmgen_policy_run"),
    (["tvmgen_policy_dense1", "tvmgen_policy_quantize0"], "tvmgen_policy_head2"),
    (["tvmgen_policy_inputs", "tvmgen_policy_outputs"], "inputs"),
    (["memcpy", "memset"], "UINT32_C"),
    (["ALIGNED", "uint32_t"], "int8_t"),
    (["__FILE__", "__func__"], "__attribute__"),
    (["NULL", "i"], "main"),
    (["x" * 300, "x" * 299 + "y"], "x" * 300),
    (["1", "2"], "3"),
]


@pytest.mark.parametrize(("inputs", "action"), HOSTILE, ids=lambda names: ascii(names)[:40])
@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_any_tensor_name_compiles_and_answers(inputs: list[str], action: str, precision: str, tmp_path: Path) -> None:
    shapes = {name: (2 + index,) for index, name in enumerate(inputs)}
    n_obs = sum(length for (length,) in shapes.values())
    model = dense_policy((n_obs, 9, 3), inputs=shapes, action_name=action if action not in shapes else f"{action}!")
    library = compile_model(model, tmp_path, precision=precision).library
    assert "PARITY PASS" in replay(library, tmp_path, "gcc", *WARNINGS, "-O1")
    for source in unpack(library, tmp_path):
        run(
            *COMPILERS["arm gcc, cortex-m55"], *WARNINGS, "-I", tmp_path / "include", "-c", source, "-o", tmp_path / "o"
        )
    header = tmp_path / "include" / "tvmgen_policy.h"
    run("g++", "-x", "c++", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", header)


@pytest.mark.parametrize("name", ["float", "*/x", "1st", "π", "a b'c\"d", "main", "Upper", "x" * 90, "tvmgen_x", "\\"])
def test_any_file_name_compiles_and_answers(name: str, tmp_path: Path) -> None:
    file = re.sub("/", "", name)
    library = compile_model(dense_policy((4, 9, 3), head=arg_max), tmp_path, name=file).library
    assert "PARITY PASS" in replay(library, tmp_path, "gcc", *WARNINGS, "-O1")
    for source in unpack(library, tmp_path):
        run(
            *COMPILERS["arm gcc, cortex-m55"], *WARNINGS, "-I", tmp_path / "include", "-c", source, "-o", tmp_path / "o"
        )


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_a_comment_never_ends_early(text: str) -> None:
    safe = comment(text)
    assert "*/" not in safe
    assert "/*" not in safe
    assert "??/" not in safe
    assert safe.isascii()
    assert safe.isprintable()
    assert not safe.endswith("\\")
    assert "*/" not in f"* {safe} */"[:-2].removeprefix("* ")


# ---- numbers ----


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_a_printed_float_reads_back_as_itself(values: list[float]) -> None:
    array = np.array(values, np.float32)
    words = array_text(array).replace("\n", " ").split(",")
    read = np.array([np.float32(word.strip().removesuffix("f")) for word in words])
    assert read.view(np.int32).tolist() == array.view(np.int32).tolist()
    assert all(re.fullmatch(r"-?\d+(\.\d+)?(e[+-]\d+)?f", word.strip()) and re.search("[.e]", word) for word in words)


def test_the_least_integer_is_no_literal_in_c() -> None:
    """-2147483648 is a minus before what does not fit an int."""
    assert array_text(np.array([-(2**31), 2**31 - 1], np.int32)).split(",")[0].strip() == "(-2147483647 - 1)"


# ---- the same bytes ----

COMPILE_AND_HASH = """
import hashlib, sys
from pathlib import Path
from tinyrl_tvm.pipeline import compile_policy
for policy in sys.argv[1:]:
    path = Path(policy)
    for precision in ("int8", "float32"):
        compiled = compile_policy(path, target="cortex-m55", precision=precision, calibration=path.with_suffix(".npz"))
        print(hashlib.sha256(compiled.library.to_bytes()).hexdigest())
"""


def test_the_same_policy_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    policies = []
    for kind in ("int8", "int8_joined"):
        sizes, options, *_ = KINDS[kind]
        compile_model(dense_policy(sizes, **options), tmp_path, name=kind)
        policies.append(str(tmp_path / f"{kind}.onnx"))
    printed = set()
    for seed in ("1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        environment.pop("SOURCE_DATE_EPOCH", None)
        done = subprocess.run(
            [sys.executable, "-c", COMPILE_AND_HASH, *policies],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        printed.add(done.stdout)
    assert len(printed) == 1
    assert len(set(printed.pop().split())) == 4


def test_a_date_comes_from_the_environment_or_is_1980(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dates = {}
    for epoch in (None, "1000000000"):
        if epoch is None:
            monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
        else:
            monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        library = compile_model(dense_policy((3, 4, 2)), tmp_path).library
        dates[library.module["export_datetime"]] = hashlib.sha256(library.to_bytes()).hexdigest()
    assert list(dates) == ["1980-01-01 00:00:00Z", "2001-09-09 01:46:40Z"]
    assert len(set(dates.values())) == 2


def test_these_tests_ask_the_tools_that_doctor_names() -> None:
    for tool in ("cc", "clang", "arm-none-eabi-gcc"):
        toolchain.find(tool)  # says which line installs it
    assert host.run(library_of("int8")).parity == "PASS"
