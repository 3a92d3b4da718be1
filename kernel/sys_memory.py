"""The memory family: models pagein evict."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from kernel.loading import evict_image, forget_waiter, want_image
from kernel.memory.weights import Image
from kernel.request import Request
from kernel.syscall import PARKED, handles
from syscalls.errno import Errno, SyscallError
from syscalls.records import ModelInfo
from syscalls.table import Evict, Models, Pagein

if TYPE_CHECKING:
    from kernel.core import Kernel


@handles(Models)
def models(kernel: Kernel, request: Request, now: float) -> list[ModelInfo]:
    rows = [image.info(device.name) for device in kernel.devices.values() for image in device.images.values()]
    loaded = {row.path for row in rows}
    known = kernel.config.models.items()
    return rows + [ModelInfo(name, path) for name, path in known if path not in loaded]


@handles(Pagein)
def pagein(kernel: Kernel, request: Request, now: float) -> object:
    call = cast(Pagein, request.call)
    device = kernel.device_named(call.device)

    def ready(image: Image | SyscallError) -> None:
        if isinstance(image, SyscallError):
            kernel.fail(request, image.errno, image.reason)
        else:
            kernel.answer(request, image.info(device.name))

    kernel.park(request, lambda: forget_waiter(device, ready))
    want_image(kernel, device, call.model, call.dtype, ready, now)
    return PARKED


@handles(Evict)
def evict(kernel: Kernel, request: Request, now: float) -> None:
    call = cast(Evict, request.call)
    device = kernel.device_named(call.device)
    path = kernel.config.models.get(call.model, call.model)
    found = [
        i
        for i in device.images.values()
        if i.path == path and (not call.dtype or i.answers_to(path, call.dtype))
    ]
    if not found:
        there = ", ".join(i.name for i in device.images.values()) or "none"
        raise SyscallError(
            Errno.ENOENT, f"{call.model} is not in the memory of {device.name}; models there: {there}"
        )
    for image in found:
        if not image.unused:
            pids = ", ".join(str(pid) for pid in [*image.users, *(image.imports.keys() - image.users)][:8])
            why = f"processes {pids} run it, or are on their way there" if pids else "it is being loaded"
            raise SyscallError(Errno.EBUSY, f"{image.name} cannot be evicted from {device.name}: {why}")
    for image in found:
        evict_image(kernel, device, image, now)
