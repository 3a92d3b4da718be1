"""Swap: KV that goes to a lower tier and comes back, and nothing else than that is different."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.drivers.protocol import Move, Step, StepDone
from llmasos.kernel.clock import MILLISECOND, SECOND
from llmasos.kernel.groups.group import Group
from llmasos.kernel.marks import cancel_outs
from llmasos.kernel.memory.swap import Slot, SwapCost, SwapSpace
from llmasos.kernel.memory.victims import Clock
from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import Simulation, simulate, slots
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind, Sampler, Signal, State
from llmasos.syscalls.table import Decode, Kill, Models, Spawn, StatsCall, Truncate
from tests.kernel.machines.core import Core
from tests.kernel.machines.swapping import Swapping, SwappingAndGuessing, SwappingBadly

PROMPT = list(range(40))


def swapping(frames: int = 12, places: int = 64, **options: str) -> Simulation:
    return simulate(frames=frames, options={"swap": slots(places), **options})


def row(sim: Simulation, pid: int) -> LLMProcess:
    return sim.kernel.table.llm(pid)


TestSwapping = Swapping.TestCase
TestSwappingBadly = SwappingBadly.TestCase
TestSwappingAndGuessing = SwappingAndGuessing.TestCase
TestSwapping.settings = TestSwappingBadly.settings = TestSwappingAndGuessing.settings = Core.TestCase.settings


def agents(sim: Simulation, count: int, length: int = 100) -> list[int]:
    program = sim.program()
    prompts = [[i] * 3 + list(range(length)) for i in range(count)]
    return [program.call(Spawn("sim", tokens=prompt, sampler=Sampler())) for prompt in prompts]


def test_contexts_that_do_not_fit_together_take_turns_without_being_computed_again() -> None:
    sim = swapping(frames=8)
    program, pids = sim.program(), agents(sim, 4)
    for _ in range(5):
        for pid in pids:
            before = list(row(sim, pid).log)
            assert program.call(Decode(pid, 3)).tokens == sim.continuation(before, 3, Sampler())
    for pid in pids:
        account = row(sim, pid).account
        assert account.preemptions >= 4
        assert account.computed == len(row(sim, pid).log) - 1
    assert sim.kernel.counters["moved_in"] >= 4 * 4 * 6


def test_places_are_told_of_each_tier() -> None:
    sim = swapping(frames=8)
    program, pids = sim.program(), agents(sim, 4)
    for pid in pids:
        program.call(Decode(pid, 3))
    (model,) = (one for one in program.call(Models()) if one.frames)
    assert model.tier_slots == [64] == [model.slots]
    assert model.tier_slots_free == [model.slots_free] != [64]
    space = SwapSpace([2, 3], 16)
    taken = [space.take() for _ in range(3)]
    assert (space.counts, space.frees) == ([2, 3], [0, 2])
    space.give(Slot(1, 0))
    assert space.frees == [1, 2]
    assert None not in taken


def test_a_tier_has_a_million_places_of_a_model_at_most() -> None:
    sim = simulate(options={"swap": "4t"}, checked=False)
    sim.program().call(Spawn("sim", tokens=PROMPT))
    assert sim.program().call(Models())[-1].tier_slots == [1 << 20]


def test_blocks_that_have_not_changed_are_not_written_again() -> None:
    sim = swapping(frames=8)
    program, pids = sim.program(), agents(sim, 2)
    for _ in range(10):
        for pid in pids:
            program.call(Decode(pid, 1))
    # each time the last block, the only one that grows; the first time all seven
    assert sim.kernel.counters["moved_out"] <= 2 * (7 + 10 + 1)


def test_stop_frees_the_frames_at_once_and_cont_goes_on_where_it_was() -> None:
    sim = swapping()
    program, (pid,) = sim.program(), agents(sim, 1)
    log = list(row(sim, pid).log)
    decoding = program.start(Decode(pid, 30))
    sim.run_for(0.02)
    program.call(Kill(pid, Signal.STOP))
    sim.run_idle()
    process = row(sim, pid)
    assert process.state is State.STOPPED
    assert not process.table.frames
    assert process.image is not None
    assert process.image.pool.available == process.image.pool.count
    assert not decoding.done
    computed = process.account.computed
    program.call(Kill(pid, Signal.CONT))
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(log, 30, Sampler())
    assert process.account.computed == len(process.log) - 1 >= computed


def test_what_is_lost_or_could_not_be_written_is_computed_again_and_logged() -> None:
    sim = swapping(frames=8, lose_every="4", unwritten_every="9")
    program, pids = sim.program(), agents(sim, 3)
    for _ in range(6):
        for pid in pids:
            before = list(row(sim, pid).log)
            assert program.call(Decode(pid, 2)).tokens == sim.continuation(before, 2, Sampler())
    assert sim.driver().incarnation == 1
    said = "\n".join(line.text for line in sim.log)
    assert "could not be moved in" in said
    assert "could not be moved out" in said


def test_frames_of_one_process_or_model_stay_where_they_are_and_those_of_others_are_moved() -> None:
    sim = swapping()
    device = sim.kernel.devices["sim0"]

    def left(**whose: int) -> list[tuple[int, int]]:
        device.outs = [Move(image, ctx, 0, 2, 0) for image, ctx in ((1, 5), (1, 6), (2, 7))]
        cancel_outs(sim.kernel, device, **whose)
        found, device.outs = [(move.image, move.ctx) for move in device.outs], []
        return found

    assert left(pid=5) == [(1, 6), (2, 7)]
    assert left(image=1) == [(2, 7)]
    assert left(pid=9) == left(image=9) == [(1, 5), (1, 6), (2, 7)]


def test_costs_are_picoseconds_a_token_there_and_back() -> None:
    cost: Any = SwapCost()
    assert cost.time(10, 0) == 20 * 1000 * SECOND, "a second a token until something is known"
    cost.computed(64, 64_000)
    cost.moved(16, 4_000)
    assert (cost.pays, cost.time(10, 0)) == (True, 20 * 250_000)
    assert cost.time(10, 10) == 10 * 250_000, "what lies below already goes one way only"
    for _ in range(50):
        cost.moved(16, 64_000)
    assert not cost.pays
    assert cost.time(10, 3) == 10 * 1_000_000


def test_moves_are_counted_as_the_driver_made_them() -> None:
    for unwritten in ("0", "7"):
        sim = swapping(frames=8, unwritten_every=unwritten)
        failed = list[int]()
        driver: Any = sim.driver()

        def step(message: Step, device: Any = driver.device, failed: list[int] = failed) -> StepDone:
            done: StepDone = type(device).step(device, message)
            failed += done.unwritten
            return done

        driver.device.step = step
        program, pids = sim.program(), agents(sim, 3)
        for pid in pids * 3:
            program.call(Decode(pid, 3))
        stats = program.call(StatsCall())
        assert stats.moved_in == sum(len(step.ins) for step in sim.steps) > 0
        assert stats.moved_out == sum(len(step.outs) for step in sim.steps) - len(failed) > 0
        assert bool(failed) == (unwritten != "0")
        assert not any("could not be moved in" in line.text for line in sim.log), "what was not written is asked for"


def test_copies_of_what_has_frames_make_room_in_a_lower_tier_for_what_loses_them() -> None:
    sim = swapping(frames=16, places=8)
    program, (first, second) = sim.program(), agents(sim, 2)  # seven frames each
    for signal in (Signal.STOP, Signal.CONT):
        program.call(Kill(first, signal))
        sim.run_idle()
    program.call(Decode(first, 1))  # it has its frames again, and copies of them below
    assert len(row(sim, first).table.kept) == 7
    program.call(Kill(second, Signal.STOP))
    assert len(row(sim, second).table.kept) == 7
    assert not row(sim, first).table.kept


def test_only_what_has_frames_is_counted_as_lying_in_a_lower_tier_too() -> None:
    sim = swapping(frames=8)
    program, pids = sim.program(), agents(sim, 2)
    program.call(Decode(pids[0], 1))  # one of the two has frames
    tables = [row(sim, pid).table for pid in pids]
    assert [bool(table.frames) for table in tables] == [True, False]
    assert [bool(table.kept) for table in tables] == [True, True]
    assert [table.clean for table in tables] == [102, 0], "all of its 103 tokens but the last"


def test_a_cut_log_forgets_what_lies_behind_it() -> None:
    sim = swapping()
    program, (pid,) = sim.program(), agents(sim, 1)
    program.call(Kill(pid, Signal.STOP))
    sim.run_idle()
    program.call(Truncate(pid, 37))
    table = row(sim, pid).table
    assert {block: kept.tokens for block, kept in table.kept.items()} == {0: 16, 1: 16, 2: 5}
    program.call(Kill(pid, Signal.CONT))
    before = list(row(sim, pid).log)
    assert program.call(Decode(pid, 9)).tokens == sim.continuation(before, 9, Sampler())


def test_what_dies_with_the_driver_is_computed_again() -> None:
    sim = swapping(frames=8)
    program, pids = sim.program(), agents(sim, 2)
    sim.run_idle()
    sim.crash()
    sim.run_for(1.0)
    for pid in pids:
        before = list(row(sim, pid).log)
        assert program.call(Decode(pid, 2)).tokens == sim.continuation(before, 2, Sampler())


def test_where_computing_is_faster_nothing_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmasos.kernel.memory.swap._TRIAL", 1_000_000)  # nor tried again while this lasts
    sim = simulate(frames=20, step_tokens=64, options={"swap": slots(64), "link": "1e4", "overhead": "0.00001"})
    program, pids = sim.program(), agents(sim, 6, length=60)
    for _ in range(8):
        for pid in pids:
            program.call(Decode(pid, 1))
    moved = sim.kernel.counters["moved_out"]
    for _ in range(4):
        for pid in pids:
            program.call(Decode(pid, 1))
    assert sim.kernel.counters["moved_out"] == moved
    assert sum(row(sim, pid).account.preemptions for pid in pids) > 8


def lost_pages(victims: str, wake: bool) -> list[int]:
    """Which of four sleepers with contexts of their own have lost their pages when a fifth wants some: 1 came first, 4
    last; with `wake` the first has run again since."""
    sim = simulate(frames=26, victims=victims, options={"swap": slots(64)})
    program, pids = sim.program(), agents(sim, 4, length=85)
    for pid in [*pids, *(pids[:1] if wake else [])]:
        program.call(Decode(pid, 1))
        sim.run_for(1.0)
    assert all(row(sim, pid).table.frames for pid in pids)
    program.call(Spawn("sim", tokens=[9] * 50))
    sim.run_idle()
    return [number for number, pid in enumerate(pids, 1) if not row(sim, pid).table.frames]


@pytest.mark.parametrize(
    ("victims", "wake", "lost"),
    [("lru", False, [1]), ("lru", True, [2]), ("fifo", True, [1]), ("clock", True, [1]), ("cost", True, [2])],
)
def test_who_loses_pages_is_as_the_policy_says(victims: str, wake: bool, lost: list[int]) -> None:
    assert lost_pages(victims, wake) == lost


def test_the_clock_gives_a_second_chance() -> None:
    clock, rows = Clock(), [LLMProcess(pid, 1, Kind.LLM, "", Group(), 0) for pid in (1, 2, 3)]
    for process in rows:
        clock.came(process)
    clock.ran(rows[0])
    assert clock.choose(rows, 0) is rows[1]
    clock.gone(rows[1])
    assert clock.choose([rows[0], rows[2]], 0) is rows[2], "the hand has gone by the first"
    clock.gone(rows[2])
    clock.ran(rows[0])
    assert clock.choose(rows[:1], 0) is rows[0], "once round, nobody is left but the first"
    assert clock.choose([], 0) is None


def test_an_unknown_policy_is_refused_at_boot() -> None:
    with pytest.raises(SyscallError, match="cost, lru, fifo, clock") as caught:
        simulate(victims="random")
    assert caught.value.errno is Errno.EINVAL


# --- the parts ------------------------------------------------------------------------------------------------------


def test_places_are_taken_from_the_fastest_tier_that_has_one() -> None:
    space = SwapSpace([1, 2])
    taken = [space.take() for _ in range(4)]
    assert [slot.tier if slot else None for slot in taken] == [1, 2, 2, None]
    space.give(Slot(2, 1))
    assert space.take() == Slot(2, 1)
    with pytest.raises(AssertionError, match="places"):
        space.check([Slot(1, 0), Slot(2, 0)])
    space.check([Slot(1, 0), Slot(2, 0), Slot(2, 1)])


def test_the_cost_of_both_ways_decides_and_does_not_waver() -> None:
    assert SwapCost().pays
    cost = SwapCost()
    cost.moved(16, SECOND)
    cost.computed(32, SECOND)
    assert not cost.pays  # 1/16 s against 1/32 s
    cost = SwapCost()
    cost.moved(32, 1100 * MILLISECOND)
    cost.computed(32, SECOND)
    assert cost.pays
    for _ in range(50):
        cost.computed(32, 950 * MILLISECOND)
    assert cost.pays, "within the hysteresis"
    for _ in range(50):
        cost.computed(31, MILLISECOND)
    assert cost.pays, "steps of few tokens tell nothing"


def test_moving_that_did_not_pay_once_is_tried_again_less_and_less_often() -> None:
    cost = SwapCost()
    cost.computed(100, SECOND)
    waits = []
    for _ in range(4):
        cost.moved(100, 10 * SECOND)  # a disk that stands still
        assert not cost.pays
        waits.append(0)
        while not cost.pays:
            cost.computed(100, SECOND)
            waits[-1] += 1
    assert waits == [64, 128, 256, 512]
    for _ in range(100):
        cost.moved(100, 100 * MILLISECOND)
        cost.computed(100, SECOND)
        assert cost.pays
    cost = SwapCost()
    cost.computed(100, SECOND)
    cost.moved(100, 10 * SECOND)
    for _ in range(64):
        cost.computed(100, SECOND)
    cost.moved(100, 100 * MILLISECOND)
    cost.moved(100, 1000000 * SECOND)
    assert not cost.pays
    for _ in range(64):  # as the first time: it paid in between
        cost.computed(100, SECOND)
    assert cost.pays
