"""What is taken back or cut short while it is under way: loads, spawns, exec, budgets; drivers that answer nonsense."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llmasos.drivers.protocol import Failed, Inspected, RunResult, StepDone
from llmasos.kernel.events import FromDevice
from llmasos.simulator import Future, Prog, Simulation, simulate, small_config
from llmasos.syscalls import wire
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Finish, Kind, Limits, State
from llmasos.syscalls.table import (
    Decode,
    Estimate,
    Exec,
    Feed,
    Fork,
    Getinfo,
    Kill,
    Models,
    Pagein,
    Ps,
    Restore,
    Sched,
    Setlimits,
    Spawn,
    Wait,
)
from tests.kernel.neighbours import errno_of

PROMPT = list(range(1, 40))


def loaded(program: Prog) -> list[str]:
    return [row.path for row in program.call(Models()) if row.state == "resident"]


def test_a_spawn_killed_while_its_model_loads_is_answered_at_once_and_leaves_no_zombie() -> None:
    sim = simulate(options={"link": "100000"})
    program, other = sim.program(), sim.program()
    future = program.start(Spawn("sim", tokens=[1]))
    sim.run_for(1.0)
    pid = next(row.pid for row in other.call(Ps()) if row.kind is Kind.LLM)
    other.call(Kill(pid))
    assert future.done
    assert future.errno is Errno.EINTR
    assert not loaded(other)  # the load was still under way
    assert all(row.state is not State.ZOMBIE for row in other.call(Ps()))


def test_a_model_that_nobody_waits_for_any_more_is_not_loaded() -> None:
    sim = Simulation(small_config())
    program = sim.program()
    futures: list[Future[Any]] = [program.start(Spawn("sim", tokens=[1])), program.start(Pagein("sim:2m"))]
    for future in futures:  # the driver has not said hello yet
        future.cancel()
    sim.run_until(lambda: all(device.state == "up" for device in sim.kernel.devices.values()))
    sim.run_for(5.0)
    assert [future.errno for future in futures] == [Errno.EINTR, Errno.EINTR]
    assert not loaded(program)


def test_one_who_takes_back_its_spawn_does_not_take_it_from_another() -> None:
    sim = simulate(options={"link": "100000"})
    program, other = sim.program(), sim.program()
    given_up, kept = program.start(Spawn("sim", tokens=[1])), other.start(Spawn("sim", tokens=[2]))
    sim.run_for(1.0)
    given_up.cancel()
    sim.run_until(lambda: kept.done)
    assert other.call(Decode(kept.value, 3)).tokens == sim.continuation([2], 3)


def test_exec_waits_for_the_step_in_which_its_process_computes_what_it_was_fed() -> None:
    sim = simulate(options={"overhead": "0.5", "link": "3000000"})
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[1]))
    swap = program.start(Exec(pid, "sim:2m"))
    program.call(Feed(pid, PROMPT))
    sim.run_until(lambda: swap.done)
    assert swap.errno is Errno.OK
    assert program.call(Getinfo(pid)).model == "sim:2m"


def test_a_child_has_used_what_its_parent_had_of_the_token_budget() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT, limits=Limits(tokens=5)))
    assert len(program.call(Decode(pid, 3)).tokens) == 3
    (child,) = program.call(Fork(pid))
    result = program.call(Decode(child, 50))
    assert (len(result.tokens), result.finish) == (2, Finish.BUDGET)
    (grandchild,) = program.call(Fork(child))
    assert errno_of(program, Decode(grandchild, 1)) is Errno.EDQUOT
    assert len(program.call(Decode(pid, 50)).tokens) == 2
    program.call(Setlimits(grandchild, Limits(tokens=4)))
    assert len(program.call(Decode(grandchild, 50)).tokens) == 4  # a budget of its own


@pytest.mark.parametrize(
    "nonsense", ["a token that is none", "another step", "another process", "endless", "no time", "before it began"]
)
def test_a_driver_that_answers_nonsense_is_restarted_and_nothing_is_lost(nonsense: str) -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    future = program.start(Decode(pid, 30))
    device = sim.kernel.device_named("")
    sim.run_until(lambda: device.in_flight is not None)
    assert device.in_flight is not None
    ref = device.in_flight.step.ref + (nonsense == "another step")
    times = {"endless", "no time", "before it began"}
    result = RunResult(pid + (nonsense == "another process"), 1 if nonsense in times else 10**6)
    seconds = {"endless": math.inf, "before it began": -1.0}.get(nonsense, 0.0)
    phases = {"swap": math.nan} if nonsense == "no time" else {}
    sim.event(FromDevice(device.name, device.incarnation, StepDone(ref, [result], seconds, phases)))
    sim.run_until(lambda: future.done)
    assert device.incarnation == 2
    assert future.value.tokens == sim.continuation(PROMPT, 30)


@pytest.mark.parametrize("call", [Sched(max_runs=10**6), Sched(step_tokens=10**8)], ids=str)
def test_a_step_cannot_be_made_larger_than_its_limit(call: Sched) -> None:
    with pytest.raises(wire.RefusedFrame) as caught:
        wire.decode_request(wire.encode_request(1, call))
    assert caught.value.errno is Errno.EINVAL


def test_a_failed_computation_that_nobody_asked_for_shows_in_the_process_table() -> None:
    sim = simulate(options={"error_token": "7"})
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[7, 8, 9]))
    sim.run_for(1.0)
    info = program.call(Getinfo(pid))
    assert (info.finish, info.errno) == (Finish.ERROR, Errno.EIO)
    assert "could not compute" in info.reason
    program.call(Kill(pid))
    info = program.call(Getinfo(pid))
    assert (info.errno, info.reason) == (Errno.OK, f"TERM from program {program.pid}")
    program.call(Wait(pid))


def test_a_failure_without_an_error_costs_the_driver_its_life_and_no_call_is_told_that_all_is_well() -> None:
    sim = simulate()
    program = sim.program()
    sim.hang()
    future = program.start(Estimate("sim:2m"))
    device = sim.kernel.devices["sim0"]
    sim.event(FromDevice("sim0", device.incarnation, Failed(max(device.asked), Errno.OK, "")))
    sim.run_until(lambda: future.done)
    assert future.errno is Errno.ERESTART
    assert device.incarnation == 2


def test_calls_hear_of_a_death_for_which_nobody_has_a_reason() -> None:
    sim = simulate()
    program = sim.program()
    sim.hang()
    futures: list[Future[Any]] = [program.start(Estimate("sim:2m")), program.start(Restore("/tmp/image"))]
    sim.driver().die("")
    sim.run_until(lambda: all(future.done for future in futures))
    assert {future.errno for future in futures} == {Errno.ERESTART}


def test_an_answer_of_megabytes_to_another_question_makes_no_line_of_megabytes() -> None:
    sim = simulate()
    program = sim.program()
    sim.hang()
    future = program.start(Estimate("sim:2m"))
    device = sim.kernel.devices["sim0"]
    sim.event(FromDevice("sim0", device.incarnation, Inspected(max(device.asked), b"", bytes(1 << 20), 0)))
    sim.run_until(lambda: future.done)
    assert future.errno is Errno.ERESTART
    assert any("was answered by Inspected" in line.text for line in sim.log)
    assert max(len(line.text) for line in sim.log) < 1000
