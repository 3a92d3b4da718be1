"""Finds the mark that closes calls in a text that arrives in pieces, in time linear in its length however small they are.

A mark within a string belongs to the string, so the scan follows the strings of the form's notation; their content is
read later.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

Strings = Literal["auto", "json", "python", "gemma", "none"]  # auto: JSON's if an object or list comes before any tag

_QUOTES: dict[Strings, tuple[str, ...]] = {
    "auto": (),
    "none": (),
    "json": ('"',),
    "python": ('"""', "'''", '"', "'"),
    "gemma": ('<|"|>', "<escape>", '"', "'"),
}
BEGINNING = 256  # characters that decide the form of calls without marks
_LONGEST = len("<escape>")
_UNESCAPED = ('<|"|>', "<escape>")


class CloseScan:
    """Takes calls piece by piece; `push` gives (calls, the text behind them) once the closing mark has arrived. Calls
    without a closing mark go on to the end of the answer."""

    def __init__(self, mark: str, strings: Strings) -> None:
        self.length = 0
        self.beginning = ""  # the first characters, BEGINNING of them if so many have arrived
        self._mark = mark
        self._strings = strings
        self._quote = ""  # the mark that ends the string in which the scan is
        self._seen: list[str] = []
        self._rest = ""  # not scanned yet: a mark may begin in it

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._seen) + self._rest

    def push(self, piece: str) -> tuple[str, str] | None:
        if self.length < BEGINNING:
            self.beginning += piece[:BEGINNING]
        self.length += len(piece)
        if not piece:
            return None
        if not self._mark:
            self._seen.append(piece)
            return None
        text, at = self._rest + piece, 0
        while found := _pattern(self._mark, self._strings, self._quote).search(text, at):
            token = found[0]
            if token == self._mark and not self._quote:
                self._seen.append(text[: found.start()])
                return "".join(self._seen), text[found.end() :]
            near = not self._quote and found.start() > len(text) - _LONGEST
            if near and (begun := self._begun(text, at)) <= found.start():
                at = begun  # one quote or the first of three; a quote, or the middle of a longer mark
                break
            at = found.end()
            if self._strings == "auto":
                self._strings, at = ("none" if token == "<" else "json"), found.start()
            elif not self._quote:
                self._quote = token
            elif token == self._quote:
                self._quote = ""
        else:
            at = max(at, len(text) - max(len(self._mark), _LONGEST) + 1)
        if at:
            self._seen.append(text[:at])
        self._rest = text[at:]
        return None

    def _begun(self, text: str, at: int) -> int:
        """The place where a longer mark of strings may have begun that has not fully arrived; the end of the text if
        nowhere."""
        for start in range(max(at, len(text) - _LONGEST + 1), len(text)):
            if any(len(q) > len(text) - start and q.startswith(text[start:]) for q in _QUOTES[self._strings]):
                return start
        return len(text)


@cache
def _pattern(mark: str, strings: Strings, quote: str) -> re.Pattern[str]:
    """The pattern to look for, within a string that ends with `quote` or outside of any."""
    if quote:
        return re.compile(re.escape(quote) + ("" if quote in _UNESCAPED else r"|\\."), re.DOTALL)
    tokens = [re.escape(mark), *map(re.escape, _QUOTES[strings])]
    return re.compile("|".join(tokens) + (r"|[{\[<]" if strings == "auto" else ""))
