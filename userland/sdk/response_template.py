"""A model's `response_template` (transformers' format, in tokenizer_config.json): its makers' rules for reading an
answer.

It names regions by what opens and closes them and by the form of their content. Thoughts and calls matter here. Regions
that a pattern opens, and contents of other forms, are left to what the chat template shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmasos.userland.sdk.call_formats import CallFormat, read_tag
from llmasos.userland.sdk.call_json import read_json
from llmasos.userland.sdk.call_literals import read_gemma, read_python
from llmasos.userland.sdk.call_scan import Strings
from llmasos.userland.sdk.call_shapes import Kind, shapes_for
from llmasos.userland.sdk.calls import Reader
from llmasos.userland.sdk.thoughts import ThoughtMarks

_THOUGHTS = ("thinking", "reasoning_content", "reasoning")
_READERS: dict[str, tuple[Reader, Kind]] = {
    "json": (read_json, "json"),
    "python-call-list": (read_python, "python"),
    "xml-inline": (read_tag, "tags"),
}


@dataclass(slots=True, frozen=True)
class Fields:
    """What a response template says of thoughts and calls; None and empty where it says nothing usable."""

    thought: ThoughtMarks | None = None
    calls: tuple[CallFormat, ...] = ()


def fields_of(template: Any) -> Fields:
    """The regions of a response template. One that is not understood says nothing."""
    fields = template.get("fields") if isinstance(template, Mapping) else None
    if not isinstance(fields, Mapping):
        return Fields()
    thought = next((_marks(fields[name]) for name in _THOUGHTS if name in fields), None)
    return Fields(thought, _calls(fields.get("tool_calls")))


def _literals(field: Any, name: str) -> list[str]:
    value = field.get(name) if isinstance(field, Mapping) else None
    found = [value] if isinstance(value, str) else value
    return [one for one in found if isinstance(one, str) and one] if isinstance(found, list) else []


def _marks(field: Any) -> ThoughtMarks | None:
    opened, closed = _literals(field, "open"), _literals(field, "close")
    if not opened or not closed:
        return None
    start, end = opened[0].strip(), closed[0].strip()
    return ThoughtMarks(start, end, "", f"\n{end}\n\n") if start and end else None


def _calls(field: Any) -> tuple[CallFormat, ...]:
    closed = [*_literals(field, "close"), ""]
    kind = field.get("content", "text") if isinstance(field, Mapping) else ""
    arguments = field.get("content_args") if isinstance(field, Mapping) else None
    if str(kind) not in _READERS:
        return ()
    read, written = _READERS[str(kind)]
    if kind == "json" and isinstance(arguments, Mapping) and arguments.get("unquoted_keys"):
        read, written = read_gemma, "gemma"
    strings: Strings = "auto" if written == "json" or written == "tags" else written
    return tuple(
        CallFormat(
            "response template",
            start,
            end,
            read,
            strings=strings,
            shapes=shapes_for(written, start, end),
        )
        for opened in _literals(field, "open")
        if (start := opened.strip())
        for end in [closed[0].strip()]
    )
