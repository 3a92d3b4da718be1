"""One process, or one group, in detail: what `ps PID` and `group PATH` tell, and how fast it is."""

from __future__ import annotations

from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Static

from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Kind, ProcessInfo, State, WaitFor
from llmasos.userland.programs import groups, ps
from llmasos.userland.programs.figures import bar, duration
from llmasos.userland.top import columns
from llmasos.userland.top.footer import Footer
from llmasos.userland.top.model import WANTED, Group, Picture, Row
from llmasos.userland.top.spark import spark

_WAITS = {
    WaitFor.INPUT: "somebody to feed it, or to have it decode",
    WaitFor.PAGEIN: "frames for its KV: others have them",
    WaitFor.WEIGHTS: "the weights of its model",
    WaitFor.DEVICE: "a driver that is being restarted",
    WaitFor.QUOTA: "its control group: a rate of tokens, or its memory",
    WaitFor.CHILD: "a child to end",
    WaitFor.RETURN: "its program to come back to this kernel, unless that has ended",
}
_STATES = {
    State.READY: "a place in a step of the device",
    State.RUNNING: "nothing: it is in the step on the device",
    State.STOPPED: "a CONT: it was stopped",
    State.ZOMBIE: "its status to be collected: it has ended",
    State.NEW: "its model",
}


def waits(info: ProcessInfo) -> str:
    """What a process waits for, in words."""
    if info.state is State.BLOCKED:
        return _WAITS.get(info.wait, "nothing that is known")
    return _STATES[info.state]


def pairs(of: Row | Group, width: int) -> list[tuple[str, str]]:
    """Names and values, the telling ones first."""
    told = [
        ("tokens a second", f"{columns.speed(of.computed) or '0'} computed, {columns.speed(of.decoded) or '0'} decoded"),
        ("their past", spark(of.past, min(len(of.past), max(10, width)), max(of.past, default=0.0)) or "idle"),
    ]
    if isinstance(of, Group):
        return [*groups.details(of.info), *told]
    info = of.info
    said = ps.details(info)
    known = [pair for pair in said if pair[0] in ("name", "pid", "state")]
    rest = [pair for pair in said if pair not in known]
    more = [("waits for", waits(info))]
    if info.reason:
        more.append(("because", printable(info.reason, one_line=True)))
    if info.kind is Kind.LLM:
        share = info.length / info.context if info.context else 0.0
        more.append(("window", f"[{bar(share, 20)}] {share:.0%}"))
        lost = sum(seconds for name, seconds in info.usage.waits.items() if name not in WANTED)
        more += [*told, ("stalled", f"{of.stall:.0%} of the time since the last look; {duration(lost)} in its life")]
    return [*known, *more, *rest]


class DetailsScreen(Screen[None]):
    """The pairs, brought up to date with every picture. The app's keys that act on a process act on this one."""

    DEFAULT_CSS = """
    DetailsScreen VerticalScroll { padding: 0 1; scrollbar-size-vertical: 1; }
    DetailsScreen Static { height: auto; }
    DetailsScreen .warning { display: none; background: $error; color: $text; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,backspace,left", "dismiss(None)", show=False),
    ]
    FOOT = (
        ("escape", "back"), ("k", "signal"), ("z", "stop/cont"), ("n", "nice"), ("ctrl+c", "leaves"),
    )  # fmt: skip

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self._said, self._warning = Static(), Static(classes="warning")
        self._picture: Picture | None = None

    def compose(self) -> ComposeResult:
        yield self._warning
        with VerticalScroll():
            yield self._said
        yield Footer(self.FOOT)

    def show(self, picture: Picture) -> None:
        """Show how it is now."""
        self._picture = picture
        self._draw()

    def warn(self, why: str) -> None:
        """Tell why this is old; empty: it is not."""
        self._warning.update(Text(why))
        self._warning.display = bool(why)

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        if self._picture is None:
            return
        of = self._picture.groups.get(self.key) if self.key.startswith("/") else self._picture.rows.get(int(self.key))
        if of is None:
            self._said.update(Text(f"{self.key} is not there any more", "bold"))
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in pairs(of, self.size.width - 24):
            table.add_row(name, Text(printable(value, one_line=True)))
        self._said.update(table)
