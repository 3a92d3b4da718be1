"""Calls with a tag for each argument. The text in a tag has no quotes: the tool's schema says what it is."""

# ruff: noqa: RUF001 - DeepSeek's marks are written with full-width bars

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmasos.userland.sdk.call_json import loaded
from llmasos.userland.sdk.calls import NO_SCHEMAS, Malformed, Schemas, ToolCall, shown


def typed(text: str, schema: Mapping[str, Any] | None) -> Any:
    """The value of an argument that was written without quotes, by its schema; without a schema, JSON that is no string
    counts as JSON."""
    kinds = kinds_of(schema or {})
    if kinds == {"string"}:
        return text
    bare = text.strip()
    lowered = bare.lower()
    if "null" in kinds and lowered in ("null", "none"):
        return None
    if "boolean" in kinds and lowered in ("true", "false"):
        return lowered == "true"
    try:
        value = loaded(bare)
    except Malformed:
        return text
    kind = kind_of(value)
    fits = kind in kinds or (kind == "integer" and "number" in kinds) or (not kinds and kind != "string")
    if not fits and kind == "number" and "integer" in kinds and value == int(value):
        return int(value)
    return value if fits and kind != "string" else text


def kinds_of(schema: Mapping[str, Any]) -> set[str]:
    """The types of values that a schema allows; empty: it does not say."""
    kind = schema.get("type")
    found = {kind} if isinstance(kind, str) else {k for k in kind or () if isinstance(k, str)}
    for choices in (schema.get("anyOf"), schema.get("oneOf")):
        for choice in choices if isinstance(choices, list) else ():
            found |= kinds_of(choice) if isinstance(choice, Mapping) else set()
    if not found and isinstance(schema.get("enum"), list):
        found = {kind_of(value) for value in schema["enum"]}
    elif not found and "const" in schema:
        found = {kind_of(schema["const"])}
    return found | ({"null"} if schema.get("nullable") else set())


def kind_of(value: Any) -> str:
    """The type of a value, by its name in schemas."""
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "")


@dataclass(slots=True, frozen=True)
class Tags:
    """Reads calls written with tags. `call` finds a call (name and body), `argument` an argument (key and value). With
    `lines`, a line break after the opening tag and one before the closing tag belong to the tags. Each pattern is tried
    at one place only, so the time is linear."""

    call: re.Pattern[str]
    argument: re.Pattern[str]
    lines: bool = False

    def __call__(self, text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
        found: list[ToolCall] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            match = self.call.match(text, at)
            if not match:
                raise Malformed(f"no call: {shown(text[at : at + 80].strip())}")
            found.append(self._one(match, schemas))
            at = match.end()
        if not found:
            raise Malformed("no call between the marks of calls")
        return found

    def _one(self, match: re.Match[str], schemas: Schemas) -> ToolCall:
        name, body = match["name"].strip(), match["body"]
        if not name:
            raise Malformed("a call has no name")
        schema, at, end = schemas.get(name, {}), 0, len(body.rstrip())
        arguments: dict[str, Any] = {}
        while at < end:
            argument = self.argument.match(body, at)
            if not argument:
                raise Malformed(f"an argument is unfinished: {shown(body[at : at + 80].strip())}")
            key, value = argument["key"].strip(), argument["value"]
            if self.lines:
                value = value.removeprefix("\n").removesuffix("\n")
            said = argument.groupdict().get("kind")
            if said is None:
                arguments[key] = typed(value, schema.get(key))
            else:  # the form itself tells strings from the rest
                arguments[key] = value if said in ("true", "string") else typed(value, None)
            at = argument.end()
        return ToolCall(name, arguments)


def _tags(call: str, argument: str, *, lines: bool = False) -> Tags:
    return Tags(re.compile(r"\s*" + call, re.DOTALL), re.compile(r"\s*" + argument, re.DOTALL), lines)


_INVOKE = r'<(?P<space>(?:\w+:)?)invoke name="(?P<name>[^"]*)">(?P<body>.*?)</(?P=space)invoke>'
read_functions = _tags(
    r"<function=(?P<name>[^>]*)>(?P<body>.*?)(?:</function>|\Z)",
    r"<parameter=(?P<key>[^>]*)>(?P<value>.*?)</parameter>",
    lines=True,
)
read_invokes = _tags(
    _INVOKE, r'<(?P<space>(?:\w+:)?)parameter name="(?P<key>[^"]*)">(?P<value>.*?)</(?P=space)parameter>'
)
read_dsml = _tags(
    r'<｜DSML｜invoke name="(?P<name>[^"]*)">(?P<body>.*?)</｜DSML｜invoke>',
    r'<｜DSML｜parameter name="(?P<key>[^"]*)" string="(?P<kind>true|false)">(?P<value>.*?)</｜DSML｜parameter>',
)
read_arg_keys = _tags(
    r"(?P<name>[^\s<]+)(?P<body>.*)\Z",
    r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>",
)
read_hunyuan = _tags(
    r"<tool_call(?P<end>(?::\w+)?)>(?P<name>[^<]*)<tool_sep(?P=end)>(?P<body>.*?)</tool_call(?P=end)>",
    r"<arg_key(?P<end>(?::\w+)?)>(?P<key>.*?)</arg_key(?P=end)>\s*<arg_value(?P=end)>(?P<value>.*?)</arg_value(?P=end)>",
)
read_params = _tags(
    r'<function name="(?P<name>[^"]*)">(?P<body>.*?)</function>',
    r'<param name="(?P<key>[^"]*)">(?P<value>.*?)</param>',
)
read_minimax3 = _tags(
    r'<invoke name="(?P<name>[^"]*)">(?P<body>.*?)</invoke>',
    r"<(?P<key>[^/>][^>]*)>(?P<value>.*?)</(?P=key)>",
)
read_xtml = _tags(
    r'<\|open\|>call tool="(?P<name>[^"]*)"[^<]*<\|sep\|>(?P<body>.*?)<\|close\|>call<\|sep\|>',
    r'<\|open\|>argument key="(?P<key>[^"]*)" type="(?P<kind>\w+)"<\|sep\|>(?P<value>.*?)<\|close\|>argument<\|sep\|>',
)
