"""The process table: every process by its pid, whose child it is, and what of it each owner sees."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from itertools import islice

from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.objects.process import INIT_PID, LLMProcess, Process
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Kind, State


class ProcessTable:
    """Everything that has a pid."""

    def __init__(self, capacity: int) -> None:
        self._rows: dict[int, Process] = {}
        self._views: dict[Owner, dict[int, Process]] = {}  # of those who do not see everything
        self.shared: dict[int, Process] = {}  # init and the drivers, which all see
        self.next: dict[int, int] = {0: INIT_PID}  # by user, the number that is given out next; 0: the operator's
        self._capacity = capacity
        self.refused = 0  # times that it was full
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
            self.refused += 1
            raise Errno.EAGAIN(
                f"{count} more do not fit the process table ({len(self._rows)} of {self._capacity} are in it); "
                "kill or wait for some first"
            )

    def new_pid(self, space: int = 0) -> int:
        """The next pid of the user `space`; raises EAGAIN when the table is full, or his pids are used up."""
        self.check_room(1)
        number = self.next.get(space, pids.FIRST)
        while space and number in self.shared:
            number += 1
        if space and number > pids.MOST:
            raise Errno.EAGAIN(f"user {space} has had {pids.MOST} processes, and there are no more pids")
        self.next[space] = number + 1
        return pids.pid_of(space, number)

    def driver_pid(self) -> int:
        """A pid that is the same for all: no user has had it as a number."""
        number = self.next[0] if self.next[0] < pids.FIRST else max(self.next.values())
        self.next[0] = number + 1
        return number

    def resume(self, space: int, number: int) -> None:
        """Give out no number below this one: those were an earlier kernel's."""
        self.next[space] = max(self.next.get(space, 0), number)

    def view(self, owner: Owner, *, everybody: bool = False) -> Mapping[int, Process]:
        """The rows that an owner sees, zombies too; with `everybody` he sees all."""
        return self._rows if owner.operator or everybody else self._view(owner)

    def _view(self, owner: Owner) -> dict[int, Process]:
        if owner not in self._views:
            self._views[owner] = self.shared.copy()
        return self._views[owner]

    def _viewers(self, process: Process) -> list[dict[int, Process]]:
        """The tables in which a process is, besides the whole."""
        if process.kind in (Kind.INIT, Kind.DRIVER):
            return [self.shared, *self._views.values()]
        owner = process.owner
        return [] if owner.operator else [self._view(one) for one in {owner, owner.base} if not one.operator]

    def add(self, process: Process) -> None:
        self._rows[process.pid] = process
        for view in self._viewers(process):
            view[process.pid] = process
        self.changed[process.pid] = process
        process.group.enter(process.pid, process.kept)
        parent = self._rows.get(process.parent)
        if parent is not None and parent is not process:
            parent.children.add(process.pid)
            if process.is_zombie():
                parent.zombies[process.pid] = process

    def remove(self, process: Process) -> None:
        del self._rows[process.pid]
        for view in self._viewers(process):
            del view[process.pid]
        self.changed.pop(process.pid, None)
        self.gone.append(process)
        process.group.leave(process.pid, process.kept)
        parent = self._rows.get(process.parent)
        if parent is not None:
            parent.children.discard(process.pid)
            parent.zombies.pop(process.pid, None)

    def reparent(self, process: Process, parent: int) -> None:
        """Make the process a child of `parent`."""
        old, new = self._rows.get(process.parent), self._rows[parent]
        if old is not None:
            old.children.discard(process.pid)
            old.zombies.pop(process.pid, None)
        process.parent = parent
        new.children.add(process.pid)
        self.changed[process.pid] = process

    def sort(self) -> None:
        """Put the rows in order of pid again, after rows were added that are older than others."""
        self._rows = dict(sorted(self._rows.items()))
        self._views = {owner: dict(sorted(view.items())) for owner, view in self._views.items()}

    def find(self, pid: int) -> Process | None:
        return self._rows.get(pid)

    def get(self, pid: int) -> Process:
        """The process, or ESRCH with what was asked and what is there."""
        process = self._rows.get(pid)
        if process is None or process.state is State.ZOMBIE:
            raise Errno.ESRCH(f"no process {pids.shown(pid)}: it has exited, or never was; `ps` lists the processes")
        return process

    def llm(self, pid: int) -> LLMProcess:
        """The LLM process, or ESRCH, or EINVAL if the pid is of another kind."""
        return only_llm(self.get(pid))

    def after(self, pid: int, limit: int, view: Mapping[int, Process] | None = None) -> list[Process]:
        """Rows (of a view) in order of pid after `pid`. Insertion order is pid order, because the pids of one user only
        grow."""
        view = self._rows if view is None else view
        rows = (row for row in view.values() if row.pid > pid)
        if view is self._rows and len(self.next) > 1:
            return heapq.nsmallest(limit, rows, key=lambda row: row.pid)
        return list(islice(rows, limit))

    def check(self) -> None:
        """Everybody sees what is his, and no more."""
        for owner, view in self._views.items():
            wanted = {row.pid: row for row in self if owner.over(row.owner)} | self.shared
            assert view == wanted, f"{owner} sees {list(view)}, and should see {list(wanted)}"


def only_llm(process: Process) -> LLMProcess:
    """EINVAL if the process is of another kind."""
    if not isinstance(process, LLMProcess):
        who = f"{process.pid} ({process.name})"
        raise Errno.EINVAL(f"process {who} is of kind {process.kind.value}; an LLM process is wanted")
    return process
