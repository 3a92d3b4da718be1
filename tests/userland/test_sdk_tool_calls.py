"""Calls of tools in the forms that families publish: told apart from text while they stream, and read into one record.

The texts are those of the families' own model cards and templates; round trips are JSON's own.
"""

# ruff: noqa: RUF001 - DeepSeek's marks are written with full-width bars

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.userland.sdk.call_formats import FORMATS
from llmasos.userland.sdk.call_literals import read_gemma, read_python
from llmasos.userland.sdk.calls import MOST_CHARACTERS, Malformed
from llmasos.userland.sdk.tool_calls import (
    BadCall,
    ToolCall,
    formats_of,
    harmony_call,
)
from tests.userland.tool_calls import BY_NAME, LOOK, PUBLISHED, events_of


@pytest.mark.parametrize(("form", "text", "call"), PUBLISHED)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_a_call_as_its_family_publishes_it_is_read_however_it_streams(
    form: str, text: str, call: ToolCall, step: int
) -> None:
    assert events_of(form, text, step) == [call]
    if not BY_NAME[form].bare:
        assert events_of(form, f"Let me see.\n{text}", step) == ["Let me see.", call]


def test_harmony_names_the_tool_in_the_header_of_a_message() -> None:
    header = "<|channel|>commentary to=functions.look <|constrain|>json"
    assert harmony_call(header, '{"a": "x y", "b": 2}') == LOOK
    assert isinstance(harmony_call(header, '{"a": '), BadCall)


def test_several_calls_and_text_between_come_in_order() -> None:
    one = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    two = '<tool_call>{"name": "b", "arguments": "{\\"k\\": 1}"}</tool_call>'
    assert events_of("hermes, qwen, glm", f"First {one} then {two} done.", 3) == [
        "First",
        ToolCall("a"),
        " then",
        ToolCall("b", {"k": 1}),
        " done.",
    ]
    assert events_of("mistral", "[TOOL_CALLS]a[ARGS]{}[TOOL_CALLS]b[ARGS]{}") == [
        ToolCall("a"),
        ToolCall("b"),
    ]


def test_the_mark_that_closes_a_call_can_stand_in_its_arguments() -> None:
    said = {"name": "look", "arguments": {"a": 'a "quoted" </tool_call> \\'}}
    text = f"<tool_call>{json.dumps(said)}</tool_call>"
    assert events_of("hermes, qwen, glm", text, 5) == [ToolCall("look", said["arguments"])]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes, qwen, glm", '<tool_call>{"name": "look", </tool_call>'),
        ("hermes, qwen, glm", '<tool_call>{"name": "look", "argu'),
        ("hermes, qwen, glm", '<tool_call>{"name": 7}</tool_call>'),
        ("hermes, qwen, glm", "<tool_call>[" * 5000),
        ("hermes, qwen, glm", '<tool_call>{"name": "x", "arguments": ' + "[" * 100_000),
        ("lfm", "<|tool_call_start|>[__import__('os').system('true')]<|tool_call_end|>"),
        ("lfm", "<|tool_call_start|>[look(a=open('x'))]<|tool_call_end|>"),
        ("lfm", "<|tool_call_start|>[look(a=" + "9" * 5000 + ")]<|tool_call_end|>"),
        ("llama 3, python", "<|python_tag|>import os"),
        ("gemma 4", '<|tool_call>call:look{a:<|"|>x<tool_call|>'),
        ("deepseek", "<｜tool▁calls▁begin｜>nothing<｜tool▁calls▁end｜>"),
    ],
)
def test_what_is_malformed_is_told_with_its_text_and_never_raised(form: str, text: str) -> None:
    (event,) = events_of(form, text)
    assert isinstance(event, BadCall)
    assert event.reason
    assert event.text.startswith(BY_NAME[form].open)


def test_calls_are_bounded() -> None:
    events = events_of("hermes, qwen, glm", "<tool_call>" + "x" * (MOST_CHARACTERS + 1), 1 << 16)
    assert isinstance(events[0], BadCall)
    assert "more than" in events[0].reason


@pytest.mark.parametrize("text", ['{"a": 1} is JSON', "{x}", "[1, 2]", "[ ] done", "functional code", '{"name": 3}'])
@pytest.mark.parametrize("step", [0, 1])
def test_text_that_only_looks_like_a_bare_call_is_text(text: str, step: int) -> None:
    bare = [form for form in FORMATS if form.bare]
    assert events_of(bare, text, step) == [text]


@given(st.text(), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_text_without_marks_passes_unchanged(text: str, step: int) -> None:
    forms = [form for form in FORMATS if not form.bare]
    if not any(form.open in text for form in forms):
        assert "".join(events_of(forms, text, step)) == text


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,10}", fullmatch=True)
ARGUMENTS = st.dictionaries(NAMES, JSON, max_size=4)


@given(NAMES, ARGUMENTS, st.booleans(), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_any_json_comes_back_from_a_call_as_it_went_in(
    name: str, arguments: dict[str, Any], ascii_only: bool, step: int
) -> None:
    said = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=ascii_only)
    assert events_of("hermes, qwen, glm", f"<tool_call>\n{said}\n</tool_call>", step) == [ToolCall(name, arguments)]


@given(NAMES, ARGUMENTS)
@settings(max_examples=150, deadline=None)
def test_pythons_own_literals_come_back_from_a_call(name: str, arguments: dict[str, Any]) -> None:
    said = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    if name != "print":
        assert read_python(f"[{name}({said})]") == [ToolCall(name, arguments)]


@given(st.text(alphabet="[](){}=,:'\"\\xab1.-_ \n<|>escape", max_size=60))
@settings(max_examples=300, deadline=None)
def test_the_readers_of_literals_read_or_refuse_whatever_comes(text: str) -> None:
    for read in (read_python, read_gemma):
        with suppress(Malformed):
            assert all(isinstance(call, ToolCall) for call in read(text))


def test_arguments_without_quotes_are_read_by_the_tools_schema() -> None:
    def argument(key: str, text: str) -> Any:
        tagged = f"<tool_call>look<arg_key>{key}</arg_key><arg_value>{text}</arg_value></tool_call>"
        (call,) = events_of("hermes, qwen, glm", tagged)
        return call.arguments[key]

    assert argument("a", "2") == "2"  # a string, says the schema
    assert argument("b", "3.0") == 3
    assert argument("c", "None") is None
    assert argument("c", "True") is True
    assert argument("d", "[1]") == [1]
    assert argument("d", "not JSON") == "not JSON"
    assert argument("unknown", '{"k": 1}') == {"k": 1}
    assert argument("unknown", '"2"') == '"2"'


# --- which form ------------------------------------------------------------------------------------------------------


def test_a_form_is_found_by_what_the_template_makes_of_a_call() -> None:
    def written(call: ToolCall) -> list[str]:
        return [
            f'<tool_call>\n{{"name": "{call.name}", "arguments": {json.dumps(call.arguments)}}}\n</tool_call><|im_end|>'
        ]

    assert [form.name for form in formats_of(written, "")] == ["hermes, qwen, glm"]


def test_a_form_nobody_has_published_is_learnt_from_one_call() -> None:
    def written(call: ToolCall) -> list[str]:
        return [f"\n<<do>>{call.name} with {json.dumps(call.arguments)}<<done>>\n"]

    forms = list(formats_of(written, ""))
    assert events_of(forms, 'Well. <<do>>look with {"a": "x y", "b": 2}<<done>>', 4) == ["Well.", LOOK]


def test_a_template_that_knows_no_calls_leaves_it_to_the_vocabulary_and_then_to_its_own_text() -> None:
    def written(call: ToolCall) -> list[str]:
        return []

    assert [form.name for form in formats_of(written, "", ["<|tool_call_start|>"])] == ["lfm"]
    assert [form.name for form in formats_of(written, "say <tool_call> to call")] == ["hermes, qwen, glm"]
    assert formats_of(written, "nothing of the kind") == ()
