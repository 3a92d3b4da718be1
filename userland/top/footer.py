"""The keys, in the last line: as many as the width has room for, each whole; a click does what the key does."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style
from rich.text import Text
from textual.widget import Widget

Keys = Sequence[tuple[str, str]]
_SHOWN = {"slash": "/", "question_mark": "?", "enter": "Enter", "escape": "Esc", "ctrl+c": "Ctrl-C",
          "comma": ",", "full_stop": ".", "right_curly_bracket": "}"}  # fmt: skip


class Footer(Widget):
    """`keys`: the key's name, and what it does; the most important first."""

    DEFAULT_CSS = """
    Footer { height: 1; dock: bottom; background: $panel; color: $text; }
    """

    def __init__(self, keys: Keys) -> None:
        super().__init__()
        self._keys = keys

    def show(self, keys: Keys) -> None:
        """Show these keys from now on."""
        self._keys = keys
        self.refresh()

    def render(self) -> Text:
        text = Text(no_wrap=True)
        for key, does in self._keys:
            shown = _SHOWN.get(key, key)
            gap = "  " if text.cell_len else ""
            if text.cell_len + len(gap) + len(shown) + 1 + len(does) > self.size.width:
                break
            text.append(gap)
            click = Style(meta={"@click": f"app.press({key!r})"})
            text.append(shown, Style(bold=True, reverse=True) + click)
            text.append(f" {does}", click)
        return text
