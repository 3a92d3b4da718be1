"""Calls as JSON: one object or several, with name and arguments under the names that families give them."""

from __future__ import annotations

import json
import math
from typing import Any

from llmasos.userland.sdk.calls import MOST_DEPTH, NO_SCHEMAS, Malformed, Schemas, ToolCall, check, shown


def _refused(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{shown(digits)} is more than a number can be")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refused, parse_float=_float)


def scanned(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at a place of a text, and its end. Raises Malformed."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except ValueError as error:
        raise Malformed(f"no JSON: {error}") from None
    except RecursionError:
        raise Malformed(f"JSON nested more than {MOST_DEPTH} deep") from None
    check(value)
    return value, end


def loaded(text: str) -> Any:
    """The value of a text that is JSON and nothing else. Raises Malformed."""
    text = text.strip()
    value, end = scanned(text, 0)
    if end < len(text):
        raise Malformed(f"text behind JSON: {shown(text[end : end + 80])}")
    return value


def arguments_of(value: Any) -> dict[str, Any]:
    """Arguments as an object; some models write them as a string that holds one."""
    if isinstance(value, str):
        value = loaded(value) if value.strip() else {}
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"the arguments are no object but {shown(value)}")
    return value


def call_of(value: Any) -> ToolCall:
    """The call in one of the objects that families use: name and arguments, under one of their names."""
    if not isinstance(value, dict):
        raise Malformed(f"a call is no object but {shown(value)}")
    inner = value.get("function")
    if isinstance(inner, dict):
        value = {**inner, "id": value.get("id", "")}
    name = next((value[key] for key in ("name", "tool_name", "function") if key in value), None)
    if not isinstance(name, str) or not name:
        if len(value) == 1:  # {"name of the tool": {arguments}}
            ((name, arguments),) = value.items()
            if isinstance(arguments, dict):
                return ToolCall(name, arguments)
        raise Malformed(f"a call has no name: {shown(value)}")
    given = next((value[key] for key in ("arguments", "parameters", "args") if key in value), None)
    named = next((value[key] for key in ("id", "tool_call_id", "call_id") if key in value), "")
    return ToolCall(name, arguments_of(given), str(named if named is not None else ""))


def read_json(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """One object, a list of them, or several one after the other (a line each, or with `;` or `,` between)."""
    at = 0
    found: list[ToolCall] = []
    while at < len(text):
        if text[at].isspace() or (found and text[at] in ";,"):
            at += 1
            continue
        value, at = scanned(text, at)
        found.extend(call_of(item) for item in (value if isinstance(value, list) else [value]))
    if not found:
        raise Malformed("no call between the marks of calls")
    return found
