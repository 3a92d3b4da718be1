"""The gate for programs on other machines: a TCP address, the kernel's key, and the keys that may come.

CURVE (syscalls/curve.py) is the only mechanism here; there is no way to have another. As with sshd, a file lists the
keys that may come. Before anything is taken from such a connection or sent to it, the file is read anew if it has
changed: so what a revoked key sends is not heard, even before the watch on the directory tells of the change.

Strangers, who have not shown a key yet, have a few places and a few seconds (outside.py). If these are taken, the oldest
one of the host that has most of them goes, so that a flood from one place keeps nobody elsewhere out.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from llmasos.kernel.calls.lookup import is_file
from llmasos.kernel.edge.peers import Peer
from llmasos.syscalls import curve, curve_keys
from llmasos.syscalls.curve_keys import Key
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import BY_RECORD, Call
from llmasos.syscalls.zeromq import LISTEN_QUEUE

# Seconds (the last: milliseconds) until a dead host is noticed, one that says nothing and one that acknowledges nothing.
_ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 120_000))


class Change(NamedTuple):
    """What has become of a key in the file, for log and audit."""

    what: str  # "key add", "key revoke"
    key: Key


class Gate:
    """Who may come by TCP. `host` and `port`: where it listens; a port 0 becomes one that is free."""

    def __init__(self, address: str, secret: bytes, file: Path, models: Collection[str] = ()) -> None:
        """`address`: HOST:PORT; `file`: of the keys that may come; `models`: names of those that a key of no user of this
        machine may use. Raises SyscallError EINVAL, EPERM, EIO: the file
        cannot be used; ENOENT: nobody may come."""
        self.host, self.port = curve_keys.host_and_port(address)
        self.public = curve_keys.public_half(secret)
        self._secret, self.file = secret, file
        self._seen = _stamp(file)
        self.keys = curve_keys.authorized(file)
        self.trouble = ""  # why the file cannot be used; nobody comes then
        self.strangers: dict[Peer, None] = {}
        self.models = models
        if not self.keys:
            raise Errno.ENOENT(f"nobody could come: no key is in {file}; `llmasos key add KEY NAME` puts one there")

    def listen(self) -> socket.socket:
        """The socket of its address, which the caller closes. Raises SyscallError EINVAL: the address cannot be had."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, where = found[0]
            listener = socket.socket(family, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setblocking(False)
                listener.bind(where)
                listener.listen(min(LISTEN_QUEUE, 1024))
            except BaseException:
                listener.close()
                raise
        except OSError as error:
            shown = curve_keys.shown(self.host, self.port)
            raise Errno.EINVAL(f"--tcp {shown}: the kernel cannot listen there: {error.strerror or error}") from None
        self.port = listener.getsockname()[1]
        return listener

    def prepare(self, connection: socket.socket) -> None:
        """Raises OSError: it has gone."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _ALIVE:
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def incoming(self, most: int) -> curve.Incoming:
        return curve.Incoming(self._secret, most)

    # --- the file ---

    def look(self) -> list[Change]:
        """Read the file if it has changed. What has become of keys; of one that is written otherwise than before (another
        name or owner), that it was revoked and added."""
        if (stamp := _stamp(self.file)) == self._seen:
            return []
        self._seen, before, self.trouble = stamp, self.keys, ""
        try:
            self.keys = curve_keys.authorized(self.file)
        except SyscallError as error:
            self.trouble, self.keys = error.reason, {}
            if error.errno is Errno.EIO:  # it may be readable at the next look
                self._seen = (-1,)
        gone = [Change("key revoke", key) for public, key in before.items() if self.keys.get(public) != key]
        return gone + [Change("key add", key) for public, key in self.keys.items() if before.get(public) != key]

    def holds(self, peer: Peer) -> bool:
        """Whether the key by which a connection came may still come."""
        return peer.key is None or self.keys.get(peer.key.public) == peer.key

    def refusal(self, public: bytes) -> str:
        """Why a key may not come; empty: it may."""
        if public in self.keys:
            return ""
        return f"{self.trouble}; until then nobody comes" if self.trouble else f"it is not in {self.file}"

    def one_too_many(self) -> Peer:
        """Who of the strangers goes: the oldest of the host that has most of them."""
        hosts = Counter(map(_network, self.strangers))
        most = max(hosts.values())
        return next(peer for peer in self.strangers if hosts[_network(peer)] == most)

    def refuse_files(self, peer: Peer, call: Call[object]) -> None:
        """Raises SyscallError EPERM for a call that names a file of this machine by a key that stands for no user of it.
        A model that has no name here would be looked for among the files, and so would what its options name."""
        if peer.key is None or peer.key.uid is not None:
            return
        for touch in BY_RECORD[type(call)].touches:
            if (name := getattr(call, touch.field)) is None:
                continue
            if is_file(touch.what, name, self.models):
                raise Errno.EPERM(
                    f"key {peer.key.name} belongs to no user of the kernel's machine, so it names no files there, and "
                    "only models that the kernel knows by name (`llmasos key add` has `uid=`)"
                )


def _network(peer: Peer) -> str:
    """What one place may have addresses of: an address, or the half of an IPv6 one that names a network."""
    try:
        address = ipaddress.ip_address(peer.host.partition("%")[0])
    except ValueError:
        return peer.host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else peer.host


def _stamp(path: Path) -> tuple[int, ...]:
    """What tells one state of a file from another."""
    try:
        about = os.stat(path)
    except OSError:
        return ()
    return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_mode
