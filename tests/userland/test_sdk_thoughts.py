"""Thoughts and answers told apart while they stream, by the marks that each family has."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.userland.sdk.call_formats import FORMATS
from llmasos.userland.sdk.thoughts import Part, ThoughtMarks, marks_of, opened_in, reader
from llmasos.userland.sdk.tool_calls import BadCall, ToolCall

THINK = ThoughtMarks("<think>", "</think>")
MUSE = marks_of("<|start|> to=self<|message|><|eom|><|eot|>", ())
HARMONY = ThoughtMarks("<|channel|>analysis<|message|>", "<|end|>", harmony=True)


def parts_of(
    marks: ThoughtMarks | None, text: str, step: int = 0, *, opened: bool = False, header: str = ""
) -> list[tuple[str, str]]:
    """What a reader gives for a text in pieces of `step` characters (0: at once); stretches of a kind joined."""
    ear = reader(marks, [FORMATS[0]], opened=opened, header=header)
    pieces = [text[i : i + step] for i in range(0, len(text), step)] if step else [text]
    found: list[Part] = [part for piece in pieces for part in ear.push(piece)] + ear.flush()
    joined: list[tuple[str, str]] = []
    for part in found:
        said = repr(part.call) if part.call is not None else part.text
        if joined and joined[-1][0] == part.kind != "call":
            joined[-1] = (part.kind, joined[-1][1] + said)
        else:
            joined.append((part.kind, said))
    return joined


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize(
    ("marks", "text", "opened", "expected"),
    [
        (THINK, "<think>\nI see.\n</think>\n\nYes.", False, [("thought", "I see."), ("answer", "Yes.")]),
        (THINK, "\nI see.\n</think>\n\nYes.", True, [("thought", "I see."), ("answer", "Yes.")]),
        (THINK, "Yes. No.", False, [("answer", "Yes. No.")]),
        (THINK, "<think>\n\n</think>\n\nYes.", False, [("answer", "Yes.")]),
        (THINK, "<think>I never stop", False, [("thought", "I never stop")]),
        (THINK, "a < b and <thin", False, [("answer", "a < b and <thin")]),
        (THINK, "The mark is <think>, see?", False, [("answer", "The mark is <think>, see?")]),
        (THINK, "<think>one</think><think>two</think>x", False, [("thought", "onetwo"), ("answer", "x")]),
        (ThoughtMarks("[THINK]", "[/THINK]"), "[THINK]a[/THINK]b", False, [("thought", "a"), ("answer", "b")]),
        (
            ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
            "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b", False, [("thought", "a"), ("answer", "b")],
        ),
        (
            THINK, '<think>t</think>\n\nSo:\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', False,
            [("thought", "t"), ("answer", "So:"), ("call", repr(ToolCall("f")))],
        ),
        (None, "<think>a</think>b", False, [("answer", "<think>a</think>b")]),
        (THINK, "</think>b", False, [("answer", "b")]),  # an empty one that nothing has opened (MiniMax M3)
    ],
)  # fmt: skip
def test_thoughts_stand_between_a_familys_marks(
    marks: ThoughtMarks | None, text: str, opened: bool, expected: list[tuple[str, str]], step: int
) -> None:
    assert parts_of(marks, text, step, opened=opened) == expected


@pytest.mark.parametrize("step", [0, 1, 3])
def test_harmonys_channels_are_thoughts_answers_and_calls(step: int) -> None:
    text = (
        "<|channel|>analysis<|message|>I must look.<|end|><|start|>assistant<|channel|>commentary<|message|>One moment."
        '<|end|><|start|>assistant<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"a": 1}<|call|>'
    )
    assert parts_of(HARMONY, text, step, header="assistant") == [
        ("thought", "I must look."), ("answer", "One moment."), ("call", repr(ToolCall("look", {"a": 1}))),
    ]  # fmt: skip
    text = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>4 < 5<|return|>"
    assert parts_of(HARMONY, text, step) == [("thought", "Easy."), ("answer", "4 < 5")]
    text = "<|channel|>commentary to=functions.look<|message|>{no JSON<|call|>"
    ((kind, said),) = parts_of(HARMONY, text, step)
    assert kind == "call"
    assert BadCall.__name__ in said


@given(st.text(st.characters(exclude_characters="<>[]{}`"), max_size=20), st.text(max_size=20), st.integers(1, 4))
@settings(max_examples=200)
def test_nothing_of_an_answer_is_lost(thought: str, answer: str, step: int) -> None:
    """White space around a thought belongs to its marks."""
    if any(form.open in answer or answer.lstrip().startswith("<think>") for form in FORMATS if not form.bare):
        return
    parts = parts_of(THINK, f"<think>{thought}</think>{answer}", step)
    assert "".join(text for kind, text in parts if kind == "thought") == thought.strip()
    assert "".join(text for kind, text in parts if kind == "answer").strip() == answer.strip()


def test_a_special_token_that_is_no_mark_is_no_text() -> None:
    ear = reader(THINK)
    found = [*ear.push("<think>", special=True), *ear.push("a"), *ear.push("<|other|>", special=True)]
    found += [
        *ear.push("</think>", special=True),
        *ear.push("b"),
        *ear.push("<|im_end|>", special=True),
        *ear.flush(),
    ]
    assert [(part.kind, part.text) for part in found] == [("thought", "a"), ("answer", "b")]


@pytest.mark.parametrize(
    ("source", "tokens", "between", "expected"),
    [
        (
            "{{ '<think>\n' }} ... '</think>'",
            [],
            "\n</think>\n\n",
            ThoughtMarks("<think>", "</think>", "", "\n</think>\n\n"),
        ),
        ("content.split('</think>')", [], "", ThoughtMarks("<think>", "</think>", "", "\n</think>\n\n")),
        ("nothing", ["[THINK]", "[/THINK]"], "", ThoughtMarks("[THINK]", "[/THINK]", "", "\n[/THINK]\n\n")),
        ("nothing", ["<|im_end|>"], "", None),
    ],
)
def test_the_marks_are_found_in_the_template_or_the_vocabulary(
    source: str, tokens: list[str], between: str, expected: ThoughtMarks | None
) -> None:
    assert marks_of(source, tokens, between) == expected


def test_harmony_goes_on_to_its_final_channel() -> None:
    marks = marks_of("<|start|> <|channel|> <|message|>", [])
    assert marks is not None
    assert marks.way.endswith("<|channel|>final<|message|>")


def test_a_prompt_can_open_a_thought() -> None:
    assert opened_in("<|assistant|><think>\n", THINK)
    assert not opened_in("<|assistant|><think>\n\n</think>\n\n", THINK)
    assert not opened_in("<|assistant|>", None)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_what_a_model_says_to_itself_is_thought(step: int) -> None:
    said = " to=self<|message|>I see.<|eom|><|start|>assistant to=user<|message|>Yes.<|eot|>"
    assert parts_of(MUSE, said, step, header="assistant") == [("thought", "I see."), ("answer", "Yes.")]
    assert parts_of(MUSE, " to=user<|message|>a <|channel|> b", step, header="assistant") == [
        ("answer", "a <|channel|> b")
    ]
