"""Who keeps its frames when not all who want to run can have some."""

from __future__ import annotations

from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.run_queue import rank


def claim(process: LLMProcess, quantum: int) -> tuple[int, bool, float, int]:
    """The order of claims to frames when nobody can run otherwise; the smallest is the first.

    It is not the order of the run queue: that changes with every token, and two processes that do not fit together
    would take the pages from each other for ever. Who got pages keeps the claim until it is a quantum of new tokens
    further; who lost them goes to the end of the line.
    """
    return rank(process.traits.sched_class), process.outran(quantum), process.turn, process.pid
