"""A program that starts processes without end: others come in all the same, and end it."""

from __future__ import annotations

import pytest

from llmasos.simulator import Prog, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import GroupSettings, Kind, Signal
from llmasos.syscalls.table import Attach, Fork, GroupKill, GroupSet, GroupStat, Ps, Spawn


def bomb(program: Prog) -> tuple[int, str]:
    """Fork until nothing more can be had; how many there are then, and why."""
    first = program.start(Spawn("sim", tokens=[1, 2, 3], detached=True))
    program.sim.run_until(lambda: first.done)
    count, size, last = int(first.errno is Errno.OK), 32 * (first.errno is Errno.OK), first.reply
    while size:
        fork = program.start(Fork(first.value, size, detached=True))
        program.sim.run_until(lambda: fork.done)  # noqa: B023
        if fork.errno is Errno.OK:
            count += size
        else:
            size, last = size // 2, fork.reply
    assert last is not None
    assert last.errno is Errno.EAGAIN
    return count, last.reason


def test_one_program_fills_its_session_and_not_the_table() -> None:
    sim = simulate(max_processes=320, checked=False)
    program, other = sim.program(), sim.program()
    count, reason = bomb(program)
    assert count == 79, "with the program itself a quarter"
    assert "pids_max" in reason
    assert other.call(Spawn("sim", tokens=[1])), "others start theirs"
    (session,) = program.call(GroupStat(""))
    assert session.settings == GroupSettings(), "no setting of its own"
    other.call(GroupSet(session.path, GroupSettings(pids_max=90)))
    assert bomb(program)[0] == 10, "which an operator can raise"


def test_when_many_programs_have_filled_the_table_another_can_attach_and_end_them() -> None:
    sim = simulate(max_processes=320, checked=False)
    for number in range(6):
        mallory = sim.program(uid=2000 + number)
        reason = bomb(mallory)[1]
    assert "20 places are kept for programs" in reason
    came = len(sim.kernel.table)
    assert 301 <= came <= 306, "those six programs came in all the same"
    guests = [sim.program("guest", uid=3000) for _ in range(315 - came)]
    with pytest.raises(SyscallError, match="kept for operators"):
        sim.program("guest", uid=3000)
    operator = sim.program("operator")
    rows = operator.call(Ps())
    assert len(rows) == 316
    assert sum(row.kind is Kind.LLM for row in rows) > 280
    for number in range(6):
        operator.call(GroupKill(f"/users/{2000 + number}", Signal.KILL))
    sim.run_idle()
    assert guests[0].call(Spawn("sim", tokens=[1]))


def test_the_last_places_are_the_operators() -> None:
    sim = simulate(max_processes=64, checked=False)
    while sim.connection().start(Attach("one more")).errno is Errno.OK:
        pass
    assert len(sim.kernel.table) == 64


def test_a_session_has_what_the_configuration_says_and_has_it_after_a_boot() -> None:
    sim = simulate(session_processes=4)
    program = sim.program()
    assert bomb(program)[0] == 3
    sim.kill()
    sim.boot_again()
    program.come_back()
    with pytest.raises(SyscallError, match="at most 4"):
        program.call(Spawn("sim", tokens=[1]))


def test_processes_leave_the_places_that_are_kept_for_programs() -> None:
    sim = simulate(max_processes=64, session_processes=64)
    program = sim.program()
    while program.start(Spawn("sim", tokens=[1])).errno is not Errno.EAGAIN:
        sim.run_idle()
    assert len(sim.kernel.table) == 60
