"""A program's socket to a kernel on another machine: a DEALER that connects once, and the monitor that says when the
connection is lost. (stream.py is the same for one of this machine.)

Nothing here waits; line.py does that for threads, link.py for event loops. zeromq.descriptor says what holds of the
descriptors: they become readable once for each change, and any use of a socket may swallow that. So whoever has sent
looks for what has arrived before anything waits again.
"""

from __future__ import annotations

import select
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import islice

import zmq

from llmasos.syscalls import limits, scarce, zeromq
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.remote import Remote

_EVENTS = (
    zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)  # fmt: skip

_LEAVE = 1000  # milliseconds that the last words of a program have to leave; the end of its OS process waits for none


class Dealer:
    """One connection. `fd` and `monitor_fd` become readable when something may have arrived, or the connection has
    gone."""

    level = False  # the descriptors are readable once for each change
    ended = False  # of a loss `went_down` tells
    waits = False  # libzmq sends by itself

    def __init__(self, remote: Remote) -> None:
        """Raises OSError: there are no descriptors for it."""
        self._remote = remote
        scarce.check_descriptors()
        try:
            self._raw = zeromq.raw_dealer(b"", None, 2 * limits.MAX_REPLY_BYTES)
            try:
                remote.secure(self._raw)
                self._monitor = zeromq.Monitor(self._raw.get_monitor_socket(_EVENTS))
            except BaseException:
                self._raw.close(linger=0)
                raise
        except zmq.ZMQError as error:
            raise OSError(error.errno, error.strerror) from None
        self.fd, self.monitor_fd = zeromq.descriptor(self._raw), self._monitor.fd
        self._next = partial(self._raw.recv, zeromq.NOBLOCK)
        self._raw.connect(str(remote))

    def send(self, frame: bytes) -> bool:
        """Send a frame. False: the pipe is full, or the connection lost."""
        try:
            self._raw.send(frame, zeromq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self, inbox: deque[bytes]) -> None:
        """Append all that has arrived."""
        if zeromq.has_message(self._raw):
            # One C call, so that Ctrl-C cannot fall between reading a frame and storing it.
            with suppress(zmq.Again):
                inbox.extend(iter(self._next, None))

    def receive_some(self, inbox: deque[bytes], most: int) -> None:
        """Append up to `most` frames. As `receive`, but does not ask once more when nothing more is expected."""
        with suppress(zmq.Again):
            inbox.extend(islice(iter(self._next, None), most))

    def went_down(self) -> bool:
        """Whether the connection has gone since the last look. What arrived by it shows within zeromq.LAST_WORDS."""
        down = [link for link in self._monitor.drain() if not link.up]
        return bool(down)

    @property
    def refused(self) -> SyscallError | None:
        """Why the connection could not be made, once it went down."""
        return self._remote.why_not(self._monitor.failed)

    @property
    def loss(self) -> tuple[int, int]:
        """The descriptor, and what to ask poll(2) of it, that tells when the connection may be lost."""
        return self.monitor_fd, select.POLLIN

    def flush(self) -> None:
        """Nothing waits here."""

    def await_last_words(self) -> None:
        """Wait, in this thread, for what a lost connection still brings."""
        self._raw.poll(round(zeromq.LAST_WORDS * 1000))

    @property
    def closed(self) -> bool:
        return self._raw.closed

    def close(self) -> None:
        if not self._raw.closed:
            self._raw.disable_monitor()
            self._monitor.close()
            self._raw.close(linger=_LEAVE)  # libzmq's thread sends what waits; nobody waits for it here
