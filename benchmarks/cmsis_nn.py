# SPDX-License-Identifier: Apache-2.0
"""Measure int8 policies beside the same shapes on CMSIS-NN, called by hand, and write the table into the README.

    CMSIS_NN_PATH=... python benchmarks/cmsis_nn.py --library mps3-an547=build/libcmsis-nn.a --library ...

CMSIS_NN_PATH is a checkout of yours (at least 6.0.0), read for its headers; a library is what you built of it for the core
of the board, as its README says. Give one of every compiler: the rival of a policy is whichever needs fewer instructions.
The call by hand is built with -O3 by the library's own compiler.

Beside it stands the same policy with its hidden layers left to CMSIS-NN (`--target cmsis-nn,c`), built by the same compiler:
our calls may cost no more than those by hand.

All run in the same firmware, from float observations to float outputs. CMSIS-NN's codes have one scale a tensor, its kernel
sums are constants, its quantisation checks for no NaN; its answers are checked bit for bit against that arithmetic.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import report
from firmware import HERE
from per_tensor_int8 import Int8Policy, quantized
from random_policies import layers_of, write
from rich.console import Console
from rich.progress import Progress

from tinyrl_tvm import project as projects
from tinyrl_tvm import toolchain
from tinyrl_tvm.device import qemu
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.library import FORMAT_VERSION, ModelLibrary
from tinyrl_tvm.pipeline import compile_policy
from tinyrl_tvm.targets import board_named

REFERENCES = ("P1", "P2", "P3")
RANDOM = (
    ((5, 32, 32, 3), "Relu"),
    ((10, 48, 24, 2), "Relu"),
    ((8, 64, 64, 4), "Tanh"),
    ((17, 64, 64, 6), "Relu"),
    ((3, 16, 16, 1), "Relu"),
    ((4, 20, 20, 2), "Relu"),
    ((12, 100, 100, 4), "Relu"),
    ((8, 128, 128, 4), "Relu"),
    ((8, 256, 256, 2), "Relu"),
    ((17, 256, 256, 6), "Relu"),
    ((24, 400, 300, 4), "Relu"),
)
SMALL = 64  # units in a hidden layer, at most
AT_MOST_BY_OUR_CALLS = 1.03  # of the instructions by hand, with the same compiler
AT_MOST_SMALL, AT_MOST_WIDE, AT_MOST_ELSEWHERE = 0.45, 0.70, 1.0  # of CMSIS-NN's instructions; elsewhere: no Helium


@dataclass(frozen=True)
class Rival:
    """A built CMSIS-NN for a board. `compiler` is its own word for itself, found in the archive."""

    board: str
    archive: Path
    compiler: str

    @property
    def is_clang(self) -> bool:
        return "clang" in self.compiler


@dataclass(frozen=True)
class Row:
    """One policy on one board: ours, and the better of the rivals. Errors are against the float policy. `offloaded` is our
    library whose hidden layers are CMSIS-NN's, built by that rival's compiler; `offloaded_ratio` the largest, of every
    rival, to what its calls by hand take."""

    board: str
    policy: str
    shape: str
    instructions: float
    rival_instructions: float
    offloaded_instructions: float
    offloaded_ratio: float
    rival_compiler: str
    at_most: float
    flash_bytes: int
    rival_flash_bytes: int
    ram_bytes: int
    rival_ram_bytes: int
    stack_bytes: int
    rival_stack_bytes: int
    max_abs_error: float
    rival_max_abs_error: float
    parity: str
    rival_parity: str

    @property
    def ratio(self) -> float:
        return self.instructions / self.rival_instructions

    @property
    def is_dear(self) -> bool:
        return self.offloaded_ratio > AT_MOST_BY_OUR_CALLS

    @property
    def cells(self) -> tuple[str, ...]:
        return (
            self.policy,
            self.shape,
            f"{self.instructions:,.0f}",
            f"{self.rival_instructions:,.0f} ({self.rival_compiler.split()[0]})",
            f"{self.offloaded_instructions:,.0f}",
            f"{self.ratio:.2f}",
            f"{self.flash_bytes:,} / {self.rival_flash_bytes:,}",
            f"{self.ram_bytes:,} / {self.rival_ram_bytes:,}",
            f"{self.stack_bytes:,} / {self.rival_stack_bytes:,}",
            f"{self.max_abs_error:.3f} / {self.rival_max_abs_error:.3f}",
        )


@click.command(help=__doc__)
@click.option("--library", "libraries", multiple=True, metavar="BOARD=FILE", help="a built libcmsis-nn.a, repeated")
@click.option("--readme/--no-readme", default=True, help="write the table into README.md and cmsis_nn.json")
def main(libraries: tuple[str, ...], readme: bool) -> None:
    headers = include_folder()
    rivals = [rival_of(given) for given in libraries]
    if not rivals:
        raise click.UsageError("give at least one --library BOARD=FILE, a libcmsis-nn.a built for the board's core")
    facts = report.machine(cross_compiler="arm-none-eabi-gcc", emulator="qemu-system-arm")
    facts |= {"cmsis_nn": f"CMSIS-NN {version(headers.parent)} built by {' and '.join(compilers(rivals))}"}
    rows = []
    with tempfile.TemporaryDirectory() as name, Progress(console=Console(stderr=True)) as progress:
        folder = Path(name)
        policies = [HERE / "policies" / f"{reference}.onnx" for reference in REFERENCES]
        policies += [write(folder, *shape, seed) for seed, shape in enumerate(RANDOM)]
        boards = list(dict.fromkeys(rival.board for rival in rivals))
        for board in boards:
            here = [rival for rival in rivals if rival.board == board]
            for path in progress.track(policies, description=board):
                rows.append(measure(path, board, here, headers, folder))
    head = "policy | shape | instructions | CMSIS-NN by hand | by our calls | ratio | flash B | RAM B | stack B | max error"
    tables = "\n\n".join(
        f"{board_named(board).summary}, ours / CMSIS-NN:\n\n"
        + report.table(head, (row.cells for row in rows if row.board == board))
        for board in boards
    )
    click.echo(tables)
    if readme:
        report.write_results("cmsis_nn", facts, rows)
        report.write_readme("cmsis-nn", f"{tables}\n\n{report.provenance('cmsis_nn.py', facts)}")
    if wrong := [f"{row.shape} on {row.board}" for row in rows if (row.parity, row.rival_parity) != ("PASS", "PASS")]:
        raise click.ClickException(f"PARITY FAIL: {', '.join(wrong)}")
    if over := [f"{row.shape} on {row.board} {row.ratio:.2f}" for row in rows if row.ratio > row.at_most]:
        raise click.ClickException(f"over the ratio that was to hold: {', '.join(over)}")
    if dear := [f"{row.shape} on {row.board} {row.offloaded_ratio:.3f}" for row in rows if row.is_dear]:
        raise click.ClickException(f"our calls of CMSIS-NN cost more than those by hand: {', '.join(dear)}")


def include_folder() -> Path:
    given = os.environ.get("CMSIS_NN_PATH")
    headers = Path(given or ".").resolve() / "Include"
    if given is None or not (headers / "arm_nnfunctions.h").is_file():
        raise click.ClickException(
            f"CMSIS_NN_PATH is {given!r}; set it to a checkout of CMSIS-NN (6.0.0 or newer), with its Include folder"
        )
    return headers


def rival_of(given: str) -> Rival:
    board, _, name = given.partition("=")
    archive = Path(name).resolve()
    if not archive.is_file():
        raise click.UsageError(f"no library '{name}' in --library {given}; give BOARD=FILE, a built libcmsis-nn.a")
    data = archive.read_bytes()
    said = re.search(rb"clang version \d[\w.]*", data) or re.search(rb"GCC: \([^)]*\) [\w.]+", data)
    if said is None:
        raise click.UsageError(
            f"'{name}' does not say which compiler built it; build it with GCC or clang, not stripped"
        )
    return Rival(board_named(board).name, archive, said[0].decode().replace("GCC: ", "GCC "))


def compilers(rivals: list[Rival]) -> list[str]:
    return sorted({rival.compiler for rival in rivals})


def version(checkout: Path) -> str:
    done = subprocess.run(
        ("git", "-C", checkout, "describe", "--tags", "--always"), capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else "of unknown version"


def measure(path: Path, board: str, rivals: list[Rival], headers: Path, folder: Path) -> Row:
    rows = path.with_suffix(".npz")
    made = compile_policy(path, target=board_named(board).target, precision="int8", calibration=rows).library
    project = projects.create(made, folder / f"{board}_{path.stem}", "baremetal", {"board": board})
    projects.build(project)
    ours = qemu.run(project).to_json()

    layers = layers_of(path)
    with np.load(rows, allow_pickle=False) as arrays:
        policy = quantized(layers, arrays["calibration"])
    library = by_hand(policy, made.vectors(), board)
    offloaded = compile_policy(
        path, target=board_named(board).target, precision="int8", calibration=rows, cmsis_nn=True
    ).library
    theirs, by_our_calls = {}, {}
    for index, rival in enumerate(rivals):
        project = linked(library, rival, headers, folder / f"{board}_{path.stem}_{index}")
        theirs[rival] = qemu.run(project).to_json()
        project = projects.create(
            offloaded, folder / f"{board}_{path.stem}_{index}_offloaded", "baremetal", {"board": board}
        )
        with built_by(rival):
            projects.build(project)
        by_our_calls[rival] = qemu.run(project).to_json()
    parities = {result["parity"] for result in by_our_calls.values()} | {ours["parity"]}
    best = min(rivals, key=lambda rival: theirs[rival]["instructions_per_inference"])
    widest = max(len(layer.bias) for layer in layers)
    helium = board_named(board).target == "cortex-m55"
    return Row(
        board=board,
        policy=path.stem if path.stem in REFERENCES else "random",
        shape="-".join(str(n) for n in (layers[0].weight.shape[1], *(len(layer.bias) for layer in layers)))
        + f" {layers[0].activation.replace('Relu', 'ReLU').replace('Tanh', 'tanh')}",
        at_most=(AT_MOST_SMALL if widest <= SMALL else AT_MOST_WIDE) if helium else AT_MOST_ELSEWHERE,
        rival_compiler=best.compiler,
        instructions=ours["instructions_per_inference"],
        rival_instructions=theirs[best]["instructions_per_inference"],
        offloaded_instructions=by_our_calls[best]["instructions_per_inference"],
        offloaded_ratio=max(
            by_our_calls[rival]["instructions_per_inference"] / theirs[rival]["instructions_per_inference"]
            for rival in rivals
        ),
        parity="PASS" if parities == {"PASS"} else "FAIL",
        **{key: ours[key] for key in ("flash_bytes", "ram_bytes", "stack_bytes", "max_abs_error")},
        **{
            f"rival_{key}": theirs[best][key]
            for key in ("flash_bytes", "ram_bytes", "stack_bytes", "max_abs_error", "parity")
        },
    )


def by_hand(policy: Int8Policy, vectors: dict[str, np.ndarray], board: str) -> ModelLibrary:
    """A library whose code is the call by hand. `vectors` are ours; the answers expected are the rival's arithmetic's."""
    name, n_obs, n_actions = "by_hand", policy.layers[0].weight.shape[1], len(policy.layers[-1].bias)
    source = projects.TEMPLATES.from_string((HERE / "rivals" / "cmsis_nn.c.jinja").read_text()).render(
        name=name,
        policy=policy,
        n_obs=n_obs,
        n_actions=n_actions,
        widest=max(n_obs, *(len(layer.bias) for layer in policy.layers)),
    )
    interface = {
        "target": board_named(board).target,
        "inputs": [{"name": "obs", "c_name": "obs", "length": n_obs}],
        "action": {"name": "action", "c_name": "action", "length": n_actions, "dtype": "float32"},
        "tolerance": 0.0,
    }
    arrays = io.BytesIO()
    observations = vectors["observations"]
    np.savez(
        arrays, observations=observations, expected=policy.answers(observations), float_action=vectors["float_action"]
    )
    metadata = {"version": FORMAT_VERSION, "modules": {name: {"tinyrl": interface}}}
    return ModelLibrary(
        {
            "metadata.json": json.dumps(metadata).encode(),
            f"codegen/host/include/tvmgen_{name}.h": f"int {name}_predict(const float *obs, float *action);\n".encode(),
            f"codegen/host/src/{name}.c": source.encode(),
            "test/vectors.npz": arrays.getvalue(),
        }
    )


def linked(library: ModelLibrary, rival: Rival, headers: Path, folder: Path) -> projects.Project:
    """The call by hand, built by the rival's own compiler, and its library in the firmware."""
    project = projects.create(library, folder, "baremetal", {"board": rival.board})
    makefile = project.folder / "Makefile"
    ours = "out/policy/src/by_hand.c.o out/empty/policy/src/by_hand.c.o"
    lines = [
        f"{ours}: ALL_CFLAGS += -isystem {headers}",
        f"OBJECTS += {rival.archive}",
        f"EMPTY_OBJECTS += {rival.archive}",
    ]
    if rival.is_clang:
        lines.append(f"{ours}: CC = {clang(rival.compiler)} --target=arm-none-eabi -isystem {newlib()}")
        lines.append(f"{ours}: STACK_USAGE =")  # which is GCC's to tell
    makefile.write_text("\n".join([makefile.read_text(), *lines, ""]))
    projects.build(project)
    return project


@contextlib.contextmanager
def built_by(rival: Rival) -> Iterator[None]:
    """A project's CMSIS-NN is compiled as the rival was; CMSIS_NN_PATH is in the environment already."""
    if rival.is_clang:
        os.environ["CMSIS_NN_CC"] = f"{clang(rival.compiler)} --target=arm-none-eabi -isystem {newlib()}"
    try:
        yield
    finally:
        os.environ.pop("CMSIS_NN_CC", None)


def clang(compiler: str) -> str:
    """Of the rival's major version: another one would be another measurement."""
    major = re.search(r"\d+", compiler)
    assert major is not None
    path = shutil.which(f"clang-{major[0]}")
    if path is None:
        raise TinyrlError(f"no 'clang-{major[0]}' on PATH, which built the library; it builds the call by hand as well")
    return path


def newlib() -> Path:
    """Where the cross compiler has its C headers: clang has none for bare metal."""
    command = (toolchain.find("arm-none-eabi-gcc"), "-E", "-x", "c", "-")
    said = subprocess.run(command, input="#include <string.h>\n", capture_output=True, text=True, check=True).stdout
    found = re.search(r'^# \d+ "(/.*)/string\.h"', said, re.MULTILINE)
    assert found is not None
    return Path(found[1])


if __name__ == "__main__":
    report.run(main)
