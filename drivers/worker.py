"""The threads in which a driver's device works.

The device works in one thread, in the order of the requests. Models are read in another (reader.py), so that no stream of
tokens stops for a load: a load waits for its turn among the requests, is read beside the requests after it, and becomes
usable between two of them. A third thread inspects and writes the files of process images, so that no step waits for a
disk.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, cast

import trio

from llmasos.drivers.answers import Work, attempt, last_lines
from llmasos.drivers.device import Device
from llmasos.drivers.protocol import (
    Done,
    Drop,
    DropWeights,
    Export,
    Failed,
    FromDriver,
    Import,
    Inspect,
    Load,
    Loaded,
    Note,
    Probe,
    Probed,
    Progress,
    Step,
    Unload,
    Wipe,
)
from llmasos.drivers.reader import Reader
from llmasos.syscalls.errno import SyscallError

_LAST = 19  # as nice(1) has it
MOST_EXPORTS = 2  # copies of KV in memory that wait for the disk; one more waits to be made

BringIn = Callable[[], Loaded]


class Owner(Protocol):
    """The owner of a worker. All methods are called in the main thread."""

    def opened(self, device: Device) -> None:
        """The device is there."""

    def refused(self, reason: str) -> None:
        """The device cannot be opened."""

    def finish(self, answer: FromDriver | None) -> None:
        """A request is done; None: it is not answered."""

    def send(self, message: FromDriver) -> None:
        """Something else is to be said to the kernel."""


@dataclass(frozen=True, slots=True)
class _BringIn:
    """A model has been read; `act` makes it usable, between two requests."""

    request: Load
    act: BringIn


class Worker:
    """A device of a kind, with the given options, and its threads. Its methods are called in the main thread."""

    def __init__(self, kind: str, options: Mapping[str, str], owner: Owner) -> None:
        self._kind = kind
        self._options = options
        self._owner = owner
        self._soon = trio.lowlevel.current_trio_token().run_sync_soon
        self._disk = ThreadPoolExecutor(1, "disk")
        self._measures = ThreadPoolExecutor(1, "measures", _step_back)
        self._exports: deque[Future[None]] = deque()  # on their way to the disk
        self._work: queue.SimpleQueue[Work | _BringIn] = queue.SimpleQueue()
        self._reader: Reader | None = None
        threading.Thread(target=self._run, name="device", daemon=True).start()

    def put(self, request: Work) -> None:
        """Do a request when it comes to its turn."""
        self._work.put(request)

    def beside(self, request: Work, act: Callable[[], FromDriver]) -> Future[None]:
        """Have the disk's thread do a request and answer it. May be called in any thread."""

        def run() -> None:
            self._soon(self._owner.finish, attempt(request, act, self._tell))

        return self._disk.submit(run)

    def cancel(self, ref: int) -> None:
        """Nobody waits for that Probe or Load any more."""
        if self._reader is not None:
            self._reader.cancel(ref)

    def give_up(self) -> Probe | Load | None:
        """The request whose reading stands still, which the caller has to answer; another thread reads on."""
        return self._reader.give_up() if self._reader is not None else None

    # --- the device's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Open the device, then do one request after the other."""
        log = logging.getLogger("llmasos.drivers")
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(_ToKernel(lambda note: self._soon(self._owner.send, note)))
        try:
            device: Device = importlib.import_module(f"llmasos.drivers.{self._kind}").open_device(self._options)
        except SyscallError as error:
            return self._soon(self._owner.refused, str(error))
        except Exception as error:  # of whatever libraries the device has
            traceback.print_exc()
            return self._soon(self._owner.refused, f"{type(error).__name__}: {error}")
        # Before the hello: after it the kernel may ask for a load and abandon it at once.
        self._reader = Reader(
            lambda request, report: attempt(request, lambda: _read(device, request, report), self._tell),
            self._has_read,
            lambda ref, fraction: self._soon(self._owner.send, Progress(ref, fraction)),
        )
        self._soon(self._owner.opened, device)
        while True:
            self._do(device, self._work.get(), self._reader)
            if self._work.empty():
                self._go_on(device)

    def _do(self, device: Device, request: Work | _BringIn, reader: Reader) -> None:
        if isinstance(request, Probe | Load):
            reader.put(request)
        elif isinstance(request, _BringIn):
            loaded = attempt(request.request, request.act, self._tell)
            self._soon(self._owner.finish, loaded)
            if isinstance(loaded, Loaded):
                self._measures.submit(self._measure, device, request.request)
        elif isinstance(request, Export):
            self._export(device, request)
        elif isinstance(request, Drop):
            failed = attempt(request, lambda: device.drop(request.ctxs), self._tell)
            if failed is not None:
                self._tell(failed.reason)
            self._soon(self._owner.finish, None)
        else:
            answer: FromDriver = attempt(request, lambda: _answer(device, request), self._tell)
            self._soon(self._owner.finish, answer)

    def _go_on(self, device: Device) -> None:
        """Let the device begin a step that nobody has asked for yet."""
        try:
            device.go_on(lambda: not self._work.empty())
        except Exception:  # the step is asked for yet, and fails then
            self._tell(last_lines(traceback.format_exc()))

    def _measure(self, device: Device, load: Load) -> None:
        """Say what was loaded, once that is known: a gigabyte takes a second."""
        outcome = attempt(load, lambda: device.measure(load.image), self._tell)
        if outcome is not None and not isinstance(outcome, Failed):
            self._soon(self._owner.send, outcome)
        elif outcome is not None:
            self._tell(f"{load.path} has not been measured: {outcome.reason}")

    def _export(self, device: Device, request: Export) -> None:
        """Copy the KV here, in the order of the requests; the disk's thread writes it and answers."""
        while len(self._exports) >= MOST_EXPORTS:
            self._exports.popleft().result()
        write = attempt(request, lambda: device.export(request), self._tell)
        if isinstance(write, Failed):
            self._soon(self._owner.finish, write)
        else:
            self._exports.append(self.beside(request, write))

    # --- any thread -------------------------------------------------------------------------------------------------

    def _has_read(self, request: Probe | Load, outcome: object) -> None:
        """In the reader's thread: answer, or let the device's thread make the image usable."""
        if isinstance(outcome, Failed | Probed):
            self._soon(self._owner.finish, outcome)
        else:
            assert isinstance(request, Load)
            self._work.put(_BringIn(request, cast(BringIn, outcome)))

    def _tell(self, text: str) -> None:
        """An error for the kernel's log."""
        self._soon(self._owner.send, Note("error", f"driver {self._kind}: {text}"))


def _step_back() -> None:
    """Let everything else come before this thread."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LAST)


def _read(device: Device, request: Probe | Load, report: Callable[[float], None]) -> Probed | BringIn:
    if isinstance(request, Probe):
        return device.probe(request)
    report(0.0)  # raises if the load was cancelled before its turn
    return device.fetch(request, report)


def _answer(device: Device, request: DropWeights | Unload | Step | Wipe | Inspect | Import) -> FromDriver:
    match request:
        case Wipe():
            device.wipe(request)
            return Done(request.ref)
        case Step():
            return device.step(request)
        case DropWeights():
            device.drop_weights(request.image)
            return Done(request.ref)
        case Unload():
            device.unload(request.image)
            return Done(request.ref)
        case Import():
            return device.import_(request)
        case Inspect():  # one that came before the device was open
            return device.inspect(request)


class _ToKernel(logging.Handler):
    """Makes a line of the kernel's log of what drivers log."""

    def __init__(self, tell: Callable[[Note], None]) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(Note(record.levelname.lower(), record.getMessage()))
