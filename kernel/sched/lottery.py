"""Lottery scheduling (Waldspurger and Weihl, OSDI 1994): tickets are shares, every scheduling decision draws anew.

Each queued process draws an exponential variate with its weight as the rate; the smallest wins with probability
weight / sum of weights, and taking the k smallest is a draw without replacement (Efraimidis and Spirakis, 2006). The
draws come from a counter, not a shared generator, so a run can be replayed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llmasos.kernel.sched.policy import Policy
from llmasos.kernel.seeds import mix

if TYPE_CHECKING:
    from llmasos.kernel.objects.process import LLMProcess


class Lottery(Policy):
    name = "lottery"

    def __init__(self, quantum: int) -> None:
        super().__init__(quantum)
        self._field: float = 0.0

    def woke(self, process: LLMProcess) -> None:
        self._draw(process)

    def ran(self, process: LLMProcess, tokens: int) -> None:
        self._draw(process)

    def _draw(self, process: LLMProcess) -> None:
        uniform = ((mix(self.stamp(), process.pid) >> 11) + 1) / (1 << 53)
        # Losers keep their draw until they win: without the growing base they would be favoured for ever after.
        process.policy_state = self._won(process) - math.log(uniform) / process.share

    def _won(self, process: LLMProcess) -> float:
        """The draws form each process's Poisson clock of rate `weight`; a new one starts where the field stands."""
        own = process.policy_state if isinstance(process.policy_state, float) else 0.0
        self._field = max(self._field, own)
        return self._field
