"""The policies by name."""

from __future__ import annotations

from llmasos.kernel.sched.fair import Fair
from llmasos.kernel.sched.fcfs import FCFS
from llmasos.kernel.sched.lottery import Lottery
from llmasos.kernel.sched.mlfq import MLFQ
from llmasos.kernel.sched.policy import Policy
from llmasos.kernel.sched.round_robin import RoundRobin
from llmasos.syscalls.errno import Errno

POLICIES: dict[str, type[Policy]] = {p.name: p for p in (Fair, FCFS, RoundRobin, MLFQ, Lottery)}


def make_policy(name: str, quantum: int) -> Policy:
    """A fresh policy; EINVAL names the ones there are."""
    if name not in POLICIES:
        raise Errno.EINVAL(f"no scheduling policy {name!r}; there are: {', '.join(POLICIES)}")
    return POLICIES[name](quantum)
