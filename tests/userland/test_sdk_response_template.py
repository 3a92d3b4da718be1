"""What a model's makers say themselves of how its answers are taken apart; transformers reads the same file alike."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_parsing import parse_response

from llmasos.userland.sdk.response_template import fields_of
from llmasos.userland.sdk.thoughts import reader
from llmasos.userland.sdk.tool_calls import ToolCall

TEMPLATE: dict[str, Any] = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open": "<muse>", "close": "</muse>"},
        "content": {},
        "tool_calls": {
            "open": "<do>", "close": "</do>", "content": "json", "repeats": True,
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "<muse>\nso\n</muse>\n\nYes.",
        'Well.<do>{"name": "look", "arguments": {"at": [1, "x"]}}</do>',
        '<muse>so</muse><do>{"name": "a", "arguments": {}}</do><do>{"name": "b", "arguments": {}}</do>',
    ],
)
def test_thoughts_answer_and_calls_are_those_that_transformers_finds(text: str) -> None:
    fields = fields_of(TEMPLATE)
    ear = reader(fields.thought, fields.calls)
    parts = [*ear.push(text), *ear.flush()]
    theirs = parse_response(text, TEMPLATE, prefix="")
    assert "".join(part.text for part in parts if part.kind == "thought") == theirs.get("thinking", "")
    assert "".join(part.text for part in parts if part.kind == "answer").strip() == theirs.get("content", "")
    calls = [part.call for part in parts if isinstance(part.call, ToolCall)]
    assert [(call.name, call.arguments) for call in calls] == [
        (call["function"]["name"], call["function"]["arguments"]) for call in theirs.get("tool_calls", [])
    ]


@pytest.mark.parametrize("template", [None, "x", [], {}, {"fields": 3}, {"fields": {"thinking": 3, "tool_calls": []}}])
def test_one_that_is_not_understood_says_nothing(template: object) -> None:
    fields = fields_of(template)
    assert (fields.thought, fields.calls) == (None, ())
