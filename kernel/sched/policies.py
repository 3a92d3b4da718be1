"""The policies by name."""

from __future__ import annotations

from kernel.sched.fair import Fair
from kernel.sched.fcfs import FCFS
from kernel.sched.lottery import Lottery
from kernel.sched.mlfq import MLFQ
from kernel.sched.policy import Policy
from kernel.sched.round_robin import RoundRobin
from syscalls.errno import Errno, SyscallError

POLICIES: dict[str, type[Policy]] = {p.name: p for p in (Fair, FCFS, RoundRobin, MLFQ, Lottery)}


def make_policy(name: str, quantum: int) -> Policy:
    """A fresh policy; EINVAL names the ones there are."""
    if name not in POLICIES:
        raise SyscallError(Errno.EINVAL, f"no scheduling policy {name!r}; there are: {', '.join(POLICIES)}")
    return POLICIES[name](quantum)
