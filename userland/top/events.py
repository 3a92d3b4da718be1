"""The kernel's events, below the table: all of them, or those that concern the process under the cursor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from rich.text import Text
from textual.widgets import Static

from llmasos.syscalls import pids
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import TraceEvent
from llmasos.userland.programs import strace

Wanted = Callable[[TraceEvent], bool] | None


class EventsPane(Static):
    """It is not shown at first; `turn` goes round: all events, those of one process, none."""

    DEFAULT_CSS = """
    EventsPane { display: none; height: 30%; min-height: 3; max-height: 14; border-top: solid $primary; }
    """
    MOST = 2000  # events kept

    def __init__(self) -> None:
        super().__init__()
        self.of_one = False
        self._kept: deque[TraceEvent] = deque(maxlen=self.MOST)
        self._lost = 0
        self._wanted: Wanted = None

    def turn(self) -> None:
        """Show all, then those of one process, then none."""
        if not self.display:
            self.display, self.of_one = True, False
        elif not self.of_one:
            self.of_one = True
        else:
            self.display = False

    def add(self, events: Iterable[TraceEvent], lost: int) -> None:
        """The events since the last picture."""
        self._kept.extend(events)
        self._lost = lost

    def replace(self, events: Iterable[TraceEvent], lost: int) -> None:
        """The events before this place of a recording."""
        self._kept.clear()
        self.add(events, lost)

    def draw(self, wanted: Wanted) -> None:
        """Show the last events, of those that are wanted (None: all)."""
        self._wanted = wanted
        if not self.display:
            return
        self.border_title = "events of this process: e for none" if self.of_one else "events: e for this process's only"
        shown = [event for event in self._kept if wanted is None or wanted(event)]
        shown = shown[-max(1, self.size.height or 1) :]
        text = Text(no_wrap=True, overflow="ellipsis")
        if self._lost:
            text.append(f"... {self._lost} events lost ...\n", "bold")
        for event in shown:
            text.append(f"{event.at:12.6f} ", "dim")
            text.append(f"{pids.shown(event.pid) if event.pid else '-':>6}  ", "bold")
            text.append(printable(strace.describe(event), one_line=True) + "\n")
        text.rstrip()
        self.update(text if text.cell_len else Text("none yet", "dim"))

    def on_resize(self) -> None:
        self.draw(self._wanted)
