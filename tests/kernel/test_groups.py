"""Control groups: what is charged to them, what their limits do, and the shares their weights give."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llmasos.kernel.clock import SECOND
from llmasos.kernel.groups.pressure import Activity, Pressure
from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import FRAME_BYTES, Prog, Simulation, simulate, slots
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_SESSION_GROUPS
from llmasos.syscalls.records import (
    Finish,
    GroupInfo,
    GroupSettings,
    KvAction,
    Right,
    Sampler,
    SchedClass,
    State,
    WaitFor,
)
from llmasos.syscalls.table import (
    Attach,
    Decode,
    Exec,
    Fork,
    Getinfo,
    GroupCreate,
    GroupMove,
    GroupRemove,
    GroupSet,
    GroupStat,
    Kill,
    Models,
    Setsched,
    Spawn,
    Truncate,
)
from tests.kernel.machines.core import Core
from tests.kernel.machines.grouped import Grouped

PROMPT = list(range(40))  # three frames


TestGrouped = Grouped.TestCase
TestGrouped.settings = Core.TestCase.settings


# --- helpers --------------------------------------------------------------------------------------------------------


def row(sim: Simulation, pid: int) -> LLMProcess:
    return sim.kernel.table.llm(pid)


def stat(program: Prog, path: str) -> GroupInfo:
    (info,) = program.call(GroupStat(path))
    return info


def group(program: Prog, path: str, **settings: Any) -> str:
    program.call(GroupCreate(path, GroupSettings(**settings)))
    return path


def spawn(program: Prog, path: str, first: int = 0, prompt: list[int] = PROMPT, **more: Any) -> int:
    return program.call(Spawn("sim", tokens=[first, *prompt[1:]], sampler=Sampler(), group=path, **more))


def refused(program: Prog, call: Any) -> SyscallError:
    with pytest.raises(SyscallError) as caught:
        program.call(call)
    return caught.value


def frames(count: int) -> int:
    return count * FRAME_BYTES


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


def test_the_tree_is_told_in_pages() -> None:
    program = simulate().program()
    for number in range(5):
        group(program, f"/g{number}")
    every = [info.path for info in program.call(GroupStat("/", below=True))]
    parts = [program.call(GroupStat("/", below=True, start=start, limit=3)) for start in (0, 3, 6, 9)]
    assert [info.path for part in parts for info in part] == every
    assert every[0] == "/"


# --- memory ---------------------------------------------------------------------------------------------------------


def test_a_frame_is_charged_once_to_who_mapped_it_first() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a")
    group(program, "/b")
    pid = spawn(program, "/a")
    sim.run_idle()
    assert stat(program, "/a").kv == frames(3)
    program.call(GroupMove(0, "/b"))
    (child,) = program.call(Fork(pid))
    assert (stat(program, "/a").kv, stat(program, "/b").kv, stat(program, "/").kv) == (
        frames(3),
        0,
        frames(3),
    )
    program.call(Decode(child, 1))  # its last block is its own now
    assert (stat(program, "/a").kv, stat(program, "/b").kv) == (frames(3), frames(1))
    program.call(Kill(pid))
    assert stat(program, "/a").kv == frames(2), "what the child still maps stays charged where it was"
    program.call(Kill(child))
    assert stat(program, "/").kv == 0


def test_a_moved_process_takes_its_charges_with_it() -> None:
    sim = simulate(options={"swap": slots(20)})
    program = sim.program()
    group(program, "/a")
    group(program, "/b")
    pid = spawn(program, "/a")
    sim.run_idle()
    before = stat(program, "/a")
    assert before.kv == frames(3)
    assert before.weights > 0
    program.call(GroupMove(pid, "/b"))
    after, left = stat(program, "/b"), stat(program, "/a")
    assert (after.kv, after.weights, after.pids) == (before.kv, before.weights, 1)
    assert (left.kv, left.weights, left.pids) == (0, 0, 0)


def test_at_kv_max_sleepers_of_the_group_give_way_and_nobody_else() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a", kv_max=frames(6))
    stranger = spawn(program, "/", first=9)
    mine = [spawn(program, "/a", first=i) for i in range(4)]
    sim.run_idle()
    assert stat(program, "/a").kv <= frames(6)
    for pid in mine * 2:
        before = list(row(sim, pid).log)
        assert program.call(Decode(pid, 3)).tokens == sim.continuation(before, 3)
        assert stat(program, "/a").kv <= frames(6)
    assert row(sim, stranger).account.preemptions == 0
    assert stat(program, "/a").events["kv_max"] > 0


def test_runners_of_a_full_group_take_turns_and_all_end() -> None:
    sim = simulate(quantum=8)
    program = sim.program()
    group(program, "/a", kv_max=frames(8))
    mine = [spawn(program, "/a", first=i) for i in range(5)]
    decodes = [program.start(Decode(pid, 60)) for pid in mine]  # seven frames each in the end
    sim.run_until(lambda: all(d.done for d in decodes))
    assert [d.value.finish for d in decodes] == [Finish.LENGTH] * 5
    assert [len(row(sim, pid).log) for pid in mine] == [100] * 5


def test_a_context_that_its_group_could_never_hold_is_refused() -> None:
    program = simulate().program()
    group(program, "/a", kv_max=frames(2))
    error = refused(program, Spawn("sim", tokens=PROMPT, group="/a"))
    assert error.errno is Errno.E2BIG
    assert "kv_max" in error.reason


def test_with_wait_a_process_waits_until_others_have_released_frames() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a", kv_max=frames(4), kv_action=KvAction.WAIT)
    first, second = spawn(program, "/a", first=1), spawn(program, "/a", first=2)
    decode = program.start(Decode(second, 4))
    sim.run_for(1.0)
    process = row(sim, second)
    assert (process.state, process.wait) == (State.BLOCKED, WaitFor.QUOTA)
    assert len(process.table.frames) <= 1
    program.call(Truncate(first, 3))
    sim.run_until(lambda: decode.done)
    assert decode.value.finish is Finish.LENGTH


def test_with_fail_a_decode_that_cannot_grow_ends_with_a_reason() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a", kv_max=frames(4), kv_action=KvAction.FAIL)
    spawn(program, "/a", first=1)
    sim.run_idle()
    second = spawn(program, "/a", first=2)
    error = refused(program, Decode(second, 4))
    assert error.errno is Errno.EDQUOT
    assert "/a" in error.reason
    assert stat(program, "/a").events["kv_fail"] >= 1
    assert row(sim, second).log == [2, *PROMPT[1:]], "nothing is lost"


def test_with_kill_the_largest_goes_and_the_log_says_why() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a", kv_max=frames(6), kv_action=KvAction.KILL)
    small = spawn(program, "/a", first=1, prompt=list(range(20)))
    large = spawn(program, "/a", first=2, prompt=list(range(60)))
    sim.run_idle()
    decode = program.start(Decode(small, 40))
    sim.run_until(lambda: decode.done)
    assert decode.value.finish is Finish.LENGTH
    assert row(sim, small).log
    gone = sim.kernel.table.find(large)
    assert gone is not None
    assert gone.state is State.ZOMBIE
    assert "out of memory" in gone.exit_reason
    assert any("/a" in line.text and f"{large} (" in line.text for line in sim.log)


def test_with_kill_somebody_goes_also_where_all_pages_are_shared() -> None:
    sim = simulate()
    program = sim.program()
    program.call(GroupMove(0, group(program, "/a", kv_max=frames(3), kv_action=KvAction.KILL)))
    parent = spawn(program, "/a")
    sim.run_idle()
    (child,) = program.call(Fork(parent))
    decodes = {pid: program.start(Decode(pid, 4)) for pid in (parent, child)}
    sim.run_for(10.0)
    gone = sim.kernel.table.find(parent)
    assert gone is not None
    assert gone.state is State.ZOMBIE
    assert decodes[child].value.finish is Finish.LENGTH
    assert stat(program, "/a").events["kv_kill"] == 1
    assert any("shared" in line.text for line in sim.log)


def test_above_kv_high_own_sleepers_go_first_and_growth_is_slowed_down() -> None:
    sim = simulate(frames=64)
    program = sim.program()
    group(program, "/a", kv_high=frames(6))
    idle = [spawn(program, "/a", first=i) for i in range(3)]
    sim.run_idle()
    assert stat(program, "/a").kv <= frames(6)
    assert row(sim, idle[0]).account.preemptions == 1
    runner = spawn(program, "/a", first=7, prompt=list(range(96)))
    began = sim.now
    program.call(Decode(runner, 48))  # nine frames
    slowed = sim.now - began
    other = spawn(program, "/", first=8, prompt=list(range(96)))
    began = sim.now
    program.call(Decode(other, 48))
    assert slowed > 3 * (sim.now - began)
    assert stat(program, "/a").events["kv_high"] >= 3
    assert row(sim, runner).log[96:] == sim.continuation([7, *range(1, 96)], 48)


@pytest.mark.parametrize("limits", [{"kv_high": 1}, {"kv_max": frames(10)}])
def test_contexts_of_many_steps_are_rebuilt_though_all_of_the_group_is_short(limits: dict[str, Any]) -> None:
    sim = simulate(frames=12, step_tokens=16, quantum=100_000)
    program = sim.program()
    group(program, "/a", **limits)
    pids = [spawn(program, "/a", first=i, prompt=list(range(100))) for i in range(3)]
    decodes = [program.start(Decode(pid, 40)) for pid in pids]
    sim.run_until(lambda: all(d.done for d in decodes), limit=1000.0)
    assert [d.value.finish for d in decodes] == [Finish.LENGTH] * 3


def test_a_lowered_limit_takes_from_sleepers_at_once() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a")
    for i in range(4):
        spawn(program, "/a", first=i)
    sim.run_idle()
    assert stat(program, "/a").kv == frames(12)
    old = program.call(GroupSet("/a", GroupSettings(kv_max=frames(7))))
    assert old == GroupSettings()
    assert stat(program, "/a").kv == frames(6)
    error = refused(program, GroupSet("/a", GroupSettings(kv_max=frames(2), kv_high=frames(4))))
    assert error.errno is Errno.EINVAL
    assert stat(program, "/a").settings.kv_max == frames(7)


def test_swap_max_bounds_what_lies_in_lower_tiers() -> None:
    sim = simulate(frames=6, options={"swap": slots(64)})
    program = sim.program()
    group(program, "/a", swap_max=frames(2))
    pids = [spawn(program, "/a", first=i) for i in range(3)]
    for pid in pids * 3:
        before = list(row(sim, pid).log)
        assert program.call(Decode(pid, 2)).tokens == sim.continuation(before, 2)
        assert stat(program, "/a").swap <= frames(2)
    assert stat(program, "/a").events["swap_max"] > 0
    assert sim.kernel.counters["moved_out"] > 0


def test_weights_are_charged_once_a_group_and_bounded() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a")
    pid = spawn(program, "/a", first=1)
    spawn(program, "/a", first=2)
    (size,) = [model.weight_bytes for model in program.call(Models()) if model.weight_bytes]
    assert stat(program, "/a").weights == size
    program.call(GroupSet("/a", GroupSettings(weights_max=size)))
    spawn(program, "/a", first=3)
    assert refused(program, Spawn("sim:layers=3", group="/a")).errno is Errno.EDQUOT
    assert refused(program, Exec(pid, "sim:layers=3")).errno is Errno.EDQUOT
    assert row(sim, pid).traits.model == "sim"


def test_exec_pays_for_one_model_at_a_time() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a")
    pid = spawn(program, "/a")
    program.call(Exec(pid, "sim:layers=3"))
    most = stat(program, "/a").weights
    program.call(Exec(pid, "sim"))
    assert 0 < stat(program, "/a").weights <= most
    program.call(GroupSet("/a", GroupSettings(weights_max=most)))
    program.call(Exec(pid, "sim:layers=3"))
    assert stat(program, "/a").weights == most


@pytest.mark.parametrize("how", ["rate", "pause", "wait"])
def test_who_is_held_back_gives_its_pages_to_who_can_run(how: str) -> None:
    sim = simulate(frames=12, quantum=100_000)
    program = sim.program()
    limits: dict[str, dict[str, Any]] = {
        "rate": {"tokens_max": 1.0},
        "pause": {"kv_high": 1},
        "wait": {"kv_max": frames(10), "kv_action": KvAction.WAIT},
    }
    group(program, "/a", **limits[how])
    if how == "wait":
        spawn(program, "/a", first=5, prompt=list(range(33)))
        sim.run_idle()
    held = spawn(program, "/a", first=1, prompt=list(range(100)), sched_class=SchedClass.REALTIME)
    slow = program.start(Decode(held, 60))
    sim.run_for(0.05)
    free = spawn(program, "/", first=2, prompt=list(range(100)))
    assert program.call(Decode(free, 5), limit=5.0).finish is Finish.LENGTH
    sim.run_until(lambda: slow.done)
    assert row(sim, held).log[100:] == sim.continuation([1, *range(1, 100)], 60)


def test_a_group_on_two_devices_takes_pages_from_the_other_one() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    group(program, "/a", kv_max=frames(8))
    pids = [spawn(program, "/a", first=i, prompt=list(range(100)), device=f"sim{i}") for i in range(2)]
    decodes = [program.start(Decode(pid, 20)) for pid in pids]
    sim.run_until(lambda: all(d.done for d in decodes), limit=60.0)
    assert stat(program, "/a").kv <= frames(8)


def test_one_kill_is_enough_and_shared_frames_do_not_count() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a", kv_max=frames(12), kv_action=KvAction.KILL)
    parent = spawn(program, "/", first=9, prompt=list(range(120)))
    sim.run_idle()
    program.call(GroupMove(0, "/a"))
    forks = program.call(Fork(parent, 3))  # eight frames each, none of them paid for by /a
    large = [spawn(program, "/a", first=i, prompt=list(range(60))) for i in range(2)]
    small = [spawn(program, "/a", first=i, prompt=list(range(30))) for i in range(4, 6)]
    sim.run_idle()
    decodes = [program.start(Decode(pid, 20)) for pid in small]
    sim.run_until(lambda: all(d.done for d in decodes))
    assert [d.value.finish for d in decodes] == [Finish.LENGTH] * 2
    gone = [pid for pid in [*forks, *large, *small] if sim.kernel.table.find(pid).is_zombie()]  # type: ignore[union-attr]
    assert len(gone) == 1
    assert gone[0] in large


def test_what_a_group_pays_for_others_is_handed_on_when_it_is_short() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a", kv_max=frames(4))
    group(program, "/b")
    parent = spawn(program, "/a")
    sim.run_idle()
    program.call(GroupMove(0, "/b"))
    program.call(Fork(parent))
    program.call(Kill(parent))
    assert stat(program, "/a").kv == frames(3)
    newcomer = spawn(program, "/a", first=8)
    program.call(Decode(newcomer, 12), limit=60.0)
    assert stat(program, "/a").kv == frames(4)
    assert stat(program, "/b").kv == frames(3)


def test_a_context_above_a_lowered_limit_is_told_so_when_it_must_be_rebuilt() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a")
    pid = spawn(program, "/a", prompt=list(range(100)))
    decode = program.start(Decode(pid, 100))
    sim.run_for(0.03)
    program.call(GroupSet("/a", GroupSettings(kv_max=frames(3))))
    sim.crash()
    sim.run_until(lambda: decode.done, limit=60.0)
    assert decode.errno in (Errno.EDQUOT, Errno.OK)
    assert decode.errno is Errno.EDQUOT or decode.value.finish is Finish.CONTEXT
    assert refused(program, Decode(pid, 1)).errno is Errno.E2BIG


def test_a_pause_ends_with_the_limit_it_was_for() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a", kv_high=1)
    pid = spawn(program, "/a", prompt=list(range(30)))
    decode = program.start(Decode(pid, 20))
    sim.run_for(0.2)
    assert row(sim, pid).throttled_by is not None
    began = sim.now
    program.call(GroupSet("/a", GroupSettings()))
    sim.run_until(lambda: decode.done)
    assert sim.now - began < 0.5


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
