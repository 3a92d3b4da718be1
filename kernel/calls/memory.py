"""The memory family: models pagein evict advise."""

from __future__ import annotations

from llmasos.kernel.calls.info import model_info
from llmasos.kernel.marks import dirty
from llmasos.kernel.models.loading import evict_image, hint_image, want_image
from llmasos.kernel.models.paging import allotment
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import LOADING, RESIDENT, Image
from llmasos.kernel.objects.request import Request
from llmasos.kernel.rights import is_shown, knows_model
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Advice, ModelInfo
from llmasos.syscalls.table import Advise, Evict, Models, Pagein


def models(system: System, request: Request, call: Models) -> list[ModelInfo]:
    """Row 60 of the table, `Models`."""
    program = request.program
    rows = [
        model_info(system, program, image, device.name)
        for device in system.devices.values()
        for image in device.images.values()
        if knows_model(system, program, image)
    ]
    if program.confined:
        return rows
    loaded = {row.path for row in rows}
    return rows + [ModelInfo(name, path) for name, path in system.config.models.items() if path not in loaded]


def pagein(system: System, request: Request, call: Pagein, device: Device, path: str) -> ModelInfo | Waiting:
    """Row 61 of the table, `Pagein`."""
    image = want_image(system, device, call.model, path, call.dtype, request.program.owner)
    return model_info(system, request.program, image, device.name) if image.state == RESIDENT else wait(image.loaded)


def evict(system: System, request: Request, call: Evict, device: Device, path: str) -> Waiting | None:
    """Row 62 of the table, `Evict`."""
    found = _known(system, request, device, call.model, path, call.dtype)
    for image in found:
        if why := _stays(system, request, image, call.force):
            raise Errno.EBUSY(f"{image.name} cannot be evicted from {device.name}: {why}")
    if device.in_flight is not None and any(p.image in found for p in device.in_flight.processes):
        return wait(device.between_steps)
    for image in found:
        image.hinted = False
        if image.state == RESIDENT or not image.mapped:
            evict_image(system, device, image)
    return None


def _stays(system: System, request: Request, image: Image, force: bool) -> str:
    """Why an image cannot be evicted, or "" if it can."""
    if image.state == LOADING or image.loaded or image.known:
        return "it is being loaded"
    if image.pinned:
        return "it is pinned; advise NORMAL first"
    if image.mapped and not force:
        view = system.table.view(request.program.owner)
        seen = [pid for pid in [*image.users, *(image.imports.keys() - image.users)] if pid in view]
        pids = ", ".join(map(str, seen[:8])) or "of others"
        return f"processes {pids} run it or are on their way to; with `force` it goes until they want to run"
    return ""


def _known(system: System, request: Request, device: Device, model: str, path: str, dtype: str) -> list[Image]:
    """The images of a model on a device, or ENOENT."""
    shown = [i for i in device.images.values() if is_shown(system, request.program.owner, i)]
    found = [i for i in shown if i.path == path and (not dtype or i.answers_to(path, dtype))]
    if not found:
        there = ", ".join(f"{i.name} ({i.dtype or 'loading'})" for i in shown) or "none"
        wanted = f"{model} in {dtype}" if dtype else model
        raise Errno.ENOENT(f"{wanted} is not in the memory of {device.name}; models there: {there}")
    return found


def advise(system: System, request: Request, call: Advise, device: Device, path: str) -> Waiting | None:
    """Row 65 of the table, `Advise`."""
    if call.advice in (Advice.WILLNEED, Advice.PIN):
        image = hint_image(system, device, call.model, path, call.dtype, request.program.owner)
        if image.probed is None:
            return wait(image.known)
        if call.advice is Advice.PIN:
            _pin(system, device, image)
        return None
    found = _known(system, request, device, call.model, path, call.dtype)
    if call.advice is Advice.NORMAL:
        for image in found:
            image.unneeded = image.hinted = image.pinned = False
        dirty(system, device)  # others may have waited for what was pinned
        return None
    if pinned := [image.name for image in found if image.pinned]:
        raise Errno.EBUSY(f"{pinned[0]} is pinned; advise NORMAL first")
    for image in found:
        image.unneeded, image.hinted = True, False
        if not (image.mapped or image.loaded) and image.state == RESIDENT:
            evict_image(system, device, image)
    return None


def _pin(system: System, device: Device, image: Image) -> None:
    """ENOMEM if it, or another one in use, would not fit then."""
    was, image.pinned = image.pinned, True
    for one in device.images.values():
        if (one is image or one.mapped or one.loaded) and allotment(device, one) is None:
            image.pinned, image.hinted = was, False
            dirty(system, device)
            raise Errno.ENOMEM(
                f"{image.name} cannot be pinned on {device.name}: too little memory would be left for "
                f"{'it' if one is image else one.name} (--weight-bytes gives more)"
            )
