"""Agents' turns on a full device: a prompt has its place in the order of frames, who decodes is not kept waiting by
prompts, and nobody holds frames that are of no use to it.
"""

from __future__ import annotations

from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import FRAME_BYTES as FRAME
from llmasos.simulator import Future, Prog, Simulation, simulate
from llmasos.syscalls.records import DecodeResult, SchedClass, WaitFor
from llmasos.syscalls.table import Decode, Feed, Spawn, StatsCall

SWAP = {"swap": str(2 * 200 * FRAME)}
LENGTH = 76  # a token before the end of the fifth block


def process(sim: Simulation, pid: int) -> LLMProcess:
    return sim.kernel.table.llm(pid)


def agents(program: Prog, count: int, length: int = LENGTH) -> list[int]:
    """Processes with contexts of their own, all computed."""
    pids = [program.call(Spawn("sim", tokens=[i + 1] * length)) for i in range(count)]
    for pid in pids:
        program.call(Decode(pid, 0))
    return pids


def turn(program: Prog, pid: int, fed: int = 4, count: int = 40) -> Future[DecodeResult]:
    program.call(Feed(pid, [7] * fed))
    return program.start(Decode(pid, count))


def steps_until_first_token(sim: Simulation, pid: int) -> int:
    device, before = process(sim, pid).device, process(sim, pid).account.decoded
    begun = device.steps
    sim.run_until(lambda: process(sim, pid).account.decoded > before)
    return device.steps - begun


def test_a_new_turn_takes_the_pages_of_one_that_has_used_up_its_quantum() -> None:
    sim = simulate(frames=20, quantum=8, options=SWAP)
    program = sim.program()
    *busy, late = agents(program, 4)
    answers = [turn(program, pid, count=60) for pid in busy]
    sim.run_until(lambda: min(process(sim, pid).account.decoded for pid in busy) >= 12)
    log = list(process(sim, late).log) + [7] * 4
    answers.append(turn(program, late, count=60))
    assert steps_until_first_token(sim, late) <= 3
    assert not any(answer.done for answer in answers), "they all fit only because one gave way"
    sim.run_until(lambda: all(answer.done for answer in answers))
    assert list(process(sim, late).log) == log + sim.continuation(log, 60)


def test_nobody_loses_pages_to_a_new_turn_before_its_quantum_is_used_up() -> None:
    sim = simulate(frames=21, quantum=1000, options=SWAP)
    program = sim.program()
    *busy, late = agents(program, 4)
    answers = [turn(program, pid, count=24) for pid in busy]
    sim.run_until(lambda: min(process(sim, pid).account.decoded for pid in busy) >= 12)
    program.call(Feed(late, [7] * 4))
    program.start(Decode(late, 4))
    sim.run_until(lambda: process(sim, late).wait is WaitFor.PAGEIN)
    while not any(answer.done for answer in answers):
        assert [process(sim, pid).account.preemptions for pid in busy] == [0, 0, 0]
        sim.step()


def test_a_prompt_of_a_stronger_class_does_not_wait_for_those_who_decode() -> None:
    sim = simulate(frames=20, quantum=1000, options=SWAP)
    program = sim.program()
    *busy, urgent = agents(program, 4)
    for pid in busy:
        turn(program, pid, count=60)
    sim.run_until(lambda: min(process(sim, pid).account.decoded for pid in busy) >= 12)
    child = program.start(Spawn("sim", tokens=[9] * 60, sched_class=SchedClass.REALTIME))
    sim.run_until(lambda: child.done)
    program.start(Decode(child.value, 4))
    assert steps_until_first_token(sim, child.value) <= 3
    assert process(sim, urgent).account.decoded == 0


def test_beside_those_who_decode_prompts_get_the_declared_part_of_a_step() -> None:
    sim = simulate(frames=200, step_tokens=64, options={"stream_tokens": "8"})
    program = sim.program()
    stream = program.call(Spawn("sim", tokens=[1]))
    answer = program.start(Decode(stream, 20))
    prompt = program.call(Spawn("sim", tokens=[2] * 400))
    seen = len(sim.steps)
    sim.run_until(lambda: answer.done)
    beside = [step for step in list(sim.steps)[seen:] if len(step.runs) == 2]
    assert {len(run.tokens) for step in beside for run in step.runs if run.ctx == prompt} == {8}
    assert len(beside) >= 15
    seen = len(sim.steps)
    sim.run_until(lambda: process(sim, prompt).table.cached >= 399)
    alone = [len(step.runs[0].tokens) for step in list(sim.steps)[seen:]]
    assert alone[1] == 64, "alone it gets what there is"


def test_nor_do_prompts_for_which_there_is_no_slot_get_more() -> None:
    """More prompts than a step has runs: those passed over for want of tokens do not make room for others."""
    sim = simulate(frames=500, step_tokens=64, max_runs=4, policy="fcfs", options={"stream_tokens": "8"})
    program = sim.program()
    stream, *prompts = (program.call(Spawn("sim", tokens=[i])) for i in range(11))
    answer = program.start(Decode(stream, 30))
    for pid in prompts:
        program.start(Feed(pid, [pid] * 100))
    seen = len(sim.steps)
    sim.run_until(lambda: answer.done)
    beside = [step for step in list(sim.steps)[seen:] if any(run.ctx == stream for run in step.runs)]
    assert max(sum(len(run.tokens) for run in step.runs) for step in beside) <= 8 + 1

    assert process(sim, prompts[0]).table.cached > 90
    assert process(sim, prompts[-1]).table.cached <= 1, "the first prompts come first"


def test_who_waits_for_one_frame_more_lets_others_use_those_it_has() -> None:
    """Three contexts fill all frames; two want another one while the first still has room in its last."""
    sim = simulate(frames=15, quantum=1000, options=SWAP)
    program = sim.program()
    (ample,) = agents(program, 1, LENGTH - 11)
    early, late = (program.call(Spawn("sim", tokens=[i] * LENGTH)) for i in (8, 9))
    answers = [turn(program, pid, fed=1, count=16) for pid in (ample, early, late)]
    sim.run_until(lambda: process(sim, ample).account.decoded == 12)
    assert process(sim, early).account.decoded > 8, "it goes on with the frames of the last"
    assert process(sim, late).account.decoded < 8
    sim.run_until(lambda: all(answer.done for answer in answers))
    assert program.call(StatsCall()).preemptions <= 4


def test_without_a_lower_tier_who_waits_keeps_its_pages() -> None:
    sim = simulate(frames=20, quantum=1000)
    program = sim.program()
    pids = agents(program, 4)
    answers = [turn(program, pid, fed=1, count=16) for pid in pids]
    sim.run_until(lambda: all(answer.done for answer in answers))
    assert program.call(StatsCall()).refaults <= 1, "only nobody's being able to run is a reason to compute again"


def test_frames_that_are_shared_are_not_held_by_who_cannot_run() -> None:
    """The same prefix is mapped anew when there is room; until then its frames are anybody's."""
    sim = simulate(frames=10, quantum=1000, step_tokens=16)
    program = sim.program()
    first = program.call(Spawn("sim", tokens=[1] * 80))
    program.call(Decode(first, 1))
    holder = program.call(Spawn("sim", tokens=[2] * 60))
    answer = program.start(Decode(holder, 60))
    sim.run_until(lambda: process(sim, holder).account.decoded >= 40)
    again = program.start(Decode(first, 40))
    seen = 0
    while not answer.done:
        sim.step()
        waits = process(sim, first).pid in process(sim, first).image.starved  # type: ignore[union-attr]
        seen += waits
        assert not waits or not process(sim, first).table.frames
    assert seen > 0
    sim.run_until(lambda: again.done)
    assert list(process(sim, first).log) == [1] * 80 + sim.continuation([1] * 80, 41)
