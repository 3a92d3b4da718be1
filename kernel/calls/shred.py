"""shred: a process ends, or all of an owner, and what they have said is destroyed.

Three places have it: this core (log, records, answers that are kept for programs), the device (KV in frames and places,
the driver's own log of the context), and files (the journal, process images, by their keys). The core forgets at once;
the driver zeroes what nobody has any more, in order with its steps, so that frames may be given away meanwhile; the edge
forgets the keys, and says what it could not reach.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from llmasos.drivers.protocol import BLOCK_TOKENS, Done, Drop, Failed, Wipe
from llmasos.kernel import desk
from llmasos.kernel.events import Forget, Forgotten
from llmasos.kernel.life import exit_process
from llmasos.kernel.marks import changed
from llmasos.kernel.memory.prefix import root
from llmasos.kernel.objects.device import UP, Ask, Device
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.objects.process import LLMProcess, Program
from llmasos.kernel.objects.request import Channel, Request
from llmasos.kernel.rights import written
from llmasos.kernel.state import System
from llmasos.kernel.tokens import Log
from llmasos.kernel.wait import Waiting, wait, wake
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import ShredInfo
from llmasos.syscalls.table import Shred, ShredOwner

NAME = "shredded"
_LEFT = (
    "children that were forked from it, and whoever read it or was sent it",
    "the memory of programs, and what Python and OpenSSL have not used again of the kernel's and the driver's",
    "swap of this machine, if it is on, and what terminals and shells have kept",
)


@dataclass(slots=True, eq=False)
class Shredding(desk.Begun):
    """What is under way. Nothing of it is undone if nobody waits any more."""

    held: object | None
    pids: set[int] = field(default_factory=set)  # of what is destroyed
    devices: dict[str, Device] = field(default_factory=dict)  # on which it was
    shared: list[tuple[Image, int]] = field(default_factory=list)  # frames that others had too when it ended
    gone: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    wiping: list[tuple[Device, Ask[Done]]] = field(default_factory=list)
    forgetting: Channel | None = None  # while the edge forgets its keys
    found: Forgotten | None = None

    def undo(self, system: System, error: SyscallError) -> None:
        """There is no way back."""


def shred(system: System, request: Request, call: Shred, process: LLMProcess) -> ShredInfo | Waiting:
    """Row 32 of the table, `Shred`."""
    if not isinstance(request.begun, Shredding):
        if process.birth is not None:
            raise Errno.EBUSY(f"process {call.pid} is still waiting for its model; wait for that, or kill it")
        if process.running:
            return wait(process.boundary)
        request.begun = doing = Shredding(process)
        log, records = len(process.log), len(process.records.rows)
        _destroy(system, request, doing, process)
        doing.gone.append(f"its log of {log} tokens and its {records} records")
        _forget(system, request, doing)
    return _told(system, request.begun, f"process {call.pid} has ended, and it")


def shred_owner(system: System, request: Request, call: ShredOwner, owner: Owner) -> ShredInfo | Waiting:
    """Row 33 of the table, `ShredOwner`."""
    if not isinstance(request.begun, Shredding):
        request.begun = Shredding(owner)
    doing = request.begun
    if doing.forgetting is None:
        theirs = [
            one
            for one in list(system.table)
            if isinstance(one, LLMProcess) and owner in (one.owner, one.owner.base) and one.pid not in doing.pids
        ]
        for process in theirs:
            if process.birth is not None:  # its spawn fails, and there is nothing of it
                exit_process(system, process, 128 + 9, _by(system, request))
            elif not process.running:
                _destroy(system, request, doing, process)
        for process in theirs:
            if process.running:
                return wait(process.boundary)
        programs = [one for one in system.table if isinstance(one, Program) and owner in (one.owner, one.owner.base)]
        for program in programs:
            for pid in {answer.about for answer in program.answers if answer.about} - doing.pids:
                _untell(system, pid)
                system.journal.untold(pid)
                doing.pids.add(pid)
        doing.gone.append(f"the logs and records of all processes of {owner.name}, and what calls were told of them")
        if programs:
            doing.left.append(f"{len(programs)} programs that are connected, and whatever they start from here on")
        _forget(system, request, doing, owner)
    return _told(system, doing, f"the processes of {call.owner} have ended, and what they said")


def _told(system: System, doing: Shredding, what: str) -> ShredInfo | Waiting:
    """What there is to say once drivers and edge have done their part."""
    for device, asked in doing.wiping:
        if asked.answer is None and asked.death is None:
            return wait(asked.channel)
        if isinstance(asked.answer, Failed):
            doing.left.append(f"KV in frames of {device.name}: {asked.answer.reason}")
    doing.wiping.clear()
    if doing.found is None:
        assert doing.forgetting is not None
        return wait(doing.forgetting)
    if doing.found.error:
        raise Errno.EIO(f"{what} is not all gone yet: {doing.found.error}")
    gone, left = [*doing.gone, *doing.found.gone], [*doing.left, *doing.found.left, *_LEFT]
    return ShredInfo(gone, left, doing.found.sure)


def _by(system: System, request: Request) -> str:
    return f"shredded by program {written(system, request.program.pid)}"


def _destroy(system: System, request: Request, doing: Shredding, process: LLMProcess) -> None:
    """End a process that is in no step, and forget what the core knows of it."""
    device, image, log = process.device, process.image, process.log[:]
    if image is not None and not process.is_zombie():
        doing.shared += [(image, frame) for frame in process.table.frames if image.pool.refs[frame] > 1]
    exit_process(system, process, 128 + 9, _by(system, request))
    _erase(system, process)
    doing.pids.add(process.pid)
    if device.state == UP:
        doing.devices[device.name] = device
        system.send(device, Drop([process.pid]))
        if image is not None and image.held:
            _unname(image, process, log)
    system.emit("proc.shred", process.pid, device.name, len(log))
    system.log("info", f"process {process.pid} was {_by(system, request)}")


def _forget(system: System, request: Request, doing: Shredding, owner: Owner | None = None) -> None:
    """Have drivers and edge forget it too."""
    if shared := sum(image.pool.refs[frame] > 0 for image, frame in set(doing.shared) if image.held):
        doing.left.append(f"KV of {shared} blocks that other processes have too")
    for device in doing.devices.values():
        if device.state != UP:
            continue
        for one in device.images.values():
            if one.held:
                message = Wipe(system.ref(), one.id, one.pool.idle, one.swap.idle)
                doing.wiping.append((device, system.ask(device, message, Done)))
        doing.gone.append(
            f"its KV in frames and places of {device.name}, which are zeroed, and what its driver knew of it"
        )
    if system.trace.on:
        doing.left.append("the first tokens of its calls in the trace, until that is full")
    ref, doing.forgetting = system.ref(), Channel()
    system.shredding[ref] = request
    system.act(Forget(ref, sorted(doing.pids), owner.key if owner is not None else None))


def _erase(system: System, process: LLMProcess) -> None:
    """What the core knows of it."""
    del process.log[:]
    process.records.cut(0)
    process.high_water = 0
    process.name, process.traits = NAME, replace(process.traits, name=NAME)
    if system.table.find(process.pid) is process:  # or nobody is charged for it any more
        process.charge_log()
        changed(system, process)
    system.journal.shredded(process)
    _untell(system, process.pid)


def _untell(system: System, pid: int) -> None:
    """Forget what answers that are kept for programs tell of a process."""
    for program in system.table:
        if isinstance(program, Program):
            program.answers.forget(pid)


def _unname(image: Image, process: LLMProcess, log: Log) -> None:
    """Free the frames that are cached for contexts which begin as its log does."""
    parent = root(process.table.salt)
    chain: list[int] = []
    for at in range(0, len(log) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        if (hit := image.pool.prefix.find(parent, log[at : at + BLOCK_TOKENS].tobytes())) is None:
            break
        parent, frame = hit
        chain.append(frame)
    for frame in reversed(chain):
        if image.pool.refs[frame] == 0:
            image.pool.forget(frame)


def forgotten(system: System, event: Forgotten) -> None:
    """The edge has forgotten its keys, or cannot."""
    request = system.shredding.pop(event.ref, None)
    if request is not None and isinstance(doing := request.begun, Shredding):  # else nobody waits any more
        doing.found = event
        assert doing.forgetting is not None
        wake(system, doing.forgetting)
