"""Messages with descriptors (SCM_RIGHTS) on the socket by which users show files (what is said: syscalls/shown.py)."""

from __future__ import annotations

import array
import socket

import msgspec
import trio

from llmasos.syscalls import shown
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.shown import FromKernel, ToKernel

SILENT_SECONDS = 30.0  # for which a connection may say nothing
_INT = array.array("i").itemsize


async def receive(connection: trio.socket.SocketType, found: list[int]) -> ToKernel:
    """A message; descriptors that come with it are added to `found`, whatever else happens. Raises SyscallError EPROTO,
    ETIME; OSError, EOFError."""
    try:
        with trio.move_on_after(SILENT_SECONDS):
            (length,) = shown.LENGTH.unpack(await _exactly(connection, shown.LENGTH.size, found))
            if length > shown.MOST_MESSAGE:
                raise Errno.EPROTO(f"a message of {length} bytes, and {shown.MOST_MESSAGE} are the most")
            return shown.to_kernel(await _exactly(connection, length, found))
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError) as error:
        raise Errno.EPROTO(f"no message: {error}") from None
    raise Errno.ETIME(f"nothing more came for {SILENT_SECONDS:.0f} s")


async def send(connection: trio.socket.SocketType, message: FromKernel) -> None:
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
