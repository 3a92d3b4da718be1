"""Scheduling, seen from outside: who gets tokens, when, and how many, under each policy and class."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import astuple, is_dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched import policies
from llmasos.kernel.sched.policies import MLFQ, Lottery, log2
from llmasos.simulator import Future, Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish, GroupSettings, Limits, SchedClass, Signal, State, WaitFor
from llmasos.syscalls.table import (
    Call,
    Decode,
    Feed,
    Getinfo,
    GroupCreate,
    Kill,
    Sched,
    Setlimits,
    Setsched,
    Spawn,
    StatsCall,
    Truncate,
)

# Linux's sched_prio_to_weight (kernel/sched/core.c), from nice -20 to 19.
LINUX = [
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, 9548, 7620, 6100, 4904, 3906, 3121, 2501, 1991,
    1586, 1277, 1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
]  # fmt: skip
ENDLESS = 400  # tokens: more than any of these tests lets a process decode


def spawn(program: Prog, first: int, length: int = 1, **more: Any) -> int:
    return program.call(Spawn("sim", tokens=[first] * length, **more))


def start(program: Prog, pid: int, count: int = ENDLESS) -> Future[Any]:
    return program.start(Decode(pid, count))


def process(sim: Simulation, pid: int) -> LLMProcess:
    return sim.kernel.table.llm(pid)


def decoded(sim: Simulation, *pids: int) -> list[int]:
    return [process(sim, pid).account.decoded for pid in pids]


def turns(sim: Simulation) -> list[int]:
    """The processes of the steps so far, in order, when a step has one run."""
    return [step.runs[0].ctx for step in sim.steps]


def test_processes_that_come_and_go_behind_a_stronger_class_leave_nothing_in_the_queue() -> None:
    sim = simulate(max_runs=1, aging_seconds=1e9, checked=False)
    program = sim.program()
    start(program, spawn(program, 1, sched_class=SchedClass.REALTIME), 100)
    weak = spawn(program, 2, sched_class=SchedClass.IDLE)
    start(program, weak)
    queue = sim.kernel.devices["sim0"].queue
    for _ in range(5000):
        program.start(Kill(weak, Signal.STOP))
        program.start(Kill(weak, Signal.CONT))
    assert [p.pid for p in queue] == [weak]
    assert queue.entries() < 4000


# --- fair -----------------------------------------------------------------------------------------------------------


def test_a_process_has_the_weight_that_linux_gives_its_nice_value() -> None:
    sim = simulate()
    program = sim.program()
    pid = spawn(program, 1)
    unit = process(sim, pid).weight // 1024
    for nice, weight in zip(range(-20, 20), LINUX, strict=True):
        program.call(Setsched(pid, nice=nice))
        assert process(sim, pid).weight == weight * unit


def test_who_uses_up_its_quantum_sinks_through_four_levels_each_twice_as_long_and_rises_with_all() -> None:
    policy, one = MLFQ(8), SimpleNamespace(policy_state=None)
    process: Any = one
    policy.woke(process)
    level, used, levels = 0, 0, list[int]()
    for _ in range(8 * (1 + 2 + 4 + 8 + 8) // 4):
        levels.append(policy.key(process) >> 60)
        policy.ran(process, 4)
        used += 4
        assert levels[-1] == level
        if used >= 8 << level:
            level, used = min(level + 1, 3), 0
    assert [levels.count(one) * 4 for one in range(4)] == [8, 16, 32, 128]
    before = policy.key(process)
    policy.woke(process)
    assert policy.key(process) > before, "who comes back stays on its level, behind those that are there"
    other: Any = SimpleNamespace(policy_state=None)
    policy.woke(other)
    policy.ran(other, 8192)
    assert policy.key(process) >> 60 == 0, "every 8192 tokens all rise to the top"


def test_each_number_that_can_be_drawn_in_the_lottery_gives_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = 3
    process: Any = SimpleNamespace(policy_state=None, pid=1, virtual=lambda units: units * weight)
    for number, bits in ((0, 63), (1, 63), (2, 62), (6, 61), ((1 << 64) - 1, 0)):
        monkeypatch.setattr(policies, "mix", lambda stamp, pid, number=number: number)
        process.policy_state = None
        Lottery(8).woke(process)
        assert process.policy_state == (bits << 32) * weight


def test_tokens_are_shared_by_weight() -> None:
    sim = simulate(max_runs=1)
    program = sim.program()
    nices = [0, 0, 5, -5]
    pids = [spawn(program, i + 1, nice=nice) for i, nice in enumerate(nices)]
    for pid in pids:
        start(program, pid)
    sim.run_for(0.5)
    got = decoded(sim, *pids)
    weights = [1.25**-nice for nice in nices]
    for share, weight in zip(got, weights, strict=True):
        assert share / sum(got) == pytest.approx(weight / sum(weights), rel=0.1)


def test_a_change_of_nice_changes_the_shares_from_then_on() -> None:
    sim = simulate(max_runs=1)
    program = sim.program()
    a, b = spawn(program, 1), spawn(program, 2)
    start(program, a), start(program, b)
    sim.run_for(0.1)
    before = decoded(sim, a, b)
    assert abs(before[0] - before[1]) <= 1
    program.call(Setsched(b, nice=-10))
    sim.run_for(0.3)
    gained = [x - y for x, y in zip(decoded(sim, a, b), before, strict=True)]
    assert gained[1] / gained[0] == pytest.approx(1.25**10, rel=0.15)


def test_who_slept_has_earned_no_credit() -> None:
    sim = simulate(max_runs=1)
    program = sim.program()
    busy, sleeper = spawn(program, 1), spawn(program, 2)
    start(program, busy)
    sim.run_for(0.2)
    start(program, sleeper)
    before = decoded(sim, busy)[0]
    sim.run_for(0.05)
    gained = decoded(sim, busy)[0] - before
    assert abs(gained - decoded(sim, sleeper)[0]) <= 2


@pytest.mark.parametrize("nice", [19, 10, -10])
def test_a_newcomer_is_not_kept_waiting_for_what_others_did_before(nice: int) -> None:
    """With room for everybody in every step nobody is behind: weights say nothing until there is a shortage."""
    sim = simulate(max_runs=2, options={"context": "8192"}, frames=2000, checked=False)
    program = sim.program()
    old, odd = spawn(program, 1), spawn(program, 2, nice=nice)
    start(program, old, 8000), start(program, odd, 8000)
    sim.run_for(1.0)
    program.call(Sched(max_runs=1))
    new = spawn(program, 3)
    start(program, new)
    before = decoded(sim, old, odd, new)
    sim.run_for(0.2)
    gained = [x - y for x, y in zip(decoded(sim, old, odd, new), before, strict=True)]
    assert gained[2] == pytest.approx(gained[0], rel=0.2)
    assert gained[1] > 0 or nice == 19


# --- the other policies ---------------------------------------------------------------------------------------------


def begin(policy: str, count: int = 3, **more: Any) -> tuple[Simulation, Prog, list[int]]:
    sim = simulate(max_runs=1, policy=policy, **more)
    program = sim.program()
    pids = [spawn(program, i + 1) for i in range(count)]
    for pid in pids:
        start(program, pid)
    return sim, program, pids


def test_first_come_is_served_to_the_end() -> None:
    sim = simulate(max_runs=1, policy="fcfs")
    program = sim.program()
    pids = [spawn(program, i + 1) for i in range(3)]
    futures = [start(program, pid, 20) for pid in pids]
    sim.run_until(lambda: all(f.done for f in futures))
    assert turns(sim) == [pids[0]] * 20 + [pids[1]] * 20 + [pids[2]] * 20


def test_round_robin_gives_a_quantum_to_each_in_turn() -> None:
    sim, _, pids = begin("round_robin", quantum=8)
    sim.run_for(0.2)
    order = turns(sim)[:72]
    assert order == [pid for _ in range(3) for pid in pids for _ in range(8)]


def test_multi_level_feedback_serves_newcomers_before_those_who_used_much() -> None:
    sim, program, pids = begin("mlfq", count=2, quantum=8)
    sim.run_for(0.1)
    assert set(turns(sim)) == set(pids)
    short = spawn(program, 9)
    future = start(program, short, 8)
    seen = len(sim.steps)
    sim.run_until(lambda: future.done)
    assert turns(sim)[seen + 1 :].count(short) >= 8 - 1
    assert len(sim.steps) - seen <= 9


@pytest.mark.long
def test_multi_level_feedback_lets_nobody_starve() -> None:
    sim, program, pids = begin("mlfq", count=1, quantum=8, options={"context": "16384"}, frames=2000, checked=False)
    sim.run_for(0.2)
    before = decoded(sim, *pids)[0]
    end = sim.now + 12.0
    fresh = 100
    while sim.now < end:  # an endless stream of short jobs, each as strong as can be
        fresh += 1
        pid = spawn(program, fresh % 900)
        program.call(Decode(pid, 8))
        program.call(Kill(pid, Signal.KILL))
    assert decoded(sim, *pids)[0] > before


def test_a_lottery_gives_each_its_share_of_tickets_in_the_long_run() -> None:
    sim = simulate(max_runs=1, policy="lottery", options={"context": "4096"}, frames=2000, checked=False)
    program = sim.program()
    nices = [0, 0, -5]
    pids = [spawn(program, i + 1, nice=n) for i, n in enumerate(nices)]
    for pid in pids:
        start(program, pid, 4000)
    sim.run_for(2.0)
    got = decoded(sim, *pids)
    weights = [1.25**-n for n in nices]
    for share, weight in zip(got, weights, strict=True):
        assert share / sum(got) == pytest.approx(weight / sum(weights), rel=0.15)
    assert any(a == b for a, b in pairwise(turns(sim))), "a lottery has runs of luck"


@pytest.mark.parametrize("policy", ["fair", "fcfs", "round_robin", "mlfq", "lottery"])
def test_every_policy_ends_every_decode_with_the_right_tokens_under_pressure(policy: str) -> None:
    sim = simulate(frames=14, max_runs=4, step_tokens=24, policy=policy, quantum=8)
    program = sim.program()
    prompts = [[i + 1] * 20 for i in range(6)]
    pids = [program.call(Spawn("sim", tokens=p)) for p in prompts]
    futures = [start(program, pid, 60) for pid in pids]
    sim.run_until(lambda: all(f.done for f in futures), limit=100.0)
    for prompt, future in zip(prompts, futures, strict=True):
        assert future.value.tokens == sim.continuation(prompt, 60)
    assert sim.kernel.counters["preemptions"] > 0


# --- the same order everywhere --------------------------------------------------------------------------------------

# Of `mixed`, by the places of the processes in it. An order that changes is a change of behaviour, to be meant.
ORDERS = {
    "fair": "012333332333323033224444424140442444222202000000100111111111",
    "fcfs": "000000000000111111111111222222222222333333333333444444444444",
    "round_robin": "000111222333000111222333000111444222333000111444222333444444",
    "mlfq": "000111222333000000114441111222222333333444444000111222333444",
    "lottery": "031233332330333332224444044424442144220220020010010011111111",
}


def mixed(policy: str) -> tuple[Simulation, list[int]]:
    """Processes of several weights, at two levels, that decode a dozen tokens each; one of them comes later."""
    sim = simulate(max_runs=1, policy=policy, quantum=3)
    program = sim.program()
    program.call(GroupCreate("/a", GroupSettings(cpu_weight=250)))
    more: list[dict[str, Any]] = [{}, {"nice": 3}, {"nice": -4}, {"group": "/a"}, {"group": "/a", "nice": 1}]
    pids = [spawn(program, i + 1, **which) for i, which in enumerate(more)]
    futures = [start(program, pid, 12) for pid in pids[:-1]]
    sim.run_until(lambda: len(sim.steps) == 20)
    futures.append(start(program, pids[-1], 12))
    sim.run_until(lambda: all(f.done for f in futures))
    return sim, pids


def numbers(value: object) -> list[object]:
    """What a policy's record of a process is made of."""
    return list(astuple(value)) if is_dataclass(value) and not isinstance(value, type) else [value]


@pytest.mark.parametrize("policy", ORDERS)
def test_the_order_of_steps_is_the_same_on_every_machine(policy: str) -> None:
    sim, pids = mixed(policy)
    assert "".join(str(pids.index(pid)) for pid in turns(sim)) == ORDERS[policy]
    for pid in pids:
        of = process(sim, pid)
        for number in [of.key, of.ticket, of.weight, *numbers(of.policy_state)]:
            assert not isinstance(number, float), (number, of.policy_state)


@given(st.integers(1, 2**64 - 1))
def test_a_logarithm_in_fixed_point_is_the_next_smaller_one(number: int) -> None:
    exact = math.log2(number) * 2**32
    assert -1 - 2**-13 <= log2(number) - exact <= 2**-13  # which is what a float cannot say
    assert log2(1 << number.bit_length() - 1) == (number.bit_length() - 1) << 32


def test_a_policy_can_be_changed_while_processes_wait() -> None:
    sim, program, pids = begin("fcfs", count=3)
    sim.run_for(0.02)
    assert set(turns(sim)) == {pids[0]}
    assert program.call(Sched(policy="round_robin")).policy == "round_robin"
    sim.run_for(0.2)
    assert set(turns(sim)) == set(pids)
    with pytest.raises(SyscallError, match="no scheduling policy 'best'") as caught:
        program.call(Sched(policy="best"))
    assert caught.value.errno is Errno.EINVAL
    with pytest.raises(SyscallError) as caught:
        program.call(Sched(device="gpu7"))
    assert caught.value.errno is Errno.ENODEV


# --- classes --------------------------------------------------------------------------------------------------------


def test_a_stronger_class_goes_first() -> None:
    sim = simulate(max_runs=1, aging_seconds=1000.0)
    program = sim.program()
    order = [SchedClass.IDLE, SchedClass.BATCH, SchedClass.FAIR, SchedClass.REALTIME]
    pids = [spawn(program, i + 1, sched_class=c) for i, c in enumerate(order)]
    futures = [start(program, pid, 10) for pid in pids]
    sim.run_until(lambda: all(f.done for f in futures))
    assert [f.at for f in futures] == sorted((f.at for f in futures), reverse=True)


@pytest.mark.parametrize("weak", [SchedClass.IDLE, SchedClass.BATCH])
def test_a_weak_class_waits_no_longer_than_the_aging_bound_for_each_token(weak: SchedClass) -> None:
    sim = simulate(max_runs=1, aging_seconds=0.05, options={"context": "2048"}, frames=400, checked=False)
    program = sim.program()
    for i in range(3):
        start(program, spawn(program, i + 1, sched_class=SchedClass.REALTIME), 2000)
    pid = spawn(program, 9, sched_class=weak)
    start(program, pid)
    gaps, last, seen = [], sim.now, 0
    while seen < 12:
        sim.run_until(lambda: decoded(sim, pid)[0] > seen, limit=2.0)  # noqa: B023
        gaps.append(sim.now - last)
        last, seen = sim.now, decoded(sim, pid)[0]
    step = 0.0012
    assert max(gaps) <= 0.05 + 6 * step, gaps


def test_aged_processes_of_two_weak_classes_both_get_on() -> None:
    sim = simulate(max_runs=1, aging_seconds=0.02)
    program = sim.program()
    start(program, spawn(program, 1, sched_class=SchedClass.FAIR))
    weak = [spawn(program, i, sched_class=c) for i, c in ((2, SchedClass.BATCH), (3, SchedClass.IDLE))]
    for pid in weak:
        start(program, pid)
    sim.run_for(0.4)
    assert all(n >= 4 for n in decoded(sim, *weak))


def test_a_process_promoted_while_it_waits_runs_next() -> None:
    sim = simulate(max_runs=1, aging_seconds=1000.0)
    program = sim.program()
    start(program, spawn(program, 1))
    idle = spawn(program, 2, sched_class=SchedClass.IDLE)
    future = start(program, idle, 5)
    sim.run_for(0.05)
    assert decoded(sim, idle) == [0]
    program.call(Setsched(idle, sched_class=SchedClass.REALTIME))
    seen = len(sim.steps)
    sim.run_until(lambda: future.done)
    assert len(sim.steps) - seen <= 6


# --- batching and prompts -------------------------------------------------------------------------------------------


def test_a_long_prompt_never_stalls_a_stream() -> None:
    sim = simulate(max_runs=4, step_tokens=16)
    program = sim.program()
    streams = [spawn(program, i + 1) for i in range(2)]
    for pid in streams:
        start(program, pid)
    sim.run_for(0.01)
    seen = len(sim.steps)
    prompt = program.start(Spawn("sim", tokens=list(range(300))))
    sim.run_until(lambda: prompt.done)
    sim.run_until(lambda: process(sim, prompt.value).table.cached >= 299)
    steps = list(sim.steps)[seen + 1 :]
    assert len(steps) >= 20
    for step in steps:
        assert {run.ctx for run in step.runs} >= set(streams)
        assert sum(len(run.tokens) for run in step.runs) <= 16


def test_a_step_is_as_full_as_it_may_be() -> None:
    sim = simulate(max_runs=3, step_tokens=32)
    program = sim.program()
    for i in range(5):
        start(program, spawn(program, i + 1))
    sim.run_for(0.1)
    assert Counter(len(step.runs) for step in list(sim.steps)[10:]).keys() == {3}


def test_the_batch_changes_at_run_time() -> None:
    sim = simulate(max_runs=3)
    program = sim.program()
    for i in range(5):
        start(program, spawn(program, i + 1))
    sim.run_for(0.02)
    info = program.call(Sched(max_runs=5, step_tokens=64))
    assert (info.max_runs, info.step_tokens) == (5, 64)
    sim.run_for(0.02)
    assert len(sim.steps[-1].runs) == 5


# --- memory ---------------------------------------------------------------------------------------------------------


def test_a_context_that_can_never_fit_is_refused_and_one_that_will_is_queued() -> None:
    sim = simulate(frames=8)
    program = sim.program()
    with pytest.raises(SyscallError, match="too long") as caught:
        program.call(Spawn("sim", tokens=[1] * 129))
    assert caught.value.errno is Errno.E2BIG
    first, second = spawn(program, 1, 100), spawn(program, 2, 100)
    futures = [start(program, pid, 20) for pid in (first, second)]
    sim.run_until(lambda: all(f.done for f in futures))
    assert [len(f.value.tokens) for f in futures] == [20, 20]
    with pytest.raises(SyscallError) as caught:
        program.call(Feed(first, [1] * 9))
    assert caught.value.errno is Errno.E2BIG


def test_who_waits_for_frames_says_so() -> None:
    sim = simulate(frames=8, quantum=1000, max_runs=4)
    program = sim.program()
    first, second = spawn(program, 1, 100), spawn(program, 2, 100)
    start(program, first, 28)
    start(program, second, 28)
    seen = set()
    for _ in range(400):
        sim.step()
        seen |= {(pid, process(sim, pid).wait) for pid in (first, second)}
    assert any(wait is WaitFor.PAGEIN for _, wait in seen)


def test_two_contexts_that_do_not_fit_together_do_not_take_each_others_pages_for_ever() -> None:
    for quantum in (1, 4, 32):
        sim = simulate(frames=10, quantum=quantum, step_tokens=16)
        program = sim.program()
        prompts = [[1] * 70, [2] * 70]
        futures = [start(program, program.call(Spawn("sim", tokens=p)), 58) for p in prompts]
        sim.run_until(lambda: all(f.done for f in futures), limit=20.0)  # noqa: B023
        assert [f.value.tokens for f in futures] == [sim.continuation(p, 58) for p in prompts]
        assert sim.kernel.counters["preemptions"] <= 2 * 128 / quantum + 4


def test_sleepers_lose_their_pages_before_anybody_who_works() -> None:
    sim = simulate(frames=12, max_runs=4)
    program = sim.program()
    sleepers = [spawn(program, i + 1, 60) for i in range(2)]
    sim.run_idle()
    worker, other = spawn(program, 8, 40), spawn(program, 9, 40)
    futures = [start(program, pid, 40) for pid in (worker, other)]
    sim.run_until(lambda: all(f.done for f in futures))
    assert [process(sim, pid).account.preemptions for pid in (worker, other)] == [0, 0]
    assert sum(process(sim, pid).account.preemptions for pid in sleepers) >= 1
    taken = next(pid for pid in sleepers if process(sim, pid).account.preemptions)
    assert process(sim, taken).state is State.BLOCKED
    log = list(process(sim, taken).log)
    assert program.call(Decode(taken, 3)).tokens == sim.continuation(log, 3, process(sim, taken).traits.sampler)


def test_a_stronger_class_takes_the_pages_of_a_weaker_one() -> None:
    sim = simulate(frames=8, max_runs=4)
    program = sim.program()
    idle = spawn(program, 1, 80, sched_class=SchedClass.IDLE)
    slow = start(program, idle, 40)
    sim.run_for(0.01)
    fast = start(program, spawn(program, 2, 80, sched_class=SchedClass.REALTIME), 40)
    sim.run_until(lambda: fast.done)
    assert not slow.done
    assert process(sim, idle).account.preemptions >= 1
    sim.run_until(lambda: slow.done)
    assert slow.value.tokens == sim.continuation([1] * 80, 40)


def test_equal_prompts_share_frames_and_count_what_was_reused() -> None:
    sim = simulate(frames=64)
    program = sim.program()
    prompt = list(range(100))
    first = program.call(Spawn("sim", tokens=prompt))
    sim.run_idle()
    second = program.call(Spawn("sim", tokens=prompt))
    sim.run_idle()
    info = program.call(Getinfo(second))
    assert info.usage.reused == program.call(StatsCall()).tokens_reused == 96
    assert info.usage.computed == 3  # the last token is computed when a decode wants its logits
    assert info.shared_pages == 6
    assert program.call(Decode(second, 10)).tokens == program.call(Decode(first, 10)).tokens
    third = program.call(Spawn("sim", tokens=[9, *prompt[1:]]))
    sim.run_idle()
    assert program.call(Getinfo(third)).usage.reused == 0


def test_what_an_exited_process_computed_is_still_found() -> None:
    sim = simulate(frames=64)
    program = sim.program()
    prompt = list(range(65))
    first = program.call(Spawn("sim", tokens=prompt))
    sim.run_idle()
    program.call(Kill(first, Signal.KILL))
    second = program.call(Spawn("sim", tokens=prompt))
    sim.run_idle()
    assert program.call(Getinfo(second)).usage.reused == 64


def test_a_truncated_and_refed_context_is_computed_anew_from_the_cut() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=list(range(50))))
    program.call(Decode(pid, 5))
    program.call(Truncate(pid, 20))
    program.call(Feed(pid, [7] * 30))
    log = [*range(20), *[7] * 30]
    assert program.call(Decode(pid, 6)).tokens == sim.continuation(log, 6)


# --- budgets and limits ---------------------------------------------------------------------------------------------


def test_a_token_budget_ends_the_decode_and_then_refuses() -> None:
    sim = simulate()
    program = sim.program()
    pid = spawn(program, 1, limits=Limits(tokens=12))
    assert program.call(Decode(pid, 8)).finish is Finish.LENGTH
    result = program.call(Decode(pid, 8))
    assert (result.finish, len(result.tokens)) == (Finish.BUDGET, 4)
    with pytest.raises(SyscallError, match="budget of 12") as caught:
        program.call(Decode(pid, 1))
    assert caught.value.errno is Errno.EDQUOT
    assert program.call(Setlimits(pid, Limits(tokens=14))) == Limits(tokens=12)
    assert len(program.call(Decode(pid, 8)).tokens) == 2


def test_a_context_limit_ends_the_decode_and_refuses_a_feed() -> None:
    sim = simulate()
    program = sim.program()
    pid = spawn(program, 1, 10, limits=Limits(context=15))
    result = program.call(Decode(pid, 50))
    assert (result.finish, len(result.tokens)) == (Finish.CONTEXT, 5)
    calls: list[Call[Any]] = [Feed(pid, [1]), Decode(pid, 1)]
    for call in calls:
        with pytest.raises(SyscallError, match="its own limit") as caught:
            program.call(call)
        assert caught.value.errno is Errno.E2BIG


def test_a_page_limit_bounds_the_context_by_whole_pages() -> None:
    sim = simulate()
    program = sim.program()
    pid = spawn(program, 1, 10, limits=Limits(pages=2))
    result = program.call(Decode(pid, 50))
    assert (result.finish, len(result.tokens)) == (Finish.CONTEXT, 22)
    assert program.call(Getinfo(pid)).pages == 2


def test_time_is_accounted_to_states_and_processes() -> None:
    sim = simulate(max_runs=1)
    program = sim.program()
    a, b = spawn(program, 1), spawn(program, 2)
    futures = [start(program, pid, 20) for pid in (a, b)]
    sim.run_until(lambda: all(f.done for f in futures))
    device = program.call(Getinfo(a)).usage.device_seconds
    assert device == pytest.approx(20 * 0.001, rel=0.2)
    waited = program.call(Getinfo(b)).usage.waits["ready"]
    assert waited == pytest.approx(20 * 0.001, rel=0.2)
