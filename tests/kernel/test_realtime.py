"""REALTIME is a budget per period: admission, who goes first, what happens beyond, and who may have it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.clock import MILLISECOND, SECOND, nanoseconds
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.objects.reserve import Reserve
from llmasos.simulator import Future, Prog, Simulation, invariants, simulate
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import GroupSettings, Right, SchedClass, State
from llmasos.syscalls.table import (
    Checkpoint,
    Decode,
    Exit,
    Feed,
    Fork,
    Getinfo,
    GroupCreate,
    GroupSet,
    Kill,
    Restore,
    Sched,
    Setsched,
    Spawn,
    Truncate,
)
from tests.kernel.moved import refused

RT = SchedClass.REALTIME
LONG = {"context": "4096"}


def process(sim: Simulation, pid: int) -> LLMProcess:
    return sim.kernel.table.llm(pid)


def spawn(program: Prog, first: int, **more: Any) -> int:
    return program.call(Spawn("sim", tokens=[first], **more))


def decode(program: Prog, pid: int, count: int = 3000) -> Future[Any]:
    return program.start(Decode(pid, count))


def crowd(program: Prog, count: int, **more: Any) -> list[int]:
    pids = [spawn(program, 100 + i, **more) for i in range(count)]
    for pid in pids:
        decode(program, pid)
    return pids


def used(sim: Simulation, pid: int) -> float:
    return process(sim, pid).account.device_time / SECOND


# --- what it gets ---------------------------------------------------------------------------------------------------


def test_a_process_gets_its_budget_in_each_period_whatever_the_others_do() -> None:
    sim = simulate(frames=700, max_runs=1, options=LONG)
    program = sim.program()
    crowd(program, 5, nice=-20)
    pid = spawn(program, 1, sched_class=RT, budget=0.03, period=0.1)
    decode(program, pid)
    before, step = used(sim, pid), 0.0012
    for _ in range(6):
        sim.run_for(0.1)
        now = used(sim, pid)
        assert 0.03 - 2 * step <= now - before <= 0.03 + 0.07 / 6 + 2 * step, "and FAIR's part of the rest"
        before = now


def test_what_is_used_beyond_the_budget_comes_off_the_next_ones() -> None:
    sim = simulate(frames=700, max_runs=1, options={**LONG, "overhead": "0.03"}, aging_seconds=1000.0)
    program = sim.program()
    others = crowd(program, 3, sched_class=SchedClass.FAIR, nice=-20)
    pid = spawn(program, 1, sched_class=RT, budget=0.01, period=0.1, nice=19)
    decode(program, pid)
    start = used(sim, pid)
    sim.run_for(3.0)
    assert used(sim, pid) - start == pytest.approx(0.3, abs=0.07), "a tenth, though each step takes a third of a period"
    sim.run_until(lambda: process(sim, pid).sched_class is SchedClass.FAIR, limit=0.5)
    assert process(sim, pid).traits.sched_class is RT
    assert min(used(sim, other) for other in others) > 0.6


def test_two_of_them_go_in_the_order_in_which_their_periods_end() -> None:
    sim = simulate(frames=700, max_runs=1, options=LONG)
    program = sim.program()
    slow = spawn(program, 1, sched_class=RT, budget=0.2, period=1.0)
    decode(program, slow)
    sim.run_for(0.01)
    fast = spawn(program, 2, sched_class=RT, budget=0.01, period=0.05)
    decode(program, fast)
    sim.run_for(0.01)
    assert process(sim, fast).state is State.RUNNING
    assert used(sim, fast) > 0.007
    sim.run_for(0.9)
    for pid, part in ((slow, 0.2), (fast, 0.18)):
        assert used(sim, pid) >= part - 0.01, "each gets its own"


def test_no_policy_puts_another_before_it() -> None:
    for policy in ("fair", "fcfs", "round_robin", "mlfq", "lottery"):
        sim = simulate(frames=500, max_runs=2, options=LONG, policy=policy, checked=False)
        program = sim.program()
        crowd(program, 6)
        pid = spawn(program, 1, sched_class=RT, budget=0.05, period=0.1)
        decode(program, pid)
        start, seen = sim.now, process(sim, pid).account.decoded
        sim.run_for(0.3)
        steps = round((sim.now - start) / 0.0012)
        assert process(sim, pid).account.decoded - seen >= 0.95 * steps, f"{policy}: it was in each step"


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30), st.booleans()), max_size=60))
def test_nobody_uses_more_than_his_share_and_a_budget_in_any_time(
    life: list[tuple[int, int, bool]],
) -> None:
    """Whatever a process does, awake or asleep: before each step that it is given by its reserve, it has used at most its
    share of any time, and two budgets. Checked against the definition of a server of that bandwidth, in fractions."""
    budget, period = 10 * MILLISECOND, 50 * MILLISECOND
    held, now, bandwidth = Reserve(budget, period), 7, Fraction(budget, period)
    held.woke(now)
    spans: list[tuple[int, int]] = []  # when, how much was used with the reserve open
    for pause, use, slept in life:
        now += pause * MILLISECOND
        (held.woke if slept else held.refill)(now)
        if held.open and use:
            spans.append((now, use * MILLISECOND))
            now += use * MILLISECOND
            held.refill(now)
            held.left -= use * MILLISECOND
    for i, (first, _) in enumerate(spans):
        total = 0
        for start, use in spans[i:]:
            assert total <= bandwidth * (start - first) + 2 * budget, "before each of its steps"
            total += use


# --- admission ------------------------------------------------------------------------------------------------------


def test_a_device_takes_reserves_up_to_four_fifths_and_says_whose_they_are() -> None:
    sim = simulate(devices=2, journal=False)
    program, alice = sim.program(), sim.program("alice", uid=1001)
    sim.kernel.programs[alice.peer].rights = int(Right.ALL)
    hers = spawn(alice, 1, sched_class=RT, budget=0.2, period=1.0)
    her_pid = pids.pid_of(1001, hers)
    first = spawn(program, 2, name="first", sched_class=RT, budget=0.5, period=1.0)
    error = refused(program, Spawn("sim", tokens=[3], sched_class=RT, budget=0.02, period=0.1))
    assert error.errno is Errno.EBUSY
    assert "20% more" in error.reason
    assert f"50% process {first} (first)" in error.reason
    assert f"process 1001:{hers}" in error.reason, "an operator sees all"
    error = refused(alice, Setsched(hers, sched_class=RT, budget=0.31, period=1.0))
    assert (error.errno, "first" in error.reason) == (Errno.EBUSY, False)
    assert "50% others" in error.reason
    assert alice.call(Getinfo(hers)).budget == 0.2, "as before"
    alice.call(Setsched(hers, budget=0.3, period=1.0))
    assert (program.call(Getinfo(her_pid)).budget, program.call(Getinfo(her_pid)).period) == (0.3, 1.0)
    elsewhere = spawn(program, 4, sched_class=RT, budget=0.7, period=1.0, device="sim1")
    assert refused(program, Setsched(first, device="sim1")).errno is Errno.EBUSY
    program.call(Exit(elsewhere))
    program.call(Setsched(first, device="sim1"))
    assert set(sim.kernel.devices["sim1"].reserves) == {first}
    assert set(sim.kernel.devices["sim0"].reserves) == {her_pid}
    spawn(program, 3, sched_class=RT, budget=0.5, period=1.0)


def test_whoever_ends_or_becomes_fair_gives_its_part_back() -> None:
    sim = simulate()
    program = sim.program()
    full: dict[str, Any] = {"sched_class": RT, "budget": 0.8, "period": 1.0}
    pid = spawn(program, 1, **full)
    assert refused(program, Spawn("sim", tokens=[2], sched_class=RT)).errno is Errno.EBUSY
    program.call(Setsched(pid, sched_class=SchedClass.BATCH))
    assert program.call(Getinfo(pid)).budget == 0
    second = spawn(program, 2, **full)
    program.call(Kill(second))
    spawn(program, 3, **full)
    alone = refused(simulate().program(), Spawn("sim", tokens=[2], sched_class=RT, budget=0.9, period=1.0))
    assert "of at most 80% nothing is reserved" in alone.reason
    assert refused(program, Spawn("nowhere", tokens=[2], sched_class=RT)).errno is Errno.EBUSY
    failed = sim.program()
    program.call(Exit(max(sim.kernel.devices["sim0"].reserves)))
    assert refused(failed, Spawn("sim", tokens=[5000], **full)).errno is Errno.EINVAL
    assert not sim.kernel.devices["sim0"].reserves, "one that was never born has nothing"


def test_a_reserve_that_cannot_be_is_refused() -> None:
    sim = simulate()
    program = sim.program()
    for budget, period in ((0.2, 0.1), (0.0001, 0.1), (0.001, 0.001), (0.0, 0.001)):
        error = refused(program, Spawn("sim", tokens=[1], sched_class=RT, budget=budget, period=period))
        assert error.errno is Errno.EINVAL
    pid = spawn(program, 1)
    for call in (Spawn("sim", tokens=[1], budget=0.1), Setsched(pid, period=0.1)):
        assert "realtime" in refused(program, call).reason
    program.call(Setsched(pid, sched_class=RT))
    info = program.call(Getinfo(pid))
    assert (info.budget, info.period) == (0.01, 0.1)
    program.call(Setsched(pid, period=1.0))
    assert program.call(Getinfo(pid)).budget == 0.1, "the same part of it"


def test_setting_a_reserve_anew_gives_nothing_back_of_what_was_used() -> None:
    sim = simulate(frames=700, max_runs=1, options=LONG)
    program = sim.program()
    crowd(program, 3)
    pid = spawn(program, 1, sched_class=RT, budget=0.02, period=1.0)
    decode(program, pid)
    sim.run_until(lambda: process(sim, pid).sched_class is not RT)
    for _ in range(5):
        program.call(Setsched(pid, sched_class=RT, budget=0.02, period=1.0))
        assert process(sim, pid).sched_class is SchedClass.FAIR


# --- who may --------------------------------------------------------------------------------------------------------


def test_what_is_stronger_than_the_default_needs_a_right(tmp_path: Any) -> None:
    sim = simulate()
    operator = sim.program()
    plain = sim.program("plain", Right.ALL & ~Right.PRIORITY)
    other = sim.program("other", uid=1001)
    strong = spawn(operator, 1, nice=-5, sched_class=RT)
    for program in (plain, other):
        pid = spawn(program, 2, nice=5)
        for more in ({"nice": -1}, {"sched_class": RT}):
            assert refused(program, Spawn("sim", tokens=[2], **more)).errno is Errno.EPERM
            assert "PRIORITY" in refused(program, Setsched(pid, **more)).reason
        program.call(Setsched(pid, nice=0, sched_class=SchedClass.FAIR))
    assert refused(plain, Setsched(strong, budget=0.05)).errno is Errno.EPERM
    assert refused(plain, Setsched(strong, nice=-6)).errno is Errno.EPERM
    plain.call(Setsched(strong, nice=-4, budget=0.005))
    (child,) = plain.call(Fork(strong))
    (own,) = operator.call(Fork(strong))
    for pid, nice in ((child, 0), (own, -4)):
        assert (process(sim, pid).traits.nice, process(sim, pid).traits.sched_class) == (nice, SchedClass.FAIR)
    path = str(tmp_path / "image")
    operator.call(Checkpoint(strong, path))
    restored = process(sim, plain.call(Restore(path)))
    assert (restored.traits.nice, restored.traits.sched_class, restored.reserve) == (0, SchedClass.FAIR, None)
    assert any("has to be set anew" in line.text for line in sim.log)


# --- and the kernel's death -----------------------------------------------------------------------------------------


def test_reserves_outlive_the_kernel() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(program, 1, sched_class=RT, budget=0.5, period=1.0)
    other = spawn(program, 2, sched_class=RT, budget=0.6, period=1.0, device="sim1")
    sim.kill()
    sim.boot_again()
    assert (process(sim, pid).reserve or Reserve(1, 1)).budget == nanoseconds(0.5)
    assert process(sim, pid).sched_class is RT
    del sim.config["sim1"], sim.file.devices[1]
    sim.kill()
    sim.boot_again()
    classes = {process(sim, one).traits.sched_class for one in (pid, other)}
    assert classes == {RT, SchedClass.FAIR}, "one device cannot take both"
    assert any("is FAIR from here on" in line.text for line in sim.log)


# --- what a step in flight owes it ----------------------------------------------------------------------------------


def left_out(sim: Simulation, pids: list[int]) -> int:
    """Run until a step is in flight that began while one of the processes waited; returns which."""
    device = sim.kernel.devices["sim0"]

    def waiting() -> list[int]:
        flight = device.in_flight
        return [
            pid for pid in pids if flight and process(sim, pid) in device.queue and process(sim, pid).since < flight.began
        ]

    sim.run_until(lambda: bool(waiting()), limit=1.0)
    return waiting()[0]


def in_next_step(sim: Simulation, pid: int) -> bool:
    before = sim.kernel.devices["sim0"].steps
    sim.run_until(lambda: sim.kernel.devices["sim0"].steps > before)
    flight = sim.kernel.devices["sim0"].in_flight
    return flight is not None and process(sim, pid) in flight.processes


def test_who_becomes_realtime_during_a_step_is_in_the_next_one() -> None:
    sim = simulate(frames=700, max_runs=2, options=LONG)
    program = sim.program()
    pid = left_out(sim, crowd(program, 6))
    program.call(Setsched(pid, sched_class=RT))
    invariants.check(sim.kernel)
    assert in_next_step(sim, pid)


def test_a_changed_budget_that_was_refilled_during_a_step_is_no_older() -> None:
    sim = simulate(frames=700, max_runs=2, options={**LONG, "overhead": "0.03"})
    program = sim.program()
    crowd(program, 6, nice=-20)
    pid = spawn(program, 1, sched_class=RT, budget=0.01, period=0.1, nice=19)
    decode(program, pid)
    one, device = process(sim, pid), sim.kernel.devices["sim0"]

    def refilled() -> bool:
        held, flight = one.reserve, device.in_flight
        assert held is not None
        return held.open and flight is not None and one.since < flight.began < held.since

    sim.run_until(refilled, limit=5.0)
    program.call(Setsched(pid, budget=0.02, period=0.1))
    invariants.check(sim.kernel)
    assert in_next_step(sim, pid)


def test_a_step_is_as_large_as_it_was_when_it_was_planned() -> None:
    sim = simulate(frames=700, max_runs=1, options=LONG)
    program = sim.program()
    pids = crowd(program, 3, sched_class=RT, budget=0.2, period=1.0)
    pid = left_out(sim, pids)
    program.call(Sched("", max_runs=4, step_tokens=32))
    invariants.check(sim.kernel)
    assert in_next_step(sim, pid)


def test_a_prompt_that_is_cut_to_one_token_during_a_step_had_been_a_prompt() -> None:
    sim = simulate(frames=700, max_runs=4, step_tokens=24, options=LONG)
    program = sim.program()
    crowd(program, 2)
    prompts = [program.call(Spawn("sim", tokens=[5], sched_class=RT, budget=0.2, period=1.0)) for _ in range(2)]
    for pid in prompts:
        program.call(Feed(pid, tokens=list(range(10 * pid, 10 * pid + 200))))
    pid = left_out(sim, prompts)
    program.call(Truncate(pid, process(sim, pid).table.cached + 2))
    assert process(sim, pid).todo == 1, "the last one is not computed ahead"
    invariants.check(sim.kernel)
    assert in_next_step(sim, pid)


def test_a_suspect_that_its_group_holds_back_leaves_the_step_to_the_others() -> None:
    sim = simulate(frames=700, max_runs=4, options=LONG)
    program = sim.program()
    program.call(GroupCreate("g", GroupSettings()))
    suspect = spawn(program, 1, group="g", sched_class=RT, budget=0.2, period=1.0)
    others = [spawn(program, 100 + i) for i in range(3)]
    decode(program, suspect)
    sim.run_for(0.01)
    assert process(sim, suspect).state is State.RUNNING
    sim.crash()
    sim.run_until(lambda: process(sim, suspect).crashes == 1)
    for pid in others:
        decode(program, pid)
    program.call(GroupSet("g", GroupSettings(tokens_total=1)))
    device = sim.kernel.devices["sim0"]
    sim.run_until(lambda: device.in_flight is not None)
    assert device.in_flight is not None
    assert sorted(p.pid for p in device.in_flight.processes) == others


def test_a_prompt_for_which_a_step_has_no_tokens_keeps_its_place_in_it() -> None:
    sim = simulate(frames=700, max_runs=3, step_tokens=24, options={**LONG, "stream_tokens": "4"})
    program = sim.program()
    device = sim.kernel.devices["sim0"]
    streams = [process(sim, pid) for pid in crowd(program, 3, sched_class=RT, budget=0.1, period=1.0)]
    for i in range(2):  # their periods end first
        pid = spawn(program, 5 + i, sched_class=RT, budget=0.1, period=0.5)
        program.start(Feed(pid, tokens=list(range(50 * i, 50 * i + 200))))

    def waits() -> bool:
        flight = device.in_flight
        return bool(flight and flight.passed and any(p in device.queue and p.since < flight.began for p in streams))

    sim.run_until(waits, limit=1.0)
    assert device.in_flight is not None
    assert len(device.in_flight.processes) < 3
    assert device.in_flight.tokens < 24
    invariants.check(sim.kernel)
