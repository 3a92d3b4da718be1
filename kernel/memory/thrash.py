"""Thrashing: a device spends its time on bringing back pages that it took away.

The answer is the classical one (Denning 1968): fewer processes, each for longer. The kernel stretches the quantum of
tokens after which a process may lose its pages to another of its class, until most of the time goes into new tokens
again, and shortens it when memory suffices.
"""

from __future__ import annotations

from llmasos.kernel.clock import SECOND

WINDOW = SECOND  # of steps, between two decisions
TOO_MUCH = 40  # percent of the time: the quantum is doubled
LITTLE = 10  # it is halved
MOST = 64


class Thrash:
    """The measure for one model on one device. `stretch` multiplies the quantum of its processes."""

    def __init__(self) -> None:
        self.stretch = 1
        self.lost = 0.0  # part of the time, as last decided on, for reports
        self._time = self._lost = 0

    def spent(self, duration: int, lost: int) -> bool:
        """A step took `duration` nanoseconds, `lost` of them to bring back what had been there before. Returns whether
        `stretch` changed."""
        self._time += duration
        self._lost += lost
        if self._time < WINDOW:
            return False
        before, self.lost = self.stretch, self._lost / self._time
        percent = 100 * self._lost // self._time
        self._time = self._lost = 0
        if percent >= TOO_MUCH:
            self.stretch = min(MOST, self.stretch * 2)
        elif percent < LITTLE:
            self.stretch = max(1, self.stretch // 2)
        return self.stretch != before
