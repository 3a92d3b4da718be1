"""Rows by a number, in its order: processes by pid, grants by handle. One can go on behind any number by a search, so
that a list that is asked for in pieces costs what it has in it, and not what stands before."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

T = TypeVar("T")

_STALE = 64  # numbers of rows that have gone, above which they are thrown out


class Ordered(dict[int, T]):
    """Rows by number. They can be gone through in order from any number on, at no cost for those before it."""

    __slots__ = ("_order",)

    def __init__(self, rows: Mapping[int, T] = MappingProxyType({})) -> None:
        super().__init__(rows)
        self.sort()

    def sort(self) -> None:
        """Put the rows in order, after some were added that are older than others."""
        rows = sorted(self.items())
        self.clear()
        self.update(rows)
        self._order = list(self)  # the numbers of all rows in order, and some of rows that have gone

    def put(self, number: int, row: T) -> None:
        self[number] = row
        if self._order and number < self._order[-1]:
            insort(self._order, number)
        else:
            self._order.append(number)

    def drop(self, number: int) -> None:
        del self[number]
        if len(self._order) > 2 * len(self) + _STALE:
            self._order = sorted(self)

    def after(self, number: int, limit: int) -> list[T]:
        """At most `limit` rows behind a number, in order."""
        found: list[T] = []
        at = bisect_right(self._order, number)
        while len(found) < limit and at < len(self._order):
            some = self._order[at : at + limit - len(found)]
            found += [self[one] for one in some if one in self]
            at += len(some)
        return found
