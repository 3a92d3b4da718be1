"""The words of the shell's language: quotes, escapes, and what begins with `$`.

Quotes are those of POSIX, but an apostrophe within a word (o'brien) opens none.
"""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from typing import Self

from llmasos.userland.shell.grammar import UsageError
from llmasos.userland.shell.tree import Literal, Part, Substitution, Sum, Variable, Word


class Incomplete(UsageError):
    """The text ends where more is needed: another line may complete it."""


_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]|[?$!#@*]")
_BRACED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[?$!#@*])(:[-+=?]|[-+=?]|##?|%%?)?")
_LENGTH = re.compile(r"\$\{#([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*])\}")
_ESCAPED = re.compile(r"\\(x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{1,4}|U[0-9A-Fa-f]{1,8}|0?[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "v": "\v"}
_BLANKS = " \t"
ENDS = " \t\n;&|<>()"  # of a word that is not quoted


def unescaped(text: str) -> str:
    """Text with its escapes as `$'...'` and `echo -e` have them: `\\t`, `\\x41`, `\\u00e9`, `\\101`."""

    def character(found: re.Match[str]) -> str:
        said = found[1]
        if said[0] in "xuU" and len(said) > 1:
            return chr(int(said[1:], 16)) if int(said[1:], 16) <= sys.maxunicode else "\ufffd"
        if said[0] in "01234567":
            return chr(int(said, 8))
        return _ESCAPES.get(said, said if said in "\\'\"?" else found[0])

    return _ESCAPED.sub(character, text)


class WordReader(ABC):
    """Reads words off a text at the cursor `at`."""

    def __init__(self, source: str, start: int = 0) -> None:
        self.source, self.at = source, start

    @abstractmethod
    def _nested(self, text: str) -> Self:
        """A reader of the same kind for a text that stands in this one."""

    @abstractmethod
    def _substitution(self, *, quoted: bool) -> Substitution:
        """The `$(...)` at the cursor."""

    def word(self) -> Word:
        """The word at the cursor, which is neither blank nor an operator."""
        start = self.at
        parts: list[Part] = []
        plain = ""

        def keep() -> None:
            nonlocal plain
            if plain:
                parts.append(Literal(plain))
                plain = ""

        while self.at < len(self.source) and (character := self.source[self.at]) not in ENDS:
            if character == "\\":
                if self.at + 1 >= len(self.source):
                    raise Incomplete("the line ends with a backslash, so that the next one belongs to it")
                keep()
                if self.source[self.at + 1] != "\n":
                    parts.append(Literal(self.source[self.at + 1], quoted=True))
                self.at += 2
            elif character in "\"'" and not (character == "'" and plain and plain[-1].isalnum()):
                keep()
                parts += self._quoted() or [Literal("", quoted=True)]
            elif character == "`":
                raise UsageError("a backquote runs no command here: write $(COMMAND), or quote it")
            elif character == "$" and (part := self._dollar(quoted=False)) is not None:
                keep()
                parts.append(part)
            else:
                plain += character
                self.at += 1
        keep()
        return Word(tuple(parts), self.source[start : self.at], start)

    def _quoted(self) -> list[Part]:
        """What is in the quotes at the cursor."""
        quote, start = self.source[self.at], self.at
        self.at += 1
        if quote == "'":
            end = self.source.find("'", self.at)
            if end < 0:
                self.at = start
                raise Incomplete("the quote ' is not closed")
            text, self.at = self.source[self.at : end], end + 1
            return [Literal(text, quoted=True)]
        parts: list[Part] = []
        plain = ""
        while self.at < len(self.source) and (character := self.source[self.at]) != '"':
            if character == "\\" and self.source[self.at + 1 : self.at + 2] in ('"', "\\", "$", "`", "\n"):
                plain += self.source[self.at + 1].replace("\n", "")
                self.at += 2
            elif character == "$" and (part := self._dollar(quoted=True)) is not None:
                if plain:
                    parts.append(Literal(plain, quoted=True))
                plain = ""
                parts.append(part)
            else:
                plain += character
                self.at += 1
        if self.at >= len(self.source):
            self.at = start
            raise Incomplete('the quote " is not closed')
        self.at += 1
        if plain:
            parts.append(Literal(plain, quoted=True))
        return parts

    def _dollar(self, *, quoted: bool) -> Part | None:
        """What begins with the `$` at the cursor; None if that is only a character."""
        start = self.at
        if self.source.startswith("$((", start):
            return self._sum(quoted=quoted)
        if self.source.startswith("$(", start):
            return self._substitution(quoted=quoted)
        if found := _LENGTH.match(self.source, start):
            self.at = found.end()
            return Variable(found[1], quoted, "length")
        if self.source.startswith("${", start):
            return self._braced(quoted=quoted)
        if not quoted and self.source.startswith("$'", start):
            return self._escapes()
        found = _PARAMETER.match(self.source, start + 1)
        if found is None:
            return None
        self.at = found.end()
        return Variable(found[0], quoted)

    def _braced(self, *, quoted: bool) -> Variable:
        start = self.at
        found = _BRACED.match(self.source, start + 2)
        if found is None:
            raise UsageError(f"${{NAME}} or ${{NAME:-WORD}} is wanted, found {self.source[start : start + 20]!r}")
        self.at = found.end()
        end = self._closing_brace(self.at)
        if not found[2] and end != self.at:
            raise UsageError(f"${{NAME}} or ${{NAME:-WORD}} is wanted, found {self.source[start : end + 1]!r}")
        within, operator = self.source[self.at : end], found[2] or ""
        word = None
        if operator[:1] in ("#", "%"):
            word = self._pattern(within)
        elif operator:
            word = self._operand(within, quoted=quoted)
        self.at = end + 1
        return Variable(found[1], quoted, operator, word)

    def _closing_brace(self, at: int) -> int:
        depth = 0
        while at < len(self.source):
            if self.source[at] == "\\":
                at += 1
            elif self.source.startswith("${", at):
                depth += 1
            elif self.source[at] == "}":
                if depth == 0:
                    return at
                depth -= 1
            at += 1
        raise Incomplete("the brace of ${ is not closed")

    def _operand(self, text: str, *, quoted: bool) -> Word:
        """The word of `${x:-word}`: in double quotes it is quoted too, and then ' is a character."""
        scanner = self._nested(text)
        parts: list[Part] = []
        while scanner.at < len(scanner.source):
            character = scanner.source[scanner.at]
            if character == '"' or (character == "'" and not quoted):
                parts += scanner._quoted()
            elif character == "$" and (part := scanner._dollar(quoted=quoted)) is not None:
                parts.append(part)
            else:
                scanner.at += 1 + (character == "\\" and scanner.at + 1 < len(scanner.source))
                parts.append(Literal(scanner.source[scanner.at - 1], quoted=True))
        return Word(tuple(parts), text)

    def _pattern(self, text: str) -> Word:
        """The pattern of `${x%...}`: a word, in which what is quoted is no pattern."""
        scanner = self._nested(text)
        word = scanner.word() if text else Word()
        if scanner.at < len(text):
            raise UsageError(f"a pattern with {text[scanner.at]!r} in it is quoted, as in `${{x%' ' *}}`")
        return word

    def _escapes(self) -> Literal:
        """`$'...'`."""
        found = re.compile(r"\$'((?:[^'\\]|\\.)*)'", re.DOTALL).match(self.source, self.at)
        if found is None:
            raise Incomplete("the quote $' is not closed")
        self.at = found.end()
        return Literal(unescaped(found[1]), quoted=True)

    def _sum(self, *, quoted: bool) -> Sum:
        start, depth = self.at, 0
        for index in range(start + 1, len(self.source)):
            depth += {"(": 1, ")": -1}.get(self.source[index], 0)
            if depth == 0:
                break
        else:
            raise Incomplete("the parentheses of $(( are not closed")
        if not self.source.startswith("))", index - 1):
            raise UsageError(f"$((...)) is wanted, found {self.source[start : index + 1]!r}")
        inside = re.sub(r"(?<![\w$])([A-Za-z_]\w*)", r"$\1", self.source[start + 3 : index - 1])
        self.at = index + 1
        return Sum(self._inside(inside), quoted)

    def _inside(self, text: str) -> Word:
        """A text as within double quotes."""
        escaped = re.sub(r'(?<!\\)"', r"\"", text)
        scanner = self._nested(f'"{escaped}"')
        return Word(tuple(scanner._quoted()), text)

    def _skip_blanks(self, *, comments: bool = True) -> None:
        while self.at < len(self.source):
            if self.source[self.at] in _BLANKS:
                self.at += 1
            elif self.source.startswith("\\\n", self.at):
                self.at += 2
            elif comments and self.source[self.at] == "#":
                end = self.source.find("\n", self.at)
                self.at = len(self.source) if end < 0 else end
            else:
                return

    def _near(self) -> str:
        return self.source[self.at : self.at + 20].split("\n")[0] or "the end of the line"
