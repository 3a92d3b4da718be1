"""How decodes, processes and programs end; zombies and their reaping.

As in Unix an LLM process that exits stays a zombie until its parent waits for it; init reaps its own children (the
detached, and orphans) at the end of the event. When a program ends, its children end with it unless they were spawned
detached.
"""

from __future__ import annotations

from llmasos.kernel import desk
from llmasos.kernel.marks import cancel_outs, changed, dirty, freed
from llmasos.kernel.objects.device import UP
from llmasos.kernel.objects.process import INIT_PID, Decoding, LLMProcess, Process, Program
from llmasos.kernel.settle import release
from llmasos.kernel.state import System
from llmasos.kernel.wait import wake, wake_some
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import DecodeResult, ExitInfo, Finish, Signal, State, WaitFor
from llmasos.syscalls.table import Wait


class Decode(desk.Begun):
    """A call that waits for the end of a decode, which ends if the call is taken back."""

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
        tokens = process.log[decoding.start :] if decoding.append else []
        desk.answer(system, decoding.request, DecodeResult(decoding.start, tokens, finish, decoding.collected))
    wake(system, process.output)
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
    """A process cannot compute what it was to compute: its decode ends with an error, and so does the call that waits."""
    process.ahead = False  # what failed would fail again; the next feed, truncate or decode tries anew
    process.finish = Finish.ERROR  # for whoever looks, if nobody has asked for a decode
    process.failure = errno, reason
    changed(system, process)
    refuse_caller(system, process, errno, reason)
    finish_decoding(system, process, Finish.ERROR)


def refuse_caller(system: System, process: LLMProcess, errno: Errno, reason: str) -> None:
    """The call that waits for the decode under way, if one does, fails; the decode itself is left as it is."""
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
    release_pages(system, process)
    if process.image is not None:
        process.image.leave(process, system.now)
    release(process)
    process.device.queue.withdraw(process)
    if process.device.state == UP:
        process.device.dropped.append(process.pid)
    process.exit_status, process.exit_reason = status, reason
    system.counters["exited"] += 1
    system.emit("proc.exit", process.pid, amount=status, detail=reason)
    dirty(system, process.device)
    _become_zombie(system, process)


def stop_suspect(system: System, process: LLMProcess, reason: str) -> None:
    """Stop a process that a driver's deaths point at. Its log, and what it was doing, stay; CONT tries again, alone in
    its step. A call that waits for its decode is told."""
    process.stopped, process.stop_reason, process.crashes = True, reason, 1
    changed(system, process)
    why = f"process {process.pid} is stopped: {reason}; its log stays, `cont` tries again"
    system.log("error", why)
    refuse_caller(system, process, Errno.EIO, why)


def _become_zombie(system: System, process: LLMProcess) -> None:
    """Calls that wait for the process go on: reads see its end, others find it gone, its parent reaps it."""
    process.enter(State.ZOMBIE, WaitFor.NONE, system.now)
    wake(system, process.output)
    wake(system, process.boundary)
    parent = system.table.find(process.owner)
    if isinstance(parent, Program):
        system.emit("sig.chld", parent.pid, amount=int(Signal.CHLD), detail=f"pid {process.pid}")
        parent.zombies[process.pid] = process
        _tell_parent(system, parent, process.pid)
    else:
        system.orphans.append(process)


def strike(system: System, process: LLMProcess) -> None:
    """Take off the table a process that never got its model: its spawn has failed or was taken back."""
    process.birth = None
    process.enter(State.ZOMBIE, WaitFor.NONE, system.now)
    system.table.remove(process)
    wake(system, process.output)
    parent = system.table.find(process.owner)
    if isinstance(parent, Program):
        _tell_parent(system, parent, process.pid)


def _tell_parent(system: System, parent: Program, pid: int) -> None:
    """Calls that wait for this child, or for any, go on."""
    wake_some(system, parent.ended, lambda request: isinstance(request.call, Wait) and request.call.pid in (0, pid))


def lives_on(system: System, process: LLMProcess) -> bool:
    """Do what is due at a token boundary: an exit, or the end of a decode. Whether the process lives after that."""
    if process.dying is not None and not process.is_zombie():
        exit_process(system, process, *process.dying)
    elif process.decoding is not None and process.decoding.interrupted is not Finish.NONE:
        finish_decoding(system, process, process.decoding.interrupted)
    return not process.is_zombie()


def release_pages(system: System, process: LLMProcess) -> None:
    """Give back all frames, from the tail, so that a shareable head is kept longest; and all places in lower tiers."""
    image = process.image
    if image is not None:
        process.table.cut(image.pool, 0)
        process.table.trim(image.swap, 0)
        image.let_go(process)
        freed(system)
        cancel_outs(system, process.device, pid=process.pid)


def leave_image(system: System, process: LLMProcess) -> None:
    """Take its pages and places from a process that is not in a step, and its model; it is to get another at once."""
    image, device = process.image, process.device
    assert image is not None
    release_pages(system, process)
    if device.state == UP:
        device.dropped.append(process.pid)  # what the driver knows of this context is of this model
    image.leave(process, system.now)


def reap(system: System, zombie: Process) -> ExitInfo:
    """Take a zombie off the table."""
    system.table.remove(zombie)
    return ExitInfo(zombie.pid, zombie.exit_status, zombie.exit_reason, zombie.usage(zombie.since))


def end_program(system: System, program: Program, status: int, reason: str) -> None:
    """A program ends: nothing it asked for is answered any more, its children end or become init's."""
    if program.grace is not None:
        program.grace.cancel()
    elif system.programs.pop(program.peer, None) is None:
        return
    for request in list(program.parked.values()):
        desk.take_back(system, request, Errno.EPIPE, "the program has ended")
    for pid in sorted(program.children):
        child = system.table.find(pid)
        if isinstance(child, LLMProcess):
            system.table.reparent(child, INIT_PID)
            if child.is_zombie():
                system.orphans.append(child)
            elif not child.traits.detached:
                exit_process(system, child, 128 + int(Signal.TERM), f"its program {program.pid} ended")
    program.enter(State.ZOMBIE, WaitFor.NONE, system.now)
    system.table.remove(program)
    system.emit("proc.detach", program.pid, amount=status, detail=reason)
