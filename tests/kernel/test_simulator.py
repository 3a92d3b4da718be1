"""The simulator as its users meet it: wrong calls are refused as a kernel refuses them, and what is read is a list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmasos.simulator import gantt, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import Decode, Fork, Getinfo, Kill, Ps, Spawn, StatsCall
from tests.booted import booted

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "script.toml"
WRONG: list[tuple[Any, str]] = [
    (Spawn("sim", [1, 2, 3], name="a\tb"), "spawn: name: text without control characters, found 'a\\tb'"),
    (Spawn("sim", [1, 2, 3.5]), "spawn: tokens[2]: wanted a whole number, found 3.5"),  # type: ignore[list-item]
    (Spawn("sim", "hello"), "spawn: tokens: wanted a list, found 'hello'"),  # type: ignore[arg-type]
    (Spawn("sim", [10**30]), "spawn: tokens.0: at most 64 bits"),
    (Spawn(None), "spawn: model: wanted text, found None"),  # type: ignore[arg-type]
    (Decode("ada", 5), "decode: pid: wanted a whole number, found 'ada'"),  # type: ignore[arg-type]
    (Decode(4, -1), "decode: max_tokens: from 0 to 2147483647, found -1"),
    (Kill(4, 99), "kill: signal: there is no 99"),  # type: ignore[arg-type]
]
NO_CALLS: list[tuple[Any, str]] = [
    (Spawn, "Spawn is the class of a call; make one: Spawn(...)"),
    ("spawn", "str is no system call"),
    (None, "NoneType is no system call"),
]


def refused(program: Any, call: Any) -> str:
    with pytest.raises(SyscallError) as caught:
        program.call(call)
    assert caught.value.errno is Errno.EINVAL
    return caught.value.reason


@pytest.mark.parametrize("checked", [True, False])
def test_a_wrong_call_is_refused_and_the_simulation_goes_on(checked: bool) -> None:
    sim = simulate(checked=checked)
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3], name="ada"))
    for call, said in (*WRONG, *NO_CALLS):
        assert said in refused(program, call)
        assert program.call(Getinfo(pid)).name == "ada"
    assert [row.name for row in program.call(Ps()) if row.name.startswith(("a", "b"))] == ["ada"]
    bob = program.call(Spawn("sim", [1, 2, 3], name="bob"))
    assert program.call(Decode(bob, 5)).tokens == sim.continuation([1, 2, 3], 5)
    assert all(future.done for future in program.futures.values()), "no number of a call is left open"


@pytest.mark.processes
def test_a_booted_kernel_refuses_the_same_with_the_same_words() -> None:
    program = simulate().program()
    with booted("--device", "sim:vocab=1000") as kernel, kernel.connect() as client:
        for call, _ in WRONG:
            with pytest.raises(SyscallError) as caught:
                client(call)
            assert (caught.value.errno, caught.value.reason) == (Errno.EINVAL, refused(program, call))


def test_what_has_happened_is_lists() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3]))
    program.call(Decode(pid, 20))
    assert [step.runs[0].ctx for step in sim.steps[-3:]] == [pid] * 3
    assert sim.log[-2:] == list(sim.log)[-2:]
    assert program.call(StatsCall()).uptime > 0.0


def test_calls_where_no_kernel_hears_them_say_what_to_do() -> None:
    sim = simulate()
    program, other = sim.program(), sim.program("other")
    pid = program.call(Spawn("sim", [1, 2, 3]))
    with pytest.raises(SyscallError, match=r"EINVAL: .* is connected; it comes back after kill\(\) and boot_again\(\)"):
        program.come_back()
    assert program.call(Getinfo(pid)).pid == pid, "and it is connected still"
    sim.kill()
    now = sim.now
    with pytest.raises(SyscallError, match=r"EPIPE: the kernel has ended \(killed\); sim.boot_again\(\)"):
        program.call(Getinfo(pid))
    assert sim.now == now
    sim.boot_again()
    with pytest.raises(SyscallError, match=r"EPIPE: .*; program.come_back\(\) first"):
        program.call(Getinfo(pid))
    program.come_back()
    assert program.call(Getinfo(pid)).pid == pid
    other.come_back()
    other.disconnect()
    with pytest.raises(SyscallError, match=r"EPIPE: .* has disconnected; sim.program\(\) is a new one"):
        other.call(Ps())
    waiting = program.start(Decode(pid, 5))
    with pytest.raises(AssertionError, match="has no answer yet"):
        _ = waiting.at
    sim.run_until(lambda: waiting.done)
    assert now < waiting.at <= sim.now


def test_a_chart_and_the_log_have_one_clock_though_kernels_die() -> None:
    sim = simulate(record=True)
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3], name="ada"))
    future = program.start(Decode(pid, 40))
    sim.run_for(0.02)
    died = sim.now
    sim.kill()
    sim.run_for(1.0)
    sim.boot_again()
    booted_at = sim.now
    program.come_back()
    sim.run_until(lambda: future.done)
    device, ada = gantt(sim).rows["sim0"]
    assert [mark.at for row in (device, ada) for mark in row.marks if mark.kind == "kernel.down"] == [died]
    for row in (device, ada):
        assert not any(died < (bar.begin + bar.end) / 2 < booted_at for bar in row.bars), (
            "nothing runs while no kernel is there"
        )
        for before, after in zip(row.bars, row.bars[1:], strict=False):
            assert before.end <= after.begin + 1e-9
    assert max(bar.end for bar in device.bars) == pytest.approx(future.at)
    assert [line.at for line in sim.log] == sorted(line.at for line in sim.log)
    assert sim.log[-1].at > booted_at


def test_a_forked_child_is_named_in_a_chart_as_ps_names_it_and_has_a_mark() -> None:
    sim = simulate(record=True)
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3], name="ada"))
    children = [*program.call(Fork(pid)), *program.call(Fork(pid, name="bea"))]
    for child in children:
        program.call(Decode(child, 3))
    rows = {row.pid: row for row in gantt(sim).rows["sim0"]}
    names = {row.pid: row.name for row in program.call(Ps())}
    assert [rows[one].label for one in (pid, *children)] == [f"{one} {names[one]}" for one in (pid, *children)]
    assert [[mark.text for mark in rows[child].marks if mark.kind == "proc.fork"] for child in children] == [
        [f"of {pid}"]
    ] * 2
    program.call(Kill(children[0], Signal.KILL))
    assert f"{children[0]} ada" in gantt(sim).text(), "though it has ended"


def test_a_chart_is_drawn_of_what_trace_prints_as_json() -> None:
    sim = simulate(record=True)
    program = sim.program()
    program.call(Decode(program.call(Spawn("sim", [1, 2, 3], name="ada")), 5))
    assert sim.recorded is not None
    printed = [{"lost": 3}, *({name: getattr(one, name) for name in one.__struct_fields__} for one in sim.recorded)]
    assert gantt(printed, end=sim.now).text() == gantt(sim).text()


def test_a_script_is_heard_and_read_as_text() -> None:
    sim = simulate(options={"script": str(SCRIPT), "vocab": "1000"})
    program = sim.program()
    pid = program.call(Spawn("sim", sim.tokens("My name is Zoë.")))
    assert sim.text(program.call(Decode(pid, 100, stop_ids=[999])).tokens) == "Good day, Zoë."
    with pytest.raises(SyscallError, match="EINVAL: a vocabulary of 20 has no id"):
        simulate(options={"vocab": "20"}).tokens("Hello")
