"""A program's connection to a kernel of this machine: ZMTP (zmtp.py) over a Unix socket, read and written by whoever
calls.

libzmq reads and writes in a thread of its own. That costs each call two more wake-ups of a thread on its way, which took
a third of a null call's time, and hides when a connection is lost until what came before is read. Connections to other
machines are still libzmq's (dealer.py), which has CURVE.

Nothing here waits; line.py does that for threads, link.py for event loops. Ctrl-C may come after any call of C code, when
what that has returned is not stored yet. So results are stored by C, too: `list.extend` of an iterator that makes the
call. What is parsed is taken out of the list by one call at last; interrupted before, it is parsed again, and an answer
that comes twice is nobody's the second time.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import islice

from llmasos.syscalls import limits, zeromq, zmtp
from llmasos.syscalls.errno import SyscallError

_CHUNK, _LONG_CHUNK = 1 << 16, 1 << 18  # bytes to read at once, and within a long frame
_MOST = 2 * limits.MAX_REPLY_BYTES  # bytes of a frame
_TOGETHER = 1 << 12  # bytes up to which a frame is copied behind its head, to be sent with it
_GREETED = zmtp.greeting(b"NULL") + zmtp.command(b"READY", b"\x0bSocket-Type\x00\x00\x00\x06DEALER")
_MORE, _LONG, _COMMAND = 1, 2, 4  # flags of a frame


class Stream:
    """One connection. `fd` is readable when something has arrived, or the connection has gone, and as long as that is
    not taken. `waits` says that bytes wait for room, of which the descriptor tells by being writable."""

    level = True  # the descriptor is readable as long as something is there
    monitor_fd = -1  # it needs none
    refused: SyscallError | None = None

    def __init__(self, endpoint: str, most: int = 0) -> None:
        """`most`: bytes that may wait to be sent behind a frame of which a part is."""
        zeromq.check_endpoint(endpoint)
        self._most = most
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        self.fd = self._socket.fileno()
        self.closed = False
        self.ended = False  # the connection has gone, and all that came by it has been received
        self._reads = {most: partial(self._socket.recv, most) for most in (_CHUNK, _LONG_CHUNK)}
        self._chunks: list[bytes] = []  # received, and in no frame yet
        self._need = 0  # bytes of these before which no frame is whole
        # The kernel's greeting has come, and its READY; before that ZeroMQ takes no message. (Nobody goes on after an
        # interrupt while a program connects.)
        self._greeted = self._ready = False
        self._out: deque[tuple[bytes, list[int]]] = (
            deque()
        )  # to be sent, and how many bytes of it have been, call by call
        # Bytes of `_out`: counted before they are there and until they have gone, so an interrupt can leave it too high,
        # until nothing waits.
        self._held = 0
        self._failed = False  # nothing can be sent any more
        try:
            self._socket.connect(endpoint.removeprefix("ipc://"))
            self._failed = self.ended = self._socket.send(_GREETED) < len(_GREETED)
        except OSError:  # nobody listens, or too many wait
            self._failed = self.ended = True

    # --- what goes --------------------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        return self._ready and bool(self._out)

    def send(self, frame: bytes) -> bool:
        """Send a frame, or as much of it as there is room for now; the rest waits. False: too much waits already, or the
        connection is lost."""
        if self._failed:
            return False
        size = len(frame)
        if not self._out:
            self._held = 0
        elif self._held + size > self._most:
            return False
        if size <= _TOGETHER:
            self._put(zmtp.head(size) + frame)
        else:
            self._put(zmtp.head(size), frame)
        return not self._failed

    def _put(self, *data: bytes) -> None:
        self._held += sum(map(len, data))
        self._out.extend([(one, []) for one in data])
        self.flush()

    def flush(self) -> None:
        """Send what waits, as much as there is room for."""
        try:
            while self._ready and self._out:
                data, sent = self._out[0]
                done = sum(sent)
                sent.extend(map(self._socket.send, (memoryview(data)[done:] if done else data,)))
                if sum(sent) >= len(data):
                    self._out.popleft()
                    self._held -= len(data)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # what came before is still to be read
            self._failed = True
            self._out.clear()
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # the kernel may be there (ENOBUFS): both have to hear of it

    # --- what comes -------------------------------------------------------------------------------------------------

    def receive(self, inbox: deque[bytes]) -> None:
        """Append all that has arrived."""
        while self._read():
            self._take(inbox)
        self.flush()

    def receive_some(self, inbox: deque[bytes], most: int) -> None:
        """Append what has arrived, as far as one look finds it."""
        if self._read():
            self._take(inbox)
        if self._out:
            self.flush()

    def _read(self) -> bool:
        """Whether something came."""
        if self.ended:
            return False
        chunks = self._chunks
        before = len(chunks)
        try:
            chunks.extend(islice(iter(self._reads[_CHUNK if not self._need else _LONG_CHUNK], b""), 1))
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self.ended = True
            return False
        self.ended = len(chunks) == before
        return not self.ended

    def _take(self, inbox: deque[bytes]) -> None:
        """Append the frames that are whole."""
        chunks = self._chunks
        if self._need > _CHUNK and sum(map(len, chunks)) < self._need:
            return
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if self._greeted and len(data) >= 2 and not data[0] and data[1] + 2 == len(data):  # the usual
            inbox.append(data[2:])
            chunks.clear()
            return
        at, need, frames = self._parsed(data)
        inbox.extend(frames)
        self._need = need
        chunks[:] = [data[at:]] if at < len(data) else []

    def _parsed(self, data: bytes) -> tuple[int, int, list[bytes]]:
        """Up to where the bytes are in frames, how many there must be for the next one, and the messages among them."""
        at = 0
        frames: list[bytes] = []
        if not self._greeted:
            if len(data) < 64:
                return 0, 0, []
            self._greeted = True
            at = 64
        while len(data) - at >= 2:
            flags, size, start = data[at], data[at + 1], at + 2
            if flags & _LONG:
                start = at + 9
                if len(data) < start:
                    break
                size = int.from_bytes(data[at + 1 : start], "big")
            if flags & _MORE or size > _MOST:  # no kernel says so
                self._failed = self.ended = True
                return len(data), 0, frames
            if len(data) < start + size:
                return at, start + size - at, frames
            if not flags & _COMMAND:
                frames.append(data[start : start + size])
            elif data[start : start + 6] == b"\x05READY":
                self._ready = True
            at = start + size
        return at, 0, frames

    # --- the end ----------------------------------------------------------------------------------------------------

    @property
    def loss(self) -> tuple[int, int]:
        """The descriptor, and what to ask poll(2) of it, that tells when the connection may be lost."""
        return self.fd, getattr(select, "POLLRDHUP", 0)

    def went_down(self) -> bool:
        """Of a loss `ended` tells."""
        return False

    def await_last_words(self) -> None:
        """There are none: what came before a loss is read before it."""

    def close(self) -> None:
        if not self.closed:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # a child may hold the descriptor
            self._socket.close()
            self.closed = True  # last: Ctrl-C may come in between, and it be called again
