"""Free text: what `say PID TEXT` and its like take is the rest of the line as it stands."""

from __future__ import annotations

import re
from abc import abstractmethod

from llmasos.userland.shell.grammar import Command, Kind, UsageError
from llmasos.userland.shell.quoting import ENDS, WordReader
from llmasos.userland.shell.tree import Literal, Simple, Word

LONE = "|<>"  # behind `spawn NAME`, one of these by itself begins no text


class TextReader(WordReader):
    """Reads commands that take free text. `closing`: the text ends at the parenthesis that closes a `$(`;
    `whole_text`: it goes on over lines."""

    def __init__(self, source: str, start: int = 0, *, closing: bool = False, whole_text: bool = False) -> None:
        super().__init__(source, start)
        self._closing, self._whole_text = closing, whole_text
        self._depth = 0  # of parentheses within that `$(`

    def _text_command(self, simple: Simple, form: Command) -> None:
        """The words of `say PID [OPTIONS] TEXT` and its like."""
        options = {option.flag: option for option in form.options}
        places = [param for param in form.params if not param.flagged]
        text = next(param for param in places if param.kind is Kind.TEXT)
        left = places.index(text)
        while True:
            self._skip_blanks(comments=False)
            if self.at >= len(self.source) or self.source[self.at] == "\n":
                return
            if self._closing and self._depth == 0 and self.source[self.at] == ")":
                return
            dashed = re.compile(r"--?[A-Za-z][A-Za-z-]*").match(self.source, self.at)
            option = options.get(dashed[0]) if dashed else None
            if option is not None or (dashed is not None and dashed[0].startswith("--")):
                word = self.word()
                simple.words.append(word)
                if option is not None and option.kind is not None and "=" not in word.source:
                    self._skip_blanks(comments=False)
                    if self.at < len(self.source) and self.source[self.at] not in ENDS:
                        simple.words.append(self.word())
                continue
            if left > 0:
                if self.source[self.at] in ENDS:
                    return
                simple.words.append(self.word())
                left -= 1
                continue
            if (not text.required or self._receives) and self._operator():
                return
            simple.text = self.text(simple)
            return

    @property
    @abstractmethod
    def _receives(self) -> bool:
        """Whether something comes in by a pipe, so that there need be no text."""

    def _operator(self) -> bool:
        """Whether an operator stands where a text could: one of LONE by itself, or what no text begins with."""
        after = self.source[self.at + 1 : self.at + 2]
        lone = self.source[self.at] in LONE and (after == "" or after.isspace())
        return lone or self.source.startswith((";", "&&", "||"), self.at)

    def text(self, simple: Simple) -> Word | None:
        """The free text at the cursor. In quotes that close before a blank or the end, with an operator or nothing behind
        them: what is in the quotes, and the rest of the line is grammar. Else the rest of the line as it stands, but for
        a last ` &`; within `$(...)` up to its parenthesis."""
        start = self.at
        quoted = self._quoted_text()
        if quoted is not None:
            return quoted
        self.at = start
        end = len(self.source) if self._whole_text else self.source.find("\n", start)
        end = len(self.source) if end < 0 else end
        if self._closing:
            end = self._unbalanced(start, end)
        text = self.source[start:end].rstrip()
        self.at, simple.verbatim = end, True
        if text == "&" or text.endswith((" &", "\t&")):
            self.at = start + len(text) - 1  # grammar: the command goes to the background
            text = text[:-1].rstrip()
        return Word((Literal(text, quoted=True),), text, start) if text else None

    def _quoted_text(self) -> Word | None:
        if self.source[self.at] not in "\"'":
            return None
        start = self.at
        line = self.source.find("\n", start)
        try:
            parts = self._quoted()
        except UsageError:  # it is not closed: an apostrophe
            return None
        if line >= 0 and self.at > line and not self._whole_text:
            return None
        behind = self.source[self.at : self.at + 1]
        word = Word(tuple(parts) or (Literal("", quoted=True),), self.source[start : self.at], start)
        if behind and not behind.isspace() and behind not in ";&|<>)":
            return None
        at = self.at
        self._skip_blanks()
        behind = self.source[self.at : self.at + 1]
        self.at = at
        return word if behind == "" or behind in "\n;&|<>)" or self._redirects_errors() else None

    def _redirects_errors(self) -> bool:
        return re.compile(r"[ \t]*[12]>").match(self.source, self.at) is not None

    def _unbalanced(self, start: int, end: int) -> int:
        depth = 0
        for index in range(start, end):
            depth += {"(": 1, ")": -1}.get(self.source[index], 0)
            if depth < 0:
                return index
        return end
