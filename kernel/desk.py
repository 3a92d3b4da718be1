"""The answers to requests: each is answered exactly once, with a value or an errno, and what it had begun is undone if it
fails."""

from __future__ import annotations

from abc import ABC, abstractmethod

from llmasos.kernel import audit
from llmasos.kernel.events import Halt, Reply
from llmasos.kernel.objects.request import Request
from llmasos.kernel.outward import outward, text
from llmasos.kernel.rights import told_all
from llmasos.kernel.state import System
from llmasos.kernel.wait import leave
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Trace
from llmasos.syscalls.wire import describe_outcome


class Begun(ABC):
    """What a call has begun and not ended: an object of the kernel, named in the request. `held`: the object of the call,
    with which it goes on even after that has left the table; dispatch looks nothing up then."""

    held: object | None = None

    @abstractmethod
    def undo(self, system: System, error: SyscallError) -> None:
        """Leave nothing behind: the call fails with `error`, or was taken back."""


def answer(system: System, request: Request, value: object) -> None:
    """Answer a call with its result."""
    _reply(system, request, Errno.OK, value, "")


def fail(system: System, request: Request, errno: Errno, reason: str) -> None:
    """Answer a call with an error. What it began stays; `take_back` undoes it."""
    system.counters["errors"] += 1
    _reply(system, request, errno, None, reason)


def repeat(system: System, request: Request, errno: Errno, value: object, reason: str) -> None:
    """Answer a call as it was answered before: in the numbers of whoever reads it already."""
    system.counters["errors"] += errno is not Errno.OK
    _reply(system, request, errno, value, reason, told=True)


def take_back(system: System, request: Request, errno: Errno, reason: str, plain: str = "") -> None:
    """End a call with an error (its own, or because it was cancelled or its program has gone), and undo what it began.
    `plain` is the reason for others than the operator, if they are not to have the same. Harmless if it has been answered
    already, for example while another call was undone."""
    if request.answered:
        return
    leave(system, request)
    if request.waited:  # maybe nobody wants the model now that it waited for
        system.pumped.update(system.devices)
    begun, request.begun = request.begun, None
    if isinstance(begun, Begun):
        begun.undo(system, SyscallError(errno, reason, plain))
    fail(system, request, errno, reason if not plain or told_all(request.program) else plain)


def _reply(system: System, request: Request, errno: Errno, value: object, reason: str, *, told: bool = False) -> None:
    if request.answered:
        raise AssertionError(f"call {request.entry.name} seq {request.seq} is answered twice")
    request.answered, request.begun = True, None
    owner = request.program.owner
    if len(system.owners) > 1 and not told:
        value = outward(owner, request.call, value, system.table.shared) if errno is Errno.OK else None
        reason = text(owner, reason)
    if request.channel is not None:
        leave(system, request)
    if request.deadline is not None:
        request.deadline.cancel()
    program = request.program
    if system.trace.on and not isinstance(request.call, Trace):
        said = value if errno is Errno.OK else reason
        texts = describe_outcome(errno, said), describe_outcome(errno, said, content=False)
        system.emit(f"ret.{request.entry.name}", program.pid, "", request.seq, *texts)
    if request.entry.audit or errno:
        audit.end(system, request, errno, value, reason)
    system.spending.unpark(request)
    system.journal.answered(request, errno, value, reason)
    if request.absent:  # it will be told when it asks again
        program.to_replay.add(request.seq)
    elif program.peer in system.programs:
        entry = request.entry
        system.act(
            Reply(
                program.peer,
                request.seq,
                errno,
                value,
                reason,
                entry.changes,
                told=program.told,
                tells=entry.tells,
                synced=entry.synced,
            )
        )


def halt(system: System, reason: str, *, keep: bool = False) -> None:
    """End: all calls that wait are answered, and the processes end. With `keep` the journal is as it was before this
    event, and nothing that comes from here on is handled: the next kernel does it."""
    if system.halting:
        return
    system.halting, system.keeping = True, keep
    system.journal.end()  # should the kernel be killed now, the calls taken back below have not happened
    audit.tell_all(system)
    audit.note(system, "halt", "system", details={"keep": keep})
    system.log("info", f"halt: {reason}{'; the journal is kept' if keep else ''}")
    if not keep:
        for program in [*system.programs.values(), *system.away.values()]:
            for request in list(program.parked.values()):
                take_back(system, request, Errno.EPIPE, f"the kernel halts: {reason}")
    system.act(Halt(reason, keep))
