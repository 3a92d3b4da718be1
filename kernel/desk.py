"""Requests and their answers: a system call is dispatched to its handler, and answered exactly once.

A handler gets the system, the request and the time. It returns the call's result, or PARKED if the answer comes later
(`answer`, `fail`), or raises SyscallError, which becomes the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llmasos.kernel.events import Halt, Reply
from llmasos.kernel.journal.recorder import CHANGING
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Trace
from llmasos.syscalls.wire import describe_outcome

PARKED: Final = object()


def dispatch(system: System, request: Request) -> None:
    """Run a call's handler; whatever it raises as SyscallError is its answer."""
    try:
        value = system.handlers[type(request.call)](system, request)
    except SyscallError as error:
        fail(system, request, error.errno, error.reason)
    else:
        if value is not PARKED:
            answer(system, request, value)


def answer(system: System, request: Request, value: Any) -> None:
    _reply(system, request, Errno.OK, value, "")


def fail(system: System, request: Request, errno: Errno, reason: str) -> None:
    system.counters["errors"] += 1
    _reply(system, request, errno, None, reason)


def _reply(system: System, request: Request, errno: Errno, value: Any, reason: str) -> None:
    if request.answered:
        raise AssertionError(f"call {request.entry.name} seq {request.seq} is answered twice")
    request.answered = True
    request.undo = None
    for timer in request.timers:
        timer.cancel()
    request.timers.clear()
    program = request.program
    if system.trace.on and not isinstance(request.call, Trace):
        outcome = describe_outcome(errno, value if errno is Errno.OK else reason)
        system.emit(f"ret.{request.entry.name}", program.pid, amount=request.seq, detail=outcome)
    if program.parked.get(request.seq) is request:
        del program.parked[request.seq]
    system.journal.answered(request, errno, value, reason)
    if request.absent:  # it will be told when it asks again
        program.unsure.add(request.seq)
    elif program.peer in system.programs:
        changes = type(request.call) in CHANGING
        system.act(Reply(program.peer, request.seq, errno, value, reason, changes))


def park(request: Request, undo: Callable[[], None]) -> object:
    """Let a request wait. `undo` takes it off whatever it waits on; it may answer the request itself."""
    request.undo, request.waited = undo, True
    request.program.parked[request.seq] = request
    return PARKED


def unpark(system: System, request: Request, errno: Errno, reason: str) -> None:
    """End the waiting of a request with an error (cancelled, deadline, its program has gone)."""
    undo = request.undo
    if undo is not None:
        undo()
    if not request.answered:
        fail(system, request, errno, reason)


def halt(system: System, reason: str) -> None:
    """Answer all calls that wait, then end."""
    if system.halting:
        return
    system.halting = True
    system.journal.end()  # what is taken back now has not happened, should the kernel be killed meanwhile
    system.log("info", f"halt: {reason}")
    for program in list(system.programs.values()):
        for request in list(program.parked.values()):
            unpark(system, request, Errno.EPIPE, f"the kernel halts: {reason}")
    system.act(Halt(reason))
