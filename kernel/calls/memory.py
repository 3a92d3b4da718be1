"""The memory family: models pagein evict advise."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from llmasos.kernel import desk
from llmasos.kernel.calls.info import model_info
from llmasos.kernel.desk import PARKED
from llmasos.kernel.marks import dirty
from llmasos.kernel.models.loading import evict_image, forget_waiter, hint_image, take_hint_back, want_image
from llmasos.kernel.models.paging import allotment
from llmasos.kernel.objects.image import LOADING, RESIDENT, Image
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Advice, ModelInfo
from llmasos.syscalls.table import Advise, Evict, Pagein

if TYPE_CHECKING:
    from llmasos.kernel.objects.device import Device


def models(system: System, request: Request) -> list[ModelInfo]:
    rows = [model_info(image, device.name) for device in system.devices.values() for image in device.images.values()]
    loaded = {row.path for row in rows}
    known = system.config.models.items()
    return rows + [ModelInfo(name, path) for name, path in known if path not in loaded]


def pagein(system: System, request: Request) -> object:
    call = cast(Pagein, request.call)
    device = system.device_named(call.device)

    def ready(image: Image | SyscallError) -> None:
        if isinstance(image, SyscallError):
            desk.fail(system, request, image.errno, image.reason)
        else:
            desk.answer(system, request, model_info(image, device.name))

    desk.park(request, lambda: forget_waiter(system, device, ready))
    want_image(system, device, call.model, call.dtype, ready)
    return PARKED


def evict(system: System, request: Request) -> object:
    call = cast(Evict, request.call)
    device = system.device_named(call.device)
    found = _known(system, device, call.model, call.dtype)
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
        _evict(system, device, found)
        return None

    def after_step() -> None:
        _evict(system, device, [i for i in found if device.images.get(i.id) is i and not i.pinned])
        desk.answer(system, request, None)

    device.after_step.append(after_step)
    return desk.park(request, lambda: device.after_step.remove(after_step))


def _evict(system: System, device: Device, images: list[Image]) -> None:
    for image in images:
        image.hinted = False
        if image.state == RESIDENT or not (image.mapped or image.waiters or image.state == LOADING):
            evict_image(system, device, image)


def _known(system: System, device: Device, model: str, dtype: str) -> list[Image]:
    """The images of a model on a device, or ENOENT."""
    path = system.config.models.get(model, model)
    found = [i for i in device.images.values() if i.path == path and (not dtype or i.answers_to(path, dtype))]
    if not found:
        there = ", ".join(f"{i.name} ({i.dtype or 'loading'})" for i in device.images.values()) or "none"
        wanted = f"{model} in {dtype}" if dtype else model
        raise SyscallError(Errno.ENOENT, f"{wanted} is not in the memory of {device.name}; models there: {there}")
    return found


def advise(system: System, request: Request) -> object:
    call = cast(Advise, request.call)
    device = system.device_named(call.device)
    match call.advice:
        case Advice.WILLNEED | Advice.PIN:
            return _hint(system, request, device)
        case Advice.DONTNEED:
            found = _known(system, device, call.model, call.dtype)
            if pinned := [image.name for image in found if image.pinned]:
                raise SyscallError(Errno.EBUSY, f"{pinned[0]} is pinned; advise NORMAL first")
            for image in found:
                image.unneeded, image.hinted = True, False
                if not (image.mapped or image.waiters) and image.state == RESIDENT:
                    evict_image(system, device, image)
        case Advice.NORMAL:
            for image in _known(system, device, call.model, call.dtype):
                image.unneeded = image.hinted = image.pinned = False
            dirty(system, device)  # others may have waited for what was pinned
    return None


def _hint(system: System, request: Request, device: Device) -> object:
    call = cast(Advise, request.call)

    def known(image: Image | SyscallError) -> None:
        if isinstance(image, SyscallError):
            desk.fail(system, request, image.errno, image.reason)
            return
        if call.advice is Advice.PIN:
            try:
                _pin(device, image)
            except SyscallError as error:
                take_hint_back(device, image)
                desk.fail(system, request, error.errno, error.reason)
                return
        desk.answer(system, request, None)

    desk.park(request, lambda: forget_waiter(system, device, known))
    hint_image(system, device, call.model, call.dtype, known)
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
