"""What a grant's end does: whoever waits by it is told, in the same event.

A right that is taken back is gone before that is answered, with everything that was derived of it. Calls that wait and
could not be made any more fail with EPERM; streams, which are calls of `read` that wait again and again, stop. What was
read stays read. The journal has it on the disk before `revoke` is answered, whatever `fsync` says (Reply.synced).
"""

from __future__ import annotations

from llmasos.kernel import desk, rights
from llmasos.kernel.objects.grant import Grant
from llmasos.kernel.objects.process import LLMProcess, Process, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.table import PROCESSES


def cut(system: System, grant: Grant, how: str) -> int:
    """A grant ends, with all that was made of it; `how` is told those who wait by it. Returns how many they were."""
    gone = system.grants.remove(grant)
    holders = {one.holder.pid: one.holder for one in gone if one.holder is not None}
    for program in holders.values():
        why = f"the grant on process {rights.called(system, program, grant.thing.pid)} {how}"
        for request in list(program.parked.values()):
            if not _may_wait(system, request, grant.thing):
                desk.take_back(system, request, Errno.EPERM, why)
    return len(gone)


def _may_wait(system: System, request: Request, thing: Process) -> bool:
    """Whether a call that waits could be made now, if it names this process."""
    for touches in request.entry.touches:
        if touches.what in PROCESSES and (pid := getattr(request.call, touches.field)):
            named = rights.inward(system, request.program, pid)
            if named == thing.pid and rights.needed(request, touches) & ~rights.rights_on(system, request.program, thing):
                return False
    return True


def let_go(system: System, program: Program) -> None:
    """A program has ended: what it held, and what it has passed on, ends with it."""
    while held := system.grants.held(program.pid):
        cut(system, next(iter(held.values())), "has ended with the program that had passed it on")


def forget(system: System) -> None:
    """Processes have left the table in this event: there is nothing more to have rights on."""
    for process in system.table.gone:
        if isinstance(process, LLMProcess):
            while on := system.grants.on(process.pid):
                system.grants.remove(next(iter(on.values())))
