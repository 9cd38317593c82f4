# SPDX-License-Identifier: Apache-2.0
"""The memory contract: predicted, linked and painted agree, and what breaks it is said in a sentence."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from policies import arg_max, compile_model, dense_policy, greater, logits, squashed, unscaled
from test_cli import tinyrl

from tinyrl_tvm.cli.contract import judge, say_memory, say_painted
from tinyrl_tvm.device import micro
from tinyrl_tvm.device.elf import cost_of_policy, footprint
from tinyrl_tvm.device.map_file import placed_sections
from tinyrl_tvm.device.memory import measure
from tinyrl_tvm.device.stack_usage import deepest_call
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.machine_code import MachineFrame
from tinyrl_tvm.memory import PAINTED_MARGIN_BYTES, RESOURCES, Amount, Budget, Contract, Contributor, Memory
from tinyrl_tvm.pipeline import Compiled, compile_policy
from tinyrl_tvm.project import BuiltProject, build, create

POLICIES = Path(__file__).parents[1] / "benchmarks" / "policies"


@dataclass(frozen=True)
class Case:
    target: str
    board: str
    precision: str
    sizes: Sequence[int]
    activation: str = "Relu"
    head: Any = logits
    inputs: Any = None

    def __str__(self) -> str:
        sizes = "-".join(map(str, self.sizes))
        return f"{self.target}-{self.precision}-{sizes}-{self.activation}-{self.head.__name__}"

    def built(self, folder: Path) -> BuiltProject:
        model = dense_policy(self.sizes, activation=self.activation, head=self.head, inputs=self.inputs, seed=3)
        library = compile_model(model, folder, precision=self.precision, target=self.target).library
        return build(create(library, folder / "project", "baremetal", {"board": self.board}))


CASES = (
    Case("cortex-m55", "mps3-an547", "int8", (1, 71, 102, 10), head=arg_max),
    Case("cortex-m55", "mps3-an547", "float32", (9, 8, 8, 64, 8), "Tanh", arg_max, {"a": (1,), "b": (8,)}),
    Case("cortex-m33", "mps2-an505", "int8", (12, 32, 64, 11), "Sigmoid"),
    Case("cortex-m7", "mps2-an500", "float32", (5, 20, 3), "Tanh", squashed()),
    Case("cortex-m4", "mps2-an386", "int8", (24, 48, 100, 4), "Tanh", unscaled(-2.0, 2.0)),
    Case("cortex-m3", "mps2-an385", "int8", (18, 72, 4, 3), head=greater, inputs={"a": (2,), "b": (16,)}),
    Case("cortex-m3", "mps2-an385", "float32", (8, 16, 2)),
    Case("cortex-m3", "mps2-an385", "float32", (7, 8, 60)),
    Case("cortex-m0", "microbit", "int8", (12, 32, 64, 11), "Sigmoid"),
    Case("cortex-m0", "microbit", "float32", (10, 16, 4), "Tanh"),
    Case("rv32imc", "riscv32-virt", "int8", (38, 32, 1)),
    Case("rv32imc", "riscv32-virt", "float32", (3, 20, 20, 2), "Tanh", squashed()),
    Case("portable", "microbit", "int8", (32, 32, 20, 5)),
    Case("portable", "mps2-an385", "int8", (7, 8, 300), head=arg_max),
    Case("portable", "mps3-an547", "float32", (6, 24, 3), "Sigmoid"),
    Case("host", "riscv32-virt", "int8", (10, 30, 3)),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_predicted_linked_and_painted_agree(case: Case, tmp_path: Path) -> None:
    built = case.built(tmp_path)
    linked = measure(built)
    assert linked is not None
    assert linked.broken() is None
    cost = cost_of_policy(built)
    assert (linked.flash.n_bytes, linked.ram.n_bytes) == (cost.flash_bytes, cost.ram_bytes)
    painted = micro.run(built.project).stack_bytes
    assert painted is not None
    assert linked.with_painted(painted).broken() is None
    for graph in built.project.folder.glob("out/**/*.ci"):
        graph.unlink()
    again = measure(built)
    assert again is not None
    assert again.stack == linked.stack  # by the machine code alone, as of a GCC before 10
    for part in linked.contract.flash.contributors:
        if part.name.endswith(" parameters") and linked.contract.flash.margin_bytes < 2000:  # else C may fold a number
            assert (part.name, part.n_bytes, part.n_bytes) in linked.rows("flash")
        if part.name.endswith(" code") and part.margin_bytes == 0:  # in assembly
            (after,) = (after for name, _, after in linked.rows("flash") if name == part.name)
            assert after is not None
            assert 0 <= after - part.n_bytes <= 3, part.name


def compile_p1(**options: Any) -> Compiled:
    return compile_policy(POLICIES / "P1.onnx", target="cortex-m55", calibration=POLICIES / "P1.npz", **options)


@pytest.fixture(scope="module")
def p1(tmp_path_factory: pytest.TempPathFactory) -> BuiltProject:
    return build(create(compile_p1().library, tmp_path_factory.mktemp("p1") / "project", "baremetal"))


@pytest.fixture(scope="module")
def memory(p1: BuiltProject) -> Memory:
    measured = measure(p1)
    assert measured is not None
    return measured


# ---- budgets ----


@pytest.mark.parametrize("resource", RESOURCES)
def test_a_budget_is_met_to_the_byte_and_broken_by_one(resource: str, memory: Memory) -> None:
    n_bytes = memory.measured(resource).n_bytes
    exact = replace(memory, contract=replace(memory.contract, budget=Budget(**{f"{resource}_bytes": n_bytes})))
    assert exact.broken() is None
    short = replace(memory, contract=replace(memory.contract, budget=Budget(**{f"{resource}_bytes": n_bytes - 1})))
    what = "RAM" if resource == "ram" else resource
    assert short.broken() == (
        f"the policy takes {n_bytes:,} B of {what}, its budget is {n_bytes - 1:,} B; "
        f"the largest parts are {memory.measured(resource).largest}"
    )
    assert memory.flash.largest.startswith("dense2 parameters (4,352 B), dense1 parameters (768 B) and dense2 code (")


def test_the_linker_itself_refuses_a_policy_over_its_budget(tmp_path: Path, memory: Memory) -> None:
    flash = memory.contract.flash.least_bytes + 20  # not hopeless, and too little
    library = compile_p1(budget=Budget(flash_bytes=flash)).library
    project = create(library, tmp_path / "project", "baremetal")
    with pytest.raises(TinyrlError) as raised:
        build(project)
    assert str(raised.value) == (
        f"the policy takes more flash than its budget of {flash} B; the largest parts are "
        f"{memory.contract.flash.largest}; try a smaller network, or compile it with another budget"
    )
    made = subprocess.run(["make"], cwd=project.folder, capture_output=True, text=True, check=False)
    assert made.returncode != 0
    assert f"the policy takes more flash than its budget of {flash} B" in made.stderr


@pytest.mark.parametrize("spare", [0, -1])
def test_cmake_links_what_is_within_its_budget_and_no_more(spare: int, tmp_path: Path, memory: Memory) -> None:
    ram = memory.ram.n_bytes + spare
    contract = replace(memory.contract, budget=Budget(memory.flash.n_bytes + 16, ram, 4096))
    library = with_entry(compile_p1().library, contract.to_json())
    folder = create(library, tmp_path / "project", "baremetal").folder
    subprocess.run(["cmake", "-B", "build"], cwd=folder, capture_output=True, check=True)
    built = subprocess.run(["cmake", "--build", "build"], cwd=folder, capture_output=True, text=True, check=False)
    assert (built.returncode == 0) == (spare == 0), built.stderr
    assert (f"the policy takes more RAM than its budget of {ram} B" in built.stdout + built.stderr) == (spare < 0)


def test_a_build_within_its_budget_links_and_keeps_its_figures(tmp_path: Path, memory: Memory) -> None:
    budget = Budget(memory.flash.n_bytes + 16, memory.ram.n_bytes, memory.stack.n_bytes)
    project = create(compile_p1(budget=budget).library, tmp_path / "project", "baremetal")
    again = measure(build(project))
    assert again is not None
    assert again.broken() is None
    assert abs(again.flash.n_bytes - memory.flash.n_bytes) <= 16  # the policy's sections lie together: other padding
    assert micro.run(project).parity == "PASS"


def test_a_board_too_small_is_refused_before_a_folder_is_written(tmp_path: Path) -> None:
    model = dense_policy((64, 256, 256, 8), seed=1)
    library = compile_model(model, tmp_path, precision="float32", target="portable").library
    contract = Contract.of(library)
    assert contract is not None
    with pytest.raises(TinyrlError) as raised:
        create(library, tmp_path / "project", "baremetal", {"board": "microbit"})
    assert str(raised.value) == (
        f"the policy needs at least {contract.flash.least_bytes:,} B of flash, 'microbit' has 262,144 B; the largest parts "
        f"are {contract.flash.largest}; take a larger board, --precision int8 or a smaller network"
    )
    assert not (tmp_path / "project").exists()
    create(library, tmp_path / "project", "baremetal", {"board": "mps3-an547"})


# ---- predictions ----


def with_entry(library: ModelLibrary, entry: Any) -> ModelLibrary:
    metadata = library.metadata
    metadata["modules"][library.name]["tinyrl"]["memory"] = entry
    return ModelLibrary({**library.files, "metadata.json": json.dumps(metadata).encode()})


@pytest.mark.parametrize("resource", RESOURCES)
def test_a_prediction_that_was_tampered_with_fails_the_build(resource: str, p1: BuiltProject, memory: Memory) -> None:
    entry = memory.contract.to_json()
    margin = entry[resource]["margin_bytes"]
    entry[resource]["contributors"][0]["bytes"] += 1000 + margin
    entry[resource]["predicted_bytes"] += 1000 + margin
    forged = replace(p1, project=replace(p1.project, library=with_entry(p1.project.library, entry)))
    measured = measure(forged)
    assert measured is not None
    sentence = measured.broken()
    assert sentence is not None
    what = "RAM" if resource == "ram" else resource
    before, after = entry[resource]["predicted_bytes"], memory.measured(resource).n_bytes
    part = entry[resource]["contributors"][0]["name"]
    assert sentence.startswith(
        f"the policy takes {after:,} B of {what}, {before:,} B were predicted with a margin of {margin:,} B; "
        f"the part furthest off is {part}, "
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda entry: entry["flash"].update(predicted_bytes=1), "its contributors do not add up"),
        (lambda entry: entry["ram"]["contributors"][0].update(bytes=-1), "-1 is no size"),
        (lambda entry: entry["ram"].update(budget_bytes="32K"), "'32K' is no size"),
        (lambda entry: entry.pop("stack"), "'stack'"),
    ],
)
def test_a_damaged_contract_is_refused(change: Any, reason: str, memory: Memory, p1: BuiltProject) -> None:
    entry = json.loads(json.dumps(memory.contract.to_json()))
    change(entry)
    with pytest.raises(TinyrlError) as raised:
        Contract.of(with_entry(p1.project.library, entry))
    assert str(raised.value) == f"the library's memory contract is damaged ({reason}); compile the policy again"


def test_a_library_of_before_has_no_contract(p1: BuiltProject) -> None:
    assert Contract.of(with_entry(p1.project.library, None)) is None


def test_a_contract_reads_back_as_it_was_written(memory: Memory, p1: BuiltProject) -> None:
    contract = replace(memory.contract, budget=Budget(1, None, 3))
    assert Contract.of(with_entry(p1.project.library, contract.to_json())) == contract


# ---- painting ----


def test_a_stack_deeper_than_its_bound_or_far_above_it_is_refused(memory: Memory) -> None:
    bound = memory.stack.n_bytes
    assert memory.with_painted(bound).broken() is None
    assert memory.with_painted(bound - PAINTED_MARGIN_BYTES).broken() is None
    assert memory.with_painted(bound + 1).broken() == (
        f"the stack was {bound + 1:,} B deep when the policy ran, and its calls bound it to {bound:,} B"
    )
    shallow = bound - PAINTED_MARGIN_BYTES - 1
    assert memory.with_painted(shallow).broken() == (
        f"the stack was {shallow:,} B deep when the policy ran, its calls bound it to {bound:,} B, and the two may differ "
        f"by {PAINTED_MARGIN_BYTES} B; the deepest chain is dense2 frame (104 B) and shell (24 B)"
    )


def test_the_record_says_all_three_numbers(memory: Memory) -> None:
    record = memory.with_painted(120).to_json()
    assert record["stack"]["painted_bytes"] == 120
    for resource in RESOURCES:
        parts = record[resource]["contributors"]
        assert sum(part["measured_bytes"] or 0 for part in parts) == record[resource]["measured_bytes"]
        assert sum(part["predicted_bytes"] or 0 for part in parts) == record[resource]["predicted_bytes"]


# ---- what binds, and what is a note ----


@pytest.fixture(scope="module")
def mispredicted(tmp_path_factory: pytest.TempPathFactory, p1: BuiltProject, memory: Memory) -> dict[bool, Path]:
    """Projects of a policy whose RAM was foretold 64 B too small: of a library with a budget, or without, and built."""
    projects = {}
    for bound in (True, False):
        contract = replace(memory.contract, ram=Amount((Contributor("workspace", memory.ram.n_bytes - 64),)))
        budget = Budget(stack_bytes=4096) if bound else Budget()
        library = with_entry(p1.project.library, replace(contract, budget=budget).to_json())
        folder = tmp_path_factory.mktemp("mispredicted") / "project"
        projects[bound] = build(create(library, folder, "baremetal")).project.folder
    return projects


@pytest.mark.parametrize("verb", ["micro build", "micro test", "run --device micro"])
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_bad_prediction_fails_a_policy_with_a_budget_and_is_a_note_without_one(
    verb: str, more: tuple[str, ...], mispredicted: dict[bool, Path], memory: Memory
) -> None:
    n_bytes = memory.ram.n_bytes
    sentence = (
        f"the policy takes {n_bytes} B of RAM, {n_bytes - 64} B were predicted with a margin of 0 B; the part furthest off "
        f"is workspace, {n_bytes - 64} B predicted and {n_bytes} B measured\n"
    )
    failed = tinyrl(*verb.split(), mispredicted[True], *more)
    assert (failed.exit_code, failed.stderr) == (1, sentence)
    noted = tinyrl(*verb.split(), mispredicted[False], *more)
    assert (noted.exit_code, noted.stderr) == (0, f"note: {sentence}")


def test_a_stack_that_its_calls_do_not_bound_is_a_note_without_a_budget(
    memory: Memory, capsys: pytest.CaptureFixture[str]
) -> None:
    deeper = memory.with_painted(memory.stack.n_bytes + 1)
    endless = replace(memory, stack="'dense' calls itself, so that the stack has no bound before it runs").with_painted(
        120
    )
    for broken in (deeper, endless):
        sentence = broken.broken()
        assert sentence is not None
        judge(broken)
        assert capsys.readouterr() == ("", f"note: {sentence}\n")
        with pytest.raises(TinyrlError) as raised:
            judge(replace(broken, contract=replace(memory.contract, budget=Budget(ram_bytes=1 << 20))))
        assert str(raised.value) == sentence
    assert endless.broken() == endless.stack
    assert endless.to_json()["stack"]["measured_bytes"] is None
    say_painted(endless)
    say_memory(endless)
    assert "no bound by its calls, 120 B painted" in capsys.readouterr().out


# ---- the map, the call graph, the machine code ----


@pytest.mark.parametrize("board", ["mps3-an547", "microbit"])
def test_strings_that_the_linker_found_elsewhere_take_no_room(board: str, tmp_path: Path) -> None:
    library = compile_model(dense_policy((4, 8, 2)), tmp_path, target="portable").library
    _, empty = build(create(library, tmp_path / "project", "baremetal", {"board": board, "link": "uart"})).products
    assert 0 in _sizes_on_the_map(empty.with_suffix(".map"))
    placed = placed_sections(empty.with_suffix(".map"), empty)
    assert sum(section.n_bytes for section in placed if section.in_flash) == footprint(empty).flash_bytes


def _sizes_on_the_map(path: Path) -> list[int]:
    """Bytes from each section of strings to whatever follows it."""
    text = path.read_text().partition("Linker script and memory map\n")[2]
    sections = re.findall(r"^ (\S+)\s+0x([0-9a-f]+)\s+0x[0-9a-f]+(?: |$)", text, re.MULTILINE)
    pairs = itertools.pairwise(sections)
    return [int(after, 16) - int(address, 16) for (name, address), (_, after) in pairs if ".str1." in name]


def test_a_map_that_does_not_add_up_is_refused(tmp_path: Path, p1: BuiltProject) -> None:
    firmware = p1.products[0]
    text = firmware.with_suffix(".map").read_text()
    forged = tmp_path / "firmware.map"
    forged.write_text(text.replace("Linker script and memory map", "Something else"))
    with pytest.raises(TinyrlError, match=r"firmware.map' does not add up to .*; build the project again"):
        placed_sections(forged, firmware)
    with pytest.raises(TinyrlError, match=r"no map file .*; build the project again"):
        placed_sections(tmp_path / "none.map", firmware)


def test_without_gccs_call_graph_the_bound_comes_from_the_machine_code(tmp_path: Path, memory: Memory) -> None:
    project = create(compile_p1().library, tmp_path / "project", "baremetal")
    subprocess.run(["make", "STACK_USAGE="], cwd=project.folder, capture_output=True, check=True)
    assert not list(project.folder.glob("out/**/*.ci"))
    measured = measure(build(project))
    assert measured is not None
    assert measured.stack == memory.stack


LISTING = """
00000000 <predict>:
   0:\tpush\t{r4, lr}
   2:\tbl\t10 <kernel>
   6:\tpop\t{r4, pc}

00000010 <kernel>:
  10:\tvpush\t{d8-d11}
  14:\tsub\tsp, #16
  16:\tb.n\t20 <tail>

00000020 <tail>:
  20:\tstr.w\tlr, [sp, #-4]!
  24:\t%s
  28:\tbeq.n\t16 <kernel+0x6>
  2a:\tldr.w\tpc, [sp], #4
"""


def test_the_deepest_chain_is_the_sum_of_its_frames() -> None:
    chain = deepest_call("predict", LISTING % "nop", [])
    assert [(frame.name, frame.n_bytes) for frame in chain] == [("predict", 8), ("kernel", 48), ("tail", 4)]
    told = 'node: { title: "a.c:kernel" label: "kernel\\na.c:1:1\\n96 bytes (static)" }\n'
    assert [frame.n_bytes for frame in deepest_call("predict", LISTING % "nop", [told])] == [8, 96, 4]


def test_a_long_jump_of_thumb_1_is_no_recursion() -> None:
    """It has no other than a call: `bl` into the function's own middle."""
    chain = deepest_call("predict", LISTING % "bl\t28 <tail+0x8>", [])
    assert [frame.name for frame in chain] == ["predict", "kernel", "tail"]


@pytest.mark.parametrize(
    ("instruction", "call_graph", "reason"),
    [
        ("bl\t0 <predict>", "", "'predict' calls itself"),
        ("bl\t20 <tail>", "", "'tail' calls itself"),
        ("blx\tr3", "", "'tail' calls through a pointer"),
        ("sub.w\tsp, sp, r3", "", "'tail' takes a frame whose size depends on data"),
        ("nop", 'edge: { sourcename: "a.c:tail" targetname: "__indirect_call" }', "'tail' calls through a pointer"),
        ("nop", "", "'kernel' takes a frame whose size depends on data"),
    ],
)
def test_what_has_no_bound_is_refused_by_name(instruction: str, call_graph: str, reason: str) -> None:
    node = 'node: { title: "a.c:%s" label: "%s\\na.c:1:1\\n4 bytes (%s)" }\n'
    name, kind = ("kernel", "dynamic") if "'kernel'" in reason else ("tail", "static")
    graph = node % (name, name, kind) + call_graph if instruction == "nop" else ""
    with pytest.raises(TinyrlError) as raised:
        deepest_call("predict", LISTING % instruction, [graph])
    assert str(raised.value) == f"{reason}, so that the stack has no bound before it runs"


@pytest.mark.parametrize(
    ("n_bytes", "code"),
    [
        (24 + 64 + 40, ["push.w {r4, r5, r6, r7, r8, lr}", "vpush {d8-d15}", "sub sp, #40", "add sp, #40"]),
        (20 + 204 + 8, ["push {r4-r7, lr}", "sub sp, #204", "mov r4, sp", "lsrs r4, r4, #4", "lsls r4, r4, #4",
                        "mov sp, r4", "subs r6, #5", "mov sp, r6"]),
        (8 + 16, ["push {r7, lr}", "sub.w sp, sp, #8", "mov r4, sp", "bfc r4, #0, #4", "mov sp, r4"]),
        (8 + 16, ["strd r4, r5, [sp, #-16]!", "stmdb sp!, {r6, lr}", "stmdb r0!, {r1, r2}"]),
        (144, ["addi sp, sp, -144", "addi a0, sp, -4", "addi sp, sp, 144"]),
        (16, ["add sp,sp,-16", "sw ra,12(sp)"]),
    ],
)  # fmt: skip
def test_a_frame_is_every_step_down(n_bytes: int, code: list[str]) -> None:
    frame = MachineFrame()
    for instruction in code:
        frame.read(*instruction.split(" ", 1))
    assert (frame.n_bytes, frame.unknown) == (n_bytes, False)


@pytest.mark.parametrize("instruction", ["mov sp, r4", "sub sp, r3", "add sp, r6", "sub sp,sp,t0"])
def test_a_step_by_a_register_is_of_unknown_size(instruction: str) -> None:
    frame = MachineFrame()
    frame.read(*instruction.split(" ", 1))
    assert frame.unknown


def test_the_largest_parts_are_named_and_empty_ones_are_not() -> None:
    parts = (Contributor("a", 1), Contributor("b", 3000), Contributor("c", -4), Contributor("d", 20))
    assert Amount(parts).largest == "b (3,000 B), d (20 B) and a (1 B)"
    assert Amount(parts[:1]).largest == "a (1 B)"
