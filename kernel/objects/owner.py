"""Owners: to whom processes, groups and prefixes belong, as uids in Unix.

An owner is a uid, as the operating system tells it of a program's connection, or a tenant of that uid, for whom one of
its programs speaks, as a gateway does for each of its keys: `1000/acme`. A uid has every right over its tenants, and they
have none over it. The uid that the kernel runs as, and root, are one owner: the machine's operator. A kernel that a user
boots for himself knows that one only. Other uids that the configuration names as operators have every right over all,
too, and stay owners of their own: their processes are theirs, under numbers of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from llmasos.kernel.seeds import mix
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import MAX_TENANTS
from llmasos.syscalls.records import Right

ROOT = 0  # the uid that may do everything anyway
_GUESTS = int(Right.ALL & ~Right.ADMIN & ~Right.PRIORITY)
_TENANTS = _GUESTS & ~int(Right.SPEAK)


@dataclass(slots=True, eq=False)
class Owner:
    """`salt` is the root of the names of its KV (memory/prefix.py): no two owners have the same."""

    name: str  # "1000", "1000/acme"
    uid: int
    tenant: str  # empty: the uid itself
    salt: int
    base: Owner = None  # type: ignore[assignment]  # the uid's; itself, unless it is a tenant
    operator: bool = False  # over all others
    machine: bool = False  # it is the operator whose the kernel is
    part: int = 0  # of the devices: those of a partition have one each, all others the last
    tenants: int = 0  # that it has

    def __post_init__(self) -> None:
        self.base = self.base or self

    def __repr__(self) -> str:
        return f"Owner({self.name!r})"

    @property
    def rights(self) -> int:
        """The rights (bits of Right) that its programs begin with."""
        return int(Right.ALL) if self.operator else _TENANTS if self.tenant else _GUESTS

    @property
    def space(self) -> int:
        """Whose numbers its pids are (syscalls/pids.py); 0: the machine's operator's."""
        return 0 if self.base.machine else self.uid

    @property
    def key(self) -> str:
        """Its name in the journal and in tickets: the machine's operator's is empty, since the kernel may be another
        user's one day."""
        return "" if self.machine else self.name

    def over(self, other: Owner) -> bool:
        """Whether it has every right on what belongs to `other`."""
        return other is self or self.operator or other.base is self


class Owners:
    """All owners, by name."""

    def __init__(self, uid: int, salt: int, partition: Sequence[str] = (), operators: Collection[int] = ()) -> None:
        """`uid` is the kernel's own; `partition` names owners that have a part of the devices of their own; `operators`
        are other uids that have every right."""
        self._partition, self._operators = list(partition), frozenset(operators)
        self.operator = Owner(str(uid), uid, "", salt, operator=True, machine=True)
        self.operator.part = self._part(self.operator)
        self._known = {self.operator.name: self.operator}
        self._salts = {salt}
        self.changed: dict[str, Owner] = dict(self._known)  # that the journal has to be told of

    def __iter__(self) -> Iterator[Owner]:
        return iter(self._known.values())

    def __getitem__(self, name: str) -> Owner:
        """KeyError: there is none of that name."""
        return self._known[name]

    def get(self, name: str) -> Owner | None:
        return self._known.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __len__(self) -> int:
        return len(self._known)

    def of(self, uid: int | None, tenant: str, salt: int) -> Owner:
        """The owner of that uid (None: the kernel's own) and tenant; a new one is made, with a salt made of `salt`.
        EAGAIN: the uid has too many tenants."""
        key = self.key(uid)
        base = self._known.get(key) if key else self.operator
        if base is None:
            base = self._add(Owner(key, int(key), "", self._unused(salt), operator=int(key) in self._operators))
        if not tenant:
            return base
        name = f"{base.name}/{tenant}"
        if name in self._known:
            return self._known[name]
        if base.tenants >= MAX_TENANTS:
            raise Errno.EAGAIN(f"owner {base.name} has {base.tenants} tenants, and can have no more")
        base.tenants += 1
        return self._add(Owner(name, base.uid, tenant, self._unused(salt), base))

    def key(self, uid: int | None) -> str:
        """What the owner of that uid is called in the journal and in tickets, whether there is one or not."""
        return "" if uid in (None, ROOT, self.operator.uid) else str(uid)

    def recall(self, key: str, salt: int | None = None) -> Owner:
        """An owner by its name in the journal; `salt` is the one that it has there."""
        uid, _, tenant = key.partition("/")
        owner = self.of(int(uid) if uid else None, tenant, salt or 0)
        if salt is not None:
            owner.salt = salt
            self._salts.add(salt)
            self.changed.pop(owner.name, None)
        return owner

    def _unused(self, salt: int) -> int:
        while salt in self._salts:
            salt = mix(salt, 1) >> 1
        return salt

    @property
    def parts(self) -> int:
        """Of the devices; 1: all owners have them together."""
        return len(self._partition) + 1

    def _part(self, owner: Owner) -> int:
        name = owner.name if owner.name in self._partition else owner.base.name
        return self._partition.index(name) if name in self._partition else len(self._partition)

    def _add(self, owner: Owner) -> Owner:
        owner.part = self._part(owner)
        self._known[owner.name] = self.changed[owner.name] = owner
        self._salts.add(owner.salt)
        return owner
