"""The edge's side of drivers: their messages become events, and what the core has for them becomes messages.

The files of a driver's images pass by here: their keys are put in (images.py), and what goes into the file of a user is
brought there (files.py) before anybody hears that it was written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from llmasos.drivers import protocol
from llmasos.kernel.edge.door import Door
from llmasos.kernel.edge.files import Files
from llmasos.kernel.edge.images import Images
from llmasos.kernel.edge.intake import Given
from llmasos.kernel.edge.key_store import Store
from llmasos.kernel.edge.peers import Peer
from llmasos.kernel.edge.supervision import Supervisor
from llmasos.kernel.events import DeviceConfig, DriverExited, Event, FromDevice, Noted, Send
from llmasos.kernel.objects.device import HOPELESS
from llmasos.syscalls import budgets, zmtp
from llmasos.syscalls.errno import Errno, SyscallError


class Drivers:
    """The drivers of all devices. `handle` takes events for the core; `decided(device, unusable)` is told when one is up
    (empty), or why it cannot be started: its driver says so, or has ended HOPELESS times and was never up."""

    supervisor: Supervisor  # of their OS processes, from `live` on

    def __init__(
        self,
        descriptors: int,
        handle: Callable[[Event], None],
        decided: Callable[[str, str], None],
        *,
        images: Images,
        files: Files | None,
    ) -> None:
        """`descriptors`: the limit of the operating system for this process."""
        self._handle, self._decided, self._images, self._files = handle, decided, images, files
        self._ends: Counter[str] = Counter()  # of drivers, by device
        self.door = Door(
            descriptors,
            self._from,
            lambda peer: self.supervisor.lost(peer),
            lambda peer, text: handle(Noted("warning", text)),
            received=budgets.DRIVER_RECEIVED,
            sends=budgets.DRIVER_REQUESTS,
            admits=lambda os_pid: self.supervisor.admits(os_pid),
        )

    def live(self, devices: list[DeviceConfig], directory: Path, nursery: trio.Nursery) -> None:
        """Their OS processes live in this nursery, and find the kernel in this runtime directory."""
        self._nursery = nursery
        self.supervisor = Supervisor(devices, directory, self._from_supervisor, nursery)

    async def end_all(self, hurry: trio.Event) -> None:
        """End every driver, in good order unless there is `hurry`."""
        await self.supervisor.end_all(lambda device, number: self._tell(device, number, protocol.Quit()), hurry)

    def _from(self, peer: Peer, message: zmtp.Frame | zmtp.Refused) -> None:
        named = self.supervisor.named(peer)
        if named is None:
            return  # a late message of a driver whose end was reported already, or a stranger's
        name, incarnation = named
        if isinstance(message, zmtp.Refused):
            self.supervisor.kill(name, incarnation, f"it sent what is no message: {message.reason}")
            return
        try:
            event = FromDevice(name, incarnation, protocol.decode_from_driver(message))
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            self.supervisor.kill(name, incarnation, f"it sent what is no message: {error}")
            return
        said = event.message
        if isinstance(said, protocol.Hello) and not self.supervisor.is_child(name, incarnation, said.os_pid):
            self.supervisor.kill(name, incarnation, f"it says that it is OS process {said.os_pid}, and is another")
        else:
            self._take(event)

    def _take(self, event: FromDevice) -> None:
        """An answer for the core; for the driver it is another question where the file that it looked at is sealed."""
        found = self._images.incoming(event.device, event.message)
        if isinstance(found, protocol.Inspect):
            self._tell(event.device, event.incarnation, found)
            return
        event = FromDevice(event.device, event.incarnation, found)
        given = None
        if self._files is not None and isinstance(found, protocol.Exported | protocol.Failed):
            given = self._files.told(event.device, found.ref)
        if isinstance(found, protocol.Exported):
            keys = self._images.kept(event.device, found)
            if keys is not None or given is not None:
                self._nursery.start_soon(self._when_written, keys, given, event, found.ref)
                return
        self._handle(event)
        if isinstance(event.message, protocol.Hello):
            self._decided(event.device, "")

    async def _when_written(self, keys: Store | None, given: Given | None, event: FromDevice, ref: int) -> None:
        """A file is of no use without its key, so that is on the disk before anybody hears of it; and so is the file of
        a user that it goes into."""
        try:
            if keys is not None:
                await trio.to_thread.run_sync(keys.sync)
            if given is not None and self._files is not None:
                await self._files.deliver(given)
        except SyscallError as error:
            errno = error.errno if error.errno in protocol.FAILURES else Errno.EIO
            event = FromDevice(event.device, event.incarnation, protocol.Failed(ref, errno, error.reason))
        except OSError as error:
            reason = f"the key of the file cannot be written: {error.strerror}"
            event = FromDevice(event.device, event.incarnation, protocol.Failed(ref, Errno.EIO, reason))
        self._handle(event)

    def send(self, action: Send) -> None:
        """Send a driver what the core has for it, with its keys."""
        shown = self._files is not None and self._files.asked(action.device, action.message)
        message = self._images.outgoing(action.device, action.message, shown=shown)
        if isinstance(message, protocol.Failed):
            self._handle(FromDevice(action.device, action.incarnation, message))
            return
        self._tell(action.device, action.incarnation, message)

    def _from_supervisor(self, event: Event) -> None:
        if isinstance(event, DriverExited):
            self.door.drain()  # the messages that it still sent count
            self._images.died(event.device)
            if self._files is not None:
                self._files.died(event.device)
        self._handle(event)
        if isinstance(event, DriverExited):
            self._ends[event.device] += 1
            unusable = self.supervisor.unusable.get(event.device, "")
            if unusable or self._ends[event.device] >= HOPELESS:
                self._decided(event.device, unusable or event.reason)

    def _tell(self, device: str, incarnation: int, message: protocol.ToDriver) -> bool:
        peer = self.supervisor.peer(device, incarnation)
        return peer is not None and self.door.send(peer, protocol.encode(message))
