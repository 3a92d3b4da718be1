"""Calls as Python's or Gemma's literals. Nothing is ever evaluated: a small reader of literals reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llmasos.userland.sdk.calls import MOST_DEPTH, NO_SCHEMAS, Malformed, Schemas, ToolCall, shown

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_KEY = re.compile(r"[^\s:,{}\[\]'\"]+")
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": "", "a": "\a", "v": "\v"}


class Literals:
    """Reads literals from a text: lists, objects, strings, numbers, words. `quotes` are marks of strings, apart from '
    and ", in which nothing is escaped."""

    def __init__(self, text: str, quotes: Sequence[str] = ()) -> None:
        self._text = text
        self._at = 0
        self._quotes = quotes

    def done(self) -> bool:
        self._skip()
        return self._at >= len(self._text)

    def take(self, mark: str) -> bool:
        """Step over a mark if it stands here."""
        self._skip()
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def need(self, mark: str) -> None:
        if not self.take(mark):
            found = self._text[self._at : self._at + 20]
            raise Malformed(f"wanted {mark!r} at character {self._at}, found {found!r}")

    def name(self) -> str:
        self._skip()
        found = _NAME.match(self._text, self._at)
        if not found:
            raise Malformed(f"wanted a name at character {self._at}")
        self._at = found.end()
        return found[0]

    def value(self, depth: int = 0) -> Any:
        if depth > MOST_DEPTH:
            raise Malformed(f"nested more than {MOST_DEPTH} deep")
        self._skip()
        for quote in (*self._quotes, "'", '"'):
            if self._text.startswith(quote, self._at):
                return self._string(quote)
        if self.take("["):
            return self._list("]", depth)
        if self.take("("):
            return self._list(")", depth)
        if self.take("{"):
            return self.members(":", "}", depth)
        if number := _NUMBER.match(self._text, self._at):
            self._at = number.end()
            if number[0].lstrip("-").isdigit():
                if len(number[0]) > 4000:  # the longest that Python converts
                    raise Malformed(f"a number of {len(number[0])} digits")
                return int(number[0])
            return float(number[0])
        word = self.name()
        if word not in _WORDS:
            raise Malformed(f"{shown(word)} is no literal")
        return _WORDS[word]

    def _list(self, end: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not self.take(end):
            items.append(self.value(depth + 1))
            if not self.take(","):
                self.need(end)
                break
        return items

    def members(self, between: str, end: str, depth: int = 0) -> dict[str, Any]:
        """Names and values up to `end`; names may be strings."""
        found: dict[str, Any] = {}
        while not self.take(end):
            key = self._member_name(depth)
            self.need(between)
            found[key] = self.value(depth + 1)
            if not self.take(","):
                self.need(end)
                break
        return found

    def _member_name(self, depth: int) -> str:
        self._skip()
        if any(self._text.startswith(quote, self._at) for quote in (*self._quotes, "'", '"')):
            return str(self.value(depth + 1))
        found = (_KEY if self._quotes else _NAME).match(self._text, self._at)
        if not found:
            raise Malformed(f"wanted an argument's name at character {self._at}")
        self._at = found.end()
        return found[0]

    def _string(self, quote: str) -> str:
        if quote in self._quotes:
            start = self._at + len(quote)
            end = self._text.find(quote, start)
            if end < 0:
                raise Malformed("a string has no end")
            self._at = end + len(quote)
            return self._text[start:end]
        if self._text.startswith(quote * 3, self._at):
            quote *= 3
        at = self._at + len(quote)
        out: list[str] = []
        while True:
            if at >= len(self._text):
                raise Malformed("a string has no end")
            if self._text.startswith(quote, at):
                self._at = at + len(quote)
                return "".join(out)
            letter = self._text[at]
            at += 1
            if letter == "\\" and at < len(self._text):
                letter, at = self._escaped(at)
            out.append(letter)

    def _escaped(self, at: int) -> tuple[str, int]:
        kind = self._text[at]
        digits = {"x": 2, "u": 4, "U": 8}.get(kind, 0)
        if digits:
            code = self._text[at + 1 : at + 1 + digits]
            if len(code) == digits and all(c in "0123456789abcdefABCDEF" for c in code):
                number = int(code, 16)
                if number < 0x110000 and not 0xD800 <= number < 0xE000:
                    return chr(number), at + 1 + digits
            raise Malformed(f"\\{kind}{code} is no character")
        return _ESCAPES.get(kind, kind if kind in "\\'\"" else "\\" + kind), at + 1

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at


def read_python(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """`[f(a=1), g()]`, or one call to a line, with or without print() around it."""
    reader = Literals(text)
    found: list[ToolCall] = []
    listed = reader.take("[")
    while not (listed and reader.take("]")):
        if reader.done():
            if listed or not found:
                raise Malformed("the list of calls has no end" if listed else "no call between the marks of calls")
            return found
        name = reader.name()
        reader.need("(")
        if name == "print" and not listed:
            name = reader.name()
            reader.need("(")
            found.append(ToolCall(name, reader.members("=", ")")))
            reader.need(")")
        else:
            found.append(ToolCall(name, reader.members("=", ")")))
        if not reader.take(",") and listed:
            reader.need("]")
            break
    if not reader.done():
        raise Malformed("text behind the list of calls")
    if not found:
        raise Malformed("no call between the marks of calls")
    return found


def read_gemma(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """`call:look{a:<|"|>x y<|"|>,b:2}`: Gemma 4; with `<escape>` for the quotes: FunctionGemma."""
    reader = Literals(text, ('<|"|>', "<escape>"))
    found: list[ToolCall] = []
    while not reader.done():
        reader.need("call:")
        name = reader.name()
        reader.need("{")
        found.append(ToolCall(name, reader.members(":", "}")))
    if not found:
        raise Malformed("no call between the marks of calls")
    return found
