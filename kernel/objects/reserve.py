"""A reserve: the part of a device's time that a REALTIME process has in each period, as Linux's SCHED_DEADLINE has it.

It is a constant bandwidth server (Abeni and Buttazzo, 1998). In each period the process may use `budget` of the device's
time before all weaker classes; those with reserves go in the order in which their periods end. One that has used it up is
FAIR until the next period, and what it used beyond comes off the next one's: a step cannot be interrupted, so the last
one may take longer than what was left. In the long run nobody gets more than budget / period before others.

Times are nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmasos.kernel.clock import SECOND, nanoseconds
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import MIN_BUDGET, MIN_PERIOD, REALTIME_BUDGET, REALTIME_PERIOD

if TYPE_CHECKING:
    from llmasos.kernel.timers import Timer


@dataclass(slots=True, eq=False)
class Reserve:
    """`left` of the budget until `ends`; below 0: the process has used more than it had."""

    budget: int
    period: int
    left: int = 0
    ends: int = 0
    since: int = 0  # when the device got it, or last refilled it after it had been used up
    timer: Timer | None = None  # for that

    @property
    def share(self) -> int:
        """Of the device's time, in billionths, rounded up."""
        return -(-self.budget * SECOND // self.period)

    @property
    def open(self) -> bool:
        """Whether the process goes before weaker classes now."""
        return self.left > 0

    def woke(self, now: int) -> None:
        """The process wants the device again. What is left would be more than its share until the period ends: a new
        period begins."""
        if now >= self.ends or self.left * self.period > (self.ends - now) * self.budget:
            periods = 1 + max(0, now - self.ends) // self.period
            self.left = min(self.budget, self.left + periods * self.budget)
            self.ends = now + self.period

    def refill(self, now: int) -> None:
        """Go on to the period in which `now` is."""
        if now >= self.ends:
            periods = 1 + (now - self.ends) // self.period
            self.left = min(self.budget, self.left + periods * self.budget)
            self.ends += periods * self.period


def make_reserve(budget: float, period: float, old: Reserve | None = None) -> Reserve:
    """A reserve of that many seconds in each period; 0: as the `old` one, or as usual. EINVAL."""
    span = nanoseconds(period) or (old.period if old is not None else nanoseconds(REALTIME_PERIOD))
    part, whole = (old.budget, old.period) if old is not None else map(nanoseconds, (REALTIME_BUDGET, REALTIME_PERIOD))
    size = nanoseconds(budget) or part * span // whole
    if not nanoseconds(MIN_BUDGET) <= size <= span or span < nanoseconds(MIN_PERIOD):
        raise Errno.EINVAL(
            f"a reserve of {size / SECOND:g} s in each {span / SECOND:g} s cannot be: the period has {MIN_PERIOD} s "
            f"or more, the budget {MIN_BUDGET} s or more, and not more than the period"
        )
    return Reserve(size, span)
