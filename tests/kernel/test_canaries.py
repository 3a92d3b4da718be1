"""What one owner has is in nothing that another gets: texts, names, secrets and paths are planted, and looked for in
every answer."""

from __future__ import annotations

import itertools
from typing import Any, cast

import msgspec
import pytest

from llmasos.drivers.protocol import Measured
from llmasos.kernel import events
from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls import table
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import Sampler
from llmasos.syscalls.table import Call, Checkpoint, Feed, GroupCreate, Inventory, Records, Spawn, Trace

CANARY = "canary"
NUMBERS = (77_111, 77_112, 77_113)
ASK = [  # all that only looks, and calls by numbers that may be another's
    table.BootInfoCall(),
    table.StatsCall(),
    table.Trace(start=0),
    table.Dmesg(),
    table.Getinfo(),
    table.Ps(),
    table.Models(),
    table.GroupStat("/", below=True),
    table.Estimate("sim"),
    table.Inventory(),
    table.Sched(),
    table.GroupCreate("mine"),
]


@pytest.fixture(params=["count", "rows"])
def sim(request: pytest.FixtureRequest) -> Simulation:
    """Others see of a process that there is one, or a row of it ([privacy] ps)."""
    sim = simulate(
        show_all=request.param == "rows",
        options={"vocab": str(100_000)},
        journal_path=f"/var/{CANARY}-journal",
        audit=f"/var/{CANARY}-audit",
        audit_required=["limits"],
        arguments=[f"--model={CANARY}-argument"],
    )
    sim.event(events.Measured("ab" * 32, 400, f"/opt/{CANARY}-package"))
    return sim


def plant(sim: Simulation, program: Prog) -> None:
    """Somebody works: everything that he names or says is his."""
    program.call(GroupCreate(f"{CANARY}-group"))
    pid = program.call(
        Spawn(
            "sim",
            list(NUMBERS),
            name=f"{CANARY}-name",
            group=f"{CANARY}-group",
            sampler=Sampler(seed=77_777_111),
            records=[f"{CANARY}-record".encode()],
        )
    )
    program.call(Feed(pid, list(NUMBERS), [f"{CANARY}-record".encode()]))
    program.call(Checkpoint(pid, f"/home/{CANARY}-image", key=f"{CANARY}-key".encode()))
    assert CANARY.encode() in msgspec.msgpack.encode(program.call(Records(pid)))
    for device in sim.kernel.devices.values():
        for image in device.images.values():
            sim.event(events.FromDevice(device.name, device.incarnation, Measured(image.id, "cd" * 32)))


def troubles(sim: Simulation) -> None:
    """What the edge says of its files."""
    sim.event(events.JournalFails(f"/var/{CANARY}-journal cannot be written"))
    sim.event(events.AuditFails(f"/var/{CANARY}-audit cannot be written"))
    sim.audit_trouble = f"/var/{CANARY}-audit cannot be written"


def answers(program: Prog) -> bytes:
    """All that a program gets to see, as it is on the wire."""
    found = []
    for call in ASK:
        try:
            found.append(msgspec.msgpack.encode(program.call(cast(Call[Any], call))))
        except SyscallError as error:
            found.append(error.reason.encode())
    for number, record in itertools.product((*range(1, 12), 105), (table.Getinfo, table.Read, table.Records, table.Kill)):
        try:
            found.append(msgspec.msgpack.encode(program.call(cast(Call[Any], record(number)))))
        except SyscallError as error:
            found.append(error.reason.encode())
    return b"\n".join(found)


def numbers_in(found: bytes) -> list[int]:
    return [number for number in NUMBERS if msgspec.msgpack.encode(number) in found or str(number).encode() in found]


@pytest.mark.parametrize("whose", [None, 1001])
def test_nothing_of_an_owner_is_in_what_another_gets(sim: Simulation, whose: int | None) -> None:
    guest = sim.program(uid=1002)
    guest.call(Trace(start=0))  # it is being traced while the other works
    owner = sim.program(uid=whose)
    plant(sim, owner)
    found = answers(guest)
    troubles(sim)
    found += answers(guest)
    shown = {CANARY: CANARY.encode() in found, "numbers": bool(numbers_in(found)), "ticket": owner.ticket[8:] in found}
    assert not any(shown.values()), (shown, [part for part in found.split(b"\n") if CANARY.encode() in part])


def test_the_owner_himself_sees_it_or_this_test_sees_nothing(sim: Simulation) -> None:
    owner = sim.program()
    owner.call(Trace(start=0))
    plant(sim, owner)
    found = answers(owner)
    for what in ("name", "group", "journal", "audit", "argument", "package"):
        assert f"{CANARY}-{what}".encode() in found
    assert numbers_in(found)
    assert owner.call(Inventory())
