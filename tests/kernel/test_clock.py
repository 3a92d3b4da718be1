"""The kernel's clock: exact where it decides, seconds where it reports."""

from __future__ import annotations

import enum
from collections import deque
from fractions import Fraction
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.clock import SECOND, nanoseconds, seconds
from llmasos.kernel.groups.group import Group
from llmasos.simulator import Simulation, small_config
from llmasos.syscalls.records import GroupSettings
from llmasos.syscalls.table import Decode, Feed, GroupCreate, Spawn

_PLAIN = str | bytes | int | float | enum.Enum | type | FunctionType | BuiltinFunctionType | MethodType
YEAR = 365 * 86_400 * SECOND

REPORTS = {  # fields that may hold floats: settings as they were given, reports, and what a program or driver has said
    "_Share.total",
    "_Share.averages",
    "Thrash.lost",
    "Image.progress",
    "LogLine.at",
    "TraceEvent.at",
    "GroupSettings.tokens_max",
    "Sampler.temperature",
    "Sampler.top_p",
    "Sampler.min_p",
    "Sampler.repetition_penalty",
    "Sampler.presence_penalty",
    "Sampler.frequency_penalty",
    "Decode.deadline",
    "Wait.timeout",
    "Waiting.timeout",
    "Tier.bandwidth",
    "Sizes.heartbeat_seconds",
    "KernelConfig.weight_quantum",
    "Partition.turn",
    "KernelConfig.aging_seconds",
    "KernelConfig.hang_seconds",
    "KernelConfig.start_seconds",
    "KernelConfig.restart_first",
    "KernelConfig.restart_max",
    "KernelConfig.restart_forgiven",
    "KernelConfig.idle_seconds",
    "KernelConfig.pagein_seconds",
    "KernelConfig.grace",
    "KernelConfig.cut_grace",
}


@given(st.integers(0, YEAR // 10))
def test_a_moment_survives_being_told_in_seconds(moment: int) -> None:
    assert nanoseconds(seconds(moment)) == moment


@given(st.integers(0, YEAR), st.floats(0, 86_400))
def test_a_deadline_is_as_far_as_was_asked_for_to_the_nanosecond(now: int, timeout: float) -> None:
    assert abs((now + nanoseconds(timeout) - now) / SECOND - timeout) <= 1e-9


def floats(root: Any) -> set[str]:
    """The fields, as Class.field, in which a float lies anywhere below `root`."""
    found: set[str] = set()
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [("", root)]
    while todo:
        place, one = todo.pop()
        if isinstance(one, float):
            found.add(place)
        if isinstance(
            one, str | bytes | int | float | enum.Enum | type | FunctionType | BuiltinFunctionType | MethodType
        ):
            continue
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            todo += [(place, part) for pair in one.items() for part in pair]
        elif isinstance(one, list | tuple | set | frozenset | deque) and not hasattr(one, "_fields"):
            todo += [(place, part) for part in one]
        names = {name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())} | {
            *getattr(one, "__dict__", ()),
            *getattr(one, "__struct_fields__", ()),
            *getattr(one, "_fields", ()),
        }
        todo += [(f"{type(one).__name__}.{name}", getattr(one, name)) for name in names if hasattr(one, name)]
    return found


def test_no_float_lies_in_what_the_core_decides_by() -> None:
    sim = Simulation(small_config(frames=30, devices=2))
    program = sim.program()
    program.call(GroupCreate("/a", GroupSettings(tokens_max=500.0, kv_high=4096)))
    pids = [program.call(Spawn("sim", tokens=[1 + n] * 40, group="/a" if n % 2 else "")) for n in range(6)]
    for pid in pids:
        program.start(Decode(pid, 60, deadline=3.0))
    looked = 0
    for _ in range(2000):
        if not sim.kernel.devices["sim0"].in_flight:
            sim.step()
            continue
        sim.step()
        if looked < 40:
            looked += 1
            assert floats(sim.kernel) - REPORTS == set()
    sim.run_idle()
    program.call(Feed(pids[0], [5]))
    assert looked == 40
    assert floats(sim.kernel) - REPORTS == set()


def test_the_walk_finds_a_float_wherever_it_lies() -> None:
    sim = Simulation(small_config())
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[1, 2, 3]))
    process = sim.kernel.table.llm(pid)
    process.turn = 0.5  # type: ignore[assignment]
    assert floats(sim.kernel) - REPORTS == {"LLMProcess.turn"}


@pytest.mark.parametrize("rate", ["0.000001", "0.0001", "0.3", "7", "1000000000000"])
def test_a_rate_of_tokens_is_kept_to_the_nanosecond_however_it_is_asked(rate: str) -> None:
    group = Group("g", Group(), GroupSettings(tokens_max=float(rate)))
    now = 0
    group.charge_tokens(group.allowance(now), now)
    for _ in range(50):
        wait = group.wait(now)
        if wait > 1:
            assert group.wait(now + wait - 1) == 1
        now += wait
        assert group.wait(now) == 0
        group.charge_tokens(1, now)
    wanted = 50 * SECOND / Fraction(rate)
    assert wanted <= now < wanted + 50, "each wait is rounded up, and a full bucket overflows"
