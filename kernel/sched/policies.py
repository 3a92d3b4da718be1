"""The scheduling policies by name, with the two smallest: first come first served, and round robin."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.fair import Fair
from llmasos.kernel.sched.lottery import Lottery
from llmasos.kernel.sched.mlfq import MLFQ
from llmasos.kernel.sched.policy import Policy
from llmasos.syscalls.errno import Errno


class FCFS(Policy):
    """The process that woke first runs until it sleeps. The baseline: throughput, and convoys."""

    name = "fcfs"


@dataclass(slots=True)
class _Turn:
    stamp: int
    used: int = 0


class RoundRobin(Policy):
    """A quantum of tokens each, then to the tail of the queue."""

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


POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Fair, FCFS, RoundRobin, MLFQ, Lottery)}


def make_policy(name: str, quantum: int) -> Policy:
    """A fresh policy; EINVAL names the ones there are."""
    if name not in POLICIES:
        raise Errno.EINVAL(f"no scheduling policy {name!r}; there are: {', '.join(POLICIES)}")
    return POLICIES[name](quantum)
