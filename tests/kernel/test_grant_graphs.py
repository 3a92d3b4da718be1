"""Random lives of grants, on processes and groups, with ends: nobody reaches more than a plain model says."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.kernel.journal.state import State
from llmasos.simulator import Prog, simulate
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.pids import pid_of
from llmasos.syscalls.records import GrantInfo
from llmasos.syscalls.table import (
    Accept,
    Call,
    Getinfo,
    Grant,
    Grants,
    GroupCreate,
    GroupMove,
    Read,
    Rename,
    Revoke,
    Setlimits,
    Spawn,
)
from tests.kernel.neighbours import ANN, CONTROL, LIMITS, READ, SEE

FIRST, PEOPLE = 2000, 4
HOME = f"/users/{ANN}"
GROUPS = [f"{HOME}/a", f"{HOME}/a/b", f"{HOME}/c"]
LIVES = 400 if os.environ.get("LLMASOS_WHOLE") else 8
STEPS = 40


@dataclass
class Edge:
    """`to` is one of the people; `thing` a process, by its number, or a group, by its path."""

    to: int
    thing: int | str
    rights: int
    until: float
    parent: int


@dataclass
class Model:
    """Who reaches what, the plain way: edges, and a walk over all of them for each question."""

    edges: dict[int, Edge] = field(default_factory=dict)
    where: dict[int, str] = field(default_factory=dict)
    now: float = 0.0

    def covers(self, thing: int | str, other: int | str) -> bool:
        if isinstance(thing, int):
            return thing == other
        path = self.where[other] if isinstance(other, int) else other
        return f"{path}/".startswith(f"{thing}/")

    def rights(self, who: int, thing: int | str) -> list[int]:
        return [one.rights for one in self.edges.values() if one.to == who and self.covers(one.thing, thing)]

    def reach(self, who: int, thing: int | str) -> int:
        found = 0
        for rights in self.rights(who, thing):
            found |= rights
        return found

    def sees(self, who: int, thing: int | str) -> bool:
        held = [one.thing for one in self.edges.values() if one.to == who and isinstance(one.thing, str)]
        return bool(self.reach(who, thing)) or any(self.covers(thing, one) for one in held)

    def above(self, handle: int) -> list[int]:
        return [handle, *self.above(self.edges[handle].parent)] if handle else []

    def settle(self) -> None:
        """What has had its time goes, what a process has left, and all that was made of it."""
        while gone := [handle for handle, one in self.edges.items() if self._ended(one)]:
            for handle in gone:
                del self.edges[handle]

    def _ended(self, one: Edge) -> bool:
        above = self.edges.get(one.parent)
        late = bool(one.until) and one.until <= self.now
        return late or (bool(one.parent) and (above is None or not self.covers(above.thing, one.thing)))


class World:
    def __init__(self, seed: int) -> None:
        self.chance, self.sim, self.model = random.Random(seed), simulate(256), Model()
        self.ann = self.sim.program(uid=ANN)
        for path in GROUPS:
            self.ann.call(GroupCreate(path))
        for path in (*GROUPS, HOME):
            self.model.where[self.ann.call(Spawn("sim", [1, 2, 3], group=path, detached=True))] = path
        self.people = [self.sim.program(uid=FIRST + who) for who in range(PEOPLE)]

    @property
    def everybody(self) -> list[Prog]:
        return [self.ann, *self.people]

    def named(self, giver: int, pid: int) -> int:
        return pid if giver < 0 else pid_of(ANN, pid)

    def grant(self) -> None:
        chance, model = self.chance, self.model
        giver, taker = chance.randrange(-1, PEOPLE), chance.randrange(PEOPLE)
        things: list[int | str] = [*model.where, *GROUPS]
        thing = chance.choice(things)
        rights, seconds = chance.randrange(1, 16), chance.choice([0, 0, 5, 20])
        program = self.ann if giver < 0 else self.people[giver]
        pid, group = (self.named(giver, thing), "") if isinstance(thing, int) else (0, thing)
        future = program.start(Grant(pid, str(FIRST + taker), rights, group, float(seconds)))
        may = giver < 0 or any(not rights & ~held for held in model.rights(giver, thing))
        hidden = Errno.ESRCH if isinstance(thing, int) else Errno.ENOENT
        assert future.errno is (Errno.OK if may else Errno.EPERM if model.sees(giver, thing) else hidden)
        if may:
            made: GrantInfo = future.value
            parent = made.parent
            until = made.until - self.sim.wall / 1e9 + model.now if made.until else 0.0
            assert bool(parent) == (giver >= 0)
            above = model.edges.get(parent)
            asked = model.now + seconds if seconds else 0.0
            wanted = min((one for one in (asked, above.until if above else 0.0) if one), default=0.0)
            assert abs(until - wanted) < 0.1, "the model knows nothing of the milliseconds that steps take"
            self.people[taker].call(Accept(made.ticket))
            model.edges[made.handle] = Edge(taker, thing, rights | SEE, wanted, parent)

    def revoke(self) -> None:
        giver, model = self.chance.randrange(-1, PEOPLE), self.model
        if not model.edges:
            return
        handle = self.chance.choice(list(model.edges))
        may = giver < 0 or any(model.edges[one].to == giver for one in model.above(handle))
        revoked = (self.ann if giver < 0 else self.people[giver]).start(Revoke(handle))
        assert revoked.errno is (Errno.OK if may else Errno.ESRCH)
        if may:
            del model.edges[handle]

    def move(self) -> None:
        pid, path = self.chance.choice(list(self.model.where)), self.chance.choice([*GROUPS, HOME])
        self.ann.call(GroupMove(pid, path))
        self.model.where[pid] = path

    def wait(self) -> None:
        seconds = self.chance.choice([1.0, 4.0, 9.0])
        self.sim.ahead += seconds
        self.model.now += seconds

    def leave(self) -> None:
        who, model = self.chance.randrange(PEOPLE), self.model
        self.people[who].disconnect()
        for handle in [handle for handle, one in model.edges.items() if one.to == who]:
            del model.edges[handle]
        self.people[who] = self.sim.program(uid=FIRST + who)

    def die(self) -> None:
        self.sim.kill()
        if self.chance.random() < 0.5:
            self.wait()
        self.sim.boot_again()
        for program in self.everybody:
            program.come_back()
        again = State(self.sim.kernel.secret)
        for frame in self.sim.kernel.snapshot().snapshot():
            again.apply(frame)
        assert not again.difference(self.sim.kernel.recorded())

    def check(self, *whom: int) -> None:
        self.model.settle()
        for who, one in [(who, self.people[who]) for who in whom]:
            for pid in self.model.where:
                name, held = pid_of(ANN, pid), self.model.reach(who, pid)
                tries: list[tuple[int, Call[Any]]] = [(SEE, Getinfo(name)), (READ, Read(name)), (LIMITS, Setlimits(name))]
                for need, call in [*tries, (CONTROL, Rename(name, "x"))]:
                    wanted = Errno.OK if held & need else Errno.EPERM if held else Errno.ESRCH
                    assert one.start(call).errno is wanted, (call, held, self.model)
            told = {row.handle for row in one.call(Grants())}
            mine = {handle for handle in self.model.edges if any(
                self.model.edges[above].to == who for above in self.model.above(handle))}  # fmt: skip
            assert told == mine


@settings(max_examples=LIVES, deadline=None)
@given(st.integers(0, 1 << 30))
def test_random_graphs_give_no_more_reach_than_a_model_of_fifty_lines(seed: int) -> None:
    world = World(seed)
    acts = [world.grant] * 12 + [world.revoke] * 3 + [world.move] * 3 + [world.wait] * 2 + [world.leave, world.die]
    for _ in range(STEPS):
        world.chance.choice(acts)()
        world.check(world.chance.randrange(PEOPLE))
    world.check(*range(PEOPLE))
