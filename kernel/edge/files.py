"""Files that users show to a shared kernel: descriptors come by a socket of their own, and stand for paths in calls.

The kernel opens no path for a user (syscalls/shown.py says why, and what is said on the socket). Descriptors are taken
and tested, and what is to be read is copied (intake.py); here each thing that was shown whole gets a reference. In a
call of the OS process that has shown it, and in no other, the reference is replaced by the path of the copy, before the
core sees the call; it is good once. So what a name leads to, and who exchanges it when, makes no difference: it was
opened before, by its user.

An image to be written goes to a path of the kernel's own, and from there into the file that the user opened; only then is
it told that it was written. The user gives the file its name, which replaces what had it in one step.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import trio

from llmasos.drivers.protocol import Export
from llmasos.kernel.edge import copies, listening
from llmasos.kernel.edge.admission import Admission
from llmasos.kernel.edge.copies import Copies
from llmasos.kernel.edge.descriptor_passing import SILENT_SECONDS, send
from llmasos.kernel.edge.intake import Given, Intake
from llmasos.kernel.edge.listening import Reach
from llmasos.kernel.edge.peers import Peer
from llmasos.kernel.edge.user_io import UserIO
from llmasos.syscalls import shown, zeromq
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Budget
from llmasos.syscalls.shown import Denied, Taken
from llmasos.syscalls.table import Call, Names

REFERENCE_SECONDS = 30.0  # within which the call must come
_MOST_REFERENCES = 64  # of a user
_NOT_NAMED = "it has a name that the file system of the kernel cannot have; give it another"
_PIECE = 1 << 20


class Files:
    """The socket, what is being shown, and what has been."""

    def __init__(self, place: Path, in_use: Callable[[], set[str]]) -> None:
        """`place`: of the copies; `in_use`: paths that the core needs. Raises OSError."""
        self._copies = Copies(place, in_use)
        self._given: dict[str, Given] = {}  # by reference
        self._pinned: dict[tuple[int, int], list[Given]] = {}  # by the connection and number of a call on its way
        self._targets: dict[str, Given] = {}  # by path
        self._exports: dict[tuple[str, int], Given] = {}  # by device and number of the request
        self._admission, self._io = Admission(), UserIO()
        self._intake = Intake(self._copies, self._io, self._put_away)
        self._listener: socket.socket | None = None
        self._going: list[Path] = []  # to be removed
        self._bell = trio.Event()

    # --- the socket ---

    def listen(self, path: Path, reach: Reach) -> None:
        """Listen at `path`. Raises OSError."""
        self.close()
        self._listener = listening.listen(path, reach)

    def close(self) -> None:
        if self._listener is not None:
            with suppress(RuntimeError):  # outside trio nobody waits
                trio.lowlevel.notify_closing(self._listener)
            self._listener.close()
            self._listener = None

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            nursery.start_soon(self._clear)
            while True:
                listener = self._listener
                if listener is None:
                    await trio.sleep(SILENT_SECONDS)
                    continue
                try:
                    await trio.lowlevel.wait_readable(listener)
                    connection, _ = listener.accept()
                except (trio.ClosedResourceError, BlockingIOError, ConnectionAbortedError):
                    continue
                except OSError:  # no descriptor is left, or it listens elsewhere now
                    await trio.sleep(0.1)
                    continue
                nursery.start_soon(self._serve, connection)

    async def _sweep(self) -> None:
        """Forget what nobody has used in time."""
        while True:
            await trio.sleep(REFERENCE_SECONDS / 3)
            for reference in [one for one, given in self._given.items() if given.until < time.monotonic()]:
                self._let_go(self._given.pop(reference))
            self._io.close_again()

    async def _clear(self) -> None:
        """Remove what is not needed any more."""
        while True:
            await self._bell.wait()
            self._bell, going, self._going = trio.Event(), self._going, []
            await trio.to_thread.run_sync(copies.remove, going)

    def _put_away(self, going: list[Path]) -> None:
        if going:
            self._going += going
            self._bell.set()

    async def _serve(self, raw: socket.socket) -> None:
        found = zeromq.credentials(raw.fileno())
        connection = trio.socket.from_stdlib_socket(raw)
        with connection:
            try:
                if found.uid is None or found.pid <= 0:
                    raise Errno.EPERM("the operating system does not say whose program this is")
                with self._admission.charged(found.pid, found.uid):
                    await self._one(connection, found.pid, found.uid)
            except SyscallError as error:
                with suppress(OSError), trio.move_on_after(SILENT_SECONDS):
                    await send(connection, Denied(error.errno, error.reason))
            except UnicodeError:  # of the file system's names
                with suppress(OSError), trio.move_on_after(SILENT_SECONDS):
                    await send(connection, Denied(Errno.EINVAL, _NOT_NAMED))
            except (OSError, EOFError):  # it has gone
                pass

    async def _one(self, connection: trio.socket.SocketType, os_pid: int, uid: int) -> None:
        given = await self._intake.show(connection, os_pid, uid)
        if given.what is Names.TARGET:
            self._targets[given.path] = given
            self._admission.add(os_pid, uid, 1)
        reference = f"shown:{secrets.token_hex(16)}"
        mine = [one for one, other in self._given.items() if other.uid == uid]
        if len(mine) >= _MOST_REFERENCES:
            self._let_go(self._given.pop(mine[0]))
        given.until = time.monotonic() + REFERENCE_SECONDS
        self._given[reference] = given
        await send(connection, Taken(reference, given.path))

    # --- calls ---

    def named(self, peer: Peer, seq: int, call: Call[Any]) -> tuple[Call[Any], frozenset[str] | None]:
        """A call with paths in place of its references, and the paths that its user may name. References that are not
        good stay, and the core says so: it may have answered that call already."""
        fields = shown.NAMING.get(type(call))
        if fields is None or peer.uid is None:
            return call, None
        files, changes = self._copies.paths_of(peer.uid), {}
        for name, what in fields:
            value = getattr(call, name)
            found = shown.REFERENCE.search(value)
            given = self._given.get(found[0]) if found else None
            if found is None or given is None or given.what is not what or not given.is_of(peer):
                continue
            del self._given[found[0]]
            self._pinned.setdefault((peer.number, seq), []).append(given)
            changes[name] = value.replace(found[0], given.path)
            files |= {given.path}
        return (msgspec.structs.replace(call, **changes) if changes else call), files

    def answered(self, number: int, seq: int) -> None:
        """A call of connection `number` has its answer."""
        for given in self._pinned.pop((number, seq), ()):
            self._let_go(given)

    def gone(self, number: int) -> None:
        """A connection has ended."""
        for key in [one for one in self._pinned if one[0] == number]:
            self.answered(*key)

    def _let_go(self, given: Given) -> None:
        if given.busy:
            given.left = True
            return
        if self._targets.pop(given.path, None) is not None:
            self._admission.add(given.os_pid, given.uid, -1)
        self._intake.release(given)

    # --- images that are written ---

    def asked(self, device: str, message: object) -> bool:
        """A driver is about to be asked for something; whether that is to write an image for a user."""
        given = self._targets.get(message.path) if isinstance(message, Export) else None
        if isinstance(message, Export) and given is not None:
            self._exports[device, message.ref] = given
        return given is not None

    def told(self, device: str, ref: int) -> Given | None:
        """A driver has answered; into which file of a user's that goes."""
        given = self._exports.pop((device, ref), None)
        return given if given is not None and given.descriptor >= 0 else None

    def died(self, device: str) -> None:
        for key in [one for one in self._exports if one[0] == device]:
            del self._exports[key]

    async def deliver(self, given: Given) -> None:
        """Write an image into the user's file, and have it on the disk. Raises SyscallError."""
        given.busy = True
        try:
            size = os.stat(given.path).st_size
            await self._io.run(given.uid, given.descriptor, size, lambda own: _written(Path(given.path), own))
        except OSError as error:
            raise Errno.EIO(f"the image cannot be written into the file that was shown: {error.strerror}") from None
        finally:
            given.busy = False
            if given.left:
                self._let_go(given)

    def budgets(self) -> list[Budget]:
        return [self._admission.told(), self._copies.told()]


def _written(source: Path, into: int) -> None:
    with source.open("rb", buffering=0) as file:
        os.ftruncate(into, 0)
        at = 0
        while data := file.read(_PIECE):
            view = memoryview(data)
            while view:
                done = os.pwrite(into, view, at)
                at, view = at + done, view[done:]
    os.fsync(into)
