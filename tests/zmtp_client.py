"""A client that speaks ZMTP by hand, and so can break its rules."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from tests.booted import PATIENCE

GREETING = b"\xff" + bytes(8) + b"\x7f" + bytes((3, 0)) + b"NULL".ljust(20, b"\0") + bytes(32)


def command(name: bytes, body: bytes = b"") -> bytes:
    content = bytes((len(name),)) + name + body
    return bytes((4, len(content))) + content


def ready(kind: bytes = b"DEALER", **more: bytes) -> bytes:
    found = {b"Socket-Type": kind, **{name.encode(): value for name, value in more.items()}}
    return command(b"READY", b"".join(bytes((len(k),)) + k + struct.pack(">I", len(v)) + v for k, v in found.items()))


def frame(body: bytes, *, more: bool = False) -> bytes:
    if len(body) < 256:
        return bytes((more, len(body))) + body
    return bytes((2 | more,)) + struct.pack(">Q", len(body)) + body


class Raw:
    """A connection to the socket at `path`, past its greeting unless `greet` is False."""

    def __init__(self, path: Path, *, greet: bool = True) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(PATIENCE)
        self.connection.connect(os.fspath(path))
        self._data = b""
        if greet:
            self.send(GREETING + ready())
            assert self.take(64)[:1] == b"\xff"
            assert self.frame()[0] & 4, "READY is a command"

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def take(self, count: int) -> bytes:
        """Raises EOFError: the other end has closed."""
        while len(self._data) < count:
            found = b""
            with suppress(ConnectionResetError):
                found = self.connection.recv(1 << 16)
            if not found:
                raise EOFError
            self._data += found
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def frame(self) -> tuple[int, bytes]:
        """The flags and the body of the next frame."""
        flags, size = self.take(2)
        if flags & 2:
            size = int.from_bytes(bytes((size,)) + self.take(7), "big")
        return flags, self.take(size)

    def message(self) -> bytes:
        return self.frame()[1]

    def ends(self) -> bool:
        """Read until the other end closes."""
        try:
            while True:
                self.take(1)
        except EOFError:
            return True

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *why: object) -> None:
        self.close()
