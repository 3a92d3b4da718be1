"""The table of the trace's events is what the kernel emits, and what it says of a field is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from docs import generate
from llmasos.simulator import simulate
from llmasos.syscalls.records import GroupSettings, SchedClass, Signal, TraceEvent
from llmasos.syscalls.table import Decode, Fork, GroupCreate, GroupKill, Kill, Sched, Setsched, Spawn
from llmasos.syscalls.trace_events import EVENTS, shape, undeclared
from llmasos.userland.shell import man

KERNEL = Path(__file__).resolve().parents[2] / "kernel"
FIELDS = ("pid", "device", "amount", "detail")
MOVES = ("mem.out", "mem.in")  # whose name is a variable where they are emitted


def emitted() -> dict[str, set[str]]:
    """Read from the kernel's source: the names of its events, and the fields that are given to each."""
    found: dict[str, set[str]] = {}
    for file in KERNEL.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit":
                if ast.unparse(node.func.value).endswith("trace"):  # the trace's own
                    continue
                name, *rest = node.args
                given = {field for field, _ in zip(FIELDS, rest, strict=False)} | {str(k.arg) for k in node.keywords}
                given -= {f for f, one in zip(FIELDS, rest, strict=False) if ast.unparse(one) in ("0", "''")}
                for one in names(name):
                    found.setdefault(one, set()).update(given)
    return found


def names(node: ast.expr) -> list[str]:
    match node:
        case ast.Constant(value=str(value)):
            return [value]
        case ast.IfExp():
            return [*names(node.body), *names(node.orelse)]
        case ast.JoinedStr(values=[ast.Constant(value=str(family)), *_]):
            return [next(one for one in EVENTS if one.startswith(family) and one.rpartition(".")[2].isupper())]
        case ast.Name(id="what"):
            return list(MOVES)
    raise AssertionError(f"what is emitted by {ast.unparse(node)}?")


def test_the_kernel_emits_what_the_table_has_with_the_fields_that_it_tells() -> None:
    found = emitted()
    found["sig.SIGNAL"] |= found.pop("sig.chld") | found.pop("sig.xcpu")
    found["journal.whole"].discard("detail")  # empty then
    found["proc.state"] = {"pid", "device", "detail"}  # simulations' own
    found["kernel.down"] = {"device"}
    assert found == {name: {field for field in FIELDS if getattr(event, field)} for name, event in EVENTS.items()}


@pytest.mark.parametrize(
    ("event", "wrong"),
    [
        (TraceEvent(0, 0.0, "proc.dance"), "proc.dance is no event"),
        (TraceEvent(0, 0.0, "sched.set", 4, "", 1, "batch"), ""),
        (TraceEvent(0, 0.0, "sched.set", 4, "sim0"), "has a device"),
        (TraceEvent(0, 0.0, "call.fork", 4, "", 1, "fork(pid=3)"), ""),
        (TraceEvent(0, 0.0, "journal.whole", detail="x"), "has a detail"),
    ],
)
def test_what_the_table_does_not_tell_is_found(event: TraceEvent, wrong: str) -> None:
    assert wrong in undeclared(event)
    assert bool(wrong) == bool(undeclared(event))


def test_a_day_of_a_simulation_has_nothing_that_the_table_does_not_tell() -> None:
    """Simulations that record look at each event; here are many kinds of them."""
    sim = simulate(frames=12, max_runs=4, quantum=8, record=True)
    program = sim.program()
    program.call(GroupCreate("lab", GroupSettings(tokens_max=50.0)))
    pids = [program.call(Spawn("sim", [n, 2, 3] * 10, group="lab" if n == 1 else "")) for n in range(4)]
    futures = [program.start(Decode(pid, 40)) for pid in pids]
    sim.run_for(0.02)
    program.call(Setsched(pids[0], 1, SchedClass.BATCH))
    program.call(Sched(policy="mlfq"))
    program.call(Fork(pids[2]))
    sim.crash()
    sim.run_until(lambda: all(future.done for future in futures))
    program.call(Kill(pids[0], Signal.TERM))
    program.call(GroupKill("lab", Signal.KILL))
    assert sim.recorded is not None
    kinds = {event.what for event in sim.recorded}
    assert {"sched.again", "mem.preempt", "driver.down", "group.held", "proc.state", "sig.term"} <= kinds
    assert all(shape(kind) for kind in kinds)
    for event in sim.recorded:
        if event.what == "sched.step":
            runs = re.findall(r"\d+\+(\d+)", event.detail)
            assert sum(map(int, runs)) == event.amount, "tokens, as the table says"


def test_the_manual_and_its_page_have_all_of_them() -> None:
    page = generate.page()
    for topic in ("trace", "strace"):
        assert set(EVENTS) <= {part.term for part in man.page(topic)}
    assert all(f"| `{name}` | " in page for name in EVENTS)
