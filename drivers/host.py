"""The loop that every driver shares: `python -m llmasos.drivers.host KIND --endpoint ... --identity ... --runtime ...`.

As in MINIX's libchardriver, the loop is the same for all kinds and a kind is a table of callbacks (device.py). trio
runs on the main thread and only moves messages; the device works in other threads (worker.py), so a long step delays no
heartbeat. What a request raises becomes its `Failed` (answers.py), and the driver goes on.

A driver never outlives its kernel. It holds the reading end of a pipe on stdin that the kernel never writes; when that
ends the kernel is gone, however it went, and the driver removes what a dead kernel leaves in the runtime directory
(orphaned.py) and exits. The device's thread may be deep in native code then and cannot be asked to stop, so leaving is
`os._exit`.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from llmasos.drivers import orphaned, parcel
from llmasos.drivers.answers import encoded
from llmasos.drivers.device import Device
from llmasos.drivers.protocol import (
    EX_UNUSABLE,
    HEARTBEAT_SECONDS,
    KINDS,
    REQUEST_BYTES,
    Abandon,
    Failed,
    FromDriver,
    Heartbeat,
    Inspect,
    Load,
    Note,
    Probe,
    Quit,
    Release,
    ToDriver,
    decode_to_driver,
)
from llmasos.drivers.reader import STILL_SECONDS
from llmasos.drivers.worker import Worker
from llmasos.modelfiles.files import shown
from llmasos.syscalls import transport, undumped
from llmasos.syscalls.errno import Errno

_LINGER_SECONDS = 0.2
_LOOK_SECONDS = 1.0  # between two looks at whether the reader gets on


class Host:
    """One driver process: a socket, and a worker that has the device."""

    def __init__(
        self, kind: str, options: dict[str, str], socket: transport.Socket, monitor: transport.Monitor, place: Path
    ) -> None:
        self._kind = kind
        self._socket, self._monitor = socket, monitor
        self._place = place
        self._holder = orphaned.recorded(place)  # the kernel that started this driver
        self._worker = Worker(kind, options, self)
        self._device: Device | None = None
        self._pending = 0  # requests taken and not yet finished
        self._busy = trio.Event()  # set while there are any
        self._early: list[FromDriver] = []  # said before the device was open
        self._over = trio.Event()
        self._refused = ""  # why the device could not be opened
        self._lost = ""  # why the kernel cannot be reached

    async def run(self) -> int:
        """Until told to quit, terminated, or the kernel is gone. Returns the exit status."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_kernel)
            nursery.start_soon(self._watch_signals)
            nursery.start_soon(self._watch_link)
            nursery.start_soon(self._socket.run, self._receive)
            nursery.start_soon(self._heartbeat)
            nursery.start_soon(self._watch_reader)
            await self._over.wait()
            nursery.cancel_scope.cancel()
        self._socket.close(linger=_LINGER_SECONDS)
        if why := self._refused or self._lost:
            print(f"driver {self._kind}: {why}", file=sys.stderr)
        return EX_UNUSABLE if self._refused else int(bool(self._lost))

    def _receive(self, message: bytes) -> None:
        try:
            request: ToDriver = decode_to_driver(message)
        except msgspec.MsgspecError as error:
            self.send(Note("error", f"driver {self._kind}: a message that cannot be read: {error}"))
            return
        device = self._device
        match request:
            case Quit():
                self._over.set()
            case Release():
                parcel.release(request.path)
            case Abandon():
                self._worker.cancel(request.ref)
            case Inspect() if device is not None:
                self._begin()
                self._worker.beside(request, lambda: device.inspect(request))
            case _:
                self._begin()
                self._worker.put(request)
                if device is not None and not isinstance(request, Probe | Load):
                    device.hears(request)

    def _begin(self) -> None:
        self._pending += 1
        self._busy.set()

    async def _heartbeat(self) -> None:
        """While there is something to do, and once after it; an idle driver sleeps."""
        while True:
            await self._busy.wait()
            await trio.sleep(HEARTBEAT_SECONDS)
            if self._pending == 0:
                self._busy = trio.Event()
            if self._device is not None:
                self.send(Heartbeat(self._device.progress, self._pending > 0))

    async def _watch_reader(self) -> None:
        while True:
            await self._busy.wait()
            await trio.sleep(_LOOK_SECONDS)
            if (request := self._worker.give_up()) is not None:
                why = (
                    f"reading {shown(request.path)} has stood still for {STILL_SECONDS:.0f} s: the disk or server that "
                    "it is on does not answer"
                )
                self.finish(Failed(request.ref, Errno.EIO, why))

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                self._over.set()

    async def _watch_link(self) -> None:
        """A lost connection stays lost, with what was on its way: the driver ends, and the kernel starts the next one."""
        down = trio.Event()

        def look() -> None:
            if any(not link.up for link in self._monitor.drain()):
                down.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._monitor.run, look)
            await down.wait()
            await trio.sleep(_LINGER_SECONDS)  # the kernel's own end comes by its pipe
            self._lost = "its connection to the kernel is lost"
            self._over.set()
            nursery.cancel_scope.cancel()

    async def _watch_kernel(self) -> None:
        os.set_blocking(sys.stdin.fileno(), False)
        while True:
            await trio.lowlevel.wait_readable(sys.stdin.fileno())
            with suppress(BlockingIOError):
                if not os.read(sys.stdin.fileno(), 4096):
                    orphaned.clean(self._place, self._holder)
                    os._exit(0)

    # --- called for the worker --------------------------------------------------------------------------------------

    def opened(self, device: Device) -> None:
        self._device = device
        for message in (device.hello(), *self._early):
            self.send(message)

    def refused(self, reason: str) -> None:
        self._refused = reason
        self._over.set()

    def finish(self, answer: FromDriver | None) -> None:
        self._pending -= 1
        if answer is not None:
            self.send(answer)

    def send(self, message: FromDriver) -> None:
        """Send a message, but not before the hello, which is the first message of a driver."""
        if self._device is None:
            self._early.append(message)
        elif not self._socket.send(encoded(message)):
            raise RuntimeError("the kernel does not take what it is told")  # and would wait for the answer for ever


def _end(told: threading.ExceptHookArgs) -> None:
    """A thread has ended by an error, and what it was to do would never be done: the driver ends, too."""
    traceback.print_exception(told.exc_type, told.exc_value, told.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llmasos.drivers.host", description="A driver process; started by the kernel."
    )
    parser.add_argument("kind", help=", ".join(KINDS))
    parser.add_argument("--endpoint", required=True, help="where the kernel listens for drivers")
    parser.add_argument("--identity", required=True, help="routing id: NAME.INCARNATION")
    parser.add_argument("--secret", type=int, default=-1, metavar="FD", help="read there what proves the identity")
    parser.add_argument("--runtime", required=True, type=Path, help="the kernel's runtime directory")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args(arguments)
    undumped.keep_out_of_dumps()
    if chosen.kind not in KINDS:
        parser.error(f"no driver of kind {chosen.kind!r}; there are {', '.join(KINDS)}")
    options: dict[str, str] = {}
    for option in chosen.option:
        key, equals, value = option.partition("=")
        if not key or not equals:
            parser.error(f"--option {option!r}: KEY=VALUE was wanted")
        options[key] = value
    identity = chosen.identity.encode()
    if chosen.secret >= 0:  # no other process can see it, as it could see words and environment
        with os.fdopen(chosen.secret, "rb") as told:
            identity += b"." + told.read()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the kernel's affair: it ends its drivers
    faulthandler.enable()
    threading.excepthook = _end

    async def drive() -> int:
        socket = transport.dealer(identity, max_frame=REQUEST_BYTES)
        monitor = socket.monitor()
        try:
            socket.connect(chosen.endpoint)
        except ValueError as error:
            print(f"driver {chosen.kind}: {error}", file=sys.stderr)
            return 2
        return await Host(chosen.kind, options, socket, monitor, chosen.runtime).run()

    return trio.run(drive)


if __name__ == "__main__":
    try:
        status = main()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # the last that it says
        traceback.print_exc()
        status = 1
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # the work thread may be in native code, which an orderly end of the interpreter does not survive
