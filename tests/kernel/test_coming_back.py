"""Programs of a kernel that was killed, in the table of the next one: it waits for them, and says so."""

from __future__ import annotations

from llmasos.simulator import simulate
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import GroupSettings, Kind, State, WaitFor
from llmasos.syscalls.table import Getinfo, GroupSet, GroupStat, Ps, Spawn
from tests.kernel.journaled import fails, reboot


def test_a_program_that_is_not_back_yet_is_shown_as_awaited_and_then_goes() -> None:
    sim = simulate()
    here, dead = sim.program(), sim.program()
    here.call(Spawn("sim", [1, 2, 3], detached=True))
    group = dead.call(Getinfo()).group
    lost = dead.pid
    reboot(sim, here)
    rows = {row.pid: row for row in here.call(Ps()) if row.kind is Kind.PROGRAM}
    assert (rows[lost].state, rows[lost].wait, rows[lost].os_pid) == (State.BLOCKED, WaitFor.RETURN, 0)
    assert (rows[here.pid].state, rows[here.pid].wait) == (State.BLOCKED, WaitFor.INPUT)
    sim.run_for(sim.kernel.config.grace + 1)
    assert lost not in {row.pid for row in here.call(Ps())}
    assert fails(lambda: here.call(GroupStat(group))).errno is Errno.ENOENT


def test_quotas_of_the_configuration_hold_from_the_next_boot_on_but_where_one_was_set_meanwhile() -> None:
    def most(uid: int) -> int:
        return here.call(GroupStat(f"/users/{uid}"))[0].settings.pids_max

    sim = simulate(quotas={uid: GroupSettings(pids_max=5) for uid in (1001, 1002)})
    here = sim.program()
    for uid in (1001, 1002):
        sim.program(uid=uid)
    here.call(GroupSet("/users/1002", GroupSettings(pids_max=9)))
    assert [most(uid) for uid in (1001, 1002)] == [5, 9]
    sim.file.quotas = {uid: GroupSettings(pids_max=7) for uid in (1001, 1002)}
    reboot(sim, here)
    assert [most(uid) for uid in (1001, 1002)] == [7, 9]
    told = [line.text for line in sim.log if "not what the configuration says" in line.text]
    assert ["/users/1002" in text for text in told] == [True]


def test_a_program_that_comes_back_is_as_any_other() -> None:
    sim = simulate()
    first, second = sim.program(), sim.program()
    reboot(sim, first)
    assert first.call(Getinfo(second.pid)).wait is WaitFor.RETURN
    second.come_back()
    assert first.call(Getinfo(second.pid)).wait is WaitFor.INPUT
    sim.run_for(sim.kernel.config.grace + 1)
    assert first.call(Getinfo(second.pid)).wait is WaitFor.INPUT
