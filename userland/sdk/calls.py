"""A call of a tool, as a record; the bounds of the calls in an answer; the error for a text that is no call."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_CHARACTERS = 1 << 20  # of the calls of one answer
MOST_DEPTH = 64  # of lists and objects within each other
MOST_CALLS = 256  # of one answer
_SURROGATE = re.compile("[\ud800-\udfff]")

Schemas = Mapping[str, Mapping[str, Any]]  # name of a tool -> JSON schemas of its parameters by name
NO_SCHEMAS: Schemas = {}


class Malformed(ValueError):
    """A model wrote something as a call that is none; says why."""


@dataclass(slots=True, frozen=True)
class ToolCall:
    """One call of a tool by the model."""

    name: str  # of the tool
    arguments: dict[str, Any] = field(default_factory=dict)  # by name of the parameter
    id: str = ""  # the model's name of the call; empty if its family has none


Reader = Callable[[str, Schemas], list[ToolCall]]


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check(value: Any) -> None:
    """Raise Malformed for a value that is nested too deep, or that has half of a surrogate pair, which no text has."""
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str) and not item.isascii() and _SURROGATE.search(item):
                raise Malformed(f"half of a surrogate pair: {shown(item)}")
        if not inner:
            return
        level = inner
    raise Malformed(f"nested more than {MOST_DEPTH} deep")
