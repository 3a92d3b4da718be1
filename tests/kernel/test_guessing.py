"""Guessing ahead: several tokens from one step, and nothing else than that is different."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.drivers.protocol import RunResult, StepDone
from llmasos.kernel.events import FromDevice
from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import Simulation, simulate
from llmasos.syscalls.records import Finish, Limits, Sampler
from llmasos.syscalls.table import Decode, Fork, Spawn, StatsCall
from tests.kernel.machines.core import Core

ROWS = "9"
PROMPT = list(range(40))


def guessing(**more: Any) -> Simulation:
    return simulate(options={"guess_rows": ROWS}, **more)


def row(sim: Simulation, pid: int) -> LLMProcess:
    return sim.kernel.table.llm(pid)


class Guessing(Core):
    """The whole state machine of the kernel, with drivers that guess."""

    options = {"context": "128", "guess_rows": ROWS}


TestGuessing = Guessing.TestCase
TestGuessing.settings = Core.TestCase.settings


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=1.0, seed=3), Sampler(top_k=5, temperature=2.0)])
def test_tokens_are_the_same_and_steps_are_fewer(sampler: Sampler) -> None:
    sim = guessing()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT, sampler=sampler))
    result = program.call(Decode(pid, 200))
    assert result.tokens == sim.continuation(PROMPT, 200, row(sim, pid).traits.sampler)
    assert row(sim, pid).account.decoded == 200
    assert row(sim, pid).account.steps < 100
    stats = program.call(StatsCall())
    assert stats.tokens_decoded == 200
    assert stats.tokens_computed == row(sim, pid).account.computed == 239
    assert sim.kernel.counters["guessed"] > 100


def test_a_decode_ends_at_its_stop_token_though_more_was_guessed() -> None:
    sim = guessing()
    program = sim.program()
    wanted = sim.continuation(PROMPT, 60, Sampler())
    ends = []
    for stop in dict.fromkeys(wanted[20:40]):
        pid = program.call(Spawn("sim", tokens=PROMPT, sampler=Sampler()))
        result = program.call(Decode(pid, 60, stop_ids=[stop]))
        assert result.tokens == wanted[: wanted.index(stop) + 1]
        assert result.finish is Finish.STOP
        assert list(row(sim, pid).log) == PROMPT + result.tokens
        ends.append(row(sim, pid).table.cached - len(row(sim, pid).log))
        rest = program.call(Decode(pid, 9)).tokens
        assert rest == sim.continuation(PROMPT + result.tokens, 9, Sampler())
    assert set(ends) == {-1}


def test_limits_end_a_decode_at_the_very_token() -> None:
    sim = guessing()
    program = sim.program()
    for limits, finish, length in (
        (Limits(tokens=23), Finish.BUDGET, 23),
        (Limits(context=60), Finish.CONTEXT, 20),
    ):
        pid = program.call(Spawn("sim", tokens=PROMPT, limits=limits))
        result = program.call(Decode(pid, 100))
        assert (result.finish, len(result.tokens)) == (finish, length)
    pid = program.call(Spawn("sim", tokens=PROMPT))
    assert len(program.call(Decode(pid, 7)).tokens) == 7


@pytest.mark.parametrize(
    ("sampler", "logprobs"),
    [(Sampler(), 3), (Sampler(repetition_penalty=1.3), 0)],
    ids=["logprobs", "penalty"],
)
def test_what_needs_a_look_at_each_token_is_not_guessed(sampler: Sampler, logprobs: int) -> None:
    sim = guessing()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT, sampler=sampler))
    result = program.call(Decode(pid, 50, logprobs=logprobs))
    assert len(result.tokens) == 50
    assert all(run.ahead == 0 for step in sim.steps for run in step.runs)


def test_a_step_never_has_more_rows_than_were_declared() -> None:
    sim = guessing(max_runs=16)
    program = sim.program()
    pids = [program.call(Spawn("sim", tokens=[i, *PROMPT])) for i in range(12)]
    for future in [program.start(Decode(pid, 40 + 10 * i)) for i, pid in enumerate(pids)]:
        sim.run_until(lambda: future.done)  # noqa: B023
    rows = [sum(len(run.tokens) + run.ahead for run in step.runs) for step in sim.steps]
    guessed = [any(run.ahead for run in step.runs) for step in sim.steps]
    assert any(guessed)
    assert max(count for count, did in zip(rows, guessed, strict=True) if did) == int(ROWS)
    assert any(len(step.runs) == 12 for step in sim.steps)


def test_who_may_not_guess_takes_no_share_of_the_rows() -> None:
    sim = guessing()
    program = sim.program()
    pids = [program.call(Spawn("sim", tokens=[i, *PROMPT])) for i in range(2)]
    for future in [program.start(Decode(pid, 30, logprobs=n)) for n, pid in enumerate(pids)]:
        sim.run_until(lambda: future.done)  # noqa: B023
    both = [step.runs for step in sim.steps if len(step.runs) == 2 and all(run.sample for run in step.runs)]
    assert [max(run.ahead for run in runs) for runs in both[1:4]] == [int(ROWS) - 2] * 3


def test_guesses_take_free_frames_only_and_give_them_back() -> None:
    """Three processes fill the memory to its last frame: nobody loses pages to a guess."""
    sim = guessing(frames=12)
    program = sim.program()
    pids = [program.call(Spawn("sim", tokens=[i] * 40)) for i in range(3)]
    for future in [program.start(Decode(pid, 23)) for pid in pids]:
        sim.run_until(lambda: future.done)  # noqa: B023
    assert sim.kernel.counters["guessed"] > 0
    assert sim.kernel.counters["preemptions"] == 0
    for pid in pids:
        assert len(row(sim, pid).table.frames) == 4
        assert list(row(sim, pid).log) == [pids.index(pid)] * 40 + sim.continuation(
            [pids.index(pid)] * 40, 23, row(sim, pid).traits.sampler
        )


def test_children_of_a_process_that_guesses_go_on_as_it_does() -> None:
    sim = guessing()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT, sampler=Sampler()))
    future = program.start(Decode(pid, 100))
    children: list[int] = []
    while not future.done:
        sim.run_for(0.004)
        if not future.done:
            born = program.call(Fork(pid))
            children += born
    assert len(children) > 3
    sim.run_until(lambda: all(row(sim, child).decoding is None for child in children))
    for child in children:  # each went on with the rest of its parent's decode
        assert list(row(sim, child).log) == PROMPT + future.value.tokens


def test_more_tokens_than_were_allowed_are_an_error_of_the_driver() -> None:
    sim = guessing()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    future = program.start(Decode(pid, 50))
    device = sim.kernel.devices["sim0"]
    sim.run_until(lambda: device.in_flight is not None and device.in_flight.step.runs[0].ahead > 0)
    flight = device.in_flight
    assert flight is not None
    run = flight.step.runs[0]
    before = device.restarts
    bad = StepDone(flight.step.ref, [RunResult(pid, 1, more=[1] * (run.ahead + 1))], 0.001)
    sim.event(FromDevice("sim0", device.incarnation, bad))
    sim.run_until(lambda: future.done)
    assert device.restarts == before + 1
    assert future.value.tokens == sim.continuation(PROMPT, 50, row(sim, pid).traits.sampler)


def test_a_model_whose_results_depend_on_its_neighbours_gets_no_frames_for_guesses() -> None:
    sim = guessing()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    image = row(sim, pid).image
    assert image is not None
    assert image.guesses
    image.guesses = False
    program.call(Decode(pid, 50))
    assert sim.kernel.counters["guessed"] == 0
    assert row(sim, pid).account.steps >= 50
