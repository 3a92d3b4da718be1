"""checkpoint and restore: a process to a file, and a process from one.

The driver reads and writes the file: it has the KV, and the kernel must not wait for a disk. It serves its requests in
order, so an export has the frames as they were when it was sent (devices/transfer.py).

A restore looks at the file, has the model brought into memory, takes frames as far as nobody else wants them, and has the
KV read into them, in this order. Until all of that is done the process has no model, so no call can use it. Whatever goes
wrong with the KV, the log is there: what is missing is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from llmasos.drivers.protocol import Exported, Failed, Inspect, Inspected
from llmasos.kernel import desk
from llmasos.kernel.calls.lookup import check_shown
from llmasos.kernel.calls.process import modest, newborn
from llmasos.kernel.devices.transfer import Coming, Stored, ask, bring_in, check_able, send_out
from llmasos.kernel.journal.process_image import ProcessImage, read_image
from llmasos.kernel.journal.recorder import image_of
from llmasos.kernel.journal.records import traits_of
from llmasos.kernel.life import strike
from llmasos.kernel.marks import changed, dirty
from llmasos.kernel.memory.page_table import table_of
from llmasos.kernel.models.loading import want_image
from llmasos.kernel.objects.device import UP, Ask, Device, no_device
from llmasos.kernel.objects.image import RESIDENT
from llmasos.kernel.objects.log_records import LogRecords
from llmasos.kernel.objects.process import ROW_BYTES, Decoding, LLMProcess, Process, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.outward import called, of_driver
from llmasos.kernel.rights import told_all
from llmasos.kernel.state import System
from llmasos.kernel.tokens import log_of
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import CheckpointInfo, Finish, Limits
from llmasos.syscalls.table import Checkpoint, Names, Restore

# --- checkpoint -----------------------------------------------------------------------------------------------------


class Saving:
    """A process image that a driver is writing. It may be completed even if nobody waits for it any more."""

    def __init__(self, request: Request, process: LLMProcess, path: str, asked: Ask[Exported]) -> None:
        self.request, self.pid, self.length, self.path, self.asked = request, process.pid, len(process.log), path, asked
        self.called = called(path, request.files)
        self.device = process.device  # which writes it, wherever the process moves meanwhile


def checkpoint(system: System, request: Request, call: Checkpoint, process: LLMProcess, path: str) -> Waiting:
    """Row 63 of the table, `Checkpoint`."""
    device = process.device
    if isinstance(request.begun, Saving):
        request.begun.asked.result(request.begun.device, "wrote the image")
    if device.state != UP:
        why = f"the driver of {device.name} would write the image, and it is {device.state}; call again when it is up"
        raise Errno.ERESTART(why)
    check_able(device)
    asked = send_out(system, process, path, image_of(process), call.key, call.kv)
    if isinstance(asked, Waiting):
        return asked
    asked.came, asked.about = _saved, (saving := Saving(request, process, path, asked))
    request.begun = saving
    return wait(asked.channel)


def _saved(system: System, device: Device, asked: Ask[Exported]) -> None:
    """The driver has written the file, or could not: the call is answered, whatever has become of the process."""
    saving, message = asked.about, asked.answer
    assert isinstance(saving, Saving)
    waits = not saving.request.answered
    if isinstance(message, Failed):
        error = of_driver(message.errno, message.reason, {saving.path: saving.called})
        _say(system, error, f"process {saving.pid} could not be written to {saving.called}", saving.request.program)
        if waits:
            all = told_all(saving.request.program)
            desk.fail(system, saving.request, error.errno, error.reason_for(operator=all))
    elif isinstance(message, Exported):
        why = f" ({message.reason})" if message.reason else ""
        text = f"image of {saving.length} tokens in {saving.called}: KV of {message.tokens}{why}, {message.bytes} bytes"
        system.log("warning" if why else "info", f"process {saving.pid}: {text}", saving.request.program)
        system.emit("proc.checkpoint", saving.pid, device.name, message.bytes, saving.called)
        if waits:
            info = CheckpointInfo(saving.path, message.bytes, saving.length, message.tokens)
            desk.answer(system, saving.request, info)


def _say(system: System, error: SyscallError, what: str, of: Process | None) -> None:
    """Log a failure that concerns the operator too, whichever program asked."""
    if error.errno is Errno.EIO:
        system.log("error", f"{what}: {error.reason}", of)


# --- restore --------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Looking(desk.Begun):
    """A driver looks at the file from which a process will be restored."""

    called: str
    device: Device
    asked: Ask[Inspected]
    program: Program

    def undo(self, system: System, error: SyscallError) -> None:
        _say(system, error, f"{self.called} could not be restored", self.program)


@dataclass(slots=True, eq=False)
class Restoring(desk.Begun):
    """A process on its way from a file into the memory of its device."""

    called: str
    process: LLMProcess
    saved: ProcessImage
    stored: Stored | None  # the KV in the file
    coming: Coming | None = None  # once its model is in memory

    def undo(self, system: System, error: SyscallError) -> None:
        """Leave nothing behind."""
        _say(system, error, f"{self.called} could not be restored", self.process)
        if self.coming is not None:
            self.coming.drop(system)
            self.coming.image.leave(self.process, system.now)
        strike(system, self.process)


def restore(
    system: System, request: Request, call: Restore, path: str, device: Device | None, model: str
) -> int | Waiting:
    """Row 64 of the table, `Restore`."""
    restoring = request.begun
    if isinstance(restoring, Looking):
        restoring = request.begun = _born(system, request, call, restoring)
    if not isinstance(restoring, Restoring):
        return _look(system, request, call, device or _reader(system))
    process = restoring.process
    if restoring.coming is None:
        name = process.traits.model
        files = system.config.models.get(name, name)
        image = want_image(system, process.device, name, files, restoring.saved.dtype, process.owner)
        if image.state != RESIDENT:
            return wait(image.loaded)
        process.check_model(image, process.log, Limits())  # its own do not take what it had
        image.join(process, system.now)
        table = table_of(process.group, process.owner)
        restoring.coming = Coming(process.device, image, process, table, process.log, restoring.stored)
    if waiting := bring_in(system, restoring.coming):
        return waiting
    _wake_up(system, restoring, restoring.coming)
    return process.pid


def _reader(system: System) -> Device:
    """The device whose driver looks at a file if the call names none: the default one, or another if that is down."""
    device = system.device_named("")
    return device if device.state == UP else next((d for d in system.devices.values() if d.state == UP), device)


def _look(system: System, request: Request, call: Restore, device: Device) -> Waiting:
    """Find out what is in the file."""
    if device.hopeless:
        raise no_device(device)
    if device.state != UP:
        return wait(device.up)
    check_able(device)
    asked = ask(system, device, Inspect(system.ref(), call.path, call.key, owner=request.program.owner.key), Inspected)
    request.begun = Looking(called(call.path, request.files), device, asked, request.program)
    return wait(asked.channel)


def _born(system: System, request: Request, call: Restore, looking: Looking) -> Restoring:
    """The process of the image, which has yet to get its model."""
    device, group = looking.device, request.program.group
    found = looking.asked.result(device, f"looked at {call.path}")
    saved = read_image(found.head, call.path)
    if not call.device:
        wanted = system.devices.get(saved.device) or system.device_named("")
        if not wanted.hopeless:  # else where the file could be read
            device = wanted
    model = call.model or (saved.model if saved.model in system.config.models else saved.path)
    try:
        check_shown(system, request, Names.MODEL, model)
    except SyscallError as error:  # the file can name any path
        why = f"{call.path} is of the model {model}, and no other is named: {error.reason}"
        raise Errno.EPERM(why) from None
    group.check_pids(1)
    group.check_logs(ROW_BYTES + 4 * len(saved.log) + sum(len(record.data) for record in saved.records))
    given = traits_of(saved)
    own = modest(given, request.program)
    if own != given:
        text = f"{looking.called} holds a process of class {given.sched_class.value}, nice {given.nice}; it begins with"
        system.log("info", f"{text} {own.sched_class.value} and {own.nice}: what is stronger has to be set anew")
    traits = replace(
        own,
        name=call.name or saved.name,
        model=model,
        detached=call.detached,
    )
    log, records = log_of(saved.log), LogRecords(saved.records)
    process = newborn(system, request.program, group, device, traits, log=log, records=records, birth=request)
    process.account.forks = saved.forks
    most = min(found.tokens, len(saved.log) - 1)  # the last token is computed in any case
    stored = Stored(call.path, found.id, most, call.key, found.sound) if found.tokens else None
    return Restoring(looking.called, process, saved, stored)


def _wake_up(system: System, restoring: Restoring, coming: Coming) -> None:
    """The process goes on, with what there is of its KV."""
    process, image = restoring.process, coming.image
    process.table, process.image, process.birth = coming.take_over(), image, None
    process.high_water = process.table.cached
    changed(system, process)
    if process.table.frames:
        image.hold(process)
    _go_on(process, restoring.saved)
    coming.tell(system, f"restored from {restoring.called}", coming.reason)
    system.counters["spawned"] += 1
    system.emit("proc.restore", process.pid, process.device.name, len(process.log), restoring.called)
    dirty(system, process.device)


def _go_on(process: LLMProcess, saved: ProcessImage) -> None:
    """Let a process that has its model do what the other was doing; where it cannot, its decode has ended."""
    process.stopped, process.stop_reason = saved.stopped, ""  # whatever befell its model meanwhile
    process.ahead, process.finish = saved.ahead, saved.finish
    if (going_on := saved.decoding) is not None:
        process.finish = process.used_up
        if process.finish is Finish.NONE:
            process.decoding = Decoding(going_on.left, True, going_on.start, frozenset(going_on.stop_ids), logprobs=0)
