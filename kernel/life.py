"""How decodes, processes and programs end; zombies and their reaping.

As in Unix an LLM process that exits stays a zombie until its parent waits for it; children of init (the detached, and
orphans) are reaped at once. When a program ends, its children end with it unless they were spawned detached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernel.objects.device import UP
from kernel.objects.process import INIT_PID, Decoding, LLMProcess, Process, Program
from kernel.readers import wake_readers
from syscalls.errno import Errno
from syscalls.records import DecodeResult, ExitInfo, Finish, Signal, State, WaitFor
from syscalls.table import Wait

if TYPE_CHECKING:
    from kernel.core import Kernel


def finish_decoding(kernel: Kernel, process: LLMProcess, finish: Finish, now: float) -> None:
    """End the decode of a process that is not in a step: its waiter is answered, readers see the end."""
    decoding = process.decoding
    if decoding is None:
        return
    process.decoding = None
    process.finish = finish
    kernel.touch(process)
    if decoding.timer is not None:
        decoding.timer.cancel()
    kernel.emit(
        now, "proc.decoded", process.pid, process.device.name, len(process.log) - decoding.start, finish.value
    )
    if decoding.request is not None:
        kernel.answer(decoding.request, decode_result(process, decoding, finish))
    if process.once and finish is not Finish.KILLED:
        exit_process(
            kernel, process, 0 if finish is not Finish.ERROR else 1, f"its decode ended: {finish.value}", now
        )
        return
    kernel.settle(process, now)
    wake_readers(kernel, process, now)


def interrupt_decoding(kernel: Kernel, process: LLMProcess, finish: Finish, now: float) -> None:
    """End the decode now, or at the token boundary if the process is in a step."""
    if process.decoding is None:
        return
    kernel.touch(process)
    if process.running:
        process.decoding.interrupted = finish
    else:
        finish_decoding(kernel, process, finish, now)


def fail_decoding(
    kernel: Kernel, process: LLMProcess, reason: str, now: float, errno: Errno = Errno.EIO
) -> None:
    """What a process was to compute cannot be: its decode ends with an error, and so does the call that waits for it."""
    process.ahead = False  # what failed would fail again; the next feed, truncate or decode tries anew
    process.finish = Finish.ERROR  # for whoever looks, if nobody has asked for a decode
    process.failure = errno, reason
    kernel.touch(process)
    decoding = process.decoding
    if decoding is not None and decoding.request is not None:
        request, decoding.request = decoding.request, None
        kernel.fail(request, errno, reason)
    finish_decoding(kernel, process, Finish.ERROR, now)


def decode_result(process: LLMProcess, decoding: Decoding, finish: Finish) -> DecodeResult:
    return DecodeResult(
        decoding.start, process.log[decoding.start :] if decoding.append else [], finish, decoding.collected
    )


def exit_process(kernel: Kernel, process: LLMProcess, status: int, reason: str, now: float) -> None:
    """End an LLM process, at its token boundary if it is in a step. Harmless if it is ending already."""
    if process.is_zombie():
        return
    if process.birth is not None:  # it has no model yet: its spawn is what ends
        kernel.unpark(
            process.birth, Errno.EINTR, f"process {process.pid} was ended before it had its model ({reason})"
        )
        return
    kernel.touch(process)
    if process.running:
        process.dying = process.dying or (status, reason)
        return
    if process.change is not None:
        gone = f"process {process.pid} exited before it was changed ({reason})"
        kernel.unpark(process.change.request, Errno.ESRCH, gone)
    if process.decoding is not None:
        finish_decoding(kernel, process, Finish.KILLED, now)
    deferred, process.deferred = process.deferred, []
    for request in deferred:
        kernel.fail(
            request, Errno.ESRCH, f"process {process.pid} exited before its next token boundary ({reason})"
        )
    release_pages(kernel, process)
    if process.image is not None:
        process.image.leave(process, now)
    kernel.release(process)
    process.device.queue.withdraw(process)
    if process.device.state == UP:
        process.device.dropped.append(process.pid)
    process.enter(State.ZOMBIE, WaitFor.NONE, now)
    process.exit_status, process.exit_reason = status, reason
    wake_readers(kernel, process, now)
    kernel.counters["exited"] += 1
    kernel.emit(now, "proc.exit", process.pid, amount=status, detail=reason)
    _notify_parent(kernel, process, now)
    kernel.dirty(process.device)


def release_pages(kernel: Kernel, process: LLMProcess) -> None:
    """Give back all frames, from the tail, so that a shareable head is kept longest; and all places in lower tiers."""
    image, device = process.image, process.device
    if image is not None:
        process.table.cut(image.pool, 0)
        process.table.trim(image.swap, 0)
        image.let_go(process)
        kernel.freed()
        if device.outs:
            device.outs = [move for move in device.outs if move.ctx != process.pid]
            kernel.dirty(device)  # something may have waited for them to be sent


def _notify_parent(kernel: Kernel, process: Process, now: float) -> None:
    parent = kernel.table.find(process.owner)
    if not isinstance(parent, Program):
        kernel.table.remove(process)
        return
    kernel.emit(now, "sig.chld", parent.pid, amount=int(Signal.CHLD), detail=f"pid {process.pid}")
    for request in parent.reapers:
        call = request.call
        assert isinstance(call, Wait)
        if call.pid in (0, process.pid):
            parent.reapers.remove(request)
            settle_program(parent, now)
            kernel.answer(request, reap(kernel, process))
            _tell_childless(kernel, parent, process.pid)
            return


def _tell_childless(kernel: Kernel, parent: Program, gone: int) -> None:
    """Whoever still waits for this child, or for any child where none is left, waits in vain."""
    for request in list(parent.reapers):
        call = request.call
        assert isinstance(call, Wait)
        if call.pid == gone or not (call.pid or parent.children):
            parent.reapers.remove(request)
            settle_program(parent, kernel.now)
            kernel.fail(request, Errno.ECHILD, f"process {gone}, the last one to wait for, is gone already")


def settle_program(program: Program, now: float) -> None:
    """A program is blocked by `wait`, or simply has not called."""
    program.enter(State.BLOCKED, WaitFor.CHILD if program.reapers else WaitFor.INPUT, now)


def strike(kernel: Kernel, process: LLMProcess) -> None:
    """Take off the table a process that never got its model: its spawn has failed or was taken back."""
    parent = kernel.table.find(process.owner)
    process.enter(State.ZOMBIE, WaitFor.NONE, kernel.now)
    kernel.table.remove(process)
    readers, process.readers = process.readers, []
    for request in readers:
        kernel.fail(request, Errno.ESRCH, f"process {process.pid} is gone: it did not get its model")
    if isinstance(parent, Program):
        _tell_childless(kernel, parent, process.pid)


def reap(kernel: Kernel, zombie: Process) -> ExitInfo:
    """Take a zombie off the table."""
    kernel.table.remove(zombie)
    return ExitInfo(zombie.pid, zombie.exit_status, zombie.exit_reason, zombie.usage(zombie.since))


def end_program(kernel: Kernel, program: Program, status: int, reason: str, now: float) -> None:
    """A program ends: nothing it asked for is answered any more, its children end or become init's."""
    if program.away is not None:
        program.away.cancel()
    elif kernel.programs.pop(program.peer, None) is None:
        return
    for request in list(program.parked.values()):
        kernel.unpark(request, Errno.EPIPE, "the program has ended")
    for pid in sorted(program.children):
        child = kernel.table.find(pid)
        if isinstance(child, LLMProcess):
            kernel.table.reparent(child, INIT_PID)
            if child.is_zombie():
                kernel.table.remove(child)
            elif not child.detached:
                exit_process(kernel, child, 128 + int(Signal.TERM), f"its program {program.pid} ended", now)
    program.enter(State.ZOMBIE, WaitFor.NONE, now)
    kernel.table.remove(program)
    kernel.emit(now, "proc.detach", program.pid, amount=status, detail=reason)
