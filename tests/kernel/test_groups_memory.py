"""Control groups and memory: who is charged for frames, places and weights, and who gives way at a limit."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.simulator import simulate, slots
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import (
    Finish,
    GroupSettings,
    KvAction,
    Limits,
    SchedClass,
    Signal,
    State,
    WaitFor,
)
from llmasos.syscalls.table import (
    Decode,
    Exec,
    Fork,
    Getinfo,
    GroupMove,
    GroupSet,
    Kill,
    Models,
    Setlimits,
    Spawn,
    Truncate,
)
from tests.kernel.charged import PROMPT, frames, group, refused, row, spawn, stat


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
    met = stat(program, "/a").events["kv_max"]
    program.start(Decode(second, 20))
    sim.run_for(1.0)
    assert process.wait is WaitFor.QUOTA
    assert stat(program, "/a").events["kv_max"] == met + 1, "it has met the limit again"


@pytest.mark.parametrize("swap", [0, 40])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_with_wait_those_that_wait_for_each_other_are_untied_and_lose_nothing(count: int, swap: int) -> None:
    sim = simulate(quantum=8, options={"swap": slots(swap)} if swap else {})
    program = sim.program()
    group(program, "/a", kv_max=frames(8), kv_action=KvAction.WAIT)
    mine = [spawn(program, "/a", first=i, once=True) for i in range(count)]  # ended, they release what they have
    decodes = [program.start(Decode(pid, 60)) for pid in mine]  # seven frames each in the end
    sim.run_until(lambda: all(d.done for d in decodes))
    for first, decode in enumerate(decodes):
        assert decode.value.tokens == sim.continuation([first, *PROMPT[1:]], 60)
    untied = stat(program, "/a").events["kv_untied"]
    assert untied == 1 if count == 2 else untied >= 1, "of two one gives way, and that is enough"
    said = [line.text for line in sim.log if "wait for each other at its kv_max" in line.text]
    assert len(said) == 1
    assert "group /a" in said[0]


def test_with_wait_one_that_sleeps_keeps_what_it_has_while_others_wait_for_it() -> None:
    sim = simulate(quantum=8)
    program = sim.program()
    group(program, "/a", kv_max=frames(8), kv_action=KvAction.WAIT)
    idle = spawn(program, "/a", first=9)
    sim.run_idle()
    held = list(row(sim, idle).table.frames)
    assert held
    mine = [spawn(program, "/a", first=i) for i in range(2)]
    decodes = [program.start(Decode(pid, 60)) for pid in mine]
    sim.run_for(20.0)
    assert not any(decode.done for decode in decodes)
    assert row(sim, idle).table.frames == held
    assert "kv_untied" not in stat(program, "/a").events
    program.call(Kill(idle))
    sim.run_until(lambda: any(decode.done for decode in decodes))


def test_with_wait_those_of_nested_groups_are_untied_too() -> None:
    sim = simulate(quantum=8)
    program = sim.program()
    group(program, "/a", kv_max=frames(8), kv_action=KvAction.WAIT)
    group(program, "/a/b", kv_max=frames(7), kv_action=KvAction.WAIT)
    mine = [spawn(program, place, first=i, once=True) for i, place in enumerate(("/a", "/a/b", "/a/b"))]
    decodes = [program.start(Decode(pid, 60)) for pid in mine]
    sim.run_until(lambda: all(decode.done for decode in decodes))
    assert all(len(decode.value.tokens) == 60 for decode in decodes)


def test_with_wait_one_that_waits_for_the_limit_of_another_group_has_no_part_in_that() -> None:
    sim = simulate(quantum=8)
    program = sim.program()
    for path, most in (("/a", 8), ("/b", 6)):
        group(program, path, kv_max=frames(most), kv_action=KvAction.WAIT)
    mine = [spawn(program, "/a", first=i, once=True) for i in range(2)]
    spawn(program, "/b", first=8)  # it sleeps, and keeps three frames
    sim.run_idle()
    other = spawn(program, "/b", first=9)
    decodes = [program.start(Decode(pid, 60)) for pid in (*mine, other)]
    sim.run_until(lambda: all(decode.done for decode in decodes[:2]))
    assert stat(program, "/a").events["kv_untied"] == 1, "one gives way, and that is enough"
    process = row(sim, other)
    assert (process.wait, len(process.table.frames), process.account.preemptions) == (WaitFor.QUOTA, 3, 0)


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
    assert list(row(sim, second).log) == [2, *PROMPT[1:]], "nothing is lost"


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
    assert list(row(sim, runner).log[96:]) == sim.continuation([7, *range(1, 96)], 48)


def test_growth_above_kv_high_is_counted_by_the_frame_and_not_by_the_token() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a", kv_high=frames(2))
    pid = spawn(program, "/a")  # 40 tokens: three frames
    sim.run_idle()
    assert stat(program, "/a").events["kv_high"] == 1
    program.call(Decode(pid, 9))  # the last of them is not computed: 48 tokens are three frames
    assert stat(program, "/a").events["kv_high"] == 1
    program.call(Decode(pid, 2))
    assert stat(program, "/a").events["kv_high"] == 2


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


def test_pages_that_come_back_from_a_lower_tier_are_held_to_the_limit_too() -> None:
    sim = simulate(frames=32, options={"swap": slots(40)})
    program = sim.program()
    most = frames(7)
    group(program, "/a", kv_max=most)
    pids = [spawn(program, "/a", first) for first in range(4)]
    decodes = [program.start(Decode(pid, 40)) for pid in pids]
    ledger, kept = sim.kernel.groups.find("/a", sim.kernel.groups.root), list[bool]()

    def look() -> bool:
        kept.append(ledger.kv <= most)
        return all(decode.done for decode in decodes)

    for pid in pids * 3:
        program.call(Kill(pid, Signal.STOP))
        sim.run_for(0.01)
        program.call(Kill(pid, Signal.CONT))
    sim.run_until(look)
    assert all(kept)
    assert sim.kernel.counters["moved_in"] > 10
    for decode in decodes:
        assert len(decode.value.tokens) == 40


def test_pages_come_back_from_a_lower_tier_only_if_the_group_may_have_all_of_them() -> None:
    sim = simulate(options={"swap": slots(40)})
    program = sim.program()
    group(program, "/a", kv_max=frames(7), kv_action=KvAction.WAIT)
    away = spawn(program, "/a", first=1)
    sim.run_idle()
    program.call(Kill(away, Signal.STOP))  # its three frames are moved out
    spawn(program, "/a", first=2, prompt=list(range(90)))
    sim.run_idle()
    program.call(Kill(away, Signal.CONT))
    decode = program.start(Decode(away, 1))
    sim.run_for(1.0)
    assert row(sim, away).returning == 39
    assert (row(sim, away).wait, stat(program, "/a").kv) == (WaitFor.QUOTA, frames(6))
    program.call(GroupSet("/a", GroupSettings(kv_max=frames(9), kv_action=KvAction.WAIT)))
    sim.run_until(lambda: decode.done)


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
    assert stat(program, "/a").events["weights_max"] == 2
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
    assert list(row(sim, held).log[100:]) == sim.continuation([1, *range(1, 100)], 60)


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


@pytest.mark.parametrize("crashes", [False, True])
@pytest.mark.parametrize("action", [KvAction.SPILL, KvAction.WAIT])
@pytest.mark.parametrize("moment", [0.0, 0.0005])  # between two steps, and within one
def test_an_answer_above_a_lowered_limit_waits_and_goes_on_when_that_is_raised(
    action: KvAction, crashes: bool, moment: float
) -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a")
    pid = spawn(program, "/a", prompt=list(range(100)))
    decode = program.start(Decode(pid, 100))
    sim.run_for(0.03 + moment)
    program.call(GroupSet("/a", GroupSettings(kv_max=frames(3), kv_action=action)))
    if crashes:
        sim.crash()
    sim.run_for(60.0)
    process, length = row(sim, pid), len(row(sim, pid).log)
    assert not decode.done
    assert 100 < length < 200
    assert (process.state, process.wait) == (State.BLOCKED, WaitFor.QUOTA)
    if action is KvAction.SPILL:
        assert stat(program, "/a").kv == 0, "what it cannot use others of the group may have"
    elif not crashes:
        assert stat(program, "/a").kv >= frames(6), "nobody's pages are taken"
    assert stat(program, "/a").events["kv_max"] == 1
    told = [line.text for line in sim.log if line.level == "warning" and "/a" in line.text]
    assert len(told) == 1
    assert f"process {pid} waits: its context of {length} tokens is longer than the 48" in told[0]
    program.call(GroupSet("/a", GroupSettings(kv_max=frames(2), kv_action=action)))
    sim.run_for(1.0)
    assert not decode.done
    assert stat(program, "/a").events["kv_max"] == 1, "it has been said"
    program.call(GroupSet("/a", GroupSettings(kv_max=0)))
    sim.run_until(lambda: decode.done)
    assert decode.value.finish is Finish.LENGTH
    assert decode.value.tokens == sim.continuation(list(range(100)), 100)


def test_others_of_a_group_go_on_while_one_waits_whose_context_is_too_long_now() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a")
    long = spawn(program, "/a", prompt=list(range(100)))
    decode = program.start(Decode(long, 100))
    sim.run_for(0.03)
    program.call(GroupSet("/a", GroupSettings(kv_max=frames(3))))
    short = spawn(program, "/a")
    steps = row(sim, long).account.steps
    assert len(program.call(Decode(short, 5)).tokens) == 5
    sim.run_for(5.0)
    assert not decode.done
    assert row(sim, long).account.steps <= steps + 1, "it does not compute again what it could never finish"
    program.call(Kill(long, Signal.INT))
    sim.run_until(lambda: decode.done)
    assert decode.value.finish is Finish.INTERRUPT
    assert refused(program, Decode(long, 1)).errno is Errno.E2BIG


def test_one_that_waits_for_a_lowered_limit_goes_on_in_another_group() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a")
    group(program, "/b")
    pid = spawn(program, "/a", prompt=list(range(100)))
    decode = program.start(Decode(pid, 50))
    sim.run_for(0.03)
    program.call(GroupSet("/a", GroupSettings(kv_max=frames(3))))
    sim.run_for(1.0)
    assert not decode.done
    program.call(GroupMove(pid, "/b"))
    sim.run_until(lambda: decode.done)
    assert decode.value.finish is Finish.LENGTH


def test_with_fail_an_answer_above_a_lowered_limit_ends_with_the_reason() -> None:
    sim = simulate()
    program = sim.program()
    group(program, "/a")
    pid = spawn(program, "/a", prompt=list(range(100)))
    program.call(Decode(pid, 100, wait=False))
    sim.run_for(0.03)
    program.call(GroupSet("/a", GroupSettings(kv_max=frames(3), kv_action=KvAction.FAIL)))
    sim.run_for(1.0)
    info = program.call(Getinfo(pid))
    assert (info.decoding, info.finish, info.errno) == (False, Finish.ERROR, Errno.EDQUOT)
    assert "its kv_max is" in info.reason
    assert stat(program, "/a").events["kv_fail"] == 1


@pytest.mark.parametrize("bound", ["group", "above", "limits", "window"])
def test_a_full_context_says_what_bounds_it(bound: str) -> None:
    sim = simulate(options={"context": "64"} if bound == "window" else {})
    program = sim.program()
    group(program, "/a", **({"kv_max": frames(4)} if bound in ("group", "above") else {}))
    group(program, "/a/b", kv_max=frames(9))
    pid = spawn(program, "/a/b" if bound == "above" else "/a")
    if bound == "limits":
        program.call(Setlimits(pid, Limits(context=64)))
    assert program.call(Decode(pid, 100)).finish is Finish.CONTEXT
    said = {
        "group": f"64 tokens is what kv_max of group /a allows ({frames(4):,} bytes)",
        "above": f"64 tokens is what kv_max of group /a allows ({frames(4):,} bytes)",
        "limits": "its own limit",
        "window": "the window of",
    }
    assert said[bound] in program.call(Getinfo(pid)).reason
    program.call(Truncate(pid, 3))
    program.call(Decode(pid, 3))
    assert program.call(Getinfo(pid)).reason == ""


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
