"""KV on its way between a device and a file: what drivers are asked for it, and the frames that it comes into.

checkpoint writes it and restore reads it; a move to another device does both, with a file in memory. A driver reads in
the order of its requests, so frames into which KV is read can be given to another process at any time: that one's steps
write them after the read. Until its process takes it over, KV that comes lies in a table of its own (`Image.imports`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from llmasos.drivers.protocol import BLOCK_TOKENS, IMAGES, Export, Exported, Failed, Import, Imported, Query
from llmasos.kernel.marks import dirty
from llmasos.kernel.memory.page_table import PageTable, blocks
from llmasos.kernel.objects.device import UP, Ask, Device
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.outward import pathless
from llmasos.kernel.state import System
from llmasos.kernel.tokens import Log, log_of
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls.errno import Errno

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Stored:
    """KV in the file `path`, which the driver that wrote it called `id`: the first `tokens` tokens of it are wanted. A
    kernel of this user vouches for that of the first `sound` tokens; None: the table that it comes to knows better."""

    path: str
    id: bytes
    tokens: int
    key: bytes = b""
    sound: int | None = None


@dataclass(slots=True)
class Coming:
    """KV of a process on its way into frames of `image` on `device`, which `table` maps. The table is registered with the
    image, which keeps the image in memory. Once the KV is there, `reason` says why not all of it is."""

    device: Device
    image: Image
    process: LLMProcess
    table: PageTable
    log: Log = field(default_factory=log_of)  # the tokens that the KV is of
    stored: Stored | None = None  # where it comes from; None: it has come, or there is none
    gained: int = 0  # tokens of it that were mapped from others that begin alike
    reason: str = ""
    asked: Ask[Imported] | None = None

    def __post_init__(self) -> None:
        self.image.imports[self.process.pid] = self.table

    def take_over(self) -> PageTable:
        """The table is the process's own from here on."""
        return self.image.imports.pop(self.process.pid)

    def drop(self, system: System) -> None:
        """Nobody wants the KV any more. What the driver still reads into the frames comes before their next owner's."""
        if self.image.imports.pop(self.process.pid, None) is not None:
            self.table.cut(self.image.pool, 0)
        dirty(system, self.device)

    def tell(self, system: System, how: str, reason: str) -> None:
        """Log how the process came, and why not all of its KV did (`reason`)."""
        reason = reason if self.process.owner.operator else pathless(reason)  # it may be a driver's
        why = f"; the rest is computed again: {reason}" if reason else ""
        text = f"{how}: {len(self.process.log)} tokens, KV of {self.table.cached}{why}"
        system.log("warning" if why else "info", f"process {self.process.pid}: {text}", self.process)


def check_able(device: Device) -> None:
    """ENOTSUP if its driver knows no process images."""
    if device.lacks(IMAGES):
        raise Errno.ENOTSUP(f"the driver of {device.name} neither writes nor reads process images")


def ask(system: System, device: Device, message: Query, wants: type[T], **more: Any) -> Ask[T]:
    """Send a request; `more` are further fields of Ask. The driver imports between its steps, all else beside them."""
    return system.ask(device, message, wants, out_of_order=not isinstance(message, Import), **more)


def send_out(
    system: System, process: LLMProcess, path: str = "", head: bytes = b"", key: bytes = b"", kv: bool = True
) -> Ask[Exported] | Waiting:
    """Have the KV of a process that is not in a step written to `path`, after `head`; without a path, to memory."""
    image, device = process.mapped, process.device
    tokens, frames, slots = process.table.stored() if kv else (0, [], [])
    if slots and device.outs:  # what is to lie in them has yet to be sent there
        return wait(device.swapped_out)
    places = [(slot.tier, slot.number) for slot in slots]
    number = image.id if tokens else 0
    sound = min(tokens, process.table.sound)
    owner = process.owner.key
    message = Export(system.ref(), number, process.pid, path, head, tokens, frames, places, key, sound, owner=owner)
    return ask(system, device, message, Exported, most=tokens, wrong=partial(_elsewhere, device, path))


def _elsewhere(device: Device, path: str, exported: Exported) -> str:
    """Why what was to be written to `path`, or without one to the driver's memory, is not there, or ""."""
    if exported.path == "" if path else exported.path.startswith(f"/proc/{device.os_pid}/fd/"):
        return ""
    return "was written elsewhere"


def bring_in(system: System, coming: Coming) -> Waiting | None:
    """Have KV read into its table, which is empty, as far as there are frames for it."""
    device, stored = coming.device, coming.stored
    if stored is None:
        return None
    if len(device.queues) > 1:
        coming.stored, coming.reason = None, "under a partition no KV is read between the turns"
        return None
    if coming.asked is None:
        if device.outs:
            return wait(device.swapped_out)
        coming.asked = _read(system, coming, stored)
        if coming.asked is not None:
            return wait(coming.asked.channel)
    else:
        _arrived(coming, coming.asked, stored)
    coming.stored = None
    device.reused += coming.gained
    coming.process.account.reused += coming.gained
    return None


def _read(system: System, coming: Coming, stored: Stored) -> Ask[Imported] | None:
    """Map what others have that begin alike, then ask the driver for the rest, into frames that are free or cached if
    nobody is starved; None: there is nothing to ask for."""
    device, image, table, most = coming.device, coming.image, coming.table, stored.tokens
    if not image.held or device.state != UP:  # frames outlive an eviction of the weights
        coming.reason = f"the driver of {device.name} has died"
        return None
    coming.gained = table.reuse(image.pool, coming.log) if most > 0 else 0
    first = len(table.frames)
    if most <= table.cached:
        return None
    frames = [] if image.starved else table.bring(image.pool, most - table.cached)
    if lacking := blocks(most) - len(table.frames):
        coming.reason = f"there are no frames for {lacking} blocks"
    if not frames:
        return None
    tokens, wipes = table.cached, image.pool.to_wipe()
    message = Import(system.ref(), image.id, stored.path, stored.id, first, frames, tokens, stored.key, wipes)
    return ask(system, device, message, Imported, least=min(tokens, BLOCK_TOKENS * first), most=tokens)


def _arrived(coming: Coming, asked: Ask[Imported], stored: Stored) -> None:
    """Take in what the driver has read. Where nobody vouches for it others do not find it, nor what follows from it."""
    pool, table = coming.image.pool, coming.table
    if isinstance(asked.answer, Imported):
        taken = not table.frames
        table.cut(pool, asked.answer.tokens)
        if stored.sound is not None:
            table.distrust(max(coming.gained, stored.sound) // BLOCK_TOKENS, coming.process.pid)
        table.computed(pool, coming.log, 0)
        coming.reason = "others needed its frames" if taken else asked.answer.reason or coming.reason
        return
    table.cut(pool, 0)  # nobody knows what has come of the frames
    if isinstance(asked.answer, Failed):
        coming.reason = asked.answer.reason
    else:
        coming.reason = f"the driver of {coming.device.name} died while it read it{asked.how(coming.process.owner)}"
