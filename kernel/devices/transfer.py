"""KV on its way between a device and a file: what is asked of drivers for it, and frames for what comes.

A driver reads in the order of its requests, so that frames into which KV is read can be given to somebody else at any
time: whoever gets them writes them after that. Until it has come and its process takes it over, KV lies in a table of its
own (`Image.imports`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmasos.drivers.protocol import BLOCK_TOKENS, IMAGES, Export, Failed, Import, Imported, Inspect, Probe
from llmasos.kernel.memory.page_table import blocks
from llmasos.kernel.objects.device import UP, Device
from llmasos.kernel.objects.image import Image
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno, SyscallError


@dataclass(slots=True, frozen=True)
class Stored:
    """KV of a context's first `tokens` tokens in the file `path`, which the driver that wrote it called `id`."""

    path: str
    id: bytes
    tokens: int
    key: bytes = b""


def check_able(device: Device) -> None:
    """ENOTSUP if its driver knows no process images."""
    if device.hello is not None and IMAGES not in device.hello.features:
        raise SyscallError(Errno.ENOTSUP, f"the driver of {device.name} neither writes nor reads process images")


def ask(
    system: System,
    device: Device,
    message: Export | Inspect | Import | Probe,
    answer: Callable[[object], None],
    died: Callable[[str], None],
) -> None:
    """Send a request, whose `answer` or, if the driver dies before, `died` is called."""
    device.answers[message.ref] = answer
    device.died[message.ref] = died
    if not isinstance(message, Import):
        device.aside.add(message.ref)
    system.send(device, message)


def after_outs(device: Device, go: Callable[[], None]) -> None:
    """Do something once no frame of the device is yet to be moved out: now, or after the next step has been sent."""
    if device.outs:
        device.after_outs.append(go)
    else:
        go()


def bring_in(
    system: System,
    device: Device,
    image: Image,
    pid: int,
    log: Sequence[int],
    most: int,
    stored: Stored,
    arrived: Callable[[int, str], None],
) -> None:
    """Have KV of up to `most` tokens of a log read into the table `image.imports[pid]`, which is empty.

    Its frames are those of others that begin alike, and such as are free or cached, if nobody waits for them. `arrived`
    is called with the number of tokens gained from others, and why not all of the rest is there, or ""; unless the table
    has been taken from `image.imports` by then.
    """
    table = image.imports[pid]
    if not image.held or device.state != UP:  # frames outlive an eviction of the weights
        arrived(0, f"the driver of {device.name} has died")
        return
    gained = table.reuse(image.pool, log) if most > 0 else 0
    first = len(table.frames)
    if most <= table.cached:
        arrived(gained, "")
        return
    frames = [] if image.starved else table.bring(image.pool, most - table.cached)
    short = blocks(most) - len(table.frames)
    lacking = f"there are no frames for {short} blocks" if short else ""
    if not frames:
        arrived(gained, lacking)
        return
    asked = table.cached

    def done(message: object) -> None:
        if image.imports.get(pid) is not table:
            return
        if isinstance(message, Failed):
            unread(message.reason)
            return
        if not isinstance(message, Imported) or not min(asked, BLOCK_TOKENS * first) <= message.tokens <= asked:
            unread("the driver did not speak the protocol")
            raise SyscallError(Errno.EPROTO, f"an import was answered by {type(message).__name__}")
        taken = not table.frames
        table.cut(image.pool, message.tokens)
        table.computed(image.pool, log, 0)
        arrived(gained, "others needed its frames" if taken else message.reason or lacking)

    def unread(reason: str) -> None:
        """What came of the frames nobody knows."""
        if image.imports.get(pid) is table:
            table.cut(image.pool, 0)
            arrived(gained, reason)

    def died(reason: str) -> None:
        unread(f"the driver of {device.name} died while it read it: {reason}")

    message = Import(system.ref(), image.id, stored.path, stored.id, first, frames, asked, stored.key)
    ask(system, device, message, done, died)


def give_up(image: Image, pid: int) -> None:
    """What is being read for a process is wanted no more."""
    table = image.imports.pop(pid, None)
    if table is not None:
        table.cut(image.pool, 0)
