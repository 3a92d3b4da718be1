"""Invariants fail where something is wrong: each rule is broken by hand, and is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmasos.kernel import core, settle
from llmasos.kernel.memory.page_table import Kept
from llmasos.kernel.memory.swap import Slot
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.log_records import LogRecords
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.state import System
from llmasos.kernel.tokens import log_of
from llmasos.simulator import Simulation, invariants, simulate
from llmasos.syscalls.records import LogRecord, State, WaitFor
from llmasos.syscalls.table import Decode, Setsched, Spawn

PROMPT = list(range(1, 41))


@pytest.fixture
def sim() -> Simulation:
    """Two processes that have pages and wait for input; one of them knows a token more than the other."""
    sim = simulate(frames=16)
    program = sim.program()
    for extra in (1, 2):
        pid = program.call(Spawn("sim", tokens=[*PROMPT, 50 + extra]))
        program.call(Decode(pid, 3))
    sim.run_idle()
    invariants.check(sim.kernel)
    return sim


def first(sim: Simulation) -> LLMProcess:
    return next(p for p in sim.kernel.table if isinstance(p, LLMProcess))


def miscounted() -> LogRecords:
    records = LogRecords()
    records.bytes = 7
    return records


def model(sim: Simulation) -> Image:
    image = first(sim).image
    assert image is not None
    return image


BREAKS: dict[str, tuple[Callable[[Simulation], object], str]] = {
    "a page is gone": (lambda sim: first(sim).table.frames.pop(), "frames for"),
    "a page twice": (lambda sim: first(sim).table.frames.__setitem__(0, first(sim).table.frames[1]), "mapped twice"),
    "more cached than there is": (lambda sim: setattr(first(sim), "log", log_of()), "tokens cached"),
    "more sent than there is": (lambda sim: setattr(first(sim).table, "sent", 99), "more frames are sent"),
    "kept beyond the log": (lambda sim: setattr(first(sim).table, "kept", {9: Kept(Slot(1, 0), 16)}), "beyond the log"),
    "a stray record": (
        lambda sim: setattr(first(sim), "records", LogRecords([LogRecord(999, b"x")])),
        "a record stands at 999",
    ),
    "miscounted records": (lambda sim: setattr(first(sim), "records", miscounted()), "7 bytes of records"),
    "a refcount": (lambda sim: model(sim).pool.refs.__setitem__(0, 5), "refcounts differ"),
    "no holder": (lambda sim: model(sim).holders.clear(), "hold pages"),
    "a page-in too many": (lambda sim: setattr(model(sim), "pageins", 9), "page-ins left"),
    "weights without memory": (lambda sim: setattr(model(sim), "allotted", 0), "with 0 bytes"),
    "ready and not queued": (lambda sim: setattr(first(sim), "state", State.READY), "queued"),
    "stopped and not": (lambda sim: setattr(first(sim), "stopped", True), "stopped: True"),
    "waits for no frame": (lambda sim: setattr(first(sim), "wait", WaitFor.PAGEIN), "starved: False"),
    "waits for a device": (lambda sim: setattr(first(sim), "wait", WaitFor.DEVICE), "waits for a device that is up"),
    "waits for weights": (lambda sim: setattr(first(sim), "wait", WaitFor.WEIGHTS), "weights that are there"),
    "waits, with work": (lambda sim: first(sim).log.extend([1, 2, 3]), "it waits for input, with"),
    "dying in no step": (lambda sim: setattr(first(sim), "dying", (1, "x")), "dying, but in no step"),
    "runs in no step": (lambda sim: setattr(first(sim), "swapped_in", 3), "in no step"),
    "wants to run, unknown": (lambda sim: model(sim).active.update({first(sim).pid: first(sim)}), "want to run"),
    "a group pays too much": (lambda sim: setattr(first(sim).group, "kv", 10**9), "is charged"),
    "a child unknown": (lambda sim: sim.kernel.table._children[sim.kernel.programs[1].pid].clear(), "does not agree"),
    "a mark is left": (lambda sim: sim.kernel.stale.update({1: first(sim)}), "marks are left"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_rule_is_found_and_named(sim: Simulation, what: str) -> None:
    breaks, named = BREAKS[what]
    breaks(sim)
    with pytest.raises(AssertionError, match=named):
        invariants.check(sim.kernel)


def test_marks_that_make_each_other_without_end_are_told_and_the_kernel_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sim = simulate(checked=False)
    program = sim.program()
    pid = program.call(Spawn("sim", [1]))
    process = sim.kernel.table.llm(pid)

    def for_ever(system: System) -> None:
        settle.settle_stale(system)
        system.stale[pid] = process

    monkeypatch.setattr(core, "settle_stale", for_ever)
    program.start(Setsched(pid, nice=3))
    monkeypatch.undo()
    assert sim.kernel.cycle == f"woken: ; stale: [{pid}]; devices: []"
    assert [line.level for line in sim.log if "no end" in line.text] == ["error"]
    assert len(program.call(Decode(pid, 3)).tokens) == 3


def test_a_call_that_waits_in_no_line_is_found() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    waiting = program.start(Decode(pid, 50))
    sim.run_until(lambda: waiting.seq in sim.kernel.programs[program.peer].parked)
    request = sim.kernel.programs[program.peer].parked[waiting.seq]
    assert request.channel is not None
    request.channel.pop(request)
    with pytest.raises(AssertionError, match="waits in no line"):
        invariants.check(sim.kernel)
