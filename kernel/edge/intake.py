"""One showing of files, from its first message to the last: descriptors are taken and tested, and what is to be read is
copied (copies.py). What comes of it (Given) is good whatever becomes of the files and of the connection.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from llmasos.kernel.edge import copies
from llmasos.kernel.edge.copies import Copies, Copy, Item, Stamp
from llmasos.kernel.edge.descriptor_passing import receive, send
from llmasos.kernel.edge.peers import Peer
from llmasos.kernel.edge.user_io import UserIO
from llmasos.syscalls import shown, zeromq
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.shown import File, Kept, Show, ToKernel, Whole
from llmasos.syscalls.table import Names

_NO_DESCRIPTOR = "no descriptor came with it; is the limit of descriptors (`ulimit -n`) reached?"


@dataclass(slots=True, eq=False)
class Given:
    """What was shown whole: a copy, an image to read (`path`), or a file to write into (`path`, `descriptor`)."""

    what: Names
    uid: int
    os_pid: int
    process: int  # a pidfd of it, since a pid may be another's one day; -1: the system has none
    path: str
    copy: Copy | None = None
    descriptor: int = -1
    size: int = 0  # bytes of an image, which are charged while it is there
    until: float = 0.0
    busy: bool = False  # it is being written into
    left: bool = False  # and nobody waits for that

    def is_of(self, peer: Peer) -> bool:
        same = not peer.host and (peer.os_pid, peer.uid) == (self.os_pid, self.uid)
        return same and not (self.process >= 0 and zeromq.ended(self.process))


@dataclass(slots=True, eq=False)
class _Showing:
    """A connection by which something is shown."""

    connection: trio.socket.SocketType
    os_pid: int
    uid: int
    process: int
    what: Names = Names.MODEL
    name: str = ""
    items: list[Item] = field(default_factory=list)
    held: list[str] = field(default_factory=list)  # digests
    reserved: int = 0  # bytes
    image: tuple[Path, int] | None = None
    target: int = -1


class Intake:
    """What is being shown. `put_away` has paths removed in time."""

    def __init__(self, store: Copies, io: UserIO, put_away: Callable[[list[Path]], None]) -> None:
        self._copies, self._io, self._put_away = store, io, put_away

    async def show(self, connection: trio.socket.SocketType, os_pid: int, uid: int) -> Given:
        """Have an OS process of a user show something by a connection. Raises SyscallError, OSError, EOFError,
        UnicodeError."""
        showing = _Showing(connection, os_pid, uid, zeromq.pidfd(connection.fileno(), zeromq.Credentials(os_pid, uid)))
        try:
            return await self._all(showing)
        finally:
            self._put_away(self._copies.release(showing.held))
            self._free(showing)
            if showing.process >= 0:
                os.close(showing.process)
            self._io.close(uid, showing.target)
            if showing.image is not None:
                self._put_away([showing.image[0]])
                self._copies.unreserve(uid, showing.image[1])

    def release(self, given: Given) -> None:
        """Nobody uses it any more."""
        if given.copy is not None:
            given.copy.pins -= 1
            given.copy = None
        elif given.path:
            self._put_away([Path(given.path).parent])
        if given.size:
            self._copies.unreserve(given.uid, given.size)
            given.size = 0
        if given.process >= 0:
            os.close(given.process)
        self._io.close(given.uid, given.descriptor)
        given.process = given.descriptor = -1

    async def _all(self, showing: _Showing) -> Given:
        await self._io.all_but_closed(showing.uid)
        first, stray = await self._receive(showing)
        self._io.close(showing.uid, stray)
        if not isinstance(first, Show):
            raise Errno.EPROTO("what the files are for was to be said first (Show)")
        showing.what = Names[first.what.upper()]
        most = shown.MOST_FILES if showing.what is Names.MODEL else 1
        while True:
            message, descriptor = await self._receive(showing)
            try:
                if isinstance(message, Whole):
                    return await self._whole(showing, message.first or "")
                if not isinstance(message, File):
                    raise Errno.EPROTO("a file was to be shown (File), or the end to be told (Whole)")
                if len(showing.items) >= most or any(item.name == message.name for item in showing.items):
                    raise Errno.E2BIG(f"{message.name}: of {most} files at most each is shown once")
                await self._take(showing, message.name, descriptor)
            finally:
                self._io.close(showing.uid, descriptor)
            await self._io.all_but_closed(showing.uid)
            await send(showing.connection, Kept())

    async def _receive(self, showing: _Showing) -> tuple[ToKernel, int]:
        """A message, and the descriptor that came with it, or -1. Raises SyscallError EPROTO, ETIME; OSError, EOFError"""
        found = list[int]()
        try:
            message = await receive(showing.connection, found)
            return message, found.pop() if found else -1
        finally:
            for descriptor in found:
                self._io.close(showing.uid, descriptor)

    async def _take(self, showing: _Showing, name: str, descriptor: int) -> None:
        if descriptor < 0:
            raise Errno.EAGAIN(f"{name}: {_NO_DESCRIPTOR}")
        flags, writing = fcntl.fcntl(descriptor, fcntl.F_GETFL), showing.what is Names.TARGET
        try:
            stamp = await self._io.run(
                showing.uid, descriptor, 0, lambda own: copies.looked_at(own, flags, writing=writing)
            )
            if writing:
                showing.target, digest = os.dup(descriptor), ""
            elif showing.what is Names.FILE:
                digest = await self._image(showing, name, descriptor, stamp)
            elif digest := self._copies.known(showing.uid, stamp):
                self._copies.hold(digest, stamp.size)
                showing.held.append(digest)
            else:
                digest = await self._copied(showing, descriptor, stamp)
        except SyscallError as error:
            raise error.errno(f"{name}: {error.reason}") from None
        except OSError as error:
            raise Errno.EIO(f"{name} cannot be taken: {error.strerror or error}") from None
        showing.items.append(Item(name, digest, stamp.size))

    async def _copied(self, showing: _Showing, descriptor: int, stamp: Stamp) -> str:
        uid, place, size = showing.uid, self._copies.spool(), stamp.size
        going = self._copies.reserve(uid, size)
        showing.reserved += size
        try:
            await trio.to_thread.run_sync(copies.remove, going)
            digest = ""
            if self._copies.like(size):
                digest = await self._io.run(uid, descriptor, size, lambda own: copies.read_whole(own, stamp, None))
            copied = not (digest and self._copies.has(digest))
            if copied:
                digest = await self._io.run(uid, descriptor, size, lambda own: copies.read_whole(own, stamp, place))
            self._copies.take(uid, stamp, digest, place if copied else None)
        except BaseException:
            self._put_away([place])  # a thread that was left alone may write there still
            raise
        showing.held.append(digest)
        return digest

    async def _image(self, showing: _Showing, name: str, descriptor: int, stamp: Stamp) -> str:
        folder = self._copies.spool()
        going = self._copies.reserve(showing.uid, stamp.size)
        showing.image = folder, stamp.size
        await trio.to_thread.run_sync(copies.remove, going)
        folder.mkdir(mode=0o700)
        file = folder / name
        return await self._io.run(showing.uid, descriptor, stamp.size, lambda own: copies.read_whole(own, stamp, file))

    async def _whole(self, showing: _Showing, first: str) -> Given:
        names = {item.name for item in showing.items}
        if not names or (first and first not in names):
            raise Errno.EINVAL(f"no file {first!r} was shown" if first else "no file was shown")
        process = os.dup(showing.process) if showing.process >= 0 else -1
        given = Given(showing.what, showing.uid, showing.os_pid, process, "")
        try:
            if showing.what is Names.MODEL:
                await self._model(showing, given, first)
            elif showing.what is Names.TARGET:
                folder = self._copies.spool()
                folder.mkdir(mode=0o700)
                given.path, given.descriptor, showing.target = (
                    os.fspath(folder / showing.items[0].name),
                    showing.target,
                    -1,
                )
            elif showing.image is not None:
                given.path, given.size = os.fspath(showing.image[0] / showing.items[0].name), showing.image[1]
                showing.image = None
        except BaseException:
            self.release(given)
            raise
        return given

    async def _model(self, showing: _Showing, given: Given, first: str) -> None:
        items, uid = showing.items, showing.uid
        self._free(showing)
        showing.reserved, going = self._copies.reserve_model(uid, items)
        self._put_away(going)
        try:
            with self._copies.coming(items):
                digest = await trio.to_thread.run_sync(self._copies.link, items)
                given.copy = copy = self._copies.add(uid, digest, items, first)
            given.path = self._copies.path(copy, first)
            self._free(showing)  # `add` has charged it
            await trio.to_thread.run_sync(self._copies.note, uid, digest, sorted(copy.uids[uid]))
        except OSError as error:
            raise Errno.EIO(f"the copy cannot be kept: {error.strerror or error}") from None

    def _free(self, showing: _Showing) -> None:
        self._copies.unreserve(showing.uid, showing.reserved)
        showing.reserved = 0
