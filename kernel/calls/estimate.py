"""estimate: what a model would take, before anything is loaded.

The driver reads the model's configuration, as for a page-in; what follows from it is decided by the same code that loads
(loading.plan_room, paging.allotment, paging.who_goes), on an image that is in no device's table, so nothing changes. The
figures are those of the moment: who comes or goes meanwhile changes them.
"""

from __future__ import annotations

from typing import cast

from llmasos.drivers.protocol import BLOCK_TOKENS, Abandon, Failed, Probe, Probed
from llmasos.kernel import desk
from llmasos.kernel.desk import PARKED
from llmasos.kernel.devices.transfer import ask
from llmasos.kernel.memory.page_table import blocks
from llmasos.kernel.models import paging
from llmasos.kernel.models.loading import check_device, check_fits, plan_room
from llmasos.kernel.objects.device import UP, Device, no_device
from llmasos.kernel.objects.image import EVICTED, RESIDENT, Image
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import EstimateInfo, Going
from llmasos.syscalls.table import Estimate

_NEW = -1  # the id of an image that is in no device's table


def estimate(system: System, request: Request) -> object:
    call = cast(Estimate, request.call)
    device = system.device_named(call.device)
    path = system.config.models.get(call.model, call.model)
    check_device(device, call.dtype)
    known = device.find_image(path, call.dtype)
    if known is not None and known.probed is not None:
        return _figures(device, known, call.context, system.now)

    refs: list[int] = []  # of the probe, once it is on its way

    def probe(error: SyscallError | None) -> None:
        try:
            if error is not None:
                raise error
            check_device(device, call.dtype)
        except SyscallError as refusal:
            desk.fail(system, request, refusal.errno, refusal.reason)
        else:
            refs.append(system.ref())
            ask(system, device, Probe(refs[0], path, call.dtype), probed, died)

    def probed(message: object) -> None:
        if request.answered:
            return
        if isinstance(message, Failed):
            desk.fail(system, request, message.errno, message.reason)
        elif isinstance(message, Probed):
            twin = device.find_image(path, message.dtype)  # known under that dtype's name, or as the default one
            if twin is None or twin.probed is None:
                twin = Image(_NEW, call.model, path, {call.dtype}, EVICTED, message.dtype, message)
            desk.answer(system, request, _figures(device, twin, call.context, system.now))
        else:
            died("it did not speak the protocol")
            raise SyscallError(Errno.EPROTO, f"a probe was answered by {type(message).__name__}")

    def died(reason: str) -> None:
        if not request.answered:
            why = f"the driver of {device.name} died while it looked at {call.model} ({reason}); call again"
            desk.fail(system, request, Errno.ERESTART, why)

    def undo() -> None:
        if probe in device.when_up:
            device.when_up.remove(probe)
        elif device.state == UP and refs and refs[0] in device.answers:
            system.send(device, Abandon(refs[0]))

    desk.park(request, undo)
    if device.state == UP:
        probe(None)
    elif device.hopeless:
        raise no_device(device)
    else:
        device.when_up.append(probe)
    return PARKED


def _figures(device: Device, image: Image, wanted: int, now: float) -> EstimateInfo:
    """Of an image that has been probed; in no device's table, if it is asked about for the first time."""
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
            going = paging.who_goes(device, image, room, going, now)
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
    return EstimateInfo(
        name=image.name,
        path=image.path,
        dtype=image.dtype,
        device=device.name,
        state=image.shown_state if known else "absent",
        architecture=probed.architecture,
        parameters=probed.parameters,
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
        going=[
            Going(i.name, i.dtype, i.allotted, 0 if i.mapped else i.kv_bytes, len(i.users), bool(i.active)) for i in going
        ],
        refused=refused,
    )
