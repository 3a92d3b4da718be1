"""A model that nobody has run for `idle_seconds` leaves memory, and its processes stay; and an idle kernel sleeps."""

from __future__ import annotations

from typing import Any

from llmasos.drivers.protocol import Heartbeat
from llmasos.kernel.events import Event, FromDevice, Tick
from llmasos.simulator import Simulation, simulate
from llmasos.syscalls.records import Advice
from llmasos.syscalls.table import Advise, Decode, Models, Pagein, Spawn

IDLE = 600.0
PROMPT = list(range(40))


def state(sim: Simulation, program: Any) -> str:
    row = next(row for row in program.call(Models()) if row.name == "sim")
    return str(row.state)


def test_a_model_that_nobody_has_run_for_long_leaves_memory_and_comes_back_with_the_next_decode() -> None:
    sim = simulate(idle_seconds=IDLE)
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    first = program.call(Decode(pid, 4)).tokens
    sim.run_for(IDLE / 2)
    assert program.call(Decode(pid, 1)).tokens == sim.continuation(PROMPT + first, 1)  # counts from its last step
    sim.run_for(IDLE - 1)
    assert state(sim, program) == "resident"
    sim.run_for(IDLE)
    assert state(sim, program) == "evicted"
    log = list(sim.kernel.table.llm(pid).log)
    assert log == PROMPT + sim.continuation(PROMPT, 5)
    assert program.call(Decode(pid, 3)).tokens == sim.continuation(log, 3)
    assert state(sim, program) == "resident"
    sim.run_for(2 * IDLE)
    assert state(sim, program) == "evicted", "it is looked after anew each time it comes back"


def test_a_model_without_processes_goes_altogether() -> None:
    sim = simulate(idle_seconds=IDLE)
    program = sim.program()
    program.call(Pagein("sim"))
    sim.run_for(2 * IDLE)
    assert not sim.kernel.devices["sim0"].images


def test_a_model_that_is_pinned_or_wanted_stays() -> None:
    sim = simulate(idle_seconds=IDLE, options={"overhead": "1.0"})
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    decode = program.start(Decode(pid, 300))
    sim.run_for(1.5 * IDLE / 6)
    program.call(Advise("sim", Advice.PIN))
    sim.run_until(lambda: decode.done)
    sim.run_for(3 * IDLE)
    assert state(sim, program) == "resident"
    program.call(Advise("sim", Advice.NORMAL))
    sim.run_for(2 * IDLE)
    assert state(sim, program) == "evicted"


def test_by_default_a_core_lets_models_stay() -> None:
    sim = simulate()
    program = sim.program()
    program.call(Spawn("sim", tokens=PROMPT))
    sim.run_for(100 * IDLE)
    assert state(sim, program) == "resident"


def test_an_idle_kernel_is_woken_by_nothing() -> None:
    sim = simulate(idle_seconds=IDLE)
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT, detached=True))
    program.call(Decode(pid, 4))
    program.disconnect()
    sim.run_for(5.0)
    events: list[Event] = []
    handle = sim.kernel.handle

    def counted(event: Event, now: int) -> Any:
        events.append(event)
        return handle(event, now)

    sim.kernel.handle = counted  # type: ignore[method-assign]
    sim.run_for(IDLE / 2)
    assert not events
    sim.run_for(3600.0)
    assert len(events) < 10, f"the model leaves, and its driver is looked after meanwhile: {events}"
    assert all(isinstance(event, Tick | FromDevice) for event in events)
    assert not any(isinstance(event, FromDevice) and isinstance(event.message, Heartbeat) for event in events)
