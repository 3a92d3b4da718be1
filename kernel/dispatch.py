"""A system call meets its handler: rights, the objects that it names, then the handler, then its answer or a wait.

As in xv6's syscall() the table says what is to be done. All of it is done again, from the top, whenever a call that has
waited goes on, so a handler may believe what it is given, and nothing from before the wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmasos.kernel import audit, desk
from llmasos.kernel.calls.lookup import find
from llmasos.kernel.calls.table import HANDLERS
from llmasos.kernel.objects.request import Request
from llmasos.kernel.recovery.rejoin import Rejoin, rejoin
from llmasos.kernel.rights import check_confined
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, sleep
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Call

_HANDLERS: dict[type[Call[Any]], Callable[..., object]] = {**HANDLERS, Rejoin: rejoin}


def dispatch(system: System, request: Request, error: SyscallError | None = None) -> None:
    """Run a call, which may have waited before; with `error`, what it waited for has failed."""
    if request.answered:  # it was taken back meanwhile
        return
    if error is not None:  # not raised: this frame would hold it and it this frame, which only the collector parts
        desk.take_back(system, request, error.errno, error.reason, error.plain)
        return
    try:
        result = _run(system, request)
        if isinstance(result, Waiting):
            if not request.late:
                if not request.waited:
                    system.spending.check(request)
                sleep(system, request, result)
                return
            raise Errno.ETIME(result.why)
    except SyscallError as failure:
        desk.take_back(system, request, failure.errno, failure.reason, failure.plain)
    else:
        if not request.answered:
            desk.answer(system, request, result)


def _run(system: System, request: Request) -> object:
    entry, program = request.entry, request.program
    if int(entry.right) & ~program.rights:  # plain numbers: arithmetic of enums costs microseconds
        never = int(entry.right) & ~program.owner.rights
        lacks = f"which programs of {program.owner.name} do not have" if never else f"which {program.name} gave up"
        raise Errno.EPERM(f"{entry.name} needs the right {entry.right.name}, {lacks}")
    if program.confined:
        check_confined(request)
    handler = _HANDLERS[type(request.call)]
    if not (entry.touches or entry.audit):
        return handler(system, request, request.call)
    if isinstance(begun := request.begun, desk.Begun) and begun.held is not None:
        return handler(system, request, request.call, begun.held)
    objects = []
    for touches in entry.touches:
        found = find(system, request, touches)
        if isinstance(found, Waiting):
            return found
        objects.append(found)
    if entry.audit and not request.audited and system.auditor.on and (line := audit.begin(system, request)):
        return line
    return handler(system, request, request.call, *objects)
