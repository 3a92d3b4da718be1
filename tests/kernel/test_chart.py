"""The picture of a schedule shows what happened: it is counted again by the processes' own accounts."""

from __future__ import annotations

import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree

import pytest

from llmasos.simulator import Gantt, Prog, Simulation, gantt, simulate
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import Signal, TraceEvent
from llmasos.syscalls.table import Decode, Getinfo, Kill, Sched, Spawn
from tests.booted import booted


def busy(**more: object) -> tuple[Simulation, Prog, list[int]]:
    sim = simulate(record=True, **more)  # type: ignore[arg-type]
    program = sim.program()
    pids = [program.call(Spawn("sim", [pid, 2, 3] * 10, name=f"p{pid}")) for pid in range(4)]
    futures = [program.start(Decode(pid, 40)) for pid in pids]
    sim.run_until(lambda: all(future.done for future in futures))
    return sim, program, pids


def test_bars_are_the_steps_that_were_done() -> None:
    sim, program, pids = busy(frames=12, max_runs=4, quantum=8)
    chart = gantt(sim)
    device, *rows = chart.rows["sim0"]
    steps = [step for step in sim.steps if step.runs]
    assert [bar.amount for bar in device.bars] == [len(step.runs) for step in steps]
    assert [row.pid for row in rows] == pids
    for row in rows:
        usage = program.call(Getinfo(row.pid)).usage
        assert row.label == f"{row.pid} p{pids.index(row.pid)}"
        runs = [bar for bar in row.bars if bar.kind in ("run", "prompt")]
        assert (len(runs), sum(bar.amount for bar in runs)) == (usage.steps, usage.computed)
        assert sum(mark.kind == "mem.preempt" for mark in row.marks) == usage.preemptions
        for before, after in zip(row.bars, row.bars[1:], strict=False):
            assert before.end <= after.begin + 1e-9, "a process does one thing at a time"
        waited = sum(bar.end - bar.begin for bar in row.bars if bar.kind == "ready")
        assert waited == pytest.approx(usage.waits.get("ready", 0.0))


def test_text_is_as_wide_as_was_asked_and_says_what_its_signs_mean() -> None:
    sim, _, pids = busy(max_runs=1, policy="round_robin", quantum=8)
    text = gantt(sim).text(80)
    lines = text.splitlines()
    assert max(len(line) for line in lines[:-2]) <= 80
    assert lines[0].startswith("sim0 ")
    assert [line.split()[0] for line in lines[1 : 1 + len(pids)]] == [str(pid) for pid in pids]
    shown = {sign for line in lines[1 : 1 + len(pids)] for sign in line.split(maxsplit=2)[2] if sign != " "}
    assert shown == {"█", "▓", "·"}
    assert all(f"{sign} " in lines[-1] for sign in shown)
    # one place, four processes: never two at once
    columns = list(zip(*(line.ljust(80)[5:] for line in lines[1 : 1 + len(pids)]), strict=True))
    assert sum(column.count("█") > 1 for column in columns) < len(columns) // 5, "only where turns change in a cell"


def test_a_picture_is_svg_with_a_bar_for_each_run_and_text_that_cannot_break_it() -> None:
    sim, program, pids = busy()
    program.call(Spawn("sim", [1, 2], name='<&"'))
    program.call(Kill(pids[0], Signal.KILL))
    program.call(Sched(policy="mlfq"))
    sim.crash()
    sim.run_for(1.0)
    chart = gantt(sim)
    root = ElementTree.fromstring(chart.svg(700))
    assert root.get("width") == "700"
    titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    rows = chart.rows["sim0"]
    assert sum("decodes" in title for title in titles) == sum(bar.kind == "run" for row in rows[1:] for bar in row.bars)
    for what in ("has ended", "the driver dies", "another policy"):
        assert sum(what in title for title in titles) == 1, what
    assert chart._repr_svg_().startswith("<svg")


def test_a_part_of_the_time_can_be_drawn() -> None:
    sim, _, _ = busy()
    whole = gantt(sim)
    middle = whole.begin + whole.seconds / 2
    half = gantt(sim, begin=middle)
    assert (half.begin, half.end) == (middle, sim.now)
    assert 0 < len(half.rows["sim0"][0].bars) < len(whole.rows["sim0"][0].bars)


def test_a_simulation_that_does_not_record_says_so() -> None:
    with pytest.raises(SyscallError, match="record=True"):
        gantt(simulate())


def test_events_of_a_trace_are_enough_and_none_are_no_error() -> None:
    events = [
        TraceEvent(0, 1.0, "sched.step", 0, "cpu0", 2, "4+1,5+1"),
        TraceEvent(1, 1.5, "mem.preempt", 6, "cpu0", 3, ""),
        TraceEvent(2, 2.0, "sched.done", 0, "cpu0", 2, "1000.000 ms"),
        TraceEvent(3, 2.0, "sched.step", 0, "cpu0", 1, "5+1"),
        TraceEvent(4, 3.0, "proc.exit", 5, "", 0, "killed"),
    ]
    rows = Gantt(events).rows["cpu0"]
    assert [(row.label, [(bar.begin, bar.end) for bar in row.bars]) for row in rows] == [
        ("cpu0", [(1.0, 2.0), (2.0, 3.0)]),
        ("4", [(1.0, 2.0)]),
        ("5", [(1.0, 2.0), (2.0, 3.0)]),
        ("6", []),
    ]
    assert [mark.kind for row in rows for mark in row.marks] == ["proc.exit", "mem.preempt"]
    assert Gantt([]).rows == {}
    assert Gantt([]).text()
    ElementTree.fromstring(Gantt([]).svg())


@pytest.mark.processes
def test_the_schedule_of_a_running_kernel_is_drawn() -> None:
    with booted("--device", "sim:time_scale=0.05,vocab=1000") as kernel, kernel.connect() as client:
        pid = client(Spawn("sim", [1, 2, 3]))
        words = [sys.executable, "-m", "llmasos.simulator", "--runtime", str(kernel.place), "--seconds", "0.3"]
        drawing = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        stop = threading.Event()

        def decode() -> None:
            while not stop.is_set():
                client(Decode(pid, 50))

        thread = threading.Thread(target=decode)
        thread.start()
        try:
            said, _ = drawing.communicate(timeout=120)
        finally:
            stop.set()
            thread.join()
    assert drawing.returncode == 0
    assert said.startswith("sim0")
    assert f"\n{pid} " in said
    assert "█ decodes" in said
