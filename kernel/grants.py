"""The end of grants: calls that wait by one fail in the same event.

A right that is taken back, or whose time is over, is gone with everything that was derived from it before that is
answered. Calls that wait and could not be made any more fail with EPERM; streams, which are calls of `read` that wait
again and again, stop. What was read stays read. The journal has it on the disk before `revoke` is answered, whatever
`fsync` says (Reply.synced). Times are the wall clock's, of which the edge tells: they go on while no kernel runs.
"""

from __future__ import annotations

from llmasos.kernel import desk, rights
from llmasos.kernel.groups.group import Group
from llmasos.kernel.objects.grant import Grant, Thing, covers
from llmasos.kernel.objects.process import LLMProcess, Process, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.seeds import mix
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.table import PROCESSES

_MOST = 2**31 - 1  # the greatest handle: people write them down


def unused(system: System, drawn: int) -> int:
    """A handle for a new grant, of bits that were drawn."""
    number = mix(drawn, 0) % _MOST + 1
    while system.grants.get(number) is not None:
        number = number % _MOST + 1
    return number


def cut(system: System, grant: Grant, how: str) -> int:
    """End a grant, with all that was made of it. Calls that wait by them fail, and `how` is in the reason. Returns the
    number of grants that ended."""
    gone = system.grants.remove(grant)
    for one in gone:
        if one.holder is not None:
            _tell(system, one.holder, one.thing, how)
    return len(gone)


def _tell(system: System, program: Program, thing: Thing, how: str) -> None:
    """Calls of a program that could not be made any more fail."""
    named = f"group {thing.path}" if isinstance(thing, Group) else f"process {rights.called(system, program, thing.pid)}"
    for request in list(program.parked.values()):
        if not _may_wait(system, request):
            desk.take_back(system, request, Errno.EPERM, f"the grant on {named} {how}")


def _may_wait(system: System, request: Request) -> bool:
    """Whether a call that waits could be made now."""
    for touches in request.entry.touches:
        if touches.what in PROCESSES and (pid := getattr(request.call, touches.field)):
            named = system.table.find(rights.inward(system, request.program, pid))
            if named is not None and rights.needed(request, touches) & ~rights.rights_on(system, request.program, named):
                return False
    return True


def left(system: System, process: LLMProcess, old: Group) -> None:
    """A process has left a group: grants on that group cover it no longer, nor do those that were made of them."""
    for group in old.lineage() if system.grants else ():
        if process.group.below(group):
            return  # and in all that are above this one
        how = f"does not reach process {process.pid} any more, which has left it"
        for grant in [one for top in system.grants.on(group).values() for one in top.within()]:
            if system.grants.get(grant.number) is not grant:  # cut with another
                continue
            if grant.thing is process:
                cut(system, grant, "has ended, since the process left the group on which it was")
            elif grant.holder is not None and not covers(grant.thing, process):
                _tell(system, grant.holder, grant.thing, how)


def let_go(system: System, program: Program) -> None:
    """A program has ended: what it held, and what it has passed on, ends with it."""
    while held := system.grants.held(program.pid):
        cut(system, next(iter(held.values())), "has ended with the program that had passed it on")


def forget(system: System) -> None:
    """Drop the grants on processes that have left the table in this event, and on groups that have ended."""
    gone: list[Process | Group] = [*system.table.gone, *system.grants.ended]
    system.grants.ended.clear()
    for thing in gone:
        if isinstance(thing, LLMProcess | Group):
            while on := system.grants.on(thing):
                system.grants.remove(next(iter(on.values())))


def expire(system: System, wall: int) -> None:
    """The wall clock shows `wall`, or has shown more already: grants whose time is over end."""
    system.wall = system.journal.wall = max(system.wall, wall)
    system.wall_told = system.now
    while (due := system.grants.due(system.wall)) is not None:
        cut(system, due, "has expired")
