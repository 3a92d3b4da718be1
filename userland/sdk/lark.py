"""Text of a grammar in llguidance's dialect of Lark: rules, terminals, and literals that may have special tokens in them.

A string there never matches a special token, so a mark that is one in the model's vocabulary is written by its id.
Lexemes are greedy: text up to a mark and that mark are one terminal, else the text would swallow the mark's beginning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmasos.syscalls.errno import Errno, SyscallError

SPACE = "space?"
_ANCHOR = re.compile(r"(?<!\\)(\\\\)*[$^]|\\[bBAZz]|\(\?[=!<]")
_HEAD = (
    "space: /[ \\t\\r\\n]{1,64}/",
    "number: /(0|[1-9][0-9]{0,5})/",
    "id: /[a-zA-Z0-9]{9}/",
)


def quoted(text: str) -> str:
    """A text as a string of the grammar."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """A text as a pattern, or a part of one."""
    return re.sub(r"[\\^$.|?*+(){}\[\]/-]", r"\\\g<0>", text).replace("\n", r"\n")


def schema_text(schema: Any) -> str:
    """A JSON schema as a part of a rule."""
    return "%json " + json.dumps(schema, ensure_ascii=False)


class Lark:
    """The rules of a grammar, made when they are needed. `special`: the vocabulary's special tokens and their ids."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self._special = special
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        marks = sorted(special, key=len, reverse=True)
        self._marks = re.compile("(" + "|".join(map(re.escape, marks)) + ")") if marks else None

    def literal(self, text: str) -> str:
        """A text, with its special tokens by id."""
        parts = self._marks.split(text) if self._marks else [text]
        said = [f"<[{self._special[p]}]>" if p in self._special else quoted(p) for p in parts if p]
        return " ".join(said)

    def add(self, body: str, comment: str = "", *, terminal: bool = False) -> str:
        """The name of a rule (or a terminal) with this body."""
        known = self._names.get(body)
        if known is None:
            known = self._names[body] = f"{'T' if terminal else 'r'}{len(self._rules)}"
            self._rules[known] = f"{known}: {body}" + (f"  // {comment}" if comment else "")
        return known

    def reserve(self) -> str:
        """A name for a rule that will refer to itself."""
        name = f"r{len(self._rules)}"
        self._rules[name] = ""
        return name

    def define(self, name: str, body: str) -> None:
        self._rules[name] = f"{name}: {body}"

    def text_until(
        self,
        mark: str,
        never: Sequence[str] = (),
        wanted: str = "",
        *,
        lines: bool = False,
        unlike: Sequence[str] = (),
    ) -> str:
        """Text up to a mark, and the mark. `never`: patterns that the text must not contain; `unlike`: those with which
        it must not begin; `wanted`: the pattern that it must match. With `lines`, it may stand between two line
        breaks."""
        never = [*never, escaped(mark)] if mark else never
        without = f"~{containing(never)}" if never else ""
        without = " & ".join([*([without] if without else []), *(f"~/(?s:{slashes(part)}.*)/" for part in unlike)])
        body = f"/(?s:{slashes(wanted) or '.*'})/" + (f" & {without}" if without else "")
        if lines and wanted:
            body = f'"\\n" ({body}) "\\n" | ({body} & ~/\\n(?s:.*)/ & ~/(?s:.*)\\n/)'
        first = self._marks.split(mark)[0] if self._marks else mark
        rest = mark[len(first) :]
        if not first:
            name = self.add(body, terminal=True)
            return f"{name}? {self.literal(rest)}" if not wanted else f"{name} {self.literal(rest)}"
        name = self.add(f"({body}) {quoted(first)}", terminal=True)
        return f"{name} {self.literal(rest)}".strip()

    def text(self, start: str) -> str:
        """The whole grammar; `start` is the body of its first rule."""
        rules = list(self._rules.values())
        text = "\n".join([f"start: {start}", *rules])
        head = [line for line in _HEAD if re.search(rf"\b{line.partition(':')[0]}\b", text)]
        return "\n".join([text, *head]) + "\n"


def containing(patterns: Sequence[str]) -> str:
    """The pattern of a text that contains one of these. (One for all: an engine's lexer is bounded, and many complements
    soon reach the bound.)"""
    return f"/(?s:.*({'|'.join(dict.fromkeys(map(slashes, patterns)))}).*)/"


def slashes(pattern: str) -> str:
    """A pattern that can stand between slashes."""
    return re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", pattern).replace("\n", r"\n")


def pattern_of(schema: Mapping[str, Any], where: str) -> str:
    """What a schema says of a string, as a pattern that matches all of it; empty: it says nothing. Raises ENOTSUP for
    what no pattern without lookaround can say."""
    low, high, pattern = schema.get("minLength", 0), schema.get("maxLength"), schema.get("pattern")
    if pattern is None:
        return "" if not low and high is None else f".{{{low},{'' if high is None else high}}}"
    if low or high is not None:
        raise SyscallError(Errno.ENOTSUP, f"{where} has a pattern and a length; say the length in the pattern")
    inner = pattern.removeprefix("^")
    if inner.endswith("$") and not inner.endswith("\\$"):
        inner = inner[:-1]
    if _ANCHOR.search(re.sub(r"\[\^", "[", inner)) or ("|" in inner and inner != pattern):
        raise SyscallError(
            Errno.ENOTSUP, f"{where} has a pattern with anchors within it ({pattern!r}); write one without"
        )
    before = "" if pattern.startswith("^") else ".*"
    return f"{before}(?-s:{inner})" + ("" if inner != pattern.removeprefix("^") else ".*")
