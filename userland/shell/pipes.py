"""What carries text from one member of a pipeline to the next: pipes of the operating system.

They are bounded (64 KiB on Linux), so a full reader makes the writer wait; the writer's end is end-of-file, the reader's
end is EPIPE; and programs of the host and commands of this shell meet there alike. Text is UTF-8: turns pass as text,
never as tokens, for two models have two vocabularies.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TextIO
from weakref import WeakSet

from llmasos.syscalls.errno import Errno, SyscallError

MAX_TEXT = 16 << 20  # bytes that a command reads of its input at most, or `$(...)` keeps


def pipe() -> tuple[TextIO, TextIO]:
    """A pipe: its reading and its writing end."""
    reading, writing = os.pipe()
    return reader(reading), writer(writing)


def reader(descriptor: int) -> TextIO:
    """A text file that owns a descriptor to read from. Bytes that are no UTF-8 become U+FFFD."""
    return open(descriptor, encoding="utf-8", errors="replace", newline="")


def writer(descriptor: int) -> TextIO:
    """A text file that owns a descriptor to write to."""
    raw = open(descriptor, "wb", buffering=0)  # noqa: SIM115 - its owner closes it
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="surrogateescape", newline="")


def again(end: TextIO) -> TextIO:
    """The same file once more, which goes on where this one is and is closed by itself."""
    end.flush()
    return writer(os.dup(end.fileno()))


def leads_on(end: TextIO) -> bool:
    """Whether it is a pipe, and no file."""
    return stat.S_ISFIFO(os.fstat(end.fileno()).st_mode)


def close(*ends: TextIO | None) -> None:
    """Close what is open, whether or not anybody still reads it."""
    for end in ends:
        if end is not None:
            with suppress(BrokenPipeError, ValueError):
                end.close()


_by_lines: WeakSet[TextIO] = WeakSet()


def by_lines(end: TextIO) -> None:
    """`read` takes this file line by line: from here on it is no text for other commands."""
    _by_lines.add(end)


def read_all(end: TextIO, what: str) -> str:
    """All text up to the end of a file; none of one that is read by lines. Raises E2BIG above MAX_TEXT."""
    if end in _by_lines:
        return ""
    said = end.read(MAX_TEXT + 1)
    if len(said) > MAX_TEXT:
        raise SyscallError(Errno.E2BIG, f"{what} is longer than {MAX_TEXT >> 20} MiB; pass a part of it")
    return said


def bounded(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a file, or others. Raises E2BIG at one of a file that is longer than MAX_TEXT."""
    if not isinstance(lines, io.TextIOBase):
        yield from lines
        return
    while line := lines.readline(MAX_TEXT + 1):
        if len(line) > MAX_TEXT:
            raise SyscallError(Errno.E2BIG, f"a line is longer than {MAX_TEXT >> 20} MiB; these are no commands")
        yield line


def from_text(said: str) -> TextIO:
    """A file that reads as a text (`<<<`, `<<`): on the disk and without a name, so that a program of the host can read
    it too, and no length makes the writer wait for the reader."""
    import tempfile

    kept = tempfile.TemporaryFile("w+", encoding="utf-8", newline="")  # noqa: SIM115 - its owner closes it
    kept.write(said)
    kept.flush()
    os.lseek(kept.fileno(), 0, os.SEEK_SET)
    kept.seek(0)
    return kept
