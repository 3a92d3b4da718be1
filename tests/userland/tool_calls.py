"""Calls of tools as published models write them."""

# ruff: noqa: RUF001 - DeepSeek's marks are written with full-width bars
from __future__ import annotations

from typing import Any

from llmasos.userland.sdk.call_formats import FORMATS, CallFormat
from llmasos.userland.sdk.tool_calls import (
    CallReader,
    ToolCall,
    schemas_of,
)

BY_NAME = {form.name: form for form in FORMATS}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": ["boolean", "null"]},
                    "d": {"anyOf": [{"type": "number"}, {"type": "array"}]},
                },
            },
        },
    }
]  # fmt: skip

LOOK = ToolCall("look", {"a": "x y", "b": 2})


def events_of(form: str | list[CallFormat], text: str, step: int = 0) -> list[Any]:
    """Everything a reader gives for a text, in pieces of `step` characters (0: at once); texts joined."""
    reader = CallReader([BY_NAME[form]] if isinstance(form, str) else form, schemas_of(TOOLS))
    pieces = [text] if not step else [text[i : i + step] for i in range(0, len(text), step)]
    joined: list[Any] = []
    for event in [e for piece in pieces for e in reader.push(piece)] + reader.flush():
        if isinstance(event, str) and joined and isinstance(joined[-1], str):
            joined[-1] += event
        else:
            joined.append(event)
    return joined


PUBLISHED = [
    ("hermes, qwen, glm", '<tool_call>\n{"name": "look", "arguments": {"a": "x y", "b": 2}}\n</tool_call>', LOOK),
    (
        "hermes, qwen, glm",
        "<tool_call>\n<function=look>\n<parameter=a>\nx y\n</parameter>\n<parameter=b>\n2\n</parameter>\n</function>\n"
        "</tool_call>",
        LOOK,
    ),
    (
        "hermes, qwen, glm",
        "<tool_call>look\n<arg_key>a</arg_key>\n<arg_value>x y</arg_value>\n<arg_key>b</arg_key>\n"
        "<arg_value>2</arg_value>\n</tool_call>",
        LOOK,
    ),
    ("llama 3", '{"name": "look", "parameters": {"a": "x y", "b": 2}}', LOOK),
    ("llama 3, python", '<|python_tag|>{"name": "look", "parameters": {"a": "x y", "b": 2}}', LOOK),
    ("llama 3, python", '<|python_tag|>brave_search.call(query="x")', ToolCall("brave_search", {"query": "x"})),
    ("llama, python", '[look(a="x y", b=2)]', LOOK),
    ("llama 4", "<|python_start|>[look(a='x y', b=2)]<|python_end|>", LOOK),
    ("mistral", '[TOOL_CALLS][{"name": "look", "arguments": {"a": "x y", "b": 2}, "id": "VvvODy9mT"}]',
     ToolCall("look", LOOK.arguments, "VvvODy9mT")),
    ("mistral", '[TOOL_CALLS]look[ARGS]{"a": "x y", "b": 2}', LOOK),
    ("mistral", '[TOOL_CALLS]look[CALL_ID]VvvODy9mT[ARGS]{"a": "x y", "b": 2}',
     ToolCall("look", LOOK.arguments, "VvvODy9mT")),
    (
        "deepseek",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n{"a": "x y", "b": 2}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        LOOK,
    ),
    (
        "deepseek",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>look<｜tool▁sep｜>{"a": "x y", "b": 2}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        LOOK,
    ),
    (
        "deepseek 3.2",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="look">\n<｜DSML｜parameter name="a" string="true">x y'
        '</｜DSML｜parameter>\n<｜DSML｜parameter name="b" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        LOOK,
    ),
    ("gemma", "```tool_code\nlook(a='x y', b=2)\n```", LOOK),
    ("gemma", "```tool_code\nprint(look(a='x y', b=2))\n```", LOOK),
    ("gemma 4", '<|tool_call>call:look{a:<|"|>x y<|"|>,b:2}<tool_call|>', LOOK),
    ("functiongemma", "<start_function_call>call:look{a:<escape>x y<escape>,b:2}<end_function_call>", LOOK),
    ("granite, phi", '<|tool_call|>[{"name": "look", "arguments": {"a": "x y", "b": 2}}]', LOOK),
    ("granite, phi", '<|tool_call|>[{"name": "look", "arguments": {"a": "x y", "b": 2}}]<|/tool_call|>', LOOK),
    ("phi", 'functools[{"name": "look", "arguments": {"a": "x y", "b": 2}}]', LOOK),
    ("lfm", "<|tool_call_start|>[look(a='x y', b=2)]<|tool_call_end|>", LOOK),
    (
        "kimi",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>"
        '{"a": "x y", "b": 2}<|tool_call_end|><|tool_calls_section_end|>',
        ToolCall("look", LOOK.arguments, "functions.look:0"),
    ),
    (
        "minimax 2",
        '<minimax:tool_call>\n<invoke name="look">\n<parameter name="a">x y</parameter>\n'
        '<parameter name="b">2</parameter>\n'
        "</invoke>\n</minimax:tool_call>",
        LOOK,
    ),
    ("minimax 1, apriel", '<tool_calls>\n{"name": "look", "arguments": {"a": "x y", "b": 2}}\n</tool_calls>', LOOK),
    (
        "command",
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "look", "parameters": {"a": "x y", "b": 2}}\n]'
        "<|END_ACTION|>",
        ToolCall("look", LOOK.arguments, "0"),
    ),
    ("apertus", '<|tools_prefix|>[{"look": {"a": "x y", "b": 2}}]<|tools_suffix|>', LOOK),
    ("functionary", '<function=look>{"a": "x y", "b": 2}</function>', LOOK),
    ("minicpm", '<function name="look"><param name="a">x y</param><param name="b">2</param></function>', LOOK),
]  # fmt: skip
