"""The kernel core: a pure state machine, `handle(event, now) -> list[Action]`. No sockets, threads, clock, randomness or
files inside, so it can be simulated in virtual time, replayed, tested without I/O, and read.

Entry points: `boot`, `handle`, `check`. Everything else here is what the families of system calls (kernel/calls), the
loading of models (kernel/models), and the life and steps of drivers (kernel/devices) share: requests and
their answers, timers, the log, and `settle`, the one place that decides which state a process is in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from drivers.protocol import Move
from kernel import enforce, invariants
from kernel.calls import context as sys_context
from kernel.calls import estimate as sys_estimate
from kernel.calls import group as sys_group
from kernel.calls import image as sys_checkpoint
from kernel.calls import info as sys_info
from kernel.calls import memory as sys_memory
from kernel.calls import move as sys_migrate
from kernel.calls import process as sys_process
from kernel.calls import system as sys_system
from kernel.devices import reincarnation, steps
from kernel.events import (
    Action,
    Append,
    Cancel,
    Disconnected,
    DriverExited,
    DriverPrinted,
    Event,
    FromDevice,
    Halt,
    HaltRequest,
    JournalCompacted,
    JournalFails,
    JournalGrows,
    KernelConfig,
    Log,
    OsFigures,
    Rejected,
    Reply,
    Send,
    Syscall,
    Tick,
    WakeAt,
)
from kernel.groups.group import Group, GroupTree
from kernel.journal.recorder import CHANGING, Recorder
from kernel.journal.state import State as Saved
from kernel.life import end_program
from kernel.memory.victims import make_victims
from kernel.models import paging
from kernel.objects.device import Device
from kernel.objects.image import RESIDENT, Image
from kernel.objects.process import INIT_PID, LLMProcess, Process, ProcessTable, Program
from kernel.objects.request import Request
from kernel.recovery import recovery
from kernel.sched.policies import make_policy
from kernel.sched.run_queue import RunQueue
from kernel.syscall import HANDLERS, PARKED
from kernel.timers import Timers
from kernel.trace import Trace
from syscalls import limits
from syscalls.errno import Errno, SyscallError
from syscalls.printable import printable
from syscalls.records import Kind, Right, State, WaitFor
from syscalls.table import BY_RECORD, Attach
from syscalls.table import Trace as TraceCall
from syscalls.wire import describe, describe_outcome


class Kernel:
    """The whole state of the system. Only `boot` and `handle` are called from outside."""

    def __init__(self, config: KernelConfig) -> None:
        self.config = config
        self.table = ProcessTable(config.max_processes)
        self.groups = GroupTree(config.user)
        self.devices: dict[str, Device] = {}
        self.programs: dict[int, Program] = {}  # by peer
        self.timers = Timers()
        self.trace = Trace(config.trace_events, config.log_lines)
        self.tracers: list[Request] = []  # calls that wait for the next trace event
        self.figures: dict[int, tuple[int, float]] = {}
        self.journal = Recorder()
        self.journal_trouble = ""  # why it cannot be written
        self.secret = b""  # key of the programs' tickets; empty: no journal is kept
        self.counters: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.started = 0.0
        self.now = 0.0  # of the event being handled
        self.halting = False
        self._actions: list[Action] = []
        self._wanted_wake: float | None = None
        self._refs = 0
        self._images = 0
        self._dirty: dict[str, Device] = {}

    # --- in and out -------------------------------------------------------------------------------------------------

    def boot(
        self, now: float, saved: Saved | None = None, notes: Sequence[tuple[str, str]] = ()
    ) -> list[Action]:
        """Start: init, the devices, their drivers. Call once, first. `saved` is what the journal has (the state is taken
        over, not copied), `notes` (level, text) what is to be said of it; without it no journal is kept."""
        self.started = self.now = now
        self.table.add(
            Process(
                self.table.new_pid(),
                0,
                Kind.INIT,
                "init",
                self.groups.system,
                now,
                State.BLOCKED,
                WaitFor.CHILD,
                now,
            )
        )
        self.log(now, "info", f"LLMasOS {self.config.version} boots")
        for level, text in notes:
            self.log(now, level, text)
        for path, settings in sorted(self.config.groups.items()):  # parents before what is in them
            sys_group.make(self, path, settings)
        for device in self.config.devices:
            queue = RunQueue(make_policy(device.policy, self.config.quantum))
            make_victims(device.victims)  # refuse a wrong name now, not with the first model
            reincarnation.add_device(self, device, queue, now)
        if saved is not None:
            recovery.recover(self, saved, now)
        return self._finish(now)

    def handle(self, event: Event, now: float) -> list[Action]:
        """One event in, all its consequences out. `now` never goes back."""
        self.now = now
        self.timers.run(now)
        match event:
            case Syscall():
                self._syscall(event, now)
            case FromDevice():
                reincarnation.from_device(self, event, now)
            case Cancel():
                self._cancel(event)
            case Tick():
                pass
            case Disconnected():
                program = self.programs.get(event.peer)
                if program is not None:
                    end_program(self, program, 0, "its connection ended", now)
            case DriverExited():
                reincarnation.driver_exited(self, event, now)
            case DriverPrinted():
                self.log(now, "info", f"{event.device}: {event.text}")
            case OsFigures():
                self.figures = event.figures
            case Rejected():
                self.counters["rejected"] += 1
            case HaltRequest():
                self.halt(event.reason, now)
            case JournalFails():
                recovery.journal_fails(self, event.reason, now)
            case JournalGrows():
                self.log(
                    now, "warning", f"journal: it grows, since it could not be compacted: {event.reason}"
                )
            case JournalCompacted():
                self.emit(now, "journal.compact", amount=event.after, detail=f"of {event.before} bytes")
        return self._finish(now)

    def _finish(self, now: float) -> list[Action]:
        while self._dirty:
            _, device = self._dirty.popitem()
            steps.pump(self, device, now)
            self._dirty.pop(device.name, None)
        if self.trace.on:
            self._wake_tracers(now)
        wake = self.timers.next()
        if wake != self._wanted_wake:
            self._wanted_wake = wake
            self._actions.append(WakeAt(wake))
        frame = self.journal.frame(self, now)
        if frame is not None:
            self._actions.insert(0, Append(frame))
        actions, self._actions = self._actions, []
        return actions

    def touch(self, process: Process) -> None:
        """Something has changed of a process that the journal has to be told of (kernel/journal/recorder.py)."""
        if process.pid in self.table:
            self.table.changed[process.pid] = process

    def act(self, action: Action) -> None:
        self._actions.append(action)

    def send(self, device: Device, message: Any) -> None:
        self._actions.append(Send(device.name, device.incarnation, message))

    def ref(self) -> int:
        """A number no request to any driver had before."""
        self._refs += 1
        return self._refs

    def new_image_id(self) -> int:
        self._images += 1
        return self._images

    def log(self, now: float, level: str, text: str) -> None:
        text = printable(text)
        self.trace.line(now - self.started, level, text)
        self._actions.append(Log(now - self.started, level, text))

    def emit(
        self, now: float, what: str, pid: int = 0, device: str = "", amount: int = 0, detail: str = ""
    ) -> None:
        """Record a trace event. Callers check `trace.on` first where building the arguments costs something."""
        if self.trace.on:
            self.trace.emit(now - self.started, what, pid, device, amount, detail)

    def snapshot(self) -> Saved:
        """What the journal must have come to, copied from the live state."""
        return self.journal.snapshot(self, self.secret).copy()

    def check(self) -> None:
        """All invariants (design section 5); raises AssertionError naming the one that does not hold."""
        invariants.check(self)

    # --- requests ---------------------------------------------------------------------------------------------------

    def _syscall(self, event: Syscall, now: float) -> None:
        entry = BY_RECORD[type(event.call)]
        self.calls[entry.name] += 1
        program = self.programs.get(event.peer)
        if program is None:
            if not isinstance(event.call, Attach):
                self._actions.append(
                    Reply(
                        event.peer, event.seq, Errno.EPERM, reason="attach first: no program is attached here"
                    )
                )
                return
            try:
                if event.call.ticket:
                    program = recovery.take_up(self, event, event.call.ticket, now)
                else:
                    program = self._attach(event, now)
            except SyscallError as error:
                self.counters["errors"] += 1
                self._actions.append(Reply(event.peer, event.seq, error.errno, reason=error.reason))
                return
        request = Request(program, event.seq, event.call, entry)
        if self.trace.on and not isinstance(event.call, TraceCall):  # or a tracer would see itself, for ever
            self.emit(now, f"call.{entry.name}", program.pid, amount=event.seq, detail=describe(event.call))
        if int(entry.right) & ~program.rights:  # plain numbers: arithmetic of enums costs microseconds
            self.fail(
                request,
                Errno.EPERM,
                f"{entry.name} needs the right {entry.right.name}, which {program.name} gave up",
            )
        elif event.seq in program.parked:
            if not recovery.join(program.parked[event.seq], request):
                self.fail(request, Errno.EINVAL, f"sequence number {event.seq} is of a call that still waits")
        elif len(program.parked) >= limits.MAX_PARKED_CALLS:
            self.fail(request, Errno.EAGAIN, f"{len(program.parked)} calls of this program wait already")
        elif self.halting:
            self.fail(request, Errno.EPIPE, "the kernel is halting")
        elif not (program.unsure and recovery.answer_again(self, request)):
            self.dispatch(request, now)

    def _attach(self, event: Syscall, now: float) -> Program:
        pid = self.table.new_pid()
        self.groups.users.check_pids(1)
        program = Program(
            pid, INIT_PID, Kind.PROGRAM, "", self.groups.session(pid), now, State.BLOCKED, WaitFor.INPUT, now,
            peer=event.peer, os_pid=event.os_pid, rights=int(Right.ALL),
        )  # fmt: skip
        self.programs[event.peer] = program
        self.table.add(program)
        self.emit(now, "proc.attach", program.pid, amount=event.os_pid)
        return program

    def dispatch(self, request: Request, now: float) -> None:
        """Run a call's handler; whatever it raises as SyscallError is its answer."""
        try:
            value = HANDLERS[type(request.call)](self, request, now)
        except SyscallError as error:
            self.fail(request, error.errno, error.reason)
        else:
            if value is not PARKED:
                self.answer(request, value)

    def answer(self, request: Request, value: Any) -> None:
        self._reply(request, Errno.OK, value, "")

    def fail(self, request: Request, errno: Errno, reason: str) -> None:
        self.counters["errors"] += 1
        self._reply(request, errno, None, reason)

    def _reply(self, request: Request, errno: Errno, value: Any, reason: str) -> None:
        if request.answered:
            raise AssertionError(f"call {request.entry.name} seq {request.seq} is answered twice")
        request.answered = True
        request.undo = None
        for timer in request.timers:
            timer.cancel()
        request.timers.clear()
        program = request.program
        if self.trace.on and not isinstance(request.call, TraceCall):
            outcome = describe_outcome(errno, value if errno is Errno.OK else reason)
            self.emit(self.now, f"ret.{request.entry.name}", program.pid, amount=request.seq, detail=outcome)
        if program.parked.get(request.seq) is request:
            del program.parked[request.seq]
        self.journal.answered(request, errno, value, reason)
        if request.absent:  # it will be told when it asks again
            program.unsure.add(request.seq)
        elif program.peer in self.programs:
            changes = type(request.call) in CHANGING
            self._actions.append(Reply(program.peer, request.seq, errno, value, reason, changes))

    def park(self, request: Request, undo: Callable[[], None]) -> object:
        """Let a request wait. `undo` takes it off whatever it waits on; it may answer the request itself."""
        request.undo, request.waited = undo, True
        request.program.parked[request.seq] = request
        return PARKED

    def unpark(self, request: Request, errno: Errno, reason: str) -> None:
        """End the waiting of a request with an error (cancelled, deadline, its program has gone)."""
        undo = request.undo
        if undo is not None:
            undo()
        if not request.answered:
            self.fail(request, errno, reason)

    def _cancel(self, event: Cancel) -> None:
        program = self.programs.get(event.peer)
        request = program.parked.get(event.seq) if program is not None else None
        if request is not None:
            request.absent = False  # to take it back is to ask for it
            self.unpark(request, Errno.EINTR, "cancelled by its caller")

    def _wake_tracers(self, now: float) -> None:
        if self.tracers:
            waiting, self.tracers = self.tracers, []
            for request in waiting:
                self.dispatch(request, now)
        self.trace.expire(now - self.started, bool(self.tracers))

    # --- processes --------------------------------------------------------------------------------------------------

    def settle(self, process: LLMProcess, now: float) -> None:
        """Put a process that is not in a step into the state its facts ask for. Call after changing any of them."""
        if process.running or process.is_zombie():
            return
        device, image = process.device, process.image
        queued = process.ticket != 0
        if process.stopped:
            state, wait = State.STOPPED, WaitFor.NONE
        elif device.state != "up":
            state, wait = State.BLOCKED, WaitFor.DEVICE
        elif image is None:
            state, wait = State.BLOCKED, WaitFor.WEIGHTS
        elif process.pid in image.starved:
            state, wait = State.BLOCKED, WaitFor.PAGEIN if process.short is None else WaitFor.QUOTA
        elif process.held is not None and process.todo:
            state, wait = State.BLOCKED, WaitFor.QUOTA
        elif process.todo and image.state != RESIDENT:
            state, wait = State.BLOCKED, WaitFor.WEIGHTS
        elif process.todo:
            state, wait = State.READY, WaitFor.NONE
        else:
            state, wait = State.BLOCKED, WaitFor.INPUT
        if wait not in (WaitFor.PAGEIN, WaitFor.QUOTA):
            self.release(process)
            if image is not None:
                image.starved.pop(process.pid, None)
        if state is State.STOPPED and image is not None and image.swap.total and process.table.frames:
            self.take_pages(process, now)  # at once, so that others need not wait for it when they want them
        if state is State.READY:
            slept = process.state not in (State.READY, State.RUNNING) and process.wait not in (
                WaitFor.PAGEIN,
                WaitFor.QUOTA,
            )
            process.enter(state, wait, now)
            if not queued:
                device.queue.put(process, woke=slept)
            self._dirty[device.name] = device
        else:
            process.enter(state, wait, now)
            device.queue.withdraw(process)
        paging.follow(self, process, now)

    def dirty(self, device: Device) -> None:
        """Something changed that may let the device run its next step."""
        self._dirty[device.name] = device

    def take_pages(self, victim: LLMProcess, now: float) -> None:
        """Preempt: drop all pages of a process that is not in a step. Its token log brings them back."""
        image = victim.image
        assert image is not None
        pages = len(victim.table.frames)
        if victim.todo == 0:
            victim.ahead = False  # it sleeps on; its pages come back when something is asked of it
        moved = self._move_out(victim, image)
        victim.table.cut(image.pool, 0)
        image.let_go(victim)
        self.freed()
        victim.quantum_used, victim.turn = 0, now
        victim.robbed = victim.state in (State.READY, State.BLOCKED) and victim.todo > 0
        victim.account.preemptions += 1
        self.counters["preemptions"] += 1
        self.emit(
            now, "mem.preempt", victim.pid, victim.device.name, pages, f"{moved} moved out" if moved else ""
        )

    def _move_out(self, victim: LLMProcess, image: Image) -> int:
        """Have the next step move what it can of a process's pages to a lower tier, where that pays; returns how many."""
        if not image.swap.total or not image.swap_cost.pays:
            return 0
        if image.swap.free < len(victim.table.frames):  # copies of what has frames can be made again
            for holder in image.holders.values():
                if holder is not victim and not holder.running and holder.table.kept:
                    holder.table.trim(image.swap, 0)
                    if (
                        holder.state is State.BLOCKED
                    ):  # the ready may be planned just now, and find out by that
                        self.settle(holder, self.now)
        moves = victim.table.move_out(image.pool, image.swap)
        device = victim.device
        device.outs += [Move(image.id, victim.pid, frame, slot.tier, slot.number) for frame, slot in moves]
        self._dirty[device.name] = device
        return len(moves)

    def freed(self) -> None:
        """Frames have become free that somebody waits for, on this device or, in a group, on another."""
        for device in self.devices.values():
            if any(image.starved for image in device.images.values()):
                self._dirty[device.name] = device

    # --- control groups: what the planner asks (kernel/enforce.py) ---

    def hold_back(self, process: LLMProcess, now: float) -> bool:
        return enforce.hold_back(self, process, now)

    def grew(self, process: LLMProcess, now: float) -> None:
        enforce.mind_high(self, process, now)

    def group_victim(self, group: Group, wanting: LLMProcess, now: float) -> LLMProcess | None:
        return enforce.victim(self, group, wanting, now)

    def release(self, process: LLMProcess) -> None:
        """It is held back no longer."""
        if process.held is not None:
            process.held.line.pop(process.pid, None)
            process.held = None

    def device_named(self, name: str) -> Device:
        """The device of that name (empty: the first one), or ENODEV."""
        if not name:
            return next(iter(self.devices.values()))
        if name not in self.devices:
            raise SyscallError(Errno.ENODEV, f"no device {name!r}; there are: {', '.join(self.devices)}")
        return self.devices[name]

    def halt(self, reason: str, now: float) -> None:
        """Answer whoever waits, then end."""
        if self.halting:
            return
        self.halting = True
        self.journal.end()  # what is taken back now has not happened, should the kernel be killed meanwhile
        self.log(now, "info", f"halt: {reason}")
        for program in list(self.programs.values()):
            for request in list(program.parked.values()):
                self.unpark(request, Errno.EPIPE, f"the kernel halts: {reason}")
        self.act(Halt(reason))


FAMILIES = (
    sys_process,
    sys_context,
    sys_estimate,
    sys_memory,
    sys_group,
    sys_checkpoint,
    sys_migrate,
    sys_info,
    sys_system,
)  # importing them has filled HANDLERS
