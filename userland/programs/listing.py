"""Listings: one declaration of the fields of a record gives its table, its JSON, and the columns of -o and --sort.

As in systemctl, docker and PowerShell the person chooses the columns, and a program gets the values as they are:
`--json` prints the records of the system calls (docs/syscalls.md) under the names of their fields, in bytes, seconds and
full names. A table is one JSON document; what goes on (`dmesg -f`, `strace`) is an object a line.
"""

from __future__ import annotations

import difflib
import enum
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.programs.screen import Screen
from llmasos.userland.programs.table import USUAL, Column, Table

T = TypeVar("T")
_ODD = re.compile(r"[\x7f-\U0010ffff]")


class Words(Protocol):
    """A command line that has been read."""

    words: list[str]

    def has(self, name: str, /) -> bool:
        """Whether an option was given."""

    def text(self, name: str, default: str = "", /) -> str:
        """Its value."""

    def integer(self, name: str, default: int, /, *, least: int | None = None) -> int:
        """Its value, a whole number."""


@dataclass(frozen=True)
class Asked:
    """What a command line asks of a listing."""

    columns: str = ""
    wide: bool = False
    sort: str = ""
    json: bool = False

    @classmethod
    def of(cls, line: Words) -> Asked:
        """From the options of a command line."""
        return cls(line.text("-o"), line.has("--wide"), line.text("--sort"), line.has("--json"))


@dataclass(frozen=True)
class Field(Generic[T]):
    """A column and where it comes from. `key` is the field of the record (`usage.decoded`), `shown` the cell that people
    see, `value` what programs and sorting see where that is no field. Those that are not `usual` wait for -o."""

    title: str
    key: str
    shown: Callable[[T], object] | None = None
    value: Callable[[T], Any] | None = None
    right: bool = False
    style: str = ""
    elastic: bool = False
    keep: int = USUAL
    least: int = 8
    usual: bool = True

    @property
    def column(self) -> Column:
        return Column(self.title, self.right, self.style, self.elastic, self.keep, self.least)

    def raw(self, row: T) -> Any:
        """The value of a row, as JSON has it."""
        if self.value is not None:
            return plain(self.value(row))
        found: Any = row
        for name in self.key.split("."):
            found = getattr(found, name)
        return plain(found)

    def cell(self, row: T) -> object:
        """The value of a row, as people see it."""
        return self.raw(row) if self.shown is None else self.shown(row)


class Listing(Generic[T]):
    """The fields of one kind of row, and the style of a whole row."""

    def __init__(self, fields: Sequence[Field[T]], style: Callable[[T], str] = lambda row: "") -> None:
        self.fields = tuple(fields)
        self._style = style

    @property
    def words(self) -> list[str]:
        """The columns as -o and --sort take them."""
        return [one.column.word for one in self.fields]

    def table(self, rows: Sequence[T], chosen: Sequence[Field[T]] = ()) -> Table:
        """The rows as a table of the usual columns, or of those that were chosen."""
        shown = tuple(chosen) or tuple(one for one in self.fields if one.usual)
        table = Table(tuple(one.column for one in shown))
        for row in rows:
            table.add(*(one.cell(row) for one in shown), style=self._style(row))
        return table

    def show(self, screen: Screen, rows: list[T], asked: Asked, nothing: str = "") -> None:
        """Print the rows as a table or as JSON; `nothing` is said where there are none. Raises EINVAL for a column that
        there is not."""
        chosen = self._chosen(asked.columns)
        if asked.sort:
            rows = self._sorted(rows, asked.sort)
        if asked.json:
            document(screen, [self._record(row, chosen) for row in rows])
        elif rows or not nothing:
            screen.table(self.table(rows, chosen), wide=asked.wide, whole=bool(chosen))
        else:
            screen.line(nothing)

    def _chosen(self, words: str) -> list[Field[T]]:
        if not words:
            return []
        usual = [one for one in self.fields if one.usual] if words.startswith("+") else []
        return usual + [self._named(word) for word in words.removeprefix("+").split(",") if word]

    def _named(self, word: str) -> Field[T]:
        wanted = _letters(word)
        for one in self.fields:
            if wanted in (_letters(one.title), _letters(one.key)):
                return one
        near = difflib.get_close_matches(word.upper(), self.words, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise SyscallError(Errno.EINVAL, f"there is no column {word!r}; {guess}there are {', '.join(self.words)}")

    def _sorted(self, rows: list[T], word: str) -> list[T]:
        down = word.startswith("-")
        by = self._named(word.removeprefix("-"))
        there = [row for row in rows if by.raw(row) not in (None, "")]
        missing = [row for row in rows if by.raw(row) in (None, "")]
        return sorted(there, key=lambda row: _order(by.raw(row)), reverse=down) + missing

    def _record(self, row: T, chosen: Sequence[Field[T]]) -> dict[str, Any]:
        record: dict[str, Any] = {} if chosen else plain(row)
        for one in chosen or (one for one in self.fields if one.value is not None):
            place = record
            *above, last = one.key.split(".")
            for name in above:
                place = place.setdefault(name, {})
            place[last] = one.raw(row)
        return record


def _letters(word: str) -> str:
    return re.sub(r"[^0-9A-Z/%]", "", word.upper())


def _order(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, int | float) else (1, str(value).casefold())


def plain(value: Any) -> Any:
    """A value of a record in the types of JSON: records and dataclasses by the names of their fields."""
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value, str) else value.name
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if hasattr(value, "__dataclass_fields__"):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def text(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON. Nothing in it commands a terminal: what is invisible is written as an escape."""
    return _ODD.sub(_escape, json.dumps(plain(value), indent=indent, ensure_ascii=False))


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def document(screen: Screen, value: Any) -> None:
    """Print a value as one JSON document."""
    screen.write(text(value, indent=2) + "\n")


def one_line(screen: Screen, value: Any) -> None:
    """Print a value as one line of JSON, of something that goes on."""
    screen.write(text(value) + "\n")
