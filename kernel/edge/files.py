"""Files that users show to a shared kernel: descriptors come by a socket of their own, and stand for paths in calls.

The kernel opens no path for a user (syscalls/shown.py says why, and what is said on the socket). Here descriptors are
taken and tested, what is to be read is copied (copies.py), and each thing that was shown whole gets a reference. In a
call of the OS process that has shown it, and in no other, the reference is replaced by the path of the copy, before the
core sees the call; it is good once. So what a name leads to, and who exchanges it when, makes no difference: it was
opened before, by its user.

An image to be written goes to a path of the kernel's own, and from there into the file that the user opened; only then is
it told that it was written. The user gives the file its name, which replaces what had it in one step.

Reading and writing is done in threads, for each user a few: a file may lie on a file system that its user serves, and
such a one may let the reader wait for ever. A thread that does is left alone when its time is over, and stays charged.
"""

from __future__ import annotations

import array
import fcntl
import os
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import outcome
import trio

from llmasos.drivers.protocol import Export
from llmasos.kernel.edge import copies, listening
from llmasos.kernel.edge.copies import Copies, Copy, Item, Stamp
from llmasos.kernel.edge.listening import Reach
from llmasos.kernel.edge.peers import Peer
from llmasos.syscalls import shown, zeromq
from llmasos.syscalls.budgets import SHOWN
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Budget
from llmasos.syscalls.shown import Denied, File, FromKernel, Kept, Show, Taken, ToKernel, Whole
from llmasos.syscalls.table import Call, Names

T = TypeVar("T")

SILENT_SECONDS = 30.0  # for which a connection may say nothing
REFERENCE_SECONDS = 30.0  # within which the call must come
LEAST_SECONDS, LEAST_RATE = 30.0, 4e6  # a file is read or written within these seconds, and this many bytes/s
_MOST_REFERENCES = 64  # of a user
_THREADS = 2  # of a user, and one that closes
_MOST_CLOSING = 16  # descriptors of a user that wait to be closed
_NOT_NAMED = "it has a name that the file system of the kernel cannot have; give it another"
_NO_DESCRIPTOR = "no descriptor came with it; is the limit of descriptors (`ulimit -n`) reached?"
_PIECE = 1 << 20


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


class Files:
    """The socket, what is being shown, and what has been."""

    def __init__(self, place: Path, in_use: Callable[[], set[str]]) -> None:
        """`place`: of the copies; `in_use`: paths that the core needs. Raises OSError."""
        self._copies = Copies(place, in_use)
        self._given: dict[str, Given] = {}  # by reference
        self._pinned: dict[tuple[int, int], list[Given]] = {}  # by the connection and number of a call on its way
        self._targets: dict[str, Given] = {}  # by path
        self._exports: dict[tuple[str, int], Given] = {}  # by device and number of the request
        self._count: Counter[tuple[str, int]] = Counter()  # what is charged to OS processes and users
        self._refused = 0
        self._limiters: dict[int, trio.CapacityLimiter] = {}
        self._closing: dict[int, deque[int]] = {}  # descriptors of users', of which the first one is being closed
        self._unclosed: set[int] = set()  # users of whose descriptors none is, for want of a thread
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
            unclosed, self._unclosed = self._unclosed, set()
            for uid in unclosed:
                self._close_next(uid)

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
                with self._charged(found.pid, found.uid):
                    await self._one(connection, found.pid, found.uid)
            except SyscallError as error:
                with suppress(OSError), trio.move_on_after(SILENT_SECONDS):
                    await _send(connection, Denied(error.errno, error.reason))
            except UnicodeError:  # of the file system's names
                with suppress(OSError), trio.move_on_after(SILENT_SECONDS):
                    await _send(connection, Denied(Errno.EINVAL, _NOT_NAMED))
            except (OSError, EOFError):  # it has gone
                pass

    @contextmanager
    def _charged(self, os_pid: int, uid: int) -> Iterator[None]:
        levels = (("process", os_pid, SHOWN.process), ("user", uid, SHOWN.owner), ("", 0, SHOWN.all))
        for kind, number, most in levels:
            if (used := self._count[kind, number]) >= most:
                self._refused += 1
                raise SHOWN.refuse(f"{'OS ' if kind == 'process' else ''}{kind} {number}" if kind else "all", used, most)
        self._add(os_pid, uid, 1)
        try:
            yield
        finally:
            self._add(os_pid, uid, -1)

    def _add(self, os_pid: int, uid: int, count: int) -> None:
        for key in (("process", os_pid), ("user", uid), ("", 0)):
            self._count[key] += count
            if not self._count[key]:
                del self._count[key]

    async def _one(self, connection: trio.socket.SocketType, os_pid: int, uid: int) -> None:
        showing = _Showing(connection, os_pid, uid, zeromq.pidfd(connection.fileno(), zeromq.Credentials(os_pid, uid)))
        try:
            given = await self._shown(showing)
            reference = f"shown:{secrets.token_hex(16)}"
            mine = [one for one, other in self._given.items() if other.uid == uid]
            if len(mine) >= _MOST_REFERENCES:
                self._let_go(self._given.pop(mine[0]))
            given.until = time.monotonic() + REFERENCE_SECONDS
            self._given[reference] = given
        finally:
            self._put_away(self._copies.release(showing.held))
            self._free(showing)
            if showing.process >= 0:
                os.close(showing.process)
            self._close(uid, showing.target)
            if showing.image is not None:
                self._put_away([showing.image[0]])
                self._copies.unreserve(uid, showing.image[1])
        await _send(connection, Taken(reference, given.path))

    # --- what is shown ---

    async def _shown(self, showing: _Showing) -> Given:
        await self._all_but_closed(showing.uid)
        first, stray = await self._receive(showing)
        self._close(showing.uid, stray)
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
                self._close(showing.uid, descriptor)
            await self._all_but_closed(showing.uid)
            await _send(showing.connection, Kept())

    async def _receive(self, showing: _Showing) -> tuple[ToKernel, int]:
        """A message, and the descriptor that came with it, or -1. Raises SyscallError EPROTO, ETIME; OSError, EOFError"""
        connection, found = showing.connection, list[int]()
        try:
            with trio.move_on_after(SILENT_SECONDS):
                (length,) = shown.LENGTH.unpack(await _exactly(connection, shown.LENGTH.size, found))
                if length > shown.MOST_MESSAGE:
                    raise Errno.EPROTO(f"a message of {length} bytes, and {shown.MOST_MESSAGE} are the most")
                message = shown.to_kernel(await _exactly(connection, length, found))
                return message, found.pop() if found else -1
        except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError) as error:
            raise Errno.EPROTO(f"no message: {error}") from None
        finally:
            for descriptor in found:
                self._close(showing.uid, descriptor)
        raise Errno.ETIME(f"nothing more came for {SILENT_SECONDS:.0f} s")

    def _close(self, uid: int, descriptor: int) -> None:
        """Close a user's descriptor (-1: none). His file system is told of it, and may never answer, so a thread does it,
        one after the other."""
        if descriptor < 0:
            return
        waiting = self._closing.setdefault(uid, deque())
        waiting.append(descriptor)
        if len(waiting) == 1:
            self._close_next(uid)

    def _close_next(self, uid: int) -> None:
        waiting, entry = self._closing[uid], trio.lowlevel.current_trio_token()

        def closed(_: object) -> None:
            with suppress(trio.RunFinishedError):
                entry.run_sync_soon(self._closed, uid)

        try:
            trio.lowlevel.start_thread_soon(partial(os.close, waiting[0]), closed)
        except RuntimeError:  # no thread can be made: `_sweep` tries again
            self._unclosed.add(uid)

    def _closed(self, uid: int) -> None:
        self._closing[uid].popleft()
        if self._closing[uid]:
            self._close_next(uid)
        else:
            del self._closing[uid]

    async def _all_but_closed(self, uid: int) -> None:
        """Until no more than a few descriptors of a user's wait to be closed. Raises SyscallError ETIME."""
        with trio.move_on_after(LEAST_SECONDS):
            while len(self._closing.get(uid, ())) > _MOST_CLOSING:  # noqa: ASYNC110 - nobody waits in usual times
                await trio.sleep(0.01)
            return
        raise Errno.ETIME("files that were shown before cannot be closed: their file system does not answer")

    async def _take(self, showing: _Showing, name: str, descriptor: int) -> None:
        if descriptor < 0:
            raise Errno.EAGAIN(f"{name}: {_NO_DESCRIPTOR}")
        flags, writing = fcntl.fcntl(descriptor, fcntl.F_GETFL), showing.what is Names.TARGET
        try:
            stamp = await self._in_thread(
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
                digest = await self._in_thread(uid, descriptor, size, lambda own: copies.read_whole(own, stamp, None))
            copied = not (digest and self._copies.has(digest))
            if copied:
                digest = await self._in_thread(uid, descriptor, size, lambda own: copies.read_whole(own, stamp, place))
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
        return await self._in_thread(showing.uid, descriptor, stamp.size, lambda own: copies.read_whole(own, stamp, file))

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
                self._targets[given.path] = given
                self._add(showing.os_pid, showing.uid, 1)
            elif showing.image is not None:
                given.path, given.size = os.fspath(showing.image[0] / showing.items[0].name), showing.image[1]
                showing.image = None
        except BaseException:
            self._let_go(given)
            raise
        return given

    async def _model(self, showing: _Showing, given: Given, first: str) -> None:
        items, uid = showing.items, showing.uid
        self._free(showing)
        showing.reserved, going = self._copies.reserve_model(uid, items)
        self._put_away(going)
        try:
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

    async def _in_thread(self, uid: int, descriptor: int, size: int, work: Callable[[int], T]) -> T:
        """Have something done with a descriptor of a user's, which may take as long as he likes: it is left alone when
        its time is over. Raises SyscallError ETIME, and what `work` does."""
        limiter, token = self._limiters.setdefault(uid, trio.CapacityLimiter(_THREADS)), object()
        entry, seconds = trio.lowlevel.current_trio_token(), LEAST_SECONDS + size / LEAST_RATE
        found: list[outcome.Outcome[T]] = []
        done = trio.Event()

        def ended(result: outcome.Outcome[T]) -> None:
            limiter.release_on_behalf_of(token)
            found.append(result)
            done.set()

        def deliver(result: outcome.Outcome[T]) -> None:
            with suppress(trio.RunFinishedError):
                entry.run_sync_soon(ended, result)

        with trio.move_on_after(seconds):
            await limiter.acquire_on_behalf_of(token)
            try:
                own = os.dup(descriptor)
            except OSError:
                limiter.release_on_behalf_of(token)
                raise
            try:
                trio.lowlevel.start_thread_soon(partial(_closing, own, work), deliver)
            except RuntimeError:
                limiter.release_on_behalf_of(token)
                self._close(uid, own)
                raise Errno.EAGAIN("the kernel can start no thread that reads it now; try again") from None
            await done.wait()
            return found[0].unwrap()
        raise Errno.ETIME(f"its file system took longer than {seconds:.0f} s for {size:,} bytes")

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
        if given.copy is not None:
            given.copy.pins -= 1
            given.copy = None
        elif given.path:
            self._put_away([Path(given.path).parent])
        if given.size:
            self._copies.unreserve(given.uid, given.size)
            given.size = 0
        if self._targets.pop(given.path, None) is not None:
            self._add(given.os_pid, given.uid, -1)
        if given.process >= 0:
            os.close(given.process)
        self._close(given.uid, given.descriptor)
        given.process = given.descriptor = -1

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
            await self._in_thread(given.uid, given.descriptor, size, lambda own: _written(Path(given.path), own))
        except OSError as error:
            raise Errno.EIO(f"the image cannot be written into the file that was shown: {error.strerror}") from None
        finally:
            given.busy = False
            if given.left:
                self._let_go(given)

    def budgets(self) -> list[Budget]:
        largest = max((count for (kind, _), count in self._count.items() if kind == "process"), default=0)
        return [SHOWN.told(self._count["", 0], self._refused, largest), self._copies.told()]


def _closing(descriptor: int, work: Callable[[int], T]) -> T:
    try:
        return work(descriptor)
    finally:
        os.close(descriptor)


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


async def _send(connection: trio.socket.SocketType, message: FromKernel) -> None:
    """Raises OSError, EOFError: the program does not take it."""
    data = memoryview(shown.framed(message))
    with trio.move_on_after(SILENT_SECONDS):
        while data:
            data = data[await connection.send(data) :]
        return
    raise EOFError


async def _exactly(connection: trio.socket.SocketType, size: int, found: list[int]) -> bytes:
    data = b""
    while len(data) < size:
        part, ancillary, _, _ = await connection.recvmsg(
            size - len(data), socket.CMSG_SPACE(2 * _INT), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, values in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array.array("i")
                descriptors.frombytes(values[: len(values) - len(values) % _INT])
                found += descriptors
        if len(found) > 1:  # at once: some can come with each byte, and take all that this process may have
            raise Errno.EPROTO("more than one descriptor came with a message, and one was wanted")
        if not part:
            raise EOFError
        data += part
    return data


_INT = array.array("i").itemsize
