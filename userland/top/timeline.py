"""Where in a recording one is: a line of time below the table, which a click moves along."""

from __future__ import annotations

from rich.text import Text
from textual import events
from textual.message import Message
from textual.widget import Widget

from llmasos.userland.programs.figures import duration
from llmasos.userland.top.player import Player


class Timeline(Widget):
    """`▶ 2x  0:12 ━━━━━╸───── 3:40`."""

    DEFAULT_CSS = """
    Timeline { height: 1; color: $text-accent; background: $surface; }
    """

    class Sought(Message):
        """A place on the line was clicked."""

        def __init__(self, share: float) -> None:
            self.share = share
            super().__init__()

    def __init__(self, player: Player) -> None:
        super().__init__()
        self.player = player
        self._start, self._width = 0, 1

    def render(self) -> Text:
        player = self.player
        length = player.recording.length
        head = f"{'paused' if player.paused else 'plays '} {player.speed:g}x  {duration(player.position)} "
        tail = f" {duration(length)}  sample {player.index + 1} of {len(player.recording.moments)}"
        width = self.size.width - len(head) - len(tail)
        if width < 10:
            tail = f" {duration(length)}"
            width = max(1, self.size.width - len(head) - len(tail))
        self._start, self._width = len(head), width
        done = round(width * (player.position / length if length else 1.0))
        return Text(head + "━" * done + "─" * (width - done) + tail, no_wrap=True)

    def on_click(self, event: events.Click) -> None:
        self.post_message(self.Sought(max(0.0, min(1.0, (event.x - self._start) / max(1, self._width - 1)))))
