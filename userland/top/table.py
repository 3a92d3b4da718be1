"""The table: a line of headings, and below it the tree, of which only the lines on the screen are drawn."""

from __future__ import annotations

from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from llmasos.syscalls.pids import shown
from llmasos.syscalls.records import State
from llmasos.userland.top.columns import NAME, WIDE, Column, Placed, cell, place
from llmasos.userland.top.model import Group, Picture, Row
from llmasos.userland.top.tree import Line

_STATES = {
    State.RUNNING: "running",
    State.READY: "ready",
    State.STOPPED: "stopped",
    State.ZOMBIE: "ended",
}
_FOLDED, _UNFOLDED = "▸ ", "▾ "


class Heading(Widget):
    """The columns' titles; a click on one sorts by it."""

    DEFAULT_CSS = """
    Heading { height: 1; background: $panel; color: $text-primary; text-style: bold; }
    """

    class Clicked(Message):
        def __init__(self, column: Column) -> None:
            self.column = column
            super().__init__()

    def __init__(self) -> None:
        super().__init__()
        self._placed: list[Placed] = []
        self._sort, self._reverse = "", False

    def show(self, placed: list[Placed], sort: str, *, reverse: bool) -> None:
        """Show these columns; the one that is sorted by is marked."""
        self._placed, self._sort, self._reverse = placed, sort, reverse
        self.refresh()

    def render(self) -> Text:
        text = Text(no_wrap=True, overflow="crop")
        for at in self._placed:
            text.append(" " * max(0, at.start - text.cell_len))
            title = set_cell_size(at.column.title, min(at.width, cell_len(at.column.title)))
            style = "reverse" if at.column.title == self._sort and not self._reverse else "underline reverse"
            blank = " " * (at.width - cell_len(title))
            text.append(blank if at.column.right else "")
            text.append(title, style if at.column.title == self._sort else "")
            text.append("" if at.column.right else blank)
        return text

    def on_click(self, event: events.Click) -> None:
        for at in self._placed:
            if at.start <= event.x <= at.start + at.width:  # the gap behind it is the column's, too
                self.post_message(self.Clicked(at.column))
                return


class ProcessTable(ScrollView, can_focus=True):
    """The lines of the tree. The cursor stays on top until it is moved; then with its process, when the order changes."""

    DEFAULT_CSS = """
    ProcessTable {
        height: 1fr;
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
        overflow-x: hidden;
    }
    ProcessTable > .table--guide { color: $text-muted; }
    ProcessTable > .table--group { text-style: bold; color: $text-primary; }
    ProcessTable > .table--running { color: $text-success; }
    ProcessTable > .table--ready { color: $text-accent; }
    ProcessTable > .table--stopped { color: $text-warning; }
    ProcessTable > .table--ended { color: $text-error; }
    ProcessTable > .table--rate { color: $text-success; }
    ProcessTable > .table--cursor { background: $panel; color: $text; }
    ProcessTable:focus > .table--cursor { background: $primary; color: $text; text-style: bold; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "table--guide", "table--group", "table--running", "table--ready", "table--stopped", "table--ended", "table--rate",
        "table--cursor",
    }  # fmt: skip
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "app.details", show=False),
        Binding("escape", "app.unfilter", show=False),
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "move(-1000000000)", show=False),
        Binding("end,G", "move(1000000000)", show=False),
    ]

    class Moved(Message):
        """The cursor is on another line."""

    class Laid(Message):
        """The columns are others, or elsewhere: the width has changed."""

    class Chosen(Message):
        """A line was clicked twice."""

    class Folded(Message):
        """The mark of a line that folds was clicked."""

        def __init__(self, key: str) -> None:
            self.key = key
            super().__init__()

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Line] = []
        self.placed: list[Placed] = []
        self.hidden: list[Column] = []
        self.cursor = 0
        self._peaks = 0.0, 0.0  # the rate that the highest bar of a sparkline stands for, of a process and of a group
        self._follows = False
        self._wide = False

    @property
    def at(self) -> Line | None:
        """The line that the cursor is on."""
        return self.lines[self.cursor] if self.lines else None

    def show(self, lines: list[Line], picture: Picture) -> None:
        """Show these lines of a picture."""
        key = self.at.key if self.at is not None and self._follows else None
        self.lines, self._peaks = lines, (picture.peak, picture.group_peak)
        found = next((at for at, line in enumerate(lines) if line.key == key), None) if key is not None else None
        self.cursor = max(0, min(self.cursor, len(lines) - 1)) if found is None else found
        self.fit_columns()

    def fit_columns(self) -> None:
        """Choose columns for the width there is now."""
        width = self.scrollable_content_region.width
        names = max((cell_len(line.guide) + 2 * line.folds + cell_len(line.name) for line in self.lines), default=0)
        pids = max((len(shown(line.of.info.pid)) for line in self.lines if isinstance(line.of, Row)), default=1)
        self.placed, self.hidden = place(width, names, pids)
        self._wide = width >= WIDE
        self.virtual_size = Size(width, len(self.lines))
        self._into_view()
        self.refresh()

    def on_resize(self) -> None:
        self.fit_columns()
        self.post_message(self.Laid())

    def render_line(self, y: int) -> Strip:
        number = y + self.scroll_offset.y
        width = self.scrollable_content_region.width
        plain = self.rich_style
        if number >= len(self.lines):
            return Strip.blank(width, plain)
        line = self.lines[number]
        back = self.get_component_rich_style("table--cursor") if number == self.cursor else plain
        segments: list[Segment] = []
        used = 0
        for at in self.placed:
            segments.append(Segment(" " * (at.start - used), back))
            segments += self._named(line, at.width, back) if at.column.title == NAME else [self._cell(line, at, back)]
            used = at.start + at.width
        return Strip(segments).adjust_cell_length(width, back)

    def _cell(self, line: Line, at: Placed, back: Style) -> Segment:
        text = cell(
            at.column,
            line.of,
            at.width,
            self._peaks[isinstance(line.of, Group) or line.of.agents is not None],
            wide=self._wide,
        )
        text = _cut(text, at.width)
        blank = " " * (at.width - cell_len(text))
        style = back
        if at.column.title == "RATE":
            style = back + self._colour("rate")
        elif at.column.title == "STATE" and isinstance(line.of, Row) and line.of.info.state in _STATES:
            style = back + self._colour(_STATES[line.of.info.state])
        elif isinstance(line.of, Group):
            style = back + self._colour("group")
        return Segment(blank + text if at.column.right else text + blank, style)

    def _named(self, line: Line, width: int, back: Style) -> list[Segment]:
        guide = line.guide + ((_FOLDED if line.folded else _UNFOLDED) if line.folds else "")
        guide = guide[-max(0, width - 4) :] if cell_len(guide) > width - 4 else guide
        name = _cut(line.name, width - cell_len(guide))
        style = back + self._colour("group") if isinstance(line.of, Group) else back
        blank = " " * max(0, width - cell_len(guide) - cell_len(name))
        return [Segment(guide, back + self._colour("guide")), Segment(name, style), Segment(blank, back)]

    def _colour(self, name: str) -> Style:
        return Style(color=self.get_component_rich_style(f"table--{name}").color)

    # --- moving ---

    def action_move(self, lines: int) -> None:
        self._go(self.cursor + lines)

    def action_page(self, pages: int) -> None:
        self._go(self.cursor + pages * max(1, self.size.height - 1))

    def _go(self, to: int) -> None:
        to = max(0, min(len(self.lines) - 1, to))
        self._follows = to > 0
        if to != self.cursor and self.lines:
            self.cursor = to
            self._into_view()
            self.refresh()
            self.post_message(self.Moved())

    def _into_view(self) -> None:
        self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False, force=True)

    def on_click(self, event: events.Click) -> None:
        number = event.y + self.scroll_offset.y
        if number >= len(self.lines):
            return
        again = number == self.cursor and event.chain > 1
        self._go(number)
        line = self.lines[number]
        at = next((at for at in self.placed if at.column.title == NAME), None)
        if at is not None and line.folds and 0 <= event.x - at.start < cell_len(line.guide) + 2:
            self.post_message(self.Folded(line.key))
        elif again:
            self.post_message(self.Chosen())


def _cut(text: str, width: int) -> str:
    """Text in at most `width` columns; what is cut ends with `…`."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 1 else "…"[:width]
