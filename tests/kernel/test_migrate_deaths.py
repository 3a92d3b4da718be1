"""setsched(device=...) while drivers die and programs think again: no token is lost, nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmasos.drivers import parcel
from llmasos.drivers.protocol import Export, Import
from llmasos.kernel.sched.policies import make_policy
from llmasos.kernel.sched.run_queue import RunQueue
from llmasos.simulator import DISK_SECONDS, Future, Prog, Simulation, simulate, slots
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import (
    Finish,
    SchedClass,
    Signal,
    State,
)
from llmasos.syscalls.table import (
    Decode,
    Kill,
    Pagein,
    Setsched,
    Spawn,
)
from tests.kernel.moved import PROMPT, refused, row, said, spawn, whole

pytestmark = pytest.mark.usefixtures("no_parcel_is_left")


MOMENTS = [0.0, 0.0005, 0.001, 0.0025, 0.0045, 0.006, 0.0075, 0.009, 0.012]


def begun(options: dict[str, str] | None = None) -> tuple[Simulation, Prog, int, Future[Any], Future[None]]:
    """A process that decodes and is being moved to a device that has its model."""
    sim = simulate(devices=2, options={"swap": slots(40), **(options or {})})
    program = sim.program()
    program.call(Pagein("sim", "sim1"))
    pid = spawn(sim, program)
    decoding = program.start(Decode(pid, 60))
    sim.run_for(0.005)
    return sim, program, pid, decoding, program.start(Setsched(pid, device="sim1"))


@pytest.mark.parametrize("after", MOMENTS)
@pytest.mark.parametrize("who", ["sim0", "sim1", "both"])
def test_a_driver_may_die_at_any_moment(after: float, who: str) -> None:
    sim, program, pid, decoding, moving = begun()
    sim.run_for(after)
    for name in ("sim0", "sim1") if who == "both" else (who,):
        sim.crash(name)
    sim.run_until(lambda: moving.done)
    process = row(sim, pid)
    if moving.errno is Errno.OK:
        assert process.device.name == "sim1"
    else:
        assert moving.errno is Errno.ERESTART
        assert process.device.name == "sim0"
        assert who != "sim0", "a process leaves a device that has died"
        assert "has stayed on sim0" in (moving.reply.reason if moving.reply else "")
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 60, process.traits.sampler)
    assert not any(image.imports for d in sim.kernel.devices.values() for image in d.images.values())
    whole(sim, program, pid, list(process.log), 5)


def test_a_source_that_dies_with_the_kv_has_the_log_computed_there() -> None:
    sim, _, pid, decoding, moving = begun()
    sim.run_until(lambda: bool(sim.driver("sim0").parcels) or moving.done)
    sim.crash("sim0")
    sim.run_until(lambda: moving.done)
    assert moving.value is None
    assert "warning: process" in said(sim)
    assert "died while it was to hand it over (" in said(sim)
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 60, row(sim, pid).traits.sampler)


def test_a_process_is_moved_away_from_a_device_that_is_down() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program)
    decoding = program.start(Decode(pid, 10))
    sim.crash("sim0")
    sim.run_for(0.002)
    assert sim.kernel.devices["sim0"].state != "up"
    program.call(Setsched(pid, device="sim1"))
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 10, row(sim, pid).traits.sampler, name="sim")


def test_a_target_that_dies_reading_the_kv_leaves_the_process_where_it_is() -> None:
    sim = simulate(devices=2, others={"crash_import": "1"})
    program = sim.program()
    pid = spawn(sim, program)
    decoding = program.start(Decode(pid, 100))
    error = refused(program, Setsched(pid, device="sim1"))
    assert error.errno is Errno.ERESTART
    assert sim.kernel.devices["sim1"].incarnation == 2
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 100, row(sim, pid).traits.sampler)
    assert row(sim, pid).crashes == 0


def test_a_target_that_dies_while_it_loads_the_model_loads_it_again() -> None:
    sim = simulate(devices=2, others={"link": "1e8"})
    program = sim.program()
    pid = spawn(sim, program)
    moving = program.start(Setsched(pid, device="sim1"))
    sim.run_for(0.01)
    assert not moving.done
    sim.crash("sim1")
    sim.run_until(lambda: moving.done)
    assert moving.value is None
    whole(sim, program, pid, PROMPT)


@pytest.mark.parametrize("after", MOMENTS)
@pytest.mark.parametrize("how", ["cancel", "leave", "kill", "stop"])
def test_second_thoughts_at_any_moment(after: float, how: str) -> None:
    sim, program, pid, decoding, moving = begun()
    mover = sim.program()
    process = row(sim, pid)
    moving.cancel()
    assert moving.done
    again = mover.start(Setsched(pid, device="sim1"))
    sim.run_for(after)
    moved = again.done
    match how:
        case "cancel":
            again.cancel()
            assert again.errno is (Errno.OK if moved else Errno.EINTR)
        case "leave":
            mover.disconnect()
        case "stop":
            mover.call(Kill(pid, Signal.STOP))
        case _:
            mover.call(Kill(pid, Signal.KILL))
            sim.run_until(lambda: again.done)
            assert again.errno is (Errno.OK if moved else Errno.ESRCH)
    if how == "stop":
        sim.run_until(lambda: again.done and process.state is State.STOPPED)
        assert process.device.name == "sim1"
        program.call(Kill(pid, Signal.CONT))
    elif how != "kill":
        assert process.device.name == ("sim1" if moved else "sim0")
        assert process.transition is None
    sim.run_until(lambda: decoding.done)
    wanted = sim.continuation(PROMPT, 60, process.traits.sampler)
    assert decoding.value.tokens == wanted[: len(decoding.value.tokens)]
    assert how == "kill" or decoding.value.finish is Finish.LENGTH
    sim.run_idle()
    assert parcel.held() == []
    assert not any(image.imports for d in sim.kernel.devices.values() for image in d.images.values())
    if how != "kill":
        whole(sim, program, pid, PROMPT + wanted, 4)


def test_no_context_is_left_behind_with_the_old_driver() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program)
    program.call(Setsched(pid, device="sim1"))
    other = spawn(sim, program, [3])
    assert other
    assert pid not in sim.driver("sim0").device._contexts
    whole(sim, program, pid, PROMPT)


def test_what_is_sent_to_the_drivers_is_one_export_and_one_import(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program)
    seen: list[object] = []
    for driver in sim.drivers.values():
        receive: Callable[[Any], None] = driver.receive

        def spy(message: Any, receive: Callable[[Any], None] = receive) -> None:
            seen.append(message)
            receive(message)

        monkeypatch.setattr(driver, "receive", spy)
    program.call(Setsched(pid, device="sim1"))
    exports = [m for m in seen if isinstance(m, Export)]
    imports = [m for m in seen if isinstance(m, Import)]
    assert [(m.path, m.tokens, m.key) for m in exports] == [("", 39, b"")]
    assert [(m.first, m.tokens) for m in imports] == [(0, 39)]
    assert imports[0].path.startswith("/proc/")
    assert sim.now > 2 * DISK_SECONDS


def test_an_entry_left_in_the_queue_of_one_device_does_not_come_to_life_by_the_other() -> None:
    sim = simulate(devices=2)
    pid = spawn(sim, sim.program())
    process = row(sim, pid)
    here, there = RunQueue(make_policy("fair", 8)), RunQueue(make_policy("fair", 8))
    here.put(process)
    here.withdraw(process)
    for _ in range(3):
        there.put(process)
        assert here.take() is None
        assert list(here) == []
    assert there.take() is process


def test_a_suspect_that_has_moved_away_is_not_run_where_it_was() -> None:
    """It was passed over for long, and was to be the next one there; meanwhile it is queued where it lives now."""
    sim = simulate(
        devices=2,
        options={"overhead": "0.02"},
        others={"overhead": "0.5"},
        max_runs=4,
        aging_seconds=0.5,
        max_crashes=100,
        pagein_seconds=1e9,
    )
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT, sched_class=SchedClass.BATCH))
    others = [program.call(Spawn("sim", tokens=[i])) for i in range(3)]
    there = program.call(Spawn("sim", tokens=[9], device="sim1"))
    suspect, source = sim.kernel.table.llm(pid), sim.kernel.devices["sim0"]
    answer = program.start(Decode(pid, 20))
    sim.run_until(lambda: suspect.running > 0)
    sim.crash("sim0")
    sim.run_until(lambda: suspect.crashes > 0)
    for other in (*others, there):
        program.start(Decode(other, 200, wait=False))
    sim.run_until(lambda: source.suspect is suspect)
    program.call(Setsched(pid, device="sim1"))
    assert suspect.ticket > 0, "it waits there while the other device makes its next steps"
    sim.run_until(lambda: answer.done)
    assert answer.value.tokens == sim.continuation(PROMPT, 20, suspect.traits.sampler)
    sim.run_idle()
    assert not any(device.queue for device in sim.kernel.devices.values())
