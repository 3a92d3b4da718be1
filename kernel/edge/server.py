"""The edge of the kernel: sockets, timers, signals and driver processes around the pure core.

All that happens becomes an event for `core.handle`, and the edge carries out the actions that come back, all in one
thread (as on a uniprocessor kernel: the core needs no locks). Nothing here decides anything. Many tasks produce events,
but handling is plain code without a checkpoint, so events are handled whole and one after the other.

Programs' frames are taken in turns (door.py), so a flood from one delays the others by little. An error in the core is
not caught: it ends the kernel with its traceback, and the drivers with it; a kernel in an unknown state must not go on.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import psutil
import trio
from trio import TaskStatus

from llmasos.drivers import protocol
from llmasos.kernel.clock import nanoseconds, seconds
from llmasos.kernel.edge import door, entrances, listening, room
from llmasos.kernel.edge.audit_keeper import AuditKeeper
from llmasos.kernel.edge.files import Files, Given
from llmasos.kernel.edge.images import Images
from llmasos.kernel.edge.journal_file import Opened
from llmasos.kernel.edge.journal_keeper import Fsync, Keeper
from llmasos.kernel.edge.key_store import Store
from llmasos.kernel.edge.measuring import measure
from llmasos.kernel.edge.peers import Peer, Peers, unmapped_uid
from llmasos.kernel.edge.place import Place, watch
from llmasos.kernel.edge.progress import Progress
from llmasos.kernel.edge.supervision import Supervisor
from llmasos.kernel.edge.wall_clock import WallClock
from llmasos.kernel.events import (
    Action,
    Append,
    Audit,
    Cancel,
    CloseSandbox,
    DeviceConfig,
    Disconnected,
    DriverExited,
    Event,
    Forget,
    Forgotten,
    FromDevice,
    Halt,
    HaltRequest,
    KillDriver,
    Log,
    Noted,
    OpenSandbox,
    OsFigures,
    Rejected,
    Reply,
    SandboxOpened,
    Send,
    SignalProgram,
    StartDriver,
    Syscall,
    Tick,
    WakeAt,
    Wall,
    WallAt,
)
from llmasos.kernel.journal.state import State
from llmasos.syscalls import budgets, curve_keys, parts, runtime, wire, zmtp
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import BY_RECORD, Attach, Call, Exec, Feed, Fork, Restore, SandboxOpen, Spawn

if TYPE_CHECKING:  # what encrypts is loaded where the kernel listens to other machines
    from llmasos.kernel.edge.gate import Change, Gate

FIGURES_SECONDS = 1.0
FIGURES_BATCH = 8  # processes looked at before other tasks have their turn
LATE_SECONDS = 0.2  # an alarm that comes later than this tells that the kernel has not run
FORGET_SECONDS = 30.0  # until whoever destroys a process is told that it takes longer
FLUSH_SECONDS = 0.5  # the time that the last answers have to leave at a halt,
FLUSH_LOOK = 0.02  # and between two looks whether they have


_FAR = "a sandbox is on the machine of its kernel, and this program is on another"
_GROW = frozenset({Attach, Exec, Feed, Fork, Restore, Spawn})  # calls that make the kernel grow


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
        ready: Callable[[], None] = lambda: None,
        progress: Progress | None = None,
        images: Images | None = None,
        gate: tuple[Gate, socket.socket] | None = None,
        files: Files | None = None,
        reach: listening.Reach = listening.PRIVATE,
    ) -> None:
        """`notes` (level, text) are for the kernel log. `ready` is called once all devices are up, or will be tried
        again; `progress` is told how far the boot has come until programs can connect. One that says that it cannot
        start, by its options or for lack of hardware, ends the kernel if the devices are `wanted`, and not just those
        that there may be, or if it is the last; `failed` says so then. `reach`: who may connect."""
        self._core = core
        self._devices = devices
        self._place, self._directory = place, place.directory
        self._console = console
        self._die_with_parent = die_with_parent
        self._saved = journal.state if journal is not None else None
        self._position = self._saved.position if self._saved is not None else 0  # of the journal's latest frame
        self._has_agents = self._saved is not None and bool(self._saved.processes or self._saved.programs)
        self._notes = notes
        self._keeper = Keeper(journal, fsync, self._handle, core.snapshot) if journal is not None else None
        self._audit = audit(self._handle) if audit is not None else None
        self._images = images or Images(None, "no keys are kept here")
        self._files = files  # that users show; None: it opens what they name
        self._outside, self._gate = gate, gate[0] if gate is not None else None
        self._reach = reach
        self._peers = Peers()
        self._room = room.Room()
        self._events: deque[Event] = deque()
        self._handling = False
        self._epoch = 0.0
        self._now = 0
        self._wake_at: int | None = None
        self._alarm = trio.CancelScope()
        self._put_off: int | None = None  # the moment of an alarm that came late
        self._seen = 0.0  # when it ran last
        self._halt = trio.Event()
        self._keeps = False  # it halts, and its journal is kept
        self._halts = False
        self._sandboxes: set[int] = set()  # that have an endpoint
        self._hurry = trio.Event()
        self._wanted, self._ready, self._progress = wanted, ready, progress
        self._undecided = {device.name for device in devices}
        self._lost: set[str] = set()  # devices that cannot start
        self.failed = ""  # why the kernel could not be booted
        self._attached = trio.Event()  # set while a program may be
        self.lost_replies = 0  # to programs that had gone

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> bool:
        """Run until the core says Halt; returns whether the journal is to be kept. Reports `started` when programs can
        connect. Leaves no process behind; the files of the sockets are removed with the lock. Raises SyscallError EINVAL:
        this process may have too few descriptors."""
        saved, self._saved = self._saved, None
        self._wall = WallClock(saved.wall if saved is not None else 0)
        restored = self._progress.restored if self._progress is not None else lambda done, of: None
        first = self._core.boot(0, saved, self._notes, self._wall.now(), restored)
        self._epoch = self._seen = trio.current_time()  # who is expected back has all his time, however long that took
        self._make_doors()
        try:
            async with trio.open_nursery() as self._nursery:
                nursery = self._nursery
                self._supervisor = Supervisor(self._devices, self._directory, self._from_supervisor, nursery)
                await nursery.start(self._watch_signals)
                self._drivers.listen(self._directory / runtime.DRIVERS)
                self._perform_all(first)
                entrances.clear(self._directory, self._sandboxes)
                self._programs.listen(self._directory / runtime.PROGRAMS, self._reach)
                if self._progress is not None:
                    self._progress.listens()
                self._open_gate()
                if self._files is not None:
                    self._place.sockets += (runtime.FILES,)
                    self._files.listen(self._directory / runtime.FILES, self._reach)
                    nursery.start_soon(self._files.run)
                for one in (self._programs, self._drivers):
                    nursery.start_soon(one.run)
                    nursery.start_soon(one.keep_time)
                for task in (self._keep_time, self._keep_wall, self._sample_figures):
                    nursery.start_soon(task)
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
                if self._audit is not None:
                    self._told_at_last("the audit log", await self._audit.finish())
                if self._keeper is not None:
                    trouble = await trio.to_thread.run_sync(self._keeper.sync_all) if self._keeps else ""
                    self._told_at_last("the journal", trouble)
                    self._keeper.stop(kept=not trouble)
                with trio.move_on_after(FLUSH_SECONDS):
                    while self._programs.waiting:  # noqa: ASYNC110 - the door tells nobody
                        await trio.sleep(FLUSH_LOOK)
                await self._supervisor.end_all(self._ask_to_quit, self._hurry)
                nursery.cancel_scope.cancel()
        finally:
            self._halt.set()  # what ends from here on is no event
            self._close_doors()
            if self._keeper is not None:
                self._keeper.close()
            if self._audit is not None:
                self._audit.close()
        return self._keeps

    def _close_doors(self) -> None:
        self._programs.close()
        if self._halts and not self._keeps:
            entrances.clear(self._directory)
        self._drivers.close()
        if self._files is not None:
            self._files.close()

    def _make_doors(self) -> None:
        descriptors = listening.raise_descriptor_limit()
        strangers = frozenset({None, unmapped_uid()} - {os.getuid()})
        self._programs = door.Door(
            descriptors,
            self._from_program,
            self._lost_program,
            self._note,
            refuses=lambda why: self._handle(Rejected(0, why.errno, why.reason)),
            strangers=strangers,
            operators=self._reach.operators,
        )
        self._drivers = door.Door(
            descriptors,
            self._from_driver,
            lambda peer: self._supervisor.lost(peer),
            self._note,
            received=budgets.DRIVER_RECEIVED,
            sends=budgets.DRIVER_REQUESTS,
            admits=lambda os_pid: self._supervisor.admits(os_pid),
        )

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
                self._now = max(self._now, self._moment())
                self._perform_all(self._core.handle(self._events.popleft(), self._now))
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
                    self._position = action.frame.position
            case Audit():
                if self._audit is not None:
                    self._audit.write(action)
            case Reply():
                self._answer(action)
            case Send():
                self._send(action)
            case WakeAt():
                self._wake_at = action.at
                self._set_alarm()
            case Log():
                self._console(action)
            case Forget():
                self._nursery.start_soon(self._forget, action)
            case StartDriver():
                self._supervisor.start(action.device, action.incarnation)
            case KillDriver():
                self._supervisor.kill(action.device, action.incarnation, action.reason)
            case SignalProgram():
                self._signal(action)
            case WallAt():
                self._wall.wake_at(action.at)
            case OpenSandbox():
                self._open_sandbox(action)
            case CloseSandbox():
                self._sandboxes.discard(action.number)
                self._programs.close_sandbox(action.number)
                entrances.remove(self._directory, action.number)
            case Halt():
                self._keeps, self._halts = action.keep, True
                self._halt.set()

    # --- programs ---------------------------------------------------------------------------------------------------

    def _from_program(self, peer: Peer, message: zmtp.Frame | zmtp.Refused) -> Iterator[None] | None:
        if self._peers.numbered(peer.number) is None:
            self._peers.add(peer)
            self._attached.set()
        if not isinstance(message, zmtp.Refused) and len(message) >= parts.LONG:
            return self._from_program_in_parts(peer, message)
        try:
            if isinstance(message, zmtp.Refused):
                raise wire.RefusedFrame(wire.seq_of(message.prefix), message.errno, message.reason)
            self._request(peer, wire.decode_request(message), len(message))
        except wire.RefusedFrame as refusal:
            self._refuse(peer, refusal)
        return None

    def _from_program_in_parts(self, peer: Peer, message: zmtp.Frame) -> Iterator[None]:
        try:
            if why := self._room.refusal(len(message)):
                raise wire.RefusedFrame(wire.seq_of(message[:24]), Errno.EAGAIN, why)
            self._request(peer, (yield from wire.decode_in_parts(message)), len(message))
        except wire.RefusedFrame as refusal:
            self._refuse(peer, refusal)

    def _refuse(self, peer: Peer, refusal: wire.RefusedFrame) -> None:
        self._reply(peer, wire.encode_reply(refusal.seq, refusal.errno, refusal.reason))
        self._handle(Rejected(peer.number, refusal.errno, refusal.reason))

    def _request(self, peer: Peer, request: wire.Request, size: int) -> None:
        """Raises RefusedFrame."""
        if request.call is None:
            self._handle(Cancel(peer.number, request.cancels))
            return
        if peer.host and isinstance(request.call, SandboxOpen):
            raise wire.RefusedFrame(request.seq, Errno.ENOTSUP, _FAR)
        if peer.key is not None:
            self._check_files(peer, request.seq, request.call)
        if type(request.call) in _GROW and (why := self._room.refusal(size)):
            raise wire.RefusedFrame(request.seq, Errno.EAGAIN, why)
        peer.owed += 1
        entry = BY_RECORD[type(request.call)]
        if entry.dated and getattr(request.call, entry.dated):
            self._handle(Wall(self._wall.now()))
        drawn = secrets.randbits(63) if entry.draws else 0
        call, files = request.call, None
        if self._files is not None:
            call, files = self._files.named(peer, request.seq, call)
        who = peer.os_pid, peer.uid, drawn, size, peer.tenant, files, peer.sandbox
        self._handle(Syscall(peer.number, request.seq, call, *who))

    def _check_files(self, peer: Peer, seq: int, call: Call[Any]) -> None:
        try:
            if self._gate is not None:
                self._gate.refuse_files(peer, call)
        except SyscallError as error:
            raise wire.RefusedFrame(seq, error.errno, error.reason) from None

    def _keys_changed(self, changes: list[Change]) -> None:
        if self._gate is not None and self._gate.trouble:
            self._handle(Noted("error", f"keys: nobody comes by TCP: {self._gate.trouble}"))
        for change in changes:
            what = "may come no longer; its connections are cut" if change.what == "key revoke" else "may come"
            on: dict[str, str | int] = {"key": change.key.name, "public": curve_keys.text_of(change.key.public)}
            text = f"key {change.key.name} ({change.key.owner}) {what}"
            self._handle(Noted("info", text, change.what, on | {"owner": change.key.owner}))

    def _lost_program(self, peer: Peer) -> None:
        if self._peers.numbered(peer.number) is not None:
            self._peers.remove(peer)
            if self._files is not None:
                self._files.gone(peer.number)
            if not self._halt.is_set():
                self._handle(Disconnected(peer.number))

    def _note(self, peer: Peer, text: str) -> None:
        self._handle(Noted("warning", text))

    def _reply(self, peer: Peer | None, frame: bytes) -> None:
        if peer is None or not self._programs.send(peer, frame):
            self.lost_replies += 1

    def _answer(self, action: Reply) -> None:
        value = action.value if action.errno is Errno.OK else action.reason
        peer = self._peers.numbered(action.peer)
        if self._files is not None:
            self._files.answered(action.peer, action.seq)
        position = self._position if action.told and action.tells else 0
        try:
            frame = wire.encode_reply(action.seq, action.errno, value, position)
        except MemoryError:
            why = "the kernel has no memory for the answer; ask for less"
            frame = wire.encode_reply(action.seq, Errno.EIO, why, position)
        if self._audit is None or not action.tells:
            self._reply_kept(peer, frame, action)
        else:
            self._audit.when_kept(lambda: self._reply_kept(peer, frame, action))

    def _reply_kept(self, peer: Peer | None, frame: bytes, action: Reply) -> None:
        if self._keeper is None:
            self._give(peer, frame)
        else:
            self._keeper.when_kept(
                lambda: self._give(peer, frame), changes=action.changes, tells=action.tells, synced=action.synced
            )

    def _give(self, peer: Peer | None, frame: bytes) -> None:
        if peer is not None:
            peer.owed -= 1
        self._reply(peer, frame)

    def _signal(self, action: SignalProgram) -> None:
        peer = self._peers.numbered(action.peer)
        if peer is None:
            return  # it has gone
        try:
            if peer.process >= 0:
                signal.pidfd_send_signal(peer.process, action.signal)
            elif sys.platform != "linux" and peer.os_pid > 1:
                os.kill(peer.os_pid, int(action.signal))
            else:
                raise ProcessLookupError(0, "the operating system gives no hold of it")
        except OSError as error:
            if action.signal in (Signal.KILL, Signal.TERM):  # what it has here ends, if its OS process cannot be ended
                self._programs.cut(peer, f"it was sent {action.signal.name}, and cannot be signalled: {error.strerror}")
                return
            text = f"signal {action.signal.name} to {peer.shown}: {error.strerror}"
            self._console(Log(seconds(self._now), "warning", text))

    def _told_at_last(self, what: str, trouble: str) -> None:
        if trouble:
            text = f"what came last in {what} is not on the disk as the kernel halts: {trouble}"
            self._console(Log(seconds(self._now), "error", text))

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
        except OSError as error:
            self._handle(SandboxOpened(action.number, error=str(error)))
            return
        self._programs.open_sandbox(action.number, listener)
        self._handle(SandboxOpened(action.number, str(place.absolute())))

    def _open_gate(self) -> None:
        if self._outside is None:
            return
        gate, listener = self._outside
        self._programs.open_gate(gate, listener, self._keys_changed)
        where, public = curve_keys.shown(gate.host, gate.port), curve_keys.text_of(gate.public)
        self._handle(Noted("info", f"programs on other machines may come by tcp://{where}; the kernel's key is {public}"))

    # --- drivers ----------------------------------------------------------------------------------------------------

    def _from_driver(self, peer: Peer, message: zmtp.Frame | zmtp.Refused) -> None:
        named = self._supervisor.named(peer)
        if named is None:
            return  # a late message of a driver whose end was reported already, or a stranger's
        name, incarnation = named
        if isinstance(message, zmtp.Refused):
            self._supervisor.kill(name, incarnation, f"it sent what is no message: {message.reason}")
            return
        try:
            event = FromDevice(name, incarnation, protocol.decode_from_driver(message))
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            self._supervisor.kill(name, incarnation, f"it sent what is no message: {error}")
            return
        said = event.message
        if isinstance(said, protocol.Hello) and not self._supervisor.is_child(name, incarnation, said.os_pid):
            self._supervisor.kill(name, incarnation, f"it says that it is OS process {said.os_pid}, and is another")
        else:
            self._take(event)

    def _take(self, event: FromDevice) -> None:
        """An answer for the core; for the driver it is another question where the file that it looked at is sealed."""
        found = self._images.incoming(event.device, event.message)
        if isinstance(found, protocol.Inspect):
            self._tell_driver(event.device, event.incarnation, found)
            return
        event = FromDevice(event.device, event.incarnation, found)
        given = None
        if self._files is not None and isinstance(found, protocol.Exported | protocol.Failed):
            given = self._files.told(event.device, found.ref)
        if isinstance(found, protocol.Exported):
            keys = self._images.kept(event.device, found)
            if keys is not None or given is not None:
                self._nursery.start_soon(self._when_written, keys, given, event, found.ref)
                return
        self._handle(event)
        if isinstance(event.message, protocol.Hello):
            self._decided(event.device)

    async def _when_written(self, keys: Store | None, given: Given | None, event: FromDevice, ref: int) -> None:
        """A file is of no use without its key, so that is on the disk before anybody hears of it; and so is the file of
        a user that it goes into."""
        try:
            if keys is not None:
                await trio.to_thread.run_sync(keys.sync)
            if given is not None and self._files is not None:
                await self._files.deliver(given)
        except SyscallError as error:
            errno = error.errno if error.errno in protocol.FAILURES else Errno.EIO
            event = FromDevice(event.device, event.incarnation, protocol.Failed(ref, errno, error.reason))
        except OSError as error:
            reason = f"the key of the file cannot be written: {error.strerror}"
            event = FromDevice(event.device, event.incarnation, protocol.Failed(ref, Errno.EIO, reason))
        self._handle(event)

    def _send(self, action: Send) -> None:
        shown = self._files is not None and self._files.asked(action.device, action.message)
        message = self._images.outgoing(action.device, action.message, shown=shown)
        if isinstance(message, protocol.Failed):
            self._handle(FromDevice(action.device, action.incarnation, message))
            return
        self._tell_driver(action.device, action.incarnation, message)

    def _from_supervisor(self, event: Event) -> None:
        if isinstance(event, DriverExited):
            self._drivers.drain()  # the messages that it still sent count
            self._images.died(event.device)
            if self._files is not None:
                self._files.died(event.device)
        self._handle(event)
        if isinstance(event, DriverExited):
            self._decided(event.device, self._supervisor.unusable.get(event.device, ""))

    def _decided(self, device: str, unusable: str = "") -> None:
        """A device is up, or its driver has ended for the first time."""
        if device not in self._undecided or self._halt.is_set():
            return
        self._undecided.remove(device)
        self._lost |= {device} if unusable else set()
        if unusable and (self._wanted or len(self._lost) == len(self._devices)):
            self.failed = f"device {device} cannot start: {unusable}"
            self._handle(HaltRequest(self.failed, self._has_agents))
        elif not self._undecided:
            self._ready()

    def _ask_to_quit(self, device: str, incarnation: int) -> bool:
        return self._tell_driver(device, incarnation, protocol.Quit())

    def _tell_driver(self, device: str, incarnation: int, message: protocol.ToDriver) -> bool:
        peer = self._supervisor.peer(device, incarnation)
        return peer is not None and self._drivers.send(peer, protocol.encode(message))

    # --- files that somebody may remove ---------------------------------------------------------------------------------

    def _directories(self) -> list[Path]:
        keys = [self._gate.file.parent] if self._gate is not None else []
        return [self._directory, *([self._keeper.path.parent] if self._keeper is not None else []), *keys]

    def _look_at_files(self) -> None:
        self._programs.look_at_keys()
        if self._keeper is not None:
            self._keeper.look()
        if self._audit is not None:
            self._audit.look()
        if not self._place.missing() or self._halt.is_set():
            return
        try:
            self._place.make_again()
            if not self._place.has(runtime.DRIVERS):
                self._drivers.listen(self._directory / runtime.DRIVERS)
            if not self._place.has(runtime.PROGRAMS):
                self._programs.listen(self._directory / runtime.PROGRAMS, self._reach)
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

    def _moment(self) -> int:
        """The kernel's time. It stands still while the kernel does not run (SIGSTOP, a paused virtual machine, a machine
        that is overloaded), which an alarm that is late tells: what was due then comes after all that has arrived
        meanwhile, so that nobody is late for it. Once for each alarm."""
        late = trio.current_time() - self._epoch - seconds(self._wake_at or 0)
        if self._wake_at is not None and late > LATE_SECONDS and self._wake_at != self._put_off:
            self._put_off = self._wake_at
            self._stand_still(late + LATE_SECONDS)
        self._seen = trio.current_time()
        return nanoseconds(self._seen - self._epoch)

    def _stand_still(self, gap: float) -> None:
        self._epoch += gap
        self._set_alarm()

    def _set_alarm(self) -> None:
        self._alarm.deadline = float("inf") if self._wake_at is None else self._epoch + seconds(self._wake_at)

    async def _keep_time(self) -> None:
        while True:
            with trio.CancelScope() as self._alarm:
                self._set_alarm()
                await trio.sleep_forever()
            moment, _ = self._wake_at, self._moment()
            if moment is not None and trio.current_time() >= self._epoch + seconds(moment):
                self._wake_at = None
                # Adding and subtracting the epoch rounds: the core must not see its moment as yet to come.
                self._now = max(self._now, moment)
                self._handle(Tick())

    async def _keep_wall(self) -> None:
        while True:
            await self._wall.look()
            self._handle(Wall(self._wall.now()))

    async def _sample_figures(self) -> None:
        processes: dict[int, psutil.Process] = {}
        while True:
            await self._attached.wait()
            await trio.sleep(FIGURES_SECONDS)
            if not any(self._peers):  # nobody is there who could ask for them
                self._attached = trio.Event()
                continue
            wanted = {os.getpid(), *self._supervisor.os_pids(), *(peer.os_pid for peer in self._peers)} - {0}
            figures: dict[int, tuple[int, float]] = {}
            for count, pid in enumerate(wanted):
                try:
                    if (process := processes.get(pid)) is None:
                        process = processes[pid] = psutil.Process(pid)
                    with process.oneshot():
                        times = process.cpu_times()
                        figures[pid] = process.memory_info().rss, times.user + times.system
                except (psutil.Error, OSError):  # it has just ended, or there is no descriptor to ask by
                    processes.pop(pid, None)
                if count % FIGURES_BATCH == FIGURES_BATCH - 1:
                    await trio.lowlevel.checkpoint()
            for pid in processes.keys() - wanted:
                del processes[pid]
            shown = self._files.budgets() if self._files is not None else []
            self._handle(OsFigures(figures, [*self._programs.budgets(), *shown]))

    async def _watch_signals(self, task_status: TaskStatus[None]) -> None:
        """Halt at SIGTERM, SIGINT or SIGHUP, and keep the journal if there is one: these come at a logout or reboot
        too. At a second one do not wait for drivers to end in good order."""
        keep = self._keeper is not None and not self._die_with_parent
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGCONT:  # it may have stood still since it ran last
                    self._stand_still(trio.current_time() - self._seen)
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
