"""Each budget is driven to its end by one program, which is told whose it is and how much, and another goes on.

Every row of the table needs a driver here: a budget without one fails. Amounts are made small first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from llmasos.kernel.calls import context
from llmasos.kernel.edge import capacity
from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls import budgets, wire
from llmasos.syscalls.budgets import Allowance
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Budget
from llmasos.syscalls.table import (
    Feed,
    Fork,
    Getinfo,
    Grant,
    GroupCreate,
    Null,
    Read,
    SandboxOpen,
    Spawn,
    StatsCall,
    Trace,
)
from tests.doorway import Doorway, apart, doorway, reached, until
from tests.zmtp_client import Raw, frame

Shrink = Callable[..., None]


@pytest.fixture
def shrink() -> Iterator[Shrink]:
    """Make a budget smaller, for this test."""

    def shrink(budget: Allowance, **amounts: int) -> None:
        for name, amount in amounts.items():
            before = getattr(budget, name)
            object.__setattr__(budget, name, amount)
            undo.append((budget, name, before))

    undo: list[tuple[Allowance, str, int]] = []
    yield shrink
    for budget, name, before in reversed(undo):
        object.__setattr__(budget, name, before)


# --- budgets of the core: a simulation --------------------------------------------------------------------------------


def end_of(program: Prog, *calls: Any) -> SyscallError:
    """Make calls until one is refused at once; its error."""
    for call in calls:
        future = program.start(call)
        if future.done and future.errno is not Errno.OK:
            with pytest.raises(SyscallError) as caught:
                _ = future.value
            return caught.value
    raise AssertionError("none was refused")


def parked(sim: Simulation, one: Prog) -> SyscallError:
    pid = one.call(Spawn("sim", [1]))
    return end_of(one, *[Read(pid, follow=True, position=1)] * 6)


def parked_bytes(sim: Simulation, one: Prog) -> SyscallError:
    one.call(Spawn("sim", [1]))
    return end_of(one, *[Spawn("sim:another", [60_000] * 100)] * 6)  # it has to be loaded first


def tracers(sim: Simulation, one: Prog) -> SyscallError:
    return end_of(one, *[Trace(timeout=1e4)] * 6)


def logs(sim: Simulation, one: Prog) -> SyscallError:
    return end_of(one, *[Spawn("sim", [1] * 250)] * 20)


def processes(sim: Simulation, one: Prog) -> SyscallError:
    pid = one.call(Spawn("sim", [1]))
    return end_of(one, *[Fork(pid)] * 20)


def groups(sim: Simulation, one: Prog) -> SyscallError:
    path = one.call(Getinfo()).group
    return end_of(one, *[GroupCreate(f"{path}/g{number}") for number in range(6)])


def grants(sim: Simulation, one: Prog) -> SyscallError:
    pid = one.call(Spawn("sim", [1]))
    return end_of(one, *[Grant(pid, "1001", 2)] * 4)


def sandboxes(sim: Simulation, one: Prog) -> SyscallError:
    return end_of(one, *[SandboxOpen()] * 3)


CORE: dict[str, tuple[Callable[[Simulation, Prog], SyscallError], dict[str, int], str]] = {
    "parked calls": (parked, {"each": 3}, r"parked calls of program \d+: 3 of at most 3 are used"),
    "parked bytes": (parked_bytes, {"each": 1000}, r"parked bytes of program \d+: [\d,]+ of at most 1,000 bytes"),
    "trace readers": (tracers, {"each": 2}, r"trace readers of program \d+: 2 of at most 2 are used"),
    "log bytes": (logs, {"each": 10_000}, r"log bytes of group /users/\S+: [\d,]+ of at most 10,000 bytes are used"),
    "processes": (processes, {}, r"do not fit the process table \(\d+ of 12"),
    "groups": (groups, {"each": 3}, r"there are 3 groups in /users/\S+ already"),
    "sandboxes": (sandboxes, {"each": 2}, r"sandboxes of program \d+: 2 of at most 2 are used"),
    "grants": (grants, {"each": 3}, r"grants of process \d+: 3 of at most 3 are used"),
}


@pytest.mark.parametrize("name", CORE)
def test_one_program_reaches_its_end_and_another_goes_on(name: str, shrink: Shrink) -> None:
    budget = next(one for one in budgets.TABLE if one.name == name)
    drive, amounts, said = CORE[name]
    shrink(budget, **amounts)
    sim = simulate(256, max_processes=12) if name == "processes" else simulate(256)
    one, other = sim.program(), sim.program()
    theirs = other.call(Spawn("sim", [1]))
    error = drive(sim, one)
    assert error.errno is budget.errno
    with pytest.raises(SyscallError, match=said):
        raise error
    other.call(Null())
    other.call(Feed(theirs, [2, 3]))
    assert other.call(Read(theirs)).tokens == [1, 2, 3]
    told = {found.name: found for found in other.call(StatsCall()).budgets}[name]
    assert told.refused > 0
    assert told.used <= told.most
    assert told.used or name == "trace readers", "these are answered by what the others do"
    one.disconnect()
    sim.run_idle()
    other.call(Spawn("sim", [1]))  # there is room again
    after = {found.name: found for found in other.call(StatsCall()).budgets}[name]
    assert after.used <= told.used


@pytest.mark.parametrize("level", ["owner", "all"])
def test_an_owner_with_many_programs_reaches_an_end_of_his_own(level: str, shrink: Shrink) -> None:
    shrink(budgets.PARKED, **{level: 5})
    shrink(budgets.LOGS, **{level: 40_000})
    sim = simulate(256)
    several, other = [sim.program(uid=1001) for _ in range(4)], sim.program(uid=1002)
    pids = [program.call(Spawn("sim", [1])) for program in several]
    for program, pid in zip(several[:2], pids, strict=False):
        for _ in range(2):
            program.start(Read(pid, follow=True, position=1))
    last = several[3].start(Read(pids[3], follow=True, position=1))
    assert not last.done
    whose = "owner 1001" if level == "owner" else "all programs"
    with pytest.raises(SyscallError, match=f"parked calls of {whose}: 5 of at most 5"):
        several[2].call(Read(pids[2], follow=True, position=1))
    whose = "group /users/1001" if level == "owner" else "all processes"
    error = end_of(several[2], *[Spawn("sim", [1] * 250)] * 40)
    assert f"log bytes of {whose}: " in error.reason
    other.call(Null())
    if level == "owner":
        mine = other.call(Spawn("sim", [1]))
        waits = other.start(Read(mine, follow=True, position=1))
        assert not waits.done
        other.call(Feed(mine, [1] * 250))
        assert waits.done


def test_calls_that_wait_are_discharged_when_they_are_answered_or_taken_back(shrink: Shrink) -> None:
    shrink(budgets.PARKED, each=2)
    sim = simulate(256)
    one = sim.program()
    pid = one.call(Spawn("sim", [1]))
    for length in range(1, 4):
        waits = Read(pid, follow=True, position=length)
        first, second = one.start(waits), one.start(waits)
        assert end_of(one, waits).errno is Errno.EAGAIN
        one.call(Null())  # what does not wait is taken
        first.cancel()
        one.call(Feed(pid, [2]))
        assert second.done


def test_many_who_wait_for_the_same_tokens_get_few_of_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_WOKEN", 100)
    sim = simulate(256)
    one = sim.program()
    pid = one.call(Spawn("sim", [1]))
    reads = [one.start(Read(pid, position=1, follow=True)) for _ in range(3)]
    one.call(Feed(pid, [7] * 300))
    assert [len(read.value.tokens) for read in reads] == [100] * 3
    assert len(one.call(Read(pid, position=1)).tokens) == 300


# --- budgets of the edge: a door ----------------------------------------------------------------------------------------


async def one_more(way: Doorway) -> bytes:
    """What a program of another OS process gets, which comes now."""
    with await apart(lambda: Raw(way.path)) as other:
        other.send(frame(b"other"))
        return bytes(await apart(other.message))


async def connections(way: Doorway, stack: ExitStack) -> str:
    way.door.capacity.most = capacity.NEWCOMERS + 3
    while not way.door.refused:
        await apart(lambda: stack.enter_context(Raw(way.path)))
    last = await apart(lambda: stack.enter_context(Raw(way.path)))
    reply = wire.decode_reply(await apart(last.message))
    assert reply.errno is budgets.CONNECTIONS.errno
    way.door.capacity.most = 100
    return wire.reason(reply)


async def received(way: Doorway, stack: ExitStack) -> str:
    for _ in range(4):
        one = await apart(lambda: stack.enter_context(Raw(way.path)))
        one.send(frame(bytes(40_000))[:100])
    await until(lambda: way.payers.everybody.received == 120_000)
    one.send(frame(bytes(40_000))[100:])
    return bytes(await apart(one.message)).decode()


async def answers(way: Doorway, stack: ExitStack) -> str:
    one = await apart(lambda: stack.enter_context(Raw(way.path)))
    one.send(frame(b"here"))
    await apart(one.message)
    (peer,) = way.connections
    while way.door.send(peer, bytes(300_000)):
        pass
    assert await apart(one.ends)
    return way.notes[0].partition(": ")[2]


async def notes(way: Doorway, stack: ExitStack) -> str:
    await apart(lambda: stack.enter_context(Raw(way.path)))
    for number in range(4):
        one = await apart(lambda: stack.enter_context(Raw(way.path)))
        one.send(b"\x08\x00")
        assert await apart(one.ends)
        await until(partial(reached, way, number + 1))
    assert len(way.notes) == 2
    return "counted"


EDGE: dict[str, tuple[Callable[[Doorway, ExitStack], Any], dict[str, int], str]] = {
    "connections": (connections, {}, "programs are connected, and more than"),
    "received bytes": (
        received,
        {"process": 120_000},
        f"received bytes of OS process {os.getpid()}: 120,000 of at most 120,000 bytes are used",
    ),
    "waiting answers": (answers, {"each": 1_000_000}, f"waiting answers of a connection of OS process {os.getpid()}: "),
    "log lines": (notes, {"process": 2}, "counted"),
}


@pytest.mark.parametrize("name", EDGE)
def test_one_connection_reaches_its_end_and_another_goes_on(name: str, shrink: Shrink, tmp_path: Path) -> None:
    budget = next(one for one in budgets.TABLE if one.name == name)
    drive, amounts, said = EDGE[name]
    shrink(budget, **amounts)

    async def main() -> None:
        async with doorway(tmp_path) as way:
            with ExitStack() as stack:
                assert said in await drive(way, stack)
                assert await one_more(way) == b"other"
                told: Budget = next(one for one in way.door.budgets() if one.name == name)
                assert told.refused > 0
            await until(lambda: not len(way.door))
            assert way.payers.everybody.received == way.payers.everybody.answers == way.payers.everybody.connections == 0

    trio.run(main)


FILES = {"shown files", "file copies"}  # tests/kernel/test_admission.py, test_file_copies.py


def test_every_budget_is_driven_to_its_end_here() -> None:
    assert sorted({*CORE, *EDGE, *FILES}) == sorted(budget.name for budget in budgets.TABLE)
