"""The memory family: models pagein evict advise."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from kernel.models.loading import evict_image, forget_waiter, hint_image, take_hint_back, want_image
from kernel.models.paging import allotment
from kernel.objects.image import LOADING, RESIDENT, Image
from kernel.objects.request import Request
from kernel.syscall import PARKED, handles
from syscalls.errno import Errno, SyscallError
from syscalls.records import Advice, ModelInfo
from syscalls.table import Advise, Evict, Models, Pagein

if TYPE_CHECKING:
    from kernel.core import Kernel
    from kernel.objects.device import Device


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

    kernel.park(request, lambda: forget_waiter(kernel, device, ready))
    want_image(kernel, device, call.model, call.dtype, ready, now)
    return PARKED


@handles(Evict)
def evict(kernel: Kernel, request: Request, now: float) -> object:
    call = cast(Evict, request.call)
    device = kernel.device_named(call.device)
    found = _known(kernel, device, call.model, call.dtype)
    for image in found:
        pids = ", ".join(str(pid) for pid in [*image.users, *(image.imports.keys() - image.users)][:8])
        why = (
            "it is being loaded"
            if image.state == LOADING or image.waiters or image.askers
            else "it is pinned; advise NORMAL first"
            if image.pinned
            else f"processes {pids} run it or are on their way to; with `force` it goes until they want to run"
            if image.mapped and not call.force
            else ""
        )
        if why:
            raise SyscallError(Errno.EBUSY, f"{image.name} cannot be evicted from {device.name}: {why}")
    if device.in_flight is None or not any(p.image in found for p in device.in_flight.processes):
        _evict(kernel, device, found, now)
        return None

    def after_step(then: float) -> None:
        _evict(kernel, device, [i for i in found if device.images.get(i.id) is i and not i.pinned], then)
        kernel.answer(request, None)

    device.after_step.append(after_step)
    return kernel.park(request, lambda: device.after_step.remove(after_step))


def _evict(kernel: Kernel, device: Device, images: list[Image], now: float) -> None:
    for image in images:
        image.hinted = False
        if image.state == RESIDENT or not (image.mapped or image.waiters or image.state == LOADING):
            evict_image(kernel, device, image, now)


def _known(kernel: Kernel, device: Device, model: str, dtype: str) -> list[Image]:
    """The images of a model on a device, or ENOENT."""
    path = kernel.config.models.get(model, model)
    found = [i for i in device.images.values() if i.path == path and (not dtype or i.answers_to(path, dtype))]
    if not found:
        there = ", ".join(f"{i.name} ({i.dtype or 'loading'})" for i in device.images.values()) or "none"
        wanted = f"{model} in {dtype}" if dtype else model
        raise SyscallError(
            Errno.ENOENT, f"{wanted} is not in the memory of {device.name}; models there: {there}"
        )
    return found


@handles(Advise)
def advise(kernel: Kernel, request: Request, now: float) -> object:
    call = cast(Advise, request.call)
    device = kernel.device_named(call.device)
    match call.advice:
        case Advice.WILLNEED | Advice.PIN:
            return _hint(kernel, request, device, now)
        case Advice.DONTNEED:
            found = _known(kernel, device, call.model, call.dtype)
            if pinned := [image.name for image in found if image.pinned]:
                raise SyscallError(Errno.EBUSY, f"{pinned[0]} is pinned; advise NORMAL first")
            for image in found:
                image.unneeded, image.hinted = True, False
                if not (image.mapped or image.waiters) and image.state == RESIDENT:
                    evict_image(kernel, device, image, now)
        case Advice.NORMAL:
            for image in _known(kernel, device, call.model, call.dtype):
                image.unneeded = image.hinted = image.pinned = False
            kernel.dirty(device)  # others may have waited for what was pinned
    return None


def _hint(kernel: Kernel, request: Request, device: Device, now: float) -> object:
    call = cast(Advise, request.call)

    def known(image: Image | SyscallError) -> None:
        if isinstance(image, SyscallError):
            kernel.fail(request, image.errno, image.reason)
            return
        if call.advice is Advice.PIN:
            try:
                _pin(device, image)
            except SyscallError as error:
                take_hint_back(device, image)
                kernel.fail(request, error.errno, error.reason)
                return
        kernel.answer(request, None)

    kernel.park(request, lambda: forget_waiter(kernel, device, known))
    hint_image(kernel, device, call.model, call.dtype, known, now)
    return PARKED


def _pin(device: Device, image: Image) -> None:
    """ENOMEM if it, or another one in use, would not fit then."""
    was, image.pinned = image.pinned, True
    for one in device.images.values():
        if (one is image or one.mapped or one.waiters) and allotment(device, one) is None:
            image.pinned = was
            raise SyscallError(
                Errno.ENOMEM,
                f"{image.name} cannot be pinned on {device.name}: too little memory would be left for "
                f"{'it' if one is image else one.name} (--weight-bytes gives more)",
            )
