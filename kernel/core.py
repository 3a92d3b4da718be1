"""The kernel core: a pure state machine, `handle(event, now) -> list[Action]`. No sockets, threads, clock, randomness or
files inside, so it can be simulated in virtual time, replayed, tested without I/O, and read.

Entry points: `boot` and `handle`. An event goes to the floor that knows what to do with it: system calls to their
handlers (kernel/calls), messages of drivers to kernel/devices; these change facts and make marks. At its end the marks
are reconciled: states follow the facts, calls that were woken go on, devices get their next steps. Then what has changed
becomes a frame of the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmasos.kernel import audit, desk, events, grants, pieces, sandboxes
from llmasos.kernel.calls import inventory, shred
from llmasos.kernel.calls.group import make as make_group
from llmasos.kernel.devices import reincarnation, steps
from llmasos.kernel.dispatch import dispatch
from llmasos.kernel.journal.state import State as Saved
from llmasos.kernel.life import end_program
from llmasos.kernel.objects.process import INIT_PID, LLMProcess, Process, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.recovery import recovery, rejoin
from llmasos.kernel.settle import settle_stale
from llmasos.kernel.state import System
from llmasos.kernel.wait import wake
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind, State, WaitFor
from llmasos.syscalls.shown import file_of
from llmasos.syscalls.table import BY_RECORD, Attach, Leave
from llmasos.syscalls.table import Trace as TraceCall
from llmasos.syscalls.wire import describe

MOST_ROUNDS = 8  # of reconciling after one event


class Kernel(System):
    """The state with its entry points. Only these are called from outside."""

    def __init__(self, config: events.KernelConfig) -> None:
        super().__init__(config)
        self._wanted_wake: int | None = None
        self._wanted_wall: int | None = None

    # --- in and out -------------------------------------------------------------------------------------------------

    def boot(
        self,
        now: int,
        saved: Saved | None = None,
        notes: Sequence[tuple[str, str]] = (),
        wall: int = 0,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[events.Action]:
        """Start: init, the devices, their drivers. Call once, first. `saved` is the journal's state (taken over, not
        copied), `notes` are lines (level, text) about it for the log; without `saved` no journal is kept. `wall`: as in
        events.Wall. `progress` is told now and then how many of how many processes are back."""
        self.started = self.now = now
        self.wall, self.wall_told = max(wall, saved.wall if saved is not None else 0), now
        blocked = State.BLOCKED, WaitFor.CHILD, now
        self.table.add(Process(self.table.new_pid(), 0, Kind.INIT, "init", self.groups.system, now, *blocked))
        self.log("info", f"LLMasOS {self.config.version} boots", public=True)
        details = {"version": self.config.version, "os_pid": self.config.os_pid}
        audit.note(self, "boot", "system", who=self.owners.operator.name, details=details)
        for level, text in notes:
            self.log(level, text)
        for path, settings in sorted(self.config.groups.items()):  # parents before what is in them
            make_group(self, path, settings)
        if saved is not None and not saved.processes.keys().isdisjoint(range(len(self.config.devices) + 2)):
            recovery.resume_pids(self, saved)  # there were fewer devices
        for device in self.config.devices:
            reincarnation.add_device(self, device)
        if saved is not None:
            recovery.recover(self, saved, progress)
        return self._finish()

    def handle(self, event: events.Event, now: int) -> list[events.Action]:
        """One event in, all its consequences out. `now`, in nanoseconds, never goes back."""
        if self.keeping:
            return []
        self.now = now
        self.timers.run(self, now)
        match event:
            case events.Syscall():
                self._syscall(event)
            case events.FromDevice():
                reincarnation.from_device(self, event)
            case events.Cancel():
                self._cancel(event)
            case events.Disconnected():
                program = self.programs.get(event.peer)
                if program is not None and event.cut and recovery.may_come_back(self, program):
                    recovery.lose(self, program)
                elif program is not None:
                    end_program(self, program, 0, "its connection ended")
            case events.KeyRevoked():
                recovery.keys_gone(self, event.key.__eq__)
            case events.KeysFound():
                recovery.keys_gone(self, lambda key: key not in event.keys)
            case events.DriverExited():
                reincarnation.driver_exited(self, event)
            case events.DriverPrinted():
                self.log("info", f"{event.device}: {event.text}")
            case events.OsFigures():
                self.figures, self.budgets = event.figures, event.budgets
            case events.Noted():
                self.log(event.level, event.text)
                if event.what:
                    audit.note(self, event.what, "rights", on=event.on)
            case events.Rejected():
                self.counters["rejected"] += 1
                if event.errno is Errno.EPERM:
                    audit.refuse(self, events.AuditLine("connect", audit.REFUSALS, result="EPERM", reason=event.reason))
            case events.HaltRequest():
                desk.halt(self, event.reason, keep=event.keep)
            case events.Wall():
                grants.expire(self, event.at)
            case events.SandboxOpened():
                sandboxes.opened(self, event)
            case events.Forgotten():
                shred.forgotten(self, event)
            case events.JournalFails():
                recovery.journal_fails(self, event.reason)
            case events.Audited():
                self._audited(event)
            case events.Measured():
                inventory.installation(self, event)
            case events.AuditFails():
                self._audit_fails(event.reason)
            case events.JournalWaits():
                recovery.journal_waits(self, event.seconds, done=event.done)
            case events.JournalGrows():
                self.log("warning", f"journal: it grows, since it could not be compacted: {event.reason}")
            case events.JournalCompacted():
                self.emit("journal.compact", amount=event.after, detail=f"of {event.before} bytes")
        return self._finish()

    def files(self) -> set[str]:
        """The paths of the models that are in memory, or that processes have."""
        found = {image.path for device in self.devices.values() for image in device.images.values()}
        found.update(process.traits.model for process in self.table if isinstance(process, LLMProcess))
        return {file_of(self.config.models.get(name, name)) for name in found}

    def _finish(self) -> list[events.Action]:
        if self.stale or self.woken or self.orphans or self.pumped:
            self._reconcile()
        if self.unwatched:
            reincarnation.watch_asked(self)
        if self.trace.on:
            wake(self, self.traced)
            self._reconcile()
            self.trace.expire(self.uptime, {request.program.owner for request in self.traced})
        wake_at = self.timers.next()
        if wake_at != self._wanted_wake or wake_at == self.now:  # which may have rung in this moment already
            self._wanted_wake = wake_at
            self.actions.append(events.WakeAt(wake_at))
        if (self.table.gone or self.grants.ended) and self.grants:
            grants.forget(self)
        if (self.grants.ends or self._wanted_wall) and (end := self.grants.first_end) != self._wanted_wall:
            self._wanted_wall = end
            self.actions.append(events.WallAt(end))
        frame = self.journal.frame(self.table, self.owners, self.grants, self.sandboxes, self.now)
        if frame is not None:
            self.actions.insert(0, events.Append(frame))
        if self.auditor.lines:
            self.actions[:0] = audit.lines(self)
        actions, self.actions = self.actions, []
        return actions

    def _reconcile(self) -> None:
        """Bring all that follows from the facts up to date, until no mark is left. A second time would change nothing."""
        rounds = 0
        while self.stale or self.woken or self.orphans or self.pumped:
            rounds += 1
            if rounds > MOST_ROUNDS:
                self._give_up_reconciling()
                return
            settle_stale(self)
            if len(self.woken) > pieces.AT_ONCE:
                rejoin.spread(self)
            for _ in range(len(self.woken)):
                dispatch(self, *self.woken.popleft())
                settle_stale(self)
            if self.woken:
                continue
            orphans, self.orphans = self.orphans, []
            for zombie in orphans:
                self.table.remove(zombie)
            for device in list(self.pumped.values()):
                steps.pump(self, device)
                del self.pumped[device.name]  # what its own plan has marked is in the plan

    def _give_up_reconciling(self) -> None:
        """A fault of the kernel: marks make marks without end. The next event tries again."""
        calls = ", ".join(request.entry.name for request, _ in self.woken)
        self.cycle = f"woken: {calls}; stale: {list(self.stale)}; devices: {list(self.pumped)}"
        self.log("error", f"reconciling has come to no end ({self.cycle}); it goes on with the next event")

    def recorded(self) -> Saved:
        """The state that the journal must add up to, made from the live one; logs are not copied."""
        devices = self.devices.values()
        told = self.owners, self.grants, self.sandboxes, self.now, self.secret
        return self.journal.snapshot(self.table, self.groups, devices, *told)

    def snapshot(self) -> Saved:
        """A copy of the state that the journal must add up to."""
        return self.recorded().copy()

    # --- requests ---------------------------------------------------------------------------------------------------

    def _syscall(self, event: events.Syscall) -> None:
        entry = BY_RECORD[type(event.call)]
        self.calls[entry.name] += 1
        program = self.programs.get(event.peer)
        if program is None:
            if not isinstance(event.call, Attach):
                why = "attach first: no program is attached here"
                audit.stranger(self, event, Errno.EPERM, why)
                self.actions.append(events.Reply(event.peer, event.seq, Errno.EPERM, reason=why))
                return
            try:
                program = self._enter(event, event.call)
            except SyscallError as error:
                self.counters["errors"] += 1
                if event.call.ticket or error.errno is Errno.EPERM:
                    audit.stranger(self, event, error.errno, error.reason)
                self.actions.append(events.Reply(event.peer, event.seq, error.errno, reason=error.reason))
                return
        request = Request(program, event.seq, event.call, entry, program.group, event.drawn, size=event.size)
        if event.files is not None:
            request.files = event.files
        if self.trace.on and not isinstance(event.call, TraceCall):  # or a tracer would see itself, for ever
            told = describe(event.call), describe(event.call, content=False)
            self.emit(f"call.{entry.name}", program.pid, "", event.seq, *told)
        if event.seq in program.parked:
            if not recovery.join(program.parked[event.seq], request):
                desk.fail(self, request, Errno.EINVAL, f"sequence number {event.seq} is of a call that still waits")
        elif not program.name and not isinstance(event.call, Attach | Leave):
            desk.fail(self, request, Errno.EAGAIN, "attach is not answered yet: its line is on its way to the audit log")
        elif self.halting:
            desk.fail(self, request, Errno.EPIPE, "the kernel is halting")
        elif not (program.to_replay and recovery.answer_again(self, request)):
            dispatch(self, request)

    def _audited(self, event: events.Audited) -> None:
        """The line of a call that has to be audited is written, or could not be."""
        request = audit.written(self, event.ref, event.trouble)
        if request is not None and event.trouble and isinstance(request.call, Attach) and not request.program.name:
            desk.take_back(self, request, Errno.EIO, "attach has to be audited, and the audit log cannot be written")
            end_program(self, request.program, 0, "its attach could not be audited")

    def _audit_fails(self, reason: str) -> None:
        self.auditor.trouble = reason
        if reason:
            refused = ", ".join(sorted(self.auditor.required))
            what = f"calls of {refused} are refused" if refused else "what happens is counted, and not written down"
            self.log("error", f"audit: {reason}; {what} until it can be written again")
        else:
            self.log("info", "audit: it can be written again")

    def _enter(self, event: events.Syscall, call: Attach) -> Program:
        if call.ticket:
            return recovery.take_up(self, event, call.ticket, call.seen)
        program = self._attach(event, call)
        program.told = call.seen >= 0
        return program

    def _attach(self, event: events.Syscall, call: Attach) -> Program:
        if (event.uid or 0) > pids.MOST_UID:
            raise Errno.EPERM(f"user id {event.uid} is greater than any that this kernel serves ({pids.MOST_UID})")
        if event.tenant and call.tenant not in ("", event.tenant):
            raise Errno.EPERM(f"this program came by a key of tenant {event.tenant}, and attaches for no other")
        sandbox = sandboxes.find(self, event) if event.sandbox else None
        if sandbox is None:
            owner = self.owners.of(event.uid, event.tenant or call.tenant, event.drawn)
        elif call.tenant in ("", (owner := sandbox.starter.owner).tenant):
            sandbox.starter.group.check_pids(1)
        else:
            raise Errno.EPERM(f"programs of a sandbox are {owner.name}'s, and attach for no other")
        self.table.check_room(1, owner)
        self.groups.home(owner).check_pids(1)
        pid = self.table.new_pid(owner.space)
        blocked = State.BLOCKED, WaitFor.INPUT, self.now
        group = self.groups.session(pid, owner) if sandbox is None else sandbox.starter.group
        program = Program(pid, INIT_PID, Kind.PROGRAM, "", group, self.now, *blocked, owner=owner, peer=event.peer)
        program.os_pid, program.rights, program.key = event.os_pid, owner.rights, event.key
        if sandbox is not None:
            sandboxes.confine(self, sandbox, program, event.drawn)
        self.programs[event.peer] = program
        self.table.add(program)
        self.emit("proc.attach", program.pid, amount=event.os_pid)
        return program

    def _cancel(self, event: events.Cancel) -> None:
        program = self.programs.get(event.peer)
        request = program.parked.get(event.seq) if program is not None else None
        if request is not None:
            request.absent = False  # to take it back is to ask for it
            desk.take_back(self, request, Errno.EINTR, "cancelled by its caller")
