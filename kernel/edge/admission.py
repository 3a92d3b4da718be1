"""Admission of those who show files: how many may at once, of an OS process, of a user, of all.

A program that says nothing has its place for half a minute, so a few users could have all places for as long as they
like. The last ones are therefore for users who have none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from llmasos.syscalls.budgets import SHOWN
from llmasos.syscalls.records import Budget

NEWCOMERS = 16  # places for users who show nothing yet


class Admission:
    """What is charged to OS processes and users (syscalls/budgets.py, `shown files`)."""

    def __init__(self) -> None:
        self._count: Counter[tuple[str, int]] = Counter()
        self._refused = 0

    @contextmanager
    def charged(self, os_pid: int, uid: int) -> Iterator[None]:
        """Have a place while it lasts. Raises SyscallError EAGAIN: there is none for this OS process or user."""
        levels = (("process", os_pid, SHOWN.process), ("user", uid, SHOWN.owner), ("", 0, SHOWN.all))
        for kind, number, most in levels:
            if (used := self._count[kind, number]) >= most:
                self._refused += 1
                raise SHOWN.refuse(f"{'OS ' if kind == 'process' else ''}{kind} {number}" if kind else "all", used, most)
        if used >= SHOWN.all - NEWCOMERS and self._count["user", uid]:
            self._refused += 1
            raise SHOWN.errno(
                f"{SHOWN.name} of all: {used} of at most {SHOWN.all} are used, and the last {NEWCOMERS} are for users "
                f"who show nothing yet; {SHOWN.then}"
            )
        self.add(os_pid, uid, 1)
        try:
            yield
        finally:
            self.add(os_pid, uid, -1)

    def add(self, os_pid: int, uid: int, count: int) -> None:
        for key in (("process", os_pid), ("user", uid), ("", 0)):
            self._count[key] += count
            if not self._count[key]:
                del self._count[key]

    def told(self) -> Budget:
        largest = max((count for (kind, _), count in self._count.items() if kind == "process"), default=0)
        return SHOWN.told(self._count["", 0], self._refused, largest)
