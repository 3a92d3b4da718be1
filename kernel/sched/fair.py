"""Weighted fair sharing by virtual token time, as Linux's CFS shares CPU time.

A process's virtual time grows by tokens / share; the smallest goes first. Its share is its weight among its siblings
times that of each of its control groups among theirs, counting those that want the device now. A process that wakes gets
at least the smallest virtual time of those that run, so it cannot save up credit by sleeping. A step, unlike a CPU,
serves many processes at once: while no process has to wait for a place in it, each gets what it wants whatever its
weight, so none runs ahead, and all virtual times are level again.

Virtual time is an integer. A share is at most 1, so every token counts for a `_UNIT` or more: each charge is rounded down
by less than a part in `_UNIT` of it, and nobody's time stands still while it runs. Integers here have no size to
overflow; Linux's have, and it compares them modulo 2^64.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.policy import Policy
from llmasos.syscalls.records import SchedClass

_UNIT = 1 << 20  # virtual time of a token of a process that has the device to itself


@dataclass(slots=True)
class _Clock:
    time: int
    sched_class: SchedClass  # whose virtual time it is: the classes do not compete by it
    epoch: int  # shortages ago


class Fair(Policy):
    name = "fair"

    def __init__(self, quantum: int) -> None:
        super().__init__(quantum)
        self._floor: defaultdict[SchedClass, int] = defaultdict(int)  # the smallest that runs
        self._epoch = 0

    def _clock(self, process: LLMProcess) -> _Clock:
        clock = process.policy_state
        if (
            not isinstance(clock, _Clock)
            or clock.epoch != self._epoch
            or clock.sched_class is not process.traits.sched_class
        ):
            floor = self._floor[process.traits.sched_class]
            clock = process.policy_state = _Clock(floor, process.traits.sched_class, self._epoch)
        return clock

    def woke(self, process: LLMProcess) -> None:
        clock = self._clock(process)
        clock.time = max(clock.time, self._floor[process.traits.sched_class])

    def key(self, process: LLMProcess) -> int:
        return self._clock(process).time

    def ran(self, process: LLMProcess, tokens: int) -> None:
        self._clock(process).time += process.virtual(tokens * _UNIT)

    def planned(self, first: LLMProcess, waiting: bool) -> None:
        floor = self._floor[first.traits.sched_class]
        self._floor[first.traits.sched_class] = max(floor, self._clock(first).time)
        if not waiting:
            self._epoch += 1
