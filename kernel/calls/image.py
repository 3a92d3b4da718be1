"""checkpoint and restore: a process to a file, and a process from one.

The driver reads and writes the file: it has the KV, and the kernel must not wait for a disk. It does so in the order of
its requests, so that an export has the frames as they were when it was sent, and frames into which KV is read can be
given to somebody else at any time: whoever gets them writes them after that.

A restore looks at the file, has the model brought into memory, gets frames as far as there are some that nobody wants,
and has the KV read into them. Until that is done the process has no model, so that nobody can do anything with it.
Whatever goes wrong with the KV, the log is there: what is missing is computed again.
"""

from __future__ import annotations

from typing import cast

from llmasos.drivers.protocol import Export, Exported, Failed, Inspect, Inspected
from llmasos.kernel import desk
from llmasos.kernel.calls.lookup import at_boundary, with_model
from llmasos.kernel.desk import PARKED
from llmasos.kernel.devices.transfer import Stored, after_outs, ask, bring_in, check_able, give_up
from llmasos.kernel.life import strike
from llmasos.kernel.marks import dirty, touch
from llmasos.kernel.memory.page_table import PageTable
from llmasos.kernel.models.loading import forget_waiter, want_image
from llmasos.kernel.objects.device import UP, Device, no_device
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.log_records import LogRecords
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.objects.process_image import ProcessImage, go_on, image_of, read_image
from llmasos.kernel.objects.request import Request
from llmasos.kernel.settle import settle
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import CheckpointInfo, Kind
from llmasos.syscalls.table import Checkpoint, Restore


def _check_path(path: str) -> None:
    if not path.startswith("/") or path.endswith("/"):
        raise SyscallError(Errno.EINVAL, f"an absolute path of a file was wanted, found {path!r}")


def _say(system: System, error: SyscallError, what: str) -> None:
    """A failure that the person at the console should know of too, whoever asked."""
    if error.errno is Errno.EIO:
        system.log("error", f"{what}: {error.reason}")


# --- checkpoint -----------------------------------------------------------------------------------------------------


def checkpoint(system: System, request: Request) -> object:
    call = cast(Checkpoint, request.call)
    _check_path(call.path)
    process = with_model(system, call.pid)
    image, device = process.image, process.device
    if image is None or process.running:
        return at_boundary(process, request)
    if device.state != UP:
        raise SyscallError(
            Errno.ERESTART,
            f"the driver of {device.name} would write the image, and it is {device.state}; call again when it is up",
        )
    check_able(device)
    tokens, frames, slots = process.table.stored(len(process.log)) if call.kv else (0, [], [])
    if slots and device.outs:  # what is to lie in them has yet to be sent there

        def again() -> None:
            request.undo = None
            desk.dispatch(system, request)

        def forget() -> None:
            device.after_outs.remove(again)

        device.after_outs.append(again)
        return desk.park(request, forget)
    head = image_of(process, image)
    length, pid = len(process.log), process.pid

    def done(message: object) -> None:
        if isinstance(message, Failed):
            error = SyscallError(message.errno, message.reason)
            _say(system, error, f"process {pid} could not be written to {call.path}")
            if not request.answered:
                desk.fail(system, request, error.errno, error.reason)
            return
        if not isinstance(message, Exported) or not 0 <= message.tokens <= tokens:
            died("it did not speak the protocol")
            raise SyscallError(Errno.EPROTO, f"an export was answered by {type(message).__name__}")
        why = f" ({message.reason})" if message.reason else ""
        system.log(
            "warning" if why else "info",
            f"process {pid}: image of {length} tokens in {call.path}: KV of {message.tokens}{why}, {message.bytes} bytes",
        )
        system.emit("proc.checkpoint", pid, device.name, message.bytes, call.path)
        if not request.answered:
            desk.answer(system, request, CheckpointInfo(call.path, message.bytes, length, message.tokens))

    def died(reason: str) -> None:
        if not request.answered:
            desk.fail(
                system,
                request,
                Errno.ERESTART,
                f"the driver of {device.name} died while it wrote the image ({reason}); call again",
            )

    places = [(slot.tier, slot.number) for slot in slots]
    number = image.id if tokens else 0
    message = Export(system.ref(), number, pid, call.path, head, tokens, frames, places, call.key)
    ask(system, device, message, done, died)
    return desk.park(request, lambda: None)  # the file may come to be all the same


# --- restore --------------------------------------------------------------------------------------------------------


def restore(system: System, request: Request) -> object:
    call = cast(Restore, request.call)
    _check_path(call.path)
    device = system.device_named(call.device)
    if not call.device and device.state != UP:
        device = next((other for other in system.devices.values() if other.state == UP), device)
    restoring = _Restoring(system, request, call, device)
    desk.park(request, restoring.undo)
    restoring.begin()
    return PARKED


class _Restoring:
    """A restore on its way. `device` looks at the file first; then it is the one the process is to be on."""

    def __init__(self, system: System, request: Request, call: Restore, device: Device) -> None:
        self.system = system
        self.request = request
        self.call = call
        self.device = device
        self.id = b""  # of the file
        self.stored = 0  # tokens whose KV is in it
        self.saved: ProcessImage | None = None
        self.process: LLMProcess | None = None
        self.image: Image | None = None  # once it is in memory

    def fail(self, error: SyscallError) -> None:
        self.undo()
        if not self.request.answered:
            _say(self.system, error, f"{self.call.path} could not be restored")
            desk.fail(self.system, self.request, error.errno, error.reason)

    def undo(self) -> None:
        """Leave nothing behind. What the driver may still read into frames, it reads before they are anybody else's."""
        device, process, image = self.device, self.process, self.image
        if self._inspect in device.when_up:
            device.when_up.remove(self._inspect)
        if self._import in device.after_outs:
            device.after_outs.remove(self._import)
        forget_waiter(self.system, device, self._ready)
        if process is None:
            return
        if image is not None:
            give_up(image, process.pid)
            image.leave(process, self.system.now)
            dirty(self.system, device)
        process.birth = None
        if process.pid in self.system.table:
            strike(self.system, process)

    # --- the file ---

    def begin(self) -> None:
        device = self.device
        if device.state == UP:
            self._inspect(None)
        elif device.hopeless:
            raise no_device(device)
        else:
            device.when_up.append(self._inspect)

    def _inspect(self, error: SyscallError | None) -> None:
        try:
            if error is not None:
                raise error
            check_able(self.device)
        except SyscallError as refusal:
            self.fail(refusal)
            return
        message = Inspect(self.system.ref(), self.call.path, self.call.key)
        ask(self.system, self.device, message, self._inspected, self._died_looking)

    def _died_looking(self, reason: str) -> None:
        why = f"the driver of {self.device.name} died while it looked at {self.call.path} ({reason}); call again"
        self.fail(SyscallError(Errno.ERESTART, why))

    def _inspected(self, message: object) -> None:
        if self.request.answered:
            return
        if isinstance(message, Failed):
            self.fail(SyscallError(message.errno, message.reason))
            return
        if not isinstance(message, Inspected):
            self._died_looking("it did not speak the protocol")
            raise SyscallError(Errno.EPROTO, f"an inspect was answered by {type(message).__name__}")
        self.id, self.stored = message.id, message.tokens
        try:
            self._begin_process(read_image(message.head, self.call.path))
        except SyscallError as error:
            self.fail(error)

    # --- the process and its model ---

    def _begin_process(self, saved: ProcessImage) -> None:
        system, call, now = self.system, self.call, self.system.now
        if not call.device:
            wanted = system.devices.get(saved.device) or system.device_named("")
            if not wanted.hopeless:  # else where the file could be read
                self.device = wanted
        model = call.model or (saved.model if saved.model in system.config.models else saved.path)
        self.saved = saved
        group = self.request.program.group
        group.check_pids(1)
        self.process = process = LLMProcess(
            pid=system.table.new_pid(),
            owner=self.request.program.pid,
            kind=Kind.LLM,
            name=call.name or saved.name,
            group=group,
            started=now,
            since=now,
            device=self.device,
            model=model,
            sampler=saved.sampler,
            limits=saved.limits,
            once=saved.once,
            detached=call.detached,
            spent=saved.spent,
            sched_class=saved.sched_class,
            nice=saved.nice,
            log=saved.log,
            records=LogRecords(saved.records),
            turn=now,
        )
        process.account.forks = saved.forks
        process.birth = self.request
        system.table.add(process)
        image = want_image(system, self.device, model, saved.dtype, self._ready)
        if process.pid in system.table and process.image is None:
            settle(system, process)
        image.used = now

    def _ready(self, image: Image | SyscallError) -> None:
        process = self.process
        assert process is not None
        try:
            if isinstance(image, SyscallError):
                raise image
            image.check_tokens(process.log)
            process.group.check_weights(image.id, image.weight_bytes, image.name)
            most, where = image.context, f"what {image.name} can have on {self.device.name}"
            if kv_max := process.group.kv_max:
                allowed = kv_max // image.frame_bytes * image.block_tokens
                if allowed < most:
                    most, where = allowed, f"what kv_max of group {process.group.path} allows"
            if len(process.log) > most:
                raise SyscallError(Errno.E2BIG, f"a context of {len(process.log)} tokens is too long: {most} is {where}")
        except SyscallError as error:
            self.fail(error)
            return
        self.image = image
        image.join(process)
        if self.stored:
            after_outs(self.device, self._import)
        else:
            self._done(PageTable(process.group), "")

    # --- its KV ---

    def _import(self) -> None:
        process, image = self.process, self.image
        assert process is not None
        assert image is not None
        most = min(self.stored, len(process.log) - 1)  # the last token is computed in any case
        stored = Stored(self.call.path, self.id, self.stored, self.call.key)
        image.imports[process.pid] = PageTable(process.group)
        bring_in(self.system, self.device, image, process.pid, process.log, most, stored, self._arrived)

    def _arrived(self, gained: int, reason: str) -> None:
        process, image = self.process, self.image
        assert process is not None
        assert image is not None
        process.account.reused += gained
        self.device.reused += gained
        self._done(image.imports.pop(process.pid), reason)

    def _done(self, table: PageTable, reason: str) -> None:
        """The process goes on, with what there is of its KV."""
        system, process, image, saved = self.system, self.process, self.image, self.saved
        assert process is not None
        assert image is not None
        assert saved is not None
        process.table, process.image, process.birth = table, image, None
        process.reached = table.cached
        touch(system, process)
        if table.frames:
            image.hold(process)
        go_on(process, saved)
        length, pid, _now = len(process.log), process.pid, system.now
        why = f"; the rest is computed again: {reason}" if reason else ""
        system.log(
            "warning" if why else "info",
            f"process {pid}: restored from {self.call.path}: {length} tokens, KV of {table.cached}{why}",
        )
        system.counters["spawned"] += 1
        system.emit("proc.restore", pid, self.device.name, length, self.call.path)
        desk.answer(system, self.request, pid)
        settle(system, process)
        dirty(system, self.device)
