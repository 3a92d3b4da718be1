"""Control groups: what is charged to them, what their limits do, and the shares their weights give."""

from __future__ import annotations

import math

import pytest

from llmasos.kernel.clock import SECOND
from llmasos.kernel.groups.pressure import Activity, Pressure
from llmasos.simulator import simulate
from llmasos.syscalls.budgets import GROUPS, LOGS, PROCESSES
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import MAX_SESSION_GROUPS
from llmasos.syscalls.records import (
    Finish,
    GroupSettings,
    Right,
    SchedClass,
    Signal,
    State,
    WaitFor,
)
from llmasos.syscalls.table import (
    Attach,
    Decode,
    Fork,
    Getinfo,
    GroupCreate,
    GroupKill,
    GroupMove,
    GroupRemove,
    GroupSet,
    GroupStat,
    Kill,
    Setsched,
    Spawn,
    StatsCall,
)
from tests.kernel.charged import PROMPT, group, refused, row, spawn, stat
from tests.kernel.machines.core import Core
from tests.kernel.machines.grouped import Grouped

TestGrouped = Grouped.TestCase
TestGrouped.settings = Core.TestCase.settings


# --- the tree -------------------------------------------------------------------------------------------------------


def test_every_program_has_a_session_that_ends_with_its_last_process() -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    session = program.call(Getinfo()).group
    assert session == f"/users/user/session-{program.pid}"
    pid = program.call(Spawn("sim", tokens=PROMPT, detached=True))
    assert program.call(Getinfo(pid)).group == session
    program.call(GroupCreate("inner"))
    program.disconnect()
    sim.run_idle()
    assert stat(other, session).processes == [pid]
    other.call(Kill(pid))
    assert refused(other, GroupStat(session)).errno is Errno.ENOENT


def test_a_process_changes_its_group_between_two_steps() -> None:
    sim = simulate()
    program = sim.program()
    program.call(GroupCreate("/a"))
    pid = program.call(Spawn("sim", tokens=PROMPT))
    decode = program.start(Decode(pid, 5))
    sim.run_until(lambda: row(sim, pid).state is State.RUNNING)
    move = program.start(GroupMove(pid, "/a"))
    assert not move.done
    sim.run_until(lambda: move.done)
    assert not decode.done
    assert stat(program, "/a").processes == [pid]


def test_where_there_is_no_session_the_largest_one_has_nothing() -> None:
    sim = simulate()
    program = sim.program()
    program.call(GroupCreate("/a"))
    program.call(GroupMove(0, "/a"))
    told = {budget.name: budget.largest for budget in program.call(StatsCall()).budgets}
    assert (told[LOGS.name], told[PROCESSES.name], told[GROUPS.name]) == (0, 0, 0)


def test_a_path_without_a_slash_is_in_the_own_group() -> None:
    program = simulate().program()
    assert program.call(GroupCreate("work")).path == f"{program.call(Getinfo()).group}/work"
    assert program.call(GroupCreate("/work")).path == "/work"
    assert refused(program, GroupCreate("/work")).errno is Errno.EINVAL
    assert refused(program, GroupCreate("/there/is/none")).errno is Errno.ENOENT
    assert refused(program, GroupCreate("..")).errno is Errno.EINVAL
    assert refused(program, GroupRemove("/users")).errno is Errno.EINVAL
    program.call(GroupRemove("/work"))
    assert refused(program, GroupStat("/work")).errno is Errno.ENOENT


def test_without_admin_a_program_rules_only_what_is_below_its_group() -> None:
    sim = simulate()
    admin, program = sim.program(), sim.program()
    group(admin, "/apart")
    program.call(Attach(rights=int(Right.ALL & ~Right.ADMIN)))
    own = program.call(Getinfo()).group
    group(program, "mine", pids_max=2)
    pid = spawn(program, "mine")
    for call in (
        GroupCreate("/other"),
        GroupSet(own, GroupSettings()),
        GroupSet("/apart", GroupSettings()),
        GroupRemove("/apart"),
        GroupMove(pid, "/apart"),
        GroupMove(0, "/"),
        Spawn("sim", group="/apart"),
    ):
        assert refused(program, call).errno is Errno.EPERM, call
    assert "/other" not in [info.path for info in admin.call(GroupStat("/", below=True))]
    program.call(GroupSet("mine", GroupSettings(pids_max=9)))
    program.call(GroupMove(pid, own))


def test_a_signal_to_a_group_reaches_all_in_it_and_below_in_one_event() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a")
    group(program, "/a/b")
    inside = [spawn(program, "/a", 1), spawn(program, "/a/b", 2), spawn(program, "/a/b", 3)]
    outside = spawn(program, "/", 4)
    for pid in (*inside, outside):
        program.start(Decode(pid, 200))
    sim.run_for(0.05)
    before = sim.events
    assert program.call(GroupKill("/a", Signal.STOP)) == 3
    assert sim.events == before + 1
    sim.run_for(0.1)  # to the next token boundary
    assert [program.call(Getinfo(pid)).state is State.STOPPED for pid in inside] == [True] * 3
    lengths = [program.call(Getinfo(pid)).length for pid in inside]
    sim.run_for(0.2)
    assert [program.call(Getinfo(pid)).length for pid in inside] == lengths
    assert program.call(Getinfo(outside)).state is not State.STOPPED
    program.call(GroupKill("/a", Signal.CONT))
    assert program.call(GroupKill("/a", Signal.INT)) == 3
    sim.run_idle()
    assert [program.call(Getinfo(pid)).finish for pid in inside] == [Finish.INTERRUPT] * 3
    assert program.call(GroupKill("/a")) == 3
    sim.run_idle()
    assert [program.call(Getinfo(pid)).state is State.ZOMBIE for pid in inside] == [True] * 3
    assert program.call(Getinfo(outside)).finish is Finish.LENGTH
    assert program.call(GroupKill("/a")) == 0


def test_a_signal_to_a_group_is_one_that_programs_send_to_a_group_of_their_own() -> None:
    sim = simulate()
    admin, program = sim.program(), sim.program()
    group(admin, "/apart")
    program.call(Attach(rights=int(Right.ALL & ~Right.ADMIN)))
    pid = spawn(program, "")
    assert refused(program, GroupKill("/apart")).errno is Errno.EPERM
    assert refused(program, GroupKill("/")).errno is Errno.EPERM
    assert refused(program, GroupKill("/nowhere")).errno is Errno.ENOENT
    assert refused(program, GroupKill("", Signal.CHLD)).errno is Errno.EINVAL
    assert program.call(Getinfo(pid)).state is not State.ZOMBIE
    assert program.call(GroupKill("", Signal.KILL)) == 1


def test_a_group_with_anything_in_it_cannot_be_removed() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a")
    group(program, "/a/b")
    assert refused(program, GroupRemove("/a")).errno is Errno.EBUSY
    pid = spawn(program, "/a/b")
    assert refused(program, GroupRemove("/a/b")).errno is Errno.EBUSY
    program.call(GroupMove(pid, "/"))
    program.call(GroupRemove("/a/b"))
    program.call(GroupRemove("/a"))


def test_a_group_is_neither_made_with_settings_that_contradict_each_other_nor_given_them() -> None:
    program = simulate().program()
    wrong = GroupSettings(kv_max=4, kv_high=5)
    for call in (GroupCreate("/a", wrong), GroupSet("/", wrong)):
        error = refused(program, call)
        assert (error.errno, error.reason) == (Errno.EINVAL, "kv_high (5) has no effect above kv_max (4)")


def test_the_tree_is_told_in_pages() -> None:
    program = simulate().program()
    for number in range(5):
        group(program, f"/g{number}")
    every = [info.path for info in program.call(GroupStat("/", below=True))]
    parts = [program.call(GroupStat("/", below=True, start=start, limit=3)) for start in (0, 3, 6, 9)]
    assert [info.path for part in parts for info in part] == every
    assert every[0] == "/"


def test_sessions_keep_their_names_and_the_root_stays_open() -> None:
    sim = simulate()
    program = sim.program()
    assert refused(program, GroupCreate("/users/user/session-99")).errno is Errno.EINVAL
    assert refused(program, GroupSet("/", GroupSettings(pids_max=1))).errno is Errno.EINVAL
    sim.program()


# --- tokens and processes -------------------------------------------------------------------------------------------


def test_a_rate_of_tokens_holds_for_all_of_a_group_together() -> None:
    sim = simulate(max_runs=8)
    program = sim.program()
    group(program, "/a", tokens_max=100.0)
    group(program, "/a/b")
    paths = ["/a", "/a/b", "/a/b"]
    pids = [spawn(program, path, first=i, prompt=list(range(20))) for i, path in enumerate(paths)]
    sim.run_for(5.0)
    began, before = sim.now, stat(program, "/a").tokens
    for pid in pids:
        program.start(Decode(pid, 400, [], None, wait=False))
    sim.run_for(4.0)
    tokens = stat(program, "/a").tokens - before
    assert tokens <= 100 * (sim.now - began) + 100 + 3, "the rate, a burst of a second, and the step that ends it"
    assert tokens >= 100 * (sim.now - began) * 0.95
    sim.run_until(lambda: row(sim, pids[1]).wait is WaitFor.QUOTA)
    assert program.call(Getinfo(pids[1])).reason == "it waits for a limit of group /a"
    shares = [row(sim, pid).account.decoded for pid in pids]
    assert max(shares) - min(shares) <= 0.2 * sum(shares)


def test_used_up_tokens_end_decodes_until_there_are_more() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a", tokens_total=60)
    pid = spawn(program, "/a")
    result = program.call(Decode(pid, 100))
    assert result.finish is Finish.BUDGET
    assert stat(program, "/a").tokens == 60
    assert refused(program, Decode(pid, 1)).errno is Errno.EDQUOT
    other = spawn(program, "/a", first=5)
    sim.run_idle()
    assert row(sim, other).account.computed == 0
    program.call(GroupSet("/a", GroupSettings(tokens_total=200)))
    assert program.call(Decode(pid, 4)).finish is Finish.LENGTH
    sim.run_idle()
    assert row(sim, other).account.computed > 0


def test_recomputation_is_charged_to_nobody() -> None:
    sim = simulate(frames=6)
    program = sim.program()
    group(program, "/a")
    pids = [spawn(program, "/a", first=i) for i in range(4)]
    for pid in pids * 3:
        program.call(Decode(pid, 2))
    computed = sum(row(sim, pid).account.computed for pid in pids)
    lengths = sum(len(row(sim, pid).log) - 1 for pid in pids)
    assert stat(program, "/a").tokens == lengths < computed


def test_pids_max_counts_programs_and_processes() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a", pids_max=3)
    program.call(GroupMove(0, "/a"))
    first = spawn(program, "")
    assert refused(program, Fork(first, 2)).errno is Errno.EAGAIN
    program.call(Fork(first, 1))
    error = refused(program, Spawn("sim"))
    assert error.errno is Errno.EAGAIN
    assert "/a" in error.reason
    assert stat(program, "/a").events["pids_max"] == 2
    program.call(GroupSet("/users", GroupSettings(pids_max=1)))
    outside = sim.program("the only one")
    assert refused(sim.connection(), Attach("one too many")).errno is Errno.EAGAIN
    assert stat(outside, "/users").pids == 1


# --- shares ---------------------------------------------------------------------------------------------------------


def jain(values: list[float]) -> float:
    """Jain's fairness index (Jain, Chiu and Hawe 1984): 1 where all are equal, 1/n where one has all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@pytest.mark.parametrize("policy", ["fair", "lottery"])
def test_equal_groups_get_equal_shares_however_many_processes_they_have(policy: str) -> None:
    sim = simulate(frames=600, max_runs=4, policy=policy, checked=False)
    program = sim.program()
    sizes = {"/a": 4, "/b": 8, "/c": 16, "/d": 32}
    for path, count in sizes.items():
        group(program, path)
        for i in range(count):
            pid = spawn(program, path, first=i, prompt=list(range(8)))
            program.start(Decode(pid, 490, [], None, wait=False))
    sim.run_for(0.2)
    before = {path: stat(program, path).tokens for path in sizes}
    sim.run_for(1.2)
    got = [float(stat(program, path).tokens - before[path]) for path in sizes]
    assert jain(got) >= 0.99, got
    assert all(row(sim, pid).decoding for path in sizes for pid in stat(program, path).processes), "too short"


def test_weights_hold_at_every_level() -> None:
    sim = simulate(frames=600, max_runs=2, checked=False)
    program = sim.program()
    group(program, "/a", cpu_weight=300)
    group(program, "/b", cpu_weight=100)
    group(program, "/b/one", cpu_weight=100)
    group(program, "/b/two", cpu_weight=400)
    paths = ["/a", "/b/one", "/b/two"]
    for path in paths:
        for i in range(6):
            pid = spawn(program, path, first=i, prompt=list(range(8)))
            program.start(Decode(pid, 490, [], None, wait=False))
    sim.run_for(0.2)
    before = [stat(program, path).tokens for path in paths]
    sim.run_for(1.2)
    got = [stat(program, path).tokens - start for path, start in zip(paths, before, strict=True)]
    assert [share / sum(got) for share in got] == pytest.approx([0.75, 0.05, 0.2], abs=0.02)


def test_what_sleeps_takes_no_share() -> None:
    sim = simulate(frames=600, max_runs=2, checked=False)
    program = sim.program()
    group(program, "/busy")
    group(program, "/idle", cpu_weight=10_000)
    spawn(program, "/idle", first=50)
    sim.run_idle()
    pids = [spawn(program, "/busy", first=i, prompt=list(range(8))) for i in range(2)]
    program.call(Setsched(pids[0], nice=-10, sched_class=SchedClass.FAIR))
    assert sim.kernel.groups.find("/idle", sim.kernel.groups.root).load == {}
    decodes = [program.start(Decode(pid, 100)) for pid in pids]
    sim.run_until(lambda: all(d.done for d in decodes))
    assert decodes[0].at == pytest.approx(decodes[1].at, rel=0.05), "there was room for both in every step"


# --- pressure -------------------------------------------------------------------------------------------------------


def test_pressure_is_the_share_of_time_in_which_somebody_waited() -> None:
    pressure = Pressure()
    pressure.change(Activity.NOTHING, Activity.RUNS, 0)
    pressure.change(Activity.NOTHING, Activity.MEMORY, 0)
    pressure.change(Activity.MEMORY, Activity.RUNS, 3 * SECOND)
    info = pressure.info(13 * SECOND)["memory"]
    assert info.some_seconds == pytest.approx(3.0)
    assert info.full_seconds == 0.0
    for average, window in zip(info.some, (10.0, 60.0, 300.0), strict=True):
        assert average == pytest.approx((1 - math.exp(-3.0 / window)) * math.exp(-10.0 / window))


def test_pressure_is_full_when_nobody_gets_on() -> None:
    pressure = Pressure()
    for _ in range(2):
        pressure.change(Activity.NOTHING, Activity.WEIGHTS, SECOND)
    pressure.change(Activity.WEIGHTS, Activity.RUNS, 5 * SECOND)
    info = pressure.info(6 * SECOND)["weights"]
    assert (info.some_seconds, info.full_seconds) == (5.0, 4.0)


def test_a_full_device_shows_as_pressure_on_memory_and_cpu() -> None:
    sim = simulate(frames=12, max_runs=2)
    program = sim.program()
    group(program, "/a")
    pids = [spawn(program, "/a", first=i) for i in range(6)]
    decodes = [program.start(Decode(pid, 60)) for pid in pids]
    sim.run_until(lambda: all(d.done for d in decodes))
    pressure = stat(program, "/a").pressure
    assert pressure["memory"].some_seconds > 0
    assert pressure["cpu"].some_seconds > 0
    assert pressure["weights"].full_seconds > 0, "while the model was loaded"
    waits = [row(sim, pid).usage(sim.clock).waits for pid in pids]
    assert pressure["memory"].some_seconds >= max(w.get("pagein", 0.0) for w in waits) - 1e-9


def test_a_program_cannot_make_groups_without_end_and_an_error_does_not_name_them_all() -> None:
    sim = simulate()
    program = sim.program()
    path = program.call(Getinfo()).group
    sim.checked = False  # all invariants after each of so many take seconds
    for number in range(MAX_SESSION_GROUPS):
        program.call(GroupCreate(f"{path}/g{number}"))
    sim.checked = True
    error = refused(program, GroupCreate(f"{path}/g0/one"))
    assert error.errno is Errno.EAGAIN
    assert f"{MAX_SESSION_GROUPS} groups in {path}" in error.reason
    error = refused(program, GroupStat(f"{path}/none"))
    assert error.errno is Errno.ENOENT
    assert error.reason.endswith(f"g7 and {MAX_SESSION_GROUPS - 8} more")
    program.call(GroupRemove(f"{path}/g9"))
    program.call(GroupCreate(f"{path}/g0/one"))
    program.disconnect()
    sim.run_idle()
    assert path not in [group.path for group in sim.kernel.groups]
    assert sim.kernel.groups.root.inside == len(list(sim.kernel.groups)) - 1


def test_a_group_is_not_made_in_one_that_has_ended_while_the_call_waited() -> None:
    sim = simulate(audit="/var/a", audit_required=["limits"])
    program = sim.program(uid=1002)
    session = program.call(Getinfo()).group
    moved, made = program.prepare(GroupMove(0, "/users/1002")), program.prepare(GroupCreate("one"))
    for future in (moved, made):
        sim.event(program.event(future))  # both are made before the line of the first is on the disk
    sim.run_until(lambda: made.done)
    assert session not in [group.path for group in sim.kernel.groups]
    assert (moved.errno, made.value.path) == (Errno.OK, "/users/1002/one")
    assert sim.kernel.groups.root.inside == len(list(sim.kernel.groups)) - 1
    program.disconnect()
    sim.run_idle()
    assert sim.saved is not None
    assert set(sim.saved.groups) <= {group.path for group in sim.kernel.groups}


def test_a_relative_group_is_that_of_the_moment_of_the_call() -> None:
    sim = simulate(options={"link": "1e6"})
    program = sim.program()
    program.call(GroupCreate("a"))
    program.call(GroupCreate("/elsewhere"))
    waiting = program.start(Spawn("sim", tokens=[1, 2], group="a"))
    sim.run_for(0.01)
    assert not waiting.done
    program.call(GroupMove(0, "/elsewhere"))
    sim.run_until(lambda: waiting.done)
    assert row(sim, waiting.value).group.path.endswith("/a")
