"""setsched: nice value and class of a process, and the device it lives on.

A move is a live migration of the pre-copying kind (Clark et al., NSDI 2005), made easy by a log that is only appended to.
The model is brought into memory on the other device, then the KV that the process has is exported to a file in memory
(drivers/parcel.py) and read into frames there, while the process runs on where it is. At a token boundary it changes
over; the few tokens that it has decoded meanwhile are computed again there.

Until that moment the process stays what it was, so a failure or a cancel only has to let go of what was prepared. KV on
its way is charged to the kernel's own group: a process that has its KV twice for a moment must not hit its group's limit.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from llmasos.drivers.protocol import LOGPROBS, Exported, Failed, Release
from llmasos.kernel import desk
from llmasos.kernel.calls.lookup import check_alone, check_model
from llmasos.kernel.calls.process import check_no_reserve, check_priority
from llmasos.kernel.devices.transfer import Coming, Stored, bring_in, check_able, send_out
from llmasos.kernel.life import leave_image
from llmasos.kernel.marks import changed, dirty, freed
from llmasos.kernel.models.loading import want_image
from llmasos.kernel.objects.device import UP, Ask, Device, no_device
from llmasos.kernel.objects.image import RESIDENT, Image
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.objects.request import Request
from llmasos.kernel.objects.reserve import Reserve, make_reserve
from llmasos.kernel.sched.realtime import check_reserve, grant, withdraw
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import SchedClass
from llmasos.syscalls.table import Setsched


class Moving(desk.Begun):
    """A process on its way to `target`. Each phase may find the world changed since the last one."""

    def __init__(self, process: LLMProcess, target: Device) -> None:
        self.process, self.source, self.target = process, process.device, target
        self.coming: Coming | None = None  # once its model is in memory there
        self.had = 0  # tokens whose KV there was when it was exported
        self.asked: Ask[Exported] | None = None  # for that
        self.exported = False
        self.file = ""  # in memory, with the KV
        self.over = False
        self.reserve: Reserve | None = None  # of a process that is to be REALTIME there

    def undo(self, system: System, error: SyscallError) -> None:
        """Leave nothing behind of what was prepared."""
        self.over, self.process.transition = True, None
        self.target.release_reserve(self.process.pid)
        if self.coming is not None:
            self.coming.drop(system)
        self.release(system)

    def release(self, system: System) -> None:
        """Give up the file in memory. It has died with the driver that held it, if that has."""
        file, self.file = self.file, ""
        if file and self.source.state == UP:
            system.send(self.source, Release(file))


def setsched(
    system: System, request: Request, call: Setsched, process: LLMProcess, device: Device | None
) -> Waiting | None:
    """Row 28 of the table, `Setsched`."""
    moving = request.begun
    if not isinstance(moving, Moving):
        reserve = _reserve(system, request, call, process, device or process.device)
        if device is None or device is process.device:
            _set(system, process, call, reserve)
            return None
        check_model(process)
        if process.saved is not None:
            return wait(process.boundary)
        check_alone(process, request)
        _check_up(device)
        process.transition, moving = request, Moving(process, device)
        request.begun, moving.reserve = moving, reserve
        if reserve is not None:  # nobody else may have it meanwhile
            device.reserves[process.pid] = reserve
    if waiting := _move(system, moving):
        return waiting
    if call.nice is not None or call.sched_class is not None or moving.reserve is not None:
        _set(system, process, call, moving.reserve)
    return None


def _reserve(system: System, request: Request, call: Setsched, process: LLMProcess, device: Device) -> Reserve | None:
    """What of the device's time the process is to have reserved. EPERM, EINVAL, EBUSY."""
    traits, old = process.traits, process.reserve
    stronger = [f"nice {call.nice}"] if call.nice is not None and call.nice < min(0, traits.nice) else []
    if (call.sched_class or traits.sched_class) is not SchedClass.REALTIME:
        check_no_reserve(call)
        if old is not None:
            check_alone(process, request)
        check_priority(request.program, *stronger)
        return None
    if old is not None and device is process.device and not (call.budget or call.period):
        check_priority(request.program, *stronger)
        return old
    check_alone(process, request)
    wanted = make_reserve(call.budget, call.period, old)
    if old is None or wanted.share > old.share:
        stronger.append("REALTIME" if old is None else "a greater budget")
    check_priority(request.program, *stronger)
    check_reserve(system, device, process.pid, wanted, request.program.owner)
    return wanted


def _set(system: System, process: LLMProcess, call: Setsched, reserve: Reserve | None) -> None:
    if call.nice is not None:
        process.traits = replace(process.traits, nice=call.nice)
    if reserve is None:
        withdraw(process)
        process.traits = replace(process.traits, sched_class=call.sched_class or process.traits.sched_class)
    elif reserve is not process.reserve:
        grant(system, process, process.device, reserve)
    process.device.queue_of(process).withdraw(process)  # its place there is another
    changed(system, process)
    system.emit("sched.set", process.pid, amount=process.traits.nice, detail=process.traits.sched_class.value)


def _check_up(device: Device) -> None:
    if device.hopeless:
        raise no_device(device)
    if device.state != UP:
        raise Errno.ERESTART(f"the driver of {device.name} is {device.state}; call again when it is up")


def _move(system: System, moving: Moving) -> Waiting | None:
    """Load the model, export the KV, import it, change over: from where the move is, as far as can be."""
    process, target = moving.process, moving.target
    if moving.coming is None:
        old = process.mapped
        image = want_image(system, target, process.traits.model, old.path, old.dtype, process.owner)
        if image.state != RESIDENT:
            return wait(image.loaded)
        moving.coming = Coming(target, image, process, process.table.like(system.groups.system))
    coming = moving.coming
    _check(moving, coming.image)
    if not moving.exported and (waiting := _export(system, moving, coming)):
        return waiting
    if waiting := bring_in(system, coming):
        return waiting
    moving.release(system)
    if process.running:
        return wait(process.boundary)
    _switch(system, moving, coming)
    return None


def _check(moving: Moving, image: Image) -> None:
    """Whether the process could live there, as far as can be told now; raises the reason why not."""
    process, target = moving.process, moving.target
    if target.state != UP or not image.held or target.images.get(image.id) is not image:
        raise Errno.ERESTART(
            f"the driver of {target.name} died while process {process.pid} was to move there, so it has stayed on "
            f"{moving.source.name}; call again"
        )
    decoding = process.decoding
    image.check_tokens(process.log)
    if process.context_with(image, process.traits.limits) < process.context:
        process.check_room(len(process.log) + (decoding is not None and decoding.append), image, target)
    if decoding is not None and decoding.logprobs and target.lacks(LOGPROBS):
        raise Errno.ENOTSUP(f"device {target.name} does not report the log-probabilities it is asked for")
    process.check_weights(image)


def _export(system: System, moving: Moving, coming: Coming) -> Waiting | None:
    """Have the KV written to a file in memory by the driver that has it, from a token boundary on."""
    process, source, asked = moving.process, moving.source, moving.asked
    if asked is None:
        if process.running:
            return wait(process.boundary)
        coming.log = process.log[:]
        moving.had = process.table.stored()[0]
        coming.reason = _why_not(moving, coming.image) if moving.had else ""
        if moving.had and not coming.reason:
            begun = send_out(system, process)
            if isinstance(begun, Waiting):
                return begun
            moving.asked, begun.came, begun.about = begun, _exported, moving
            return wait(begun.channel)
    elif isinstance(asked.answer, Failed | Exported):
        coming.reason = asked.answer.reason
    else:
        coming.reason = f"the driver of {source.name} died while it was to hand it over{asked.how(process.owner)}"
    moving.exported = True  # or it moves by its log alone
    return None


def _exported(system: System, device: Device, asked: Ask[Exported]) -> None:
    moving, message = asked.about, asked.answer
    assert isinstance(moving, Moving)
    if isinstance(message, Exported):
        moving.file = message.path
        if moving.over:
            moving.release(system)
        elif moving.coming is not None:
            moving.coming.stored = Stored(message.path, message.id, message.tokens)


def _why_not(moving: Moving, image: Image) -> str:
    """Why the other device cannot use the KV, as far as the kernel can see; "": its driver will find out."""
    source, target, old = moving.source, moving.target, moving.process.mapped
    try:
        check_able(source)
        check_able(target)
    except SyscallError as error:
        return error.reason
    if source.config.kind != target.config.kind:
        return f"a {target.config.kind} computes in another way than a {source.config.kind}"
    if old.frame_bytes != image.frame_bytes:
        return f"a frame has {old.frame_bytes} bytes on {source.name}, {image.frame_bytes} on {target.name}"
    return ""


def _switch(system: System, moving: Moving, coming: Coming) -> None:
    """The process lives on the other device from here on."""
    process, source, target, image = moving.process, moving.source, moving.target, coming.image
    table = coming.take_over()
    most = len(process.log) - (process.decoding is not None)  # the last token's logits are wanted
    table.cut(image.pool, min(most, _alike(coming.log, process.log, table.cached)))
    source.queue_of(process).withdraw(process)
    leave_image(system, process)
    dirty(system, source)
    came = table.cached
    table.hand_over(image.pool, process.group)
    if table.cached < came:
        coming.reason = coming.reason or f"group {process.group.path} may have no more"
    if moving.reserve is not None:
        grant(system, process, target, moving.reserve)
    else:
        withdraw(process)
    process.change_device(target)
    process.table, process.image, process.driver_log = table, image, 0
    process.over_limit, process.preempted, process.transition = None, False, None
    process.quantum_used, process.turn = 0, system.now
    image.join(process, system.now)
    changed(system, process)
    freed(system)
    dirty(system, target)
    lacking = table.cached < _alike(coming.log, process.log, moving.had)
    where = f"{source.name} to {target.name}"
    coming.tell(system, f"moved from {where}", (coming.reason or "others needed its frames") if lacking else "")
    system.emit("proc.move", process.pid, target.name, len(process.log), where)


def _alike(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """How many of the first `most` tokens two logs have in common."""
    most = min(most, len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
