"""Opaque records of a process: what programs must know of its log beyond token ids, each at a position of the log.

As extended attributes of a file are kept by the file system, copied and never understood, so are these by the kernel: the
roles, tools and messages behind the tokens of a chat, say, so that any program can go on with it. Unlike attributes they
have a place: a record belongs to the tokens that begin at its position, and goes when these are cut off.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from llmasos.kernel.journal.process_image import check_places, check_size
from llmasos.syscalls.records import LogRecord

Data = bytes  # the class below has an attribute of that name


class LogRecords:
    """The records of one process, in the order of their positions."""

    __slots__ = ("bytes", "journaled", "rows")

    def __init__(self, rows: Iterable[LogRecord] = ()) -> None:
        self.rows = tuple(rows)
        self.bytes = sum(len(row.data) for row in self.rows)
        self.journaled = 0  # of the rows, what the journal has

    def check_room(self, blobs: Sequence[Data], pid: int) -> None:
        """E2BIG if these would be too many, or too large, beside those that it has."""
        check_size(len(self.rows) + len(blobs), self.bytes + sum(map(len, blobs)), f"process {pid} would have")

    def with_more(self, position: int, blobs: Sequence[Data]) -> LogRecords:
        """These and more at `position`, which is behind none that are there; their room has been checked. It is this
        object, unless it is NO_RECORDS."""
        self.rows += tuple(LogRecord(position, blob) for blob in blobs)
        self.bytes += sum(map(len, blobs))
        return self

    def cut(self, length: int) -> bool:
        """Drop the records at `length` and behind it; whether there were any."""
        kept = bisect_left(self.rows, length, key=_position)
        if kept == len(self.rows):
            return False
        self.bytes -= sum(len(row.data) for row in self.rows[kept:])
        self.rows = self.rows[:kept]
        self.journaled = min(self.journaled, kept)
        return True

    def journal_has(self, count: int) -> None:
        """The journal has the first `count` rows, and no others."""
        self.journaled = count

    def since(self, position: int) -> list[LogRecord]:
        """Those at `position` and behind it."""
        return list(self.rows[bisect_left(self.rows, position, key=_position) :])

    def copy(self) -> LogRecords:
        return LogRecords(self.rows) if self.rows else NO_RECORDS

    def check(self, length: int) -> None:
        """In order, each at a position that a log of `length` tokens has or ends at, no more than there may be."""
        assert not (wrong := check_places(self.rows, length)), wrong
        counted = sum(len(row.data) for row in self.rows)
        assert self.bytes == counted, f"{self.bytes} bytes of records, counted: {counted}"


class _NoRecords(LogRecords):
    """The records of all processes that have none. They are one object, which Python refuses to write, since its
    attributes are the class's: or what is written for one process would be every other's, too."""

    __slots__ = ()
    rows, journaled, bytes = (), 0, 0

    def __init__(self) -> None:
        """Nothing is to be set."""

    def __reduce__(self) -> str:
        return "NO_RECORDS"  # copies are this one

    def with_more(self, position: int, blobs: Sequence[Data]) -> LogRecords:
        return LogRecords().with_more(position, blobs) if blobs else self

    def journal_has(self, count: int) -> None:
        if count:
            raise ValueError(f"the journal has {count} records of a process that has none")


NO_RECORDS: LogRecords = _NoRecords()


def _position(row: LogRecord) -> int:
    return row.position
