"""Reading, writing and closing of users' files, which their file systems may let wait for ever.

A file may lie on a file system that its user serves (FUSE), and even a close asks that. So whatever asks it runs in
threads, a few for each user; one that is not back when its time is over is left alone, and stays charged to its user.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import outcome
import trio

from llmasos.syscalls.errno import Errno

T = TypeVar("T")

LEAST_SECONDS, LEAST_RATE = 30.0, 4e6  # a file is read or written within these seconds, and this many bytes/s
_THREADS = 2  # of a user, and one that closes
MOST_CLOSING = 16  # descriptors of a user that wait to be closed


class UserIO:
    """The threads of all users."""

    def __init__(self) -> None:
        self._limiters: dict[int, trio.CapacityLimiter] = {}
        self.closing: dict[int, deque[int]] = {}  # descriptors of users', of which the first one is being closed
        self.unclosed: set[int] = set()  # users of whose descriptors none is, for want of a thread

    async def run(self, uid: int, descriptor: int, size: int, work: Callable[[int], T]) -> T:
        """Have something done with a descriptor of a user's, which may take as long as he likes: it is left alone when
        its time is over. Raises SyscallError ETIME, and what `work` does."""
        limiter, token = self._limiters.setdefault(uid, trio.CapacityLimiter(_THREADS)), object()
        entry, seconds = trio.lowlevel.current_trio_token(), LEAST_SECONDS + size / LEAST_RATE
        found: list[outcome.Outcome[T]] = []
        done = trio.Event()

        def ended(result: outcome.Outcome[T]) -> None:
            limiter.release_on_behalf_of(token)
            found.append(result)
            done.set()

        def deliver(result: outcome.Outcome[T]) -> None:
            with suppress(trio.RunFinishedError):
                entry.run_sync_soon(ended, result)

        with trio.move_on_after(seconds):
            await limiter.acquire_on_behalf_of(token)
            try:
                own = os.dup(descriptor)
            except OSError:
                limiter.release_on_behalf_of(token)
                raise
            try:
                trio.lowlevel.start_thread_soon(partial(_closing, own, work), deliver)
            except RuntimeError:
                limiter.release_on_behalf_of(token)
                self.close(uid, own)
                raise Errno.EAGAIN("the kernel can start no thread that reads it now; try again") from None
            await done.wait()
            return found[0].unwrap()
        raise Errno.ETIME(f"its file system took longer than {seconds:.0f} s for {size:,} bytes")

    def close(self, uid: int, descriptor: int) -> None:
        """Close a user's descriptor (-1: none). His file system is told of it, and may never answer, so a thread does it,
        one after the other."""
        if descriptor < 0:
            return
        waiting = self.closing.setdefault(uid, deque())
        waiting.append(descriptor)
        if len(waiting) == 1:
            self._close_next(uid)

    def _close_next(self, uid: int) -> None:
        waiting, entry = self.closing[uid], trio.lowlevel.current_trio_token()

        def closed(_: object) -> None:
            with suppress(trio.RunFinishedError):
                entry.run_sync_soon(self._closed, uid)

        try:
            trio.lowlevel.start_thread_soon(partial(os.close, waiting[0]), closed)
        except RuntimeError:  # no thread can be made: `close_again` is to try again
            self.unclosed.add(uid)

    def _closed(self, uid: int) -> None:
        self.closing[uid].popleft()
        if self.closing[uid]:
            self._close_next(uid)
        else:
            del self.closing[uid]

    async def all_but_closed(self, uid: int) -> None:
        """Until no more than a few descriptors of a user's wait to be closed. Raises SyscallError ETIME."""
        with trio.move_on_after(LEAST_SECONDS):
            while len(self.closing.get(uid, ())) > MOST_CLOSING:  # noqa: ASYNC110 - nobody waits in usual times
                await trio.sleep(0.01)
            return
        raise Errno.ETIME("files that were shown before cannot be closed: their file system does not answer")

    def close_again(self) -> None:
        """Close those for which there was no thread."""
        unclosed, self.unclosed = self.unclosed, set()
        for uid in unclosed:
            self._close_next(uid)


def _closing(descriptor: int, work: Callable[[int], T]) -> T:
    try:
        return work(descriptor)
    finally:
        os.close(descriptor)
