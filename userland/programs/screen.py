"""The output of programs: a terminal with colours, or a pipe with plain text of the same shape.

As with `ls` and `git`, the output decides: on a terminal, tables are coloured and fitted to its width (by rich, which is
imported only then); elsewhere columns are aligned with spaces, never cut, never coloured. NO_COLOR is honoured. Errors go
to stderr, one line each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from llmasos.syscalls.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable


PROSE_WIDTH = 100  # for an output without a width


@dataclass(frozen=True)
class Column:
    """One column: its heading, whether it holds numbers (right-aligned), and its style on a terminal."""

    title: str
    right: bool = False
    style: str = ""
    elastic: bool = False  # shrinks first if the terminal is narrow


@dataclass
class Table:
    """Rows of cells. `styles` holds the style of a row that differs from the columns' own."""

    columns: Sequence[Column]
    rows: list[list[str]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)

    def add(self, *cells: object, style: str = "") -> None:
        """Add a row; `style` is rich's (`bold`, `yellow`, ...)."""
        self.rows.append([printable(str(cell), one_line=True) for cell in cells])
        self.styles.append(style)

    def plain(self) -> list[str]:
        """The table as lines of text, columns two spaces apart."""
        grid = [[column.title for column in self.columns], *self.rows]
        widths = [max(len(row[i]) for row in grid) for i in range(len(self.columns))]
        return [
            "  ".join(
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(row, widths, self.columns, strict=True)
            ).rstrip()
            for row in grid
        ]

    def rich(self) -> RichTable:
        """The table for a terminal."""
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=False)
        for column in self.columns:
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                style=column.style,
                no_wrap=True,
                overflow="ellipsis",
                min_width=None if column.elastic else max([len(column.title), *self._widths(column)]),
            )
        for row, style in zip(self.rows, self.styles, strict=True):
            table.add_row(*(Text(cell) for cell in row), style=style or None)
        return table

    def _widths(self, column: Column) -> list[int]:
        index = list(self.columns).index(column)
        return [len(row[index]) for row in self.rows]


class Screen:
    """One program's output. `colour` is True on a terminal with colours."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.out = out if out is not None else sys.stdout
        self.err = err if err is not None else sys.stderr
        self.terminal = self.out.isatty() and os.environ.get("TERM", "") != "dumb"
        self.colour = self.terminal and not os.environ.get("NO_COLOR")
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
        return self.console.width if self.terminal else PROSE_WIDTH

    def prose(self, text: str, style: str = "", indent: str = "") -> None:
        """Print text in lines that end between words; `indent` begins all lines but the first."""
        import textwrap

        self.line("\n".join(textwrap.wrap(text, self.width - 1, subsequent_indent=indent)), style)

    def table(self, table: Table) -> None:
        """Print a table."""
        if self.terminal:
            self.console.print(table.rich())
        else:
            self.line("\n".join(table.plain()))

    def line(self, text: str = "", style: str = "") -> None:
        """Print a line; `style` applies on a terminal only."""
        self.write(text + "\n", style)

    def write(self, text: str, style: str = "") -> None:
        """Print streamed text at once. Shows control characters on a terminal, and passes them elsewhere."""
        if self.terminal:
            text = printable(text)
        if style and self.colour:
            from rich.style import Style

            lines = text.split("\n")
            painted = Style.parse(style)
            text = "\n".join(painted.render(line) if line else "" for line in lines)
        self.out.write(text)
        self.out.flush()

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
            self.line(printable(value, one_line=True))

    def note(self, text: str) -> None:
        """Print a line that is no result, on stderr."""
        text = printable(text)
        self.err.write((f"\x1b[2m{text}\x1b[0m" if self.err.isatty() and self.colour else text) + "\n")
        self.err.flush()

    def error(self, text: str) -> None:
        """Print one line to stderr."""
        text = printable(text)
        if self.err.isatty() and self.colour:
            text = f"\x1b[31m{text}\x1b[0m"
        self.err.write(text + "\n")
        self.err.flush()
