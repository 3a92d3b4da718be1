"""How decodes, processes and programs end; zombies and their reaping.

As in Unix an LLM process that exits stays a zombie until its parent waits for it; children of init (the detached, and
orphans) are reaped at once. When a program ends, its children end with it unless they were spawned detached.
"""

from __future__ import annotations

from llmasos.kernel import desk
from llmasos.kernel.marks import dirty, freed, touch
from llmasos.kernel.objects.device import UP
from llmasos.kernel.objects.process import INIT_PID, Decoding, LLMProcess, Process, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.readers import wake_readers
from llmasos.kernel.settle import release, settle
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import DecodeResult, ExitInfo, Finish, Signal, State, WaitFor
from llmasos.syscalls.table import Wait


def finish_decoding(system: System, process: LLMProcess, finish: Finish) -> None:
    """End the decode of a process that is not in a step: its waiter is answered, readers see the end."""
    decoding = process.decoding
    if decoding is None:
        return
    process.decoding = None
    process.finish = finish
    touch(system, process)
    if decoding.timer is not None:
        decoding.timer.cancel()
    system.emit("proc.decoded", process.pid, process.device.name, len(process.log) - decoding.start, finish.value)
    if decoding.request is not None:
        desk.answer(system, decoding.request, decode_result(process, decoding, finish))
    if process.once and finish is not Finish.KILLED:
        exit_process(system, process, 0 if finish is not Finish.ERROR else 1, f"its decode ended: {finish.value}")
        return
    settle(system, process)
    wake_readers(system, process)


def interrupt_decoding(system: System, process: LLMProcess, finish: Finish) -> None:
    """End the decode now, or at the token boundary if the process is in a step."""
    if process.decoding is None:
        return
    touch(system, process)
    if process.running:
        process.decoding.interrupted = finish
    else:
        finish_decoding(system, process, finish)


def fail_decoding(system: System, process: LLMProcess, reason: str, errno: Errno = Errno.EIO) -> None:
    """What a process was to compute cannot be: its decode ends with an error, and so does the call that waits for it."""
    process.ahead = False  # what failed would fail again; the next feed, truncate or decode tries anew
    process.finish = Finish.ERROR  # for whoever looks, if nobody has asked for a decode
    process.failure = errno, reason
    touch(system, process)
    decoding = process.decoding
    if decoding is not None and decoding.request is not None:
        request, decoding.request = decoding.request, None
        desk.fail(system, request, errno, reason)
    finish_decoding(system, process, Finish.ERROR)


def await_decode(system: System, process: LLMProcess, decoding: Decoding, request: Request) -> object:
    """Let a call wait for the end of a decode, which ends if the call is taken back."""

    def undo() -> None:
        decoding.request = None
        if process.decoding is decoding:
            interrupt_decoding(system, process, Finish.INTERRUPT)

    return desk.park(request, undo)


def set_deadline(system: System, process: LLMProcess, decoding: Decoding, moment: float) -> None:
    """End a decode with what it has when `moment` has come."""

    def end() -> None:
        if process.decoding is decoding:
            interrupt_decoding(system, process, Finish.DEADLINE)

    decoding.timer = system.timers.at(moment, end)


def decode_result(process: LLMProcess, decoding: Decoding, finish: Finish) -> DecodeResult:
    return DecodeResult(
        decoding.start, process.log[decoding.start :] if decoding.append else [], finish, decoding.collected
    )


def exit_process(system: System, process: LLMProcess, status: int, reason: str) -> None:
    """End an LLM process, at its token boundary if it is in a step. Harmless if it is ending already."""
    if process.is_zombie():
        return
    if process.birth is not None:  # it has no model yet: its spawn is what ends
        desk.unpark(
            system, process.birth, Errno.EINTR, f"process {process.pid} was ended before it had its model ({reason})"
        )
        return
    touch(system, process)
    if process.running:
        process.dying = process.dying or (status, reason)
        return
    if process.change is not None:
        gone = f"process {process.pid} exited before it was changed ({reason})"
        desk.unpark(system, process.change.request, Errno.ESRCH, gone)
    if process.decoding is not None:
        finish_decoding(system, process, Finish.KILLED)
    deferred, process.deferred = process.deferred, []
    for request in deferred:
        desk.fail(system, request, Errno.ESRCH, f"process {process.pid} exited before its next token boundary ({reason})")
    release_pages(system, process)
    if process.image is not None:
        process.image.leave(process, system.now)
    release(process)
    process.device.queue.withdraw(process)
    if process.device.state == UP:
        process.device.dropped.append(process.pid)
    process.enter(State.ZOMBIE, WaitFor.NONE, system.now)
    process.exit_status, process.exit_reason = status, reason
    wake_readers(system, process)
    system.counters["exited"] += 1
    system.emit("proc.exit", process.pid, amount=status, detail=reason)
    _notify_parent(system, process)
    dirty(system, process.device)


def release_pages(system: System, process: LLMProcess) -> None:
    """Give back all frames, from the tail, so that a shareable head is kept longest; and all places in lower tiers."""
    image, device = process.image, process.device
    if image is not None:
        process.table.cut(image.pool, 0)
        process.table.trim(image.swap, 0)
        image.let_go(process)
        freed(system)
        if device.outs:
            device.outs = [move for move in device.outs if move.ctx != process.pid]
            dirty(system, device)  # something may have waited for them to be sent


def leave_image(system: System, process: LLMProcess) -> None:
    """Take its pages and places from a process that is not in a step, and its model; it is to get another at once."""
    image, device = process.image, process.device
    assert image is not None
    release_pages(system, process)
    if device.state == UP:
        device.dropped.append(process.pid)  # what the driver knows of this context is of this model
    image.leave(process, system.now)


def _notify_parent(system: System, process: Process) -> None:
    parent = system.table.find(process.owner)
    if not isinstance(parent, Program):
        system.table.remove(process)
        return
    system.emit("sig.chld", parent.pid, amount=int(Signal.CHLD), detail=f"pid {process.pid}")
    for request in parent.reapers:
        call = request.call
        assert isinstance(call, Wait)
        if call.pid in (0, process.pid):
            parent.reapers.remove(request)
            settle_program(parent, system.now)
            desk.answer(system, request, reap(system, process))
            _tell_childless(system, parent, process.pid)
            return


def _tell_childless(system: System, parent: Program, gone: int) -> None:
    """Whoever still waits for this child, or for any child where none is left, waits in vain."""
    for request in list(parent.reapers):
        call = request.call
        assert isinstance(call, Wait)
        if call.pid == gone or not (call.pid or parent.children):
            parent.reapers.remove(request)
            settle_program(parent, system.now)
            desk.fail(system, request, Errno.ECHILD, f"process {gone}, the last one to wait for, is gone already")


def settle_program(program: Program, now: float) -> None:
    """A program is blocked by `wait`, or simply has not called."""
    program.enter(State.BLOCKED, WaitFor.CHILD if program.reapers else WaitFor.INPUT, now)


def strike(system: System, process: LLMProcess) -> None:
    """Take off the table a process that never got its model: its spawn has failed or was taken back."""
    parent = system.table.find(process.owner)
    process.enter(State.ZOMBIE, WaitFor.NONE, system.now)
    system.table.remove(process)
    readers, process.readers = process.readers, []
    for request in readers:
        desk.fail(system, request, Errno.ESRCH, f"process {process.pid} is gone: it did not get its model")
    if isinstance(parent, Program):
        _tell_childless(system, parent, process.pid)


def reap(system: System, zombie: Process) -> ExitInfo:
    """Take a zombie off the table."""
    system.table.remove(zombie)
    return ExitInfo(zombie.pid, zombie.exit_status, zombie.exit_reason, zombie.usage(zombie.since))


def end_program(system: System, program: Program, status: int, reason: str) -> None:
    """A program ends: nothing it asked for is answered any more, its children end or become init's."""
    if program.away is not None:
        program.away.cancel()
    elif system.programs.pop(program.peer, None) is None:
        return
    for request in list(program.parked.values()):
        desk.unpark(system, request, Errno.EPIPE, "the program has ended")
    for pid in sorted(program.children):
        child = system.table.find(pid)
        if isinstance(child, LLMProcess):
            system.table.reparent(child, INIT_PID)
            if child.is_zombie():
                system.table.remove(child)
            elif not child.detached:
                exit_process(system, child, 128 + int(Signal.TERM), f"its program {program.pid} ended")
    program.enter(State.ZOMBIE, WaitFor.NONE, system.now)
    system.table.remove(program)
    system.emit("proc.detach", program.pid, amount=status, detail=reason)
