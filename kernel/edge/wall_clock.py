"""The wall clock as permissions count by it: it never goes back, also where somebody sets it back, and goes on while the
kernel, or the machine, does not run.

While the kernel runs it goes as CLOCK_BOOTTIME does, which counts suspended time and cannot be set, and jumps where the
operating system's wall clock is ahead of that. Over a boot the journal has what it has shown (events.Wall).
"""

from __future__ import annotations

import time

import trio

LOOK_SECONDS = 60.0  # between two looks while something is to end: somebody may set the clock on


class WallClock:
    def __init__(self, least: int = 0) -> None:
        """`least`: what it has shown before, in nanoseconds since 1970."""
        self._shown, self._at = max(least, time.time_ns()), _running()
        self.until: int | None = None  # what it is to be told of
        self._changed = trio.Event()

    def now(self) -> int:
        at = _running()
        self._shown, self._at = max(self._shown + at - self._at, time.time_ns()), at
        return self._shown

    def wake_at(self, moment: int | None) -> None:
        """`due` is to become true when it shows this."""
        self.until = moment
        self._changed.set()

    @property
    def due(self) -> bool:
        return self.until is not None and self.now() >= self.until

    async def look(self) -> None:
        """Return when it is due, or has not been looked at for a minute while something is to end."""
        while True:
            self._changed = trio.Event()
            left = float("inf") if self.until is None else min((self.until - self.now()) / 1e9, LOOK_SECONDS)
            with trio.move_on_after(max(0.0, left)):
                await self._changed.wait()
                continue
            return


def _running() -> int:
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
