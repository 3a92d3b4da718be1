"""Page-ins of weights that fail, and drivers that die with them: who is told, who waits, and that nobody else notices."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from llmasos.drivers.protocol import Load
from llmasos.simulator import Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Advice, Finish, State, WaitFor
from llmasos.syscalls.table import (
    Advise,
    Decode,
    Evict,
    Getinfo,
    Models,
    Pagein,
    Spawn,
    StatsCall,
    Wait,
)
from tests.kernel.paged import MB, PROMPT, decode, image, memory, refused, row, said, spawn


def test_weights_that_cannot_be_had_again_end_their_processes_and_leave_nothing() -> None:
    sim = memory()
    program = sim.program()
    pid = spawn(program, "sim:1m")
    future = decode(program, spawn(program, "sim:1.1m"), 1)
    sim.run_until(lambda: future.done)
    device = sim.driver().device

    def broken(request: Load, report: Any) -> Any:
        raise SyscallError(Errno.EIO, "the file is gone")

    device.fetch = broken  # type: ignore[method-assign]
    waiting = decode(program, pid, 5)
    sim.run_until(lambda: waiting.done)
    info = program.call(Getinfo(pid))
    assert info.state is State.ZOMBIE
    assert not [m for m in program.call(Models()) if m.name == "sim:1m"]
    sim.run_idle()
    assert len(device._images) == 1


@pytest.mark.parametrize("when", ["evicted", "coming back", "out"])
def test_a_driver_that_dies_takes_no_process_with_it(when: str) -> None:
    sim = memory()
    program = sim.program()
    pids = {name: spawn(program, name) for name in ("sim:1m", "sim:1.1m")}
    futures = {name: decode(program, pid, 300) for name, pid in pids.items()}
    sim.run_until(lambda: image(sim, "sim:1m").state == {"evicted": "evicted", "out": "resident"}.get(when, "loading"))
    sim.crash()
    sim.run_until(lambda: all(future.done for future in futures.values()))
    for name, future in futures.items():
        assert future.value.tokens == sim.continuation(PROMPT, 300, name=name)
    assert program.call(StatsCall()).driver_restarts == 1


def test_a_model_whose_load_is_suspected_of_a_death_is_loaded_with_no_step_beside_it() -> None:
    sim = memory(100 * MB)
    program = sim.program()
    pid = spawn(program, "sim:1m")
    future = decode(program, pid, 2000)
    loading = program.start(Pagein("sim:10m"))
    sim.run_for(0.5)
    assert not loading.done
    sim.crash()
    sim.run_until(lambda: image(sim, "sim:10m").state == "loading" and sim.kernel.devices["sim0"].state == "up")
    done = len(sim.steps)
    sim.run_for(0.5)
    assert not loading.done
    assert len(sim.steps) == done
    sim.run_until(lambda: loading.done and future.done)
    assert future.value.tokens == sim.continuation(PROMPT, 2000, name="sim:1m")


# --- page-ins that fail ---------------------------------------------------------------------------------------------


def fail_loads(sim: Simulation, errno: str) -> None:
    device = sim.driver().device
    device.spec = dataclasses.replace(device.spec, fail_load=errno)


def test_a_page_in_that_fails_is_tried_again() -> None:
    sim = memory()
    program = sim.program()
    pid = spawn(program, "sim:1m")
    tokens = program.call(Decode(pid, 10)).tokens
    program.call(Evict("sim:1m", force=True))
    fail_loads(sim, "EIO")
    future, joined = decode(program, pid, 10), program.start(Pagein("sim:1m"))
    sim.run_until(lambda: "next try" in said(sim))
    info = program.call(Getinfo(pid))
    assert (info.state, info.wait, info.pages) == (State.BLOCKED, WaitFor.WEIGHTS, 4)
    fail_loads(sim, "")
    sim.run_until(lambda: future.done)
    assert tokens + future.value.tokens == sim.continuation(PROMPT, 20, name="sim:1m")
    back = row(program, "sim:1m")
    assert (back.faults, back.pageins, back.evictions) == (1, 2, 1), "a try that failed is no page-in"
    assert joined.value.state == "resident"


def test_a_model_that_cannot_be_paged_in_ends_those_who_want_it_and_nobody_else() -> None:
    sim = memory()
    program = sim.program()
    asleep, pid = spawn(program, "sim:1m"), spawn(program, "sim:1m", tokens=[5, 6, 7])
    slept = program.call(Decode(asleep, 10)).tokens
    program.call(Evict("sim:1m", force=True))
    fail_loads(sim, "EIO")
    began = sim.now
    future, other = decode(program, pid, 10), program.start(Pagein("sim:1m"))
    sim.run_until(lambda: future.done and other.done, limit=200.0)
    assert future.value.finish is Finish.KILLED
    assert other.errno is Errno.EIO
    exited = program.call(Wait(pid))
    assert re.search(r"could not be paged in for \d+ s \(\d+ tries\): loading 'sim:1m' fails", exited.reason)
    assert sim.now - began >= sim.kernel.config.pagein_seconds
    assert program.call(Getinfo(asleep)).state is State.BLOCKED
    again = decode(program, asleep, 1)
    sim.run_for(1.0)
    assert not again.done, "it is tried as long for who wants it now"
    fail_loads(sim, "")
    sim.run_until(lambda: again.done)
    slept += again.value.tokens + program.call(Decode(asleep, 9)).tokens
    assert slept == sim.continuation(PROMPT, 20, name="sim:1m"), "it has lost nothing"


@pytest.mark.parametrize("errno", ["ENOENT", "ENOEXEC"])
def test_who_waits_for_a_model_whose_files_are_broken_is_told_at_once_and_its_processes_wait(
    errno: str,
) -> None:
    """They have something to lose, and somebody may put the files right."""
    sim = memory(restart_first=5.0)
    program = sim.program()
    pid = spawn(program, "sim:1m")
    tokens = program.call(Decode(pid, 10)).tokens
    program.call(Evict("sim:1m", force=True))
    fail_loads(sim, errno)
    assert refused(program, Spawn("sim:1m", tokens=PROMPT))[0] is Errno[errno]
    future = decode(program, pid, 10)
    sim.run_until(lambda: "next try" in said(sim))
    began = sim.now
    assert refused(program, Spawn("sim:1m", tokens=PROMPT))[0] is Errno[errno]
    assert refused(program, Pagein("sim:1m"))[0] is Errno[errno]
    assert sim.now - began < 1.0
    assert not future.done
    fail_loads(sim, "")
    sim.run_until(lambda: future.done)
    assert tokens + future.value.tokens == sim.continuation(PROMPT, 20, name="sim:1m")


def test_while_one_models_page_in_is_to_be_tried_again_another_one_comes_in() -> None:
    sim = memory(restart_first=5.0)
    program = sim.program()
    pid, other = spawn(program, "sim:1m"), spawn(program, "sim:1.1m")
    program.call(Decode(other, 1))
    fail_loads(sim, "EIO")
    future = decode(program, pid, 10)
    sim.run_until(lambda: "next try" in said(sim))
    fail_loads(sim, "")
    program.call(Decode(other, 10), limit=1.0)
    assert not future.done
    sim.run_until(lambda: future.done, limit=6.0)
    assert future.value.tokens == sim.continuation(PROMPT, 10, name="sim:1m")


def test_who_wants_a_model_whose_page_in_for_others_fails_meets_a_fault() -> None:
    """While that was under way it was none."""
    sim = simulate(frames=64, options={"link": "2e6", "fail_load_every": "2"})
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[1, 2, 3]))
    sim.run_idle()
    program.call(Evict("sim", force=True))
    program.start(Pagein("sim"))
    answer = program.start(Decode(pid, 5))  # before the driver has said that it failed
    image = next(iter(sim.kernel.devices["sim0"].images.values()))
    assert image.state == "loading"
    assert image.faults == 0
    sim.run_until(lambda: any("could not be paged in" in line.text for line in sim.log))
    assert program.call(Models())[0].faults == 1
    sim.run_until(lambda: answer.done)
    assert program.call(Models())[0].faults == 1


def test_the_next_driver_is_asked_at_once_for_what_the_last_one_could_not_page_in() -> None:
    sim = memory(restart_first=5.0)
    program = sim.program()
    pid = spawn(program, "sim:1m")
    program.call(Evict("sim:1m", force=True))
    fail_loads(sim, "EIO")
    future = decode(program, pid, 1)
    sim.run_until(lambda: "next try in 5 s" in said(sim))
    sim.crash()
    sim.run_until(lambda: future.done, limit=4.0)


def test_a_hint_is_not_forgotten_when_the_driver_dies_but_what_nobody_uses_is_let_go() -> None:
    sim = simulate()
    program = sim.program()
    program.call(Pagein("sim:1m"))  # nobody uses it
    program.call(Advise("sim:100m", Advice.WILLNEED))
    assert row(program, "sim:100m").state == "loading"
    sim.crash()
    sim.run_until(lambda: row(program, "sim:100m").state == "resident")
    assert "sim:1m" not in {model.name for model in program.call(Models())}
