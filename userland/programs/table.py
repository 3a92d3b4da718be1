"""A table of text: columns, rows, and how they are fitted to a terminal.

A narrow terminal costs columns, the least wanted first, and names are cut last: a row that cannot be told from its
neighbour says nothing. Whoever prints the table says what was left out (screen.py). Widths are cells of a terminal
(wcwidth, which prompt_toolkit counts with too): `日` has two, a combining accent none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmasos.syscalls.printable import printable

GAP = 2  # cells between columns
NAME = 9  # `keep` of what tells rows apart: never left out
ESSENTIAL = 7  # and above: left out only where names, cut, do not fit beside it
USUAL = 5
_LEAST = 4  # cells of a name in a terminal that has no room at all


@dataclass(frozen=True)
class Column:
    """One column. `keep` says which columns go first from a narrow terminal: the lowest, from the right. An `elastic` one
    can be cut, to `least` cells, before others go; a name is cut when all but the essential have gone."""

    title: str
    right: bool = False  # holds numbers
    style: str = ""  # on a terminal, in rich's words (`bold`, `yellow`, ...)
    elastic: bool = False
    keep: int = USUAL
    least: int = 8

    @property
    def word(self) -> str:
        """The column as `-o` and `--sort` take it."""
        return self.title.replace(" ", "_")


@dataclass(frozen=True)
class Fitted:
    """The columns that fit, by their indices, with their widths; the titles of the others."""

    shown: list[int]
    widths: list[int]
    hidden: list[str]


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
        """The table as lines of text, nothing left out or cut."""
        return self.lines(self.natural())

    def natural(self) -> Fitted:
        """All columns, as wide as they want to be."""
        return Fitted(list(range(len(self.columns))), self._widths(), [])

    def fitted(self, width: int, *, whole: bool = False) -> Fitted:
        """The columns for a terminal `width` cells wide. With `whole` none is left out, so that lines may be longer."""
        wanted = self._widths()
        cut_to = [
            min(want, max(column.least, cells(column.title))) if column.elastic else want
            for column, want in zip(self.columns, wanted, strict=True)
        ]
        # Names stay whole while anything less than essential can go for them.
        least = [wanted[i] if column.keep >= NAME else cut_to[i] for i, column in enumerate(self.columns)]
        shown = list(range(len(self.columns)))
        going = sorted((i for i in shown if self.columns[i].keep < NAME), key=lambda i: (self.columns[i].keep, -i))

        def room() -> int:
            return width - sum(least[i] for i in shown) - GAP * (len(shown) - 1)

        for index in [] if whole else going:
            if least is not cut_to and self.columns[index].keep >= ESSENTIAL and room() < 0:
                least = cut_to
            if room() >= 0:
                break
            shown.remove(index)
        if room() < 0:
            least = cut_to
        left = room()
        widths = list(least)
        for index in sorted(shown, key=lambda i: -self.columns[i].keep):  # names get what they want first
            if left > 0:
                more = min(left, wanted[index] - widths[index])
                widths[index] += more
                left -= more
            elif left < 0 and self.columns[index].elastic:
                less = min(-left, max(0, widths[index] - _LEAST))
                widths[index] -= less
                left += less
        hidden = [column.word for i, column in enumerate(self.columns) if i not in shown]
        return Fitted(shown, [widths[i] for i in shown], hidden)

    def lines(self, fit: Fitted, paint: Callable[[str, str], str] = lambda text, style: text) -> list[str]:
        """The heading and the rows as lines, columns two spaces apart; `paint` puts a style on a text."""
        columns = [self.columns[i] for i in fit.shown]
        body = [cut_apart([row[i] for row in self.rows], width) for i, width in zip(fit.shown, fit.widths, strict=True)]
        heads = [cut(column.title, width) for column, width in zip(columns, fit.widths, strict=True)]
        lines = [self._line(columns, heads, fit.widths, ["bold"] * len(columns), paint)]
        for number, style in enumerate(self.styles):
            row = [column[number] for column in body]
            styles = [f"{style} {column.style}".strip() for column in columns]
            lines.append(self._line(columns, row, fit.widths, styles, paint))
        return lines

    @staticmethod
    def _line(
        columns: Sequence[Column],
        row: Sequence[str],
        widths: Sequence[int],
        styles: Sequence[str],
        paint: Callable[[str, str], str],
    ) -> str:
        parts = []
        for number, (column, cell, width, style) in enumerate(zip(columns, row, widths, styles, strict=True)):
            blank = " " * max(0, width - cells(cell))
            last = number == len(columns) - 1
            painted = paint(cell, style) if cell else ""
            parts.append(blank + painted if column.right else painted + ("" if last else blank))
        line = (" " * GAP).join(parts)
        return line.rstrip(" ")

    def _widths(self) -> list[int]:
        return [
            max([cells(column.title), *(cells(row[i]) for row in self.rows)]) for i, column in enumerate(self.columns)
        ]


def cells(text: str) -> int:
    """The cells of a terminal that a printable text takes."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    width = wcswidth(text)
    return width if width >= 0 else len(text)


def cut(text: str, width: int, where: str = "end") -> str:
    """A text in at most `width` cells, with `…` at its `end`, `middle` or `start` for what is missing."""
    if cells(text) <= width:
        return text
    room = width - 1
    if room < 1:
        return "…"[: max(0, width)]
    if where == "end":
        return _head(text, room) + "…"
    if where == "start":
        return "…" + _head(text[::-1], room)[::-1]
    return _head(text, room - room // 2) + "…" + _head(text[::-1], room // 2)[::-1]


def cut_apart(texts: Sequence[str], width: int) -> list[str]:
    """Texts cut to a width in the way that leaves different ones different, if there is one."""
    apart = len(set(texts))
    ways = [[cut(text, width, where) for text in texts] for where in ("end", "middle", "start")]
    return max(ways, key=lambda way: (len(set(way)) == apart, len(set(way))))


def _head(text: str, width: int) -> str:
    while cells(text) > width:
        text = text[: max(0, min(width, len(text) - 1))]
    return text
