"""A DEALER for programs without trio: the socket of the blocking client.

The same socket as transport.py's, and the same care with its descriptor, but for threads: waiting is apart from
everything else, so that one thread can wait while another sends.
"""

from __future__ import annotations

import select
import socket as sockets
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import islice

import zmq

from llmasos.syscalls import limits, zeromq


class Line:
    """A DEALER for programs without trio. One thread at a time may call a method other than `wait` and `nudge`.

    `wait` touches descriptors only, so one thread may wait while another sends. The sender must `take` afterwards: its
    sending may have swallowed the wake-up of the waiter.
    """

    def __init__(self, endpoint: str) -> None:
        zeromq.check_endpoint(endpoint)
        self._raw = zeromq.raw_dealer(b"", None, 2 * limits.MAX_REPLY_BYTES)
        self._monitor = zeromq.Monitor(self._raw.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED))
        self._nudged, self._nudge = sockets.socketpair()
        self._nudged.setblocking(False)
        self._nudge.setblocking(False)
        self._poll = select.poll()
        for fd in (zeromq.descriptor(self._raw), self._monitor.fd, self._nudged.fileno()):
            self._poll.register(fd, select.POLLIN)
        self._next = partial(self._raw.recv, zeromq.NOBLOCK)
        self._lost, self._link_changed = False, True
        self._raw.connect(endpoint)

    def send(self, frame: bytes) -> bool:
        """Send a frame. False: the pipe is full, or the connection lost; `take` tells which."""
        try:
            self._raw.send(frame, zeromq.NOBLOCK)
        except zmq.Again:
            self._link_changed = True  # a lost connection has no pipe at all
            return False
        return True

    def take(self, inbox: deque[bytes]) -> bool:
        """Append all that has arrived. False: the connection is lost, and all that arrived by it has been taken."""
        if self._link_changed:
            self._link_changed = False
            if not self._lost and any(not link.up for link in self._monitor.drain()):
                self._lost = True
                self._raw.poll(round(zeromq.LAST_WORDS * 1000))
        if zeromq.has_message(self._raw):
            # One C call, so that Ctrl-C cannot fall between reading a frame and storing it.
            with suppress(zmq.Again):
                inbox.extend(iter(self._next, None))
        return not self._lost

    def take_some(self, inbox: deque[bytes], most: int) -> None:
        """Append up to `most` frames. As `take`, but does not ask once more when nothing more is expected."""
        with suppress(zmq.Again):
            inbox.extend(islice(iter(self._next, None), most))

    def wait(self, timeout: float | None) -> None:
        """Wait until something may have arrived, `nudge` was called, or `timeout` seconds are over. May return early."""
        for fd, _ in self._poll.poll(None if timeout is None else timeout * 1000):
            if fd == self._monitor.fd:
                self._link_changed = True
            elif fd == self._nudged.fileno():
                with suppress(BlockingIOError):
                    self._nudged.recv(4096)

    def wait_for_loss(self, bell: int) -> None:
        """Wait until the connection may be lost, or descriptor `bell` is readable. Touches descriptors only, as
        `wait`."""
        watch = select.poll()
        watch.register(self._monitor.fd, select.POLLIN)
        watch.register(bell, select.POLLIN)
        watch.poll()

    def look(self) -> None:
        """Have the next `take` look whether the connection is lost."""
        self._link_changed = True

    def nudge(self) -> None:
        with suppress(BlockingIOError):
            self._nudge.send(b"!")

    def close(self) -> None:
        if self._raw.closed:
            return
        self._raw.disable_monitor()
        self._monitor.close()
        self._raw.close(linger=0)
        self._nudged.close()
        self._nudge.close()
