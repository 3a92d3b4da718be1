"""A kernel that serves all users of a machine: it opens no file of one of them by its own right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmasos.kernel.groups import group
from llmasos.simulator import Simulation, simulate
from llmasos.syscalls import budgets, pids
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.pids import pid_of
from llmasos.syscalls.records import Advice, GroupSettings, Kind, Signal, State
from llmasos.syscalls.table import (
    TABLE,
    Attach,
    Call,
    Checkpoint,
    Decode,
    Entry,
    Getinfo,
    GroupCreate,
    GroupSet,
    GroupStat,
    Kill,
    Names,
    Ps,
    Restore,
    Sched,
    Shutdown,
    Spawn,
)
from tests.kernel.neighbours import refused

ANN, BEN, BOSS = 1001, 1002, 1009
NAMING = [
    pytest.param(entry, touches, id=f"{entry.name}-{touches.field}")
    for entry in TABLE.values()
    for touches in entry.touches
    if touches.what in (Names.MODEL, Names.FILE, Names.TARGET)
]


@pytest.fixture
def sim() -> Simulation:
    return simulate(256, shared=True, operators=[BOSS])


def naming(entry: Entry, field: str, name: str, pid: int) -> Call[Any]:
    """The call with `name` in a field; `pid` is a process of the caller's."""
    values = {"path": "/etc/shadow", field: name, "pid": pid, "advice": Advice.WILLNEED}
    wanted = {one.name for one in msgspec.structs.fields(entry.record) if one.required} | {field}
    return entry.record(**{name: value for name, value in values.items() if name in wanted})


@pytest.mark.parametrize("name", ["/etc/shadow", "owner/model", "sim:7b,script=/etc/shadow"])
@pytest.mark.parametrize(("entry", "touches"), NAMING)
def test_a_name_that_is_looked_for_among_files_is_refused_to_users(
    sim: Simulation, entry: Entry, touches: Any, name: str
) -> None:
    boss = sim.program(uid=BOSS)  # an operator by the configuration, who is not the kernel's user
    for program in (sim.program(uid=ANN), sim.program(uid=ANN, tenant="acme"), sim.program(tenant="acme"), boss):
        pid = program.call(Spawn("sim", [1, 2, 3]))
        errno, reason = refused(program, naming(entry, touches.field, name, pid))
        assert errno is Errno.EPERM
        assert "with the rights of the machine's kernel" in reason


def test_models_that_the_kernel_knows_by_name_are_everybodys(sim: Simulation) -> None:
    for program in (sim.program(uid=ANN), sim.program(uid=1002)):
        assert program.call(Spawn("sim", [1, 2, 3]))
        assert program.call(Spawn("sim:0.1b", [1, 2, 3]))


def test_the_operator_of_the_machine_names_files_as_before(sim: Simulation, tmp_path: Path) -> None:
    program = sim.program()
    program.call(Checkpoint(program.call(Spawn("sim", [1, 2, 3])), f"{tmp_path}/image"))
    assert program.call(Restore(f"{tmp_path}/image"))


def test_a_kernel_of_ones_own_opens_files_for_whom_it_lets_in(tmp_path: Path) -> None:
    ann = simulate(256).program(uid=ANN)
    ann.call(Checkpoint(ann.call(Spawn("sim", [1, 2, 3])), f"{tmp_path}/image"))
    assert ann.call(Restore(f"{tmp_path}/image"))


# --- users ----------------------------------------------------------------------------------------------------------


def test_each_user_has_his_quota_in_his_group_and_may_not_raise_it() -> None:
    sim = simulate(256, shared=True, quota=GroupSettings(pids_max=3), quotas={BEN: GroupSettings(pids_max=2)})
    for uid, most in ((ANN, 3), (BEN, 2)):
        program = sim.program(uid=uid)
        home = f"/users/{uid}"
        assert program.call(GroupStat(home))[0].settings.pids_max == most
        for _ in range(most - 1):
            program.call(Spawn("sim", [1, 2, 3]))
        errno, reason = refused(program, Spawn("sim", [1, 2, 3]))
        assert errno is Errno.EAGAIN
        assert f"group {home}" in reason
        assert refused(program, GroupSet(home, GroupSettings()))[0] is Errno.EPERM


def test_one_quota_is_for_all_sessions_and_tenants_of_a_user() -> None:
    sim = simulate(256, shared=True, quota=GroupSettings(tokens_total=8))
    first, second, tenant = sim.program(uid=ANN), sim.program(uid=ANN), sim.program(uid=ANN, tenant="acme")
    first.call(Decode(first.call(Spawn("sim", [1, 2, 3])), 20))
    for program in (second, tenant):
        pid = program.call(Spawn("sim", [1, 2, 3]))
        errno, reason = refused(program, Decode(pid, 1))
        assert errno is Errno.EDQUOT
        assert "/users/1001" in reason
    other = sim.program(uid=BEN)
    assert other.call(Decode(other.call(Spawn("sim", [1, 2, 3])), 2)).tokens


def test_without_a_limit_of_his_own_a_user_has_a_part_of_the_process_table() -> None:
    sim = simulate(256, shared=True, session_processes=4)
    first, second = sim.program(uid=ANN), sim.program(uid=ANN)
    first.call(Spawn("sim", [1, 2, 3]))
    second.call(Spawn("sim", [1, 2, 3]))
    assert refused(second, Spawn("sim", [1, 2, 3]))[0] is Errno.EAGAIN
    assert sim.program(uid=BEN).call(Spawn("sim", [1, 2, 3]))


def test_a_user_has_a_part_of_the_groups_and_operators_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "GROUPS", replace(budgets.GROUPS, owner=4))
    sim = simulate(256, shared=True)
    first, second, root = sim.program(uid=ANN), sim.program(uid=ANN), sim.program()  # each has a session
    first.call(GroupCreate("/users/1001/a"))
    second.call(GroupCreate("b"))
    assert refused(first, GroupCreate("/users/1001/c"))[0] is refused(second, GroupCreate("c"))[0] is Errno.EAGAIN
    for name in "cdefg":
        root.call(GroupCreate(name))
    sim.program(uid=BEN).call(GroupCreate("c"))


def test_what_a_call_has_set_outlives_the_kernel_and_other_quotas_are_those_of_its_configuration() -> None:
    sim = simulate(256, shared=True, quota=GroupSettings(pids_max=3))
    for uid in (ANN, BEN):
        sim.program(uid=uid).call(Spawn("sim", [1, 2, 3], detached=True))
    sim.program().call(GroupSet("/users/1002", GroupSettings(pids_max=7)))
    sim.file.quota = GroupSettings(pids_max=5)
    sim.kill()
    sim.boot_again()
    sim.run_for(1.0)
    settings = [sim.program().call(GroupStat(f"/users/{uid}"))[0].settings for uid in (ANN, BEN)]
    assert [one.pids_max for one in settings] == [5, 7]


def test_operators_have_every_right_and_stay_themselves() -> None:
    sim = simulate(256, shared=True, operators=[ANN], quota=GroupSettings(pids_max=2))
    ann, root, ben = sim.program(uid=ANN), sim.program(uid=0), sim.program(uid=BEN)
    bens, roots = ben.call(Spawn("sim", [1, 2, 3])), root.call(Spawn("sim", [1, 2, 3], name="root's"))
    hers = [ann.call(Spawn("sim", [1, 2, 3])) for _ in range(3)]  # quotas are not for operators
    assert sim.kernel.programs[ann.peer].owner.name == "1001"
    assert {row.pid for row in ann.call(Ps()) if row.kind is Kind.LLM} == {*hers, pid_of(BEN, bens), pids.foreign(roots)}
    ann.call(Kill(pid_of(BEN, bens), Signal.KILL))
    ann.call(Kill(pids.foreign(roots), Signal.KILL))
    root.call(Kill(pid_of(ANN, hers[0]), Signal.KILL))
    sim.run_for(1.0)
    left = [row.pid for row in root.call(Ps()) if row.kind is Kind.LLM and row.state is not State.ZOMBIE]
    assert left == [pid_of(ANN, pid) for pid in hers[1:]]
    assert refused(ben, Shutdown())[0] is Errno.EPERM
    ann.call(Shutdown())


@pytest.mark.parametrize("field", ["policy", "victims", "evictions"])
def test_an_operator_who_is_not_root_puts_no_code_into_the_kernel(sim: Simulation, field: str) -> None:
    call = Sched(**{field: "/var/lib/llmasos/files/models/0/evil.py:Evil"})  # type: ignore[arg-type]
    errno, why = refused(sim.program(uid=BOSS), call)
    assert errno is Errno.EPERM
    assert "only root and the kernel's own user" in why
    assert refused(sim.program(uid=0), call)[0] is not Errno.EPERM  # there is no such file
    assert sim.program(uid=BOSS).call(Sched(policy="fcfs")).policy == "fcfs"


@pytest.mark.parametrize("before", [[], [ANN]])
def test_who_an_operator_is_stands_in_the_configuration_of_each_boot(before: list[int]) -> None:
    sim = simulate(256, shared=True, operators=before)
    ann, root = sim.program("ann", uid=ANN), sim.program("root")
    hers = ann.call(Spawn("sim", [1, 2, 3], name="hers", detached=True))
    ticket = ann.ticket
    root.call(Spawn("sim", [1, 2, 3], name="root's", detached=True))
    sim.file.operators = [] if before else [ANN]
    sim.kill()
    sim.boot_again()
    sim.run_for(1.0)
    again = sim.program("ann", uid=ANN)
    assert ("root's" in [row.name for row in again.call(Ps())]) is not bool(before)
    assert again.call(Getinfo(hers)).name == "hers"
    back = sim.connection(ANN)
    back.call(Attach(ticket=ticket))
    if before:
        assert refused(again, Shutdown())[0] is refused(back, Shutdown())[0] is Errno.EPERM
    else:
        again.call(Shutdown())
