"""Calls with their name in a header, before their arguments as JSON."""

# ruff: noqa: RUF001 - DeepSeek's marks are written with full-width bars

from __future__ import annotations

import re
from dataclasses import dataclass

from llmasos.userland.sdk.call_json import arguments_of, scanned
from llmasos.userland.sdk.calls import NO_SCHEMAS, Malformed, Schemas, ToolCall, shown

_BLANK = re.compile(r"\s*")


@dataclass(slots=True, frozen=True)
class Headed:
    """Reads calls in which `head` finds the name and, if there is one, the id; `tail` is the text behind the
    arguments."""

    head: re.Pattern[str]
    tail: re.Pattern[str]

    def __call__(self, text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
        found: list[ToolCall] = []
        at = _past_blank(text, 0)
        while at < len(text):
            head = self.head.match(text, at)
            if not head or not head["name"].strip():
                raise Malformed(f"no call: {shown(text[at : at + 80].strip())}")
            at, arguments = head.end(), {}
            if text[at : at + 1] in ("{", '"'):
                value, at = scanned(text, at)
                arguments = arguments_of(value)
            tail = self.tail.match(text, at)
            if not tail:
                raise Malformed(f"no end of a call behind its arguments: {shown(text[at : at + 80])}")
            found.append(ToolCall(head["name"].strip(), arguments, head.groupdict().get("id") or ""))
            at = _past_blank(text, tail.end())
        if not found:
            raise Malformed("no call between the marks of calls")
        return found


def _past_blank(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def headed(head: str, tail: str) -> Headed:
    """A reader by the patterns of the text before and behind a call's arguments."""
    return Headed(re.compile(head + r"\s*"), re.compile(r"\s*" + tail))


read_deepseek = headed(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>[^\n<]+)(?:<｜tool▁sep｜>|\n```json\n)",
    r"(?:```\s*)?(?:<｜tool▁call▁end｜>|\Z)",
)
read_kimi = headed(
    r"<\|tool_call_begin\|>(?P<id>(?:functions\.)?(?P<name>[^:<\s]+)(?::\d+)?)\s*<\|tool_call_argument_begin\|>",
    r"<\|tool_call_end\|>",
)
read_solar = headed(
    r"<\|tool_call:begin\|>(?P<id>[^<]*)<\|tool_call:name\|>(?P<name>[^<]*)<\|tool_call:args\|>",
    r"<\|tool_call:end\|>",
)
read_mistral_headed = headed(r"(?P<name>[^\[\s{]+)(?:\[CALL_ID\](?P<id>[^\[]*))?(?:\[ARGS\])?", r"(?:\[TOOL_CALLS\]|\Z)")
read_functionary = headed(r"<function=(?P<name>[^>]*)>", r"(?:</function>|\Z)")
read_recipients = headed(r"(?P<name>[^\s{>]+)\n", r"(?:>>>|\Z)")
