"""The lines of the table: the tree of control groups, the programs in them, and the processes that those own; or, flat,
all processes.

As with `systemd-cgls` and htop's tree: a process stands below the program that owns it if both are in one group, else
below its group. Groups that have nothing in them but one other group share its line (`users/ada/session-3`). Sorting is
among siblings, a group counting as the sum of what is in it. A filter keeps what it finds, and what that stands below.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from llmasos.modelfiles.called import called
from llmasos.syscalls.pids import shown
from llmasos.syscalls.records import Kind, State
from llmasos.userland.programs.ps import exited
from llmasos.userland.top import columns
from llmasos.userland.top.model import Group, Picture, Row


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table. `key` stays the same from picture to picture: a group's path, or the pid."""

    key: str
    of: Row | Group
    name: str
    guide: str  # what stands before the name: the lines of the tree
    folds: bool  # something stands below it
    folded: bool


@dataclass
class Arrangement:
    """How the person wants it."""

    sort: str = "TOK/S"  # a column's title
    reverse: bool = False
    needle: str = ""  # the filter
    flat: bool = False  # processes only, without the tree
    folded: set[str] = field(default_factory=set)  # keys

    def lines(self, picture: Picture) -> list[Line]:
        """The lines of a picture, top to bottom."""
        if self.flat:
            shown = [row for row in picture.rows.values() if self._shows(row) and matches(row, self.needle)]
            rows = self._sorted([_alone(row) for row in shown])
            return [Line(_key(row), row, columns.name(row), "", False, False) for row in rows]
        below = _below(picture)
        found = _found(picture, below, self.needle) if self.needle else None
        made: list[Line] = []
        # What is still to be shown, the next one last: key, guide of the line, guide of the lines below it.
        ahead: list[tuple[str, str, str]] = []

        def kept(key: str) -> list[str]:
            return [
                child
                for child in below.get(key, ())
                if (found is None or child in found) and self._shows(_of(picture, child))
            ]

        def enter(key: str, guide: str, *, root: bool) -> None:
            ordered = self._sorted([_of(picture, child) for child in kept(key)])
            for at, of in enumerate(reversed(ordered)):
                last = at == 0
                mark, bar = ("", "") if root else ("└ ", "  ") if last else ("├ ", "│ ")
                ahead.append((_key(of), guide + mark, guide + bar))

        enter("/", "", root=True)
        while ahead:
            key, guide, further = ahead.pop()
            of = _of(picture, key)
            name, inside = columns.name(of), kept(key)
            while isinstance(of, Group) and len(inside) == 1 and inside[0].startswith("/"):
                key = inside[0]
                of, inside = _of(picture, key), kept(key)
                name = f"{name}/{columns.name(of)}"
            folded = bool(inside) and key in self.folded and not self.needle
            made.append(Line(key, of, name, guide, bool(inside), folded))
            if inside and not folded:
                enter(key, further, root=False)
        return made

    def _shows(self, of: Row | Group) -> bool:
        """Agents that have exited, whose status the kernel keeps for who asks, are shown to who filters for them."""
        return isinstance(of, Group) or bool(self.needle) or not exited(of.info)

    def _sorted(self, rows: list[Row] | list[Row | Group]) -> list[Row | Group]:
        column = columns.BY_TITLE[self.sort]
        tied: list[Row | Group] = sorted(rows, key=_rank)
        if not tied:
            return tied
        falling = not isinstance(column.value(tied[0]), str)
        return sorted(tied, key=column.value, reverse=falling is not self.reverse)


def matches(row: Row, needle: str) -> bool:
    """Whether a filter finds a process: by its pid, or by a part of its name, state, kind, model, device or group."""
    info, wanted = row.info, needle.casefold()
    return (
        not wanted
        or wanted == shown(info.pid)
        or any(
            wanted in text.casefold()
            for text in (
                info.name,
                columns.state(info, wide=True),
                info.kind,
                called(info.model),
                info.device,
                info.group,
            )
        )
    )


def members(picture: Picture, path: str) -> list[Row]:
    """The LLM processes of a group and of those below it, by pid."""
    inside = path.rstrip("/") + "/"
    return [
        row
        for row in picture.rows.values()
        if row.info.kind is Kind.LLM and (row.info.group == path or row.info.group.startswith(inside))
    ]


def _rank(of: Row | Group) -> tuple[object, ...]:
    """The order of equals: groups, then processes that want the device, LLM processes, the others; each by number."""
    if isinstance(of, Group):
        return (0, False, False, 0, of.info.path)
    info = of.info
    return (1, info.state not in (State.RUNNING, State.READY), info.kind is not Kind.LLM, info.pid, "")


def _alone(row: Row) -> Row:
    """A program without its agents, which stand in the list themselves."""
    return row if row.agents is None else Row(row.info)


def _key(of: Row | Group) -> str:
    return of.info.path if isinstance(of, Group) else str(of.info.pid)


def _of(picture: Picture, key: str) -> Row | Group:
    return picture.groups[key] if key.startswith("/") else picture.rows[int(key)]


def _below(picture: Picture) -> dict[str, list[str]]:
    """What stands below what, by keys. What came or went between two calls, and
    has lost its place by that, stands at the root."""
    below: dict[str, list[str]] = defaultdict(list)
    below["/"] = []
    for path in picture.groups:
        if path != "/":
            parent = path.rpartition("/")[0] or "/"
            below[parent if parent in picture.groups else "/"].append(path)
    for pid, row in picture.rows.items():
        owner = picture.rows.get(row.info.ppid)
        if owner is not None and owner.info.kind is Kind.PROGRAM and owner.info.group == row.info.group:
            below[str(row.info.ppid)].append(str(pid))
        else:
            below[row.info.group if row.info.group in picture.groups else "/"].append(str(pid))
    return below


def _found(picture: Picture, below: dict[str, list[str]], needle: str) -> set[str]:
    """The keys that a filter keeps: processes that match, groups with the word in their path, and all above these."""
    above = {child: key for key, children in below.items() for child in children}
    wanted = needle.casefold()
    hits = [str(pid) for pid, row in picture.rows.items() if matches(row, needle)]
    hits += [path for path in picture.groups if path != "/" and wanted in path.casefold()]
    found: set[str] = set()
    for key in hits:
        at: str | None = key
        while at is not None and at not in found:
            found.add(at)
            at = above.get(at)
    return found
