"""estimate: what a model would take, before anything is loaded.

The driver reads the model's configuration, as for a page-in; what follows from it is decided by the same code that loads
(loading.plan_room, paging.allotment, paging.who_goes), on an image that is in no device's table, so nothing changes. The
figures are those of the moment: models that come or go later change them.
"""

from __future__ import annotations

from functools import partial

from llmasos.drivers.protocol import BLOCK_TOKENS, Abandon, Probe, Probed
from llmasos.kernel import desk
from llmasos.kernel.calls.info import row
from llmasos.kernel.devices.transfer import ask
from llmasos.kernel.memory.page_table import blocks
from llmasos.kernel.models import paging
from llmasos.kernel.models.loading import check_device, check_fits, misfit, plan_room
from llmasos.kernel.objects.device import UP, Ask, Device
from llmasos.kernel.objects.image import EVICTED, RESIDENT, Image
from llmasos.kernel.objects.request import Request
from llmasos.kernel.rights import is_shown, knows_model
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import EstimateInfo, Going
from llmasos.syscalls.table import Estimate

_NEW = -1  # the id of an image that is in no device's table


class Probing(desk.Begun):
    """A question to a driver about a model that is not known yet."""

    def __init__(self, device: Device, asked: Ask[Probed]) -> None:
        self.device, self.asked = device, asked

    def undo(self, system: System, error: SyscallError) -> None:
        if self.asked.ref in self.device.asked:
            system.send(self.device, Abandon(self.asked.ref))


def estimate(system: System, request: Request, call: Estimate, device: Device, path: str) -> EstimateInfo | Waiting:
    """Row 66 of the table, `Estimate`."""
    check_device(device, call.dtype)
    image = _known(system, request, device, path, call.dtype)
    if image is not None:
        return _figures(system, request, device, image, call.context)
    if not isinstance(request.begun, Probing):
        if device.state != UP:
            return wait(device.up)
        probe = Probe(system.ref(), path, call.dtype)
        asked = ask(system, device, probe, Probed, wrong=partial(misfit, device, call.dtype))
        request.begun = Probing(device, asked)
        return wait(request.begun.asked.channel)
    probed = request.begun.asked.result(device, f"looked at {call.model}")
    image = _known(system, request, device, path, probed.dtype)  # under that dtype's name, or as the default one
    if image is None:
        image = Image(_NEW, call.model, path, {call.dtype}, EVICTED, probed.dtype, probed)
        image.owners.add(request.program.owner)
    return _figures(system, request, device, image, call.context)


def _known(system: System, request: Request, device: Device, path: str, dtype: str) -> Image | None:
    """The model, if it has been probed and its caller gets to know that it is there."""
    image = device.find_image(path, dtype)
    probed = image is not None and image.probed is not None
    return image if image is not None and probed and knows_model(system, request.program, image) else None


def _going(image: Image, shown: bool) -> Going:
    kv = 0 if image.mapped else image.kv_bytes
    name = image.name if shown else "(a model of others)"
    return Going(name, image.dtype, image.allotted, kv, len(image.users), bool(image.active))


def _figures(system: System, request: Request, device: Device, image: Image, wanted: int) -> EstimateInfo:
    """Of an image that has been probed. It is in no device's table if this is the first question about it."""
    probed = image.probed
    assert probed is not None
    known = image.id != _NEW
    going: list[Image] = []
    refused, room = "", 0
    try:
        if known:
            check_fits(device, image)
        else:
            going = plan_room(device, image, probed)
        room = paging.allotment(device, image) or 0
        if image.state == RESIDENT:
            room = image.allotted
        else:
            going = paging.who_goes(device, image, room, going, system.now)
    except SyscallError as error:
        refused = error.reason
    context = wanted or image.context or probed.context
    if not refused and context > image.context:
        what = "its window" if probed.context == image.context else f"what its KV memory on {device.name} holds"
        refused = f"a context of {context} tokens is too long: {image.context} is {what}"
    weights = image.size
    kv = blocks(context) * probed.block_bytes
    others = [i for i in device.images.values() if i.probed is not None]
    limit = device.weight_bytes
    return row(
        EstimateInfo,
        image,
        probed,
        device=device.name,
        state=image.shown_state if known else "absent",
        weight_bytes=weights,
        kv_bytes_1000=1000 * probed.block_bytes // BLOCK_TOKENS,
        window=probed.context,
        context=context,
        context_bytes=kv,
        total_bytes=weights + kv,
        pool_bytes=image.kv_bytes,
        pool_tokens=image.pool.count * BLOCK_TOKENS,
        resident_bytes=room,
        weight_limit=limit,
        weight_free=max(0, limit - sum(i.allotted for i in others)),
        kv_limit=device.kv_bytes,
        kv_free=max(0, device.kv_bytes - sum(i.kv_bytes for i in others)),
        going=[_going(i, is_shown(system, request.program.owner, i)) for i in going],
        refused=refused,
    )
