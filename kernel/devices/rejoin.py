"""Processes that the journal has brought back get their models back, and go on."""

from __future__ import annotations

from llmasos.kernel import desk
from llmasos.kernel.devices import steps
from llmasos.kernel.life import finish_decoding
from llmasos.kernel.marks import touch
from llmasos.kernel.models.loading import want_image
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.settle import settle
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish


def rejoin(system: System, process: LLMProcess) -> None:
    """Have the model of a process brought into memory, and the process go on with it."""
    head, device = process.saved, process.device
    assert head is not None

    def ready(image: Image | SyscallError) -> None:
        if process.is_zombie() or process.saved is None:
            return
        try:
            if isinstance(image, SyscallError):
                raise image
            image.check_tokens(process.log)
            process.group.check_weights(image.id, image.weight_bytes, image.name)
            if len(process.log) > image.context:  # a limit may be lower than what there was when it was set
                raise SyscallError(
                    Errno.E2BIG,
                    f"its context has {len(process.log)} tokens, {image.name} on {device.name} has room for "
                    f"{image.context}",
                )
        except SyscallError as error:
            _lose(system, process, error)
        else:
            _go_on(system, process, image)

    model = head.model if system.config.models.get(head.model, head.model) == head.path else head.path
    try:
        if device.config.kind != head.kind:
            raise SyscallError(Errno.ENODEV, f"there is no device of kind {head.kind} any more")
        image = want_image(system, device, model, head.dtype, ready)
    except SyscallError as error:
        _lose(system, process, error)
        return
    image.used = system.now
    settle(system, process)


def _go_on(system: System, process: LLMProcess, image: Image) -> None:
    process.image, process.saved = image, None
    touch(system, process)
    image.join(process)
    decoding = process.decoding
    if decoding is not None and decoding.append:
        if process.budget_used:
            finish_decoding(system, process, Finish.BUDGET)
        elif len(process.log) >= process.context:
            finish_decoding(system, process, Finish.CONTEXT)
    steps.boundary(system, process)


def _lose(system: System, process: LLMProcess, error: SyscallError) -> None:
    """A process cannot have its model, for now. It stays, with its log and its decode: another boot may have the model.
    Only those who wait for it are told."""
    process.lost = error.reason
    reason = f"process {process.pid} has not got its model back: {error.reason}"
    system.log("error", f"journal: {reason}; it stays, and its log can be read")
    touch(system, process)
    decoding = process.decoding
    if decoding is not None and decoding.request is not None:
        request, decoding.request = decoding.request, None
        desk.fail(system, request, Errno.EIO, reason)
    deferred, process.deferred = process.deferred, []
    for request in deferred:
        desk.fail(system, request, Errno.EBUSY, reason)
    settle(system, process)


def retry(system: System, device: Device) -> None:
    """A driver has come up: those of its device who could not have their model may have it now."""
    for process in list(system.table):
        if not isinstance(process, LLMProcess) or not process.lost or process.device is not device:
            continue
        if process.saved is not None and device.config.kind == process.saved.kind:
            process.lost = ""
            rejoin(system, process)
