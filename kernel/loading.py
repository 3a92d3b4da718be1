"""Bringing models into a device's memory: probe (what would it need?), decide, load; and taking them out again.

The driver reads files and owns tensors; what is loaded, with how many frames, and what has to go for it is decided here.
Waiters are told once, with the image or with the error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivers.protocol import Failed, Load, Loaded, Probe, Probed, Progress, Unload
from kernel.device import DOWN, HOPELESS, UP, Device
from kernel.memory.frames import FramePool
from kernel.memory.swap import SwapSpace
from kernel.memory.victims import make_victims
from kernel.memory.weights import LOADING, RESIDENT, Image, Ready
from syscalls.errno import Errno, SyscallError

if TYPE_CHECKING:
    from kernel.core import Kernel

GiB = float(1 << 30)
_MOST_SLOTS = 1 << 20  # of an image in one tier


def want_image(kernel: Kernel, device: Device, model: str, dtype: str, ready: Ready, now: float) -> Image:
    """Call `ready` with the model's image once it is in memory (now, if it is), or with the error."""
    path = kernel.config.models.get(model, model)
    _check_device(device, dtype)
    image = device.find_image(path, dtype)
    if image is None:
        image = Image(kernel.new_image_id(), model, path, {dtype}, used=now)
        device.images[image.id] = image
        image.waiters.append(ready)
        kernel.log(
            now, "info", f"{device.name}: loading {model}{f' in {dtype}' if dtype else ''} from {path}"
        )
        if device.state == UP:
            _probe(kernel, device, image, dtype)
    elif image.state == RESIDENT:
        ready(image)
    else:
        image.waiters.append(ready)
    return image


def forget_waiter(device: Device, ready: Ready) -> None:
    """Somebody no longer waits for a model; one that nobody wants and nothing has begun to load is forgotten too."""
    for image in list(device.images.values()):
        if ready in image.waiters:
            image.waiters.remove(ready)
            if device.state != UP and not image.waiters and not image.users and image.state != RESIDENT:
                del device.images[image.id]


def _check_device(device: Device, dtype: str) -> None:
    if device.state == DOWN and device.failures >= HOPELESS:
        raise SyscallError(Errno.ENODEV, f"device {device.name} does not start: {device.error}")
    if device.hello is not None and dtype and dtype not in device.hello.dtypes:
        raise SyscallError(
            Errno.ENOTSUP,
            f"device {device.name} does not offer dtype {dtype!r}; it has: {', '.join(device.hello.dtypes)}",
        )


def reload_images(kernel: Kernel, device: Device, now: float) -> None:
    """A driver (re)started: everything its predecessor had, or was asked for, is loaded again; the unused is let go."""
    for image in list(device.images.values()):
        if not image.users and not image.waiters:
            del device.images[image.id]
        elif image.probed is None:
            dtype = next(iter(image.requested))
            try:
                _check_device(device, dtype)
            except SyscallError as error:
                give_up(kernel, device, image, error, now)
            else:
                _probe(kernel, device, image, dtype)
        else:
            _load(kernel, device, image)


def _probe(kernel: Kernel, device: Device, image: Image, dtype: str) -> None:
    ref = image.ref = kernel.ref()
    device.answers[ref] = lambda message: _probed(kernel, device, image, message)
    kernel.send(device, Probe(ref, image.path, dtype))


def _probed(kernel: Kernel, device: Device, image: Image, message: object) -> None:
    now = kernel.now
    if isinstance(message, Failed):
        give_up(kernel, device, image, SyscallError(message.errno, message.reason), now)
        return
    if not isinstance(message, Probed):
        raise SyscallError(Errno.EPROTO, f"a probe was answered by {type(message).__name__}")
    if not image.waiters and not image.users:  # who asked has gone
        device.images.pop(image.id, None)
        return
    image.probed, image.dtype = message, message.dtype
    twin = next(
        (i for i in device.images.values() if i is not image and i.answers_to(image.path, message.dtype)),
        None,
    )
    if twin is not None:  # asked for as "the default dtype" and by that dtype's name
        _merge(device, image, twin)
        return
    try:
        frames = _make_room(kernel, device, image, message, now)
    except SyscallError as error:
        give_up(kernel, device, image, error, now)
        return
    image.pool = FramePool(frames, message.block_bytes)
    image.victims = make_victims(device.config.victims)
    image.swap = SwapSpace(_slots(device, image, message), message.block_bytes)
    _load(kernel, device, image)


def _merge(device: Device, image: Image, twin: Image) -> None:
    del device.images[image.id]
    twin.requested |= image.requested
    assert not image.users, "who waits for a model does not map it yet"
    waiters, image.waiters = image.waiters, []
    if twin.state == RESIDENT:
        for ready in waiters:
            ready(twin)
    else:
        twin.waiters.extend(waiters)


def _make_room(kernel: Kernel, device: Device, image: Image, probed: Probed, now: float) -> int:
    """The number of frames the image gets; idle models are evicted for it, longest unused first. ENOMEM: it would not fit
    without all of them either, and none is evicted."""
    frames = device.image_kv_bytes // probed.block_bytes if probed.block_bytes else 0
    if frames < 1:
        raise SyscallError(
            Errno.ENOMEM,
            f"a frame of {image.name}'s KV is {probed.block_bytes} bytes, and a model may have {device.image_kv_bytes} "
            f"on {device.name}; give the device more KV memory (--kv-bytes)",
        )
    others = [i for i in device.images.values() if i is not image and i.probed is not None]
    going: list[Image] = []
    while True:
        kv = sum(i.kv_bytes for i in others) + frames * probed.block_bytes
        weights = (
            sum(i.weight_bytes or (i.probed.weight_bytes if i.probed else 0) for i in others)
            + probed.weight_bytes
        )
        tier = device.hello.tiers[0].size if device.hello and device.hello.tiers else 0
        if kv <= device.kv_bytes and (not tier or weights + kv <= tier):
            for idle in going:
                evict_image(kernel, device, idle, now)
            return frames
        unused = [i for i in others if i.unused]
        if not unused:
            short = (
                f"KV memory: {kv / GiB:.2f} GiB wanted with it, {device.kv_bytes / GiB:.2f} GiB there"
                if kv > device.kv_bytes
                else f"memory: {(weights + kv) / GiB:.2f} GiB wanted with it, {tier / GiB:.2f} GiB there"
            )
            raise SyscallError(
                Errno.ENOMEM,
                f"{image.name} does not fit on {device.name} beside the models in use ({short}); end their processes",
            )
        going.append(min(unused, key=lambda i: i.used))
        others.remove(going[-1])


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


def _load(kernel: Kernel, device: Device, image: Image) -> None:
    image.state, image.progress = LOADING, 0.0
    ref = image.ref = kernel.ref()
    device.answers[ref] = lambda message: _loaded(kernel, device, image, ref, message)
    kernel.send(device, Load(ref, image.id, image.path, image.dtype, image.pool.count, image.swap.counts))


def _loaded(kernel: Kernel, device: Device, image: Image, ref: int, message: object) -> None:
    now = kernel.now
    if isinstance(message, Progress):
        image.progress = message.fraction
        device.answers[ref] = lambda later: _loaded(kernel, device, image, ref, later)
    elif isinstance(message, Failed):
        give_up(kernel, device, image, SyscallError(message.errno, message.reason), now)
    elif isinstance(message, Loaded):
        image.state, image.progress = RESIDENT, 1.0
        image.weigh(message.weight_bytes)
        image.guesses = message.guesses
        image.deaths = 0
        image.used = now
        kernel.log(
            now, "info",
            f"{device.name}: {image.name} is in memory: {image.dtype}, {message.weight_bytes / 1e6:.1f} MB of weights, "
            f"{image.pool.count} frames of KV",
        )  # fmt: skip
        kernel.emit(now, "mem.pagein", device=device.name, amount=message.weight_bytes, detail=image.name)
        waiters, image.waiters = image.waiters, []
        for ready in waiters:
            ready(image)
        for process in list(image.users.values()):
            kernel.settle(process, now)
    else:
        raise SyscallError(Errno.EPROTO, f"a load was answered by {type(message).__name__}")


def give_up(kernel: Kernel, device: Device, image: Image, error: SyscallError, now: float) -> None:
    """The model cannot be had. Those who wait for it are told; processes that ran it before a restart are ended."""
    from kernel.lifecycle import exit_process

    kernel.log(now, "error", f"{device.name}: {image.name}: {error}")
    device.images.pop(image.id, None)
    waiters, image.waiters = image.waiters, []
    for ready in waiters:
        ready(error)
    for process in list(image.users.values()):
        exit_process(kernel, process, 1, f"its model could not be loaded again: {error.reason}", now)


def give_up_device(kernel: Kernel, device: Device, now: float) -> None:
    """The driver does not start: nobody is left waiting for a model on it (the restarts go on)."""
    error = SyscallError(Errno.ENODEV, f"device {device.name} does not start: {device.error}")
    for image in list(device.images.values()):
        waiters, image.waiters = image.waiters, []
        for ready in waiters:
            ready(error)
        if not image.users:
            del device.images[image.id]
    waiting, device.when_up = device.when_up, []
    for go in waiting:
        go(error)


def evict_image(kernel: Kernel, device: Device, image: Image, now: float) -> None:
    """Take a model that no process uses out of memory."""
    del device.images[image.id]
    ref = kernel.ref()
    device.answers[ref] = lambda message: None
    kernel.send(device, Unload(ref, image.id))
    kernel.log(now, "info", f"{device.name}: {image.name} ({image.dtype}) is evicted")
    kernel.emit(now, "mem.evict", device=device.name, amount=image.weight_bytes, detail=image.name)
