"""First come, first served: the process that woke first runs until it sleeps. The baseline: throughput, and convoys."""

from __future__ import annotations

from llmasos.kernel.sched.policy import Policy


class FCFS(Policy):
    name = "fcfs"
