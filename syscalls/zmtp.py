"""ZMTP 3.0, ZeroMQ's wire protocol (rfc.zeromq.org/spec/23), as the kernel's side of a connection speaks it: bytes in,
messages out, and nothing else, so that it can be tested without a socket.

The kernel does not leave this to libzmq, since that keeps a message of several parts to itself until its last part has
come, and no option bounds these parts: a peer could have it allocate without end, and nobody could say which one. Here a
message is one frame. Of what is refused (further parts, what is too long, what there is no room for) no byte is kept, and
what breaks the form raises `Broken`. The security mechanism is NULL: who may connect is decided by the operating system.
curve.py has that of connections from other machines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno

CHUNK = 1 << 14  # bytes to read at once, of short frames
FEW = 1 << 9  # and of one whose OS process has as many bytes here as it may
LONG_CHUNK = 1 << 18  # and of a frame that has a place of its own
OWN_PLACE = 1 << 12  # bytes from which a frame that has not come whole gets one
_MORE, _LONG, _COMMAND = 1, 2, 4  # flags of a frame
_MOST_COMMAND = 1024  # bytes; the longest is INITIATE of curve.py with an identity of 255


def greeting(mechanism: bytes, *, server: bool = False) -> bytes:
    """The first 64 bytes of a connection."""
    return b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + mechanism.ljust(20, b"\0") + bytes((server,)) + bytes(31)


def command(name: bytes, rest: bytes = b"") -> bytes:
    """The frame of a command."""
    size = 1 + len(name) + len(rest)
    head = bytes((_COMMAND, size)) if size < 256 else bytes((_COMMAND | _LONG,)) + size.to_bytes(8, "big")
    return head + bytes((len(name),)) + name + rest


METADATA = b"\x0bSocket-Type\x00\x00\x00\x06ROUTER"  # of the kernel's READY
OPENING = greeting(b"NULL") + command(b"READY", METADATA)  # what the kernel says first
_PREFIX = 24  # bytes of a refused frame in which its sequence number is looked for


class Broken(Exception):
    """A peer does not keep to the protocol; its connection cannot go on."""


class Ready(NamedTuple):
    """The peer has said what it is. `identity` is the name that it gives itself, or empty."""

    identity: bytes


class Refused(NamedTuple):
    """A message that is not taken. `prefix` are the first bytes of its frame."""

    errno: Errno
    reason: str
    prefix: bytes


class Pong(NamedTuple):
    """The peer asks whether anybody is there, or the mechanism wants an answer; `frame` is that."""

    frame: bytes


class Shown(NamedTuple):
    """The peer holds the secret half of the key `public` (32 bytes). It waits to hear whether that lets it in."""

    public: bytes
    identity: bytes


class Full(NamedTuple):
    """There is no room for what comes next, which waits in its socket: look again when there is."""

    reason: str


Frame = bytes | bytearray
Arrived = Ready | Refused | Pong | Shown | Full | Frame


def head(length: int) -> bytes:
    """What goes before a frame of so many bytes."""
    return bytes((0, length)) if length < 256 else b"\x02" + length.to_bytes(8, "big")


class Incoming:
    """What comes from one peer. Give it bytes by `put`, or read them into `place()` and say `filled`; `next` takes the
    messages out, one by one."""

    __slots__ = ("_at", "_body", "_data", "_got", "_most", "_parts", "_ready", "_skip", "_stage", "_sum")
    mechanism: ClassVar[bytes] = b"NULL"

    def __init__(self, most: int = limits.MAX_REQUEST_BYTES) -> None:
        """`most`: bytes of a frame."""
        self._most = most
        self._data: bytes = b""
        self._at = 0
        self._stage = 0  # greeting, READY, messages
        self._body: bytearray | None = None  # of the frame that has a place of its own
        self._got = 0
        self._skip = 0  # bytes of a refused frame that are to come
        self._parts = self._sum = 0  # of the message of several parts that is being thrown away
        self._ready: Refused | None = None

    @property
    def held(self) -> int:
        """Bytes that came and are in no message yet, but for a frame with a place of its own."""
        return len(self._data) - self._at

    @property
    def reserved(self) -> int:
        """Bytes set aside for a frame that has not come whole."""
        return len(self._body) if self._body is not None else 0

    def place(self) -> memoryview | None:
        """Where the next bytes go, if a frame has a place of its own."""
        if self._body is None:
            return None
        return memoryview(self._body)[self._got : self._got + LONG_CHUNK]

    def filled(self, count: int) -> None:
        self._got += count

    def put(self, data: bytes) -> None:
        self._data = data if self._at == len(self._data) else self._data[self._at :] + data
        self._at = 0

    def compact(self) -> None:
        """Keep no bytes that are in messages already."""
        self._data, self._at = self._data[self._at :], 0

    def next(self, room: Callable[[int], str]) -> Arrived | None:
        """The next message, if one is whole. `room(n)` sets n bytes aside for a frame, or says why it cannot. Raises
        Broken."""
        if self._stage == 2 and not self._skip and self._body is None and not self._parts:
            data, at = self._data, self._at  # the usual: a short frame, come whole
            if len(data) - at >= 2 and data[at] == 0 and (end := at + 2 + data[at + 1]) <= len(data):
                self._at = end
                return data[at + 2 : end]
        if self._body is not None:
            if self._got < len(self._body):
                return None
            body, self._body = self._body, None
            return body
        while True:
            if self._skip:
                step = min(self._skip, self.held)
                self._skip -= step
                self._at += step
                if self._skip:
                    return None
            if self._ready is not None:  # a refused message has come to its end
                refused, self._ready = self._ready, None
                return refused
            if self._stage == 0:
                if not self._greeted():
                    return None
                continue
            found = self._frame(room)
            if found is not _GO_ON:
                return found

    def _greeted(self) -> bool:
        seen = self._data[self._at : self._at + 64]
        if seen[:1] not in (b"", b"\xff") or (len(seen) > 9 and not seen[9] & 1):
            raise Broken("it does not speak ZMTP")
        if len(seen) > 10 and seen[10] < 3:
            raise Broken(f"it speaks ZMTP {seen[10]}; this kernel speaks 3")
        if len(seen) < 64:
            return False
        if seen[12:32].rstrip(b"\0") != self.mechanism:
            raise Broken(f"it wants another security mechanism than {self.mechanism.decode()}")
        self._at += 64
        self._stage = 1
        return True

    def _frame(self, room: Callable[[int], str]) -> Arrived | None:
        """The frame that comes next, `_GO_ON` if it was thrown away, None if it has not come."""
        data, at = self._data, self._at
        if len(data) - at < 2:
            return None
        flags = data[at]
        if flags & _LONG:
            start = at + 9
            if len(data) < start:
                return None
            size = int.from_bytes(data[at + 1 : start], "big")
        else:
            start, size = at + 2, data[at + 1]
        if flags > 6 or (flags & _COMMAND and flags & _MORE):
            raise Broken(f"it sends a frame with flags {flags}, which ZMTP does not have")
        if flags & _COMMAND:
            return self._command(start, size)
        if self._stage == 1:
            raise Broken("it sends messages before it has said READY")
        if flags & _MORE or self._parts:
            return self._part(start, size, last=not flags & _MORE)
        if size > self._most:
            if size > 2 * self._most:
                raise Broken(f"it sends a frame of {size:,} bytes; at most {self._most:,} are possible")
            why = f"a message has {size:,} bytes, at most {self._most:,} are possible; feed tokens in parts"
            return self._refuse(start, size, Errno.EMSGSIZE, why)
        if len(data) >= start + size:
            self._at = start + size
            return data[start : start + size]
        if size < OWN_PLACE:
            return None
        if len(data) < start + _PREFIX:
            return None
        if why := room(size):
            return self._refuse(start, size, Errno.EAGAIN, why)
        self._body = bytearray(size)
        self._got = len(data) - start
        self._body[: self._got] = memoryview(data)[start:]
        self._data, self._at = b"", 0
        return None

    def _refuse(self, start: int, size: int, errno: Errno, why: str) -> Arrived | None:
        if len(self._data) < start + _PREFIX:
            return None
        self._ready = Refused(errno, why, self._data[start : start + _PREFIX])
        self._at, self._skip = start, size
        return _GO_ON

    def _part(self, start: int, size: int, *, last: bool) -> Arrived:
        self._parts += 1
        self._sum += size
        if self._parts > limits.MAX_PARTS or self._sum > 2 * self._most:
            raise Broken(f"it sends a message of {self._parts} parts and {self._sum:,} bytes; a message is one frame")
        self._at, self._skip = start, size
        if last:
            self._ready = Refused(Errno.EINVAL, f"a message is one frame, {self._parts} came", b"")
            self._parts = self._sum = 0
        return _GO_ON

    def _command(self, start: int, size: int) -> Arrived | None:
        if size > _MOST_COMMAND:
            raise Broken(f"it sends a command of {size:,} bytes; at most {_MOST_COMMAND} are possible")
        if len(self._data) < start + size:
            return None
        body = self._data[start : start + size]
        self._at = start + size
        name, rest = body[1 : 1 + body[0]] if body else b"", body[1 + body[0] :] if body else b""
        return self._said(name, rest)

    def _said(self, name: bytes, rest: bytes) -> Arrived | None:
        """A command has come whole."""
        if name == b"READY" and self._stage == 1:
            self._stage = 2
            return Ready(identity_of(rest))
        if name == b"PING" and self._stage == 2:
            return Pong(command(b"PONG", rest[2:18]))
        if self._stage == 1:
            raise Broken("it says something else than READY")
        return _GO_ON


def identity_of(metadata: bytes) -> bytes:
    """The name that a peer gives itself in its READY."""
    return _property(metadata, b"identity")


def _property(metadata: bytes, wanted: bytes) -> bytes:
    """A property of READY by its name, in small letters."""
    at = 0
    while at < len(metadata):
        name = metadata[at + 1 : at + 1 + metadata[at]]
        at += 1 + len(name)
        size = int.from_bytes(metadata[at : at + 4], "big")
        value = metadata[at + 4 : at + 4 + size]
        if len(value) < size:
            raise Broken("its READY is cut short")
        at += 4 + size
        if name.lower() == wanted:
            return value
    return b""


_GO_ON = Pong(b"")  # thrown away; look at what follows
