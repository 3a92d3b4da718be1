"""Sandboxes in the core: whoever comes by the endpoint of one is confined to what it was granted."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from llmasos.kernel.events import Partition
from llmasos.simulator import Future, Prog, Simulation, simulate, slots
from llmasos.syscalls.budgets import GRANTS
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.pids import pid_of
from llmasos.syscalls.records import BootInfo, Limits, Right, Sampler, Signal
from llmasos.syscalls.table import (
    CONFINED,
    Accept,
    Attach,
    BootInfoCall,
    Call,
    Decode,
    Exit,
    Feed,
    Getinfo,
    Grant,
    Grants,
    GroupCreate,
    Kill,
    Leave,
    Models,
    Null,
    Pagein,
    Ps,
    Read,
    Records,
    Rename,
    Revoke,
    SandboxClose,
    SandboxOpen,
    Setlimits,
    Spawn,
    StatsCall,
    Truncate,
    Wait,
)
from tests.kernel.neighbours import ANN, BEN, CONTROL, LIMITS, READ, SEE, errno_of

SECRETS = 400 if os.environ.get("LLMASOS_WHOLE") else 4


def enter(sim: Simulation, sandbox: int, uid: int | None, chance: int | None = None, **more: Any) -> Prog:
    """A program that has come by the endpoint of a sandbox."""
    program = sim.connection(uid, chance)
    program.sandbox = sandbox
    info: BootInfo = program.call(Attach("tool", seen=0, **more))
    program.pid, program.ticket = info.pid, info.ticket
    return program


@dataclass
class Room:
    """Ann's sandbox, which was granted one of her two processes."""

    uid: int | None = ANN
    sim: Simulation = field(default_factory=lambda: simulate(256))

    def __post_init__(self) -> None:
        self.ann = self.sim.program("starter", uid=self.uid)
        self.mine, self.other = (self.ann.call(Spawn("sim", [1, 2, 3], detached=True)) for _ in range(2))
        self.sandbox = self.ann.call(SandboxOpen()).sandbox
        self.made = self.ann.call(Grant(self.mine, "", READ | CONTROL, sandbox=self.sandbox))


@pytest.mark.parametrize("uid", [None, ANN])
def test_whoever_comes_by_its_endpoint_is_confined_whatever_it_says(uid: int | None) -> None:
    room = Room(uid)
    tool = enter(room.sim, room.sandbox, uid, rights=int(Right.ALL), confined=False)
    assert len(tool.call(Decode(room.mine, 3)).tokens) == 3
    assert {row.pid for row in tool.call(Ps())} == {1, tool.pid, room.mine}
    tool.call(Attach(rights=int(Right.ALL)))  # a second one undoes nothing
    for hidden in (room.other, room.ann.pid):
        assert errno_of(tool, Getinfo(hidden)) is Errno.ESRCH
    refused: list[Call[Any]] = [
        Spawn("sim", [1]),
        StatsCall(),
        SandboxOpen(),
        GroupCreate("x"),
        Setlimits(room.mine, Limits(tokens=1)),
    ]
    for call in refused:
        assert errno_of(tool, call) is Errno.EPERM, call
    assert errno_of(tool, Grant(room.other, str(BEN), READ)) is Errno.ESRCH
    told = tool.call(BootInfoCall())
    assert (told.runtime, told.journal_path, told.arguments, told.audit) == ("", "", [], "")
    (row,) = tool.call(Models())
    assert row.mapped_by == [room.mine]
    assert {row.frames_free, row.frames_cached, row.processes, row.slots_free, row.resident_bytes} == {0}
    assert {row.faults, row.pageins, row.evictions} == {0}
    (device,) = told.devices
    assert (device.ready, device.steps, device.tokens_computed, device.tokens_decoded) == (0, 0, 0, 0)


def test_all_of_its_programs_have_what_it_was_granted_before_and_after_they_came() -> None:
    room = Room()
    tools = [enter(room.sim, room.sandbox, ANN) for _ in range(2)]
    room.ann.call(Grant(room.other, "", READ, sandbox=room.sandbox, seconds=5.0))
    for tool in tools:
        assert tool.call(Read(room.other)).tokens == [1, 2, 3]
        assert errno_of(tool, Feed(room.other, [1])) is Errno.EPERM
    waits = tools[0].start(Read(room.other, 3, follow=True))
    room.sim.ahead += 5.0
    assert errno_of(tools[1], Read(room.other)) is Errno.ESRCH
    assert waits.errno is Errno.EPERM
    room.ann.call(Revoke(room.made.handle))
    assert {row.pid for row in tools[0].call(Ps())} == {1, tools[0].pid}


def test_a_sandbox_gets_no_more_than_its_starter_has() -> None:
    room = Room()
    ben = room.sim.program(uid=BEN)
    sandbox = ben.call(SandboxOpen()).sandbox
    pid = pid_of(ANN, room.mine)
    assert errno_of(ben, Grant(pid, "", READ, sandbox=sandbox)) is Errno.ESRCH
    first = ben.call(Accept(room.ann.call(Grant(room.mine, str(BEN), READ)).ticket))
    assert errno_of(ben, Grant(pid, "", CONTROL, sandbox=sandbox)) is Errno.EPERM
    assert errno_of(ben, Grant(pid, "", READ, sandbox=room.sandbox)) is Errno.ESRCH  # that is another's
    ben.call(Grant(pid, "", READ, sandbox=sandbox))
    tool = enter(room.sim, sandbox, BEN)
    assert tool.call(Read(pid)).tokens == [1, 2, 3]
    assert room.ann.call(Revoke(first.handle)) == 3
    assert errno_of(tool, Read(pid)) is Errno.ESRCH


def test_its_endpoint_is_for_programs_of_its_owner_alone() -> None:
    room = Room()
    for uid, whose in ((BEN, ""), (ANN, "eve")):
        with pytest.raises(SyscallError, match="EPERM"):
            enter(room.sim, room.sandbox, uid, tenant=whose)
    tenant = room.sim.program(uid=ANN, tenant="acme")
    within = enter(room.sim, tenant.call(SandboxOpen()).sandbox, ANN)
    assert room.sim.kernel.table.get(pid_of(ANN, within.pid)).owner.tenant == "acme"


def test_it_ends_with_its_starter_and_when_that_closes_it() -> None:
    for close in (True, False):
        room = Room()
        tool = enter(room.sim, room.sandbox, ANN)
        waits = tool.start(Read(room.mine, 3, follow=True))
        if close:
            room.ann.call(SandboxClose(room.sandbox))
            assert errno_of(room.ann, SandboxClose(room.sandbox)) is Errno.ESRCH
        else:
            room.ann.disconnect()
        assert waits.errno is Errno.EPERM
        room.sim.run_for(0.1)
        assert not tool.connected
        assert room.sandbox not in room.sim.sandboxes
        with pytest.raises(SyscallError, match="closed"):
            enter(room.sim, room.sandbox, ANN)
        assert not list(room.sim.kernel.grants)


def test_no_ticket_leads_out_of_it_nor_into_it() -> None:
    room = Room()
    tool = enter(room.sim, room.sandbox, ANN)
    room.sim.kill()
    room.sim.boot_again()
    for sandbox, ticket in ((room.sandbox, room.ann.ticket), (0, tool.ticket)):
        stranger = room.sim.connection(ANN)
        stranger.sandbox = sandbox
        assert errno_of(stranger, Attach(ticket=ticket, seen=0)) is Errno.ESRCH


def test_it_survives_the_kernel() -> None:
    room = Room()
    tool = enter(room.sim, room.sandbox, ANN)
    for _ in range(2):
        room.sim.kill()
        room.sim.sandboxes.clear()
        room.sim.boot_again()
        assert room.sim.sandboxes == {room.sandbox}
        for program in (room.ann, tool):
            program.come_back()
        assert len(tool.call(Decode(room.mine, 2)).tokens) == 2
        assert errno_of(tool, Getinfo(room.other)) is Errno.ESRCH
        assert enter(room.sim, room.sandbox, ANN).call(Read(room.mine, 0)).tokens[:3] == [1, 2, 3]
    room.ann.call(SandboxClose(room.sandbox))
    room.sim.kill()
    room.sim.boot_again()
    assert not room.sim.kernel.sandboxes


def test_what_it_is_granted_after_the_kernels_death_only_its_own_programs_have() -> None:
    room = Room()
    ben, tool = room.sim.program(uid=BEN), enter(room.sim, room.sandbox, ANN)
    room.sim.kill()
    room.sim.boot_again()
    for program in (room.ann, ben, tool):
        program.come_back()
    room.ann.call(Grant(room.other, "", READ, sandbox=room.sandbox))
    assert tool.call(Read(room.other)).tokens == [1, 2, 3]
    assert errno_of(ben, Read(pid_of(ANN, room.other))) is Errno.ESRCH


@pytest.mark.parametrize("least", [{"process": 1}, {"all": 3}])
def test_who_would_get_more_grants_than_there_may_be_does_not_come_in(
    least: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room()
    room.ann.call(Grant(room.other, "", READ, sandbox=room.sandbox))
    monkeypatch.setattr("llmasos.kernel.sandboxes.GRANTS", replace(GRANTS, **least))
    with pytest.raises(SyscallError, match="EDQUOT"):
        enter(room.sim, room.sandbox, ANN)
    monkeypatch.undo()
    assert enter(room.sim, room.sandbox, ANN).call(Read(room.other)).tokens == [1, 2, 3]


def test_it_is_in_the_group_of_its_starter_whose_limits_hold() -> None:
    room = Room()
    tool = enter(room.sim, room.sandbox, ANN)
    assert tool.call(Getinfo()).group == room.ann.call(Getinfo()).group


# --- two confined programs ------------------------------------------------------------------------------------------


class Tool:
    """A confined program that makes random calls at random times, all that it can make, and some connections more."""

    def __init__(self, sim: Simulation, uid: int, sandbox: int, pid: int, chance: random.Random, calls: int) -> None:
        self.sim, self.uid, self.sandbox, self.pid, self.chance = sim, uid, sandbox, pid, chance
        self.programs = [enter(sim, sandbox, uid, uid)]
        self.made: list[Future[Any]] = []
        for moment in sorted(chance.random() * 3.0 for _ in range(calls)):
            sim.at(sim.now + moment, self.act)

    def calls(self) -> list[Call[Any]]:
        chance, pid, program = self.chance, self.pid, self.programs[0]
        tokens = [chance.randrange(900) for _ in range(chance.choice([1, 17, 40]))]
        named = chance.choice([pid, pid, pid, chance.randrange(1, 120), program.pid])
        strange = named if named != pid else 1
        return [
            Null(), BootInfoCall(), Ps(), Models(), Grants(), Grant(pid, str(self.uid), chance.randrange(1, 16)),
            Accept(b"no ticket"), Revoke(chance.randrange(1, 9)), Feed(pid, tokens), Decode(pid, 0, logprobs=2),
            Read(named), Records(named), Truncate(pid, 3), Getinfo(named), Wait(named, timeout=0.0), Rename(pid, "n"),
            Setlimits(named), Pagein("sim"),
            Setlimits(pid, Limits(tokens=chance.randrange(5000, 9999))), Exit(strange), Spawn("sim", [1]), StatsCall(),
            Kill(pid, chance.choice([Signal.STOP, *[Signal.CONT] * 3, Signal.INT])), *[Kill(pid, Signal.CONT)] * 3,
            *[Decode(pid, chance.randrange(1, 400)) for _ in range(10)],
        ]  # fmt: skip

    def act(self) -> None:
        program = self.chance.choice(self.programs)
        if self.chance.random() < 0.1:
            self.programs.append(self.enter_later())
        elif program.connected:
            self.made.append(program.start(self.chance.choice(self.calls())))
            if not program.connected or program.futures[1].errno is not Errno.OK:
                self.programs.remove(program)

    def enter_later(self) -> Prog:
        program = self.sim.connection(self.uid, 1000 * self.uid + len(self.made))
        program.sandbox = self.sandbox
        self.made.append(program.start(Attach("tool", seen=0)))
        return program

    def seen(self) -> list[tuple[object, ...]]:
        """What came back, and when."""
        return [
            (str(one.call), one.errno, one.at if one.done else None, one.reply and (one.reply.value, one.reply.reason))
            for one in self.made
        ]


def transcript(secret: int, *, parted: bool = True) -> list[tuple[object, ...]]:
    """What a confined program of Ann's sees, whose life is always the same, beside one of Ben's that has a secret; 0: it
    does nothing."""
    partition = Partition([str(ANN)], 0.02) if parted else Partition()
    sim = simulate(24, max_runs=3, partition=partition, options={"swap": slots(32)}, checked=secret == 1)
    sim.program("operator").call(Pagein("sim"))
    places = []
    for uid in (ANN, BEN):
        starter = sim.program("starter", uid=uid, chance=uid)
        pid = starter.call(Spawn("sim", [1, 2, 3], Sampler(temperature=1.0, seed=7), detached=True))
        sandbox = starter.call(SandboxOpen()).sandbox
        starter.call(Grant(pid, "", SEE | READ | CONTROL | LIMITS, sandbox=sandbox))
        places.append((sandbox, pid))
    sim.run_for(1.0 - sim.now)
    tool = Tool(sim, ANN, *places[0], random.Random(7), 60)
    if secret:
        Tool(sim, BEN, *places[1], random.Random(secret), 90)
    sim.run_for(5.0)
    return tool.seen()


def test_two_confined_programs_pass_no_bit_by_any_call_under_a_partition() -> None:
    alone = transcript(0)
    assert sum(one[1] is Errno.OK for one in alone) > 20
    for secret in range(1, SECRETS):
        assert transcript(secret) == alone, f"the other's secret {secret} shows"


def test_without_a_partition_times_tell_of_the_other() -> None:
    """The test above sees what there is to be seen; and without times there is nothing."""
    runs = [transcript(secret, parted=False) for secret in (0, 3)]
    assert runs[0] != runs[1]


def test_the_lives_of_confined_programs_have_all_their_calls_in_them() -> None:
    made = Tool.__new__(Tool)
    made.chance, made.pid, made.uid = random.Random(1), 100, ANN
    made.programs = [Prog(simulate(8), 0)]
    assert {type(call) for call in made.calls()} | {Attach, Leave} >= set(CONFINED) - _OTHERS, "a call is missing"


# Of these only the refusal can be had: there is a right beside CONTROL that a confined program has given up.
_OTHERS = frozenset(record for record in CONFINED if record.__name__ in ("Fork", "Exec", "Detach", "Setsched", "Shred"))
