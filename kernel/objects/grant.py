"""Grants: rights on one process that are in another program's hands, as a tree.

The model is seL4's capability derivation tree: who has a grant may pass on as much of it, or less, and taking one back
takes back all that was made of it. A grant is no secret that whoever knows it can use: it is a row here, which names its
holder. To get there it has a ticket, which is good once, and for programs of one owner only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from llmasos.kernel.objects.process import LLMProcess, Program

_NONE: Mapping[int, Grant] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class Grant:
    """`rights` are bits of Needs. `maker` is charged for it. Owners are named by their keys (Owner.key)."""

    number: int  # its handle, drawn: one that is counted would tell how many others make
    thing: LLMProcess
    rights: int
    maker: str
    to: str
    parent: Grant | None  # None: it was made by whose process it is
    secret: int  # of its ticket; 0: it was accepted
    holder: Program | None = None  # whose handle it is, once it was accepted
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


class Grants:
    """All grants, by their numbers, by who holds them, and by what they are on."""

    def __init__(self) -> None:
        self._all: dict[int, Grant] = {}
        self._held: dict[int, dict[int, Grant]] = {}  # by pid of the holder
        self._on: dict[int, dict[int, Grant]] = {}  # by pid of the process
        self.made: Counter[str] = Counter()  # by key of the maker
        self.refused = 0
        self.changed: dict[int, Grant | None] = {}  # that the journal has to be told of; None: it is gone

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Grant]:
        return iter(self._all.values())

    def get(self, number: int) -> Grant | None:
        return self._all.get(number)

    @property
    def most(self) -> int:
        """On one process."""
        return max(map(len, self._on.values()), default=0)

    def held(self, pid: int) -> Mapping[int, Grant]:
        """What a program holds."""
        return self._held.get(pid, _NONE)

    def on(self, pid: int) -> Mapping[int, Grant]:
        """What there is on a process."""
        return self._on.get(pid, _NONE)

    def add(self, grant: Grant) -> None:
        self._all[grant.number] = self.changed[grant.number] = grant
        self._on.setdefault(grant.thing.pid, {})[grant.number] = grant
        self.made[grant.maker] += 1
        if grant.parent is not None:
            grant.parent.derived[grant.number] = grant
        if grant.holder is not None:
            self.hold(grant, grant.holder)

    def hold(self, grant: Grant, program: Program) -> None:
        """A program has accepted it: the ticket is used up."""
        grant.holder, grant.secret = program, 0
        self.changed[grant.number] = grant
        self._held.setdefault(program.pid, {})[grant.number] = grant
        program.granted[grant.thing.pid] = program.granted.get(grant.thing.pid, 0) | grant.rights

    def remove(self, grant: Grant) -> list[Grant]:
        """It is gone, and all that was made of it; returns these."""
        gone = list(grant.within())
        if grant.parent is not None:
            del grant.parent.derived[grant.number]
        for one in gone:
            del self._all[one.number]
            self.changed[one.number] = None
            _drop(self._on, one.thing.pid, one)
            self.made[one.maker] -= 1
            if not self.made[one.maker]:
                del self.made[one.maker]
            if one.holder is not None:
                _drop(self._held, one.holder.pid, one)
                self._count(one.holder, one.thing.pid)
            one.parent = None  # no cycle is left for the collector
            one.derived.clear()
        return gone

    def _count(self, program: Program, pid: int) -> None:
        """What a program has on a process by all that it still holds."""
        rights = 0
        for one in self.held(program.pid).values():
            if one.thing.pid == pid:
                rights |= one.rights
        if rights:
            program.granted[pid] = rights
        else:
            program.granted.pop(pid, None)

    def check(self) -> None:
        """The books agree with the tree, and nobody has more than who gave it."""
        for one in self:
            above = one.parent
            assert above is None or self._all.get(above.number) is above, (
                f"grant {one.number} is made of one that is gone"
            )
            assert above is None or (above.thing is one.thing and above.derived.get(one.number) is one), (
                "not its parent's"
            )
            assert above is None or not one.rights & ~above.rights, (
                f"grant {one.number} is wider than grant {above.number}"
            )
            assert (one.holder is None) == (one.secret != 0), (
                f"grant {one.number} has both a holder and a ticket, or none"
            )
        assert +self.made == Counter(one.maker for one in self), "the wrong owners are charged for grants"
        held = {(one.holder.pid, one.number) for one in self if one.holder is not None}
        assert held == {(pid, number) for pid, some in self._held.items() for number in some}, "who holds what"
        assert all(self._held.values()), "empty tables are kept"
        on = {(one.thing.pid, one.number) for one in self}
        assert on == {(pid, number) for pid, some in self._on.items() for number in some}, "what is on what"


def _drop(table: dict[int, dict[int, Grant]], pid: int, grant: Grant) -> None:
    del table[pid][grant.number]
    if not table[pid]:
        del table[pid]
