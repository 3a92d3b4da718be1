"""Models go into a device's memory and out of it: probe (what would it need?), load, evict.

The driver reads files and owns tensors. This file decides what is loaded and with how many frames; paging.py decides
which model makes room for which. Calls wait on a model's channels: `known` until it has been probed, `loaded` until it is
in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec import structs

from llmasos.drivers.protocol import Abandon, Done, DropWeights, Failed, Load, Loaded, Measured, Probe, Probed, Unload
from llmasos.kernel import audit
from llmasos.kernel.clock import SECOND, nanoseconds, seconds
from llmasos.kernel.events import AuditLine
from llmasos.kernel.life import exit_process, stop_suspect
from llmasos.kernel.marks import cancel_outs, dirty, freed, want
from llmasos.kernel.memory.frames import FramePool
from llmasos.kernel.memory.swap import SwapSpace
from llmasos.kernel.models import paging
from llmasos.kernel.objects.device import UP, Ask, Device, no_device
from llmasos.kernel.objects.image import EVICTED, LOADING, RESIDENT, Image
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.outward import of_driver
from llmasos.kernel.pieces import stale_all
from llmasos.kernel.settle import note_fault, settle_stale
from llmasos.kernel.state import System
from llmasos.kernel.wait import wake
from llmasos.syscalls.errno import Errno, SyscallError

GiB = float(1 << 30)
_MOST_SLOTS = 1 << 20  # of an image in one tier
_LASTING = (Errno.ENOENT, Errno.ENOEXEC, Errno.ENOTSUP, Errno.EPERM)
_RETRY_MOST = 5 * SECOND  # between two tries to page a model in


def want_image(system: System, device: Device, model: str, path: str, dtype: str, owner: Owner) -> Image:
    """Find the image of a model that a call of `owner` wants in memory. Unless it is RESIDENT, the call waits for
    `loaded`."""
    image = _known_image(system, device, model, path, dtype, owner)
    if image.state != RESIDENT:
        if image.lasting:  # the caller is told what the files are now
            image.retry_at = system.now
        want(system, device, image)
    return image


def hint_image(system: System, device: Device, model: str, path: str, dtype: str, owner: Owner) -> Image:
    """Have the model paged in once that takes nothing from models that run. Until it is probed, the call waits for
    `known`."""
    image = _known_image(system, device, model, path, dtype, owner)
    image.hinted = image.state != RESIDENT
    image.unneeded = False
    want(system, device, image)
    return image


def _known_image(system: System, device: Device, model: str, path: str, dtype: str, owner: Owner) -> Image:
    """Find the image of the model in `path`, which was asked for as `model`, or make one; probe_or_drop asks the driver
    about it. ENOMEM if it is known not to fit."""
    check_device(device, dtype)
    image = device.find_image(path, dtype)
    if image is None:
        if system.owners.parts > 1 and not owner.operator:
            raise Errno.EPERM(f"{model} is not in memory, and under a partition only the operator brings models there")
        known = (name for name, known in system.config.models.items() if known == path)
        name = model if owner.operator else next(known, path)  # not as one user calls it: others see it too
        image = Image(system.new_image_id(), name, path, {dtype}, used=system.now)
        device.images[image.id] = image
        system.log("info", f"{device.name}: loading {model}{f' in {dtype}' if dtype else ''} from {path}")
    image.owners.add(owner)
    check_fits(device, image)
    return image


def probe_or_drop(system: System, device: Device) -> None:
    """Ask the driver about models that are not known yet, and drop those that nobody waits for any more. The driver may
    abandon one that it has begun to read."""
    for image in list(device.images.values()):
        if image.state == RESIDENT:
            continue
        if image.ref in device.asked:
            if not (image.needed or image.abandoned):
                image.abandoned = True
                system.send(device, Abandon(image.ref))
        elif not (image.needed or image.held):
            del device.images[image.id]
        elif image.probed is None and device.state == UP:
            _probe(system, device, image)


def check_device(device: Device, dtype: str) -> None:
    if device.hopeless:
        raise no_device(device)
    if device.hello is not None and dtype and dtype not in device.hello.dtypes:
        offered = ", ".join(device.hello.dtypes)
        raise Errno.ENOTSUP(f"device {device.name} does not offer dtype {dtype!r}; it has: {offered}")


def _probe(system: System, device: Device, image: Image) -> None:
    dtype = next(iter(image.requested))
    try:
        check_device(device, dtype)
    except SyscallError as error:  # another driver runs by now than when the model was asked for
        fail_image(system, device, image, error)
        return
    image.ref, image.abandoned = system.ref(), False
    request = Probe(image.ref, image.path, dtype)
    system.ask(device, request, Probed, came=_probed, about=image, wrong=partial(misfit, device, dtype))


def misfit(device: Device, dtype: str, probed: Probed) -> str:
    """Why an answer about a model in `dtype` ("": the device's default for it) cannot be, or ""."""
    if dtype and probed.dtype != dtype:
        return f"is of dtype {dtype}, and"
    return "" if device.hello is None or probed.dtype in device.hello.dtypes else "names a dtype that its driver has not"


def _probed(system: System, device: Device, ask: Ask[Probed]) -> None:
    image, message = ask.about, ask.answer
    assert isinstance(image, Image)
    if isinstance(message, Failed):
        if not (message.errno is Errno.EINTR and image.needed):  # else it was abandoned, and is asked about again
            error = of_driver(message.errno, message.reason, {image.path: image.name})
            fail_image(system, device, image, error)
        return
    assert isinstance(message, Probed)
    if not image.needed:  # the caller has gone
        device.images.pop(image.id, None)
        return
    image.probed, image.dtype = message, message.dtype
    others = (i for i in device.images.values() if i is not image and i.answers_to(image.path, message.dtype))
    if (twin := next(others, None)) is not None:  # asked for as "the default dtype" and by that dtype's name
        _merge(device, image, twin)
        wake(system, image.known)
        wake(system, image.loaded)
        return
    try:
        for idle in plan_room(device, image, message):
            evict_image(system, device, idle)
    except SyscallError as error:
        fail_image(system, device, image, error)
        return
    image.victims = system.sources.victims(device.config.victims)
    image.swap = SwapSpace(_slots(device, message.block_bytes), message.block_bytes)
    image.state = EVICTED
    wake(system, image.known)
    want(system, device, image)


def _merge(device: Device, image: Image, twin: Image) -> None:
    """Pass on to its twin what was asked of the image. Calls that wait for the image find the twin when they go on."""
    assert not image.users, "a process that waits for a model does not map it yet"
    del device.images[image.id]
    twin.requested |= image.requested
    twin.owners |= image.owners
    twin.hinted = twin.hinted or (image.hinted and twin.state != RESIDENT)
    twin.unneeded = twin.unneeded and not image.hinted
    twin.pinned = twin.pinned or image.pinned


def plan_room(device: Device, image: Image, probed: Probed) -> list[Image]:
    """Give a new image its frames. Returns the models that must go for them: unused ones, the longest unused first.
    ENOMEM: there is no memory for the frames, or none for the weights even when all that may go has gone."""
    frames = device.image_kv_bytes // probed.block_bytes if probed.block_bytes else 0
    if frames < 1:
        raise Errno.ENOMEM(
            f"a frame of {image.name}'s KV is {probed.block_bytes} bytes, and a model may have {device.image_kv_bytes} "
            f"on {device.name}; give the device more KV memory (--kv-bytes)"
        )
    others = [i for i in device.images.values() if i is not image and i.probed is not None]
    going: list[Image] = []
    while (kv := sum(i.kv_bytes for i in others) + frames * probed.block_bytes) > device.kv_bytes:
        unused = [i for i in others if not (i.mapped or i.loaded or i.pinned) and i.state != LOADING]
        if not unused:
            raise Errno.ENOMEM(
                f"{image.name} does not fit on {device.name} beside the models in use (KV memory: {kv / GiB:.2f} GiB "
                f"wanted with it, {device.kv_bytes / GiB:.2f} GiB there); end their processes, or give the device more "
                "(--kv-bytes)"
            )
        going.append(min(unused, key=lambda i: i.used))
        others.remove(going[-1])
    image.pool = FramePool(frames, probed.block_bytes, len(device.queues))
    check_fits(device, image, [other for other in others if other.mapped or other.loaded])
    return going


def check_fits(device: Device, image: Image, in_use: Sequence[Image] = ()) -> None:
    """ENOMEM if the image, or one of those `in_use`, has been probed but could not be paged in (again), because of models
    that have been pinned since. One that is still in memory fails, too: it would be evicted, and not come back."""
    for one in (image, *in_use):
        if one.probed is not None and paging.allotment(device, one) is None:
            raise Errno.ENOMEM(_too_big(device, image, one))


def _too_big(device: Device, image: Image, one: Image) -> str:
    """Why the image does not fit: there is no memory for the weights of `one`, which is the image or one in use."""
    room = paging.room_for(device, one)
    beside = " beside what is pinned" if any(i.pinned for i in device.images.values() if i is not one) else ""
    name = one.name if image.knows(one) else "a model of others"
    if one is not image:
        return (
            f"{image.name} does not fit on {device.name}: its KV would leave {room / GiB:.2f} GiB for the weights of "
            f"{name}, which is in use and has {one.size / GiB:.2f} GiB; end its processes"
        )
    least = one.probed.stream_bytes if one.probed is not None else 0
    streaming = (
        f"streamed it would need {least / GiB:.2f} GiB"
        if least
        else "it cannot be streamed: only what the CPU's native decoder runs can, in int8 or int4, installed"
    )
    return (
        f"{one.name} in {one.dtype} has {one.size / GiB:.2f} GiB of weights, {device.name} has {room / GiB:.2f} GiB of "
        f"memory for them{beside} ({streaming}); give it more (--weight-bytes), or take a smaller dtype or model"
    )


def _slots(device: Device, frame_bytes: int) -> list[int]:
    """Places for frames in each lower tier, for a new image: half of what the others have left there."""
    spaces = [image.swap for image in device.images.values()]
    slots: list[int] = []
    if len(device.queues) > 1:  # whether there is a place would depend on others
        return slots
    for number, size in enumerate(device.tier_bytes):
        used = sum(space.counts[number] * space.frame_bytes for space in spaces if number < len(space.counts))
        slots.append(min(_MOST_SLOTS, max(0, size - used) // 2 // max(1, frame_bytes)))
    return slots


def page(system: System, device: Device) -> None:
    """Load the wanted models that can be loaded now, after evicting those that make room for them."""
    while (move := paging.decide(system, device)) is not None:
        image, room, victims = move
        for victim in victims:
            evict_image(system, device, victim)
        settle_stale(system)
        _load(system, device, image, room)


def _load(system: System, device: Device, image: Image, room: int) -> None:
    image.state, image.progress = LOADING, 0.0
    image.allotted, image.asked, image.wanted_since = room, system.now, None
    image.ref, image.abandoned = system.ref(), False
    again, image.held = image.held, True
    frames, slots, part = image.pool.count, image.swap.counts, room if room < image.size else 0
    message = Load(image.ref, image.id, image.path, image.dtype, frames, slots, again, part, system.config.trust)
    system.ask(device, message, Loaded, came=_loaded if again else _loaded_afresh, about=image)


def _loaded_afresh(system: System, device: Device, ask: Ask[Loaded]) -> None:
    if isinstance(ask.answer, Failed) and isinstance(ask.about, Image):
        ask.about.held = False
    _loaded(system, device, ask)


def _loaded(system: System, device: Device, ask: Ask[Loaded]) -> None:
    image, message = ask.about, ask.answer
    assert isinstance(image, Image)
    if isinstance(message, Failed):
        image.lasting = message.broken or message.errno in _LASTING
        if message.errno is Errno.EPERM:
            details = {"device": device.name, "dtype": image.dtype}
            line = AuditLine("load", audit.REFUSALS, system.owners.operator.name, 0, 0, {"model": image.path}, details)
            audit.refuse(system, structs.replace(line, result=message.errno.name, reason=message.reason))
        _load_failed(system, device, image, of_driver(message.errno, message.reason, {image.path: image.name}))
        return
    assert isinstance(message, Loaded)
    image.state, image.progress = RESIDENT, 1.0
    image.weigh(min(message.weight_bytes, image.probed.weight_bytes) if image.probed else message.weight_bytes)
    image.guesses = message.guesses
    image.deaths = image.failures = image.steps = 0
    image.used = image.resident_since = system.now
    image.paging_time = system.now - image.asked
    image.allotted = image.allotted if image.streamed else image.size
    image.pageins += 1
    image.hinted = image.faulted = image.lasting = image.changed = False
    if message.changed:
        files_changed(system, device, image)
        _lose_kv(system, device, image)
    streamed = f"{message.resident_bytes / 1e6:.1f} MB of them in memory, " if image.streamed else ""
    system.log(
        "info",
        f"{device.name}: {image.name} is in memory: {image.dtype}, {message.weight_bytes / 1e6:.1f} MB of weights, "
        f"{streamed}{image.pool.count} frames of KV",
    )
    system.emit("mem.pagein", device=device.name, amount=message.weight_bytes, detail=image.name)
    wake(system, image.loaded)
    stale_all(system, image.users.values())
    if system.config.idle_seconds and system.owners.parts == 1:
        system.timers.at(
            system.now + nanoseconds(system.config.idle_seconds), _leave_idle, (device, image.id, image.pageins)
        )


def measured(system: System, device: Device, message: Measured) -> None:
    """The driver says what a model is that it has loaded."""
    image = device.images.get(message.image)
    if image is None or (image.digest, image.trusted) == (message.digest, message.trusted):
        return
    image.digest, image.trusted = message.digest, message.trusted
    why = f" ({image.trusted})" if image.trusted else ""
    system.log("info", f"{device.name}: {image.name} is sha256:{image.digest}{why}")
    audit.note(
        system,
        "loaded",
        "models",
        who=system.owners.operator.name,
        on={"model": image.path},
        details={"device": device.name, "dtype": image.dtype, "digest": image.digest},
    )


def files_changed(system: System, device: Device, image: Image) -> None:
    """The files of a model that processes have are not what was loaded any more: a line of the audit log, with the digest
    of what was. What is loaded in their place is another line's."""
    details = {"device": device.name, "dtype": image.dtype, "digest": image.digest, "processes": len(image.users)}
    audit.note(system, "changed", "models", who=system.owners.operator.name, on={"model": image.path}, details=details)


def _leave_idle(system: System, loaded: tuple[Device, int, int]) -> None:
    """Take a model out of memory that nobody has run for long. Its processes stay; it comes back with the next decode. Of
    the model the timer has the number only: one that has gone with its driver is not kept until then."""
    device, number, pagein = loaded
    if (image := device.images.get(number)) is None or image.state != RESIDENT or image.pageins != pagein:
        return
    patience = nanoseconds(system.config.idle_seconds)
    due = max(image.ran, image.used) + patience
    if due <= system.now and not (image.active or image.imports or image.loaded or image.pinned):
        evict_image(system, device, image)
    else:
        system.timers.at(due if due > system.now else system.now + patience, _leave_idle, loaded)


def _lose_kv(system: System, device: Device, image: Image) -> None:
    """The weights that were loaded differ from those that were dropped, so all KV of the image is useless. The image is
    in no step."""
    cancel_outs(system, device, image=image.id)
    image.lose_kv()
    freed(system)
    system.log(
        "warning",
        f"{device.name}: the files of {image.name} in {image.path} have changed since it was loaded: its processes go on "
        "with the new weights, and their contexts are computed again",
    )


def _load_failed(system: System, device: Device, image: Image, error: SyscallError) -> None:
    """Calls that asked for a new model fail at once. A model that has processes is tried again: a disk may be busy,
    memory short, a file server away for a while. When all tries have failed for long, the processes that want to run end.
    If the files are broken, the tries are for the processes alone, since somebody may repair them; calls that only wait
    for the model fail."""
    image.state, image.allotted = EVICTED, 0
    if error.errno is Errno.EINTR and image.needed:  # somebody has come after it was abandoned
        want(system, device, image)
        return
    if not image.users:
        fail_image(system, device, image, error)
        return
    image.failures += 1
    failures = image.failures
    if failures == 1:
        image.failing_since = system.now
    text = f"{device.name}: {image.name} could not be paged in: {error}"
    if image.lasting:
        image.hinted = False
        wake(system, image.loaded, error)
    if system.now < image.failing_since + nanoseconds(system.config.pagein_seconds):
        delay = min(nanoseconds(system.config.restart_first) << min(failures - 1, 64), _RETRY_MOST)
        image.retry_at = system.now + delay
        system.log("warning", f"{text}; next try in {seconds(delay):g} s ({failures} failures in a row)")
        want(system, device, image)
        for process in image.active.values():  # those that came while it was on its way learn of it now
            note_fault(system, process)
        return
    system.log("error", text)
    image.failures, image.hinted, image.faulted = 0, False, False
    wake(system, image.loaded, error)
    for_seconds = f"for {seconds(system.now - image.failing_since):.0f} s ({failures} tries)"
    reason = f"its model could not be paged in {for_seconds}: {error.reason}"
    for process in list(image.active.values()):
        exit_process(system, process, 1, reason)
    if not image.needed:
        _remove(system, device, image)


def fail_image(system: System, device: Device, image: Image, error: SyscallError) -> None:
    """Remove a model that cannot be loaded and that no process has. Calls that wait for it fail."""
    unpinned = "; it is pinned no longer" if image.pinned else ""
    level = "info" if error.errno is Errno.EINTR else "error"
    system.log(level, f"{device.name}: {image.name}: {error}{unpinned}")
    _remove(system, device, image)
    wake(system, image.known, error)
    wake(system, image.loaded, error)


def suspend(system: System, device: Device, image: Image, error: SyscallError) -> None:
    """Loading the model kills the driver: calls that wait for it fail, its processes are stopped. When one of them
    continues, the model is tried again, with no step beside it."""
    if not image.users:
        fail_image(system, device, image, error)
        return
    image.deaths, image.hinted, image.pinned = 1, False, False
    wake(system, image.loaded, error)
    for process in image.users.values():
        stop_suspect(system, process, error.reason_for(operator=process.owner.operator))


def fail_device(system: System, device: Device) -> None:
    """The driver does not start: fail the calls that wait for it or for a model on it. The restarts go on."""
    error = no_device(device)
    for image in list(device.images.values()):
        wake(system, image.known, error)
        wake(system, image.loaded, error)
        if not image.users:
            del device.images[image.id]
    wake(system, device.up, error)


def evict_image(system: System, device: Device, image: Image) -> None:
    """Take the weights of a model, which is in no step, out of memory; the whole model if no process uses it."""
    system.log("info", f"{device.name}: {image.name} ({image.dtype}) is evicted")
    system.emit("mem.evict", device=device.name, amount=image.allotted, detail=image.name)
    system.counters["evictions"] += 1
    dirty(system, device)
    if not image.mapped:
        _remove(system, device, image)
        return
    image.state, image.allotted = EVICTED, 0
    image.evictions += 1
    stale_all(system, (image.active | image.starved).values(), holds=True)
    image.starved.clear()
    system.ask(device, DropWeights(system.ref(), image.id), Done, came=_check_done)


def _remove(system: System, device: Device, image: Image) -> None:
    device.images.pop(image.id, None)
    if image.held:  # the driver has its frames still
        image.held = False
        system.ask(device, Unload(system.ref(), image.id), Done, came=_check_done)


def _check_done(system: System, device: Device, ask: Ask[Done]) -> None:
    if isinstance(ask.answer, Failed):
        raise Errno.EPROTO(f"weights could not be taken out of memory: {ask.answer.reason}")
