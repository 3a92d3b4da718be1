"""Thrashing: it is noticed, answered by longer turns for fewer processes, and shown; and it ends."""

from __future__ import annotations

import pytest

from llmasos.kernel.memory.thrash import MOST, WINDOW, Thrash
from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import Simulation, simulate
from llmasos.syscalls.records import Sampler
from llmasos.syscalls.table import Decode, Dmesg, Getinfo, Kill, Models, Spawn, StatsCall, Truncate
from tests.kernel.journaled import reboot


def test_the_quantum_is_stretched_while_too_much_is_lost_and_comes_back() -> None:
    thrash = Thrash()
    assert not thrash.spent(WINDOW // 2, WINDOW // 2)
    assert thrash.spent(WINDOW // 2, WINDOW // 2)
    assert (thrash.stretch, thrash.lost) == (2, 1.0)
    for _ in range(20):
        thrash.spent(WINDOW, WINDOW)
    assert thrash.stretch == MOST
    assert not thrash.spent(WINDOW, WINDOW // 5)
    for _ in range(20):
        thrash.spent(WINDOW, 0)
    assert thrash.stretch == 1


def crowd(quantum: int) -> tuple[Simulation, list[int]]:
    """Twelve processes that all want to run, with frames for less than three."""
    sim = simulate(frames=26, quantum=quantum, max_runs=8, step_tokens=16, aging_seconds=0.004, checked=False)
    program = sim.program()
    pids = [program.call(Spawn("sim", tokens=[i, *range(140)], sampler=Sampler())) for i in range(12)]
    for pid in pids:
        program.start(Decode(pid, 350, [], None, wait=False))
    return sim, pids


@pytest.mark.long
def test_a_device_that_thrashes_gives_longer_turns_and_loses_less_time() -> None:
    sim, pids = crowd(quantum=4)
    sim.run_for(2.5)
    (model,) = [m for m in sim.programs[0].call(Models()) if m.frames]
    assert model.stretch > 1
    assert 1.0 >= model.lost > 0.4
    stats = sim.programs[0].call(StatsCall())
    infos = [sim.programs[0].call(Getinfo(pid)) for pid in pids]
    assert stats.refaults == sum(info.usage.refaults for info in infos) > 10
    assert any("thrashes" in line.text and line.level == "warning" for line in sim.log)
    sim.run_until(lambda: sum(sim.kernel.table.llm(pid).account.decoded for pid in pids) >= 3200)
    (later,) = [m for m in sim.programs[0].call(Models()) if m.frames]
    assert later.stretch > model.stretch
    assert later.lost < 0.8 * model.lost
    for pid in pids:
        row = sim.kernel.table.llm(pid)
        assert isinstance(row, LLMProcess)
        assert list(row.log[141:]) == sim.continuation(list(row.log[:141]), len(row.log) - 141)


@pytest.mark.long
def test_everybody_still_has_turns_and_the_stretch_goes_when_memory_suffices() -> None:
    sim, pids = crowd(quantum=1)
    program = sim.programs[0]
    sim.run_for(60.0)
    assert all(program.call(Getinfo(pid)).usage.decoded > 0 for pid in pids)
    for pid in pids[1:]:
        program.call(Kill(pid))
    for _ in range(60):
        if not program.call(Getinfo(pids[0])).decoding:
            program.call(Truncate(pids[0], 141))
            program.call(Decode(pids[0], 200))
        sim.run_for(0.5)
        if sim.kernel.table.llm(pids[0]).image.thrash.stretch == 1:  # type: ignore[union-attr]
            break
    else:
        raise AssertionError("the quantum stays stretched")


def test_what_is_computed_again_after_a_crash_is_no_thrashing() -> None:
    sim = simulate(frames=26, step_tokens=16, options={"overhead": "0.1"})  # 300 tokens take two seconds
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=list(range(300)), detached=True))
    for crash in (sim.crash, lambda: reboot(sim, program)):
        program.call(Decode(pid, 1))
        crash()
        before = sim.now
        program.call(Decode(pid, 1))
        assert sim.now > before + 1.9, "it was computed again"
        (model,) = [m for m in program.call(Models()) if m.frames]
        assert (model.stretch, model.lost) == (1, 0.0)
        assert not any("thrashes" in line.text for line in program.call(Dmesg()))
