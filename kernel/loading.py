"""Bringing models into a device's memory: probe (what would it need?), load; and taking them out again.

The driver reads files and owns tensors; what is loaded, with how many frames, is decided here, and in paging.py what goes
for what. Waiters are told once, with the image or with the error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivers.protocol import Abandon, Done, Failed, Load, Loaded, Probe, Probed, Progress, Shed, Unload
from kernel import paging
from kernel.device import UP, Device, no_device
from kernel.memory.frames import FramePool
from kernel.memory.swap import SwapSpace
from kernel.memory.victims import make_victims
from kernel.memory.weights import EVICTED, LOADING, RESIDENT, Image, Ready
from syscalls.errno import Errno, SyscallError

if TYPE_CHECKING:
    from kernel.core import Kernel

GiB = float(1 << 30)
_MOST_SLOTS = 1 << 20  # of an image in one tier
_LASTING = (Errno.ENOENT, Errno.ENOEXEC, Errno.ENOTSUP)
_RETRY_MOST = 5.0  # seconds between two tries to page a model in


def want_image(kernel: Kernel, device: Device, model: str, dtype: str, ready: Ready, now: float) -> Image:
    """Call `ready` with the model's image once it is in memory (now, if it is), or with the error."""
    image = known_image(kernel, device, model, dtype, now)
    check_fits(device, image)
    if image.state == RESIDENT:
        ready(image)
    else:
        image.waiters.append(ready)
        if image.lasting:  # whoever comes is told what the files are now
            image.retry_at = now
        paging.want(kernel, device, image, now)
    return image


def hint_image(kernel: Kernel, device: Device, model: str, dtype: str, ready: Ready, now: float) -> Image:
    """Have the model paged in when that costs nobody who runs anything. `ready` is called once it is known what it needs
    (now, if it is), or with the error."""
    image = known_image(kernel, device, model, dtype, now)
    check_fits(device, image)
    image.hinted = image.state != RESIDENT
    image.unneeded = False
    paging.want(kernel, device, image, now)
    if image.probed is not None:
        ready(image)
    else:
        image.askers.append(ready)
    return image


def take_hint_back(device: Device, image: Image) -> None:
    """It is not to be paged in unless somebody waits for it."""
    image.hinted = False
    if image.state == EVICTED and not image.held and not _needed(image):
        del device.images[image.id]


def known_image(kernel: Kernel, device: Device, model: str, dtype: str, now: float) -> Image:
    """The model's image; a new one is asked about."""
    path = kernel.config.models.get(model, model)
    check_device(device, dtype)
    image = device.find_image(path, dtype)
    if image is None:
        image = Image(kernel.new_image_id(), model, path, {dtype}, used=now)
        device.images[image.id] = image
        kernel.log(
            now, "info", f"{device.name}: loading {model}{f' in {dtype}' if dtype else ''} from {path}"
        )
        if device.state == UP:
            _probe(kernel, device, image, dtype)
    return image


def forget_waiter(kernel: Kernel, device: Device, ready: Ready) -> None:
    """Somebody no longer waits for a model. One that nobody wants is forgotten too, or, where the driver has begun to
    read it, given up if that is still possible."""
    for image in list(device.images.values()):
        for line in (image.waiters, image.askers):
            if ready in line:
                line.remove(ready)
                if _needed(image):
                    continue
                on_its_way = image.state == LOADING and device.state == UP
                if on_its_way:
                    kernel.send(device, Abandon(image.ref))
                elif not image.held:
                    del device.images[image.id]


def _needed(image: Image) -> bool:
    """Would anybody miss it, were it forgotten?"""
    return bool(image.mapped or image.waiters or image.askers or image.hinted or image.pinned)


def check_device(device: Device, dtype: str) -> None:
    if device.hopeless:
        raise no_device(device)
    if device.hello is not None and dtype and dtype not in device.hello.dtypes:
        raise SyscallError(
            Errno.ENOTSUP,
            f"device {device.name} does not offer dtype {dtype!r}; it has: {', '.join(device.hello.dtypes)}",
        )


def reload_images(kernel: Kernel, device: Device, now: float) -> None:
    """A driver (re)started: everything its predecessor had, or was asked for, is loaded again; the unused is let go."""
    for image in list(device.images.values()):
        if not _needed(image):
            del device.images[image.id]
        elif image.probed is None:
            dtype = next(iter(image.requested))
            try:
                check_device(device, dtype)
            except SyscallError as error:
                give_up(kernel, device, image, error, now)
            else:
                _probe(kernel, device, image, dtype)
        else:
            paging.want(kernel, device, image, now)


def _probe(kernel: Kernel, device: Device, image: Image, dtype: str) -> None:
    ref = image.ref = kernel.ref()
    device.answers[ref] = lambda message: _probed(kernel, device, image, message)
    kernel.send(device, Probe(ref, image.path, dtype))


def _probed(kernel: Kernel, device: Device, image: Image, message: object) -> None:
    now = kernel.now
    if isinstance(message, Failed):
        if message.errno is Errno.EINTR and _needed(image):  # somebody has come after it was abandoned
            _probe(kernel, device, image, next(iter(image.requested)))
            return
        give_up(kernel, device, image, SyscallError(message.errno, message.reason), now)
        return
    if not isinstance(message, Probed):
        raise SyscallError(Errno.EPROTO, f"a probe was answered by {type(message).__name__}")
    if not _needed(image):  # who asked has gone
        device.images.pop(image.id, None)
        return
    image.probed, image.dtype = message, message.dtype
    twin = next(
        (i for i in device.images.values() if i is not image and i.answers_to(image.path, message.dtype)),
        None,
    )
    if twin is not None:  # asked for as "the default dtype" and by that dtype's name
        _merge(kernel, device, image, twin)
        return
    try:
        _make_room(kernel, device, image, message, now)
    except SyscallError as error:
        give_up(kernel, device, image, error, now)
        return
    image.victims = make_victims(device.config.victims)
    image.swap = SwapSpace(_slots(device, image, message), message.block_bytes)
    image.state = EVICTED
    _tell_askers(image, image)
    paging.want(kernel, device, image, now)


def _tell_askers(image: Image, outcome: Image | SyscallError) -> None:
    askers, image.askers = image.askers, []
    for ready in askers:
        ready(outcome)


def _merge(kernel: Kernel, device: Device, image: Image, twin: Image) -> None:
    del device.images[image.id]
    twin.requested |= image.requested
    twin.hinted = twin.hinted or (image.hinted and twin.state != RESIDENT)
    twin.unneeded = twin.unneeded and not image.hinted
    twin.pinned = twin.pinned or image.pinned
    if twin.probed is not None:
        _tell_askers(image, twin)
    twin.askers += image.askers
    assert not image.users, "who waits for a model does not map it yet"
    waiters, image.waiters = image.waiters, []
    if twin.state == RESIDENT:
        for ready in waiters:
            ready(twin)
    else:
        twin.waiters.extend(waiters)
        paging.want(kernel, device, twin, kernel.now)


def _make_room(kernel: Kernel, device: Device, image: Image, probed: Probed, now: float) -> None:
    """Give the image its frames; models that nobody uses go for them. ENOMEM: it cannot be had, and none goes."""
    for idle in plan_room(device, image, probed):
        evict_image(kernel, device, idle, now)


def plan_room(device: Device, image: Image, probed: Probed) -> list[Image]:
    """Give the image, which is new, its frames; the models that have to go for them: such as nobody uses, longest unused
    first. ENOMEM: there is no memory for them, or none for its weights even when all that may go has gone."""
    frames = device.image_kv_bytes // probed.block_bytes if probed.block_bytes else 0
    if frames < 1:
        raise SyscallError(
            Errno.ENOMEM,
            f"a frame of {image.name}'s KV is {probed.block_bytes} bytes, and a model may have {device.image_kv_bytes} "
            f"on {device.name}; give the device more KV memory (--kv-bytes)",
        )
    others = [i for i in device.images.values() if i is not image and i.probed is not None]
    going: list[Image] = []
    while (kv := sum(i.kv_bytes for i in others) + frames * probed.block_bytes) > device.kv_bytes:
        unused = [i for i in others if not (i.mapped or i.waiters or i.pinned) and i.state != LOADING]
        if not unused:
            raise SyscallError(
                Errno.ENOMEM,
                f"{image.name} does not fit on {device.name} beside the models in use (KV memory: {kv / GiB:.2f} GiB "
                f"wanted with it, {device.kv_bytes / GiB:.2f} GiB there); end their processes, or give the device more "
                "(--kv-bytes)",
            )
        going.append(min(unused, key=lambda i: i.used))
        others.remove(going[-1])
    image.pool = FramePool(frames, probed.block_bytes)
    for one in (image, *(i for i in others if i.mapped or i.waiters)):
        if paging.allotment(device, one) is None:
            raise SyscallError(Errno.ENOMEM, _too_big(device, image, one))
    return going


def check_fits(device: Device, image: Image) -> None:
    """ENOMEM for a model that is known, but would not be let into memory (again), because of what has been pinned since;
    also while it is there still, or on its way: it would go for that, and not come back."""
    if image.probed is not None and paging.allotment(device, image) is None:
        raise SyscallError(Errno.ENOMEM, _too_big(device, image, image))


def _too_big(device: Device, image: Image, one: Image) -> str:
    """Why the image cannot be had: there is no memory for the weights of `one`, itself or one in use."""
    room = paging.room_for(device, one)
    beside = " beside what is pinned" if any(i.pinned for i in device.images.values() if i is not one) else ""
    if one is not image:
        return (
            f"{image.name} does not fit on {device.name}: its KV would leave {room / GiB:.2f} GiB for the weights of "
            f"{one.name}, which is in use and has {one.size / GiB:.2f} GiB; end its processes"
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


def _slots(device: Device, image: Image, probed: Probed) -> list[int]:
    """Places for frames in each lower tier: half of what the other images have left there."""
    slots = []
    for number, size in enumerate(device.tier_bytes):
        used = sum(
            other.swap.counts[number] * other.probed.block_bytes
            for other in device.images.values()
            if other is not image and other.probed is not None and number < len(other.swap.counts)
        )
        slots.append(min(_MOST_SLOTS, max(0, size - used) // 2 // max(1, probed.block_bytes)))
    return slots


def page(kernel: Kernel, device: Device, now: float) -> None:
    """Bring in what is wanted and can be brought in now, and take out what goes for it."""
    while (move := paging.decide(kernel, device, now)) is not None:
        for victim in move.victims:
            evict_image(kernel, device, victim, now)
        _load(kernel, device, move.image, move.room)


def _load(kernel: Kernel, device: Device, image: Image, room: int) -> None:
    image.state, image.progress = LOADING, 0.0
    image.allotted, image.asked, image.wanted_since = room, kernel.now, None
    kept, image.held = image.held, True
    ref = image.ref = kernel.ref()
    device.answers[ref] = lambda message: _loaded(kernel, device, image, ref, kept, message)
    kernel.send(
        device,
        Load(
            ref, image.id, image.path, image.dtype, image.pool.count, image.swap.counts, kept,
            room if room < image.size else 0,
        ),
    )  # fmt: skip


def _loaded(kernel: Kernel, device: Device, image: Image, ref: int, kept: bool, message: object) -> None:
    now = kernel.now
    if isinstance(message, Progress):
        image.progress = message.fraction
        device.answers[ref] = lambda later: _loaded(kernel, device, image, ref, kept, later)
    elif isinstance(message, Failed):
        image.held = kept
        image.lasting = message.broken or message.errno in _LASTING
        _load_failed(kernel, device, image, SyscallError(message.errno, message.reason), now)
    elif isinstance(message, Loaded):
        image.state, image.progress = RESIDENT, 1.0
        image.weigh(message.weight_bytes)
        image.guesses = message.guesses
        image.deaths = image.failures = image.steps = 0
        image.used = image.resident_since = now
        image.paging_seconds = now - image.asked
        image.allotted = image.allotted if image.streamed else image.size
        image.pageins += 1
        image.hinted = image.faulted = image.lasting = False
        if message.changed:
            _lose_kv(kernel, device, image, now)
        kernel.log(
            now, "info",
            f"{device.name}: {image.name} is in memory: {image.dtype}, {message.weight_bytes / 1e6:.1f} MB of weights, "
            + (f"{message.resident_bytes / 1e6:.1f} MB of them in memory, " if image.streamed else "")
            + f"{image.pool.count} frames of KV",
        )  # fmt: skip
        kernel.emit(now, "mem.pagein", device=device.name, amount=message.weight_bytes, detail=image.name)
        _tell_waiters(image, image)
        for process in list(image.users.values()):
            kernel.settle(process, now)
    else:
        raise SyscallError(Errno.EPROTO, f"a load was answered by {type(message).__name__}")


def _lose_kv(kernel: Kernel, device: Device, image: Image, now: float) -> None:
    """The weights that have come in are not those that went: what was computed with these is of no use. The image is in
    no step."""
    device.outs = [move for move in device.outs if move.image != image.id]
    image.lose_kv()
    kernel.freed()
    kernel.log(
        now,
        "warning",
        f"{device.name}: the files of {image.name} in {image.path} have changed since it was loaded: its processes go on "
        "with the new weights, and their contexts are computed again",
    )


def _load_failed(kernel: Kernel, device: Device, image: Image, error: SyscallError, now: float) -> None:
    """Who asked for a new model is told at once. One that has processes is tried again, as a disk may be busy, memory
    short or a file server away for a while; when all tries have failed for long those that want to run are ended. Where
    its files are broken it is tried for its processes alone, since somebody may put them right: who only waits for the
    model is told."""
    from kernel.lifecycle import exit_process

    if error.errno is Errno.EINTR and _needed(image):  # somebody has come after it was abandoned
        image.state, image.allotted = EVICTED, 0
        paging.want(kernel, device, image, now)
        return
    if not image.users:
        give_up(kernel, device, image, error, now)
        return
    image.state, image.allotted = EVICTED, 0
    image.failures += 1
    failures = image.failures
    if failures == 1:
        image.failing_since = now
    text = f"{device.name}: {image.name} could not be paged in: {error}"
    if image.lasting:
        image.hinted = False
        _tell_waiters(image, error)
    if now < image.failing_since + kernel.config.pagein_seconds:
        delay = min(kernel.config.restart_first * 2.0 ** min(failures - 1, 64), _RETRY_MOST)
        image.retry_at = now + delay
        kernel.log(now, "warning", f"{text}; next try in {delay:g} s ({failures} failures in a row)")
        paging.want(kernel, device, image, now)
        for process in image.active.values():  # who came while it was on its way finds it out now
            paging.follow(kernel, process, now)
        return
    kernel.log(now, "error", text)
    image.failures, image.hinted, image.faulted = 0, False, False
    _tell_waiters(image, error)
    for_seconds = f"for {now - image.failing_since:.0f} s ({failures} tries)"
    reason = f"its model could not be paged in {for_seconds}: {error.reason}"
    for process in list(image.active.values()):
        exit_process(kernel, process, 1, reason, now)
    if not _needed(image):
        _forget(kernel, device, image)


def _tell_waiters(image: Image, outcome: Image | SyscallError) -> None:
    waiters, image.waiters = image.waiters, []
    for ready in waiters:
        ready(outcome)


def _forget(kernel: Kernel, device: Device, image: Image) -> None:
    device.images.pop(image.id, None)
    if image.held:  # the driver has its frames still
        _unload(kernel, device, image)


def give_up(kernel: Kernel, device: Device, image: Image, error: SyscallError, now: float) -> None:
    """The model cannot be had. Those who wait for it are told; processes that ran it before a restart are ended."""
    from kernel.lifecycle import exit_process

    unpinned = "; it is pinned no longer" if image.pinned else ""
    level = "info" if error.errno is Errno.EINTR else "error"
    kernel.log(now, level, f"{device.name}: {image.name}: {error}{unpinned}")
    _forget(kernel, device, image)
    _tell_askers(image, error)
    _tell_waiters(image, error)
    for process in list(image.users.values()):
        exit_process(kernel, process, 1, f"its model could not be loaded again: {error.reason}", now)


def give_up_device(kernel: Kernel, device: Device, now: float) -> None:
    """The driver does not start: nobody is left waiting for a model on it (the restarts go on)."""
    error = no_device(device)
    for image in list(device.images.values()):
        _tell_askers(image, error)
        _tell_waiters(image, error)
        if not image.users:
            del device.images[image.id]
    waiting, device.when_up = device.when_up, []
    for go in waiting:
        go(error)


def evict_image(kernel: Kernel, device: Device, image: Image, now: float) -> None:
    """Take the weights of a model out of memory, which is in no step. If no process uses it, it goes whole."""
    kernel.log(now, "info", f"{device.name}: {image.name} ({image.dtype}) is evicted")
    kernel.emit(now, "mem.evict", device=device.name, amount=image.allotted, detail=image.name)
    kernel.counters["evictions"] += 1
    kernel.dirty(device)
    if not image.mapped:
        del device.images[image.id]
        if image.held:
            _unload(kernel, device, image)
        return
    image.state, image.allotted = EVICTED, 0
    image.evictions += 1
    waiting = image.active | image.starved
    image.starved.clear()
    ref = kernel.ref()
    device.answers[ref] = lambda message: _is_done(message, "a shed")
    kernel.send(device, Shed(ref, image.id))
    for process in waiting.values():
        kernel.settle(process, now)


def _unload(kernel: Kernel, device: Device, image: Image) -> None:
    image.held = False
    ref = kernel.ref()
    device.answers[ref] = lambda message: _is_done(message, "an unload")
    kernel.send(device, Unload(ref, image.id))


def _is_done(message: object, what: str) -> None:
    if not isinstance(message, Done):
        why = f": {message.reason}" if isinstance(message, Failed) else ""
        raise SyscallError(Errno.EPROTO, f"{what} was answered by {type(message).__name__}{why}")
