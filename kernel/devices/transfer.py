"""KV on its way between a device and a file: what is asked of drivers for it, and frames for what comes.

A driver reads in the order of its requests, so frames into which KV is read can be given to another process at any time:
that one's steps write them after the read. Until its process takes it over, KV that comes lies in a table of its own
(`Image.imports`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmasos.drivers.protocol import BLOCK_TOKENS, IMAGES, Export, Failed, Import, Imported, Inspect, Probe
from llmasos.kernel.memory.page_table import PageTable, blocks
from llmasos.kernel.objects.device import UP, Ask, Device
from llmasos.kernel.objects.image import Image
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno


@dataclass(slots=True, frozen=True)
class Stored:
    """KV of a context's first `tokens` tokens in the file `path`, which the driver that wrote it called `id`."""

    path: str
    id: bytes
    tokens: int
    key: bytes = b""


@dataclass(slots=True)
class Arrival:
    """KV on its way into a table: `gained` tokens of it were mapped from others that begin alike; `reason` says why not
    all of the rest will be there. `ask` is the request to the driver, if one was needed."""

    table: PageTable
    gained: int = 0
    reason: str = ""
    ask: Ask | None = None


def check_able(device: Device) -> None:
    """ENOTSUP if its driver knows no process images."""
    if device.hello is not None and IMAGES not in device.hello.features:
        raise Errno.ENOTSUP(f"the driver of {device.name} neither writes nor reads process images")


def ask(system: System, device: Device, message: Export | Inspect | Import | Probe, wants: type[Any], **more: Any) -> Ask:
    """Send a request; `more` are further fields of Ask. The driver imports between its steps, all else beside them."""
    asked = Ask(message.ref, wants, out_of_order=not isinstance(message, Import), **more)
    device.asked[message.ref] = asked
    system.send(device, message)
    return asked


def bring_in(
    system: System, device: Device, image: Image, pid: int, log: Sequence[int], most: int, stored: Stored
) -> Arrival:
    """Have KV of up to `most` tokens of a log read into the table `image.imports[pid]`, which is empty. Frames come from
    shared prefixes, then from free or cached ones if nobody is starved."""
    arrival = Arrival(image.imports[pid])
    table = arrival.table
    if not image.held or device.state != UP:  # frames outlive an eviction of the weights
        arrival.reason = f"the driver of {device.name} has died"
        return arrival
    arrival.gained = table.reuse(image.pool, log) if most > 0 else 0
    first = len(table.frames)
    if most <= table.cached:
        return arrival
    frames = [] if image.starved else table.bring(image.pool, most - table.cached)
    if lacking := blocks(most) - len(table.frames):
        arrival.reason = f"there are no frames for {lacking} blocks"
    if frames:
        tokens = table.cached
        message = Import(system.ref(), image.id, stored.path, stored.id, first, frames, tokens, stored.key)
        arrival.ask = ask(system, device, message, Imported, least=min(tokens, BLOCK_TOKENS * first), most=tokens)
    return arrival


def arrived(device: Device, image: Image, log: Sequence[int], arrival: Arrival) -> str:
    """Take in what the driver has read; returns why not all of the KV is there, or ""."""
    asked, table = arrival.ask, arrival.table
    if asked is None:
        return arrival.reason
    if isinstance(asked.answer, Imported):
        taken = not table.frames
        table.cut(image.pool, asked.answer.tokens)
        table.computed(image.pool, log, 0)
        return "others needed its frames" if taken else asked.answer.reason or arrival.reason
    table.cut(image.pool, 0)  # nobody knows what has come of the frames
    if isinstance(asked.answer, Failed):
        return asked.answer.reason
    return f"the driver of {device.name} died while it read it: {asked.death}"


def give_up(image: Image, pid: int) -> None:
    """The KV that is being read for a process is wanted no more."""
    table = image.imports.pop(pid, None)
    if table is not None:
        table.cut(image.pool, 0)
