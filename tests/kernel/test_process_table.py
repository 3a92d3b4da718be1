"""The process table: rows in order of pid from any pid on, numbers that nobody gets twice, and families."""

from __future__ import annotations

import random
from typing import Any

import pytest

from llmasos.kernel.groups.group import Group
from llmasos.kernel.objects.ordered import Ordered
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.objects.process import INIT_PID, Process, Program
from llmasos.kernel.objects.process_table import ProcessTable
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind, State

OPERATOR, ANN = Owner("1000", 1000, "", 1, operator=True), Owner("1001", 1001, "", 2)


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_gone_through_in_order_of_pid_from_any_pid_on(seed: int) -> None:
    dice, rows = random.Random(seed), Ordered[Any]()
    there: dict[int, Any] = {}
    fresh = [*range(0, 300, 2), *range(1, 300, 2)]  # no pid is given twice
    for _ in range(900):
        if fresh and dice.random() < 0.4:
            pid = fresh.pop(0 if dice.random() < 0.8 else dice.randrange(len(fresh)))
            there[pid] = object()
            rows.put(pid, there[pid])
        elif there and dice.random() < 0.5:
            pid = dice.choice(list(there))
            rows.drop(pid)
            del there[pid]
        after, limit = dice.randrange(-1, 300), dice.randrange(1, 12)
        wanted = [there[one] for one in sorted(there) if one > after]
        assert rows.after(after, limit) == wanted[:limit]
        assert len(rows._order) <= 2 * len(there) + 65


def process(pid: int, owner: Owner, parent: int = 0, kind: Kind = Kind.PROGRAM) -> Process:
    row: Any = Program
    made: Process = row(pid=pid, parent=parent, kind=kind, name="p", group=Group(owner=owner), started=0.0)
    return made


def test_numbers_are_given_once_by_user_and_none_is_that_of_a_driver() -> None:
    table = ProcessTable(100)
    assert [table.new_pid() for _ in range(2)] == [INIT_PID, INIT_PID + 1]
    assert [table.new_pid(1001) for _ in range(2)] == [pids.pid_of(1001, pids.FIRST), pids.pid_of(1001, pids.FIRST + 1)]
    assert table.driver_pid() == INIT_PID + 2
    table.resume(0, pids.FIRST)
    table.resume(1001, 150)
    table.resume(1001, 120)
    assert table.new_pid(1001) == pids.pid_of(1001, 150)
    late = table.driver_pid()  # one that was added while the kernel runs: no user has had its number
    assert late == 151
    table.add(process(late, OPERATOR, kind=Kind.DRIVER))
    table.resume(1002, late)
    assert table.new_pid(1002) == pids.pid_of(1002, late + 1)
    table.resume(1003, pids.MOST)
    assert table.new_pid(1003) == pids.pid_of(1003, pids.MOST)
    with pytest.raises(SyscallError) as caught:
        table.new_pid(1003)
    assert caught.value.errno is Errno.EAGAIN


def test_a_part_of_the_table_is_kept_for_programs_and_of_that_for_the_operators() -> None:
    table = ProcessTable(160)  # a sixteenth: 10 places, and 2
    for pid in range(1, 161):
        for attaches, most in ((None, 150), (ANN, 158), (OPERATOR, 160)):
            for count in (1, 3):
                refused = table.refused
                if len(table) + count <= most:
                    table.check_room(count, attaches)
                    assert table.refused == refused
                    continue
                with pytest.raises(SyscallError) as caught:
                    table.check_room(count, attaches)
                assert (caught.value.errno, table.refused) == (Errno.EAGAIN, refused + 1)
        table.add(process(pid, ANN))


def test_families_change_hands_and_the_first_child_that_ended_is_the_first() -> None:
    table = ProcessTable(100)
    for pid, parent in ((1, 0), (2, 1), (3, 1), (4, 3), (5, 3), (6, 3)):
        table.add(process(pid, OPERATOR, parent))
    assert (table.children(1), table.children(3), table.children(2)) == ({2, 3}, {4, 5, 6}, set())
    for pid in (5, 4):
        row = table.get(pid)
        row.state = State.ZOMBIE
        table.ended(row)
    assert list(table.zombies(3)) == [5, 4]
    found: Any = table.find(5)
    table.changed.clear()
    table.reparent(found, 1)
    assert (table.children(1), list(table.zombies(1)), list(table.zombies(3))) == ({2, 3, 5}, [5], [4])
    assert list(table.changed) == [5]
    for pid in (5, 4, 6):
        gone: Any = table.find(pid)
        table.remove(gone)
    assert (table.children(3), table.zombies(3), table.zombies(1)) == (set(), {}, {})
    assert [row.pid for row in table.gone] == [5, 4, 6]
    with pytest.raises(SyscallError) as caught:
        table.get(5)
    assert caught.value.errno is Errno.ESRCH
