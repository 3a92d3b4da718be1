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

from collections.abc import Iterator
from dataclasses import dataclass

from llmasos.syscalls.transport import Message
from llmasos.syscalls.zeromq import Link, inode, peer_pid

_GIVEN = 5  # bytes of an id that ZeroMQ gave: a zero, then a counter


@dataclass(slots=True, frozen=True)
class Peer:
    """A connection. `os_pid` is 0 where the operating system does not tell; `inode` tells it from later ones of its
    `fd`."""

    number: int
    routing_id: bytes
    fd: int
    inode: int
    os_pid: int


class Peers:
    def __init__(self) -> None:
        self._by_id: dict[bytes, Peer] = {}
        self._by_number: dict[int, Peer] = {}
        self._by_fd: dict[int, Peer] = {}
        self._up: set[int] = set()
        self._numbers = 0

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
            self._forget(replaced)
        self._numbers += 1
        peer = Peer(self._numbers, message.peer, fd, inode(fd), peer_pid(fd))
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
            self._forget(peer)
        return peer

    def numbered(self, number: int) -> Peer | None:
        return self._by_number.get(number)

    def has_process(self, os_pid: int) -> bool:
        return os_pid > 1 and any(peer.os_pid == os_pid for peer in self)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._by_number.values())

    def __len__(self) -> int:
        return len(self._by_number)

    def _forget(self, peer: Peer) -> None:
        del self._by_id[peer.routing_id], self._by_number[peer.number], self._by_fd[peer.fd]


def chosen_id(routing_id: bytes) -> bool:
    """Did the program choose its routing id itself?"""
    return len(routing_id) != _GIVEN or routing_id[0] != 0


def _newer(one: bytes, other: bytes) -> bool:
    """Was id `one` given after `other`? The counter wraps around."""
    distance = int.from_bytes(one[1:], "big") - int.from_bytes(other[1:], "big")
    return 0 < distance % (1 << 32) < 1 << 31
