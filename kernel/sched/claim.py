"""Which process keeps its frames when not all that want to run can have some."""

from __future__ import annotations

from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.run_queue import rank


def claim(process: LLMProcess, quantum: int) -> tuple[int, bool, int, int]:
    """The order of claims to frames when no process could run otherwise; the smallest claim is the first.

    It is not the order of the run queue: that changes with every token, and two processes that do not fit together
    would take the pages from each other for ever. A process that got pages keeps its claim until it has computed a
    quantum of new tokens; one that lost its pages goes to the end of the line.
    """
    return rank(process.traits.sched_class), process.outran(quantum), process.turn, process.pid
