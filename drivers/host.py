"""The loop that every driver shares: `python -m llmasos.drivers.host KIND --endpoint ... --identity ... --runtime ...`.

As in MINIX's libchardriver, the loop is the same for all kinds and a kind is a table of callbacks (device.py). trio
runs on the main thread and only moves messages; the device works in one other thread, in the order of the requests, so
a long step delays no heartbeat. Models are read in a third (reader.py), so that nobody's stream stops for a
load: it comes to its turn among the other requests, is done beside those after it, and what it has read is brought in
between two of them. The files of process images are looked at and written in a fourth, so that no step waits for a disk.
What a request raises becomes its `Failed`, and the driver goes on.

A driver never outlives its kernel. It holds the reading end of a pipe on stdin that the kernel never writes; when that
ends the kernel is gone, however it went, and the driver removes what a dead kernel leaves in the runtime directory and
exits. The work thread may be deep in native code then and cannot be asked to stop, so leaving is `os._exit`.
"""

from __future__ import annotations

import argparse
import faulthandler
import fcntl
import functools
import importlib
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import msgspec
import trio

from llmasos.drivers import parcel
from llmasos.drivers.device import Device
from llmasos.drivers.protocol import (
    HEARTBEAT_SECONDS,
    KINDS,
    REQUEST_BYTES,
    Abandon,
    Done,
    Drop,
    Export,
    Failed,
    FromDriver,
    Heartbeat,
    Import,
    Inspect,
    Load,
    Loaded,
    Note,
    Probe,
    Probed,
    Progress,
    Quit,
    Release,
    Shed,
    Step,
    ToDriver,
    Unload,
    decode_to_driver,
    encode,
)
from llmasos.drivers.reader import STILL_SECONDS, Reader
from llmasos.modelfiles.files import Broken, shown
from llmasos.syscalls import runtime, transport
from llmasos.syscalls.errno import Errno, SyscallError

TRACEBACK_LINES = 6  # of an unexpected error that go to the kernel log
_LINGER_SECONDS = 0.2
_CLEAN_SECONDS = 2.0  # how long a kernel that is being killed may keep its lock after its pipes have closed
_RETRY_SECONDS = 0.02
MOST_EXPORTS = 2  # copies of KV in memory that wait for the disk; one more waits to be made
_LOOK_SECONDS = 1.0  # between two looks at whether the reader gets on

Work = Probe | Load | Shed | Unload | Step | Drop | Export | Inspect | Import
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _BringIn:
    """A model has been read: what is left to do between two requests."""

    request: Load
    act: Callable[[], Loaded]


class Host:
    """One driver process: a socket, a device, the thread in which the device works, and the one in which it reads."""

    def __init__(self, kind: str, options: dict[str, str], socket: transport.Socket, place: Path) -> None:
        self._kind = kind
        self._options = options
        self._socket = socket
        self._place = place
        self._holder = _recorded(place)  # the kernel that started this driver
        self._device: Device | None = None
        self._disk = ThreadPoolExecutor(1, "disk")
        self._exports: deque[Future[None]] = deque()  # on their way to the disk
        self._work: queue.SimpleQueue[Work | _BringIn] = queue.SimpleQueue()
        self._pending = 0  # requests taken and not yet finished
        self._reader: Reader | None = None
        self._early: list[Note] = []  # said before the device was open
        self._over = trio.Event()
        self._refused = ""  # why the device could not be opened

    async def run(self) -> int:
        """Until told to quit, terminated, or the kernel is gone. Returns the exit status."""
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_kernel)
            nursery.start_soon(self._watch_signals)
            threading.Thread(target=self._thread, name="device", daemon=True).start()
            nursery.start_soon(self._socket.run, self._receive)
            nursery.start_soon(self._heartbeat)
            nursery.start_soon(self._watch_reader)
            await self._over.wait()
            nursery.cancel_scope.cancel()
        self._socket.close(linger=_LINGER_SECONDS)
        if self._refused:
            print(f"driver {self._kind}: {self._refused}", file=sys.stderr)
            return 1
        return 0

    # --- the main thread --------------------------------------------------------------------------------------------

    def _receive(self, message: transport.Message) -> None:
        try:
            request: ToDriver = decode_to_driver(message.body)
        except msgspec.MsgspecError as error:
            self._send(Note("error", f"driver {self._kind}: a message that cannot be read: {error}"))
            return
        if isinstance(request, Quit):
            self._over.set()
        elif isinstance(request, Release):
            parcel.release(request.path)
        elif isinstance(request, Abandon):
            if self._reader is not None:
                self._reader.cancel(request.ref)
        else:
            self._pending += 1
            if isinstance(request, Inspect) and (device := self._device) is not None:
                self._aside(request, lambda: device.inspect(request))
                return
            self._work.put(request)
            if self._device is not None and not isinstance(request, Probe | Load):
                self._device.hears(request)

    def _send(self, message: FromDriver) -> None:
        if not self._socket.send(encoded(message)):
            raise RuntimeError("the kernel does not take what it is told")  # it would wait for that for ever

    def _note(self, note: Note) -> None:
        """The first message of a driver is its hello: what is to be said before it comes after it."""
        if self._device is None:
            self._early.append(note)
        else:
            self._send(note)

    def _finish(self, answer: FromDriver | None) -> None:
        self._pending -= 1
        if answer is not None:
            self._send(answer)

    async def _heartbeat(self) -> None:
        while True:
            await trio.sleep(HEARTBEAT_SECONDS)
            if self._device is not None:
                self._send(Heartbeat(self._device.progress, self._pending > 0))

    async def _watch_reader(self) -> None:
        while True:
            await trio.sleep(_LOOK_SECONDS)
            if self._reader is not None and (request := self._reader.give_up()) is not None:
                why = (
                    f"reading {shown(request.path)} has stood still for {STILL_SECONDS:.0f} s: the disk or server that "
                    "it is on does not answer"
                )
                self._finish(Failed(request.ref, Errno.EIO, why))

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                self._over.set()

    async def _watch_kernel(self) -> None:
        os.set_blocking(sys.stdin.fileno(), False)
        while True:
            await trio.lowlevel.wait_readable(sys.stdin.fileno())
            with suppress(BlockingIOError):
                if not os.read(sys.stdin.fileno(), 4096):
                    clean(self._place, self._holder)
                    os._exit(0)

    def _opened(self, device: Device) -> None:
        self._device = device
        self._send(device.hello())
        for note in self._early:
            self._send(note)

    def _refuse(self, reason: str) -> None:
        self._refused = reason
        self._over.set()

    # --- the work thread --------------------------------------------------------------------------------------------

    def _thread(self) -> None:
        """Open the device, then do what is asked, one request at a time."""
        soon = self._token.run_sync_soon
        log = logging.getLogger("drivers")
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(_ToKernel(lambda note: soon(self._note, note)))
        try:
            device: Device = importlib.import_module(f"llmasos.drivers.{self._kind}").open_device(self._options)
        except SyscallError as error:
            return soon(self._refuse, str(error))
        except Exception as error:
            traceback.print_exc()
            return soon(self._refuse, f"{type(error).__name__}: {error}")
        # Before the hello: what the kernel then asks for, it may take back at once.
        self._reader = reader = Reader(
            lambda request, report: self._try(request, lambda: _read(device, request, report)),
            self._has_read,
            lambda ref, fraction: soon(self._send, Progress(ref, fraction)),
        )
        soon(self._opened, device)
        while True:
            request = self._work.get()
            if isinstance(request, Probe | Load):
                reader.put(request)
            elif isinstance(request, _BringIn):
                soon(self._finish, self._try(request.request, request.act))
            elif isinstance(request, Export):
                self._export(device, request)
            else:
                answer: FromDriver | None = self._try(request, functools.partial(_do, device, request))
                soon(self._finish, answer)
            if self._work.empty():
                self._go_on(device)

    def _has_read(self, request: Probe | Load, outcome: object) -> None:
        """In the reader's thread: answer, or have what was read brought in between two other requests."""
        if isinstance(outcome, Failed | Probed):
            self._token.run_sync_soon(self._finish, outcome)
        else:
            assert isinstance(request, Load)
            self._work.put(_BringIn(request, cast(Callable[[], Loaded], outcome)))

    def _go_on(self, device: Device) -> None:
        """Let the device begin what nobody has asked for yet; what comes of that can wait until somebody does."""
        try:
            device.go_on(lambda: not self._work.empty())
        except Exception:
            self._tell("error", traceback.format_exc())

    def _export(self, device: Device, request: Export) -> None:
        """Copy what is to be written, here, in the order of the requests; the disk's thread writes it and answers."""
        while len(self._exports) >= MOST_EXPORTS:
            self._exports.popleft().result()
        rest: list[Callable[[], FromDriver]] = []

        def copy() -> None:
            rest.append(device.export(request))

        failed = self._try(request, copy)
        if failed is not None:
            self._token.run_sync_soon(self._finish, failed)
        else:
            self._exports.append(self._aside(request, rest.pop()))

    def _aside(self, request: Work, work: Callable[[], FromDriver]) -> Future[None]:
        """Have the disk's thread do a request and answer it."""

        def run() -> None:
            answer: FromDriver | None = self._try(request, work)
            self._token.run_sync_soon(self._finish, answer)

        return self._disk.submit(run)

    def _try(self, request: Work, act: Callable[[], R | None]) -> R | Failed | None:
        """What `act` makes of a request, or its failure; None if it is not answered."""
        ref = 0 if isinstance(request, Drop) else request.ref
        try:
            return act()
        except SyscallError as error:
            failed = Failed(ref, error.errno, error.reason, isinstance(error, Broken))
        except MemoryError as error:
            failed = Failed(ref, Errno.ENOMEM, f"{type(request).__name__.lower()}: out of memory {error}".rstrip())
        except Exception as error:
            what = f"{type(request).__name__.lower()}: {type(error).__name__}: {error}"
            self._tell("error", traceback.format_exc())
            failed = Failed(ref, Errno.EIO, what)
        if isinstance(request, Drop):
            self._token.run_sync_soon(self._send, Note("error", f"driver {self._kind}: {failed.reason}"))
            return None
        return failed

    def _tell(self, level: str, trace: str) -> None:
        """The end of a traceback for the kernel's log."""
        lines = trace.strip().splitlines()[-TRACEBACK_LINES:]
        self._token.run_sync_soon(self._send, Note(level, f"driver {self._kind}: " + "\n".join(lines)))


def _read(device: Device, request: Probe | Load, report: Callable[[float], None]) -> Probed | Callable[[], Loaded]:
    if isinstance(request, Probe):
        return device.probe(request)
    report(0.0)  # one that nobody wants any more has come to its turn in vain
    return device.fetch(request, report)


def _do(device: Device, request: Shed | Unload | Step | Drop | Inspect | Import) -> FromDriver | None:
    """The answer to a request; None if it is not answered."""
    match request:
        case Step():
            return device.step(request)
        case Drop():
            device.drop(request.ctxs)
            return None
        case Shed():
            device.shed(request.image)
            return Done(request.ref)
        case Unload():
            device.unload(request.image)
            return Done(request.ref)
        case Import():
            return device.import_(request)
        case Inspect():  # it came before the device was open
            return device.inspect(request)


def encoded(message: FromDriver) -> bytes:
    """A message as it is sent. An answer that no message can carry (an integer beyond 64 bits, half a surrogate pair) is
    that request's failure; a line for the log is sent escaped."""
    try:
        return encode(message)
    except (OverflowError, ValueError, TypeError) as error:
        if isinstance(message, Note):
            return encode(Note(message.level, message.text.encode(errors="backslashreplace").decode()))
        if (ref := getattr(message, "ref", None)) is None:
            raise
        if isinstance(message, Failed):
            reason = message.reason.encode(errors="backslashreplace").decode()
            return encode(msgspec.structs.replace(message, reason=reason))
        what = f"the driver's answer ({type(message).__name__}) cannot be sent: {error}"
        return encode(Failed(ref, Errno.EIO, what))


class _ToKernel(logging.Handler):
    """What drivers tell Python's logging is a line of the kernel's log."""

    def __init__(self, tell: Callable[[Note], None]) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(Note(record.levelname.lower(), record.getMessage()))


def _recorded(place: Path) -> bytes:
    """What the holder of the lock has written into it (its pid and start time); empty if there is no lock."""
    try:
        return (place / runtime.LOCK).read_bytes()
    except OSError:
        return b""


def _locked(place: Path, lock: int, holder: bytes) -> bool:
    """Take the lock of the dead kernel `holder`. False: another kernel has it.

    The operating system closes the descriptors of a killed process one after the other: its end of a driver's pipe may be
    closed before its lock is let go.
    """
    deadline = time.monotonic() + _CLEAN_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if _recorded(place) != holder or time.monotonic() >= deadline:
                return False
        time.sleep(_RETRY_SECONDS)


def clean(place: Path, holder: bytes) -> None:
    """Remove the sockets and the lock of a kernel that is gone; nothing where another one holds the lock.

    `holder` is what the one that is gone had written into its lock.
    """
    try:
        lock = os.open(place / runtime.LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # it went in good order, or somebody else has cleaned
    try:
        if not _locked(place, lock, holder):
            return
        # Only the file that still has the name: a new kernel may have put its own in place.
        if os.path.samestat(os.fstat(lock), os.stat(place / runtime.LOCK)):
            for name in (runtime.PROGRAMS, runtime.DRIVERS, runtime.LOCK):
                (place / name).unlink(missing_ok=True)
    except OSError:
        return  # gone in the meantime
    finally:
        os.close(lock)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llmasos.drivers.host", description="A driver process; started by the kernel."
    )
    parser.add_argument("kind", help=", ".join(KINDS))
    parser.add_argument("--endpoint", required=True, help="where the kernel listens for drivers")
    parser.add_argument("--identity", required=True, help="routing id: NAME.INCARNATION")
    parser.add_argument("--runtime", required=True, type=Path, help="the kernel's runtime directory")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args(arguments)
    if chosen.kind not in KINDS:
        parser.error(f"no driver of kind {chosen.kind!r}; there are {', '.join(KINDS)}")
    options: dict[str, str] = {}
    for option in chosen.option:
        key, equals, value = option.partition("=")
        if not key or not equals:
            parser.error(f"--option {option!r}: KEY=VALUE was wanted")
        options[key] = value
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the kernel's affair: it ends its drivers
    faulthandler.enable()

    async def drive() -> int:
        socket = transport.dealer(chosen.identity.encode(), max_frame=REQUEST_BYTES)
        try:
            socket.connect(chosen.endpoint)
        except ValueError as error:
            print(f"driver {chosen.kind}: {error}", file=sys.stderr)
            return 2
        return await Host(chosen.kind, options, socket, chosen.runtime).run()

    return trio.run(drive)


if __name__ == "__main__":
    try:
        status = main()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # the work thread may be in native code, which an orderly end of the interpreter does not survive
