"""Processes that came back with the journal get their models back, and go on.

The kernel makes a call of its own for each of them. It waits as programs' calls do: until the model is in memory, or, if
the model cannot be had, until the driver starts again.
"""

from __future__ import annotations

from collections import deque

from llmasos.kernel import desk, pieces
from llmasos.kernel.devices import steps
from llmasos.kernel.life import finish_decoding, refuse_caller
from llmasos.kernel.marks import changed, stale
from llmasos.kernel.models.loading import want_image
from llmasos.kernel.objects.image import RESIDENT, Image
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, sleep, wait, wake
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish, Right
from llmasos.syscalls.table import Call, Entry


class Rejoin(Call[None]):
    """Give a process its model back."""

    pid: int


_ENTRY = Entry(0, "rejoin", "kernel", Rejoin, None, (), Right(0), True, False, ())


class Returning(pieces.Piecework):
    """The kernel's own calls that have been woken, and go on in the events to come."""

    def __init__(self) -> None:
        self.woken: deque[tuple[Request, SyscallError | None]] = deque()

    def some(self, system: System) -> bool:
        for _ in range(min(pieces.AT_ONCE, len(self.woken))):
            system.woken.append(self.woken.popleft())
        return bool(self.woken)


class Return(desk.Begun):
    """A process on its way back to its model."""

    def __init__(self, process: LLMProcess) -> None:
        self.process = process

    def undo(self, system: System, error: SyscallError) -> None:
        """Keep the process, with its log and its decode, until the driver starts again: another boot may have the model.
        Only calls that wait for it fail."""
        process = self.process
        if not process.stranded:
            _tell(system, process, error)
        sleep(system, _request(system, process), wait(process.device.up))


def begin(system: System, process: LLMProcess) -> None:
    """Begin to bring a process's model into memory; the process goes on with it."""
    stale(system, process)
    system.woken.append((_request(system, process), None))


def spread(system: System) -> None:
    """Very many calls have been woken. Of the kernel's own let some go on now, and the others in the next events, between
    which programs are heard."""
    own, later = 0, Returning()
    for _ in range(len(system.woken)):
        woken = system.woken.popleft()
        own += (mine := woken[0].program is system.own)
        (later.woken if mine and own > pieces.AT_ONCE else system.woken).append(woken)
    if later.woken:
        pieces.begin(system, later)


def _request(system: System, process: LLMProcess) -> Request:
    return Request(system.own, process.pid, Rejoin(process.pid), _ENTRY, system.own.group, begun=Return(process))


def rejoin(system: System, request: Request, call: Rejoin) -> Waiting | None:
    process = system.table.find(call.pid)
    if not isinstance(process, LLMProcess) or process.is_zombie() or process.saved is None:
        return None
    head, device = process.saved, process.device
    model = head.model if system.config.models.get(head.model, head.model) == head.path else head.path
    if device.config.kind != head.kind:
        raise Errno.ENODEV(f"there is no device of kind {head.kind} any more")
    image = want_image(system, device, model, head.path, head.dtype, process.owner)
    process.stranded = ""
    if image.state != RESIDENT:
        return wait(image.loaded)
    image.check_tokens(process.log)  # not its group's limits: they may be lower by now, and do not take what it had
    length = len(process.log)
    if length > image.context:
        why = f"its context has {length} tokens, {image.name} on {device.name} has room for {image.context}"
        raise Errno.E2BIG(why)
    _go_on(system, process, image)
    return None


def _go_on(system: System, process: LLMProcess, image: Image) -> None:
    process.image, process.saved = image, None
    changed(system, process)
    image.join(process, system.now)
    decoding = process.decoding
    if decoding is not None and decoding.append and (finish := process.used_up) is not Finish.NONE:
        finish_decoding(system, process, finish)
    steps.boundary(system, process)


def _tell(system: System, process: LLMProcess, error: SyscallError) -> None:
    process.stranded = error.reason_for(operator=process.owner.operator)
    reason = f"process {process.pid} has not got its model back: {process.stranded}"
    system.log("error", f"journal: {reason}; it stays, and its log can be read", process)
    changed(system, process)
    refuse_caller(system, process, Errno.EIO, reason)
    wake(system, process.pausing, Errno.EBUSY(reason))
    wake(system, process.reading)
