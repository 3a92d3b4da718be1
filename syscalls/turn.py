"""Where the threads of a blocking client sleep: a condition variable that Ctrl-C cannot break.

threading.Condition is Python code that gives its lock back and takes it again. Ctrl-C may come between any two of its
steps, and then the lock is nobody's while its owner believes to hold it, or who was to be woken sleeps on. Here nobody
sleeps with the lock, so there is nothing to take again: a thread has its bed noted while it holds the lock, and lies down
when it has given that back. All are woken by one call of C code, which nothing interrupts; to be woken twice, or before
lying down, does no harm.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from itertools import repeat
from queue import Empty, SimpleQueue

LONGEST = 86400.0  # seconds; the clocks of some systems take no more

Bed = SimpleQueue[None]


class Turn:
    """Those who sleep until something has changed. Callers hold a lock, the same for all."""

    def __init__(self) -> None:
        self._beds: dict[Bed, None] = {}

    def note(self, bed: Bed) -> Bed:
        """From here on `wake_all` reaches who sleeps there."""
        self._beds[bed] = None
        return bed

    def forget(self, bed: Bed | None) -> None:
        """Nobody sleeps there any more."""
        if bed is not None:
            self._beds.pop(bed, None)

    def wake_all(self) -> None:
        if self._beds:
            deque(map(SimpleQueue.put, self._beds, repeat(None)), 0)
            self._beds.clear()


def sleep(bed: Bed, timeout: float | None = None) -> None:
    """Sleep, without the lock, until woken or `timeout` seconds are over. May end early."""
    with suppress(Empty):
        bed.get(timeout=None if timeout is None else min(timeout, LONGEST))
