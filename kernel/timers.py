"""Deadlines of the core: a heap of moments with the function to run at each. Time comes in with events only."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Timer:
    at: float
    fire: Callable[[], None] | None

    def cancel(self) -> None:
        self.fire = None


class Timers:
    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._sweep = 64  # entries at which those of cancelled timers are thrown out

    def at(self, moment: float, fire: Callable[[], None]) -> Timer:
        """Call `fire` once `moment` has come, unless cancelled."""
        timer = Timer(moment, fire)
        if len(self._heap) >= self._sweep:
            self._heap = [entry for entry in self._heap if entry[2].fire is not None]
            heapq.heapify(self._heap)
            self._sweep = max(64, 2 * len(self._heap))
        self._count += 1
        heapq.heappush(self._heap, (moment, self._count, timer))
        return timer

    def next(self) -> float | None:
        """The earliest moment something is wanted at."""
        while self._heap and self._heap[0][2].fire is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def run(self, now: float) -> None:
        """Fire everything that is due, in order of time."""
        while (moment := self.next()) is not None and moment <= now:
            timer = heapq.heappop(self._heap)[2]
            fire, timer.fire = timer.fire, None
            if fire is not None:
                fire()
