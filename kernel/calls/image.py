"""checkpoint and restore: a process to a file, and a process from one.

The driver reads and writes the file: it has the KV, and the kernel must not wait for a disk. It does so in the order of
its requests, so that an export has the frames as they were when it was sent, and frames into which KV is read can be
given to somebody else at any time: whoever gets them writes them after that.

A restore looks at the file, has the model brought into memory, gets frames as far as there are some that nobody wants,
and has the KV read into them: its phases, in this order. Until all are done the process has no model, so that nobody can
do anything with it. Whatever goes wrong with the KV, the log is there: what is missing is computed again.
"""

from __future__ import annotations

from msgspec.structs import astuple, replace

from llmasos.drivers.protocol import Export, Exported, Failed, Inspect, Inspected
from llmasos.kernel import desk
from llmasos.kernel.calls.process import newborn
from llmasos.kernel.devices.transfer import Arrival, Stored, arrived, ask, bring_in, check_able, give_up
from llmasos.kernel.journal.process_image import Continuing, ProcessImage, read_image, version_with, write_image
from llmasos.kernel.journal.records import traits_of
from llmasos.kernel.life import strike
from llmasos.kernel.marks import changed, dirty
from llmasos.kernel.memory.page_table import PageTable
from llmasos.kernel.models.loading import want_image
from llmasos.kernel.objects.device import UP, Ask, Device, no_device
from llmasos.kernel.objects.image import RESIDENT, Image
from llmasos.kernel.objects.log_records import LogRecords
from llmasos.kernel.objects.process import Decoding, LLMProcess
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import CheckpointInfo, Finish
from llmasos.syscalls.table import Checkpoint, Restore

# --- checkpoint -----------------------------------------------------------------------------------------------------


class Saving:
    """An image of a process that is being written. It may come to be even if nobody waits for it any more."""

    def __init__(self, request: Request, process: LLMProcess, path: str) -> None:
        self.request, self.pid, self.length, self.path = request, process.pid, len(process.log), path
        self.device = process.device  # which writes it, wherever the process moves meanwhile
        self.asked: Ask | None = None


def checkpoint(system: System, request: Request, call: Checkpoint, process: LLMProcess, path: str) -> Waiting:
    """Row 63 of the table, `Checkpoint`."""
    image, device = process.image, process.device
    assert image is not None
    if isinstance(request.begun, Saving) and request.begun.asked is not None:
        request.begun.asked.result(request.begun.device, "wrote the image")
    if device.state != UP:
        why = f"the driver of {device.name} would write the image, and it is {device.state}; call again when it is up"
        raise Errno.ERESTART(why)
    check_able(device)
    tokens, frames, slots = process.table.stored(len(process.log)) if call.kv else (0, [], [])
    if slots and device.outs:  # what is to lie in them has yet to be sent there
        return wait(device.swapped_out)
    request.begun = saving = Saving(request, process, path)
    places = [(slot.tier, slot.number) for slot in slots]
    head, number = image_of(process, image), image.id if tokens else 0
    export = Export(system.ref(), number, process.pid, path, head, tokens, frames, places, call.key)
    saving.asked = ask(system, device, export, Exported, most=tokens, came=_saved, about=saving)
    return wait(saving.asked.channel)


def _saved(system: System, device: Device, asked: Ask) -> None:
    """The driver has written the file, or could not: the call is answered, whatever has become of the process."""
    saving, message = asked.about, asked.answer
    waits = not saving.request.answered
    if isinstance(message, Failed):
        error = SyscallError(message.errno, message.reason)
        _say(system, error, f"process {saving.pid} could not be written to {saving.path}")
        if waits:
            desk.fail(system, saving.request, error.errno, error.reason)
    elif isinstance(message, Exported):
        why = f" ({message.reason})" if message.reason else ""
        text = f"image of {saving.length} tokens in {saving.path}: KV of {message.tokens}{why}, {message.bytes} bytes"
        system.log("warning" if why else "info", f"process {saving.pid}: {text}")
        system.emit("proc.checkpoint", saving.pid, device.name, message.bytes, saving.path)
        if waits:
            info = CheckpointInfo(saving.path, message.bytes, saving.length, message.tokens)
            desk.answer(system, saving.request, info)


def _say(system: System, error: SyscallError, what: str) -> None:
    """A failure that the person at the console should know of too, whoever asked."""
    if error.errno is Errno.EIO:
        system.log("error", f"{what}: {error.reason}")


def image_of(process: LLMProcess, image: Image) -> bytes:
    """The image of a process that is not in a step, encoded. Raises E2BIG."""
    decoding = process.decoding
    going_on = decoding is not None and decoding.append  # a mere look at log-probabilities is its caller's affair
    traits = replace(process.traits, spent=process.traits.spent + process.account.decoded, detached=False)
    record = ProcessImage(
        *astuple(traits),
        version=version_with(process.records.rows),
        path=image.path,
        dtype=image.dtype,
        device=process.device.name,
        log=process.log,
        forks=process.account.forks,
        stopped=process.stopped,
        ahead=process.ahead,
        finish=process.finish,
        decoding=Continuing(decoding.left, decoding.start, sorted(decoding.stop_ids)) if decoding and going_on else None,
        records=process.records.rows,
    )
    return write_image(record, process.pid)


# --- restore --------------------------------------------------------------------------------------------------------


class Restoring(desk.Begun):
    """A restore on its way. `device` looks at the file first; then it is the one the process is to be on."""

    def __init__(self, path: str, device: Device) -> None:
        self.path, self.device = path, device
        self.looked: Ask | None = None
        self.stored: Stored | None = None  # the KV in the file
        self.saved: ProcessImage | None = None
        self.process: LLMProcess | None = None
        self.image: Image | None = None  # once it is in memory
        self.arrival: Arrival | None = None  # once its KV is on its way

    def undo(self, system: System, error: SyscallError) -> None:
        """Leave nothing behind. What the driver may still read into frames, it reads before they are anybody else's."""
        _say(system, error, f"{self.path} could not be restored")
        if self.image is not None and self.process is not None:
            give_up(self.image, self.process.pid)
            self.image.leave(self.process, system.now)
            dirty(system, self.device)
        if self.process is not None:
            strike(system, self.process)


def restore(system: System, request: Request, call: Restore, path: str, device: Device | None) -> int | Waiting:
    """Row 64 of the table, `Restore`."""
    if not isinstance(request.begun, Restoring):
        request.begun = Restoring(path, device or _reader(system))
    restoring = request.begun
    if restoring.process is None:
        if waiting := _look(system, restoring, call):
            return waiting
        restoring.process = _born(system, request, call, restoring)
    process, saved = restoring.process, restoring.saved
    assert saved is not None
    if restoring.image is None:
        model = process.traits.model
        files = system.config.models.get(model, model)
        image = want_image(system, restoring.device, model, files, saved.dtype)
        image.used = system.now
        if image.state != RESIDENT:
            return wait(image.loaded)
        _check_room(process, image, restoring.device)
        restoring.image = image
        image.join(process)
    image = restoring.image
    table, reason = PageTable(process.group), ""
    if restoring.stored is not None:
        waiting = None if restoring.arrival else _bring_in(system, restoring, process, image, restoring.stored)
        if waiting is not None:
            return waiting
        assert restoring.arrival is not None
        reason = arrived(restoring.device, image, process.log, restoring.arrival)
        process.account.reused += restoring.arrival.gained
        restoring.device.reused += restoring.arrival.gained
        table = image.imports.pop(process.pid)
    _wake_up(system, restoring, process, image, table, reason)
    return process.pid


def _reader(system: System) -> Device:
    """The device that looks at a file, if the call names none: the default one, or if that is down one that is up."""
    device = system.device_named("")
    return device if device.state == UP else next((d for d in system.devices.values() if d.state == UP), device)


def _look(system: System, restoring: Restoring, call: Restore) -> Waiting | None:
    """Find out what is in the file."""
    device = restoring.device
    if restoring.looked is None:
        if device.hopeless:
            raise no_device(device)
        if device.state != UP:
            return wait(device.up)
        check_able(device)
        restoring.looked = ask(system, device, Inspect(system.ref(), call.path, call.key), Inspected)
        return wait(restoring.looked.channel)
    message: Inspected = restoring.looked.result(device, f"looked at {call.path}")
    restoring.saved = read_image(message.head, call.path)
    if message.tokens:
        restoring.stored = Stored(call.path, message.id, message.tokens, call.key)
    return None


def _born(system: System, request: Request, call: Restore, restoring: Restoring) -> LLMProcess:
    """The process of the image, which has yet to get its model."""
    saved = restoring.saved
    assert saved is not None
    if not call.device:
        wanted = system.devices.get(saved.device) or system.device_named("")
        if not wanted.hopeless:  # else where the file could be read
            restoring.device = wanted
    group = request.program.group
    group.check_pids(1)
    traits = replace(
        traits_of(saved),
        name=call.name or saved.name,
        model=call.model or (saved.model if saved.model in system.config.models else saved.path),
        detached=call.detached,
    )
    records = LogRecords(saved.records)
    process = newborn(
        system, request.program, group, restoring.device, traits, log=saved.log, records=records, birth=request
    )
    process.account.forks = saved.forks
    return process


def _check_room(process: LLMProcess, image: Image, device: Device) -> None:
    """Whether the image may be the process's model, and its log fits."""
    image.check_tokens(process.log)
    process.group.check_weights(image.id, image.weight_bytes, image.name)
    most, where = image.context, f"what {image.name} can have on {device.name}"
    if kv_max := process.group.kv_max:
        allowed = kv_max // image.frame_bytes * image.block_tokens
        if allowed < most:
            most, where = allowed, f"what kv_max of group {process.group.path} allows"
    if len(process.log) > most:
        raise Errno.E2BIG(f"a context of {len(process.log)} tokens is too long: {most} is {where}")


def _bring_in(system: System, restoring: Restoring, process: LLMProcess, image: Image, stored: Stored) -> Waiting | None:
    """Have the KV of the file read into frames."""
    device = restoring.device
    if device.outs:
        return wait(device.swapped_out)
    image.imports[process.pid] = PageTable(process.group)
    most = min(stored.tokens, len(process.log) - 1)  # the last token is computed in any case
    restoring.arrival = bring_in(system, device, image, process.pid, process.log, most, stored)
    return wait(restoring.arrival.ask.channel) if restoring.arrival.ask is not None else None


def _wake_up(
    system: System, restoring: Restoring, process: LLMProcess, image: Image, table: PageTable, reason: str
) -> None:
    """The process goes on, with what there is of its KV."""
    assert restoring.saved is not None
    process.table, process.image, process.birth = table, image, None
    process.high_water = table.cached
    changed(system, process)
    if table.frames:
        image.hold(process)
    _go_on(process, restoring.saved)
    length, why = len(process.log), f"; the rest is computed again: {reason}" if reason else ""
    system.log(
        "warning" if why else "info",
        f"process {process.pid}: restored from {restoring.path}: {length} tokens, KV of {table.cached}{why}",
    )
    system.counters["spawned"] += 1
    system.emit("proc.restore", process.pid, restoring.device.name, length, restoring.path)
    dirty(system, restoring.device)


def _go_on(process: LLMProcess, saved: ProcessImage) -> None:
    """Let a process that has its model do what the other was doing; where it cannot, its decode has ended."""
    process.stopped, process.stop_reason = saved.stopped, ""  # whatever befell its model meanwhile
    process.ahead, process.finish = saved.ahead, saved.finish
    if (going_on := saved.decoding) is not None:
        process.finish = process.used_up
        if process.finish is Finish.NONE:
            process.decoding = Decoding(going_on.left, True, going_on.start, frozenset(going_on.stop_ids), logprobs=0)
