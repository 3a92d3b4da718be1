"""The output of programs: a terminal with colours, or a pipe with plain text of the same shape.

As with `ls` and `git`, the output decides: on a terminal, tables are coloured and fitted to its width (table.py) and
lines break between words; elsewhere columns are aligned with spaces, never cut, never coloured. NO_COLOR is honoured.
Errors go to stderr, one line each. An output that cannot be written (a full disk) is an error like others; a pipe whose
reader has gone raises BrokenPipeError, for that is no failure.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.userland.programs.table import Column, Table, cells

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Column", "Screen", "Table", "Unwritable", "wrapped"]

PROSE_WIDTH = 100  # for an output without a width
_WORDS = re.compile(r" *\S+")


class Unwritable(SyscallError):
    """The output takes no more, such as on a full disk. `told`: an earlier error of the same output has said so."""

    def __init__(self, reason: str, *, told: bool) -> None:
        super().__init__(Errno.EIO, reason)
        self.told = told


class Screen:
    """One program's output. `colour` is True on a terminal with colours."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.out = out if out is not None else sys.stdout
        self.err = err if err is not None else sys.stderr
        self.terminal = self.out.isatty() and os.environ.get("TERM", "") != "dumb"
        self.colour = self.terminal and not os.environ.get("NO_COLOR")
        self._column = 0  # cells that the present line has
        self._fixed = 0
        self._full = False  # it took no more, and that has been said
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """rich's console on the same file."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self.out, highlight=False, no_color=not self.colour)
        return self._console

    @property
    def width(self) -> int:
        """Columns of a line of prose."""
        return self._fixed or (_size(self.out)[0] if self.terminal else PROSE_WIDTH)

    @contextmanager
    def fixed_width(self, width: int) -> Iterator[None]:
        """A width that holds while the `with` lasts, for an output that is on its way to a terminal."""
        self._fixed = width
        try:
            yield
        finally:
            self._fixed = 0

    @property
    def height(self) -> int:
        """Lines of the terminal."""
        return _size(self.out)[1]

    def prose(self, text: str, style: str = "", indent: str = "") -> None:
        """Print text in lines that end between words; `indent` begins all lines but the first."""
        for line in wrapped(text, self.width - 1, indent):
            self.write(line + "\n", style)

    def table(self, table: Table, *, wide: bool = False, whole: bool = False) -> None:
        """Print a table. On a terminal it is fitted, and what it has no room for is named, unless `wide`. With `whole`
        no column is left out."""
        fit = table.fitted(self.width, whole=whole) if self.terminal and not wide else table.natural()
        self.write("\n".join(table.lines(fit, self._painted)) + "\n", shown=True)
        if fit.hidden:
            self.prose(f"not shown: {', '.join(fit.hidden)}; --wide shows all, -o chooses", "dim")

    def line(self, text: str = "", style: str = "", *, indent: str = "") -> None:
        """Print a line; `style` applies on a terminal only. A terminal's lines end between words, and `indent` begins all
        but the first."""
        if self.terminal:
            text = "\n".join(wrapped(printable(text), self.width, indent, self._column))
        self.write(text + "\n", style)

    def write(self, text: str, style: str = "", *, shown: bool = False) -> None:
        """Print streamed text at once. Shows control characters on a terminal, unless that was done (`shown`), and passes
        them elsewhere. Raises EIO if the output takes no more."""
        if self.terminal and not shown:
            text = printable(text)
        _, newline, last = text.rpartition("\n")
        self._column = cells(last) if newline else self._column + cells(last)
        if style:
            text = "\n".join(self._painted(line, style) for line in text.split("\n"))
        try:
            self.out.write(text)
            self.out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            told, self._full = self._full, True
            raise Unwritable(f"the output cannot be written: {error.strerror}", told=told) from None

    def clear(self) -> None:
        """Clear a terminal."""
        if self.terminal:
            self.out.write("\x1b[2J\x1b[3J\x1b[H")
            self.out.flush()

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Print `name  value` lines."""
        width = max((len(name) for name, _ in pairs), default=0)
        for name, value in pairs:
            self.write(name.ljust(width) + "  ", "bold")
            self.line(printable(value, one_line=True), indent=" " * (width + 2))

    def note(self, text: str) -> None:
        """Print a line that is no result, on stderr."""
        self._to_err(text, "2")

    def error(self, text: str) -> None:
        """Print a text to stderr: one line, which a terminal breaks between words."""
        self._to_err(text, "31")

    def _to_err(self, text: str, colour: str) -> None:
        text = printable(text)
        if self.err.isatty():
            text = "\n".join(wrapped(text, _size(self.err)[0]))
            if not os.environ.get("NO_COLOR"):
                text = f"\x1b[{colour}m{text}\x1b[0m"
        try:
            self.err.write(text + "\n")
            self.err.flush()
        except BrokenPipeError:
            raise
        except OSError:  # a full disk: whoever closes the file hears of it, and there is no other place to say so
            return

    def _painted(self, text: str, style: str) -> str:
        if not (style and text and self.colour):
            return text
        from rich.style import Style

        return Style.parse(style).render(text)


def wrapped(text: str, width: int, indent: str = "", column: int = 0) -> list[str]:
    """Text in lines of `width` cells at most that end between words, as far as words allow; `column` cells of the first
    are taken, and `indent` begins the others. Line breaks and blanks of the text stay."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line, used = "", column
        for word in _WORDS.findall(paragraph) or [paragraph]:
            if line.strip() and used + cells(word) > width:
                lines.append(line)
                line = indent + word.lstrip(" ")
                used = cells(line)
            else:
                line += word
                used += cells(word)
        lines.append(line)
        column = 0
    return lines


def _size(stream: TextIO) -> tuple[int, int]:
    """Columns and lines of a terminal; COLUMNS and LINES hold, as for other programs."""
    try:
        asked = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):  # a stream that only says it is a terminal
        return shutil.get_terminal_size()
    columns, lines = (os.environ.get(name, "") for name in ("COLUMNS", "LINES"))
    return (
        int(columns) if columns.isdigit() and int(columns) else asked.columns or 80,
        int(lines) if lines.isdigit() and int(lines) else asked.lines or 24,
    )
