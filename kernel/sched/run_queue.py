"""The processes that want a device: per class a heap by the policy's key, and a line in order of waiting for ageing.

Entries are never removed from the middle: each carries a ticket, and one whose ticket is no longer its process's is
skipped when it surfaces (Python's heapq recipe). Dead entries that do not surface, because stronger classes are always
served first, are swept out when they outnumber the live ones. So putting, taking and withdrawing are O(log n), and a
process that sleeps costs nothing.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.policy import Policy
from llmasos.syscalls.records import SchedClass

CLASSES = tuple(SchedClass)  # strongest first
_SWEEP = 1024  # entries put between two sweeps, at least
_RANK = {c: i for i, c in enumerate(CLASSES)}


def rank(sched_class: SchedClass) -> int:
    """0 is the strongest class."""
    return _RANK[sched_class]


def claim(process: LLMProcess, quantum: int) -> tuple[int, bool, int, int]:
    """The order of claims to frames when no process could run otherwise; the smallest claim is the first.

    It is not the order of the run queue: that changes with every token, and two processes that do not fit together
    would take the pages from each other for ever. A process that got pages keeps its claim until it has computed a
    quantum of new tokens; one that lost its pages goes to the end of the line.
    """
    return rank(process.sched_class), process.outran(quantum), process.turn, process.pid


class RunQueue:
    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._heaps: list[list[tuple[int, int, LLMProcess]]] = [[] for _ in CLASSES]
        self._lines: list[deque[tuple[int, int, LLMProcess]]] = [deque() for _ in CLASSES]
        self._size = 0
        self._ticket = 0  # the last one given
        self._puts = 0  # since the last sweep
        self.steps = 0  # that were done of its processes

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[LLMProcess]:
        """All queued processes, in no order; O(n)."""
        for heap in self._heaps:
            for _, ticket, process in heap:
                if process.ticket == ticket:
                    yield process

    @property
    def idle(self) -> bool:
        """Nobody is queued, and nothing is left to be taken of those who were."""
        return not (self._size or any(self._heaps))

    def entries(self) -> int:
        """What the queue holds in memory, dead entries included."""
        return sum(map(len, self._heaps)) + sum(map(len, self._lines))

    def put(self, process: LLMProcess, *, woke: bool = False) -> None:
        """Queue a process, or queue it again when its class or key may have changed. `woke`: it did not want the device
        before. A process new to the policy in force always counts as woken. Its `since` says how long it has waited.

        REALTIME processes go in the order in which their periods end, whatever the policy.
        """
        level, reserve = _RANK[process.sched_class], process.reserve
        if reserve is not None and reserve.open:
            process.ranked = False
        else:
            if process.policy is not self.policy:
                process.policy, process.policy_state, woke = self.policy, None, True
            if woke or not process.ranked:
                self.policy.woke(process)
            process.ranked = True
        if process.ticket <= 0:
            self._size += 1
        # Greater than all of this queue and all that this process had, as in Lamport's clocks: one that moves to another
        # device leaves dead entries in the queue of the first, which must not come to life by the number it gets there.
        ticket = process.ticket = self._ticket = max(self._ticket, abs(process.ticket)) + 1
        process.key = self.policy.key(process) if process.ranked or reserve is None else reserve.ends
        heapq.heappush(self._heaps[level], (process.key, ticket, process))
        if level > 0:
            line = self._lines[level]
            line.append((process.since, ticket, process))
            while line and line[0][2].ticket != line[0][1]:
                line.popleft()
        self._puts += 1
        if self._puts > _SWEEP + self._size:
            self._sweep()

    def _sweep(self) -> None:
        """Throw out dead entries, which would keep processes in memory that have ended."""
        self._puts = 0
        for level, heap in enumerate(self._heaps):
            heap[:] = [entry for entry in heap if entry[2].ticket == entry[1]]
            heapq.heapify(heap)
            line = self._lines[level]
            self._lines[level] = deque(entry for entry in line if entry[2].ticket == entry[1])

    def withdraw(self, process: LLMProcess) -> None:
        """Take a process off the queue, if it is in it: it no longer wants the device."""
        if process.ticket > 0:
            process.ticket = -process.ticket
            self._size -= 1

    def take(self) -> LLMProcess | None:
        """Take the first process by class, then key, off the queue; None if it is empty."""
        for heap in self._heaps:
            while heap:
                _, ticket, process = heapq.heappop(heap)
                if process.ticket == ticket:
                    self.withdraw(process)
                    return process
        return None

    def take_aged(self, before: int) -> LLMProcess | None:
        """Take the process off the queue that has waited longest, if it has waited since `before` while a stronger class
        is served."""
        strongest = next((i for i, heap in enumerate(self._heaps) if self._live(heap)), None)
        if strongest is None:
            return None
        for line in self._lines[strongest + 1 :]:
            while line and line[0][2].ticket != line[0][1]:
                line.popleft()
            if line and line[0][0] <= before:
                process = line.popleft()[2]
                self.withdraw(process)
                return process
        return None

    @staticmethod
    def _live(heap: list[tuple[int, int, LLMProcess]]) -> bool:
        while heap and heap[0][2].ticket != heap[0][1]:
            heapq.heappop(heap)
        return bool(heap)
