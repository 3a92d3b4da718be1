"""What a model may write to do harm by a call: nothing raises, the time is linear, and however it streams, the same comes
out.

Time is counted as steps of the interpreter, so that no clock decides.
"""

# ruff: noqa: RUF001 - DeepSeek's marks are written with full-width bars

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from llmasos.userland.sdk.call_formats import FORMATS, CallFormat
from llmasos.userland.sdk.calls import MOST_CHARACTERS
from llmasos.userland.sdk.thoughts import ThoughtMarks, reader
from llmasos.userland.sdk.tool_calls import BadCall, CallReader, ToolCall, schemas_of
from tests.userland.tool_calls import TOOLS, events_of

pytestmark = pytest.mark.long

BY_NAME = {form.name: form for form in FORMATS}


def attacks(form: CallFormat, size: int) -> dict[str, str]:
    """Texts of some `size` characters that begin as calls of a form do."""
    one = form.shapes[0]
    head, _, tail = one.call.replace("␣", "").partition("«args»")
    head = head.replace("«name»", "look").replace("«number»", "1").replace("«id»", "a" * 9)
    start = one.open.replace("␣", "") + head
    open_tag = one.arguments.open.replace("«key»", "a").replace("«kind»", "false").replace("␣", "") or '{"a": '
    return {
        "nested lists": start + open_tag + "[" * size,
        "nested objects": start + open_tag + '{"a":' * (size // 5),
        "a long number": start + open_tag + "9" * size,
        "a long fraction": start + open_tag + "0." + "9" * size + one.close.replace("␣", ""),
        "no end": start + open_tag + "x" * size,
        "white space": start + " " * size + "x",
        "white space in a string": start + open_tag + '"' + " " * size,
        "a call within a call": start * (size // len(start)),
        "openings": form.open * (size // len(form.open)),
        "tags": start + open_tag * (size // len(open_tag)),
        "ends": start + (one.close.replace("␣", "") or "}") * (size // max(1, len(one.close))),
        "quotes": start + open_tag + "\"'" * (size // 2),
        "backslashes": start + open_tag + '"' + "\\" * size,
        "braces": start + "}{" * (size // 2),
        "angles": start + "<" * size,
        "equals": start + "=" * size,
        "half a pair": start + open_tag + '"\\ud83d"' + tail.replace("␣", "") + one.close.replace("␣", ""),
        "a half of a pair": start + open_tag + '"\ud83d"' + tail.replace("␣", "") + one.close.replace("␣", ""),
    }


KINDS = list(attacks(FORMATS[0], 10))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_an_attack_is_text_or_calls_or_told_as_none_and_streams_to_the_same(form: CallFormat) -> None:
    for kind, text in attacks(form, 700).items():
        whole = events_of([form], text)
        assert events_of([form], text, 1) == whole, kind
        assert events_of([form], text, 7) == whole, kind
        for event in whole:
            assert isinstance(event, str | BadCall | ToolCall)
            if isinstance(event, ToolCall):
                repr(event.arguments).encode()  # what is in a record can be written


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_million_characters_neither_raise_nor_make_a_record_that_cannot_be_written(
    form: CallFormat,
) -> None:
    for text in attacks(form, 1_000_000 if form.name == "hermes, qwen, glm" else 100_000).values():
        for event in events_of([form], text, 1 << 15):
            if isinstance(event, ToolCall):
                repr(event.arguments).encode()


def steps(do: Callable[[], Any]) -> int:
    """How many lines of the call modules are run."""
    count = 0

    def line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return line

    def called(frame: FrameType, event: str, _: Any) -> Any:
        return line if "sdk" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(called)
    try:
        do()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_four_times_the_text_takes_no_more_than_four_times_the_steps(form: CallFormat) -> None:
    small, large = attacks(form, 400), attacks(form, 1600)
    for kind in KINDS:
        few = steps(lambda kind=kind: events_of([form], small[kind], 1))  # type: ignore[misc]
        many = steps(lambda kind=kind: events_of([form], large[kind], 1))  # type: ignore[misc]
        assert many < 5 * few + 2000, kind


def test_what_is_held_back_of_a_stream_stays_small_or_is_taken_once() -> None:
    """A reader that joined what it has with every piece would copy a megabyte a million times."""
    call = CallReader([BY_NAME["lfm"]], schemas_of(TOOLS))
    call.push("<|tool_call_start|>[look(a='")
    for _ in range(200_000):
        assert call.push("x") == []
    assert call.push("')]<|tool_call_end|>") == [ToolCall("look", {"a": "x" * 200_000})]
    blank = CallReader([BY_NAME["lfm"]])
    for _ in range(200_000):
        assert blank.push(" ") == []
    assert "".join(map(str, blank.push("x") + blank.flush())) == " " * 200_000 + "x"


def test_calls_beyond_the_bound_are_told_however_they_stream() -> None:
    text = "<tool_call>" + "x" * (MOST_CHARACTERS + 5)
    for step in (0, 1 << 12):
        first = events_of("hermes, qwen, glm", text, step)[0]
        assert isinstance(first, BadCall)
        assert len(first.text) == MOST_CHARACTERS + 1


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_a_call_within_a_thought_is_thought(step: int) -> None:
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    ear = reader(ThoughtMarks("<think>", "</think>"), [BY_NAME["hermes, qwen, glm"]])
    text = f"<think>I could {call} now</think>\n{call}"
    pieces = [text[i : i + step] for i in range(0, len(text), step)]
    parts = [part for piece in pieces for part in ear.push(piece)] + ear.flush()
    assert "".join(part.text for part in parts if part.kind == "thought") == f"I could {call} now"
    assert [part.call for part in parts if part.call] == [ToolCall("look", {})]


@pytest.mark.parametrize("step", [0, 1])
def test_of_an_argument_named_twice_the_last_counts_in_every_form(step: int) -> None:
    for form, text in (
        ("hermes, qwen, glm", '<tool_call>{"name": "look", "arguments": {"a": "1", "a": "2"}}</tool_call>'),
        ("seed", "<seed:tool_call><function=look><parameter=a>1</parameter><parameter=a>2</parameter></function>"
         "</seed:tool_call>"),
        ("lfm", "<|tool_call_start|>[look(a='1', a='2')]<|tool_call_end|>"),
        ("gemma 4", '<|tool_call>call:look{a:<|"|>1<|"|>,a:<|"|>2<|"|>}<tool_call|>'),
    ):  # fmt: skip
        assert events_of(form, text, step) == [ToolCall("look", {"a": "2"})]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_numbers_that_json_or_a_machine_has_not_are_in_no_record(number: str) -> None:
    (event,) = events_of(
        "hermes, qwen, glm", f'<tool_call>{{"name": "look", "arguments": {{"b": {number}}}}}</tool_call>'
    )
    assert isinstance(event, BadCall)
    tagged = f"<seed:tool_call><function=look><parameter=b>{number}</parameter></function></seed:tool_call>"
    assert events_of("seed", tagged) == [ToolCall("look", {"b": number})]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("deepseek", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>look<｜tool▁sep｜>{"a": "<｜tool▁calls▁end｜> %s"}'
         "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
        ("lfm", "<|tool_call_start|>[look(a='<|tool_call_end|> %s')]<|tool_call_end|>"),
        ("gemma 4", '<|tool_call>call:look{a:<|"|><tool_call|> %s<|"|>}<tool_call|>'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_closing_mark_in_a_string_of_any_notation_is_text_of_it(form: str, text: str, step: int) -> None:
    mark = BY_NAME[form].close
    assert events_of(form, text % "]}", step) == [ToolCall("look", {"a": f"{mark} ]}}"})]
