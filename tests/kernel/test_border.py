"""What the simulator is given and cannot use is refused as by a system call: errno, the name of the argument, a hint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmasos.kernel.events import KernelConfig
from llmasos.policies import Policy
from llmasos.simulator import Simulation, gantt, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import TraceEvent
from llmasos.syscalls.table import Null

NAN = float("nan")
Act = Callable[[Simulation, Any], object]


@pytest.fixture(scope="module")
def sim() -> Simulation:
    return simulate(record=True)


# For each call the values that it refuses, and what is said of them beside the name of the argument.
WRONG: dict[str, tuple[Act, list[Any], str]] = {
    "simulate() frames": (lambda s, x: simulate(x), [0, -1, 2.5, "64", None, True], "a whole number, 1 or more"),
    "simulate() record": (lambda s, x: simulate(record=x), ["yes", 1], "True or False"),
    "simulate() quantum": (lambda s, x: simulate(quantum=x), [0, -1, "8", 1.5, None], ""),
    "simulate() max_runs": (lambda s, x: simulate(max_runs=x), [-1, "4"], ""),
    "simulate() aging_seconds": (lambda s, x: simulate(aging_seconds=x), [-1, "2", NAN], ""),
    "devices": (lambda s, x: simulate(devices=x), [0, -1, 1.5, "2", 65], "from 1 to 64"),
    "options": (lambda s, x: simulate(options=x), [3, "context=9", [1]], "a dictionary of a device's options"),
    "options['context']": (lambda s, x: simulate(options={"context": x}), [None, [1], {}], "text or a number"),
    "others": (lambda s, x: simulate(devices=2, others=x), [3], "a dictionary"),
    "policy": (lambda s, x: simulate(policy=x), [3, None, Policy("x")], ""),  # type: ignore[arg-type]
    "run_for() duration": (lambda s, x: s.run_for(x), [-1, NAN, float("inf"), "1", None], "a number, 0 or more"),
    "run_until() done": (lambda s, x: s.run_until(x), [3, None, True], "a function"),
    "run_until() limit": (lambda s, x: s.run_until(lambda: True, x), [-1, NAN, "1"], "a number, 0 or more"),
    "run_idle() limit": (lambda s, x: s.run_idle(x), [-1, "1"], "a number"),
    "at() moment": (lambda s, x: s.at(x, print), [-1, NAN, "now"], "a number, 0 or more"),
    "at() action": (lambda s, x: s.at(1, x), [3, None], "a function"),
    "driver() name": (lambda s, x: s.crash(x), [3, None], "the name of a device"),
    "crash() outside": (lambda s, x: s.crash(outside=x), [3, "yes"], "True or False"),
    "hang() mute": (lambda s, x: s.hang(mute=x), [3], "True or False"),
    "program() name": (lambda s, x: s.program(x), [3, None], "text"),
    "continuation() count": (lambda s, x: s.continuation([1], x), [-1, 2.5, "3"], "a whole number, 0 or more"),
    "gantt() begin": (lambda s, x: gantt(s, x), [-1, NAN, "0"], "a number, 0 or more (or None)"),
    "gantt() end": (lambda s, x: gantt(s, 0.1, x), [-1, 0.05, "0"], ""),
    "gantt() source": (lambda s, x: gantt(x), [3, None, "events", [1]], "a simulation, or trace events"),
    "text() width": (lambda s, x: gantt(s).text(x), [0, -5, 1.5, "80", 19], "20 or more"),
    "svg() width": (lambda s, x: gantt(s).svg(x), [0, -5, "80"], "300 or more"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_by_its_name(sim: Simulation, name: str) -> None:
    act, values, said = WRONG[name]
    before = sim.now, sim.events
    for value in values:
        with pytest.raises(SyscallError) as caught:
            act(sim, value)
        assert caught.value.errno is Errno.EINVAL, value
        assert name in caught.value.reason, value
        assert said in caught.value.reason, value
        assert caught.value.hint
    assert (sim.now, sim.events) == before, "nothing has happened"


def test_keywords_and_arguments_that_there_are_none_of_are_named_with_what_was_meant(sim: Simulation) -> None:
    with pytest.raises(SyscallError, match=r"simulate\(\) takes no 'quantun'; did you mean quantum\?"):
        simulate(quantun=3)
    with pytest.raises(SyscallError, match=r"gantt\(\) takes no 'start'.*It takes source, begin, end"):
        gantt(sim, start=3)  # type: ignore[call-arg]
    with pytest.raises(SyscallError, match=r"run_for\(\): missing a required argument: 'duration'"):
        sim.run_for()  # type: ignore[call-arg]
    with pytest.raises(SyscallError, match=r"no device 'sim7'; there are: sim0") as caught:
        sim.crash("sim7")
    assert caught.value.errno is Errno.ENODEV


def test_an_error_of_ones_own_is_ones_own(sim: Simulation) -> None:
    def done() -> bool:
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        sim.run_until(done)


def test_options_may_be_numbers() -> None:
    sim = simulate(options={"context": 77, "overhead": 0.002, "time_scale": 0})
    assert sim.model().context == 77
    assert isinstance(sim.kernel.config, KernelConfig)
    sim.program().call(Null())


def test_an_option_that_the_device_does_not_have_is_named() -> None:
    with pytest.raises(SyscallError, match="no option 'contex'"):
        simulate(options={"contex": 77})


def test_events_of_a_trace_are_a_source() -> None:
    assert gantt([TraceEvent(0, 1.0, "sched.step", 0, "cpu0", 2, "4+1,5+1")]).rows.keys() == {"cpu0"}
