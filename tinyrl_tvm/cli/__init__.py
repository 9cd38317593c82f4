# SPDX-License-Identifier: Apache-2.0
"""The command `tinyrl-tvm`: a verb is a function, and decides nothing that the package below does not offer.

    compile.py   compile            micro.py     micro create, micro build
    run.py       run                machine.py   targets, doctor
    tune.py      tune               rpc.py       rpc-tracker, rpc-server
    bench.py     bench

Exit status: 0 done, 1 what the user can mend (one bare sentence on stderr) or PARITY FAIL, 2 words that no verb has, or
too few of them, 130 stopped.
Why the verbs import inside their functions: `--help` answers at once, without numpy, TVM, rich or jinja2.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import click

from tinyrl_tvm import __version__
from tinyrl_tvm.cli.bench import bench_verb
from tinyrl_tvm.cli.compile import compile_verb
from tinyrl_tvm.cli.console import tell
from tinyrl_tvm.cli.machine import doctor_verb, targets_verb
from tinyrl_tvm.cli.micro import micro_verb
from tinyrl_tvm.cli.rpc import server_verb, tracker_verb
from tinyrl_tvm.cli.run import run_verb
from tinyrl_tvm.cli.tune import tune_verb
from tinyrl_tvm.errors import TinyrlError

STOPPED = 130  # 128 + SIGINT, as a shell reports it


class Verbs(click.Group):
    """What the user can mend is one sentence; anything else keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        with _interrupts_noticed() as interrupts:
            try:
                return super().invoke(ctx)
            except BaseException as error:
                if interrupts or isinstance(error, KeyboardInterrupt):
                    tell("stopped")
                    ctx.exit(STOPPED)
                if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
                    tell(error.format_message())  # without the lines of usage: the option was right, its value was not
                    ctx.exit(1)
                if isinstance(error, TinyrlError):
                    tell(str(error))
                    ctx.exit(1)
                raise


@contextlib.contextmanager
def _interrupts_noticed() -> Iterator[list[int]]:
    """The list has an entry once Ctrl-C was pressed. TVM and ONNX Runtime turn a KeyboardInterrupt that comes while
    they call back into Python into errors of their own, which would look like bugs of ours."""
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored by whoever started us: so be it
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="tinyrl-tvm %(version)s")
def cli() -> None:
    """Compile trained reinforcement-learning policies to microcontroller firmware.

    \b
      tinyrl-tvm compile cartpole.onnx --target cortex-m55 --calibration observations.npz -o cartpole.tar
      tinyrl-tvm micro create build/cartpole cartpole.tar baremetal
      tinyrl-tvm micro build build/cartpole
      tinyrl-tvm run --device micro build/cartpole
    """


for verb in (
    compile_verb,
    micro_verb,
    run_verb,
    tune_verb,
    bench_verb,
    tracker_verb,
    server_verb,
    targets_verb,
    doctor_verb,
):
    cli.add_command(verb)


def main() -> None:
    try:
        cli(prog_name="tinyrl-tvm")  # also when it was started as python -m tinyrl_tvm
    except SystemExit as left:
        if left.code == STOPPED:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C does not change how it ends
        raise
