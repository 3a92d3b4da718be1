"""`read NAME...`: a line of the input into variables, as POSIX has it.

A program of the host, or the next `read`, goes on behind that line: so a byte is read at a time, or what was read too
much of a file is put back.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TextIO

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.shell import pipes
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.session import Session

CHUNK = 4096
_BLANKS = " \t\n"


def wants_a_line(shell: Session, line: Line) -> bool:
    """Whether this `read` is about a line, and not about an agent's tokens."""
    if line.has("-r") or line.has("-p"):
        return True
    names = [line.text("PID"), *line.words] if line.has("PID") else []
    return shell.input is not None and not line.has("--json") and all(name.isidentifier() for name in names)


def read_line(shell: Session, line: Line) -> int:
    """Read a line into variables; returns 1 if the input ended before the line did."""
    names = [line.text("PID"), *line.words] if line.has("PID") else ["REPLY"]
    for name in names:
        if not (name.isascii() and name.isidentifier()):
            raise UsageError(f"read: a variable is letters, digits and `_`, found {name!r}")
    said, whole = _said(shell, line.text("-p"), raw=line.has("-r"))
    separators = shell.variables.get("IFS")
    separators = _BLANKS if separators is None else separators
    # Of `read` alone the line is REPLY as it is.
    fields = [said] if not line.has("PID") else _fields(said, separators, len(names))
    shell.variables.values.update(zip(names, ["".join(one for one, _ in field) for field in fields], strict=True))
    return 0 if whole else 1


_Marked = list[tuple[str, bool]]
"""Characters, and whether a backslash stood before each, so that it separates nothing."""


def _said(shell: Session, prompt: str, *, raw: bool) -> tuple[_Marked, bool]:
    """The line, and whether it was whole: with an end, and not cut off by the input's."""
    marked: _Marked = []
    while True:
        text, whole = _one(shell, prompt)
        at = 0
        while at < len(text):
            if text[at] == "\\" and not raw:
                if at + 1 == len(text):
                    break
                marked.append((text[at + 1], True))
                at += 2
            else:
                marked.append((text[at], False))
                at += 1
        else:
            return marked, whole
        if not whole:
            return marked, whole
        prompt = ""  # the line goes on


def _one(shell: Session, prompt: str) -> tuple[str, bool]:
    if shell.input is not None:
        pipes.by_lines(shell.input)
        found = _bytes(shell.input)
        return found.removesuffix(b"\n").decode("utf-8", "replace"), found.endswith(b"\n")
    try:
        return shell.ask_line(prompt).removesuffix("\n"), True
    except EOFError:
        return "", False


def _bytes(source: TextIO) -> bytes:
    """A line of a file, its end included if it has one. Raises E2BIG."""
    descriptor, said = source.fileno(), b""
    seekable = source.seekable()
    while not said.endswith(b"\n"):
        piece = os.read(descriptor, CHUNK if seekable else 1)
        if not piece:
            break
        end = piece.find(b"\n") + 1
        if end:
            with suppress(OSError):
                if seekable:
                    os.lseek(descriptor, end - len(piece), os.SEEK_CUR)
            piece = piece[:end]
        said += piece
        if len(said) > pipes.MAX_TEXT:
            raise SyscallError(Errno.E2BIG, f"a line is longer than {pipes.MAX_TEXT >> 20} MiB")
    return said


def _fields(said: _Marked, separators: str, count: int) -> list[_Marked]:
    """A line split as IFS says; the last field is the rest of it. Blanks among the separators count once, and not at the
    ends; of the others each ends a field."""
    blanks = "".join(one for one in separators if one in _BLANKS)

    def separates(at: int, known: str) -> bool:
        return not said[at][1] and said[at][0] in known

    begin, end = 0, len(said)
    while begin < end and separates(begin, blanks):
        begin += 1
    while end > begin and separates(end - 1, blanks):
        end -= 1
    fields: list[_Marked] = []
    while len(fields) < count:
        at = begin
        while at < end and not separates(at, separators):
            at += 1
        field = said[begin:at]
        while at < end and separates(at, blanks):
            at += 1
        if at < end and separates(at, separators):
            at += 1
            while at < end and separates(at, blanks):
                at += 1
        last = len(fields) == count - 1
        fields.append(said[begin:end] if last and at < end else field)
        begin = at
    return fields
