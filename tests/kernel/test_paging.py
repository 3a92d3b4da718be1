"""Paging of weights: several models in one budget. What goes for what, and that nothing but time is different."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from llmasos.drivers.protocol import Load, Run, Sample, Step
from llmasos.drivers.sim.device import SimDevice
from llmasos.drivers.sim.spec import parse
from llmasos.kernel.clock import SECOND
from llmasos.kernel.models.paging import _HINT, NEVER, _may_go, allotment, room_for, who_goes
from llmasos.kernel.objects.image import LOADING, RESIDENT
from llmasos.kernel.sched.run_queue import rank
from llmasos.simulator import Prog, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Advice, Finish, Sampler, SchedClass, Signal, State, WaitFor
from llmasos.syscalls.table import (
    Advise,
    Decode,
    Evict,
    Exec,
    Feed,
    Fork,
    Getinfo,
    Kill,
    Models,
    Pagein,
    Spawn,
    Trace,
    Truncate,
)
from tests.kernel.machines.core import examples
from tests.kernel.machines.paging import Paging, PagingAndSwapping
from tests.kernel.paged import MB, ONE, PROMPT, decode, image, memory, refused, row, said, spawn


def test_the_room_for_weights_is_what_pinned_ones_and_frames_that_stay_leave_of_it() -> None:
    dice = random.Random(1)
    for _ in range(300):
        images = [
            SimpleNamespace(
                size=dice.randrange(1, 40), allotted=dice.choice([0, 7]), kv_bytes=dice.randrange(10),
                mapped=dice.random() < 0.5, loaded=[], pinned=dice.random() < 0.4,
                probed=SimpleNamespace(stream_bytes=dice.choice([0, 5])) if dice.random() < 0.8 else None,
            )
            for _ in range(3)
        ]  # fmt: skip
        most, tier = dice.choice([0, 50]), dice.choice([0, 60])
        device: Any = SimpleNamespace(
            config=SimpleNamespace(weight_bytes=most), tier_size=tier, images=dict(enumerate(images))
        )
        one, others = images[0], images[1:]
        pinned = sum(other.allotted or other.size for other in others if other.pinned)
        frames = one.kv_bytes + sum(other.kv_bytes for other in others if other.mapped or other.pinned)
        room = min(most or 1 << 60, tier - frames if tier else 1 << 60) - pinned
        image: Any = one
        assert min(room_for(device, image), 1 << 40) == min(max(0, room), 1 << 40)
        streamed = one.probed.stream_bytes if one.probed is not None else 0
        wanted = one.size if one.size <= room else room if 0 < streamed <= room else None
        assert allotment(device, image) == wanted


def test_when_a_model_in_use_may_go_depends_on_its_turn_and_on_whose_processes_want_to_run() -> None:
    config = SimpleNamespace(aging_seconds=2.0, weight_quantum=0.25)
    system: Any = SimpleNamespace(now=10 * SECOND, config=config)
    fair, batch = (SimpleNamespace(sched_class=one, throttled_by=None) for one in (SchedClass.FAIR, SchedClass.BATCH))
    held = SimpleNamespace(sched_class=SchedClass.FAIR, throttled_by=object())

    def moment(wanted: SchedClass | None, users: list[Any], active: list[Any], steps: int = 1, since: int = 9) -> float:
        image: Any = SimpleNamespace(
            mapped=bool(users), users=dict(enumerate(users)), active=dict(enumerate(active)), loaded=[], steps=steps,
            resident_since=8 * SECOND, paging_time=SECOND, thrash=SimpleNamespace(stretch=1),
        )  # fmt: skip
        strength = _HINT if wanted is None else rank(wanted)
        return _may_go(system, image, strength, since * SECOND) / SECOND

    turn_ends = 8.0 + 4 * 1.0
    assert moment(SchedClass.FAIR, [], []) == 0, "nobody uses it"
    assert moment(SchedClass.FAIR, [fair], []) == 0, "who uses it sleeps"
    assert moment(SchedClass.FAIR, [held], []) == turn_ends, "who uses it waits for its group only"
    assert moment(SchedClass.FAIR, [fair], [fair]) == turn_ends
    assert moment(SchedClass.FAIR, [batch], [batch]) == 0, "a stronger class does not wait"
    assert moment(SchedClass.BATCH, [fair], [fair]) == turn_ends, "a weaker one waits for its turn"
    assert moment(SchedClass.BATCH, [fair], [fair], since=11) == 13.0, "and for the ageing bound"
    assert moment(None, [fair], [fair]) == NEVER / SECOND, "a hint takes nothing from who wants to run"
    assert moment(None, [fair], []) == 0
    assert moment(SchedClass.FAIR, [fair], [fair], steps=0) == turn_ends + 2.0, "it has not run yet"
    assert moment(SchedClass.FAIR, [fair], [], steps=0) == turn_ends


def test_those_that_go_for_a_model_make_room_and_none_of_them_could_have_stayed() -> None:
    dice = random.Random(2)
    for _ in range(300):
        images = [
            SimpleNamespace(
                size=dice.randrange(1, 30), allotted=dice.randrange(1, 30), kv_bytes=dice.randrange(4), loaded=[],
                mapped=dice.random() < 0.5, active={}, pinned=dice.random() < 0.2, held=True, probed=None,
                state=RESIDENT, unneeded=dice.random() < 0.3, last_run=dice.randrange(9), id=number,
            )
            for number in range(5)
        ]  # fmt: skip
        device: Any = SimpleNamespace(
            config=SimpleNamespace(weight_bytes=dice.choice([0, 60])), tier_size=dice.choice([0, 70]),
            images=dict(enumerate(images)), evictions=SimpleNamespace(worth=lambda image, now: image.last_run),
        )  # fmt: skip
        image: Any = images[0]
        image.allotted, room = 0, dice.randrange(1, 40)

        def fits(going: list[Any], device: Any = device, image: Any = image, room: int = room) -> bool:
            stays = [one for one in device.images.values() if one is not image and one not in going]
            kept = [one for one in device.images.values() if one is not image and (one.mapped or one not in going)]
            weights, frames = sum(one.allotted for one in stays), sum(one.kv_bytes for one in kept) + image.kv_bytes
            most, tier = device.config.weight_bytes, device.tier_size
            return (not most or weights + room <= most) and (not tier or weights + frames + room <= tier)

        going = who_goes(device, image, room, [], 0)
        able = [one for one in images[1:] if not one.pinned]
        assert set(map(id, going)) <= set(map(id, able))
        assert fits(going) == fits(list(able))
        if fits(going):
            assert not any(fits([other for other in going if other is not one]) for one in going)
        order = sorted(able, key=lambda one: (not one.unneeded, bool(one.mapped), one.last_run))
        if len(going) == 1 and fits(order[:1]):
            assert going == order[:1]


def test_where_nothing_is_said_a_model_has_a_quarter_of_the_kv_memory_and_a_gibibyte_at_most() -> None:
    sim = simulate()
    device = sim.kernel.devices["sim0"]
    for whole, most, due in ((4 << 20, 0, 1 << 20), (8 << 30, 0, 1 << 30), (8 << 30, 5 << 30, 5 << 30)):
        device.config.kv_bytes, device.config.image_kv_bytes = whole, most
        assert device.image_kv_bytes == due


def test_evictions_and_faults_are_counted_as_the_trace_tells_them() -> None:
    sim = memory()
    program = sim.program()
    program.start(Trace(0, timeout=1e3))
    pids = [spawn(program, name) for name in ("sim:1m", "sim:1.1m")]
    for pid in pids * 3:
        program.call(Decode(pid, 3))
    seen = Counter(event.what for event in sim.kernel.trace.read(0, 10_000).events)
    counted = sim.kernel.counters
    assert (counted["evictions"], counted["faults"]) == (seen["mem.evict"], seen["mem.fault"])
    assert min(counted["evictions"], counted["faults"]) >= 5


@pytest.mark.long
def test_two_models_that_are_always_wanted_take_turns_in_the_memory_of_one() -> None:
    sim = memory()
    program = sim.program()
    pids = {name: spawn(program, name) for name in ("sim:1m", "sim:1.1m")}
    futures = {name: decode(program, pid, 2000) for name, pid in pids.items()}
    began, before = sim.now, sum(row(program, name).pageins for name in pids)
    while not all(future.done for future in futures.values()):
        sim.run_for(0.05)
        there = [m for m in program.call(Models()) if m.state in ("resident", "loading")]
        assert sum(m.weight_bytes for m in there) <= ONE
    for name, future in futures.items():
        assert future.value.tokens == sim.continuation(PROMPT, 2000, name=name)
    rows = [row(program, name) for name in pids]
    page_ins = sum(m.pageins for m in rows) - before
    assert all(m.faults >= 3 for m in rows), "neither waited until the other had finished"
    paging = page_ins * 0.11
    assert paging <= (sim.now - began) / 4, "most of the time is spent running"
    assert page_ins <= 4000 / 100, "no thrashing: a page-in is good for many tokens"


def test_nobody_starves_among_models_of_which_only_two_fit() -> None:
    sim = memory(5 * MB)
    program = sim.program()
    names = [f"sim:1.{i}m" for i in range(4)]
    pids = [spawn(program, name, sched_class=SchedClass.BATCH if i else SchedClass.FAIR) for i, name in enumerate(names)]
    futures = [decode(program, pid, 400) for pid in pids]
    sim.run_until(lambda: all(f.done for f in futures), limit=120.0)
    for name, future in zip(names, futures, strict=True):
        assert future.value.tokens == sim.continuation(PROMPT, 400, name=name)


def test_kv_outlives_its_models_eviction_and_is_attached_again() -> None:
    sim = memory()
    program = sim.program()
    first = spawn(program, "sim:1m")
    tokens = program.call(Decode(first, 10)).tokens
    computed = program.call(Getinfo(first)).usage.computed
    spawn(program, "sim:1.1m")
    gone = row(program, "sim:1m")
    assert (gone.state, gone.resident_bytes, gone.evictions, gone.mapped_by) == ("evicted", 0, 1, [first])
    info = program.call(Getinfo(first))
    assert (info.state, info.wait) == (State.BLOCKED, WaitFor.INPUT)
    assert info.pages == 4
    tokens += program.call(Decode(first, 10)).tokens
    assert tokens == sim.continuation(PROMPT, 20, name="sim:1m")
    assert program.call(Getinfo(first)).usage.computed == computed + 10, "nothing was computed again"
    back = row(program, "sim:1m")
    assert (back.state, back.faults, back.pageins) == ("resident", 1, 2)
    assert row(program, "sim:1.1m").state == "evicted"


def test_kv_of_weights_that_have_changed_meanwhile_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = simulate(options={"swap": "1m"})
    program = sim.program()
    pids = [spawn(program, "sim"), spawn(program, "sim"), *program.call(Fork(spawn(program, "sim")))]
    for pid in pids:
        program.call(Decode(pid, 4))
    program.call(Kill(pids[0], Signal.STOP))  # its pages are in the lower tier
    fetch = SimDevice.fetch

    def changed(device: SimDevice, request: Load, report: Any) -> Any:
        bring_in = fetch(device, request, report)
        return lambda: msgspec.structs.replace(bring_in(), changed=request.again)

    monkeypatch.setattr(SimDevice, "fetch", changed)
    program.call(Evict("sim", force=True))
    program.call(Kill(pids[0], Signal.CONT))
    before = [program.call(Getinfo(pid)).usage.computed for pid in pids]
    lengths = [program.call(Getinfo(pid)).length for pid in pids]
    ends = [decode(program, pid, 4) for pid in pids]
    sim.run_until(lambda: all(end.done for end in ends))
    assert all(end.value.finish is Finish.LENGTH for end in ends)
    computed = sum(program.call(Getinfo(pid)).usage.computed for pid in pids) - sum(before)
    assert computed >= max(lengths), "what had been computed was computed again"
    assert "have changed" in said(sim)


def test_who_wants_evicted_weights_waits_for_them_and_that_is_a_fault() -> None:
    sim = memory()
    program = sim.program()
    pid = spawn(program, "sim:1m")
    other = spawn(program, "sim:1.1m")
    program.call(Decode(other, 1))
    before = row(program, "sim:1m").faults
    future = decode(program, pid, 5)
    twin = program.call(Fork(pid))[0]
    info = program.call(Getinfo(twin))
    assert (info.state, info.wait) == (State.BLOCKED, WaitFor.WEIGHTS)
    sim.run_until(lambda: future.done)
    assert row(program, "sim:1m").faults == before + 1, "one page-in, however many wait for it"


def test_idle_models_go_first_then_those_whose_processes_sleep() -> None:
    sim = memory(7_300_000)
    program = sim.program()
    asleep = spawn(program, "sim:1m")
    program.call(Decode(asleep, 1))
    busy = spawn(program, "sim:1.1m")
    future = decode(program, busy, 3000)
    program.call(Pagein("sim:1.2m"))
    program.call(Pagein("sim:1.3m"))  # for it the idle one goes, though it came last
    assert {m.name for m in program.call(Models()) if m.device} == {"sim:1m", "sim:1.1m", "sim:1.3m"}
    assert row(program, "sim:1m").state == "resident"
    third = spawn(program, "sim:1.3m")
    program.call(Decode(third, 1))
    program.call(Pagein("sim:1.2m"))
    states = {m.name: m.state for m in program.call(Models()) if m.device}
    assert states["sim:1.1m"] == "resident"
    assert sorted(states.values()) == ["evicted", "resident", "resident", "resident"]
    assert states["sim:1m"] == "evicted", "of two that sleep the one that ran longest ago"
    assert not future.done


def test_what_is_advised_against_goes_first_and_what_is_pinned_never() -> None:
    sim = memory(5 * MB)
    program = sim.program()
    old, new = spawn(program, "sim:1m"), spawn(program, "sim:1.1m")
    for pid in (old, new):
        program.call(Decode(pid, 1))
    program.call(Advise("sim:1.1m", Advice.DONTNEED))
    assert row(program, "sim:1.1m").state == "resident", "somebody uses it"
    program.call(Pagein("sim:1.2m"))
    assert row(program, "sim:1.1m").state == "evicted"
    program.call(Advise("sim:1m", Advice.PIN))
    assert row(program, "sim:1m").pinned
    program.call(Decode(new, 1))
    program.call(Pagein("sim:1.2m"))
    assert row(program, "sim:1m").state == "resident"
    assert refused(program, Evict("sim:1m", force=True))[0] is Errno.EBUSY
    assert refused(program, Advise("sim:1m", Advice.DONTNEED))[0] is Errno.EBUSY
    errno, reason = refused(program, Pagein("sim:2m"))
    assert errno is Errno.ENOMEM
    assert "pinned" in reason
    program.call(Advise("sim:1m", Advice.NORMAL))
    assert program.call(Pagein("sim:2m")).state == "resident"


def test_a_pin_that_would_leave_too_little_for_who_is_there_is_refused() -> None:
    sim = memory()
    program = sim.program()
    spawn(program, "sim:1m")
    spawn(program, "sim:1.1m")
    errno, reason = refused(program, Advise("sim:1m", Advice.PIN))
    assert errno is Errno.ENOMEM
    assert "sim:1.1m" in reason
    assert not row(program, "sim:1m").pinned
    assert refused(program, Advise("sim:1.2m", Advice.PIN))[0] is Errno.ENOMEM
    sim.run_idle()
    assert "sim:1.2m" not in {model.name for model in program.call(Models())}, "and is no hint either"


def test_a_model_on_its_way_shows_how_far_it_is_and_no_memory_yet() -> None:
    sim = memory()
    program = sim.program()
    program.start(Spawn("sim:1m", tokens=PROMPT))
    sim.run_until(lambda: bool(program.call(Models())) and row(program, "sim:1m").layers > 0)
    coming = row(program, "sim:1m")
    assert (coming.state, coming.resident_bytes) == ("loading", 0)
    assert coming.progress < 1.0
    sim.run_until(lambda: row(program, "sim:1m").state == "resident")
    there = row(program, "sim:1m")
    assert (there.progress, there.resident_bytes) == (1.0, 2 * MB)


def test_a_hint_returns_before_the_weights_are_there_and_costs_nobody_who_runs() -> None:
    sim = memory(5 * MB)
    program = sim.program()
    busy = spawn(program, "sim:1m")
    future = decode(program, busy, 3000)
    began = sim.now
    program.call(Advise("sim:1.1m", Advice.WILLNEED))
    assert sim.now - began < 0.05, "paging it in takes twice as long"
    assert row(program, "sim:1.1m").state == "loading"
    sim.run_until(lambda: row(program, "sim:1.1m").state == "resident")
    other = spawn(program, "sim:1.1m")
    second = decode(program, other, 3000)
    program.call(Advise("sim:1.2m", Advice.WILLNEED))
    sim.run_for(1.0)
    assert not future.done
    assert not second.done
    assert {row(program, name).state for name in ("sim:1m", "sim:1.1m")} == {"resident"}
    program.call(Kill(other, Signal.KILL))
    sim.run_until(lambda: row(program, "sim:1.2m").state == "resident")
    assert row(program, "sim:1m").faults == 0


def test_advice_about_what_is_not_there_says_so() -> None:
    sim = memory()
    program = sim.program()
    for advice in (Advice.DONTNEED, Advice.NORMAL):
        assert refused(program, Advise("sim:1m", advice))[0] is Errno.ENOENT
    assert refused(program, Advise("nowhere", Advice.WILLNEED))[0] is Errno.ENOENT
    assert refused(program, Advise("sim:9m", Advice.PIN))[0] is Errno.ENOMEM
    assert refused(program, Advise("sim:1m", Advice.PIN, "gpu7"))[0] is Errno.ENODEV
    assert [m.state for m in program.call(Models())] == ["absent"]
    program.call(Advise("tiny", Advice.WILLNEED))
    sim.run_until(lambda: row(program, "tiny").state == "resident")
    for wrong in (Advise("tiny", Advice.DONTNEED, dtype="none"), Evict("tiny", dtype="none")):
        dtype = row(program, "tiny").dtype
        assert refused(program, wrong) == (
            Errno.ENOENT,
            f"tiny in none is not in the memory of sim0; models there: tiny ({dtype})",
        )
    program.call(Advise("tiny", Advice.DONTNEED))  # nobody uses it: it goes at once
    assert row(program, "tiny").state == "absent"


@pytest.mark.long
def test_a_stronger_class_does_not_wait_for_a_turn_and_a_weaker_one_waits_longer() -> None:
    sim = memory()
    program = sim.program()
    batch, quick = spawn(program, "sim:1m", sched_class=SchedClass.BATCH), spawn(program, "sim:1.1m")
    slow = decode(program, batch, 1000)
    sim.run_until(lambda: image(sim, "sim:1m").steps > 3)
    began = sim.now
    fast = decode(program, quick, 3)
    sim.run_until(lambda: fast.done)
    assert sim.now - began < 0.2, "it waited for its page-in and nothing else"
    fast, before = decode(program, quick, 2500), row(program, "sim:1.1m").evictions
    sim.run_for(1.5)
    assert row(program, "sim:1.1m").evictions == before, "ageing has not set in"
    assert not fast.done
    sim.run_until(lambda: slow.done, limit=100.0)
    assert not fast.errno


@pytest.mark.parametrize("streams", [False, True])
def test_a_model_larger_than_its_memory_is_streamed_or_refused_with_what_to_do(streams: bool) -> None:
    sim = memory(ONE, streams="4" if streams else "0")
    program = sim.program()
    small = spawn(program, "sim:1m")
    if not streams:
        errno, reason = refused(program, Spawn("sim:3m", tokens=PROMPT))
        assert errno is Errno.ENOMEM
        assert "--weight-bytes" in reason
        assert "stream" in reason
        assert len(program.call(Models())) == 2
        return
    pid = spawn(program, "sim:3m")
    assert program.call(Decode(pid, 30)).tokens == sim.continuation(PROMPT, 30, name="sim:3m")
    large = row(program, "sim:3m")
    assert (large.state, large.resident_bytes, large.weight_bytes) == ("streamed", ONE, 6 * MB)
    assert program.call(Decode(small, 30)).tokens == sim.continuation(PROMPT, 30, name="sim:1m")
    assert row(program, "sim:3m").state == "evicted"


def test_streams_go_on_while_another_model_is_paged_in() -> None:
    sim = memory(100 * MB)
    program = sim.program()
    pid = spawn(program, "sim:1m")
    future = decode(program, pid, 5000)
    loading = program.start(Pagein("sim:20m"))  # two seconds
    sim.run_for(0.5)
    before = len(sim.steps)
    sim.run_for(1.0)
    assert not loading.done
    assert len(sim.steps) - before > 500, "a step takes about a millisecond"
    sim.run_until(lambda: loading.done)
    assert not future.done


def test_an_eviction_by_force_waits_for_the_step_and_the_model_comes_back() -> None:
    sim = memory()
    program = sim.program()
    pid = spawn(program, "sim:1m")
    assert refused(program, Evict("sim:1m"))[0] is Errno.EBUSY
    future = decode(program, pid, 50)
    sim.run_until(lambda: sim.kernel.devices["sim0"].in_flight is not None)
    program.call(Evict("sim:1m", force=True))
    sim.run_until(lambda: future.done)
    assert future.value.tokens == sim.continuation(PROMPT, 50, name="sim:1m")
    info = row(program, "sim:1m")
    assert (info.evictions, info.faults, info.pageins) == (1, 1, 2)


def test_an_eviction_by_force_can_be_taken_back() -> None:
    sim = memory()
    program = sim.program()
    pid = spawn(program, "sim:1m")
    decode(program, pid, 50)
    sim.run_until(lambda: sim.kernel.devices["sim0"].in_flight is not None)
    evict = program.start(Evict("sim:1m", force=True))
    evict.cancel()
    sim.run_for(0.1)
    assert evict.errno is Errno.EINTR
    assert row(program, "sim:1m").evictions == 0


def _kill(program: Prog, pid: int) -> Any:
    return program.call(Kill(pid, Signal.KILL))


def _exec(program: Prog, pid: int) -> Any:
    return program.call(Exec(pid, "sim:1.1m"))


def _truncate(program: Prog, pid: int) -> Any:
    return program.call(Truncate(pid, 3))


def _feed(program: Prog, pid: int) -> Any:
    return program.call(Feed(pid, [1, 2, 3]))


@pytest.mark.parametrize("what", [_kill, _exec, _truncate, _feed])
@pytest.mark.parametrize("after", [0.0, 0.05])
def test_what_happens_to_a_process_while_its_weights_are_out_or_on_their_way(
    what: Callable[[Prog, int], Any], after: float
) -> None:
    sim = memory()
    program = sim.program()
    pid, other = spawn(program, "sim:1m"), spawn(program, "sim:1.1m")
    program.call(Decode(other, 1))
    assert row(program, "sim:1m").state == "evicted"
    if after:
        program.start(Pagein("sim:1m"))
        sim.run_for(after)
        assert row(program, "sim:1m").state == "loading"
    what(program, pid)
    assert program.call(Decode(other, 5)).tokens == sim.continuation(
        [*PROMPT, *sim.continuation(PROMPT, 1, name="sim:1.1m")], 5, name="sim:1.1m"
    )
    sim.run_idle()


def test_a_device_keeps_frames_without_weights_and_refuses_to_run_them() -> None:
    device = SimDevice(*parse({"params": "1e6", "time_scale": "0"}))
    load = Load(1, 1, "sim", "", 4)
    device.fetch(load, lambda _: None)()
    device.drop_weights(1)
    with pytest.raises(SyscallError, match=r"^EINVAL: image 1 "):
        device.fetch(load, lambda _: None)()
    with pytest.raises(SyscallError, match=r"^EINVAL: image 1 "):
        device.drop_weights(1)
    device.fetch(Load(2, 1, "sim", "", 4, again=True), lambda _: None)()
    with pytest.raises(SyscallError, match=r"^EINVAL: image 2 "):
        device.fetch(Load(3, 2, "sim", "", 4, again=True), lambda _: None)()
    device.drop_weights(1)
    sample = Sample(Sampler(), 1, append=True)
    done = device.step(Step(4, [Run(1, 1, 0, [5], 0, [0], sample)]))
    assert "not in memory" in done.results[0].error


# --- who goes first -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("evictions", "gone"), [("lru", "sim:3m"), ("cost", "sim:1m")])
def test_who_is_evicted_is_as_the_policy_says(evictions: str, gone: str) -> None:
    sim = memory(10 * MB, evictions=evictions)
    program = sim.program()
    ids = [program.call(Spawn(name)) for name in ("sim:3m", "sim:1m")]
    for pid in ids:
        program.call(Feed(pid, PROMPT))
        program.call(Decode(pid, 1))
    image(sim, "sim:3m").paging_time = 10 * SECOND  # as measured: it lies on a slower disk
    program.call(Pagein("sim:1.5m"))
    assert [m.name for m in program.call(Models()) if m.state == "evicted"] == [gone]


def test_a_policy_of_another_name_is_refused_when_the_kernel_boots() -> None:
    with pytest.raises(SyscallError, match=r"^EINVAL: .*'random'"):
        memory(evictions="random")


TestPaging = Paging.TestCase
TestPagingAndSwapping = PagingAndSwapping.TestCase
TestPaging.settings = TestPagingAndSwapping.settings = examples(40)


def test_a_model_for_which_a_pin_leaves_no_room_is_refused_though_it_is_on_its_way_still() -> None:
    """Else it would go for the pinned one, and its process wait for ever."""
    sim = simulate(frames=64, weight_bytes=5_000_000, options={"link": "2e6"})
    program = sim.program()
    program.call(Spawn("sim:2m", tokens=[1, 2, 3]))
    sim.run_idle()
    program.call(Evict("sim:2m", force=True))
    program.call(Advise("sim", Advice.WILLNEED))
    sim.run_for(0.1)
    assert {m.name: m.state for m in program.call(Models())}["sim"] == "loading"
    program.call(Advise("sim:2m", Advice.PIN))
    child = program.start(Spawn("sim", tokens=[1, 2, 3]))
    assert child.errno is Errno.ENOMEM
    assert child.reply is not None
    assert "beside what is pinned" in child.reply.reason
    sim.run_idle()
    assert [m.name for m in program.call(Models()) if m.state == "resident"] == ["sim:2m"]


def test_the_files_in_use_are_those_of_models_on_a_device_and_of_processes() -> None:
    sim = simulate()
    program = sim.program()
    spawn(program, "tiny")  # a name of "sim"
    program.call(Kill(spawn(program, "sim:1.1m")))
    assert sim.kernel.files() == {"sim", "sim:1.1m"}


def test_a_model_with_fewer_weights_than_was_thought_takes_no_more_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = SimDevice.fetch

    def lighter(device: SimDevice, *request: Any) -> Any:
        finish = load(device, *request)
        return lambda: msgspec.structs.replace(loaded := finish(), weight_bytes=loaded.weight_bytes // 2)

    monkeypatch.setattr(SimDevice, "fetch", lighter)
    sim = memory()
    spawn(sim.program(), "sim:1m")
    assert (image(sim, "sim:1m").allotted, image(sim, "sim:1m").size) == (1 * MB, 1 * MB)


def test_a_driver_is_asked_for_one_model_at_a_time_so_that_it_is_known_which_one_kills_it() -> None:
    sim = memory(100 * MB)
    program = sim.program()
    coming = [program.start(Pagein(name)) for name in ("sim:1m", "sim:1.1m", "sim:1.2m")]
    images, most = sim.kernel.devices["sim0"].images, 0
    while not all(one.done for one in coming):
        most = max(most, sum(one.state == LOADING and one.probed is not None for one in images.values()))
        sim.step()
    assert most == 1
