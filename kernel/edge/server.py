"""The edge of the kernel: sockets, timers, signals and driver processes around the pure core.

All that happens becomes an event for `core.handle`, and the edge carries out the actions that come back, all in one
thread (as on a uniprocessor kernel: the core needs no locks). Nothing here decides anything. Many tasks produce events,
but handling is plain code without a checkpoint, so events are handled whole and one after the other.

Programs' frames are taken in turns (door.py), so a flood from one delays the others by little. An error in the core is
not caught: it ends the kernel with its traceback, and the drivers with it; a kernel in an unknown state must not go on.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio
from trio import TaskStatus

from llmasos.kernel.clock import seconds
from llmasos.kernel.edge import entrances, listening
from llmasos.kernel.edge.audit_keeper import AuditKeeper
from llmasos.kernel.edge.drivers import Drivers
from llmasos.kernel.edge.figures import sample
from llmasos.kernel.edge.files import Files
from llmasos.kernel.edge.images import Images
from llmasos.kernel.edge.journal_file import Opened
from llmasos.kernel.edge.journal_keeper import Fsync, Keeper
from llmasos.kernel.edge.measuring import measure
from llmasos.kernel.edge.monotonic_clock import MonotonicClock
from llmasos.kernel.edge.place import Place, watch
from llmasos.kernel.edge.programs import Programs
from llmasos.kernel.edge.progress import Progress
from llmasos.kernel.edge.wall_clock import WallClock
from llmasos.kernel.events import (
    Action,
    Append,
    Audit,
    CloseSandbox,
    CutOff,
    DeviceConfig,
    Event,
    Forget,
    Forgotten,
    Halt,
    HaltRequest,
    KillDriver,
    Log,
    Noted,
    OpenSandbox,
    Reply,
    SandboxOpened,
    Send,
    SignalProgram,
    StartDriver,
    Tick,
    WakeAt,
    Wall,
    WallAt,
)
from llmasos.kernel.journal.state import State
from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Budget

if TYPE_CHECKING:  # what encrypts is loaded where the kernel listens to other machines
    from llmasos.kernel.edge.gate import Gate

FORGET_SECONDS = 30.0  # until whoever destroys a process is told that it takes longer
FLUSH_SECONDS = 0.5  # the time that the last answers have to leave at a halt,
FLUSH_LOOK = 0.02  # and between two looks whether they have


class Core(Protocol):
    """The part of the core that the edge uses."""

    def boot(
        self,
        now: int,
        saved: State | None = None,
        notes: Sequence[tuple[str, str]] = (),
        wall: int = 0,
        progress: Callable[[int, int], None] = ...,
    ) -> list[Action]: ...
    def handle(self, event: Event, now: int) -> list[Action]: ...
    def snapshot(self) -> State: ...


class Server:
    """One running kernel in a runtime directory that its caller holds (kernel/edge/lock.py, place.py)."""

    def __init__(
        self,
        core: Core,
        devices: list[DeviceConfig],
        place: Place,
        console: Callable[[Log], None],
        *,
        die_with_parent: bool = False,
        journal: Opened | None = None,
        fsync: Fsync = "interval",
        audit: Callable[[Callable[[Event], None]], AuditKeeper] | None = None,
        notes: Sequence[tuple[str, str]] = (),
        wanted: bool = False,
        ready: Callable[[], str | None] = lambda: None,
        progress: Progress | None = None,
        images: Images | None = None,
        gate: tuple[Gate, socket.socket] | None = None,
        files: Files | None = None,
        reach: listening.Reach = listening.PRIVATE,
    ) -> None:
        """`notes` (level, text) are for the kernel log. `ready` is called once all devices are up, or will be tried
        again, and returns what went wrong; `progress` is told how far the boot has come until programs can connect. One
        that says that it cannot start, by its options or for lack of hardware, ends the kernel if the devices are
        `wanted`, and not just those that there may be, or if it is the last; `failed` says so then. `reach`: who may
        connect."""
        self._core = core
        self._devices = devices
        self._place, self._directory = place, place.directory
        self._console = console
        self._die_with_parent = die_with_parent
        self._saved = journal.state if journal is not None else None
        self._has_agents = self._saved is not None and bool(self._saved.processes or self._saved.programs)
        self._notes = notes
        self._keeper = Keeper(journal, fsync, self._handle, core.snapshot) if journal is not None else None
        self._audit = audit(self._handle) if audit is not None else None
        self._images = images or Images(None, "no keys are kept here")
        self._files = files  # that users show; None: it opens what they name
        self._gate = gate
        self._reach = reach
        self._events: deque[Event] = deque()
        self._handling = False
        self._halt = trio.Event()
        self._keeps = False  # it halts, and its journal is kept
        self._halts = False
        self._sandboxes: set[int] = set()  # that have an endpoint
        self._hurry = trio.Event()
        self._wanted, self._ready, self._progress = wanted, ready, progress
        self._undecided = {device.name for device in devices}
        self._lost: set[str] = set()  # devices that cannot start
        self.failed = ""  # why the kernel could not be booted
        self.late = False  # what came last is not on the disk

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> bool:
        """Run until the core says Halt; returns whether the journal is to be kept. Reports `started` when programs can
        connect. Leaves no process behind; the files of the sockets are removed with the lock. Raises SyscallError EINVAL:
        this process may have too few descriptors."""
        saved, self._saved = self._saved, None
        self._wall = WallClock(saved.wall if saved is not None else 0)
        restored = self._progress.restored if self._progress is not None else lambda done, of: None
        first = self._core.boot(0, saved, self._notes, self._wall.now(), restored)
        self._clock = MonotonicClock()  # who is expected back has all his time, however long that took
        self._make_doors()
        try:
            async with trio.open_nursery() as self._nursery:
                nursery = self._nursery
                self._drivers.live(self._devices, self._directory, nursery)
                await nursery.start(self._watch_signals)
                self._drivers.door.listen(self._directory / runtime.DRIVERS)
                self._perform_all(first)
                entrances.clear(self._directory, self._sandboxes)
                self.programs.door.listen(self._directory / runtime.PROGRAMS, self._reach)
                if self._progress is not None:
                    self._progress.listens()
                if self._gate is not None:
                    self.programs.open_gate(self._gate[1])
                if self._files is not None:
                    self._place.sockets += (runtime.FILES,)
                    self._files.listen(self._directory / runtime.FILES, self._reach)
                    nursery.start_soon(self._files.run)
                for one in (self.programs, self._drivers):
                    nursery.start_soon(one.door.run)
                    nursery.start_soon(one.door.keep_time)
                nursery.start_soon(self._clock.keep, lambda: self._handle(Tick()))
                nursery.start_soon(self._keep_wall)
                nursery.start_soon(
                    sample, self.programs.peers, self._drivers.supervisor.os_pids, self._budgets, self._handle
                )
                nursery.start_soon(measure, self._handle)
                if self._keeper is not None:
                    nursery.start_soon(self._keeper.run)
                if self._audit is not None:
                    nursery.start_soon(self._audit.run)
                if self._die_with_parent:
                    nursery.start_soon(self._watch_parent)
                nursery.start_soon(watch, self._directories, self._look_at_files)
                task_status.started()
                await self._halt.wait()
                await self._end()
                nursery.cancel_scope.cancel()
        finally:
            self._halt.set()  # what ends from here on is no event
            self._close_doors()
            if self._keeper is not None:
                self._keeper.close()
            if self._audit is not None:
                self._audit.close()
        return self._keeps

    async def _end(self) -> None:
        """Bring what came last to the disk, have the last answers read, and end the drivers."""
        if self._audit is not None:
            self._told_at_last("the audit log", await self._audit.finish())
        if self._keeper is not None:
            trouble = await trio.to_thread.run_sync(self._keeper.sync_all) if self._keeps else ""
            self._told_at_last("the journal", trouble)
            self._keeper.stop(kept=not trouble)
        with trio.move_on_after(FLUSH_SECONDS):
            while self.programs.door.waiting:  # noqa: ASYNC110 - the door tells nobody
                await trio.sleep(FLUSH_LOOK)
        await self._drivers.end_all(self._hurry)

    def _close_doors(self) -> None:
        self.programs.door.close()
        if self._halts and not self._keeps:
            entrances.clear(self._directory)
        self._drivers.door.close()
        if self._files is not None:
            self._files.close()

    def _make_doors(self) -> None:
        descriptors = listening.raise_descriptor_limit()
        self.programs = Programs(
            descriptors,
            self._reach,
            self._handle,
            self._wall,
            self._halt,
            gate=self._gate[0] if self._gate is not None else None,
            files=self._files,
            keeper=self._keeper,
            audit=self._audit,
        )
        self._drivers = Drivers(descriptors, self._handle, self._decided, images=self._images, files=self._files)

    # --- events in, actions out -------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if self._wall.until is not None and not isinstance(event, Wall) and self._wall.due:
            self._events.append(Wall(self._wall.now()))  # what happens now comes after what has ended by the clock
        self._events.append(event)
        if self._handling:  # an action has caused another event, which waits for its turn
            return
        self._handling = True
        try:
            while self._events:
                self._perform_all(self._core.handle(self._events.popleft(), self._clock.now()))
        finally:
            self._handling = False

    def _perform_all(self, actions: list[Action]) -> None:
        for action in actions:
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Append():
                if self._keeper is not None:
                    self._keeper.append(action.frame)
            case Audit():
                if self._audit is not None:
                    self._audit.write(action)
            case Reply():
                self.programs.answer(action)
            case Send():
                self._drivers.send(action)
            case WakeAt():
                self._clock.wake_at(action.at)
            case Log():
                self._console(action)
            case Forget():
                self._nursery.start_soon(self._forget, action)
            case StartDriver():
                self._drivers.supervisor.start(action.device, action.incarnation)
            case KillDriver():
                self._drivers.supervisor.kill(action.device, action.incarnation, action.reason)
            case SignalProgram():
                self._tell("warning", self.programs.signal(action))
            case CutOff():
                self.programs.cut_off(action)
            case WallAt():
                self._wall.wake_at(action.at)
            case OpenSandbox():
                self._open_sandbox(action)
            case CloseSandbox():
                self._sandboxes.discard(action.number)
                self.programs.door.close_sandbox(action.number)
                entrances.remove(self._directory, action.number)
            case Halt():
                self._keeps, self._halts = action.keep, True
                self._halt.set()

    # --- what actions ask of the edge -------------------------------------------------------------------------------

    def _tell(self, level: str, text: str) -> None:
        """Say something by the console alone, if there is anything to say."""
        if text:
            self._console(Log(seconds(self._clock.shown), level, text))

    def _told_at_last(self, what: str, trouble: str) -> None:
        if trouble:
            self.late = True
            self._tell("error", f"what came last in {what} is not on the disk as the kernel halts: {trouble}")

    async def _forget(self, action: Forget) -> None:
        """Leave nothing of processes in files."""
        gone: list[str] = []
        left: list[str] = []
        trouble = ""
        if self._keeper is not None:
            gone, trouble = await self._keeper.forget(action.pids, FORGET_SECONDS)
        try:
            more, left = await trio.to_thread.run_sync(self._images.forget, action.pids, action.owner)
            gone += more
        except (SyscallError, OSError) as error:
            trouble = error.reason if isinstance(error, SyscallError) else str(error)
        place = self._keeper.path.parent if self._keeper is not None else self._directory
        self._handle(Forgotten(action.ref, gone, left, self._images.sure(place), trouble))

    def _open_sandbox(self, action: OpenSandbox) -> None:
        self._sandboxes.add(action.number)
        try:
            durable = self._keeper is not None and not self._die_with_parent
            listener, place = entrances.make(self._directory, action.number, durable=durable)
            self.programs.door.open_sandbox(action.number, listener)
        except OSError as error:
            entrances.remove(self._directory, action.number)
            self._handle(SandboxOpened(action.number, error=str(error)))
            return
        self._handle(SandboxOpened(action.number, str(place.absolute())))

    def _decided(self, device: str, unusable: str) -> None:
        """A device is up, or cannot start."""
        if device not in self._undecided or self._halt.is_set():
            return
        self._undecided.remove(device)
        self._lost |= {device} if unusable else set()
        if unusable and (self._wanted or len(self._lost) == len(self._devices)):
            self.failed = f"device {device} cannot start: {unusable}"
            self._handle(HaltRequest(self.failed, self._has_agents))
        elif not self._undecided and (trouble := self._ready()):
            self._handle(Noted("warning", trouble))

    # --- files that somebody may remove ---------------------------------------------------------------------------------

    def _directories(self) -> list[Path]:
        keys = [self._gate[0].file.parent] if self._gate is not None else []
        journal = [self._keeper.path.parent] if self._keeper is not None else []
        audit = [self._audit.directory] if self._audit is not None else []
        return [self._directory, *journal, *audit, *keys]

    def _look_at_files(self) -> None:
        self.programs.door.look_at_keys()
        if self._keeper is not None:
            self._keeper.look()
        if self._audit is not None:
            self._audit.look()
        if not self._place.missing() or self._halt.is_set():
            return
        try:
            self._place.make_again()
            if not self._place.has(runtime.DRIVERS):
                self._drivers.door.listen(self._directory / runtime.DRIVERS)
            if not self._place.has(runtime.PROGRAMS):
                self.programs.door.listen(self._directory / runtime.PROGRAMS, self._reach)
            if self._files is not None and not self._place.has(runtime.FILES):
                self._files.listen(self._directory / runtime.FILES, self._reach)
        except (SyscallError, OSError) as error:
            why = error.reason if isinstance(error, SyscallError) else str(error)
            self._handle(Noted("error", f"files in {self._directory} have been removed, and cannot be made again: {why}"))
            if isinstance(error, SyscallError) and error.errno is Errno.EBUSY:
                self._handle(HaltRequest("another kernel runs in its place", self._keeper is not None))
        else:
            self._handle(Noted("warning", f"files in {self._directory} have been removed; they are made again"))

    # --- time and the operating system ------------------------------------------------------------------------------

    async def _keep_wall(self) -> None:
        while True:
            await self._wall.look()
            self._handle(Wall(self._wall.now()))

    def _budgets(self) -> list[Budget]:
        return [*self.programs.door.budgets(), *(self._files.budgets() if self._files is not None else [])]

    async def _watch_signals(self, task_status: TaskStatus[None]) -> None:
        """Halt at SIGTERM, SIGINT or SIGHUP, and keep the journal if there is one: these come at a logout or reboot
        too. At a second one do not wait for drivers to end in good order."""
        keep = self._keeper is not None and not self._die_with_parent
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGCONT:  # it may have stood still since it ran last
                    self._clock.stood_still()
                elif self._halt.is_set():
                    self._hurry.set()
                else:
                    self._handle(HaltRequest(f"{signal.Signals(number).name} received", keep))

    async def _watch_parent(self) -> None:
        stdin = sys.stdin.fileno()
        while True:
            await trio.lowlevel.wait_readable(stdin)
            if not os.read(stdin, 4096):
                break
        self._handle(HaltRequest("the process that booted this kernel has gone"))
