"""A kernel on another machine: where it is, which key it has, and the key by which this program comes.

Its runtime directory is out of reach, so nothing can be known of it but what its connection tells. When that is lost a
program connects anew and shows its ticket, as it does here (reconnect.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from llmasos.syscalls import curve_keys, runtime
from llmasos.syscalls.errno import Errno, SyscallError


class KeyRefused(SyscallError):
    """The kernel does not accept the key by which this program comes: to ask again changes nothing."""


@dataclass(frozen=True, slots=True)
class Remote:
    """`server`: the public key of the kernel; `secret`: of this program."""

    host: str
    port: int
    server: bytes
    secret: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{runtime.REMOTE}{curve_keys.shown(self.host, self.port)}"

    def secure(self, raw: zmq.Socket[bytes]) -> None:
        """Have a socket that is to connect there speak CURVE, and notice within two minutes when the other machine is
        dead. (One whose kernel stands still is not.)"""
        for option, seconds in ((zmq.TCP_KEEPALIVE_IDLE, 60), (zmq.TCP_KEEPALIVE_INTVL, 20), (zmq.TCP_KEEPALIVE_CNT, 3)):
            raw.setsockopt(option, seconds)
        raw.setsockopt(zmq.TCP_KEEPALIVE, 1)
        raw.setsockopt(zmq.IPV6, ":" in self.host)
        raw.setsockopt(zmq.CURVE_SERVERKEY, z85.encode(self.server))
        raw.setsockopt(zmq.CURVE_SECRETKEY, z85.encode(self.secret))
        raw.setsockopt(zmq.CURVE_PUBLICKEY, z85.encode(curve_keys.public_half(self.secret)))

    def why_not(self, event: int) -> SyscallError | None:
        """What the failure of a connection means, by the event of libzmq's that tells of it; None: it was made and is
        lost."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            own = curve_keys.text_of(curve_keys.public_half(self.secret))
            return KeyRefused(
                Errno.EPERM,
                f"the kernel at {self} does not accept the key {own}; there, `llmasos key add {own} NAME` lets it in",
            )
        if event in (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL):
            noted = curve_keys.text_of(self.server)
            return Errno.EPERM(
                f"{self} is not the kernel with the key {noted}, or has too many strangers at its door; `llmasos key "
                "server` there prints its key, `llmasos key trust` notes it here"
            )
        if event == zmq.EVENT_CLOSED:
            return Errno.ECONNREFUSED(f"no kernel listens at {self}; there, `llmasos boot --tcp HOST:PORT` starts one")
        return None


Place = Path | Remote
"""Where a kernel is: its runtime directory, or its address on another machine."""


def located(where: str | os.PathLike[str] | None, key: str | os.PathLike[str] | None = None) -> Place:
    """The kernel that is meant by a runtime directory, an `ipc://` endpoint, a `tcp://HOST:PORT` or None (the default).

    `key` is the file of this program's key (None: client.key among the user's settings). Which key the kernel has stands
    in the file known_kernels of these settings. Raises SyscallError ENOENT, EPERM, EINVAL: one of them cannot be used.
    """
    text = os.environ.get("LLMASOS_RUNTIME", "") if where is None else os.fspath(where)
    if not runtime.is_remote(where):
        if key is not None:
            raise Errno.EINVAL(
                f"a key is for kernels on other machines (tcp://HOST:PORT); {text or 'the usual one'} is here"
            )
        return runtime.locate(where)
    host, port = curve_keys.host_and_port(text)
    file = Path(key).expanduser() if key is not None else curve_keys.place(curve_keys.CLIENT)
    secret = curve_keys.secret_of(file)
    known = curve_keys.place(curve_keys.KNOWN)
    shown = curve_keys.shown(host, port)
    server = curve_keys.known(known).get(shown)
    if server is None:
        raise Errno.ENOENT(
            f"which key the kernel at {shown} has is not in {known}; `llmasos key server` prints it there, `llmasos key "
            f"trust {shown} KEY` notes it here"
        )
    return Remote(host, port, server, secret)


def directory(place: Place) -> Path:
    """The runtime directory. Raises SyscallError ENOTSUP: it is on another machine."""
    if isinstance(place, Remote):
        raise Errno.ENOTSUP(f"the kernel of {place} runs on another machine, where this is done")
    return place
