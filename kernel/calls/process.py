"""The process family: spawn fork exec exit wait kill setlimits; setsched is in move.py, getinfo and ps are in
info.py.

As in xv6's sysproc.c: a handler checks its arguments, does its work on the process table, and returns the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from kernel.events import KillDriver, SignalProgram
from kernel.groups.group import Group
from kernel.life import (
    end_program,
    exit_process,
    interrupt_decoding,
    reap,
    release_pages,
    settle_program,
    strike,
)
from kernel.models.loading import forget_waiter, want_image
from kernel.objects.device import UP, Device
from kernel.objects.image import Image
from kernel.objects.log_records import LogRecords, check_size
from kernel.objects.process import DriverProcess, LLMProcess, Program
from kernel.objects.request import Change, Request
from kernel.seeds import seed_of_child, seed_of_pid
from kernel.syscall import PARKED, handles
from syscalls.errno import Errno, SyscallError
from syscalls.records import Finish, Kind, Limits, Right, Sampler, Signal
from syscalls.table import Exec, Exit, Fork, Kill, Setlimits, Spawn, Wait

if TYPE_CHECKING:
    from kernel.core import Kernel


# --- birth ----------------------------------------------------------------------------------------------------------


@handles(Spawn)
def spawn(kernel: Kernel, request: Request, now: float) -> object:
    call = cast(Spawn, request.call)
    device = kernel.device_named(call.device)
    group = reachable_group(kernel, request.program, call.group)
    group.check_pids(1)
    check_size(len(call.records), sum(map(len, call.records)), "the process would have")
    pid = kernel.table.new_pid()
    process = LLMProcess(
        pid=pid,
        owner=request.program.pid,
        kind=Kind.LLM,
        name=call.name or f"{call.model.rstrip('/').rpartition('/')[2]}-{pid}"[:64],
        group=group,
        started=now,
        since=now,
        device=device,
        model=call.model,
        sampler=call.sampler or Sampler(seed=seed_of_pid(pid)),
        limits=call.limits,
        once=call.once,
        detached=call.detached,
        sched_class=call.sched_class,
        nice=call.nice,
        log=list(call.tokens),
        turn=now,
    )
    process.records.add(0, call.records)
    process.account.fed = len(call.tokens)

    def ready(image: Image | SyscallError) -> None:
        if isinstance(image, SyscallError):
            failed(image)
        else:
            try:
                check_tokens(image, process.log)
                process.group.check_weights(image.id, image.weight_bytes, image.name)
                process.image = image
                check_room(process, len(process.log))
            except SyscallError as error:
                process.image = None
                failed(error)
                return
            process.birth = None
            kernel.touch(process)
            image.join(process)
            kernel.counters["spawned"] += 1
            kernel.counters["fed"] += len(process.log)
            kernel.emit(kernel.now, "proc.spawn", pid, device.name, len(process.log), process.name)
            kernel.answer(request, pid)
            kernel.settle(process, kernel.now)

    def failed(error: SyscallError) -> None:
        undo()
        if not request.answered:
            kernel.fail(request, error.errno, error.reason)

    def undo() -> None:
        forget_waiter(kernel, device, ready)
        process.birth = None
        if process.pid in kernel.table:
            strike(kernel, process)

    process.birth = request
    kernel.table.add(process)
    kernel.park(request, undo)
    try:
        image = want_image(kernel, device, call.model, call.dtype, ready, now)
    except SyscallError:
        undo()
        raise
    if process.pid in kernel.table and process.image is None:
        kernel.settle(process, now)
    image.used = now
    return PARKED


def reachable_group(kernel: Kernel, program: Program, path: str) -> Group:
    """The group of a path, if the program may put processes there: it is in its own, or ADMIN was not given up. ENOENT,
    EPERM."""
    group = kernel.groups.find(path, program.group)
    if not group.below(program.group) and not program.rights & int(Right.ADMIN):
        raise SyscallError(
            Errno.EPERM,
            f"group {group.path} is not in {program.group.path}, the group of program {program.pid}, which gave up ADMIN",
        )
    return group


def check_tokens(image: Image, tokens: Sequence[int]) -> None:
    """EINVAL if a token is none of the model's vocabulary."""
    vocab = image.probed.vocab if image.probed else 0
    if tokens and max(tokens) >= vocab:
        bad = next(t for t in tokens if t >= vocab)
        raise SyscallError(
            Errno.EINVAL, f"token {bad} is not in {image.name}'s vocabulary of {vocab} (ids 0..{vocab - 1})"
        )


def check_room(
    process: LLMProcess, length: int, image: Image | None = None, device: Device | None = None
) -> None:
    """E2BIG if a log of `length` tokens is more than the process may have, or could have with another image."""
    image, device = image or process.image, device or process.device
    assert image is not None
    limits, context = process.limits, process.context_with(image)
    if length <= context:
        return
    window = image.probed.context if image.probed else 0
    if limits.context and limits.context == context:
        why = "its own limit (setlimits)"
    elif limits.pages and limits.pages * image.block_tokens == context:
        why = f"its limit of {limits.pages} pages (setlimits)"
    elif (most := process.group.kv_max) and most // image.frame_bytes * image.block_tokens == context:
        why = f"what kv_max of its group {process.group.path} allows ({most} bytes; group_set)"
    elif window == context:
        why = f"the window of {image.name}"
    else:
        why = f"the KV memory of {image.name} on {device.name} (raise it with --kv-bytes)"
    raise SyscallError(Errno.E2BIG, f"a context of {length} tokens is too long: {context} is {why}")


@handles(Fork)
def fork(kernel: Kernel, request: Request, now: float) -> object:
    call = cast(Fork, request.call)
    parent = with_model(kernel, call.pid)
    if parent.running or parent.saved is not None:
        return at_boundary(kernel, parent, request)
    group = request.program.group
    group.check_pids(call.count)
    assert parent.image is not None
    group.check_weights(parent.image.id, parent.image.weight_bytes, parent.image.name)
    kernel.table.check_room(call.count)  # all or none: children whose pids nobody is told could not be ended
    return [_fork_one(kernel, parent, request.program, call, now) for _ in range(call.count)]


def _fork_one(kernel: Kernel, parent: LLMProcess, owner: Program, call: Fork, now: float) -> int:
    pid = kernel.table.new_pid()
    image = parent.image
    assert image is not None
    parent.account.forks += 1
    kernel.touch(parent)
    sampler = parent.sampler
    if not call.same_seed:
        seed = seed_of_child(sampler.seed, parent.account.forks)
        sampler = Sampler(
            sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p, sampler.repetition_penalty, seed
        )
    child = LLMProcess(
        pid=pid,
        owner=owner.pid,
        kind=Kind.LLM,
        name=parent.name,
        group=owner.group,
        started=now,
        since=now,
        device=parent.device,
        image=image,
        model=parent.model,
        sampler=sampler,
        limits=parent.limits,
        once=parent.once,
        detached=call.detached,
        sched_class=parent.sched_class,
        nice=parent.nice,
        log=parent.log.copy(),
        records=parent.records.copy(),
        table=parent.table.fork(image.pool, owner.group),
        reached=parent.reached,
        turn=now,
        finish=parent.finish,
        ahead=parent.ahead,
        stopped=parent.stopped,
        spent=parent.spent + parent.account.decoded,
    )
    decoding = parent.decoding
    if decoding is not None and decoding.append:
        child.decoding = dataclasses.replace(
            decoding, request=None, timer=None, collected=decoding.collected.copy(), recorded=0
        )
    image.join(child)
    if child.table.frames:
        image.hold(child)
    kernel.table.add(child)
    kernel.journal.forked(child, parent)
    kernel.counters["spawned"] += 1
    kernel.emit(now, "proc.fork", pid, child.device.name, len(child.table.frames), f"of {parent.pid}")
    kernel.settle(child, now)
    return pid


def with_model(kernel: Kernel, pid: int) -> LLMProcess:
    """A process that has its model, or `saved` from the journal: it is about to have it again. ESRCH, EBUSY."""
    process = kernel.table.llm(pid)
    if process.lost:
        raise SyscallError(
            Errno.EBUSY, f"process {pid} has not got its model back ({process.lost}); its log can be read"
        )
    if process.image is None and process.saved is None:
        raise SyscallError(Errno.EBUSY, f"process {pid} is still waiting for its model")
    return process


def at_boundary(kernel: Kernel, process: LLMProcess, request: Request) -> object:
    """Dispatch the request again when the process has left its step."""
    process.deferred.append(request)
    return kernel.park(request, lambda: process.deferred.remove(request))


def check_idle(process: LLMProcess, what: str) -> None:
    """EBUSY if the process is decoding."""
    if process.decoding is not None:
        raise SyscallError(
            Errno.EBUSY,
            f"cannot {what} process {process.pid} while it decodes; wait for it, or send it INT first",
        )


def check_unchanged(process: LLMProcess, request: Request) -> None:
    """EBUSY if another call is giving the process another model or device."""
    if process.change is not None and process.change.request is not request:
        other = process.change.request
        raise SyscallError(
            Errno.EBUSY,
            f"process {process.pid} is being changed by {other.entry.name} (program {other.program.pid}) already; wait "
            "for that, or cancel it",
        )


@handles(Exec)
def exec_(kernel: Kernel, request: Request, now: float) -> object:
    call = cast(Exec, request.call)
    process = with_model(kernel, call.pid)
    check_idle(process, "exec")
    check_unchanged(process, request)
    if call.records and call.tokens is None:
        raise SyscallError(Errno.EINVAL, "`records` go with `tokens`: where the log stays its records stay")
    check_size(len(call.records), sum(map(len, call.records)), f"process {process.pid} would have")
    if process.running or process.saved is not None:
        return at_boundary(kernel, process, request)

    def ready(image: Image | SyscallError) -> None:
        process.change = None
        try:
            if isinstance(image, SyscallError):
                raise image
            if process.running and process.decoding is None:  # it computes what it was fed meanwhile
                at_boundary(kernel, process, request)
                return
            _replace_image(kernel, process, image, call)
        except SyscallError as error:
            kernel.fail(request, error.errno, error.reason)
        else:
            kernel.answer(request, None)

    def undo() -> None:
        process.change = None
        forget_waiter(kernel, process.device, ready)

    kernel.park(request, undo)
    process.change = Change(request, lambda: None)
    try:
        want_image(kernel, process.device, call.model, call.dtype, ready, now)
    except SyscallError:
        undo()
        raise
    return PARKED


def _replace_image(kernel: Kernel, process: LLMProcess, image: Image, call: Exec) -> None:
    check_idle(process, "exec")
    old = process.image
    assert old is not None
    if call.length not in (-1, len(process.log)):
        raise SyscallError(
            Errno.EAGAIN,
            f"the log of process {process.pid} has {len(process.log)} tokens by now, not {call.length}; read it again",
        )
    if call.tokens is None and old.probed and image.probed and old.probed.vocab != image.probed.vocab:
        raise SyscallError(
            Errno.EINVAL,
            f"{image.name} has a vocabulary of {image.probed.vocab}, {old.name} of {old.probed.vocab}: the tokens of "
            f"process {process.pid} mean something else to it; pass its own as `tokens` (the SDK's Process.exec does)",
        )
    log = process.log if call.tokens is None else list(call.tokens)
    check_tokens(image, log)
    check_room(process, len(log), image)
    process.group.unmap_image(old.id, old.weight_bytes)  # it pays for one of them at a time
    try:
        process.group.check_weights(image.id, image.weight_bytes, image.name)
    finally:
        process.group.map_image(old.id, old.weight_bytes)
    leave_image(kernel, process)
    image.used = kernel.now
    process.image, process.model, process.log, process.driver_log = image, call.model, log, 0
    process.reached = process.recorded = 0
    if call.tokens is not None:
        process.records = LogRecords()
        process.records.add(0, call.records)
        kernel.journal.noted(process)
    process.ahead = True
    kernel.touch(process)
    kernel.journal.grew(process)
    image.join(process)
    kernel.emit(kernel.now, "proc.exec", process.pid, process.device.name, len(log), image.name)
    kernel.settle(process, kernel.now)


def leave_image(kernel: Kernel, process: LLMProcess) -> None:
    """Take its pages and places from a process that is not in a step, and its model; it is to get another at once."""
    image, device = process.image, process.device
    assert image is not None
    release_pages(kernel, process)
    if device.state == UP:
        device.dropped.append(process.pid)  # what the driver knows of this context is of this model
    image.leave(process, kernel.now)


# --- death ----------------------------------------------------------------------------------------------------------


@handles(Exit)
def exit_(kernel: Kernel, request: Request, now: float) -> object:
    call = cast(Exit, request.call)
    if call.pid in (0, request.program.pid):
        kernel.answer(request, None)
        end_program(kernel, request.program, call.status, "exit", now)
        return PARKED
    exit_process(kernel, kernel.table.llm(call.pid), call.status, "exit", now)
    return None


@handles(Wait)
def wait(kernel: Kernel, request: Request, now: float) -> object:
    call = cast(Wait, request.call)
    program = request.program
    children = [call.pid] if call.pid else sorted(program.children)
    if not children or (call.pid and call.pid not in program.children):
        what = (
            f"{call.pid} is no child of program {program.pid}"
            if call.pid
            else f"program {program.pid} has no children"
        )
        raise SyscallError(
            Errno.ECHILD, f"{what}; wait only for processes you spawned or forked, and only once"
        )
    for pid in children:
        child = kernel.table.find(pid)
        if child is not None and child.is_zombie():
            return reap(kernel, child)
    if call.timeout is not None:
        late = f"no child ended within {call.timeout:g} s"
        request.timers.append(
            kernel.timers.at(now + call.timeout, lambda _: kernel.unpark(request, Errno.ETIME, late))
        )
    program.reapers.append(request)
    settle_program(program, now)

    def undo() -> None:
        if request in program.reapers:
            program.reapers.remove(request)
            settle_program(program, kernel.now)

    return kernel.park(request, undo)


@handles(Kill)
def kill(kernel: Kernel, request: Request, now: float) -> None:
    call = cast(Kill, request.call)
    process = kernel.table.get(call.pid)
    kernel.emit(now, f"sig.{call.signal.name.lower()}", process.pid, detail=f"from {request.program.pid}")
    if isinstance(process, LLMProcess):
        _signal_llm(kernel, process, call.signal, request.program, now)
    elif isinstance(process, DriverProcess):
        if call.signal is not Signal.KILL:
            raise SyscallError(
                Errno.EINVAL,
                f"a driver takes no signal but KILL, after which it is restarted; got {call.signal.name}",
            )
        device = kernel.devices[process.device]
        kernel.act(KillDriver(device.name, device.incarnation, f"killed by program {request.program.pid}"))
    elif isinstance(process, Program):
        if not process.os_pid:
            raise SyscallError(
                Errno.EINVAL, f"the operating system's pid of program {process.pid} is not known"
            )
        kernel.act(SignalProgram(process.os_pid, call.signal))
    else:
        raise SyscallError(Errno.EPERM, "init takes no signals; `shutdown` ends the system")


def _signal_llm(kernel: Kernel, process: LLMProcess, signal: Signal, sender: Program, now: float) -> None:
    match signal:
        case Signal.KILL | Signal.TERM:
            exit_process(kernel, process, 128 + int(signal), f"{signal.name} from program {sender.pid}", now)
        case Signal.INT:
            interrupt_decoding(kernel, process, Finish.INTERRUPT, now)
        case Signal.STOP:
            process.stopped = True
            kernel.touch(process)
            kernel.settle(process, now)
        case Signal.CONT:
            process.stopped = False
            kernel.touch(process)
            kernel.settle(process, now)
        case _:
            raise SyscallError(
                Errno.EINVAL, f"{signal.name} is sent by the kernel only; send INT, TERM, KILL, STOP or CONT"
            )


# --- setting --------------------------------------------------------------------------------------------------------


@handles(Setlimits)
def setlimits(kernel: Kernel, request: Request, now: float) -> Limits:
    call = cast(Setlimits, request.call)
    process = kernel.table.llm(call.pid)
    old = process.limits
    if call.limits is not None:
        process.limits = call.limits
        kernel.touch(process)
        process.spent = 0  # a budget given to this process counts what it decodes itself
    return old
