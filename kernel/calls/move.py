"""setsched: nice value and class of a process, and the device it lives on.

A move is a live migration of the pre-copying kind (Clark et al., NSDI 2005), made easy by a log that is only appended to.
The model is brought into memory on the other device, then the KV there is of the process is exported to a file in memory
(drivers/parcel.py) and read into frames there, while the process runs on where it is. At a token boundary it changes
over; what it has decoded meanwhile is computed there again, a few tokens.

Until that moment the process is what it was, so that a failure or a cancel only has to let go of what was prepared. KV on
its way is charged to the kernel's own group: who is being moved must not run into its group's limit for having it twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from llmasos.drivers.protocol import Export, Exported, Failed, Release
from llmasos.kernel import desk
from llmasos.kernel.calls.lookup import at_boundary, check_unchanged, with_model
from llmasos.kernel.desk import PARKED
from llmasos.kernel.devices.transfer import Stored, after_outs, ask, bring_in, check_able, give_up
from llmasos.kernel.life import leave_image
from llmasos.kernel.marks import dirty, freed, touch
from llmasos.kernel.memory.page_table import PageTable
from llmasos.kernel.models.loading import forget_waiter, want_image
from llmasos.kernel.objects.device import UP, Device, no_device
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.objects.request import Change, Request
from llmasos.kernel.settle import settle
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Setsched


def setsched(system: System, request: Request) -> object:
    call = cast(Setsched, request.call)
    process = system.table.llm(call.pid)
    change = process.change
    if change is not None and change.request is request:  # the token boundary it has waited for
        change.resume()
        return PARKED
    device = system.device_named(call.device) if call.device else process.device
    if device is process.device:
        _set(system, process, call)
        return None
    with_model(system, call.pid)
    if process.saved is not None:
        return at_boundary(process, request)
    check_unchanged(process, request)
    _check_up(device)
    _Moving(system, request, process, device).begin()
    return PARKED


def _set(system: System, process: LLMProcess, call: Setsched) -> None:
    if call.nice is not None:
        process.nice = call.nice
        process.count_load()
    if call.sched_class is not None:
        process.sched_class = call.sched_class
    touch(system, process)
    if process.ticket:
        process.device.queue.withdraw(process)
        process.device.queue.put(process)
    system.emit("sched.set", process.pid, amount=process.nice, detail=process.sched_class.value)


def _check_up(device: Device) -> None:
    if device.hopeless:
        raise no_device(device)
    if device.state != UP:
        raise SyscallError(Errno.ERESTART, f"the driver of {device.name} is {device.state}; call again when it is up")


class _Moving:
    """A process on its way to `target`. Each stage may find the world changed since the last one."""

    def __init__(self, system: System, request: Request, process: LLMProcess, target: Device) -> None:
        self.system = system
        self.request = request
        self.process = process
        self.source = process.device
        self.target = target
        self.image: Image | None = None  # its model there, which its entry in `imports` keeps in memory
        self.log: list[int] = []  # whose KV is on its way
        self.had = 0  # tokens of it whose KV there was
        self.parcel = ""  # path of the file in memory that holds it
        self.stored: Stored | None = None  # what is in it
        self.reason = ""  # why not all of it has arrived

    def begin(self) -> None:
        self.process.change = Change(self.request, self._load)
        desk.park(self.request, self.undo)
        self._load()

    def fail(self, error: SyscallError) -> None:
        self.undo()
        desk.fail(self.system, self.request, error.errno, error.reason)

    def undo(self) -> None:
        """Leave nothing behind of what was prepared."""
        process = self.process
        process.change = None
        if self.request in process.deferred:
            process.deferred.remove(self.request)
        for device, stage in ((self.source, self._export), (self.target, self._import)):
            if stage in device.after_outs:
                device.after_outs.remove(stage)
        forget_waiter(self.system, self.target, self._ready)
        if self.image is not None:
            give_up(self.image, process.pid)
            dirty(self.system, self.target)
        self._release()

    def _release(self) -> None:
        """The file in memory is wanted no more; if the driver that held it has died, so has the file."""
        path, self.parcel = self.parcel, ""
        if path and self.source.state == UP:
            self.system.send(self.source, Release(path))

    def _at_boundary(self, stage: Callable[[], None]) -> None:
        """Go on when the process is in no step."""
        if self.process.running:
            self.process.change = Change(self.request, stage)
            self.process.deferred.append(self.request)
        else:
            stage()

    # --- its model ---

    def _load(self) -> None:
        process = self.process
        assert process.image is not None
        try:
            want_image(self.system, self.target, process.model, process.image.dtype, self._ready)
        except SyscallError as error:
            self.fail(error)

    def _ready(self, image: Image | SyscallError) -> None:
        if isinstance(image, SyscallError):
            self.fail(image)
            return
        self.image = image
        image.imports[self.process.pid] = PageTable(self.system.groups.system)
        try:
            self._check()
        except SyscallError as error:
            self.fail(error)
        else:
            self._at_boundary(self._export)

    def _check(self) -> None:
        """Whether the process could live there, as far as that can be told now; else why not."""
        process, image, target = self.process, self.image, self.target
        assert image is not None
        if target.state != UP or not image.held or target.images.get(image.id) is not image:
            raise SyscallError(
                Errno.ERESTART,
                f"the driver of {target.name} died while process {process.pid} was to move there, so it has stayed on "
                f"{self.source.name}; call again",
            )
        decoding = process.decoding
        image.check_tokens(process.log)
        if process.context_with(image) < process.context:
            process.check_room(len(process.log) + (decoding is not None and decoding.append), image, target)
        if decoding is not None and decoding.logprobs:
            assert target.hello is not None
            if "logprobs" not in target.hello.features:
                raise SyscallError(
                    Errno.ENOTSUP, f"device {target.name} does not report the log-probabilities it is asked for"
                )
        group, old = process.group, process.image
        assert old is not None
        group.unmap_image(old.id, old.weight_bytes)
        try:
            group.check_weights(image.id, image.weight_bytes, image.name)
        finally:
            group.map_image(old.id, old.weight_bytes)

    # --- its KV ---

    def _export(self) -> None:
        process, source = self.process, self.source
        if process.running:
            self._at_boundary(self._export)
            return
        old = process.image
        assert old is not None
        self.log = process.log.copy()
        self.had, frames, slots = process.table.stored(len(process.log))
        if not self.had:
            self._switch()
            return
        if reason := self._why_not(old):
            self._without(reason)
            return
        if slots and source.outs:  # what is to lie in them has yet to be sent there
            source.after_outs.append(self._export)
            return
        places = [(slot.tier, slot.number) for slot in slots]
        message = Export(self.system.ref(), old.id, process.pid, "", b"", self.had, frames, places)
        ask(self.system, source, message, self._exported, self._source_died)

    def _why_not(self, old: Image) -> str:
        """Why the KV of the one device is of no use to the other, where that is plain to see, or ""; else the driver
        there will know."""
        source, target = self.source, self.target
        assert self.image is not None
        try:
            check_able(source)
            check_able(target)
        except SyscallError as error:
            return error.reason
        if source.config.kind != target.config.kind:
            return f"a {target.config.kind} computes in another way than a {source.config.kind}"
        if old.frame_bytes != self.image.frame_bytes:
            return f"a frame has {old.frame_bytes} bytes on {source.name}, {self.image.frame_bytes} on {target.name}"
        return ""

    def _source_died(self, reason: str) -> None:
        if not self.request.answered:
            self._without(f"the driver of {self.source.name} died while it was to hand it over ({reason})")

    def _without(self, reason: str) -> None:
        """It moves by its log alone."""
        self.reason = reason
        self._at_boundary(self._switch)

    def _exported(self, message: object) -> None:
        if isinstance(message, Exported):
            self.parcel = message.path
        if self.request.answered:
            self._release()
        elif isinstance(message, Failed):
            self._without(message.reason)
        elif not isinstance(message, Exported) or not 0 <= message.tokens <= self.had:
            self._without(f"the driver of {self.source.name} did not speak the protocol")
            raise SyscallError(Errno.EPROTO, f"an export was answered by {type(message).__name__}")
        else:
            self.reason = message.reason
            self.stored = Stored(message.path, message.id, message.tokens)
            after_outs(self.target, self._import)

    def _import(self) -> None:
        try:
            self._check()
        except SyscallError as error:
            self.fail(error)
            return
        image, stored = self.image, self.stored
        assert image is not None
        assert stored is not None
        pid = self.process.pid
        bring_in(self.system, self.target, image, pid, self.log, stored.tokens, stored, self._arrived)

    def _arrived(self, gained: int, reason: str) -> None:
        self._release()
        self.target.reused += gained
        self.process.account.reused += gained
        self.reason = reason or self.reason
        try:
            self._check()
        except SyscallError as error:
            self.fail(error)
        else:
            self._at_boundary(self._switch)

    # --- the process ---

    def _switch(self) -> None:
        try:
            self._check()
        except SyscallError as error:
            self.fail(error)
            return
        system, process, image = self.system, self.process, self.image
        source, target, now = self.source, self.target, self.system.now
        assert image is not None
        table = image.imports.pop(process.pid)
        most = len(process.log) - (process.decoding is not None)  # the last token's logits are wanted
        table.cut(image.pool, min(most, _alike(self.log, process.log, table.cached)))
        source.queue.withdraw(process)
        leave_image(system, process)
        dirty(system, source)
        came = table.cached
        table.hand_over(image.pool, process.group)
        if table.cached < came:
            self.reason = self.reason or f"group {process.group.path} may have no more"
        process.change_device(target)
        process.table, process.image, process.driver_log = table, image, 0
        process.short, process.robbed = None, False
        process.quantum_used, process.turn = 0, now
        image.join(process)
        image.used = now
        if table.frames:
            image.hold(process)
        process.change = None
        touch(system, process)
        self._release()
        self._say()
        call = cast(Setsched, self.request.call)
        if call.nice is not None or call.sched_class is not None:
            _set(system, process, call)
        desk.answer(system, self.request, None)
        settle(system, process)
        freed(system)
        dirty(system, target)

    def _say(self) -> None:
        system, process, where = self.system, self.process, f"{self.source.name} to {self.target.name}"
        came, length = process.table.cached, len(process.log)
        lacking = came < _alike(self.log, process.log, self.had)
        why = f"; the rest is computed again: {self.reason or 'others needed its frames'}" if lacking else ""
        system.log(
            "warning" if why else "info", f"process {process.pid}: moved from {where}: {length} tokens, KV of {came}{why}"
        )
        system.emit("proc.move", process.pid, self.target.name, length, where)


def _alike(one: list[int], other: list[int], most: int) -> int:
    """How many of the first `most` tokens two logs have in common."""
    most = min(most, len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
