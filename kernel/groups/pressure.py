"""Pressure stall information, as Linux's kernel/sched/psi.c: the share of time that processes lost waiting for something.

`some`: at least one process of the group waited; `full`: all that had anything to do waited, so the group got nothing
done. Averages over 10, 60 and 300 s are exponentially weighted. Linux samples them every two seconds; here each is
brought up to date, exactly, whenever a process begins or ends to wait. Floats of seconds do, as nothing is
decided by them.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from llmasos.kernel.clock import seconds
from llmasos.syscalls.records import PressureInfo

WINDOWS = (10.0, 60.0, 300.0)


class Activity(enum.IntEnum):
    """What a process does, as pressure counts it."""

    NOTHING = 0  # it wants nothing, or is stopped
    RUNS = 1  # in the step on the device
    CPU = 2  # ready, but not in that step
    MEMORY = 3  # waits for frames
    WEIGHTS = 4  # waits for its model
    QUOTA = 5  # throttled


RESOURCES = (Activity.CPU, Activity.MEMORY, Activity.WEIGHTS, Activity.QUOTA)


@dataclass(slots=True)
class _Share:
    """The share of time for which a condition held."""

    total: float = 0.0
    averages: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def pass_by(self, passed: float, *, held: bool) -> None:
        """`held`: whether it did in the seconds that passed."""
        if not held and not self.averages[-1]:
            return
        goal = 0.0
        if held:
            goal = 1.0
            self.total += passed
        for i, window in enumerate(WINDOWS):
            self.averages[i] = goal + (self.averages[i] - goal) * math.exp(-passed / window)


class Pressure:
    """What the processes of one group do, and how long they have waited for each resource."""

    __slots__ = ("_at", "_full", "_some", "counts")

    def __init__(self) -> None:
        self.counts = [0] * len(Activity)  # of processes, by Activity
        self._some = [_Share() for _ in RESOURCES]
        self._full = [_Share() for _ in RESOURCES]
        self._at = 0

    def change(self, old: int, new: int, now: int) -> None:
        """A process did `old` up to now and does `new` from here on. One that comes, or goes, does NOTHING before, or
        after."""
        if now > self._at:
            self._pass_until(now)
        self.counts[old] -= 1
        self.counts[new] += 1

    def _pass_until(self, now: int) -> None:
        """What the counts say has held since the last moment at which one of them changed."""
        passed, self._at = seconds(now - self._at), now
        busy = sum(self.counts) - self.counts[Activity.NOTHING]
        for resource, some, full in zip(RESOURCES, self._some, self._full, strict=True):
            stalled = self.counts[resource]
            some.pass_by(passed, held=stalled > 0)
            full.pass_by(passed, held=0 < stalled == busy)

    def info(self, now: int) -> dict[str, PressureInfo]:
        """The figures up to now, by resource."""
        self._pass_until(now)
        return {
            resource.name.lower(): PressureInfo(list(some.averages), some.total, list(full.averages), full.total)
            for resource, some, full in zip(RESOURCES, self._some, self._full, strict=True)
        }
