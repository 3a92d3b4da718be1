"""How decodes, processes and programs end; zombies and their reaping.

As in Unix an LLM process that exits stays a zombie until its parent waits for it. When a program ends, its children end
with it, and init reaps them at the end of the event. Detached processes are init's children from the start. Any program
may wait for them, so init keeps their statuses for a while, as a service manager does.
"""

from __future__ import annotations

from collections import Counter

from llmasos.kernel import audit, desk, grants, pieces, sandboxes
from llmasos.kernel.clock import nanoseconds
from llmasos.kernel.groups.group import Group
from llmasos.kernel.marks import cancel_outs, changed, dirty, freed
from llmasos.kernel.objects.device import UP
from llmasos.kernel.objects.process import INIT_PID, Decoding, LLMProcess, Process, Program
from llmasos.kernel.rights import written
from llmasos.kernel.settle import unthrottle
from llmasos.kernel.state import System
from llmasos.kernel.wait import wake, wake_some
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import KEPT_SECONDS, MAX_KEPT
from llmasos.syscalls.records import DecodeResult, ExitInfo, Finish, Signal, State, WaitFor
from llmasos.syscalls.table import Wait

_LEAST_KEPT = 16  # statuses, however few processes there may be


class Awaited(desk.Begun):
    """A decode that a call waits for. It ends if the call is taken back."""

    def __init__(self, process: LLMProcess, decoding: Decoding) -> None:
        self.process, self.decoding = process, decoding

    def undo(self, system: System, error: SyscallError) -> None:
        self.decoding.request = None
        if self.process.decoding is self.decoding:
            interrupt_decoding(system, self.process, Finish.INTERRUPT)


def finish_decoding(system: System, process: LLMProcess, finish: Finish) -> None:
    """End the decode of a process that is not in a step: the call that waits for it is answered, readers see the end."""
    decoding = process.decoding
    if decoding is None:
        return
    process.decoding = None
    process.finish = finish
    changed(system, process)
    if decoding.timer is not None:
        decoding.timer.cancel()
    system.emit("proc.decoded", process.pid, process.device.name, len(process.log) - decoding.start, finish.value)
    if decoding.request is not None:
        tokens = process.log[decoding.start :].tolist() if decoding.append else []
        desk.answer(system, decoding.request, DecodeResult(decoding.start, tokens, finish, decoding.collected))
    wake(system, process.reading)
    if process.traits.once and finish is not Finish.KILLED:
        exit_process(system, process, 0 if finish is not Finish.ERROR else 1, f"its decode ended: {finish.value}")


def interrupt_decoding(system: System, process: LLMProcess, finish: Finish) -> None:
    """End the decode now, or at the token boundary if the process is in a step."""
    if process.decoding is None:
        return
    changed(system, process)
    if process.running:
        process.decoding.interrupted = finish
    else:
        finish_decoding(system, process, finish)


def fail_decoding(system: System, process: LLMProcess, reason: str, errno: Errno = Errno.EIO) -> None:
    """A process cannot compute its tokens: its decode ends with an error, and so does the call that waits for it."""
    process.ahead = False  # what failed would fail again; the next feed, truncate or decode tries anew
    process.finish = Finish.ERROR  # shown even if no decode was asked for
    process.failure = errno, reason
    changed(system, process)
    refuse_caller(system, process, errno, reason)
    finish_decoding(system, process, Finish.ERROR)


def refuse_caller(system: System, process: LLMProcess, errno: Errno, reason: str) -> None:
    """Fail the call that waits for the decode under way, if one does; the decode itself stays as it is."""
    decoding = process.decoding
    if decoding is not None and decoding.request is not None:
        request, decoding.request = decoding.request, None
        desk.fail(system, request, errno, reason)


def set_deadline(system: System, process: LLMProcess, decoding: Decoding, moment: int) -> None:
    """End a decode with what it has when `moment` has come."""
    decoding.timer = system.timers.at(moment, _end_late, process)


def _end_late(system: System, process: LLMProcess) -> None:
    interrupt_decoding(system, process, Finish.DEADLINE)  # a decode that ends takes its timer with it


def exit_process(system: System, process: LLMProcess, status: int, reason: str) -> None:
    """End an LLM process, at its token boundary if it is in a step. Harmless if it is ending already."""
    if process.is_zombie():
        return
    if process.birth is not None:  # it has no model yet: its spawn is what ends
        why = f"process {process.pid} was ended before it had its model ({reason})"
        desk.take_back(system, process.birth, Errno.EINTR, why)
        return
    changed(system, process)
    if process.running:
        process.dying = process.dying or (status, reason)
        return
    if (rejoining := system.own.parked.get(process.pid)) is not None:  # it was to get its model back
        desk.answer(system, rejoining, None)
    if process.transition is not None:
        gone = f"process {process.pid} exited before it was changed ({reason})"
        desk.take_back(system, process.transition, Errno.ESRCH, gone)
    if process.decoding is not None:
        finish_decoding(system, process, Finish.KILLED)
    if process.image is not None:
        leave_image(system, process)
    unthrottle(process)
    process.device.queue_of(process).withdraw(process)
    process.device.release_reserve(process.pid)
    process.exit_status, process.exit_reason = status, reason
    system.counters["exited"] += 1
    system.emit("proc.exit", process.pid, amount=status, detail=reason)
    dirty(system, process.device)
    _become_zombie(system, process)


def stop_suspect(system: System, process: LLMProcess, reason: str) -> None:
    """Stop a process that is suspected of a driver's deaths. Its log, and what it was doing, stay; CONT tries again,
    alone in its step. A call that waits for its decode is told."""
    process.stopped, process.stop_reason, process.crashes = True, reason, 1
    changed(system, process)
    why = f"process {process.pid} is stopped: {reason}; its log stays, `cont` tries again"
    system.log("error", why, process)
    refuse_caller(system, process, Errno.EIO, why)


def _become_zombie(system: System, process: LLMProcess) -> None:
    """Calls that wait for the process go on: reads see its end, others find it gone, its parent reaps it."""
    process.enter(State.ZOMBIE, WaitFor.NONE, system.now)
    audit.ended(system, process, process.exit_status)
    wake(system, process.reading)
    wake(system, process.pausing)
    parent = system.table.get(process.parent)
    system.table.ended(process)
    if isinstance(parent, Program):
        system.emit("sig.chld", parent.pid, amount=int(Signal.CHLD), detail=f"pid {process.pid}")
    elif process.traits.detached:
        _keep_status(system, process)
    else:
        system.orphans.append(process)
    _tell(system, process)


def _keep_status(system: System, process: LLMProcess) -> None:
    """What is left of a detached process costs its group nothing, or a session would be full, and would not end. It is
    its owner's."""
    old, process.group = process.group, system.groups.home(process.owner)
    process.table.group = process.group
    process.group.enter(process.pid, process.kept)
    old.leave(process.pid, process.kept)
    grants.left(system, process, old)
    system.journal.left(old)
    _leave_places(system, process.group)
    forget_old(system)


def _leave_places(system: System, home: Group) -> None:
    """Reap the oldest statuses of an owner beyond a quarter of the `pids_max` of its home: what has ended keeps no
    process out."""
    limit = min((group.settings.pids_max for group in home.chain if group.settings.pids_max), default=0)
    if limit:
        own = [one for one in system.table.zombies(INIT_PID).values() if one.group is home]
        for oldest in own[: -max(1, limit // 4)]:
            reap(system, oldest)


def forget_old(system: System, _: object = None) -> None:
    """Reap detached processes whose status nobody has collected in time. While there are too many, reap the oldest of the
    user who has most, so that nobody loses a status because of another user's."""
    kept = [one for one in system.table.zombies(INIT_PID).values() if isinstance(one, LLMProcess) and one.traits.detached]
    most = min(MAX_KEPT, max(_LEAST_KEPT, system.config.max_processes // 16))  # or they would fill a small table
    while kept and kept[0].since + nanoseconds(KEPT_SECONDS) <= system.now:
        reap(system, kept.pop(0))
    while len(kept) > most:
        ((user, _count),) = Counter(one.owner.base for one in kept).most_common(1)
        oldest = next(one for one in kept if one.owner.base is user)
        kept.remove(oldest)
        reap(system, oldest)
    if kept and (system.forgetting is None or system.forgetting.kind is None):
        due = kept[0].since + nanoseconds(KEPT_SECONDS)
        system.forgetting = system.timers.at(due, forget_old, None)


def strike(system: System, process: LLMProcess) -> None:
    """Take a process off the table that never got its model: its spawn has failed or was taken back."""
    process.birth = None
    process.device.release_reserve(process.pid)
    process.enter(State.ZOMBIE, WaitFor.NONE, system.now)
    system.table.remove(process)
    wake(system, process.reading)
    _tell(system, process)


def _tell(system: System, process: LLMProcess) -> None:
    """Calls that wait for this process, and its parent's that wait for any child, go on."""
    parent = system.table.find(process.parent)
    programs = [parent] if isinstance(parent, Program) else [*system.programs.values(), *system.away.values()]
    wanted = (0, process.pid) if isinstance(parent, Program) else (process.pid,)
    for program in programs:
        wake_some(system, program.ended, lambda request: isinstance(request.call, Wait) and request.begun in wanted)


def lives_on(system: System, process: LLMProcess) -> bool:
    """Do what is due at a token boundary: an exit, or the end of a decode. Whether the process lives after that."""
    if process.dying is not None and not process.is_zombie():
        exit_process(system, process, *process.dying)
    elif process.decoding is not None and process.decoding.interrupted is not Finish.NONE:
        finish_decoding(system, process, process.decoding.interrupted)
    return not process.is_zombie()


def leave_image(system: System, process: LLMProcess) -> None:
    """A process that is not in a step gives back its model: all frames, from the tail, so that a shareable head stays
    longest, and all places in lower tiers. It exits, or gets another model at once."""
    image, device = process.mapped, process.device
    image.cut(process, 0)
    process.table.trim(image.swap, 0)
    freed(system)
    cancel_outs(system, device, pid=process.pid)
    if device.state == UP:
        device.dropped.append(process.pid)  # what the driver knows of this context is of this model
    image.leave(process, system.now)


def reap(system: System, zombie: Process) -> ExitInfo:
    """Take a zombie off the table."""
    system.table.remove(zombie)
    return ExitInfo(zombie.pid, zombie.exit_status, zombie.exit_reason, zombie.usage(zombie.since))


def end_program(system: System, program: Program, status: int, reason: str) -> None:
    """A program ends: nothing it asked for is answered any more, its children end or become init's. Harmless if it is
    ending already."""
    if program.leaving:
        return
    program.leaving = True
    if program.grace is not None:
        program.grace.cancel()
        system.away.pop(program.pid, None)
    else:
        del system.programs[program.peer]
    for request in list(program.parked.values()):
        desk.take_back(system, request, Errno.EPIPE, "the program has ended")
    sandboxes.let_go(system, program)
    grants.let_go(system, program)
    leaving = Leaving(system, program, status, reason)
    if len(leaving.children) > pieces.AT_ONCE or leaving.some(system):
        pieces.begin(system, leaving)


class Leaving(pieces.Piecework):
    """A program that ends and makes no call any more; its children end with it, the first first. It has its row as long
    as one is left, so should the kernel die meanwhile the next one ends the others."""

    def __init__(self, system: System, program: Program, status: int, reason: str) -> None:
        self.program, self.status, self.reason = program, status, reason
        self.children = sorted(system.table.children(program.pid), reverse=True)

    def some(self, system: System) -> bool:
        program = self.program
        for _ in range(min(pieces.AT_ONCE, len(self.children))):
            child = system.table.find(self.children.pop())
            if isinstance(child, LLMProcess) and child.parent == program.pid:
                system.table.reparent(child, INIT_PID)
                if child.is_zombie():
                    system.orphans.append(child)
                else:
                    why = f"its program {written(system, program.pid)} ended"
                    exit_process(system, child, 128 + int(Signal.TERM), why)
        if self.children:
            return True
        program.enter(State.ZOMBIE, WaitFor.NONE, system.now)
        audit.ended(system, program, self.status)
        system.table.remove(program)
        system.emit("proc.detach", program.pid, amount=self.status, detail=self.reason)
        return False
