"""Drivers die, hang and fail to start; processes go on from their token logs, and poison is found."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from llmasos.drivers.protocol import SIZES, VERSION, Load, Loaded, Step, StepDone
from llmasos.drivers.sim.device import SimDevice
from llmasos.kernel.clock import SECOND
from llmasos.kernel.events import DriverExited, HaltRequest, KillDriver, Log, Tick
from llmasos.simulator import Simulation, simulate, small_config
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Advice, Finish, GroupSettings, Kind, Sampler, Signal, State, WaitFor
from llmasos.syscalls.table import (
    Advise,
    BootInfoCall,
    Call,
    Decode,
    Exec,
    Fork,
    Getinfo,
    GroupCreate,
    Kill,
    Models,
    Pagein,
    Ps,
    Read,
    Spawn,
    StatsCall,
    Truncate,
)
from tests.booted import booted, eventually

PROMPT = [5, 6, 7] * 11


def lines(sim: Simulation, text: str) -> list[Log]:
    return [line for line in sim.log if text in line.text]


@pytest.mark.parametrize("after", [0.0004, 0.003, 0.0105, 0.02])
def test_a_decode_survives_the_death_of_its_driver_with_the_same_tokens(after: float) -> None:
    sim = simulate(step_tokens=16)
    program = sim.program()
    hot = Sampler(temperature=1.0, repetition_penalty=1.2, seed=9)
    pid = program.call(Spawn("sim", tokens=PROMPT, sampler=hot))
    future = program.start(Decode(pid, 30))
    sim.run_for(after)
    sim.crash()
    sim.run_until(lambda: future.done)
    assert future.value.tokens == sim.continuation(PROMPT, 30, hot)
    stats = program.call(StatsCall())
    assert stats.driver_restarts == 1
    assert program.call(BootInfoCall()).devices[0].incarnation == 2


def test_a_driver_that_was_up_for_long_starts_from_the_first_pause_again_and_one_that_was_not_does_not() -> None:
    sim = simulate()
    device = sim.kernel.devices["sim0"]

    def dies(after: float) -> int:
        sim.run_for(after)
        before = device.incarnation
        sim.crash()
        sim.run_until(lambda: device.incarnation > before and device.state == "up")
        return device.failures

    assert [dies(after) for after in (100.0, 1.0, 1.0, 59.0, 61.0, 1.0)] == [1, 2, 3, 4, 1, 2]


def test_all_processes_of_a_dead_driver_go_on_and_forks_stay_different() -> None:
    sim = simulate(max_runs=8)
    program = sim.program()
    hot = Sampler(temperature=1.5, seed=1)
    parent = program.call(Spawn("sim", tokens=PROMPT, sampler=hot))
    children = program.call(Fork(parent, 3))
    futures = [program.start(Decode(pid, 20)) for pid in (parent, *children)]
    sim.run_for(0.006)
    sim.crash()
    sim.run_until(lambda: all(f.done for f in futures))
    seeds = [program.call(Getinfo(pid)).seed for pid in (parent, *children)]
    assert len(set(seeds)) == 4
    for future, seed in zip(futures, seeds, strict=True):
        assert future.value.tokens == sim.continuation(PROMPT, 20, Sampler(temperature=1.5, seed=seed))


def test_while_the_driver_is_down_processes_say_what_they_wait_for() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    sim.run_idle()
    sim.crash()
    sim.run_for(0.01)
    info = program.call(Getinfo(pid))
    assert (info.state, info.wait, info.cached, info.pages) == (State.BLOCKED, WaitFor.DEVICE, 0, 0)
    late = program.start(Spawn("sim:2m"))
    sim.run_for(1.0)
    assert late.errno is Errno.OK
    info = program.call(Getinfo(pid))
    assert (info.wait, info.cached) == (WaitFor.INPUT, 0), "it sleeps on"
    assert program.call(Decode(pid, 5)).tokens == sim.continuation(PROMPT, 5)


@pytest.mark.parametrize("policy", ["fair", "fcfs", "round_robin", "mlfq", "lottery"])
def test_who_speaks_goes_on_as_soon_as_if_nobody_else_were_there(policy: str) -> None:
    def resumed(idle: int) -> float:
        sim = simulate(2000, policy=policy, checked=False)
        program = sim.program()
        for number in range(idle):
            program.call(Spawn("sim", tokens=[number, *PROMPT * 10]))
        sim.run_idle()
        pid = program.call(Spawn("sim", tokens=PROMPT))
        future = program.start(Decode(pid, 200))
        sim.run_for(0.05)
        sim.crash()
        died, told = sim.now, len(sim.kernel.table.llm(pid).log)
        sim.run_until(lambda: len(sim.kernel.table.llm(pid).log) > told + 1)
        assert not future.done
        return sim.now - died

    assert resumed(40) == pytest.approx(resumed(0), abs=0.002)


def test_a_prompt_that_was_being_computed_is_computed_again_though_nobody_has_asked_yet() -> None:
    sim = simulate(step_tokens=4)
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    sim.run_for(0.002)
    assert 0 < program.call(Getinfo(pid)).cached < len(PROMPT) - 1
    sim.crash()
    sim.run_for(1.0)
    assert program.call(Getinfo(pid)).cached == len(PROMPT) - 1


def test_a_driver_is_started_again_at_once_and_then_after_doubling_delays() -> None:
    sim = simulate(restart_first=0.1, restart_max=1.0)
    starts = [sim.now]
    for _ in range(7):
        before = sim.driver().incarnation
        sim.crash()
        died = sim.now
        sim.run_until(lambda: sim.driver().incarnation > before)  # noqa: B023
        starts.append(sim.now - died)
        sim.run_until(lambda: sim.kernel.devices["sim0"].state == "up")
    delays = [round(s - 0.001, 6) for s in starts[1:]]
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    sim.crash()
    sim.run_until(lambda: sim.kernel.devices["sim0"].state == "down")  # for a while now
    with pytest.raises(SyscallError, match="does not start: SIGKILL") as caught:
        sim.program().call(Spawn("sim", tokens=[1]))
    assert caught.value.errno is Errno.ENODEV
    sim.run_until(lambda: sim.kernel.devices["sim0"].state == "up")
    assert sim.kernel.devices["sim0"].error == ""
    sim.run_for(61.0)  # forgiven
    before = sim.driver().incarnation
    sim.crash()
    sim.run_for(0.01)
    assert sim.driver().incarnation == before + 1


@pytest.mark.parametrize("mute", [False, True])
def test_a_driver_that_hangs_is_killed_and_its_work_done_again(mute: bool) -> None:
    sim = simulate(hang_seconds=5.0)
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    future = program.start(Decode(pid, 20))
    sim.run_for(0.004)
    sim.hang(mute=mute)
    hung = sim.now
    sim.run_until(lambda: future.done)
    assert future.value.tokens == sim.continuation(PROMPT, 20, sim.kernel.table.llm(pid).traits.sampler)
    assert 5.0 <= sim.now - hung <= 7.5
    assert lines(sim, "no heartbeat" if mute else "without progress")


def test_a_slow_step_is_no_hang() -> None:
    sim = simulate(hang_seconds=5.0, options={"overhead": "60"})
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[1]))
    assert len(program.call(Decode(pid, 3)).tokens) == 3
    assert program.call(StatsCall()).driver_restarts == 0


def test_a_hang_in_a_load_is_seen_too() -> None:
    sim = simulate(hang_seconds=5.0, options={"link": "1"})
    program = sim.program()
    future = program.start(Pagein("sim:10"))  # 20 bytes at a byte a second
    sim.run_for(1.0)
    sim.hang()
    sim.run_until(lambda: future.done)
    assert future.errno is Errno.OK
    assert program.call(StatsCall()).driver_restarts == 1


def test_a_driver_that_is_down_is_started_at_once_by_kill_and_such_kills_are_no_failures() -> None:
    sim = simulate()
    program = sim.program()
    device = sim.kernel.devices["sim0"]
    for _ in range(7):
        sim.run_until(lambda: device.state == "up", limit=100.0)
        sim.crash()
        sim.run_until(lambda: device.state != "up")
    (told,) = program.call(BootInfoCall()).devices
    assert told.error.endswith("next start in 3.2 s (7 failures in a row), at once with `kill -KILL sim0`")
    now = sim.now
    program.call(Kill(device.process.pid, Signal.KILL))
    sim.run_until(lambda: device.state == "up")
    assert sim.now - now < 0.1, "it starts in 50 ms"
    for _ in range(5):
        now = sim.now
        program.call(Kill(device.process.pid, Signal.KILL))
        sim.run_until(lambda: device.state != "up")
        sim.run_until(lambda: device.state == "up")
        assert sim.now - now < 0.1
    assert program.call(BootInfoCall()).devices[0].error == ""
    sim.run_for(10.0)
    assert device.restarts == 12, "the start that was due before has been called off"
    now = sim.now
    for _ in range(3):
        sim.crash()
        sim.run_until(lambda: device.state != "up")
        sim.run_until(lambda: device.state == "up", limit=100.0)
    assert sim.now - now > 0.25, "its own deaths count as before"


def test_a_poisonous_process_is_stopped_after_its_third_kill_and_its_neighbours_live() -> None:
    sim = simulate(options={"crash_token": "999"}, max_runs=4)
    program = sim.program()
    good = [program.call(Spawn("sim", tokens=[i + 1] * 20)) for i in range(2)]
    futures = [program.start(Decode(pid, 200)) for pid in good]
    sim.run_for(0.01)
    poison = program.call(Spawn("sim", tokens=[3, 999, 3, 3]))
    process = sim.kernel.table.llm(poison)
    sim.run_until(lambda: process.state is State.STOPPED)
    assert "died 3 times" in program.call(Getinfo(poison)).reason
    sim.run_until(lambda: all(f.done for f in futures))
    for i, future in enumerate(futures):
        sampler = sim.kernel.table.llm(good[i]).traits.sampler
        assert future.value.tokens == sim.continuation([i + 1] * 20, 200, sampler)
    assert program.call(StatsCall()).driver_restarts == 3
    assert program.call(Read(poison)).tokens == [3, 999, 3, 3]


def test_a_stopped_suspect_keeps_its_decode_its_caller_is_told_and_cont_tries_again() -> None:
    sim = simulate(options={"crash_token": "999"})
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[3, 999, 3]))
    future = program.start(Decode(pid, 9))
    process = sim.kernel.table.llm(pid)
    sim.run_until(lambda: process.state is State.STOPPED)
    assert future.errno is Errno.EIO
    program.call(Kill(pid, Signal.CONT))
    sim.run_until(lambda: process.state is not State.STOPPED)
    sim.run_until(lambda: process.state is State.STOPPED)
    assert program.call(StatsCall()).driver_restarts == 5  # once a suspect, it has two tries
    program.call(Kill(pid, Signal.INT))
    program.call(Truncate(pid, 1))
    program.call(Kill(pid, Signal.CONT))
    assert program.call(Decode(pid, 3)).tokens == sim.continuation([3], 3, process.traits.sampler)
    assert program.call(Getinfo(pid)).reason == ""


def test_a_model_whose_loads_kill_the_driver_stops_its_processes_and_keeps_them() -> None:
    sim = simulate(options={"link": "1e6"}, restart_first=0.01, restart_max=0.01)
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    process = sim.kernel.table.llm(pid)
    image = process.image
    assert image is not None
    sim.crash()
    for _ in range(3):
        sim.run_until(lambda: image.state == "loading")
        sim.crash()
        sim.run_until(lambda: image.state != "loading")
    assert process.state is State.STOPPED
    assert "3 times in a row while loading" in program.call(Getinfo(pid)).reason
    program.call(Kill(pid, Signal.CONT))
    assert program.call(Decode(pid, 5)).tokens == sim.continuation(PROMPT, 5, process.traits.sampler)


def test_deaths_by_a_signal_from_outside_count_against_nobody() -> None:
    sim = simulate(restart_first=0.001, restart_max=0.001)
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    future = program.start(Decode(pid, 60))
    process = sim.kernel.table.llm(pid)
    for _ in range(8):
        sim.run_until(lambda: process.state is State.RUNNING)
        sim.crash(outside=True)
        sim.run_until(lambda: process.state is not State.RUNNING)
        assert process.crashes == 0
    driver = next(row.pid for row in program.call(Ps()) if row.kind is Kind.DRIVER)
    for _ in range(4):
        sim.run_until(lambda: process.state is State.RUNNING)
        program.call(Kill(driver, Signal.KILL))
        sim.run_until(lambda: process.state is not State.RUNNING)
        assert process.crashes == 0
    sim.run_until(lambda: future.done)
    assert future.value.tokens == sim.continuation(PROMPT, 60, process.traits.sampler)


def test_a_suspect_runs_though_another_is_always_before_it() -> None:
    """It must run alone until it is where it was, and its first chunk puts it far behind in the queue."""
    sim = simulate(options={"overhead": "0.02"}, step_tokens=16, max_runs=3, aging_seconds=1.0)
    program = sim.program()
    others = [program.call(Spawn("sim", tokens=[i + 1] * 20)) for i in range(3)]
    program.call(GroupCreate("/light", GroupSettings(cpu_weight=1)))
    light = program.call(Spawn("sim", tokens=PROMPT * 3, group="/light"))
    future = program.start(Decode(light, 1000))
    sim.run_for(0.5)
    busy = [program.start(Decode(pid, 1000)) for pid in others]
    process = sim.kernel.table.llm(light)
    sim.run_until(lambda: process.state is not State.RUNNING)
    sim.run_until(lambda: process.state is State.RUNNING)
    sim.crash()
    sim.run_until(lambda: process.crashes == 1 and process.table.cached > 0)
    for pid in others[1:]:
        program.call(Kill(pid, Signal.KILL))
    began = sim.now
    sim.run_until(lambda: process.crashes == 0, 100.0)
    assert sim.now - began < 10.0  # seven chunks, of which the first may wait for ageing
    assert not future.done
    assert not busy[0].done


def test_poison_late_in_a_chunked_prompt_is_found_although_its_beginning_computes() -> None:
    sim = simulate(options={"crash_token": "999"}, step_tokens=16)
    program = sim.program()
    poison = program.call(Spawn("sim", tokens=[*range(100), 999, 1, 2]))
    sim.run_until(lambda: sim.kernel.table.llm(poison).state is State.STOPPED, 100.0)
    assert program.call(StatsCall()).driver_restarts == 3


def test_a_run_that_fails_alone_fails_its_decode_only() -> None:
    sim = simulate(options={"error_token": "999"})
    program = sim.program()
    pid, other = program.call(Spawn("sim", tokens=[3, 4])), program.call(Spawn("sim", tokens=[1, 2]))
    sim.run_idle()
    bad = program.call(Spawn("sim", tokens=[5, 999]))
    futures = [program.start(Decode(p, 5)) for p in (pid, bad, other)]
    sim.run_until(lambda: all(f.done for f in futures))
    assert [f.errno for f in futures] == [Errno.OK, Errno.EIO, Errno.OK]
    assert program.call(StatsCall()).driver_restarts == 0
    assert lines(sim, "option error_token")


def test_a_program_may_have_a_driver_restarted() -> None:
    sim = simulate()
    program = sim.program()
    driver = next(row.pid for row in program.call(Ps()) if row.kind is Kind.DRIVER)
    pid = program.call(Spawn("sim", tokens=PROMPT))
    future = program.start(Decode(pid, 20))
    sim.run_for(0.005)
    program.call(Kill(driver, Signal.KILL))
    sim.run_until(lambda: future.done)
    assert future.value.tokens == sim.continuation(PROMPT, 20, sim.kernel.table.llm(pid).traits.sampler)
    with pytest.raises(SyscallError, match=r"^EINVAL: .*STOP"):
        program.call(Kill(driver, Signal.STOP))


def test_a_driver_that_never_says_hello_is_given_up_for_those_who_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmasos.simulator.simulation.START_SECONDS", 1e6)
    sim = Simulation(small_config(start_seconds=2.0, restart_max=1.0))
    program = sim.program()
    hint = program.start(Advise("sim", Advice.WILLNEED))
    with pytest.raises(SyscallError, match="does not start") as caught:
        program.call(Spawn("sim", tokens=[1]), limit=30.0)
    assert caught.value.errno is Errno.ENODEV
    assert hint.errno is Errno.ENODEV
    assert not sim.kernel.devices["sim0"].images, "nobody wants the model any more"
    monkeypatch.undo()
    sim.run_until(lambda: sim.kernel.devices["sim0"].state == "up", limit=10.0)
    assert program.call(Spawn("sim", tokens=[1])) > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": VERSION + 1}, f"version {VERSION + 1} of the protocol"),
        ({"sizes": msgspec.structs.replace(SIZES, block_tokens=32)}, "block_tokens is 32 there, 16 here"),
        ({"max_runs": 0}, "max_runs=0"),
        ({"kind": "cuda"}, "a driver of kind 'cuda', not 'sim'"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_a_driver_that_does_not_fit_the_kernel_is_refused_by_name_until_one_does(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object], words: str
) -> None:
    fitting = SimDevice.hello
    monkeypatch.setattr(SimDevice, "hello", lambda device: msgspec.structs.replace(fitting(device), **change))
    sim = Simulation(small_config(restart_max=1.0))
    program = sim.program()
    with pytest.raises(SyscallError, match="does not start") as caught:
        program.call(Spawn("sim", tokens=[1]), limit=30.0)
    assert caught.value.errno is Errno.ENODEV
    assert words in caught.value.reason
    assert lines(sim, words)
    (device,) = program.call(BootInfoCall()).devices
    assert device.state != "up"
    assert words in device.error
    monkeypatch.undo()
    sim.run_until(lambda: sim.kernel.devices["sim0"].state == "up", limit=10.0)
    assert program.call(BootInfoCall()).devices[0].error == ""
    assert program.call(Spawn("sim", tokens=[1])) > 0


def test_a_model_whose_load_kills_the_driver_is_given_up_and_the_others_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    future = program.start(Decode(pid, 400))
    fetch = SimDevice.fetch

    def out_of_memory(device: SimDevice, request: Load, report: Callable[[float], None]) -> Callable[[], Loaded]:
        if request.path == "sim:2m":
            sim.driver().device._fate.die()
        return fetch(device, request, report)

    monkeypatch.setattr(SimDevice, "fetch", out_of_memory)
    with pytest.raises(SyscallError, match="died 3 times") as caught:
        program.call(Spawn("sim:2m", tokens=[1]), limit=30.0)
    assert caught.value.errno is Errno.EIO
    sim.run_until(lambda: future.done)
    assert future.value.tokens == sim.continuation(PROMPT, 400)
    assert program.call(StatsCall()).driver_restarts == 3


def test_a_step_that_fails_before_its_copies_leaves_no_false_page(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = simulate()
    program = sim.program()
    parent = program.call(Spawn("sim", tokens=PROMPT))
    sim.run_idle()
    (child,) = program.call(Fork(parent))

    def fail(device: SimDevice, step: Step) -> StepDone:
        raise SyscallError(Errno.ENOMEM, "no memory for the step")

    with monkeypatch.context() as patch:
        patch.setattr(SimDevice, "step", fail)
        with pytest.raises(SyscallError, match=r"^EIO: .*ENOMEM"):
            program.call(Decode(child, 5))
    assert program.call(Decode(child, 5)).tokens == sim.continuation(PROMPT, 5)  # the device checks every page


@pytest.mark.parametrize(
    ("model", "errno"),
    [
        ("nowhere", Errno.ENOENT),
        ("sim,arch=mamba:x", Errno.EINVAL),
        ("sim:arch=mamba", Errno.ENOEXEC),
        ("sim:fail=EIO", Errno.EIO),
        ("sim:1t", Errno.ENOMEM),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused_with_the_drivers_reason(model: str, errno: Errno) -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[1]))
    calls: list[Call[Any]] = [Spawn(model), Pagein(model), Exec(pid, model)]
    for call in calls:
        with pytest.raises(SyscallError) as caught:
            program.call(call)
        assert caught.value.errno is errno
        assert caught.value.reason
    assert len(program.call(Decode(pid, 5)).tokens) == 5
    assert [m.state for m in program.call(Models()) if m.state != "resident"] == []


def test_one_device_dying_does_not_disturb_another() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pids = [program.call(Spawn("sim", tokens=PROMPT, device=f"sim{i}")) for i in range(2)]
    futures = [program.start(Decode(pid, 40)) for pid in pids]
    sim.run_for(0.01)
    sim.crash("sim0")
    sim.run_until(lambda: futures[1].done)
    assert not futures[0].done
    sim.run_until(lambda: futures[0].done)
    for future, pid in zip(futures, pids, strict=True):
        assert future.value.tokens == sim.continuation(PROMPT, 40, sim.kernel.table.llm(pid).traits.sampler)


def test_restarts_are_logged_in_order() -> None:
    sim = simulate()
    for _ in range(3):
        sim.crash()
        sim.run_for(1.0)
    deaths, ups = lines(sim, "driver died"), lines(sim, ": up:")
    assert (len(deaths), len(ups)) == (3, 4)
    assert all(a.at <= b.at for a, b in pairwise(sim.log))


def test_a_suspect_that_was_killed_in_its_step_ends_and_is_not_said_to_be_stopped() -> None:
    sim = simulate(max_crashes=1)
    program, other = sim.program(), sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    process = sim.kernel.table.llm(pid)
    future = program.start(Decode(pid, 100))
    sim.run_until(lambda: process.decoding is not None and process.running > 0)
    other.call(Kill(pid, Signal.KILL))
    sim.crash()
    sim.run_until(lambda: future.done)
    assert future.value.finish is Finish.KILLED
    assert not lines(sim, "is stopped")


def test_a_driver_that_ends_while_the_kernel_halts_is_not_taken_for_a_silent_one() -> None:
    sim = simulate(hang_seconds=3.0)
    kernel = sim.kernel
    kernel.handle(HaltRequest("test"), sim.clock)
    kernel.handle(DriverExited("sim0", 1, "quit"), sim.clock + 1)
    actions = [action for second in range(1, 10) for action in kernel.handle(Tick(), sim.clock + second * SECOND)]
    assert not [action for action in actions if isinstance(action, KillDriver | Log)]


@pytest.mark.processes
def test_a_running_kernel_stops_who_kills_its_driver_and_the_others_go_on() -> None:
    with booted("--device", "sim:crash_token=66,vocab=1000,max_runs=4") as kernel, kernel.connect() as client:
        good = [client(Spawn("sim", [1, 2, number])) for number in range(2)]
        evil = client(Spawn("sim", [1, 66, 2, 3]))
        for pid in good:
            client(Decode(pid, 50, wait=False))
        eventually(lambda: client(Getinfo(evil)).state is State.STOPPED, "it is stopped")
        assert "the driver died 3 times in a row in its step" in client(Getinfo(evil)).reason
        eventually(lambda: not any(client(Getinfo(pid)).decoding for pid in good), "the others have finished")
        assert [client(Getinfo(pid)).usage.decoded for pid in good] == [50, 50]
