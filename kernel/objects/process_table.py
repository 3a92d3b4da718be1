"""The process table: every process by its pid, whose child it is, and what of it each owner sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from types import MappingProxyType

from llmasos.kernel.objects.ordered import Ordered
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.objects.process import INIT_PID, LLMProcess, Process
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Kind, State

_NOBODY: frozenset[int] = frozenset()
_NO_ROWS: Mapping[int, Process] = MappingProxyType({})
Rows = Ordered[Process]  # by pid
_KEPT, _SHARE_KEPT = 1000, 16  # places of a large table, and of a small one one in so many


class ProcessTable:
    """Everything that has a pid."""

    def __init__(self, capacity: int) -> None:
        self._rows = Rows()
        self._views: dict[Owner, Rows] = {}  # of those who do not see everything
        self.shared = Rows()  # init and the drivers, which all see
        self.next: dict[int, int] = {0: INIT_PID}  # by user, the number that is given out next; 0: the operator's
        self._capacity = capacity
        self.refused = 0  # times that it was full
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

    def check_room(self, count: int, attaches: Owner | None = None) -> None:
        """EAGAIN if the table cannot take `count` more rows: processes, or programs of an owner that attach. A part of it
        is kept for programs, and a part of that for operators', so that one can always come and end the others."""
        kept = min(_KEPT, self._capacity // _SHARE_KEPT)
        if attaches is not None:
            kept = 0 if attaches.operator else kept // 4
        if len(self._rows) + count > self._capacity - kept:
            whose = f", {kept} places are kept for {'programs' if attaches is None else 'operators'}" if kept else ""
            self.refused += 1
            raise Errno.EAGAIN(
                f"{count} more do not fit the process table ({len(self._rows)} of {self._capacity} are in it{whose}); "
                "kill or wait for some first"
            )

    def new_pid(self, space: int = 0) -> int:
        """The next pid of the user `space`; raises EAGAIN when his pids are used up."""
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

    def view(self, owner: Owner, *, everybody: bool = False) -> Rows:
        """The rows that an owner sees, zombies too; with `everybody` he sees all."""
        return self._rows if owner.operator or everybody else self._view(owner)

    def _view(self, owner: Owner) -> Rows:
        if owner not in self._views:
            self._views[owner] = Rows(self.shared)
        return self._views[owner]

    def _viewers(self, process: Process) -> list[Rows]:
        """The tables in which a process is, besides the whole."""
        if process.kind in (Kind.INIT, Kind.DRIVER):
            return [self.shared, *self._views.values()]
        owner = process.owner
        return [] if owner.operator else [self._view(one) for one in {owner, owner.base} if not one.operator]

    def add(self, process: Process) -> None:
        for rows in (self._rows, *self._viewers(process)):
            rows.put(process.pid, process)
        self.changed[process.pid] = process
        process.group.enter(process.pid, process.kept)
        if process.parent in self._rows and process.parent != process.pid:
            self._adopt(process)

    def remove(self, process: Process) -> None:
        for rows in (self._rows, *self._viewers(process)):
            rows.drop(process.pid)
        self.changed.pop(process.pid, None)
        self.gone.append(process)
        process.group.leave(process.pid, process.kept)
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
        """The children of a row that have ended, by pid, in the order in which they ended."""
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
        for rows in (self._rows, *self._views.values()):
            rows.sort()

    def after(self, pid: int, limit: int) -> list[Process]:
        """At most `limit` rows behind a pid, in order."""
        return self._rows.after(pid, limit)

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
