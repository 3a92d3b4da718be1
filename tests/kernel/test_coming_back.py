"""Programs of a kernel that was killed, in the table of the next one: it waits for them, and says so."""

from __future__ import annotations

from llmasos.simulator import simulate
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Kind, State, WaitFor
from llmasos.syscalls.table import Getinfo, GroupStat, Ps, Spawn
from tests.kernel.journaled import fails, reboot


def test_a_program_that_is_not_back_yet_is_shown_as_awaited_and_then_goes() -> None:
    sim = simulate()
    here, dead = sim.program(), sim.program()
    here.call(Spawn("sim", [1, 2, 3], detached=True))
    group = dead.call(Getinfo()).group
    lost = dead.pid
    reboot(sim, here)
    rows = {row.pid: row for row in here.call(Ps()) if row.kind is Kind.PROGRAM}
    assert (rows[lost].state, rows[lost].wait) == (State.BLOCKED, WaitFor.RETURN)
    assert (rows[here.pid].state, rows[here.pid].wait) == (State.BLOCKED, WaitFor.INPUT)
    sim.run_for(sim.kernel.config.grace + 1)
    assert lost not in {row.pid for row in here.call(Ps())}
    assert fails(lambda: here.call(GroupStat(group))).errno is Errno.ENOENT


def test_a_program_that_comes_back_is_as_any_other() -> None:
    sim = simulate()
    first, second = sim.program(), sim.program()
    reboot(sim, first)
    assert first.call(Getinfo(second.pid)).wait is WaitFor.RETURN
    second.come_back()
    assert first.call(Getinfo(second.pid)).wait is WaitFor.INPUT
    sim.run_for(sim.kernel.config.grace + 1)
    assert first.call(Getinfo(second.pid)).wait is WaitFor.INPUT
