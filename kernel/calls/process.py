"""The process family: spawn fork exec exit wait kill setlimits; setsched is in move.py, getinfo and ps are in
info.py.

As in xv6's sysproc.c: a handler checks its arguments, does its work on the process table, and returns the result.
"""

from __future__ import annotations

import dataclasses
from typing import cast

from llmasos.kernel import desk
from llmasos.kernel.calls.lookup import at_boundary, check_idle, check_unchanged, reachable_group, with_model
from llmasos.kernel.desk import PARKED
from llmasos.kernel.events import KillDriver, SignalProgram
from llmasos.kernel.life import end_program, exit_process, interrupt_decoding, leave_image, reap, settle_program, strike
from llmasos.kernel.marks import touch
from llmasos.kernel.models.loading import forget_waiter, want_image
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.log_records import LogRecords, check_size
from llmasos.kernel.objects.process import DriverProcess, LLMProcess, Program
from llmasos.kernel.objects.request import Change, Request
from llmasos.kernel.seeds import seed_of_child, seed_of_pid
from llmasos.kernel.settle import settle
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish, Kind, Limits, Sampler, Signal
from llmasos.syscalls.table import Exec, Exit, Fork, Kill, Setlimits, Spawn, Wait

# --- birth ----------------------------------------------------------------------------------------------------------


def spawn(system: System, request: Request) -> object:
    call = cast(Spawn, request.call)
    device = system.device_named(call.device)
    group = reachable_group(system, request.program, call.group)
    group.check_pids(1)
    check_size(len(call.records), sum(map(len, call.records)), "the process would have")
    pid = system.table.new_pid()
    process = LLMProcess(
        pid=pid,
        owner=request.program.pid,
        kind=Kind.LLM,
        name=call.name or f"{call.model.rstrip('/').rpartition('/')[2]}-{pid}"[:64],
        group=group,
        started=system.now,
        since=system.now,
        device=device,
        model=call.model,
        sampler=call.sampler or Sampler(seed=seed_of_pid(pid)),
        limits=call.limits,
        once=call.once,
        detached=call.detached,
        sched_class=call.sched_class,
        nice=call.nice,
        log=list(call.tokens),
        turn=system.now,
    )
    process.records.add(0, call.records)
    process.account.fed = len(call.tokens)

    def ready(image: Image | SyscallError) -> None:
        if isinstance(image, SyscallError):
            failed(image)
        else:
            try:
                image.check_tokens(process.log)
                process.group.check_weights(image.id, image.weight_bytes, image.name)
                process.image = image
                process.check_room(len(process.log))
            except SyscallError as error:
                process.image = None
                failed(error)
                return
            process.birth = None
            touch(system, process)
            image.join(process)
            system.counters["spawned"] += 1
            system.counters["fed"] += len(process.log)
            system.emit("proc.spawn", pid, device.name, len(process.log), process.name)
            desk.answer(system, request, pid)
            settle(system, process)

    def failed(error: SyscallError) -> None:
        undo()
        if not request.answered:
            desk.fail(system, request, error.errno, error.reason)

    def undo() -> None:
        forget_waiter(system, device, ready)
        process.birth = None
        if process.pid in system.table:
            strike(system, process)

    process.birth = request
    system.table.add(process)
    desk.park(request, undo)
    try:
        image = want_image(system, device, call.model, call.dtype, ready)
    except SyscallError:
        undo()
        raise
    if process.pid in system.table and process.image is None:
        settle(system, process)
    image.used = system.now
    return PARKED


def fork(system: System, request: Request) -> object:
    call = cast(Fork, request.call)
    parent = with_model(system, call.pid)
    if parent.running or parent.saved is not None:
        return at_boundary(parent, request)
    group = request.program.group
    group.check_pids(call.count)
    assert parent.image is not None
    group.check_weights(parent.image.id, parent.image.weight_bytes, parent.image.name)
    system.table.check_room(call.count)  # all or none: children whose pids nobody is told could not be ended
    return [_fork_one(system, parent, request.program, call) for _ in range(call.count)]


def _fork_one(system: System, parent: LLMProcess, owner: Program, call: Fork) -> int:
    pid = system.table.new_pid()
    image = parent.image
    assert image is not None
    parent.account.forks += 1
    touch(system, parent)
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
        started=system.now,
        since=system.now,
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
        turn=system.now,
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
    system.table.add(child)
    system.journal.forked(child, parent)
    system.counters["spawned"] += 1
    system.emit("proc.fork", pid, child.device.name, len(child.table.frames), f"of {parent.pid}")
    settle(system, child)
    return pid


def exec_(system: System, request: Request) -> object:
    call = cast(Exec, request.call)
    process = with_model(system, call.pid)
    check_idle(process, "exec")
    check_unchanged(process, request)
    if call.records and call.tokens is None:
        raise SyscallError(Errno.EINVAL, "`records` go with `tokens`: where the log stays its records stay")
    check_size(len(call.records), sum(map(len, call.records)), f"process {process.pid} would have")
    if process.running or process.saved is not None:
        return at_boundary(process, request)

    def ready(image: Image | SyscallError) -> None:
        process.change = None
        try:
            if isinstance(image, SyscallError):
                raise image
            if process.running and process.decoding is None:  # it computes what it was fed meanwhile
                at_boundary(process, request)
                return
            _replace_image(system, process, image, call)
        except SyscallError as error:
            desk.fail(system, request, error.errno, error.reason)
        else:
            desk.answer(system, request, None)

    def undo() -> None:
        process.change = None
        forget_waiter(system, process.device, ready)

    desk.park(request, undo)
    process.change = Change(request, lambda: None)
    try:
        want_image(system, process.device, call.model, call.dtype, ready)
    except SyscallError:
        undo()
        raise
    return PARKED


def _replace_image(system: System, process: LLMProcess, image: Image, call: Exec) -> None:
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
    image.check_tokens(log)
    process.check_room(len(log), image)
    process.group.unmap_image(old.id, old.weight_bytes)  # it pays for one of them at a time
    try:
        process.group.check_weights(image.id, image.weight_bytes, image.name)
    finally:
        process.group.map_image(old.id, old.weight_bytes)
    leave_image(system, process)
    image.used = system.now
    process.image, process.model, process.log, process.driver_log = image, call.model, log, 0
    process.reached = process.recorded = 0
    if call.tokens is not None:
        process.records = LogRecords()
        process.records.add(0, call.records)
        system.journal.noted(process)
    process.ahead = True
    touch(system, process)
    system.journal.grew(process)
    image.join(process)
    system.emit("proc.exec", process.pid, process.device.name, len(log), image.name)
    settle(system, process)


# --- death ----------------------------------------------------------------------------------------------------------


def exit_(system: System, request: Request) -> object:
    call = cast(Exit, request.call)
    if call.pid in (0, request.program.pid):
        desk.answer(system, request, None)
        end_program(system, request.program, call.status, "exit")
        return PARKED
    exit_process(system, system.table.llm(call.pid), call.status, "exit")
    return None


def wait(system: System, request: Request) -> object:
    call = cast(Wait, request.call)
    program = request.program
    children = [call.pid] if call.pid else sorted(program.children)
    if not children or (call.pid and call.pid not in program.children):
        what = (
            f"{call.pid} is no child of program {program.pid}" if call.pid else f"program {program.pid} has no children"
        )
        raise SyscallError(Errno.ECHILD, f"{what}; wait only for processes you spawned or forked, and only once")
    for pid in children:
        child = system.table.find(pid)
        if child is not None and child.is_zombie():
            return reap(system, child)
    if call.timeout is not None:
        late = f"no child ended within {call.timeout:g} s"
        request.timers.append(
            system.timers.at(system.now + call.timeout, lambda: desk.unpark(system, request, Errno.ETIME, late))
        )
    program.reapers.append(request)
    settle_program(program, system.now)

    def undo() -> None:
        if request in program.reapers:
            program.reapers.remove(request)
            settle_program(program, system.now)

    return desk.park(request, undo)


def kill(system: System, request: Request) -> None:
    call = cast(Kill, request.call)
    process = system.table.get(call.pid)
    system.emit(f"sig.{call.signal.name.lower()}", process.pid, detail=f"from {request.program.pid}")
    if isinstance(process, LLMProcess):
        _signal_llm(system, process, call.signal, request.program)
    elif isinstance(process, DriverProcess):
        if call.signal is not Signal.KILL:
            raise SyscallError(
                Errno.EINVAL, f"a driver takes no signal but KILL, after which it is restarted; got {call.signal.name}"
            )
        device = system.devices[process.device]
        system.act(KillDriver(device.name, device.incarnation, f"killed by program {request.program.pid}"))
    elif isinstance(process, Program):
        if not process.os_pid:
            raise SyscallError(Errno.EINVAL, f"the operating system's pid of program {process.pid} is not known")
        system.act(SignalProgram(process.os_pid, call.signal))
    else:
        raise SyscallError(Errno.EPERM, "init takes no signals; `shutdown` ends the system")


def _signal_llm(system: System, process: LLMProcess, signal: Signal, sender: Program) -> None:
    match signal:
        case Signal.KILL | Signal.TERM:
            exit_process(system, process, 128 + int(signal), f"{signal.name} from program {sender.pid}")
        case Signal.INT:
            interrupt_decoding(system, process, Finish.INTERRUPT)
        case Signal.STOP:
            process.stopped = True
            touch(system, process)
            settle(system, process)
        case Signal.CONT:
            process.stopped = False
            touch(system, process)
            settle(system, process)
        case _:
            raise SyscallError(
                Errno.EINVAL, f"{signal.name} is sent by the kernel only; send INT, TERM, KILL, STOP or CONT"
            )


# --- setting --------------------------------------------------------------------------------------------------------


def setlimits(system: System, request: Request) -> Limits:
    call = cast(Setlimits, request.call)
    process = system.table.llm(call.pid)
    old = process.limits
    if call.limits is not None:
        process.limits = call.limits
        touch(system, process)
        process.spent = 0  # a budget given to this process counts what it decodes itself
    return old
