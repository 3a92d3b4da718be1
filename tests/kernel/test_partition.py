"""The partition: what one owner sees, and when he sees it, is the same whatever another does."""

from __future__ import annotations

import os
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from llmasos.kernel.core import Kernel
from llmasos.kernel.edge import boot_config, settings
from llmasos.kernel.events import Partition
from llmasos.kernel.groups.group import Group, GroupTree
from llmasos.kernel.memory.frames import FramePool
from llmasos.kernel.memory.page_table import PageTable
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.tokens import log_of
from llmasos.simulator import Future, Prog, Simulation, simulate, slots
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Sampler, SchedClass, Signal
from llmasos.syscalls.table import Decode, Evict, Feed, Fork, Kill, Pagein, Setsched, Spawn, Truncate

SECRETS = 1000 if os.environ.get("LLMASOS_WHOLE") else 4
TURN = 0.02
WHOSE = [
    ("1001", 1001, ""),
    ("1001/his tenant", 1001, "his tenant"),
    ("1002", 1002, ""),
    ("1002/acme", 1002, "acme"),
    ("1003", 1003, ""),
]


def parted(frames: int = 24, owners: tuple[str, ...] = ("1001",), **more: Any) -> Simulation:
    partition = Partition(list(owners), TURN)
    sim = simulate(frames=frames, max_runs=3, partition=partition, options={"swap": slots(32)}, **more)
    sim.program("operator").call(Pagein("sim"))
    return sim


class Life:
    """A program that does what a random generator says, at times that it says."""

    def __init__(self, sim: Simulation, program: Prog, chance: random.Random, calls: int, until: float) -> None:
        self.sim, self.program, self.chance = sim, program, chance
        self.pids: list[int] = []
        self.made: list[Future[Any]] = []
        start = sim.now
        for moment in sorted(chance.random() * until for _ in range(calls)):
            sim.at(start + moment, self.act)

    def act(self) -> None:
        chance = self.chance
        for future in self.made:
            if isinstance(future.call, Spawn | Fork) and future.errno is Errno.OK:
                found = future.value if isinstance(future.value, list) else [future.value]
                self.pids += [pid for pid in found if pid not in self.pids]
        tokens = [chance.randrange(900) for _ in range(chance.choice([1, 17, 40, 90]))]
        pid = chance.choice(self.pids) if self.pids else 0
        calls = [Spawn("sim", tokens=tokens, sampler=Sampler(temperature=1.0, seed=chance.randrange(99)))]
        calls[0] = Spawn("sim", tokens=tokens, sampler=Sampler(seed=1), nice=chance.randrange(20))
        if pid:
            calls += [
                Decode(pid, chance.randrange(1, 60)),  # type: ignore[list-item]
                Feed(pid, tokens),  # type: ignore[list-item]
                Fork(pid, 2),  # type: ignore[list-item]
                Kill(pid, chance.choice([Signal.STOP, Signal.CONT, Signal.KILL, Signal.INT])),  # type: ignore[list-item]
                Setsched(pid, nice=chance.randrange(20), sched_class=chance.choice(list(SchedClass)[1:])),  # type: ignore[list-item]
                Truncate(pid, 3),  # type: ignore[list-item]
                Evict("sim"),  # type: ignore[list-item]
            ]
        self.made.append(self.program.start(chance.choice(calls)))

    def seen(self) -> list[tuple[object, ...]]:
        """What came back, and when."""
        return [
            (str(one.call), one.errno, one.at if one.done else None, one.reply and (one.reply.value, one.reply.reason))
            for one in self.made
        ]


def transcript(secret: int, **more: Any) -> list[tuple[object, ...]]:
    """What alice sees, whose life is always the same, beside a bob who has a secret; 0: he does nothing."""
    sim = parted(checked=secret == 1, **more)
    alice, bob = sim.program("alice", uid=1001, chance=5), sim.program("bob", uid=1002)
    start = sim.now
    sim.run_for(1.0 - start)
    life = Life(sim, alice, random.Random(7), 40, 3.0)
    if secret:
        Life(sim, bob, random.Random(secret), 60, 3.0)
    sim.run_for(5.0)
    assert not any("a turn of the partition" in line.text for line in sim.log)
    return life.seen()


@pytest.mark.timeout(7200 if SECRETS > 100 else 300)
def test_what_an_owner_sees_and_when_does_not_depend_on_others() -> None:
    alone = transcript(0)
    assert sum(one[1] is Errno.OK for one in alone) > 20
    for secret in range(1, SECRETS):
        assert transcript(secret) == alone, f"bob's secret {secret} shows"


def test_without_a_partition_others_are_felt() -> None:
    """The test above sees what there is to be seen."""
    times = set()
    for secret in (0, 1):
        sim = simulate(frames=24, max_runs=3, options={"swap": slots(32)}, checked=False)
        alice, bob = sim.program("alice", uid=1001, chance=5), sim.program("bob", uid=1002)
        sim.run_for(1.0 - sim.now)
        life = Life(sim, alice, random.Random(7), 40, 3.0)
        if secret:
            Life(sim, bob, random.Random(secret), 60, 3.0)
        sim.run_for(5.0)
        times.add(str([one[2] for one in life.seen()]))
    assert len(times) == 2


def test_steps_begin_with_the_turns_of_their_owners() -> None:
    sim = parted(owners=("1001", "1002"))
    programs = [sim.program(uid=1001), sim.program(uid=1002), sim.program()]
    for program in programs:
        pid = program.call(Spawn("sim", tokens=[1, 2]))
        program.start(Decode(pid, 40))
    sim.run_for(0.3)
    began: list[tuple[int, float]] = []
    device = sim.kernel.devices["sim0"]
    while len(began) < 9:
        sim.step()
        flight = device.in_flight
        if flight is not None and (not began or began[-1][1] != flight.began):
            (part,) = {process.owner.part for process in flight.processes}
            began.append((part, flight.began))
    assert [part for part, _ in began] == [(began[0][0] + i) % 3 for i in range(9)]
    assert all(moment % round(TURN * 1e9) == began[0][1] % round(TURN * 1e9) for _, moment in began)


def test_a_call_that_comes_as_a_turn_begins_is_served_alike_whatever_others_have_asked_for() -> None:
    """Others that want the device have the kernel look at it when each turn begins, too soon for a call behind that."""
    for after in (0.0, TURN / 16, TURN / 4):
        times = set()
        for others in (False, True):
            sim = parted(owners=("1001", "1002"), checked=False)
            alice, bob = sim.program(uid=1001), sim.program(uid=1002)
            pids = [program.call(Spawn("sim", tokens=[1])) for program in (alice, bob)]
            start = 3 * TURN * 20  # a turn of Alice's
            sim.run_for(start - 2.5 * TURN - sim.now)
            if others:
                bob.start(Decode(pids[1], 40))
            sim.run_for(start + after - sim.now)
            if others:
                bob.start(Feed(pids[1], [2]))
            future = alice.start(Decode(pids[0], 1))
            sim.run_until(lambda: future.done)  # noqa: B023
            times.add(future.at - start)
        assert len(times) == 1, f"{after} s after the beginning of a turn: {times}"


def test_how_often_a_weak_class_gets_its_turn_depends_on_the_owners_own_steps() -> None:
    times = set()
    for others in (0, 1, 2, 3):
        sim = simulate(max_runs=1, aging_seconds=0.1, partition=Partition(["1001"], TURN), checked=False)
        sim.program().call(Pagein("sim"))
        alice, bob = sim.program(uid=1001), sim.program(uid=1002)
        sim.run_for(1.0 - sim.now)
        if others:  # he has had that many steps before hers begin
            bob.start(Decode(bob.call(Spawn("sim", tokens=[3])), others))
        sim.run_for(2.0 - sim.now)
        pids = [alice.call(Spawn("sim", tokens=[i], sched_class=one)) for i, one in enumerate(list(SchedClass)[1:3])]
        strong, weak = [alice.start(Decode(pid, count)) for pid, count in zip(pids, (20, 1), strict=True)]
        sim.run_until(lambda: strong.done and weak.done)  # noqa: B023
        times.add((strong.at, weak.at))
    assert len(times) == 1


def test_an_owner_competes_with_himself_alone() -> None:
    for parted, part in ((False, (1, 4)), (True, (1, 1))):
        tree = GroupTree("me", Owner("0", 0, "", 0, operator=True, machine=True), parted=parted)
        homes = [tree.home(Owner(str(uid), uid, "", uid)) for uid in (1001, 1002, 1003, 1004)]
        for home in homes:
            home.add_load("cpu0", 1024)
        mine, whole = homes[0].share("cpu0", 1024)
        assert Fraction(mine, whole) == Fraction(*part), parted


def test_only_those_whose_turn_it_is_are_looked_at() -> None:
    sim = parted()
    alice, bob = sim.program(uid=1001), sim.program(uid=1002)
    alice.call(Spawn("sim", tokens=[1]))
    bob.call(Spawn("sim", tokens=[1]))
    device = sim.kernel.devices["sim0"]
    everybody = [process for process in sim.kernel.table if isinstance(process, LLMProcess)]
    for device.part in (0, 1):
        assert [process.owner.uid for process in device.here(everybody)] == [1001 + device.part]


def test_a_part_takes_no_frames_of_another() -> None:
    group, pool, log = Group(), FramePool(8, parts=2), log_of(range(999))
    first, second = PageTable(group, 1, part=0), PageTable(group, 2, part=1)
    assert first.room(pool) == second.room(pool) == 64
    first.extend(pool, 64)
    first.computed(pool, log, 64)
    assert (first.room(pool), second.room(pool)) == (0, 64)
    second.extend(pool, 48)
    second.computed(pool, log, 48)
    second.cut(pool, 0)
    assert (first.room(pool), second.room(pool)) == (0, 64)
    first.cut(pool, 0)
    again = PageTable(group, 2, part=1)
    assert again.reuse(pool, log) == 48, "its cached prefix is there still"
    pool.check([again.frames])


def test_who_is_no_operator_brings_no_model_into_memory() -> None:
    sim = parted()
    alice = sim.program(uid=1001)
    with pytest.raises(SyscallError, match="EPERM"):
        alice.call(Pagein("sim:1b"))


def test_the_configuration_names_the_owners(tmp_path: Path) -> None:
    file = tmp_path / "kernel.toml"
    file.write_text('[partition]\nowners = ["1001", "1002/acme"]\nturn_seconds = 0.1\n')
    config = boot_config.build(settings.read(str(file)), boot_config.Overrides(["sim"]), tmp_path, "test")
    assert config.partition == Partition(["1001", "1002/acme"], 0.1)
    owners = Kernel(config).owners
    parts = {name: owners.of(uid, tenant, uid).part for name, uid, tenant in WHOSE}
    assert parts == {"1001": 0, "1001/his tenant": 0, "1002": 2, "1002/acme": 1, "1003": 2}
    assert owners.operator.part == 2
    for wrong in ('owners = ["ada"]', "turn_seconds = 0"):
        file.write_text(f"[partition]\n{wrong}\n")
        with pytest.raises(SyscallError, match=r"EINVAL.*partition"):
            settings.read(str(file))


def test_a_step_that_takes_longer_than_a_turn_is_told() -> None:
    sim = simulate(partition=Partition(["1001"], 0.001), options={"overhead": "0.005"})
    program = sim.program()
    program.call(Decode(program.call(Spawn("sim", tokens=[1])), 3))
    assert sum("a turn of the partition" in line.text for line in sim.log) == 1
