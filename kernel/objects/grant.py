"""Grants: rights on a process, or on those of a group, that are in another program's hands, as a tree.

The model is seL4's capability derivation tree: who has a grant may pass on as much of it, or less, and taking one back
takes back all that was made of it. A grant is no secret that whoever knows it can use: it is a row here, which names its
holder. To get there it has a ticket, which is good once, and for programs of one owner only.

A grant on a group is one on the LLM processes that are in it, or in a group in it, at the moment at which somebody asks.
So it covers those that come later and none that has left.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from llmasos.kernel.groups.group import Group
from llmasos.kernel.objects.ordered import Ordered
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.objects.process import LLMProcess, Process, Program

_NONE: Mapping[int, Grant] = MappingProxyType({})
Thing = LLMProcess | Group
_K = TypeVar("_K")


@dataclass(slots=True, eq=False)
class Grant:
    """`rights` are bits of Needs. `maker` is charged for it. Owners are named by their keys (Owner.key)."""

    number: int  # its handle, drawn: one that is counted would tell how many others make
    thing: Thing
    rights: int
    maker: str
    to: str
    parent: Grant | None  # None: it was made by whose process it is
    secret: int  # of its ticket; 0: it was accepted
    holder: Program | None = None  # whose handle it is, once it was accepted
    until: int = 0  # when it ends by the wall clock, in nanoseconds since 1970; 0: no such end
    sandbox: int = 0  # whose programs have one made of it
    whose: Owner | None = None  # the thing's owner when it was made
    derived: dict[int, Grant] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """How many times it was passed on: 1 for the first."""
        return 1 if self.parent is None else 1 + self.parent.depth

    def within(self) -> Iterator[Grant]:
        """This one, and all that was made of it."""
        yield self
        for one in self.derived.values():
            yield from one.within()

    def lineage(self) -> Iterator[Grant]:
        """This one, and those that it was made of."""
        at: Grant | None = self
        while at is not None:
            yield at
            at = at.parent


def covers(thing: Thing, process: Process) -> bool:
    """Whether a grant on `thing` is one on this process. That of a group never reaches further than its owner does."""
    if not isinstance(thing, Group):
        return thing is process
    return isinstance(process, LLMProcess) and process.group.below(thing) and thing.owner.over(process.owner)


class Grants:
    """All grants, by their numbers, by who holds them, by what they are on, and by whose that is."""

    def __init__(self) -> None:
        self._all: Ordered[Grant] = Ordered()
        self._of: dict[Owner, Ordered[Grant]] = {}  # by the owner of the thing, and by whose tenant that is
        self._held: dict[int, dict[int, Grant]] = {}  # by pid of the holder
        self._on: dict[Thing, dict[int, Grant]] = {}
        self.ends: list[tuple[int, int]] = []  # heap: when by the clock, and of which; some have gone already
        self.ended: list[Group] = []  # groups that have ended in this event, on which there are grants
        self.made: Counter[str] = Counter()  # by key of the maker
        self.refused = 0
        self.changed: dict[int, Grant | None] = {}  # that the journal has to be told of; None: it is gone

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Grant]:
        return iter(self._all.values())

    def get(self, number: int) -> Grant | None:
        return self._all.get(number)

    def after(self, owner: Owner, number: int, limit: int) -> list[Grant]:
        """At most `limit` of those on what an owner is over, behind a number, in order."""
        of = self._all if owner.operator else self._of.get(owner)
        return of.after(number, limit) if of is not None else []

    @property
    def most(self) -> int:
        """The most that are on one process or group."""
        return max(map(len, self._on.values()), default=0)

    def held(self, pid: int) -> Mapping[int, Grant]:
        """What a program holds."""
        return self._held.get(pid, _NONE)

    def on(self, thing: Thing) -> Mapping[int, Grant]:
        """What there is on a process or group."""
        return self._on.get(thing, _NONE)

    # --- their ends ---

    @property
    def first_end(self) -> int | None:
        """When the first of them ends by the clock."""
        while self.ends and self.ends[0][1] not in self._all:
            heapq.heappop(self.ends)
        return self.ends[0][0] if self.ends else None

    def due(self, wall: int) -> Grant | None:
        """One whose time is over."""
        first = self.first_end
        return self._all[self.ends[0][1]] if first is not None and first <= wall else None

    # --- changes ---

    def add(self, grant: Grant) -> None:
        self._all.put(grant.number, grant)
        self.changed[grant.number] = grant
        grant.whose = grant.thing.owner
        for owner in _viewers(grant):
            self._of.setdefault(owner, Ordered()).put(grant.number, grant)
        self._on.setdefault(grant.thing, {})[grant.number] = grant
        if isinstance(grant.thing, Group):
            grant.thing.ending = self.ended
        self.made[grant.maker] += 1
        if grant.until:
            heapq.heappush(self.ends, (grant.until, grant.number))
        if grant.parent is not None:
            grant.parent.derived[grant.number] = grant
        if grant.holder is not None:
            self.hold(grant, grant.holder)

    def hold(self, grant: Grant, program: Program) -> None:
        """A program has accepted it: the ticket is used up."""
        grant.holder, grant.secret = program, 0
        self.changed[grant.number] = grant
        self._held.setdefault(program.pid, {})[grant.number] = grant
        self._count(program, grant.thing)

    def remove(self, grant: Grant) -> list[Grant]:
        """It is gone, and all that was made of it; returns these."""
        gone = list(grant.within())
        if grant.parent is not None:
            del grant.parent.derived[grant.number]
        for one in gone:
            self._all.drop(one.number)
            self.changed[one.number] = None
            for owner in _viewers(one):
                self._of[owner].drop(one.number)
                if not self._of[owner]:
                    del self._of[owner]
            _drop(self._on, one.thing, one)
            if isinstance(one.thing, Group) and one.thing not in self._on:
                one.thing.ending = None
            self.made[one.maker] -= 1
            if not self.made[one.maker]:
                del self.made[one.maker]
            if one.holder is not None:
                _drop(self._held, one.holder.pid, one)
                self._count(one.holder, one.thing)
            one.parent = None  # no cycle is left for the collector
            one.derived.clear()
        if len(self.ends) > 2 * len(self._all) + 64:
            self.ends = sorted((one.until, one.number) for one in self if one.until)
        return gone

    def _count(self, program: Program, thing: Thing) -> None:
        """Work out which rights a program has on a thing by all grants that it holds."""
        rights = 0
        for one in self.held(program.pid).values():
            if one.thing is thing:
                rights |= one.rights
        if isinstance(thing, Group):
            _put(program.granted_groups, thing, rights)
        else:
            _put(program.granted, thing.pid, rights)

    def check(self) -> None:
        """The books agree with the tree, and nobody has more than who gave it, or for longer."""
        for one in self:
            above = one.parent
            if above is not None:
                assert self._all.get(above.number) is above, f"grant {one.number} is made of one that is gone"
                assert above.derived.get(one.number) is one, "not its parent's"
                assert _inside(one.thing, above.thing), f"grant {one.number} is on more than grant {above.number}"
                assert not one.rights & ~above.rights, f"grant {one.number} is wider than grant {above.number}"
                assert not above.until or 0 < one.until <= above.until, f"grant {one.number} outlives {above.number}"
            assert (one.holder is None) == (one.secret != 0), (
                f"grant {one.number} has both a holder and a ticket, or none"
            )
        assert +self.made == Counter(one.maker for one in self), "the wrong owners are charged for grants"
        held = {(one.holder.pid, one.number) for one in self if one.holder is not None}
        assert held == {(pid, number) for pid, some in self._held.items() for number in some}, "who holds what"
        assert all(self._held.values()), "empty tables are kept"
        on = {(one.thing, one.number) for one in self}
        assert on == {(thing, number) for thing, some in self._on.items() for number in some}, "what is on what"
        of = {(owner, one.number) for one in self for owner in _viewers(one)}
        assert of == {(owner, number) for owner, some in self._of.items() for number in some}, "what is on whose"
        assert {one.number for one in self if one.until} <= {number for _, number in self.ends}, "what has an end"


def _viewers(grant: Grant) -> set[Owner]:
    """The owners who have it in a list of theirs, besides the list of all."""
    whose = grant.whose
    return {owner for owner in (whose, whose and whose.base) if owner is not None and not owner.operator}


def _inside(thing: Thing, other: Thing) -> bool:
    if isinstance(thing, Group):
        return isinstance(other, Group) and thing.below(other)
    return covers(other, thing)


def _put(table: dict[_K, int], key: _K, rights: int) -> None:
    if rights:
        table[key] = rights
    else:
        table.pop(key, None)


def _drop(table: dict[_K, dict[int, Grant]], key: _K, grant: Grant) -> None:
    del table[key][grant.number]
    if not table[key]:
        del table[key]
