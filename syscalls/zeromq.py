"""Bare ZeroMQ sockets: how to make and watch them, and what the operating system says of the other end.

transport.py waits on them with trio, line.py with threads. Programs that make blocking calls do not import trio, which
would take as long as all their other imports.
"""

from __future__ import annotations

import os
import select
import socket as sockets
import struct
from collections.abc import Iterator
from typing import NamedTuple, cast

import zmq

MAX_SOCKET_PATH = 107  # bytes: sun_path of a Unix socket, less its closing zero
# Seconds to wait for what arrived by a lost connection: libzmq reports the loss before it hands on what it read just
# before (stream_engine_base_t::error).
LAST_WORDS = 0.05
LISTEN_QUEUE = 65_536  # connections that wait to be accepted; the operating system has a bound of its own
NOBLOCK = int(zmq.NOBLOCK)
_POLLIN = int(zmq.POLLIN)  # plain numbers: arithmetic of pyzmq's enums costs as much as a receive
_SO_PEERPIDFD = 77  # Linux 6.5
_DOWN = (int(zmq.EVENT_DISCONNECTED), int(zmq.EVENT_CLOSED))  # the second: it could not be made at all
_FAILED = tuple(
    int(event)
    for event in (
        zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    )
)  # fmt: skip
_EVENT = struct.Struct("=Hi")  # of a monitor: the event and the descriptor (zmq_socket_monitor(3))


class Link(NamedTuple):
    """A change that a monitor saw: connection `fd` came `up` or went down."""

    fd: int
    up: bool


def descriptor(raw: zmq.Socket[bytes]) -> int:
    """ZMQ_FD: readable when something may have happened in a socket that `has_message` has found empty."""
    return int(raw.getsockopt(zmq.FD))


def has_message(raw: zmq.Socket[bytes]) -> bool:
    """Whether ZMQ_EVENTS has POLLIN. If not, the descriptor becomes readable when a message arrives."""
    return bool(cast(int, raw.getsockopt(zmq.EVENTS)) & _POLLIN)


class Monitor:
    """The connections of a socket coming up and going down, in order. A connection goes down before its descriptor is
    reused."""

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self._raw = raw
        self.fd = descriptor(raw)
        self.closed = False
        self.failed = 0  # the first event that says that a connection could not be made

    def drain(self) -> Iterator[Link]:
        """The changes since the last look."""
        while not self.closed:
            try:
                parts = self._raw.recv_multipart(NOBLOCK)
            except zmq.Again:
                return
            event, fd = _EVENT.unpack(parts[0])  # zmq.utils.monitor would import asyncio
            if event in _FAILED or event == _DOWN[1]:
                self.failed = self.failed or event
            if event in _FAILED:  # it goes down, too
                continue
            yield Link(fd, event not in _DOWN)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._raw.close(linger=0)


def raw_dealer(routing_id: bytes, context: zmq.Context[zmq.Socket[bytes]] | None, max_frame: int) -> zmq.Socket[bytes]:
    """A DEALER without a monitor."""
    raw = make(context, zmq.DEALER, max_frame)
    raw.setsockopt(zmq.RECONNECT_IVL, -1)
    if routing_id:
        raw.setsockopt(zmq.ROUTING_ID, routing_id)
    return raw


def make(context: zmq.Context[zmq.Socket[bytes]] | None, kind: int, max_frame: int) -> zmq.Socket[bytes]:
    raw: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(kind)
    raw.setsockopt(zmq.LINGER, 0)
    raw.setsockopt(zmq.MAXMSGSIZE, max_frame)
    return raw


def check_endpoint(endpoint: str) -> None:
    """Raise ValueError for an ipc path that the operating system would cut short."""
    scheme, _, path = endpoint.partition("://")
    length = len(os.fsencode(path))
    if scheme == "ipc" and length > MAX_SOCKET_PATH:
        raise ValueError(
            f"socket path {path!r} has {length} bytes, at most {MAX_SOCKET_PATH} are possible; "
            "choose a shorter runtime directory (--runtime or LLMASOS_RUNTIME)"
        )


def _duplicate(fd: int) -> sockets.socket:
    """The socket of a descriptor that ZeroMQ may close meanwhile, by a descriptor of its own. Raises OSError if it is
    none any more: it may be the pipe by then that a child was started with, which no duplicate must keep open."""
    own = os.dup(fd)
    try:
        return sockets.socket(fileno=own)
    except OSError:
        os.close(own)
        raise


class Credentials(NamedTuple):
    """Who is at the other end of a connection: the OS process and its user. 0 and None: unknown."""

    pid: int = 0
    uid: int | None = None


def credentials(fd: int) -> Credentials:
    """Who is at the other end of a Unix socket connection, as the operating system vouches for it.

    Linux tells by SO_PEERCRED, macOS by LOCAL_PEERPID and LOCAL_PEERCRED.
    """
    if fd <= 0:
        return Credentials()
    linux = getattr(sockets, "SO_PEERCRED", None)
    try:
        with _duplicate(fd) as connection:
            if linux is not None:
                return Credentials(*struct.unpack("iI", connection.getsockopt(sockets.SOL_SOCKET, linux, 8)))
            sol_local, local_peercred, local_peerpid = 0, 1, 2
            uid = struct.unpack("II", connection.getsockopt(sol_local, local_peercred, 8))[1]
            return Credentials(connection.getsockopt(sol_local, local_peerpid), uid)
    except OSError:  # closed in the meantime, or a system that cannot tell
        return Credentials()


def pidfd(fd: int, found: Credentials) -> int:
    """A descriptor of the OS process at the other end of a Unix socket connection, whose `credentials` were found: a pid
    may be another's one day, this never is. -1: it has gone, there is no descriptor left, or the system has no such thing
    (Linux has, from 5.3 on)."""
    if not hasattr(os, "pidfd_open") or found.pid <= 1:
        return -1
    try:
        with _duplicate(fd) as connection:
            return connection.getsockopt(sockets.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # Linux before 6.5
        pass
    try:
        process = os.pidfd_open(found.pid)
    except OSError:
        return -1
    try:  # the pid of one that has gone may have become another user's already
        if os.stat(f"/proc/{found.pid}").st_uid == found.uid:
            return process
    except OSError:
        pass
    os.close(process)
    return -1


def ended(process: int) -> bool:
    """Whether the OS process of a pidfd has ended."""
    looking = select.poll()
    looking.register(process, select.POLLIN)
    return bool(looking.poll(0))
