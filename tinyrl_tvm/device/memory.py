# SPDX-License-Identifier: Apache-2.0
"""What a bare-metal build of a policy takes, in the parts that its contract predicted.

Flash and RAM are those of `elf.cost_of_policy`; the linker's map says what they are for. A part is a section of the
policy's own objects, which are compiled with a section a function and an array, or a member of an archive that the firmware
without the policy does not have. What is left is padding, and the call itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tinyrl_tvm import toolchain
from tinyrl_tvm.device.elf import cost_of_policy
from tinyrl_tvm.device.map_file import PADDING, Placed, placed_sections
from tinyrl_tvm.device.stack_usage import Unbounded, deepest_call, disassembly_of
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.memory import Amount, Contract, Contributor, Memory
from tinyrl_tvm.project import BuiltProject

C_LIBRARY = re.compile(r"lib_a-|mem(cpy|set|move)")


def measure(built: BuiltProject) -> Memory | None:
    """None where there is nothing to hold against: a library without a contract, or a platform without a map file."""
    contract = Contract.of(built.project.library)
    if contract is None or built.project.platform != "baremetal":
        return None
    library = built.project.library
    firmware, empty = built.products
    placed = placed_sections(firmware.with_suffix(".map"), firmware)
    others = {section.origin for section in placed_sections(empty.with_suffix(".map"), empty)}
    policys = [section for section in placed if _is_policys(section, others)]
    cost = cost_of_policy(built)
    return Memory(
        contract,
        flash=_amount((s for s in policys if s.in_flash), library, cost.flash_bytes),
        ram=_amount((s for s in policys if s.in_ram), library, cost.ram_bytes),
        stack=_stack(built, placed),
    )


def _is_policys(section: Placed, others: set[str]) -> bool:
    ours = "policy/src/" in section.origin or "cmsis_nn/" in section.origin
    return ours or (section.origin.endswith(")") and section.origin not in others)


def _amount(sections: Iterable[Placed], library: ModelLibrary, total_bytes: int) -> Amount:
    functions = library.module["memory"]["functions"]["operator_functions"]
    kernels = [entry["function_name"].removeprefix(f"tvmgen_{library.name}_") for entry in functions]
    parts = Counter[str]()
    for section in sections:
        parts[_part(section, library.name, kernels)] += section.n_bytes
    parts["padding"] += total_bytes - parts.total()
    return Amount(tuple(Contributor(part, n_bytes) for part, n_bytes in parts.items() if n_bytes))


def _part(section: Placed, name: str, kernels: list[str]) -> str:
    """What a section is for, by the name that the prediction has for it."""
    if section.name == PADDING:
        return "padding"
    if "cmsis_nn/" in section.origin or "libcmsis_nn.a" in section.origin:
        return "CMSIS-NN"
    if section.origin.endswith(")"):
        return "C library" if C_LIBRARY.search(Path(section.origin).name) else "runtime"
    array = re.fullmatch(r"\.s?rodata\.\w+_(\d+)", section.name)
    if array and int(array[1]) < len(kernels):
        return f"{kernels[int(array[1])]} parameters"
    patterns = {
        r"\.(?:text|s?rodata)\.tvmgen_\w+_([a-z]+\d+)": r"\1 code",
        rf"\.text\.(?:{name}_predict(?:_in)?|tvmgen_{name}_run|all_finite)(?:\..*)?": "shell",
        r"\.s?bss\.workspace(?:\..*)?": "workspace",
    }
    for pattern, part in patterns.items():
        if match := re.fullmatch(pattern, section.name):
            return match.expand(part)
    # what is left of the calls of CMSIS-NN are the structures that it takes
    return "CMSIS-NN" if f"{name}_lib3.c" in section.origin else "arithmetic"


def _stack(built: BuiltProject, placed: Iterable[Placed]) -> Amount | str:
    """By the deepest chain of calls, or the sentence why it has no end."""
    project = built.project
    compiler = toolchain.find(project.tools[0])
    objdump = compiler.with_name(re.sub(r"gcc(\.exe)?$", "objdump", compiler.name))
    graphs = dict.fromkeys(project.folder / section.origin for section in placed if section.origin.endswith(".o"))
    try:
        frames = deepest_call(
            f"{project.library.name}_predict",
            disassembly_of(built.products[0], objdump),
            [path.with_suffix(".ci").read_text() for path in graphs if path.with_suffix(".ci").is_file()],
        )
    except Unbounded as error:
        return str(error)
    shell = f"{project.library.name}_predict"
    parts = Counter[str]()
    for frame in frames:
        kernel = frame.name.removeprefix(f"tvmgen_{project.library.name}_")
        part = "CMSIS-NN" if frame.name.startswith("arm_") else "runtime"
        part = "shell" if frame.name.startswith(shell) else f"{kernel} frame" if kernel != frame.name else part
        parts[part] += frame.n_bytes
    return Amount(tuple(Contributor(part, n_bytes) for part, n_bytes in parts.items() if n_bytes))
