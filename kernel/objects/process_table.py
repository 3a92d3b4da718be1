"""The process table: every process by its pid, and whose child it is."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping, Set

from llmasos.kernel.objects.process import INIT_PID, LLMProcess, Process
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import State

_STALE = 64  # pids of rows that have gone, above which they are thrown out
_NOBODY: frozenset[int] = frozenset()
_NO_ROWS: dict[int, Process] = {}


class ProcessTable:
    """Everything that has a pid."""

    def __init__(self, capacity: int) -> None:
        self._rows: dict[int, Process] = {}
        self._order: list[int] = []  # the pids of all rows in order, and some of rows that have gone
        self._next = INIT_PID
        self._capacity = capacity
        # By the pid of the parent, only of those who have any: most rows are LLM processes, which have none.
        self._children: dict[int, set[int]] = {}
        self._zombies: dict[int, dict[int, Process]] = {}
        self.changed: dict[int, Process] = {}  # rows that the journal has to be told of
        self.gone: list[Process] = []  # and those taken off the table

    def __iter__(self) -> Iterator[Process]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, pid: int) -> bool:
        return pid in self._rows

    def check_room(self, count: int) -> None:
        """EAGAIN if the table cannot take `count` more rows."""
        if len(self._rows) + count > self._capacity:
            raise Errno.EAGAIN(
                f"{count} more do not fit the process table ({len(self._rows)} of {self._capacity} are in it); "
                "kill or wait for some first"
            )

    def new_pid(self) -> int:
        """The next pid; raises EAGAIN when the table is full."""
        self.check_room(1)
        pid = self._next
        self._next += 1
        return pid

    @property
    def next_pid(self) -> int:
        """The pid that is given out next."""
        return self._next

    def resume(self, next_pid: int) -> None:
        """Give out no pid below this one: those were an earlier kernel's."""
        self._next = max(self._next, next_pid)

    def add(self, process: Process) -> None:
        self._rows[process.pid] = process
        if self._order and process.pid < self._order[-1]:
            insort(self._order, process.pid)
        else:
            self._order.append(process.pid)
        self.changed[process.pid] = process
        process.group.enter(process.pid)
        if process.parent in self._rows and process.parent != process.pid:
            self._adopt(process)

    def remove(self, process: Process) -> None:
        del self._rows[process.pid]
        if len(self._order) > 2 * len(self._rows) + _STALE:
            self._order = sorted(self._rows)
        self.changed.pop(process.pid, None)
        self.gone.append(process)
        process.group.leave(process.pid)
        self._orphan(process)

    def reparent(self, process: Process, parent: int) -> None:
        """Make the process a child of `parent`."""
        self._orphan(process)
        process.parent = parent
        self._adopt(process)
        self.changed[process.pid] = process

    def ended(self, process: Process) -> None:
        """A row has become a zombie."""
        self._zombies.setdefault(process.parent, {})[process.pid] = process

    def children(self, pid: int) -> Set[int]:
        """The pids of the children of a row."""
        return self._children.get(pid, _NOBODY)

    def zombies(self, pid: int) -> Mapping[int, Process]:
        """Of its children, those that have ended, by pid, the first that ended first."""
        return self._zombies.get(pid, _NO_ROWS)

    def _adopt(self, process: Process) -> None:
        self._children.setdefault(process.parent, set()).add(process.pid)
        if process.is_zombie():
            self.ended(process)

    def _orphan(self, process: Process) -> None:
        for families in (self._children, self._zombies):
            if (some := families.get(process.parent)) is not None:
                some.pop(process.pid, None) if isinstance(some, dict) else some.discard(process.pid)
                if not some:
                    del families[process.parent]

    def sort(self) -> None:
        """Put the rows in order of pid again, after rows were added that are older than others."""
        self._rows = dict(sorted(self._rows.items()))
        self._order = list(self._rows)

    def find(self, pid: int) -> Process | None:
        return self._rows.get(pid)

    def get(self, pid: int) -> Process:
        """The process, or ESRCH with what was asked and what is there."""
        process = self._rows.get(pid)
        if process is None or process.state is State.ZOMBIE:
            never = "was never given out" if pid >= self._next else "has exited"
            raise Errno.ESRCH(f"no process {pid}: that pid {never}; `ps` lists the processes")
        return process

    def llm(self, pid: int) -> LLMProcess:
        """The LLM process, or ESRCH, or EINVAL if the pid is of another kind."""
        process = self.get(pid)
        if not isinstance(process, LLMProcess):
            raise Errno.EINVAL(
                f"process {pid} ({process.name}) is of kind {process.kind.value}; an LLM process is wanted"
            )
        return process

    def after(self, pid: int, limit: int) -> list[Process]:
        """Rows in order of pid after `pid`, at a cost that does not depend on how many stand before them."""
        found: list[Process] = []
        at = bisect_right(self._order, pid)
        while len(found) < limit and at < len(self._order):
            some = self._order[at : at + limit - len(found)]
            found += [self._rows[pid] for pid in some if pid in self._rows]
            at += len(some)
        return found
