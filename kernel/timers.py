"""Deadlines of the core: a heap of records, each a moment, what is then done, and to what.

Time comes in with events only. A timer names a function of the kernel and its target and closes over nothing, so a copy
of the core has timers of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Timer:
    """`kind` is called with the system and the target; None: it has been cancelled, or has gone off."""

    at: int  # nanoseconds
    kind: Callable[[Any, Any], None] | None
    target: Any

    def cancel(self) -> None:
        self.kind = self.target = None


class Timers:
    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._count = 0
        self._sweep = 64  # entries at which those of cancelled timers are thrown out

    def at(self, moment: int, kind: Callable[[Any, T], None], target: T) -> Timer:
        """Do `kind` to the target once `moment` has come, unless the timer is cancelled."""
        timer = Timer(moment, kind, target)
        if len(self._heap) >= self._sweep:
            self._heap = [entry for entry in self._heap if entry[2].kind is not None]
            heapq.heapify(self._heap)
            self._sweep = max(64, 2 * len(self._heap))
        self._count += 1
        heapq.heappush(self._heap, (moment, self._count, timer))
        return timer

    def next(self) -> int | None:
        """The earliest moment something is wanted at."""
        while self._heap and self._heap[0][2].kind is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def run(self, system: Any, now: int) -> None:
        """Let everything go off that is due, in order of time."""
        while (moment := self.next()) is not None and moment <= now:
            timer = heapq.heappop(self._heap)[2]
            kind, target = timer.kind, timer.target
            timer.cancel()
            if kind is not None:
                kind(system, target)
