"""First come, first served: who woke first runs until it sleeps. The baseline: best throughput, convoys and all."""

from __future__ import annotations

from llmasos.kernel.sched.policy import Policy


class FCFS(Policy):
    name = "fcfs"
