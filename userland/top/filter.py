"""The line in which a filter is typed."""

from __future__ import annotations

from textual import events
from textual.message import Message
from textual.widgets import Input


class Filter(Input, inherit_bindings=False):
    """Enter keeps the filter, Escape takes it away."""

    DEFAULT_CSS = """
    Filter { display: none; height: 1; border: none; padding: 0; background: $panel; }
    """
    BINDINGS = [binding for binding in Input.BINDINGS if getattr(binding, "key", "") != "enter"]

    class Left(Message):
        """The person is done with it."""

    def __init__(self) -> None:
        super().__init__(placeholder="filter: pid, name, state, model, group", compact=True)

    async def _on_key(self, event: events.Key) -> None:
        if event.key in ("enter", "escape"):
            event.stop()
            event.prevent_default()
            if event.key == "escape":
                self.value = ""
            self.post_message(self.Left())
        else:
            await super()._on_key(event)
