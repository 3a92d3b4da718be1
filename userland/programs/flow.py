"""Streamed text on a terminal, broken between words instead of within them.

Pieces arrive as the model makes them, often less than a word; a word is printed once it is whole, so that a line can end
before it. If the output is no terminal, everything passes through unchanged.
"""

from __future__ import annotations

import re

from llmasos.syscalls.printable import printable
from llmasos.userland.programs.screen import Screen

_WORDS = re.compile(r"\n|[^\S\n]+|\S+")


class Flow:
    """Prints pieces of text in a line that has `column` characters already."""

    def __init__(self, screen: Screen, column: int = 0) -> None:
        self._screen = screen
        self._column = column
        self._held = ""
        self._style = ""  # of the text that is held back
        self.ended_line = False  # whether the last thing printed was the end of a line

    def push(self, piece: str, style: str = "") -> None:
        """Print the part of the text that is certain, in a style."""
        if style != self._style:
            self.flush()
            self._style = style
        if not self._screen.terminal:
            self._write(piece)
            return
        words = _WORDS.findall(self._held + printable(piece))
        self._held = words.pop() if words and not words[-1].isspace() else ""
        for word in words:
            self._word(word)

    def flush(self) -> None:
        """Print the text that was held back: the text has ended."""
        if self._held:
            self._word(self._held)
            self._held = ""

    def head(self, text: str, style: str) -> None:
        """Print the speaker before the text, in its line."""
        self._screen.write(text, style)
        self._column += len(text)

    def aside(self, text: str) -> None:
        """Print a dim line that is not part of the text; the text goes on in a line of its own."""
        self._screen.line(("\n" if self._column else "") + text, "dim")
        self._column = 0
        self.ended_line = True

    def _word(self, word: str) -> None:
        if word == "\n":
            self._column = 0
        elif self._column + len(word) >= self._screen.width and self._column:
            if word.isspace():
                word = ""  # the line ends here if another word follows
                self._column = self._screen.width
            else:
                self._write("\n")
                self._column = len(word)
        else:
            self._column += len(word)
        self._write(word)

    def _write(self, text: str) -> None:
        if text:
            self._screen.write(text, self._style)
            self.ended_line = text.endswith("\n")
