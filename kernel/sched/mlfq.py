"""Multi-level feedback queues (Corbato's CTSS; the rules of Arpaci-Dusseau, OSTEP chapter 8).

A process that uses up its quantum sinks one level, where the quantum is twice as long; one that waits for input stays on
its level. Every BOOST tokens of the device all rise to the top again, so none starves.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.policy import Policy

LEVELS = 4
BOOST = 8192  # tokens of all processes together between two boosts
_LEVEL_SPAN = 1 << 60  # greater than any stamp


@dataclass(slots=True)
class _Place:
    level: int
    stamp: int
    epoch: int
    used: int = 0


class MLFQ(Policy):
    name = "mlfq"

    def __init__(self, quantum: int) -> None:
        super().__init__(quantum)
        self._tokens = 0

    @property
    def _epoch(self) -> int:
        return self._tokens // BOOST

    def woke(self, process: LLMProcess) -> None:
        place = process.policy_state
        if isinstance(place, _Place):
            place.stamp = self.stamp()
        else:
            process.policy_state = _Place(0, self.stamp(), self._epoch)

    def key(self, process: LLMProcess) -> int:
        place: _Place = process.policy_state
        if place.epoch != self._epoch:
            place.level, place.used, place.epoch = 0, 0, self._epoch
        return place.level * _LEVEL_SPAN + place.stamp

    def ran(self, process: LLMProcess, tokens: int) -> None:
        self._tokens += tokens
        place: _Place = process.policy_state
        place.used += tokens
        if place.used >= self.quantum << place.level:
            place.level = min(place.level + 1, LEVELS - 1)
            place.used = 0
            place.stamp = self.stamp()
