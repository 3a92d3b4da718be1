"""Which program is at the other end: connections, as numbers that are never reused.

A routing id says nothing about a program, but the operating system does: a message tells the descriptor that it came by
(ZMQ's SRCFD), and the descriptor tells the process at its other end. The socket's monitor reports that a connection went
down; so a program's death is noticed at once, however it died.

Descriptors are reused. Binding is safe all the same. A connection's end is reported before its descriptor can be reused,
and the edge reads these reports before it binds an unknown sender. Late messages of a dead connection come from an id
that is no longer bound, by a descriptor that is down; or, if that descriptor is in use again, with an id older than its
new owner's: ZeroMQ gives ids in ascending order, and ids that a program chose itself are refused.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmasos.syscalls.transport import Message
from llmasos.syscalls.zeromq import Credentials, Link, credentials, ended, inode, pidfd

_OVERFLOW = Path("/proc/sys/kernel/overflowuid")
_GIVEN = 5  # bytes of an id that ZeroMQ gave: a zero, then a counter


@dataclass(slots=True, frozen=True)
class Peer:
    """A connection. `inode` tells it from later ones of its `fd`. The operating system says which process is at its other
    end and whose that is (0 and None: it does not tell); `process` is a pidfd of it, or -1."""

    number: int
    routing_id: bytes
    fd: int
    inode: int
    os_pid: int
    uid: int | None
    process: int


class Peers:
    def __init__(self) -> None:
        self._by_id: dict[bytes, Peer] = {}
        self._by_number: dict[int, Peer] = {}
        self._by_fd: dict[int, Peer] = {}
        self._up: set[int] = set()
        self._numbers = 0
        self._processes: Counter[int] = Counter()  # connections by the pidfd of their OS process
        self._latest: dict[int, int] = {}  # OS pid -> the pidfd of the process that has it

    def known(self, message: Message) -> Peer | None:
        """The sender of a message, or None if it is not bound."""
        return self._by_id.get(message.peer)

    def bind(self, message: Message) -> tuple[Peer | None, Peer | None]:
        """Bind the sender of its first message. Returns the peer (None: it has gone already), and the connection that it
        turns out to have replaced. Call `follow` for all reports first.
        """
        fd = message.fd
        if fd not in self._up:
            return None, None
        replaced = self._by_fd.get(fd)
        if replaced is not None:
            if not _newer(message.peer, replaced.routing_id):
                return None, None
            self.forget(replaced)
        self._numbers += 1
        found = credentials(fd)
        peer = Peer(self._numbers, message.peer, fd, inode(fd), found.pid, found.uid, self._process(fd, found))
        self._by_id[peer.routing_id] = self._by_number[peer.number] = self._by_fd[fd] = peer
        return peer, replaced

    def follow(self, link: Link) -> Peer | None:
        """Take in a report that a connection came up or went down. Returns the peer that is gone."""
        if link.up:
            self._up.add(link.fd)
            return None
        self._up.discard(link.fd)
        peer = self._by_fd.get(link.fd)
        if peer is not None:
            self.forget(peer)
        return peer

    def numbered(self, number: int) -> Peer | None:
        return self._by_number.get(number)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._by_number.values())

    def __len__(self) -> int:
        return len(self._by_number)

    def close(self) -> None:
        """Forget all of them."""
        for peer in list(self):
            self.forget(peer)

    def forget(self, peer: Peer) -> None:
        del self._by_id[peer.routing_id], self._by_number[peer.number], self._by_fd[peer.fd]
        if peer.process < 0:
            return
        self._processes[peer.process] -= 1
        if not self._processes[peer.process]:
            del self._processes[peer.process]
            os.close(peer.process)
            if self._latest.get(peer.os_pid) == peer.process:
                del self._latest[peer.os_pid]

    def _process(self, fd: int, found: Credentials) -> int:
        """A pidfd; connections of one OS process share it."""
        process = self._latest.get(found.pid, -1)
        if process < 0 or ended(process):  # then the pid is another's
            process = pidfd(fd, found)
        if process >= 0:
            self._latest[found.pid] = process
            self._processes[process] += 1
        return process


def unmapped_uid() -> int:
    """The uid by which the operating system shows users that have none here (those of other user namespaces)."""
    try:
        return int(_OVERFLOW.read_text())
    except (OSError, ValueError):
        return 65534


def chosen_id(routing_id: bytes) -> bool:
    """Did the program choose its routing id itself?"""
    return len(routing_id) != _GIVEN or routing_id[0] != 0


def _newer(one: bytes, other: bytes) -> bool:
    """Was id `one` given after `other`? The counter wraps around."""
    distance = int.from_bytes(one[1:], "big") - int.from_bytes(other[1:], "big")
    return 0 < distance % (1 << 32) < 1 << 31
