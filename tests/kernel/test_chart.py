"""The picture of a schedule shows what happened: it is counted again by the processes' own accounts."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree

import pytest
import wcwidth

from llmasos.policies import LLMProcess, Policy
from llmasos.simulator import Gantt, Prog, Simulation, gantt, simulate
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import GroupSettings, Signal, TraceEvent
from llmasos.syscalls.table import BootInfoCall, Decode, Getinfo, GroupCreate, Kill, Sched, Spawn
from tests.booted import booted, eventually

PROMPT, DECODED = 30, 40  # tokens of each process


def busy(**more: object) -> tuple[Simulation, Prog, list[int]]:
    sim = simulate(record=True, **more)  # type: ignore[arg-type]
    program = sim.program()
    pids = [program.call(Spawn("sim", [pid, 2, 3] * (PROMPT // 3), name=f"p{pid}")) for pid in range(4)]
    futures = [program.start(Decode(pid, DECODED)) for pid in pids]
    sim.run_until(lambda: all(future.done for future in futures))
    return sim, program, pids


def test_bars_are_the_steps_that_were_done() -> None:
    sim, program, pids = busy(frames=12, max_runs=4, quantum=8)
    chart = gantt(sim)
    device, *rows = chart.rows["sim0"]
    steps = [step for step in sim.steps if step.runs]
    assert [bar.processes for bar in device.bars] == [len(step.runs) for step in steps]
    assert [bar.tokens for bar in device.bars] == [sum(len(run.tokens) for run in step.runs) for step in steps]
    assert [row.pid for row in rows] == pids
    for row in rows:
        usage = program.call(Getinfo(row.pid)).usage
        assert row.label == f"{row.pid} p{pids.index(row.pid)}"
        runs = [bar for bar in row.bars if bar.kind in ("run", "prompt", "again")]
        assert (len(runs), sum(bar.tokens for bar in runs)) == (usage.steps, usage.computed)
        once = PROMPT + DECODED - 1  # the last token has not been computed yet
        assert sum(bar.again for bar in runs) == usage.computed - once
        assert {bar.kind for bar in runs if bar.again} <= {"again"}
        assert sum(bar.kind == "again" for bar in runs) >= (usage.preemptions > 0)
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
    assert {"█", "·"} <= shown <= {"█", "▓", "·", ","}
    assert all(f"{sign} " in lines[-1] for sign in shown)
    # one place, four processes: never two at once
    columns = list(zip(*(line.ljust(80)[5:] for line in lines[1 : 1 + len(pids)]), strict=True))
    assert sum(column.count("█") > 1 for column in columns) < len(columns) // 5, "only where turns change in a cell"


def test_a_column_shows_what_filled_most_of_it() -> None:
    sim = simulate(record=True)
    program = sim.program()
    program.call(GroupCreate("slow", GroupSettings(tokens_max=50.0)))
    pids = [program.call(Spawn("sim", [n, 2, 3], group="slow")) for n in range(2)]
    for pid in pids:
        program.start(Decode(pid, 400))
    sim.run_for(4.0)
    chart = gantt(sim, 1.0, 4.0)
    device, *rows = (line.split(" ", 2)[2] for line in chart.text(90).splitlines()[:3])
    for row, line in zip(chart.rows["sim0"][1:], rows, strict=True):
        held = sum(min(bar.end, 4.0) - max(bar.begin, 1.0) for bar in row.bars if bar.kind == "quota")
        assert held > 2.5, "it waits nearly all the time"
        assert line.count("q") == pytest.approx(len(line) * held / 3.0, abs=len(line) * 0.2)
    assert set(device.strip()) <= {",", " "}, "busy for a twentieth of the time"


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


def test_a_policy_that_is_taken_out_is_seen_though_another_follows_at_once() -> None:
    class Late(Policy):
        def key(self, process: LLMProcess) -> int:
            return 1 // (process.pid - process.pid) if process.account.decoded > 10 else 0

    sim, _, _ = busy(policy=Late, forgiving=True)
    chart = gantt(sim)
    device, *_ = chart.rows["sim0"]
    marks = [mark for mark in device.marks if mark.kind.startswith("sched.")]
    assert [mark.kind for mark in marks] == ["sched.fault", "sched.policy"]
    assert marks[0].at == marks[1].at
    text = chart.text(80)
    assert "F" in text.splitlines()[0]
    assert "F a policy is taken out" in text
    assert "P another policy" not in text, "what is not seen needs no explanation"
    places = [
        (float(mark.get("x") or 0), mark.text)
        for mark in ElementTree.fromstring(chart.svg()).iter("{http://www.w3.org/2000/svg}text")
        if mark.get("text-anchor") == "middle" and mark.text in ("F", "P")
    ]
    assert [sign for _, sign in sorted(places)] == ["F", "P"], "beside each other"
    assert places[1][0] != places[0][0]


def test_labels_of_wide_characters_leave_the_times_below_each_other() -> None:
    sim = simulate(record=True, max_runs=1)
    program = sim.program()
    names = ["日本語の名前がとても長いです", "🙂", "ada", "<script>alert(1)</script>", "a very long name, the first"]
    for name in names:
        program.call(Decode(program.call(Spawn("sim", [1, 2, 3], name=name)), 3))
    rows = gantt(sim).text(80).splitlines()[1 : 1 + len(names)]
    ends = [wcwidth.wcswidth(row) for row in rows]
    assert len(set(ends[:-1])) > 1, "one after the other"
    starts = [wcwidth.wcswidth(row[: row.index("▓")]) for row in rows]
    assert starts == sorted(starts)
    assert all(wcwidth.wcswidth(row) <= 80 for row in rows)
    assert ["…" in row for row in rows] == [True, False, False, True, True], "a label that was cut says so"


def test_the_axis_has_round_moments_where_they_are_and_says_how_long_a_column_is() -> None:
    events = [TraceEvent(0, 1.0, "sched.step", 0, "cpu0", 1, "4+1"), TraceEvent(1, 2.0, "sched.done", 0, "cpu0", 1, "")]
    chart = Gantt(events)
    lines = chart.text(105).splitlines()  # of 100 columns: 10 ms each
    axis = next(line for line in lines if "|" in line)[5:]
    found = {match.start(): float(match[1]) for match in re.finditer(r"\|([\d.]+) s", axis)}
    assert len(found) >= 3
    assert all(column == pytest.approx((at - 1.0) * 100, abs=1) for column, at in found.items())
    assert "a column is 10 ms" in lines[-1]
    ticks = re.findall(r'x="([\d.]+)" y="16"[^>]*>([\d.]+) s<', chart.svg(1000))
    assert len(ticks) >= 5
    left, right = (next(float(x) for x, at in ticks if float(at) == wanted) for wanted in (1.0, 2.0))
    assert all(float(x) == pytest.approx(left + (right - left) * (float(at) - 1), abs=0.1) for x, at in ticks)


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
        pid = client(Spawn("sim", [1, 2, 3], name="ada"))
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
    assert f"\n{pid} ada " in said
    assert "█ decodes" in said


@pytest.mark.processes
def test_an_idle_kernel_has_no_schedule_and_that_is_said() -> None:
    with booted("--device", "sim:vocab=1000") as kernel:
        with kernel.connect() as program:
            eventually(lambda: all(one.state == "up" for one in program(BootInfoCall()).devices), "its device is up")
        words = [sys.executable, "-m", "llmasos.simulator", "--runtime", str(kernel.place), "--seconds", "0.2"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "nothing ran in these 0.2 s\n")
