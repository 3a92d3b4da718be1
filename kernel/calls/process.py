"""The process family: spawn fork exec exit wait kill detach setlimits rename. The others are in files of their own:
setsched in move.py, getinfo and ps in info.py, shred and shred_owner in shred.py.

As in xv6's sysproc.c: a handler checks its arguments, does its work on the process table, and returns the result.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from msgspec.structs import replace

from llmasos.kernel import desk
from llmasos.kernel.devices import reincarnation
from llmasos.kernel.events import CutOff, SignalProgram
from llmasos.kernel.groups.group import Group
from llmasos.kernel.journal.process_image import check_size
from llmasos.kernel.journal.records import Traits
from llmasos.kernel.life import end_program, exit_process, interrupt_decoding, leave_image, reap, strike
from llmasos.kernel.marks import changed, grew, stale
from llmasos.kernel.models.loading import want_image
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import RESIDENT, Image
from llmasos.kernel.objects.log_records import NO_RECORDS
from llmasos.kernel.objects.process import INIT_PID, ROW_BYTES, DriverProcess, LLMProcess, Process, Program
from llmasos.kernel.objects.process_table import only_llm
from llmasos.kernel.objects.request import Request
from llmasos.kernel.objects.reserve import Reserve, make_reserve
from llmasos.kernel.rights import may_read, written
from llmasos.kernel.sched.realtime import check_reserve, grant
from llmasos.kernel.seeds import seed_of_child
from llmasos.kernel.state import System
from llmasos.kernel.tokens import log_of
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_NAME
from llmasos.syscalls.records import ExitInfo, Finish, Kind, Limits, Right, Sampler, SchedClass, Signal
from llmasos.syscalls.table import Detach, Exec, Exit, Fork, Kill, Rename, Setlimits, Setsched, Spawn, Wait

_UNLIMITED = Limits()

# --- birth ----------------------------------------------------------------------------------------------------------


def newborn(system: System, program: Program, group: Group, device: Device, traits: Traits, **more: Any) -> LLMProcess:
    """A row of the process table for a process of these traits, which `program` starts; `more` are further fields of it.
    EAGAIN."""
    system.table.check_room(1)
    pid, now = system.table.new_pid(program.owner.space), system.now
    if not traits.name:
        model = traits.model.rstrip("/").rpartition("/")[2]
        traits = replace(traits, name=f"{model}-{pids.number_of(pid)}"[:64])
    ours = pid, INIT_PID if traits.detached else program.pid, Kind.LLM, traits.name, group, now
    process = LLMProcess(*ours, since=now, owner=program.owner, device=device, traits=traits, turn=now, **more)
    system.table.add(process)
    stale(system, process)
    return process


def modest(traits: Traits, program: Program) -> Traits:
    """The traits of a process that another begins from its own: nobody gets the part of a device's time that is reserved
    for the other, nor a nice value that he could not set."""
    if traits.sched_class is SchedClass.REALTIME:
        traits = replace(traits, sched_class=SchedClass.FAIR)
    if traits.nice < 0 and not program.rights & int(Right.PRIORITY):
        traits = replace(traits, nice=0)
    return traits


def check_priority(program: Program, *stronger: str) -> None:
    """EPERM if there is anything that is to be stronger than the default, and the program may not have that."""
    if stronger and not program.rights & int(Right.PRIORITY):
        why = (
            f"{' and '.join(stronger)} is stronger than the default: that needs the right PRIORITY, which {program.name}"
        )
        raise Errno.EPERM(f"{why} has not")


class Birth(desk.Begun):
    """A process that has yet to get its model."""

    def __init__(self, process: LLMProcess) -> None:
        self.process = process

    def undo(self, system: System, error: SyscallError) -> None:
        strike(system, self.process)


def spawn(system: System, request: Request, call: Spawn, device: Device, group: Group, path: str) -> int | Waiting:
    """Row 20 of the table, `Spawn`."""
    if not isinstance(request.begun, Birth):
        group.check_pids(1)
        group.check_logs(ROW_BYTES + 4 * len(call.tokens) + sum(map(len, call.records)))
        check_size(len(call.records), sum(map(len, call.records)), "the process would have")
        reserve = _reserve(system, request.program, call, device)
        sampler = call.sampler or Sampler(seed=request.drawn)
        kind = call.sched_class, call.nice, call.once
        limits = call.limits if call.limits != _UNLIMITED else _UNLIMITED  # most have no others, and so one for all
        model = sys.intern(call.model)
        traits = Traits(call.name, model, sampler, limits, *kind, spent=0, detached=call.detached)
        process = newborn(system, request.program, group, device, traits, log=log_of(call.tokens), birth=request)
        process.records = process.records.with_more(0, call.records)
        process.charge_log()
        process.account.fed = len(call.tokens)
        request.begun = Birth(process)
        if reserve is not None:
            grant(system, process, device, reserve)
    process = request.begun.process
    image = want_image(system, device, call.model, path, call.dtype, process.owner)
    if image.state != RESIDENT:
        return wait(image.loaded)
    process.check_model(image, process.log)
    process.image, process.birth = image, None
    image.join(process, system.now)
    changed(system, process)
    system.counters["spawned"] += 1
    system.counters["fed"] += len(process.log)
    system.emit("proc.spawn", process.pid, device.name, len(process.log), process.name)
    return process.pid


def _reserve(system: System, program: Program, call: Spawn, device: Device) -> Reserve | None:
    """What of the device's time a new process is to have reserved. EPERM, EINVAL, EBUSY."""
    realtime = call.sched_class is SchedClass.REALTIME
    check_priority(program, *["REALTIME"] * realtime, *[f"nice {call.nice}"] * (call.nice < 0))
    if not realtime:
        check_no_reserve(call)
        return None
    wanted = make_reserve(call.budget, call.period)
    check_reserve(system, device, 0, wanted, program.owner)
    return wanted


def check_no_reserve(call: Spawn | Setsched) -> None:
    """EINVAL for a budget of a process that is not to be REALTIME."""
    if call.budget or call.period:
        raise Errno.EINVAL("`budget` and `period` are of REALTIME processes; set sched_class to realtime as well")


def fork(system: System, request: Request, call: Fork, parent: LLMProcess) -> list[int]:
    """Row 21 of the table, `Fork`."""
    group, image = request.program.group, parent.mapped
    group.check_pids(call.count)
    group.check_logs(call.count * parent.size)
    group.check_weights(image.id, image.weight_bytes, image.name)
    system.table.check_room(call.count)  # all or none: nobody could end children without knowing their pids
    name, several = call.name or parent.name, call.name and call.count > 1
    names = [f"{name[: MAX_NAME - 4]}-{number}" if several else name for number in range(1, call.count + 1)]
    return [_fork_one(system, parent, image, request.program, call, name) for name in names]


def _fork_one(system: System, parent: LLMProcess, image: Image, program: Program, call: Fork, name: str) -> int:
    parent.account.forks += 1
    system.table.changed[parent.pid] = parent  # for the journal alone: its state is what it was
    sampler = parent.traits.sampler
    if not call.same_seed:
        sampler = replace(sampler, seed=seed_of_child(sampler.seed, parent.account.forks))
    table = parent.table.fork(image.pool, program.group, program.owner)
    own = program.owner is parent.owner
    decoding = parent.decoding
    if decoding is not None:
        collected = decoding.collected.copy()
        decoding = dataclasses.replace(decoding, request=None, timer=None, collected=collected, recorded=0)
    child = newborn(
        system,
        program,
        program.group,
        parent.device,
        modest(replace(parent.traits, name=name, sampler=sampler, detached=call.detached, spent=parent.spent), program),
        image=image,
        log=parent.log[:],
        records=parent.records.copy(),
        table=table,
        decoding=decoding if decoding is not None and decoding.append else None,
        high_water=parent.high_water if own else 0,
        taken=parent.taken and own,
        finish=parent.finish,
        ahead=parent.ahead,
        stopped=parent.stopped,
        stop_reason=parent.stop_reason,
    )
    image.join(child, system.now)
    changed(system, child)
    system.journal.forked(child, parent)
    system.counters["spawned"] += 1
    system.emit("proc.fork", child.pid, child.device.name, len(child.table.frames), f"of {parent.pid}")
    return child.pid


class Transition(desk.Begun):
    """A process that is getting another model; meanwhile it runs on with its own."""

    def __init__(self, process: LLMProcess) -> None:
        self.process = process

    def undo(self, system: System, error: SyscallError) -> None:
        self.process.transition = None


def exec_(system: System, request: Request, call: Exec, process: LLMProcess, path: str) -> Waiting | None:
    """Row 22 of the table, `Exec`."""
    if call.records and call.tokens is None:
        raise Errno.EINVAL("`records` go with `tokens`: where the log stays its records stay")
    check_size(len(call.records), sum(map(len, call.records)), f"process {process.pid} would have")
    image = want_image(system, process.device, call.model, path, call.dtype, process.owner)
    if image.state != RESIDENT:
        process.transition, request.begun = request, Transition(process)
        return wait(image.loaded)
    _check_exec(process, image, call)
    process.check_log(len(call.tokens or ()), call.records)
    log = process.log if call.tokens is None else log_of(call.tokens)
    leave_image(system, process)
    process.image, process.traits = image, replace(process.traits, model=call.model)
    process.log, process.transition = log, None
    process.high_water = process.recorded = process.driver_log = 0
    if call.tokens is not None:
        process.records = NO_RECORDS.with_more(0, call.records)
        system.journal.noted(process)
    process.ahead = True
    image.join(process, system.now)
    changed(system, process)
    grew(system, process)
    system.emit("proc.exec", process.pid, process.device.name, len(log), image.name)
    return None


def _check_exec(process: LLMProcess, image: Image, call: Exec) -> None:
    """Whether the process can go on with the image, which is in memory; raises the reason why not."""
    old = process.mapped
    if call.length not in (-1, len(process.log)):
        why = f"the log of process {process.pid} has {len(process.log)} tokens by now, not {call.length}; read it again"
        raise Errno.EAGAIN(why)
    if call.tokens is None and old.probed and image.probed and old.probed.vocab != image.probed.vocab:
        raise Errno.EINVAL(
            f"{image.name} has a vocabulary of {image.probed.vocab}, {old.name} of {old.probed.vocab}: the tokens of "
            f"process {process.pid} mean something else to it; pass its own as `tokens` (the SDK's Process.exec does)"
        )
    process.check_model(image, process.log if call.tokens is None else call.tokens)


# --- death ----------------------------------------------------------------------------------------------------------


def exit_(system: System, request: Request, call: Exit, process: Process) -> None:
    """Row 23 of the table, `Exit`."""
    if process is request.program:
        desk.answer(system, request, None)
        end_program(system, request.program, call.status, "exit")
    else:
        exit_process(system, only_llm(process), call.status, "exit")


def wait_(system: System, request: Request, call: Wait, process: Process | None) -> ExitInfo | Waiting:
    """Row 24 of the table, `Wait`."""
    program = request.program
    zombies = system.table.zombies(program.pid)
    if not (system.table.children(program.pid) if call.pid == 0 else _may_wait(program, process)):
        child = f"{call.pid} is neither a child of program {program.pid} nor a detached process"
        what = child if call.pid else f"program {program.pid} has no children"
        raise Errno.ECHILD(f"{what}; wait for what you spawned or forked, or for what is detached, and only once")
    zombie = process or zombies.get(min(zombies, default=0))
    if zombie is not None and zombie.is_zombie():
        return reap(system, zombie)
    request.begun = process.pid if process is not None else 0  # whom it waits for (life.py)
    what = f"process {call.pid} has not ended" if call.pid else "no child ended"
    return wait(program.ended, call.timeout, f"{what} within {call.timeout} s")


def _may_wait(program: Program, process: Process | None) -> bool:
    """Its own children, and detached processes. Init reaps its other children, those of programs that have ended."""
    if not isinstance(process, LLMProcess):
        return False
    return process.parent == program.pid or (process.parent == INIT_PID and process.traits.detached)


def kill(system: System, request: Request, call: Kill, process: Process) -> None:
    """Row 25 of the table, `Kill`."""
    system.emit(f"sig.{call.signal.name.lower()}", process.pid, detail=f"from {written(system, request.program.pid)}")
    if isinstance(process, LLMProcess):
        signal_llm(system, process, call.signal, request.program)
    elif isinstance(process, DriverProcess):
        if call.signal is not Signal.KILL:
            raise Errno.EINVAL(f"a driver takes no signal but KILL, after which it is restarted; got {call.signal.name}")
        reincarnation.kill(system, system.devices[process.device], request.program)
    elif isinstance(process, Program):
        _signal_program(system, request, process, call.signal)
    else:
        raise Errno.EPERM("process 1 is the kernel itself and takes no signals; `halt` ends the system")


def _signal_program(system: System, request: Request, program: Program, signal: Signal) -> None:
    """Send a signal to the OS process of a program. Where this kernel can reach none, KILL and TERM end what it has here:
    it is on another machine, or away."""
    if program.os_pid:
        system.act(SignalProgram(program.peer, signal))
        return
    if signal not in (Signal.KILL, Signal.TERM):
        number = written(system, program.pid)
        why = "runs on another machine" if program.key else "has no OS process that is known"
        raise Errno.EINVAL(
            f"program {number} {why}, so it cannot be sent {signal.name}; KILL and TERM end its connection"
        )
    if program.leaving:  # by its connection another may have come since
        return
    reason, peer, away = f"{signal.name} from program {written(system, request.program.pid)}", program.peer, program.grace
    system.log("info", f"program {program.pid} ({program.name}) is ended: {reason}", program)
    if program is request.program:
        desk.answer(system, request, None)
    end_program(system, program, 0, reason)
    if away is None:
        system.act(CutOff(peer, reason))


def signal_llm(system: System, process: LLMProcess, signal: Signal, sender: Program) -> None:
    """What a signal from `sender` does to an LLM process."""
    match signal:
        case Signal.KILL | Signal.TERM:
            exit_process(system, process, 128 + int(signal), f"{signal.name} from program {written(system, sender.pid)}")
        case Signal.INT:
            interrupt_decoding(system, process, Finish.INTERRUPT)
        case Signal.STOP:
            process.stopped, process.stop_reason = True, ""
            changed(system, process)
        case Signal.CONT:
            process.ahead = process.ahead or process.stop_reason != ""  # what has failed is tried again
            process.stopped, process.stop_reason = False, ""
            changed(system, process)
        case _:
            raise Errno.EINVAL(f"{signal.name} is sent by the kernel only; send INT, TERM, KILL, STOP or CONT")


def detach(system: System, request: Request, call: Detach, process: LLMProcess) -> None:
    """Row 30 of the table, `Detach`."""
    process.traits = replace(process.traits, detached=True)
    system.table.reparent(process, INIT_PID)
    changed(system, process)


# --- setting --------------------------------------------------------------------------------------------------------


def setlimits(system: System, request: Request, call: Setlimits, process: LLMProcess) -> Limits:
    """Row 29 of the table, `Setlimits`."""
    old = process.traits.limits
    if call.limits is not None:  # a budget given to this process counts what it decodes itself
        process.traits = replace(process.traits, limits=call.limits, spent=0)
        changed(system, process)
    return old


def rename(system: System, request: Request, call: Rename, process: LLMProcess) -> str:
    """Row 31 of the table, `Rename`."""
    old, process.name = process.name, call.name
    process.traits = replace(process.traits, name=call.name)
    changed(system, process)
    return old if may_read(system, request.program, process) else ""
