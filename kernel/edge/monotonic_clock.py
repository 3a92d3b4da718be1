"""The kernel's time, as CLOCK_MONOTONIC is that of a machine: nanoseconds since the boot, and one alarm.

It stands still while the kernel does not run (SIGSTOP, a paused virtual machine, an overloaded machine), which an alarm
that is late tells: what was due then comes after all that has arrived meanwhile, so that nobody is late for it. Once for
each alarm. (What ends permissions goes by another clock, which runs on: wall_clock.py.)
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from llmasos.kernel.clock import nanoseconds, seconds

LATE_SECONDS = 0.2  # an alarm that comes later than this tells that the kernel has not run


class MonotonicClock:
    """It begins when it is made, within trio."""

    def __init__(self) -> None:
        self._epoch = self._seen = trio.current_time()  # of its zero, and when it ran last
        self.shown = 0  # the latest moment that it has told
        self._wake_at: int | None = None
        self._alarm = trio.CancelScope()
        self._put_off: int | None = None  # the moment of an alarm that came late

    def now(self) -> int:
        late = trio.current_time() - self._epoch - seconds(self._wake_at or 0)
        if self._wake_at is not None and late > LATE_SECONDS and self._wake_at != self._put_off:
            self._put_off = self._wake_at
            self._stand_still(late + LATE_SECONDS)
        self._seen = trio.current_time()
        self.shown = max(self.shown, nanoseconds(self._seen - self._epoch))
        return self.shown

    def stood_still(self) -> None:
        """The kernel may not have run since it looked at the clock last."""
        self._stand_still(trio.current_time() - self._seen)

    def _stand_still(self, gap: float) -> None:
        self._epoch += gap
        self._set_alarm()

    def wake_at(self, moment: int | None) -> None:
        """The alarm is to ring at this moment, and at no other."""
        self._wake_at = moment
        self._set_alarm()

    def _set_alarm(self) -> None:
        self._alarm.deadline = float("inf") if self._wake_at is None else self._epoch + seconds(self._wake_at)

    async def keep(self, ring: Callable[[], None]) -> None:
        """Call `ring` at the moments of the alarm. Until cancelled."""
        while True:
            with trio.CancelScope() as self._alarm:
                self._set_alarm()
                await trio.sleep_forever()
            moment, _ = self._wake_at, self.now()
            if moment is not None and trio.current_time() >= self._epoch + seconds(moment):
                self._wake_at = None
                # Adding and subtracting the epoch rounds: the core must not see its moment as yet to come.
                self.shown = max(self.shown, moment)
                ring()
