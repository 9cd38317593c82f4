# SPDX-License-Identifier: Apache-2.0
"""Do the predictions of memory hold? Random policies are built for every board, painted, and held against them.

    python benchmarks/footprint.py --policies 12 --seed 1
    CMSIS_NN_PATH=... [CMSIS_NN_CC="clang --target=..."] python benchmarks/footprint.py --cmsis-nn

Each policy is of a random shape, activation, head and precision, one in four with two observations, one in four with skip
connections or gates. Of each precision and target a line says how far the builds were from their prediction, as a part of
its margin: beyond 1 a contract does not hold, and the exit status is 1. `tinyrl_tvm/emit/footprint.py` has its ranges from
here, from seeds other than those that test them.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import click

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # whose policies have every head
import merged_policies
import policies

from tinyrl_tvm import project as projects
from tinyrl_tvm.device import micro
from tinyrl_tvm.device.memory import measure
from tinyrl_tvm.memory import Memory
from tinyrl_tvm.targets import BOARDS

ACTIVATIONS = {"int8": ("Relu", "Tanh", "Sigmoid", "Silu", "Relu6"), "float32": ("Relu", "Tanh", "Sigmoid")}
HEADS = {
    **{name: getattr(policies, name) for name in ("logits", "arg_max", "greater", "probabilities")},
    "clipped": policies.clipped(-1.0, 1.0),
    "squashed": policies.squashed(),
    "unscaled": policies.unscaled(-2.0, 2.0),
}
MERGED = {name: getattr(merged_policies, name) for name in ("residual", "pre_activated", "gate")}
WIDTHS = (4, 8, 16, 20, 24, 32, 48, 64, 100)
OF_ANY_CORE = ("portable", "host")
ESTIMATED = ("flash", "stack")  # RAM is exact
CALLS_CMSIS_NN = ("cortex-m55", "cortex-m4")


@dataclass(frozen=True)
class Build:
    target: str
    board: str
    precision: str
    sizes: tuple[int, ...]
    activation: str
    head: str
    n_first_input: int | None  # of two
    merged: str | None
    seed: int
    cmsis_nn: bool = False

    def measured(self) -> Memory:
        n_obs, n = self.sizes[0], self.n_first_input
        inputs = {"a": (n,), "b": (n_obs - n,)} if n else None
        kinds = {"activation": self.activation, "head": HEADS[self.head], "inputs": inputs, "seed": self.seed}
        if self.merged:
            n_obs, width, *_, n_out = self.sizes
            body = MERGED[self.merged](n_obs, width, n_out)
            model = merged_policies.merged_policy(body, n_obs, n_out, head=HEADS[self.head], seed=self.seed)
        else:
            model = policies.dense_policy(self.sizes, **kinds)
        options = {"cmsis_nn": True} if self.cmsis_nn else {}
        with tempfile.TemporaryDirectory(prefix="tinyrl-footprint-") as name:
            folder = Path(name)
            compiled = policies.compile_model(model, folder, precision=self.precision, target=self.target, **options)
            built = projects.build(projects.create(compiled.library, folder / "p", "baremetal", {"board": self.board}))
            memory, painted = measure(built), micro.run(built.project).stack_bytes
        assert memory is not None
        assert painted is not None
        return memory.with_painted(painted)


def builds(n_policies: int, seed: int, cmsis_nn: bool = False) -> list[Build]:
    """A policy a board in assembly, or float32 in C where the core has no unit for it; and one in C for any core."""
    rng, found = random.Random(seed), []
    for index, board in zip(range(n_policies), itertools.cycle(BOARDS.values()), strict=False):
        if cmsis_nn:
            target = CALLS_CMSIS_NN[index % 2]
            of_target = next(board.name for board in BOARDS.values() if board.target == target)
            found.append(_build(rng, index, target, of_target, "int8", cmsis_nn=True))
            continue
        for target in (board.target, *OF_ANY_CORE):
            found.append(_build(rng, index, target, board.name, rng.choice(("int8", "float32"))))
    return found


def _build(rng: random.Random, seed: int, target: str, board: str, precision: str, cmsis_nn: bool = False) -> Build:
    n_obs = rng.randint(1, 40)
    hidden = [rng.choice((*WIDTHS, rng.randint(2, 128))) for _ in range(rng.randint(1, 3))]
    sizes = (n_obs, *hidden, rng.randint(1, 12))
    two = rng.randint(1, n_obs - 1) if n_obs > 1 and rng.random() < 0.25 else None
    activation, head = rng.choice(ACTIVATIONS[precision]), rng.choice(list(HEADS))
    merged = None if two or rng.random() > 0.25 else rng.choice(list(MERGED))
    return Build(target, board, precision, sizes, activation, head, two, merged, seed, cmsis_nn)


@click.command(help=__doc__)
@click.option(
    "--policies", "n_policies", type=click.IntRange(1), default=14, show_default=True, help="Of three builds each."
)
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--cmsis-nn", is_flag=True, help="Builds that call it, for Cortex-M55 and M4; CMSIS_NN_PATH is a checkout."
)
def main(n_policies: int, seed: int, cmsis_nn: bool) -> None:
    parts: dict[tuple[str, str], dict[str, list[tuple[float, int]]]] = defaultdict(lambda: defaultdict(list))
    broken = 0
    for build in builds(n_policies, seed, cmsis_nn):
        memory = build.measured()
        if sentence := memory.broken():
            broken += 1
            click.echo(f"{build}: {sentence}", err=True)
        for resource in ESTIMATED:
            predicted, measured = memory.contract.predicted(resource), memory.measured(resource)
            assert measured is not None, memory.stack
            off = (measured.n_bytes - predicted.n_bytes) / predicted.margin_bytes
            parts[build.precision, build.target][resource].append((off, predicted.margin_bytes))
    for (precision, target), resources in sorted(parts.items()):
        told = [f"{len(resources['flash']):3} builds"]
        for resource, entries in resources.items():
            offs, margins = zip(*entries, strict=True)
            margin = f"{min(margins):,} to {max(margins):,} B"
            told.append(f"{resource} {min(offs):+.2f} to {max(offs):+.2f} of a margin of {margin}")
        click.echo(f"{precision:8}{target:11}{'; '.join(told)}")
    if broken:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
