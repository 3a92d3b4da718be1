"""The simulator as its users meet it: wrong calls are refused as a kernel refuses them, and what is read is a list."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.simulator import simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Decode, Getinfo, Kill, Ps, Spawn, StatsCall
from tests.booted import booted

WRONG: list[tuple[Any, str]] = [
    (Spawn("sim", [1, 2, 3], name="a\tb"), "spawn: name: text without control characters, found 'a\\tb'"),
    (Spawn("sim", [1, 2, 3.5]), "spawn: tokens[2]: wanted a whole number, found 3.5"),  # type: ignore[list-item]
    (Spawn("sim", "hello"), "spawn: tokens: wanted a list, found 'hello'"),  # type: ignore[arg-type]
    (Spawn("sim", [10**30]), "spawn: a number has more than 64 bits"),
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
