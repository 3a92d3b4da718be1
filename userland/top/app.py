"""The full-screen program: what is on the screen, and what each key does.

The kernel is asked by a thread of its own (live.py), or a recording is played (player.py); either gives pictures, and
this file shows them. Nothing here waits for anything.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.message import Message
from textual.widgets import Input, Static

from llmasos.syscalls.limits import NICE_MAX, NICE_MIN
from llmasos.syscalls.records import Kind, Signal, State
from llmasos.syscalls.table import Kill, Setsched
from llmasos.userland.programs import strace
from llmasos.userland.top import columns, panel
from llmasos.userland.top.details import DetailsScreen
from llmasos.userland.top.driver import Terminal, TerminalGone
from llmasos.userland.top.events import EventsPane, Wanted
from llmasos.userland.top.filter import Filter
from llmasos.userland.top.footer import Footer
from llmasos.userland.top.keys import BINDINGS, FOOT, PLAYED_FOOT
from llmasos.userland.top.live import Done, Live, News, Taken, Trouble, Wish
from llmasos.userland.top.model import Group, Picture, Row
from llmasos.userland.top.player import Player
from llmasos.userland.top.screens import ConfirmScreen, NiceScreen, SignalScreen, SortScreen, TextScreen, manual
from llmasos.userland.top.table import Heading, ProcessTable
from llmasos.userland.top.timeline import Timeline
from llmasos.userland.top.tree import Arrangement, Line, members

_SAID_SECONDS = 6.0  # how long the answer to a wish is shown
_LOOK_SECONDS = 1.0  # between two looks at whether the kernel still answers
_FRAME_SECONDS = 0.1  # of a recording that plays
HARM = {Signal.TERM: "end", Signal.KILL: "end", Signal.STOP: "stop"}
"""Signals that are asked about before many get them, and what they do."""
_ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class TopApp(App[None]):
    """`top` of a running kernel (`live`), or of a recording (`player`)."""

    CSS = """
    Screen { layout: vertical; }
    #panel { height: auto; background: $surface; }
    #trouble { height: auto; display: none; background: $error; color: $text; }
    #said { height: auto; display: none; background: $panel; color: $text; }
    #empty { height: auto; display: none; color: $text-muted; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS = BINDINGS

    class Heard(Message):
        """The thread has news."""

        def __init__(self, news: News) -> None:
            self.news = news
            super().__init__()

    def __init__(self, live: Live | None = None, player: Player | None = None, *, light: bool | None = None) -> None:
        super().__init__(driver_class=Terminal)
        self.live, self.player = live, player
        self.picture: Picture | None = None
        self.arrangement = Arrangement()
        self.ended_by: signal.Signals | None = None
        self.theme = "textual-light" if (_is_light() if light is None else light) else "textual-dark"
        self._table, self._heading = ProcessTable(), Heading()
        self._panel, self._trouble, self._said = Static(id="panel"), Static(id="trouble"), Static(id="said")
        self._empty = Static(id="empty")
        self._filter = Filter()
        self._events = EventsPane()
        self._footer = Footer(PLAYED_FOOT if player is not None else FOOT)
        self._timeline = Timeline(player) if player is not None else None
        self._why = ""
        self._said_at = self._looked = 0.0
        self._ticked = time.monotonic()

    def compose(self) -> ComposeResult:
        yield self._panel
        yield self._trouble
        yield self._heading
        yield self._empty
        yield self._table
        yield self._events
        yield self._filter
        yield self._said
        if self._timeline is not None:
            yield self._timeline
        yield self._footer

    def on_mount(self) -> None:
        if not self.is_headless:
            loop = asyncio.get_running_loop()
            for number in _ENDS:
                loop.add_signal_handler(number, self._end, number)
        self._table.focus()
        self._empty.update(Text("waiting for the kernel's first answer ..."))
        self._empty.display = True
        if self.player is not None:
            self._tell_of(self.player)
            self._play()
            self.set_interval(_FRAME_SECONDS, self._tick)
        elif self.live is not None:
            self.live.start(lambda news: self.post_message(self.Heard(news)))
        self._looked = time.monotonic()
        self.set_interval(_LOOK_SECONDS, self._fade)

    def _end(self, number: signal.Signals) -> None:
        self.ended_by = number
        self.exit()

    @on(TerminalGone)
    def _gone(self) -> None:
        self._end(signal.SIGHUP)

    # --- what is new ---

    def on_top_app_heard(self, message: Heard) -> None:
        news = message.news
        if isinstance(news, Taken):
            self._events.add(news.events, news.lost)
            self._show(news.picture)
        elif isinstance(news, Trouble):
            self._why = news.why
            self._warn()
        else:
            self.say(news)

    def say(self, done: Done) -> None:
        """Show the outcome of a wish, or why there will be none."""
        self._said.update(Text(done.said, "bold" if done.refused else ""))
        self._said.display = True
        self._said_at = time.monotonic()

    def _warn(self) -> None:
        """Show why what is shown is old, if it is."""
        why = self.live.stale(time.monotonic(), self._why) if self.live is not None else ""
        self._trouble.update(Text(why))
        self._trouble.display = bool(why)
        if (details := self._details()) is not None:
            details.warn(why)

    def _fade(self) -> None:
        now = time.monotonic()
        passed, self._looked = now - self._looked, now
        if passed < 2 * _LOOK_SECONDS:  # else the terminal had suspended this program
            self._warn()
        if self._said.display and time.monotonic() - self._said_at > _SAID_SECONDS:
            self._said.display = False

    def _show(self, picture: Picture) -> None:
        self.picture = picture
        self._draw()
        if (details := self._details()) is not None:
            details.show(picture)

    def _details(self) -> DetailsScreen | None:
        """The details, if they are what is seen. While the program ends there may be no screen any more."""
        top = self.screen_stack[-1] if self.screen_stack else None
        return top if isinstance(top, DetailsScreen) else None

    def _draw(self) -> None:
        """Bring the screen up to date with the picture and the person's wishes."""
        picture = self.picture
        if picture is None:
            return
        lines = panel.lines(picture, self.size.width, max(2, self.size.height // 3), self._palette())
        self._panel.update(Text("\n").join(lines))
        shown = self.arrangement.lines(picture)
        self._table.show(shown, picture)
        self._head()
        self._empty.display = not shown
        if not shown:
            needle = self.arrangement.needle
            self._empty.update(Text(f"nothing matches {needle!r}; Escape shows all" if needle else "there is no process"))
        self._events.draw(self._watched())

    def _head(self) -> None:
        self._heading.show(self._table.placed, self.arrangement.sort, reverse=self.arrangement.reverse)

    def _palette(self) -> panel.Palette:
        colours = self.theme_variables
        return panel.Palette(
            colours["text-success"], colours["text-warning"], colours["text-error"], colours["text-primary"], "dim"
        )

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    @on(ProcessTable.Laid)
    def _laid(self) -> None:
        self._head()

    @on(ProcessTable.Moved)
    def _moved(self) -> None:
        self._events.draw(self._watched())

    # --- a recording ---

    def _tell_of(self, player: Player) -> None:
        recording = player.recording
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(recording.recorded))
        torn = "; it ends in the middle of a line, which is left out" if recording.torn else ""
        self.say(Done(f"{recording.path.name}, recorded {at} of llmasos {recording.kernel}{torn}"))

    def _tick(self) -> None:
        now = time.monotonic()
        passed, self._ticked = now - self._ticked, now
        if self.player is not None and not self.player.paused:
            self._played(self.player.advance(passed))

    def _played(self, changed: bool) -> None:
        if changed:
            self._play()
        if self._timeline is not None:
            self._timeline.refresh()

    def _play(self) -> None:
        if self.player is not None:
            self._events.replace(*self.player.events(self._events.MOST))
            self._show(self.player.picture())

    @on(Timeline.Sought)
    def _sought(self, message: Timeline.Sought) -> None:
        if self.player is not None:
            self._played(self.player.seek(message.share * self.player.recording.length))

    def action_tenth(self, tenth: int) -> None:
        if self.player is not None:
            self._played(self.player.seek(tenth / 10 * self.player.recording.length))

    def action_jump(self, seconds: int) -> None:
        if self.player is not None:
            self._played(self.player.seek(self.player.position + seconds))

    def action_step(self, samples: int) -> None:
        if self.player is not None:
            self._played(self.player.step(samples))

    def action_speed(self, steps: int) -> None:
        if self.player is not None:
            self.player.faster(steps)
            self._played(False)

    def action_pause(self) -> None:
        if self.player is not None:
            self.player.play()
            self._played(True)
        elif self.live is not None:
            self.live.paused = not self.live.paused
            self.live.wake()
            self.say(Done("paused: nothing is asked of the kernel; p goes on" if self.live.paused else "goes on"))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A slash is a letter where a line is typed, and nothing above another screen."""
        return action != "filter" or (not isinstance(self.focused, Input) and len(self.screen_stack) == 1)

    # --- arranging ---

    def action_press(self, key: str) -> None:
        """A key in the last line was clicked."""
        if len(self.screen_stack) == 1:
            self.screen.set_focus(self._table)  # it is not typed into the filter
        self.simulate_key(key)

    def action_leave(self) -> None:
        self.exit()

    def action_filter(self) -> None:
        self._filter.display = True
        self.screen.set_focus(self._filter)

    @on(Input.Changed, "Filter")
    def _filtered(self, event: Input.Changed) -> None:
        self.arrangement.needle = event.value.strip()
        self._draw()

    @on(Filter.Left)
    def _kept(self) -> None:
        self._filter.display = bool(self._filter.value)
        self.screen.set_focus(self._table)

    def action_unfilter(self) -> None:
        self._filter.value = ""
        self._filter.display = False

    def action_sort(self) -> None:
        self.push_screen(SortScreen(self.arrangement.sort), self._sort_by)

    @on(Heading.Clicked)
    def _clicked(self, message: Heading.Clicked) -> None:
        self._sort_by(message.column)

    def _sort_by(self, column: columns.Column | None) -> None:
        if column is None:
            return
        arrangement = self.arrangement
        arrangement.reverse = not arrangement.reverse if column.title == arrangement.sort else False
        arrangement.sort = column.title
        self._draw()

    def action_sort_by(self, steps: int) -> None:
        shown = [at.column for at in self._table.placed]
        titles = [column.title for column in shown]
        if shown:
            at = titles.index(self.arrangement.sort) if self.arrangement.sort in titles else 0
            self._sort_by(shown[(at + steps) % len(shown)])

    def action_reverse(self) -> None:
        self.arrangement.reverse = not self.arrangement.reverse
        self._draw()

    def action_tree(self) -> None:
        self.arrangement.flat = not self.arrangement.flat
        self._draw()

    def action_fold(self, folded: bool | None = None) -> None:
        line = self._table.at
        if line is not None:
            self._fold(line.key, (not line.folded) if folded is None else folded)

    @on(ProcessTable.Folded)
    def _mark_clicked(self, message: ProcessTable.Folded) -> None:
        self._fold(message.key, message.key not in self.arrangement.folded)

    def _fold(self, key: str, folded: bool) -> None:
        (self.arrangement.folded.add if folded else self.arrangement.folded.discard)(key)
        self._draw()

    # --- looking closer ---

    @on(ProcessTable.Chosen)
    def action_details(self) -> None:
        line = self._table.at
        if line is not None and self.picture is not None and not isinstance(self.screen, DetailsScreen):
            closer = DetailsScreen(line.key)
            self.push_screen(closer)
            closer.show(self.picture)

    def action_help(self) -> None:
        self.push_screen(TextScreen("help", manual(played=self.player is not None, hidden=self._table.hidden)))

    def action_devices(self) -> None:
        if self.picture is not None:
            text = panel.whole(self.picture, min(95, self.size.width - 5), self._palette())
            self.push_screen(TextScreen("devices, memory, models", text))

    def action_events(self) -> None:
        self._events.turn()
        if self.live is not None:
            self.live.tracing = self._events.display
            self.live.wake()
        self._events.draw(self._watched())

    def _watched(self) -> Wanted:
        """Which events are shown, while only those of the process under the cursor are."""
        line = self._table.at
        if not self._events.of_one or line is None or not isinstance(line.of, Row):
            return None
        pid = line.of.info.pid
        return lambda event: strace.concerns(event, pid, 0)

    def action_theme(self) -> None:
        self.theme = "textual-light" if self.theme == "textual-dark" else "textual-dark"
        self._draw()

    # --- acting on a process, or on all of a group ---

    def _chosen(self) -> tuple[str, list[Row]]:
        """Whom the cursor is on, or the details are of, in words and as rows. None: it has been told why."""
        line: Line | None = self._table.at
        of: Row | Group | None = line.of if line is not None else None
        if isinstance(self.screen, DetailsScreen) and self.picture is not None:
            key = self.screen.key
            of = self.picture.groups.get(key) if key.startswith("/") else self.picture.rows.get(int(key))
        if self.live is None:
            self.say(Done("this is a recording: nothing in it can be changed", refused=True))
        elif isinstance(of, Row) and of.info.pid == self.live.kernel.pid:
            self.say(Done("this is the program that shows it: q leaves, Ctrl-Z suspends", refused=True))
        elif isinstance(of, Row):
            return f"{columns.name(of)} ({of.info.pid})", [of]
        elif isinstance(of, Group) and self.picture is not None:
            inside = members(self.picture, of.info.path)
            if inside:
                return f"all {len(inside)} in {of.info.path}", inside
            self.say(Done(f"there is no agent in {of.info.path}", refused=True))
        return "", []

    def _wish(self, *calls: Kill | Setsched, said: str) -> None:
        if self.live is not None and calls:
            self.live.ask(Wish(calls, said))

    def action_signal(self) -> None:
        whom, rows = self._chosen()
        if rows:
            self.push_screen(SignalScreen(whom), lambda chosen: self._send_if_meant(chosen, whom, rows))

    def _send_if_meant(self, chosen: Signal | None, whom: str, rows: list[Row]) -> None:
        """Ask before many are stopped or ended."""
        what = HARM.get(chosen) if chosen is not None else None
        if what is None or len(rows) == 1:
            self._send(chosen, whom, rows)
        else:
            self.push_screen(ConfirmScreen(what, whom), lambda yes: self._send(chosen if yes else None, whom, rows))

    def _send(self, chosen: Signal | None, whom: str, rows: list[Row]) -> None:
        if chosen is not None:
            self._wish(*(Kill(row.info.pid, chosen) for row in rows), said=f"{chosen.name} sent to {whom}")

    def action_stop(self) -> None:
        whom, rows = self._chosen()
        stopped = all(row.info.state is State.STOPPED for row in rows)
        self._send_if_meant(Signal.CONT if stopped else Signal.STOP, whom, rows)

    def _agents(self) -> tuple[str, list[Row]]:
        """Those chosen, if they are LLM processes."""
        whom, rows = self._chosen()
        agents = [row for row in rows if row.info.kind is Kind.LLM]
        if rows and not agents:
            self.say(Done(f"{whom} has no nice value: it is no agent", refused=True))
        return whom, agents

    def action_nice(self) -> None:
        whom, rows = self._agents()
        if rows:
            self.push_screen(
                NiceScreen(whom, rows[0].info.nice),
                lambda nice: None if nice is None else self._set_nice([(row, nice) for row in rows], whom),
            )

    def action_nicer(self, more: int) -> None:
        whom, rows = self._agents()
        self._set_nice([(row, max(NICE_MIN, min(NICE_MAX, row.info.nice + more))) for row in rows], whom)

    def _set_nice(self, wanted: list[tuple[Row, int]], whom: str) -> None:
        if wanted:
            calls = [Setsched(row.info.pid, nice=nice) for row, nice in wanted]
            self._wish(*calls, said=f"nice of {whom}: {', '.join(sorted({str(nice) for _, nice in wanted}))}")


def _is_light() -> bool:
    """Whether the terminal says that its background is light. Most do not say; this program paints its own then."""
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return background in ("7", "15")
