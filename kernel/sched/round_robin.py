"""Round robin: a quantum of tokens each, then to the tail of the queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmasos.kernel.sched.policy import Policy

if TYPE_CHECKING:
    from llmasos.kernel.objects.process import LLMProcess


@dataclass(slots=True)
class _Turn:
    stamp: int
    used: int = 0


class RoundRobin(Policy):
    name = "round_robin"

    def woke(self, process: LLMProcess) -> None:
        process.policy_state = _Turn(self.stamp())

    def key(self, process: LLMProcess) -> int:
        turn: _Turn = process.policy_state
        return turn.stamp

    def ran(self, process: LLMProcess, tokens: int) -> None:
        turn: _Turn = process.policy_state
        turn.used += tokens
        if turn.used >= self.quantum:
            process.policy_state = _Turn(self.stamp())
