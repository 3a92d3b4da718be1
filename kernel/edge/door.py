"""How many connections the kernel takes, and how those beyond are refused.

ZeroMQ accepts whoever comes, tens of thousands in a second, and aborts the whole process when no descriptor is left for
one more; what it has accepted the kernel hears later. So the kernel makes the listening socket itself, and where
descriptors are few it guards the door: the descriptor that ZeroMQ accepts from is then, by dup2, another listening socket
to which nobody can connect (epoll goes on watching the old one, which stays open here). Those who wait are let in by
the queue's length: its name is taken away, ZeroMQ accepts until it is empty, and the name comes back. So no more come in
than there is room for, however late the kernel is. Who finds no name tries again (syscalls/calls.py).

When all places are taken the kernel accepts by itself, and answers as ZeroMQ would: by ZMTP 3.0, a greeting, READY, and a
message that says why. The last places are for OS processes that have no connection yet, so that one which takes all it
can get does not lock out a `kill` or a `halt`. A connection that says nothing is cut off after a while.
"""

from __future__ import annotations

import math
import os
import resource
import select
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from llmasos.syscalls import wire
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.zeromq import LISTEN_QUEUE, cut, inode, peer_pid

ENOUGH = 65_536  # descriptors
LEAST = 256
OWN = 128  # descriptors for drivers, journal, models and logs; less where there are few
PLENTY = 8192  # that are free: ZeroMQ cannot take so many before the kernel hears of it
QUEUE = 64  # connections that wait at a guarded door
NEWCOMERS = 16  # places for OS processes that have no connection yet
TELL_SECONDS = 0.5  # for which a refused connection stays, to hear why
HEAR_SECONDS = 0.1  # after which it must have said READY
SILENT_SECONDS = 30.0  # for which one stays that says nothing
_TOLD = 16  # refused connections that stay at once, beside those that are in
_FIRST = 2  # a program looks whether a kernel listens, then connects
_GAP = 0.001  # seconds
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER"


def raise_descriptor_limit() -> int:
    """Raise the limit of descriptors as far as this process may, and need; returns it. Raises SyscallError EINVAL: it is
    too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a system with another bound
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST:
        raise Errno.EINVAL(f"a kernel needs {LEAST} descriptors at least, and may have {soft}; raise `ulimit -n`")
    return ENOUGH if soft == resource.RLIM_INFINITY else soft


def hidden(path: Path) -> Path:
    """The name of the socket at `path` while nobody is to find it."""
    return path.with_name(f"{path.name}.hidden")


@dataclass(slots=True)
class _Stay:
    """How long a connection may stay that is refused, or has said nothing."""

    until: float
    inode: int
    refused: str = ""  # why


class Door:
    """The connections to one listening socket."""

    def __init__(self, descriptors: int) -> None:
        """`descriptors`: the limit of the operating system for this process."""
        self._listener = self._nobody = socket.socket()
        self._path = Path()
        self._taken = -1  # the descriptor that ZeroMQ accepts from
        self._descriptors = descriptors
        own = min(OWN, descriptors // 4)
        self._full = descriptors - QUEUE - _TOLD - own // 2
        self.most = self._full - own // 2  # connections
        self._up: dict[int, int] = {}  # descriptor -> OS pid
        self._of: Counter[int] = Counter()  # connections of each OS pid
        self._stays: dict[int, _Stay] = {}
        self._came = trio.Event()
        self._watched = trio.Event()  # ZeroMQ accepts from the listener
        self._guarded = trio.Event()
        self.refused = 0

    def listen(self, path: Path) -> int:
        """Listen, not yet under the name `path`; returns the descriptor that ZeroMQ is to accept from. Where it listened
        before, under a name that is no more, it listens no longer. Raises OSError."""
        self.close()
        self._listener, self._nobody = _socket(), _socket()
        self._path, self._watched, self._guarded = path, trio.Event(), trio.Event()
        for listener in (self._nobody, self._listener):
            hidden(path).unlink(missing_ok=True)
            listener.bind(os.fspath(hidden(path)))
            listener.listen(QUEUE)
        self._taken = os.dup(self._listener.fileno())
        return self._taken

    async def open(self) -> None:
        """Have the door found under its name. Raises OSError."""
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(os.fspath(hidden(self._path)))
            await self._watched.wait()
        self._guard_if_few()
        if not self._guarded.is_set():
            self._listener.listen(LISTEN_QUEUE)
        os.rename(hidden(self._path), self._path)

    def __len__(self) -> int:
        return len(self._up)

    def came(self, fd: int) -> None:
        """A connection is up."""
        pid = peer_pid(fd)
        self._up[fd] = pid
        self._of[pid] += 1
        why = self._refusal(pid)
        self.refused += bool(why)
        self._stays[fd] = _Stay(time.monotonic() + (TELL_SECONDS if why else SILENT_SECONDS), inode(fd), why)
        self._came.set()
        if pid == os.getpid():
            self._watched.set()
        if self._watched.is_set():
            self._guard_if_few()

    def went(self, fd: int) -> None:
        """A connection is down."""
        pid = self._up.pop(fd, None)
        if pid is not None:
            self._of[pid] -= 1
            if not self._of[pid]:
                del self._of[pid]
        self._stays.pop(fd, None)

    @property
    def _held(self) -> int:
        """Descriptors of connections, and of the OS processes at their other ends (peers.py)."""
        return len(self._up) + len(self._of)

    def _is_full(self) -> bool:
        """Whether one more queue would be too many. What ZeroMQ has accepted counts at once, heard of or not."""
        try:
            return len(os.listdir("/proc/self/fd")) >= self._full
        except OSError:  # there is no descriptor left to look
            return True

    def _guard_if_few(self) -> None:
        few = self._descriptors - self._held < PLENTY
        if few and not self._guarded.is_set() and sys.platform == "linux":
            self._guarded.set()
            self._listener.listen(QUEUE)
            self._accept_from(self._nobody)

    def _accept_from(self, listener: socket.socket) -> None:
        os.dup2(listener.fileno(), self._taken, inheritable=False)

    def _refusal(self, pid: int) -> str:
        count = self._held
        if count <= self.most - NEWCOMERS or (count <= self.most and self._of[pid] <= _FIRST):
            return ""
        return self._why()

    def _why(self) -> str:
        return (
            f"{len(self._up)} programs are connected, and more than {self.most} cannot be (`ulimit -n` is "
            f"{self._descriptors} for this kernel); end some, or boot it with a higher limit"
        )

    def dismiss(self, fd: int, why: str) -> None:
        """Cut off a connection that is refused, when it has had time to hear why."""
        self._stays[fd] = _Stay(time.monotonic() + TELL_SECONDS, inode(fd), why)
        self._came.set()

    def refusal(self, fd: int) -> str:
        """Why the connection of a first message is refused; empty: it is not, and stays."""
        stay = self._stays.get(fd)
        if stay is None:
            return ""
        if not stay.refused:
            del self._stays[fd]
        return stay.refused

    async def sweep(self) -> None:
        """Cut off what has stayed too long; `went` follows. Until cancelled."""
        while True:
            await self._came.wait()
            self._came = trio.Event()
            while self._stays:
                await trio.sleep(TELL_SECONDS)
                now = time.monotonic()
                for fd, stay in list(self._stays.items()):
                    if stay.until <= now:
                        cut(fd, stay.inode)

    async def guard(self) -> None:
        """Let in and refuse while descriptors are few. Until cancelled."""
        refused: list[_Refused] = []
        try:
            while True:
                await self._guarded.wait()
                while refused or self._descriptors - self._held < 2 * PLENTY:
                    with trio.move_on_after(HEAR_SECONDS if refused else math.inf) as patience:
                        with suppress(trio.ClosedResourceError):  # it listens under a new name
                            await trio.lowlevel.wait_readable(self._listener)
                        await self._guarded.wait()
                    refused = [one for one in refused if one.goes_on()]
                    if patience.cancelled_caught:
                        continue
                    if not self._is_full():
                        await self._let_in()
                    elif (one := self._accept()) is not None:
                        # There is no room to tell everybody; who is cut off tries again.
                        refused.append(one) if len(refused) < _TOLD else one.close()
                self._guarded = trio.Event()
                self._listener.listen(LISTEN_QUEUE)
                self._accept_from(self._listener)
        finally:
            for one in refused:
                one.close()

    async def _let_in(self) -> None:
        """Have ZeroMQ accept those who wait, and nobody else."""
        with suppress(FileNotFoundError):  # somebody has removed it, and it will be made again
            os.rename(self._path, hidden(self._path))
        listener, queue = self._listener, select.poll()  # select() takes no descriptor above 1,023
        queue.register(listener, select.POLLIN)
        try:
            self._accept_from(listener)
            while self._listener is listener and queue.poll(0):  # noqa: ASYNC110 - ZeroMQ has no event for it
                await trio.sleep(_GAP)
        finally:
            if self._listener is listener:  # it has not begun to listen under a new name meanwhile
                self._accept_from(self._nobody)
                with suppress(FileNotFoundError):
                    os.rename(hidden(self._path), self._path)

    def _accept(self) -> _Refused | None:
        try:
            found, _ = self._listener.accept()
        except OSError:  # it has gone already
            return None
        self.refused += 1
        return _Refused(found, self._why())

    def close(self) -> None:
        """Call this before ZeroMQ's socket is closed: it stops watching the descriptor that it was given."""
        if self._taken >= 0:
            self._accept_from(self._listener)
            self._taken = -1
            with suppress(RuntimeError):  # outside trio nobody waits
                trio.lowlevel.notify_closing(self._listener)
        self._listener.close()
        self._nobody.close()


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.setblocking(False)  # two may accept from it
    return made


class _Refused:
    """A connection that is told why it is refused, and closed. A peer takes no message before it has said READY."""

    def __init__(self, connection: socket.socket, why: str) -> None:
        self._connection, self._why = connection, why
        self._said, self._came = False, trio.current_time()
        connection.setblocking(False)
        self._send(_GREETING + bytes((4, len(_READY))) + _READY)

    def goes_on(self) -> bool:
        stayed = trio.current_time() - self._came
        if stayed >= HEAR_SECONDS and not self._said:
            self._said = True
            body = wire.encode_reply(0, Errno.EAGAIN, self._why)  # to no call in particular
            self._send(b"\x02" + len(body).to_bytes(8, "big") + body)
        if stayed >= TELL_SECONDS:
            self.close()
        return stayed < TELL_SECONDS

    def _send(self, frames: bytes) -> None:
        with suppress(OSError):  # it has gone
            self._connection.send(frames)

    def close(self) -> None:
        self._connection.close()
