"""Opaque records of a process: what programs must know of its log beyond token ids, each at a position of the log.

As extended attributes of a file are kept by the file system, copied and never understood, so are these by the kernel: the
roles, tools and messages behind the tokens of a chat, say, so that any program can go on with it. Unlike attributes they
have a place: a record belongs to the tokens that begin at its position, and goes when these are cut off.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_RECORD_BYTES, MAX_RECORDS
from llmasos.syscalls.records import LogRecord


class LogRecords:
    """The records of one process, in the order of their positions."""

    __slots__ = ("bytes", "journaled", "rows")

    def __init__(self, rows: Sequence[LogRecord] = ()) -> None:
        self.rows = list(rows)
        self.bytes = sum(len(row.data) for row in self.rows)
        self.journaled = 0  # of the rows, what the journal has

    def check_room(self, blobs: Sequence[bytes], pid: int) -> None:
        """E2BIG if the process cannot have these too."""
        check_size(len(self.rows) + len(blobs), self.bytes + sum(map(len, blobs)), f"process {pid} would have")

    def add(self, position: int, blobs: Sequence[bytes]) -> None:
        """Put records at `position`, which is behind none that are there; their room has been checked."""
        self.rows += [LogRecord(position, blob) for blob in blobs]
        self.bytes += sum(map(len, blobs))

    def cut(self, length: int) -> bool:
        """Drop what belongs to tokens at `length` and behind it; whether there was any."""
        kept = bisect_left(self.rows, length, key=_position)
        if kept == len(self.rows):
            return False
        self.bytes -= sum(len(row.data) for row in self.rows[kept:])
        del self.rows[kept:]
        self.journaled = min(self.journaled, kept)
        return True

    def since(self, position: int) -> list[LogRecord]:
        """Those at `position` and behind it."""
        return self.rows[bisect_left(self.rows, position, key=_position) :]

    def copy(self) -> LogRecords:
        return LogRecords(self.rows)

    def check(self, length: int) -> None:
        """In order, each at a position that a log of `length` tokens has or ends at, no more than there may be."""
        assert not (wrong := check_places(self.rows, length)), wrong
        counted = sum(len(row.data) for row in self.rows)
        assert self.bytes == counted, f"{self.bytes} bytes of records, counted: {counted}"


def check_size(count: int, size: int, who: str) -> None:
    """E2BIG if these are more records, or bytes of them, than one process may have."""
    if count > MAX_RECORDS or size > MAX_RECORD_BYTES:
        raise Errno.E2BIG(
            f"{who} {count} records with {size} bytes, at most {MAX_RECORDS} with {MAX_RECORD_BYTES} bytes are possible; "
            "cut the log, or keep less with it"
        )


def check_places(rows: Sequence[LogRecord], length: int) -> str:
    """Why these records cannot go with a log of `length` tokens; empty: they can."""
    positions = [row.position for row in rows]
    if positions != sorted(positions):
        return "its records are not in order"
    if positions and positions[-1] > length:
        return f"a record stands at {positions[-1]}, its log has {length} tokens"
    try:
        check_size(len(rows), sum(len(row.data) for row in rows), "it has")
    except SyscallError as error:
        return error.reason
    return ""


def _position(row: LogRecord) -> int:
    return row.position
