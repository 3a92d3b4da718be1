"""What opens above the table: the choice of a signal, a nice value, the column to sort by, and help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Label, OptionList, Static
from textual.widgets.option_list import Option

from llmasos.syscalls.limits import NICE_MAX, NICE_MIN
from llmasos.syscalls.records import Signal
from llmasos.userland.top.columns import COLUMNS, Column
from llmasos.userland.top.keys import KEYS, PLAYED

# In the order in which they are wanted; CHLD and XCPU are the kernel's own.
SIGNALS: tuple[tuple[Signal, str], ...] = (
    (Signal.TERM, "ends it"),
    (Signal.INT, "interrupts its answer; it stays"),
    (Signal.STOP, "stops it; its context stays"),
    (Signal.CONT, "lets it go on"),
    (Signal.KILL, "ends it; of a driver: it is restarted"),
)
_BOX = """
{name} {{ align: center middle; }}
{name} > Vertical {{
    width: 56; max-width: 100%; height: auto; max-height: 100%;
    border: round $primary; background: $surface; padding: 0 1;
}}
{name} OptionList, {name} OptionList:focus {{
    height: auto; max-height: 100%; border: none; padding: 0; background: $surface;
}}
{name} Input {{ border: none; height: 1; padding: 0; background: $panel; }}
{name} Label.why {{ color: $text-error; }}
"""
CLOSES: list[BindingType] = [Binding("escape,q", "dismiss(None)", show=False)]


class SignalScreen(ModalScreen[Signal | None]):
    """Which signal? Escape sends none."""

    DEFAULT_CSS = _BOX.format(name="SignalScreen")
    BINDINGS = CLOSES

    def __init__(self, whom: str) -> None:
        super().__init__()
        self._whom = whom

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "signal"
            yield Label(Text(f"to {self._whom}; Escape: none"))
            yield OptionList(
                *(Option(Text.assemble((f"{signal.name:<6}", "bold"), said), signal.name) for signal, said in SIGNALS)
            )

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(Signal[event.option_id or "TERM"])


class ConfirmScreen(ModalScreen[bool | None]):
    """Really? Before one key stops or ends many."""

    DEFAULT_CSS = _BOX.format(name="ConfirmScreen")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "dismiss(True)", show=False),
        Binding("escape,n,q", "dismiss(None)", show=False),
    ]

    def __init__(self, what: str, whom: str) -> None:
        super().__init__()
        self._what, self._whom = what, whom

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = self._what
            yield Label(Text(f"{self._what} {self._whom}?"))
            yield Label(Text("y or Enter: yes; n or Escape: no"))


class SortScreen(ModalScreen[Column | None]):
    """Which column? Escape: as it was."""

    DEFAULT_CSS = _BOX.format(name="SortScreen")
    BINDINGS = CLOSES

    def __init__(self, sort: str) -> None:
        super().__init__()
        self._sort = sort

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "sort by"
            yield OptionList(*(Option(column.title, column.title) for column in COLUMNS))

    def on_mount(self) -> None:
        self.query_one(OptionList).highlighted = [column.title for column in COLUMNS].index(self._sort)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(COLUMNS[event.option_index])


class NiceScreen(ModalScreen[int | None]):
    """Which nice value? Escape: as it was."""

    DEFAULT_CSS = _BOX.format(name="NiceScreen")
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", show=False)]

    def __init__(self, whom: str, nice: int) -> None:
        super().__init__()
        self._whom, self._nice = whom, nice

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "nice"
            yield Label(Text(f"of {self._whom}: {NICE_MIN} (largest share) to {NICE_MAX}"))
            yield Input(str(self._nice), select_on_focus=True)
            yield Label("", classes="why")

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        word = event.value.strip()
        try:
            nice = int(word)
        except ValueError:
            nice = NICE_MAX + 1
        if NICE_MIN <= nice <= NICE_MAX:
            self.dismiss(nice)
        else:
            self.query_one(".why", Label).update(Text(f"nice is from {NICE_MIN} to {NICE_MAX}, found {word!r}"))


class TextScreen(ModalScreen[None]):
    """Text to be read, in a box of its own that scrolls."""

    DEFAULT_CSS = """
    TextScreen { align: center middle; }
    TextScreen > VerticalScroll {
        width: 100; max-width: 100%; height: auto; max-height: 100%;
        border: round $primary; background: $surface; padding: 0 1; scrollbar-size-vertical: 1;
    }
    TextScreen Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,question_mark,d", "dismiss(None)", show=False),
    ]

    def __init__(self, title: str, text: RenderableType) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = self._title
            yield Static(self._text)


def manual(*, played: bool, hidden: Sequence[Column] = ()) -> Table:
    """The keys and the columns, also those that are `hidden` for want of room."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, pairs in (
        *((("Recording", PLAYED),) if played else ()),
        ("Keys", KEYS),
        ("Columns", [(column.title, column.about) for column in COLUMNS]),
    ):
        table.add_row(Text(title, "bold underline"), "")
        for name, about in pairs:
            table.add_row(Text(name, "bold"), Text(about))
    if hidden:
        table.add_row(Text("Not shown", "bold underline"), Text(", ".join(column.title for column in hidden)))
    return table
