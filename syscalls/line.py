"""The blocking client's connection: a Stream, or a Dealer, that threads wait on. Waiting is apart from everything else,
so that one thread can wait while another sends.
"""

from __future__ import annotations

import select
import socket as sockets
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from llmasos.syscalls import limits, scarce, wire
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.remote import Remote
from llmasos.syscalls.stream import Stream

if TYPE_CHECKING:  # libzmq is for connections to other machines
    from llmasos.syscalls.dealer import Dealer

MAX_BACKLOG = 2 * limits.MAX_REPLY_BYTES  # bytes that may wait to be sent
FINISH_SECONDS = 1.0
LONGEST_WAIT = 86400.0  # seconds; poll(2) takes at most 24 days


class Line:
    """A connection for programs without an event loop. One thread at a time may call a method other than `wait` and
    `nudge`.

    `wait` touches descriptors only, so one thread may wait while another sends. The sender must `take` afterwards: its
    sending may have swallowed the wake-up of the waiter.
    """

    def __init__(self, endpoint: str | Remote) -> None:
        """Raises SyscallError EAGAIN: the operating system has no descriptors, or no memory, for it."""
        self._dealer = connection(endpoint, MAX_BACKLOG)
        try:
            with scarce.told():
                self._nudged, self._nudge = sockets.socketpair()
        except BaseException:
            self._dealer.close()
            raise
        self._nudged.setblocking(False)
        self._nudge.setblocking(False)
        self._poll = select.poll()
        for fd in (self._dealer.fd, self._dealer.monitor_fd, self._nudged.fileno()):
            if fd >= 0:
                self._poll.register(fd, select.POLLIN)
        self._asks_room = False
        self._lost, self._link_changed = False, True

    def send(self, frame: bytes) -> bool:
        """Send a frame. False: the pipe is full, or the connection lost; `take` tells which."""
        if not self._dealer.send(frame):
            self._link_changed = True  # a lost connection has no pipe at all
            return False
        if self._dealer.waits:
            self.nudge()  # who waits already does not wait for room
        return True

    def finish(self, inbox: deque[bytes]) -> None:
        """Have what waits sent, where nobody waits for an answer; it may still wait after FINISH_SECONDS."""
        until = time.monotonic() + FINISH_SECONDS
        while self._dealer.waits and (left := until - time.monotonic()) > 0.0:
            self.wait(left)
            if not self.take(inbox):
                return

    def await_answer(self, seq: int) -> None:
        """Wait for the last answer, which is that to call `seq`: FINISH_SECONDS at most, and while there is a
        connection. Raises SyscallError EPROTO."""
        until, inbox, connected = time.monotonic() + FINISH_SECONDS, deque[bytes](), True
        while connected and (left := until - time.monotonic()) > 0.0:
            connected = self.take(inbox)
            while inbox:
                if wire.decode_reply(inbox.popleft()).seq == seq:
                    return
            if connected:
                self.wait(left)

    def take(self, inbox: deque[bytes]) -> bool:
        """Append all that has arrived. False: the connection is lost, and all that arrived by it has been taken."""
        if self._link_changed:
            self._link_changed = False
            if not self._lost and self._dealer.went_down():
                self._lost = True
                self._dealer.await_last_words()
        self._dealer.receive(inbox)
        self._lost = self._lost or self._dealer.ended
        return not self._lost

    @property
    def quiet(self) -> bool:
        """Whether `wait` tells of all that may have arrived, and of a loss; else `take` has to look first."""
        return self._dealer.level and not self._link_changed and not self._dealer.ended

    def take_some(self, inbox: deque[bytes], most: int) -> None:
        """Append up to `most` frames. As `take`, but does not ask once more when nothing more is expected."""
        self._dealer.receive_some(inbox, most)

    def wait(self, timeout: float | None) -> None:
        """Wait until something may have arrived, `nudge` was called, or `timeout` seconds are over. May return early."""
        if self._dealer.waits is not self._asks_room:
            self._asks_room = not self._asks_room
            self._poll.modify(self._dealer.fd, select.POLLIN | select.POLLOUT if self._asks_room else select.POLLIN)
        for fd, _ in self._poll.poll(None if timeout is None else min(timeout, LONGEST_WAIT) * 1000):
            if fd == self._dealer.monitor_fd:
                self._link_changed = True
            elif fd == self._nudged.fileno():
                with suppress(BlockingIOError):
                    self._nudged.recv(4096)

    def wait_for_loss(self, bell: int) -> None:
        """Wait until the connection may be lost, or descriptor `bell` is readable. Touches descriptors only, as
        `wait`."""
        watch = select.poll()
        watch.register(*self._dealer.loss)
        watch.register(bell, select.POLLIN)
        watch.poll()

    @property
    def refused(self) -> SyscallError | None:
        return self._dealer.refused

    def look(self) -> None:
        """Have the next `take` look whether the connection is lost."""
        self._link_changed = True

    def nudge(self) -> None:
        if not self._dealer.closed:  # then nobody waits
            with suppress(OSError):  # it is full, or being closed
                self._nudge.send(b"!")

    def close(self) -> None:
        if not self._dealer.closed:  # which is last: Ctrl-C may come in between, and it be called again
            self._nudged.close()
            self._nudge.close()
            self._dealer.close()


def connection(endpoint: str | Remote, most: int = 0) -> Stream | Dealer:
    """A connection to a kernel, here or on another machine. `most`: bytes that may wait to be sent. Raises SyscallError
    EAGAIN: the operating system has no descriptors, or no memory, for it."""
    with scarce.told():
        if isinstance(endpoint, str):
            return Stream(endpoint, most)
        from llmasos.syscalls.dealer import Dealer

        return Dealer(endpoint)
