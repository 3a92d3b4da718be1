"""The asynchronous client's connection: a Stream, or a Dealer, that an event loop watches.

No task waits on it. The loop calls `take` when something may have arrived, and whoever sends calls it too, since sending
may swallow the wake-up of a Dealer. Frames that do not fit wait here. Of a Stream the loop tells when there is room;
libzmq says so by the descriptor that also tells of what arrives, and so they are also tried by time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from llmasos.syscalls import limits, scarce, zeromq
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.line import connection
from llmasos.syscalls.loops import Loop, Undo
from llmasos.syscalls.remote import Remote

RETRY_SECONDS = 0.02  # longest wait before a full pipe is tried again
MAX_BACKLOG = 2 * limits.MAX_REPLY_BYTES  # bytes that may wait here


class Link:
    """One connection to a kernel, from connecting until it is lost or closed. `deliver` is called with each frame, and
    `lost` once, when the connection is lost and all that arrived by it delivered; neither may wait."""

    def __init__(
        self, loop: Loop, endpoint: str | Remote, deliver: Callable[[bytes], None], lost: Callable[[], None]
    ) -> None:
        self._loop, self._deliver, self._lost = loop, deliver, lost
        self._dealer = connection(endpoint)
        self._inbox: deque[bytes] = deque()
        self._waiting: deque[bytes] = deque()
        self._size = 0  # bytes in it
        self._retry: Undo | None = None
        self._room: Undo | None = None  # the loop will tell of room
        self._ending = False
        self._taking = self._again = False  # `take` is under way, and has to look once more
        self._undo: list[Undo] = []
        try:
            with scarce.told():  # a loop asks the operating system for something to watch a descriptor
                self._undo.append(loop.watch(self._dealer.fd, self.take))
                if self._dealer.monitor_fd >= 0:
                    self._undo.append(loop.watch(self._dealer.monitor_fd, self._look))
        except BaseException:
            self.close()
            raise
        # A descriptor tells of what comes after its socket was found empty.
        self.take()
        self._look()

    @property
    def refused(self) -> SyscallError | None:
        return self._dealer.refused

    @property
    def backlog(self) -> int:
        """Frames that wait for room."""
        return len(self._waiting) + self._dealer.waits

    def send(self, frame: bytes) -> bool:
        """Send a frame. False: too much waits already, or the connection is closed."""
        if self._dealer.closed:
            return False
        if self._waiting or not self._dealer.send(frame):
            if self._size + len(frame) > MAX_BACKLOG:
                return False
            self._waiting.append(frame)
            self._size += len(frame)
            self._retry = self._retry or self._loop.later(RETRY_SECONDS, self._try_again)
        self._ask_room()
        self.take()
        return True

    def _ask_room(self) -> None:
        """Have the loop tell of room, where something waits for it. Once: trio lets one task wait for a descriptor."""
        if self._dealer.waits and self._room is None and not self._dealer.closed:
            self._room = self._loop.when_writable(self._dealer.fd, self._make_room)

    def _make_room(self) -> None:
        self._room = None
        self.take()  # what is delivered may send, and so ask by itself
        self._ask_room()

    def take(self) -> None:
        """Deliver all that has arrived. What is delivered may have something sent, which calls this again: many answers
        at once must not make as deep a recursion, so then the first goes on instead."""
        self._again = True
        if self._taking:
            return
        self._taking = True
        try:
            while self._again and not self._dealer.closed:
                self._again = False
                self._dealer.receive(self._inbox)
                while self._inbox:
                    self._deliver(self._inbox.popleft())
                if self._flushed():  # if it has sent, it may have swallowed a wake-up
                    self._again = True
        finally:
            self._taking = False
        if self._dealer.ended and not self._ending:
            self._ending = True
            self._undo.append(self._loop.later(0.0, self._end))

    def _flushed(self) -> bool:
        """Send what waits, as much as there is room for; whether any was sent."""
        sent = False
        while self._waiting and not self._dealer.closed and self._dealer.send(self._waiting[0]):
            self._size -= len(self._waiting.popleft())
            sent = True
        return sent

    def _try_again(self) -> None:
        self._retry = None
        self.take()
        if self._waiting and not self._dealer.closed:
            self._retry = self._loop.later(RETRY_SECONDS, self._try_again)

    def _look(self) -> None:
        if not self._dealer.closed and self._dealer.went_down() and not self._ending:
            self._ending = True
            self._undo.append(self._loop.later(zeromq.LAST_WORDS, self._end))

    def _end(self) -> None:
        self.take()
        if not self._dealer.closed:
            self.close()
            self._lost()

    def close(self) -> None:
        if not self._dealer.closed:
            for undo in self._undo:
                undo()
            for timer in (self._retry, self._room):
                if timer is not None:
                    timer()
            self._dealer.close()
