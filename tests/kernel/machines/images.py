"""The kernel's state machine with processes that go to files and come back."""

from __future__ import annotations

import os
import tempfile

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from llmasos.drivers import checkpoint
from llmasos.drivers.protocol import Inspect
from llmasos.kernel.journal.process_image import ProcessImage, read_image
from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import Future, slots
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import CheckpointInfo
from llmasos.syscalls.table import (
    Checkpoint,
    Decode,
    Restore,
)
from tests.kernel.machines.core import Core, Proc, which


def image_in(file: str) -> ProcessImage:
    return read_image(checkpoint.inspect(Inspect(1, file)).head, file)


def flip(file: str, at: int) -> None:
    with open(file, "r+b") as stream:
        stream.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 4]))


class Images(Core):
    """The state machine of the whole kernel, with processes that go to files and come back."""

    options = {"context": "128", "swap": slots(40)}

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory(prefix="llmasos-images-")
        self.saving: list[tuple[Future[CheckpointInfo], str]] = []
        self.saved: list[str] = []
        self.heads: dict[str, ProcessImage] = {}  # of those, as they were written
        self.restoring: list[Future[int]] = []

    @precondition(lambda self: self.procs)
    @rule(i=which, who=which, kv=st.booleans())
    def checkpoint(self, i: int, who: int, kv: bool) -> None:
        path = os.path.join(self.place.name, f"{len(self.saved)}.{len(self.saving)}.{self.sim.events}")
        future = self.prog(i).start(Checkpoint(self.proc(who).pid, path, kv))
        self.saving.append((future, path))
        self.futures.append(future)

    @precondition(lambda self: self.saved and sum(not p.ended for p in self.procs.values()) < 8)
    @rule(i=which, what=which, detached=st.booleans())
    def restore(self, i: int, what: int, detached: bool) -> None:
        future = self.prog(i).start(Restore(self.saved[what % len(self.saved)], detached=detached))
        self.restoring.append(future)
        self.futures.append(future)

    @precondition(lambda self: self.saved)
    @rule(what=which, at=st.floats(0, 1, exclude_max=True))
    def damage(self, what: int, at: float) -> None:
        path = self.saved[what % len(self.saved)]
        flip(path, int(at * os.path.getsize(path)))

    @invariant()
    def logs_are_what_the_model_says(self) -> None:
        for future, path in list(self.saving):
            if future.done:
                self.saving.remove((future, path))
                if future.errno is Errno.OK:
                    self.saved.append(path)
                    self.heads[path] = image_in(path)
                    assert future.value.kv_tokens <= future.value.tokens
                else:
                    assert future.errno in (Errno.ESRCH, Errno.EBUSY, Errno.EINTR, Errno.ERESTART), future.reply
        for restored in list(self.restoring):
            if restored.done:
                self.restoring.remove(restored)
                if restored.errno is Errno.OK:
                    self.came_back(restored)
                else:
                    assert restored.errno in (
                        Errno.EIO, Errno.EINVAL, Errno.EINTR, Errno.ERESTART, Errno.E2BIG, Errno.EDQUOT, Errno.ENOMEM,
                    ) or self.never_started(restored), restored.reply  # fmt: skip
        super().logs_are_what_the_model_says()

    @staticmethod
    def never_started(future: Future[int]) -> bool:
        """Whether the answer was that the driver has died three times in a row before it said hello."""
        reply = future.reply
        return reply is not None and reply.errno is Errno.ENODEV and "does not start" in reply.reason

    def came_back(self, future: Future[int]) -> None:
        pid, call = future.value, future.call
        assert isinstance(call, Restore)
        process = self.sim.kernel.table.find(pid)
        if not isinstance(process, LLMProcess):
            return
        saved = self.heads[call.path]
        log = list(saved.log)
        proc = Proc(pid, saved.model, log, saved.sampler, future.program, call.detached, once=saved.once)
        proc.ended = not proc.owner.connected
        proc.records = [(record.position, record.data) for record in saved.records]
        assert list(process.log[: len(log)]) == log
        if process.decoding is not None or len(process.log) > len(log):
            assert saved.decoding is not None
            proc.decode = Decode(pid, 1 << 20, list(saved.decoding.stop_ids))
        self.procs[pid] = proc

    def teardown(self) -> None:
        super().teardown()
        self.place.cleanup()
        for device in self.sim.kernel.devices.values():
            assert not device.swapped_out
            assert not device.up
            assert not device.asked
            assert not any(image.imports for image in device.images.values())
