"""How long processes live, and who may wait for them: children, detached ones, what a kernel leaves to the next."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.kernel.events import HaltRequest
from llmasos.kernel.objects.process import INIT_PID
from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import GroupSettings, Kind, Signal, State
from llmasos.syscalls.table import (
    Decode,
    Detach,
    Exit,
    Fork,
    Getinfo,
    GroupCreate,
    GroupSet,
    GroupStat,
    Kill,
    Null,
    Ps,
    Rename,
    Shutdown,
    Spawn,
    Wait,
)
from tests.kernel.neighbours import errno_of

HOUR = limits.KEPT_SECONDS


def detached(program: Prog, **more: Any) -> int:
    return program.call(Spawn("sim", tokens=[1, 2, 3], detached=True, **more))


def states(sim: Simulation) -> dict[int, State]:
    return {process.pid: process.state for process in sim.kernel.table}


# --- waiting --------------------------------------------------------------------------------------------------------


def test_any_program_may_wait_for_a_detached_process_and_one_of_them_gets_its_status() -> None:
    sim = simulate()
    first, second, third = sim.program(), sim.program(), sim.program()
    pid = detached(first)
    assert first.call(Getinfo(pid)).ppid == INIT_PID
    one, two = second.start(Wait(pid)), third.start(Wait(pid, 50.0))
    first.disconnect()
    sim.run_for(1.0)
    assert not one.done
    second.call(Exit(pid, 7))
    sim.run_idle()
    assert (one.value.pid, one.value.status) == (pid, 7)
    assert two.errno is Errno.ECHILD


def test_wait_without_a_pid_is_for_children_and_a_childs_status_is_for_its_parent_alone() -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    detached(program)
    assert errno_of(program, Wait()) is Errno.ECHILD
    child = program.call(Spawn("sim", tokens=[1]))
    assert errno_of(other, Wait(child)) is Errno.ECHILD
    assert errno_of(other, Wait(program.pid)) is Errno.ECHILD  # a program is init's child, and no LLM process
    assert errno_of(other, Wait(INIT_PID)) is Errno.ECHILD
    program.call(Exit(child, 1))
    assert errno_of(other, Wait(child)) is Errno.ECHILD
    assert program.call(Wait()).pid == child


def test_a_status_is_kept_for_an_hour() -> None:
    sim = simulate()
    program = sim.program()
    early, late = detached(program), detached(program)
    program.call(Kill(early))
    sim.run_for(HOUR / 2)
    program.call(Kill(late))
    sim.run_for(HOUR / 2 - 1)
    assert states(sim)[early] is State.ZOMBIE
    sim.run_for(2)
    assert early not in states(sim)
    assert states(sim)[late] is State.ZOMBIE
    assert program.call(Wait(late)).status == 128 + int(Signal.TERM)
    sim.run_for(HOUR)
    assert errno_of(program, Wait(late)) is Errno.ECHILD


def kept_of(sim: Simulation, program: Prog, count: int) -> list[bool]:
    """Of so many processes that are killed in their order, whose statuses are kept."""
    pids = [detached(program) for _ in range(count)]
    sim.run_idle()
    for pid in pids:
        program.call(Kill(pid))
    sim.run_idle()
    return [pid in states(sim) for pid in pids]


def test_of_more_statuses_than_are_kept_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmasos.kernel.life.MAX_KEPT", 3)
    sim = simulate()
    program = sim.program()
    assert kept_of(sim, program, 5) == [False, False, True, True, True]


def test_a_small_table_keeps_sixteen_statuses_all_the_same() -> None:
    sim = simulate(max_processes=64)
    program = sim.program()
    assert kept_of(sim, program, 18) == [False] * 2 + [True] * 16


def test_statuses_of_one_user_do_not_go_because_of_anothers_and_are_charged_to_him(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmasos.kernel.life.MAX_KEPT", 5)
    sim = simulate(256)
    ann, ben, eve = sim.program(uid=1001), sim.program(uid=1002), sim.program(uid=1002, tenant="eve")
    hers = [ann.call(Spawn("sim", [1, 2, 3], detached=True)) for _ in range(2)]
    for pid in hers:
        ann.call(Kill(pid))
    system = sim.kernel.groups.system.logs
    his = []
    for program in (ben, eve) * 4:
        his.append(program.call(Spawn("sim", [9] * 500, detached=True)))
        program.call(Kill(his[-1]))
        sim.run_for(0.1)
    assert [row.pid for row in ann.call(Ps()) if row.kind is Kind.LLM] == hers
    assert [row.pid for row in ben.call(Ps()) if row.kind is Kind.LLM] == his[-3:]
    assert ann.call(Wait(hers[0])).pid == hers[0]
    groups = sim.kernel.groups
    assert groups.system.logs == system
    assert groups.home(sim.kernel.programs[ben.peer].owner).logs >= 3 * 2000


def test_statuses_that_are_kept_leave_their_owner_room_to_come_and_to_begin_others() -> None:
    sim = simulate(256)
    operator, ann = sim.program(), sim.program(uid=1001)
    operator.call(GroupSet("/users/1001", GroupSettings(pids_max=4)))
    for _ in range(8):
        pid = detached(ann)
        ann.call(Kill(pid))
        sim.run_idle()
    ann.disconnect()
    assert sim.program(uid=1001).call(Wait(pid)).pid == pid


def test_a_kept_status_costs_its_group_nothing_and_a_session_ends_without_it() -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    program.call(GroupCreate("two", GroupSettings(pids_max=2)))
    for _ in range(5):
        pids = [detached(program, group="two") for _ in range(2)]
        assert errno_of(program, Spawn("sim", tokens=[1], group="two")) is Errno.EAGAIN
        for pid in pids:
            program.call(Kill(pid))
        sim.run_idle()
    session = sim.kernel.programs[program.peer].group.path
    program.disconnect()
    assert session not in {group.path for group in other.call(GroupStat(below=True))}
    assert other.call(Wait(pids[0])).pid == pids[0]


def test_the_next_kernel_keeps_the_statuses_too() -> None:
    sim = simulate()
    program = sim.program()
    pid = detached(program)
    program.call(Exit(pid, 9))
    sim.kill()
    sim.boot_again()
    late = sim.program("late")
    assert late.call(Wait(pid)).status == 9
    assert errno_of(late, Wait(pid)) is Errno.ECHILD


# --- detach, rename, fork -------------------------------------------------------------------------------------------


def test_a_process_that_is_detached_outlives_its_program() -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    stays, goes = (program.call(Spawn("sim", tokens=[1], name=name)) for name in ("stays", "goes"))
    for _ in range(2):  # harmless if it is so already
        other.call(Detach(stays))
    assert errno_of(program, Wait(1234)) is Errno.ECHILD
    program.disconnect()
    sim.run_idle()
    assert goes not in states(sim)
    assert other.call(Getinfo(stays)).ppid == INIT_PID
    assert other.call(Decode(stays, 2)).tokens == sim.continuation([1], 2)
    assert errno_of(other, Detach(goes)) is Errno.ESRCH


def test_a_call_that_waits_for_a_child_goes_on_waiting_when_it_is_detached() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[1]))
    waiting = program.start(Wait(pid))
    program.call(Detach(pid))
    assert not waiting.done
    program.call(Exit(pid, 4))
    assert waiting.value.status == 4


def test_a_name_can_be_changed_and_survives_the_kernel() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[1], name="bob", detached=True))
    assert program.call(Rename(pid, "alice")) == "bob"
    sim.kill()
    sim.boot_again()
    assert sim.program().call(Getinfo(pid)).name == "alice"


def test_forks_are_named() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[1], name="bob"))
    names = {row.pid: row.name for row in program.call(Ps())}
    for call, wanted in [
        (Fork(pid), ["bob"]),
        (Fork(pid, name="ann"), ["ann"]),
        (Fork(pid, 2, name="ann"), ["ann-1", "ann-2"]),
        (Fork(pid, 1, name="x" * limits.MAX_NAME), ["x" * limits.MAX_NAME]),
        (Fork(pid, 2, name="x" * limits.MAX_NAME), [f"{'x' * (limits.MAX_NAME - 4)}-{number}" for number in (1, 2)]),
    ]:
        pids = program.call(call)
        names = {row.pid: row.name for row in program.call(Ps())}
        assert [names[pid] for pid in pids] == wanted


# --- the end of the kernel ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a call", "a signal"])
def test_a_kernel_that_halts_and_keeps_leaves_everything_to_the_next(how: str) -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    pid = program.call(Spawn("sim", tokens=[5, 6]))
    decode = program.start(Decode(pid, 30))
    sim.run_for(0.003)
    assert not decode.done
    if how == "a call":
        assert other.start(Shutdown(keep=True)).errno is Errno.OK
    else:
        sim.event(HaltRequest("SIGTERM received", keep=True))
    assert sim.halted
    late = other.prepare(Null())
    assert sim.kernel.handle(other.event(late), sim.clock) == []  # it is the next kernel's
    sim.kill()
    sim.boot_again()
    program.come_back()
    other.come_back()
    sim.run_until(lambda: decode.done, what="the decode")
    assert decode.value.tokens == sim.continuation([5, 6], 30)
    assert late.errno is Errno.OK


def test_a_kernel_without_a_journal_refuses_to_keep() -> None:
    sim = simulate(journal=False)
    program = sim.program()
    assert errno_of(program, Shutdown(keep=True)) is Errno.ENOTSUP
    assert not sim.halted
    program.call(Null())


def test_who_waits_for_a_child_of_a_program_that_ends_is_told_and_init_reaps_it() -> None:
    """In a step it dies at the token boundary: nobody else may take it off the table before init does."""
    sim = simulate()
    program, other = sim.program(), sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3]))
    program.start(Decode(pid, 50))
    sim.run_until(lambda: sim.kernel.devices["sim0"].in_flight is not None)
    program.disconnect()
    late = other.start(Wait(pid))
    sim.run_idle()
    assert late.errno is Errno.ECHILD
    assert sim.kernel.table.find(pid) is None
