"""Listening sockets, and the descriptors that connections take.

A socket gets its name only when whoever connects is heard. Where no descriptor is left for one more connection, one that
is kept for that is given up for a moment, to accept and close it: whoever comes is cut off, and tries again, where
otherwise he would wait, and the listening socket be readable for ever.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llmasos.syscalls.errno import Errno
from llmasos.syscalls.zeromq import LISTEN_QUEUE

ENOUGH = 65_536  # descriptors
LEAST = 256
_ACCEPTS = 32  # connections to accept at once


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
    """The name of the socket at `path` before anybody is to find it."""
    return path.with_name(f"~{path.name[1:]}")  # no longer, or it might not be possible


class Reach(NamedTuple):
    """Who may connect to a socket, by the modes of its file: this user; all others; or a group of them."""

    mode: int = 0o600
    group: int | None = None
    operators: frozenset[int] | None = None  # users who may have all places; None: all who connect are one user's


PRIVATE = Reach()


def listen(path: Path, reach: Reach = PRIVATE) -> socket.socket:
    """A Unix socket that listens at `path`, and is found there only when whoever connects is heard; `reach` says who may.
    Raises OSError."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.setblocking(False)
        hidden(path).unlink(missing_ok=True)
        listener.bind(os.fspath(hidden(path)))
        if reach.group is not None:
            os.chown(hidden(path), -1, reach.group)
        os.chmod(hidden(path), reach.mode)
        listener.listen(LISTEN_QUEUE)
        os.rename(hidden(path), path)
    except BaseException:
        listener.close()
        raise
    return listener


class Spare:
    """A descriptor to give up when there is no other."""

    def __init__(self) -> None:
        self._fd = -1
        self.used = 0  # connections that were closed for want of a descriptor

    def keep(self) -> None:
        """Raises OSError: there is none left already."""
        if self._fd < 0:
            self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def accept(self, listener: socket.socket) -> Iterator[socket.socket]:
        """The connections that wait, a number of them at most."""
        for _ in range(_ACCEPTS):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                self._turn_away(listener)
                return
            yield connection

    def _turn_away(self, listener: socket.socket) -> None:
        self.used += 1
        with suppress(OSError):
            os.close(self._fd)
            self._fd = -1
            listener.accept()[0].close()
        with suppress(OSError):
            self.keep()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
