# SPDX-License-Identifier: Apache-2.0
"""`tinyrl-tvm rpc-tracker` and `rpc-server`: the devices of many machines, for one tuner."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import TYPE_CHECKING

import click

from tinyrl_tvm.cli.console import say, tell
from tinyrl_tvm.errors import TinyrlError

if TYPE_CHECKING:
    from tinyrl_tvm.device.farm import Tracker

WATCH_S = 2.0
MISSING_S = 10.0  # a server that its tracker has not known for so long is started again


@click.command("rpc-tracker", short_help="Know the servers of a farm.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=9190, show_default=True)
def tracker_verb(host: str, port: int) -> None:
    """Start TVM's RPC tracker, until Ctrl-C.

    Whoever reaches it is given servers, and runs programs there: keep it on loopback, or in a network you trust.
    """
    from tinyrl_tvm.device.farm import start_tracker

    _warn(host)
    signal.signal(signal.SIGTERM, _leave)  # else the process that TVM started would stay
    tracker = start_tracker(host, port)
    try:
        say(f"tracker at {host}:{tracker.port}; Ctrl-C ends it")
        say(f"next: tinyrl-tvm rpc-server --tracker {host}:{tracker.port} --key KEY --device qemu:BOARD")
        while tracker.proc.is_alive():
            time.sleep(WATCH_S)
        raise TinyrlError("the tracker's process ended; start it again")
    finally:
        tracker.proc.kill()  # its own `terminate` asks over loopback, where it need not listen


@click.command("rpc-server", short_help="Offer a device to a farm.")
@click.option("--tracker", "tracker_address", metavar="HOST:PORT", required=True, help="The farm's tracker.")
@click.option("--key", required=True, help="What tuners ask for: servers of one key have the same kind of device.")
@click.option("--device", metavar="qemu:BOARD", required=True, help="What firmware runs on here.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
def server_verb(tracker_address: str, key: str, device: str, host: str) -> None:
    """Start TVM's RPC server with a device, until Ctrl-C. Firmware that others send runs on it.

    Whoever reaches it runs programs on this machine: keep it on loopback, or in a network you trust.
    """
    from tinyrl_tvm.device.devices import device_named
    from tinyrl_tvm.device.farm import Tracker, address, start_server
    from tinyrl_tvm.toolchain import find

    tracker = Tracker(*address(tracker_address))
    board, emulate = device_named(device)
    find(board.architecture.emulator)  # raises, where a tuner would reject every trial
    if not key or any(character.isspace() or character == ":" for character in key):
        raise TinyrlError(f"'{key}' is no key; give a word, as m55")
    tracker.servers()  # raises when there is no tracker
    _warn(host)
    signal.signal(signal.SIGTERM, _leave)
    server = start_server(host, tracker, key, board, emulate)
    try:
        say(f"{device} at {host}:{server.port} for the tracker {tracker}, key {key}; Ctrl-C ends it")
        missed_s = 0.0
        while True:
            time.sleep(WATCH_S)
            # TVM's server stops listening when a session ends badly, and says so to nobody
            missed_s = 0.0 if _is_known(tracker, key, server.port) else missed_s + WATCH_S
            if not server.proc.is_alive() or missed_s >= MISSING_S:
                tell("the server is gone from its tracker; starting it again")
                server.terminate()
                server, missed_s = start_server(host, tracker, key, board, emulate), 0.0
    finally:
        server.terminate()


def _is_known(tracker: Tracker, key: str, port: int) -> bool:
    """Of a tracker that is away there is nothing to say: TVM's server looks for it by itself."""
    try:
        return (key, port) in tracker.servers()
    except TinyrlError:
        return True


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _warn(host: str) -> None:
    from tinyrl_tvm.device.farm import LOOPBACK

    if host not in LOOPBACK:
        tell(f"note: {host} is not loopback: whoever reaches it can run programs here, without a password")
