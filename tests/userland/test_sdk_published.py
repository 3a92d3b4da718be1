"""Published chat templates (those that llama-cpp-python's source brings along): one can talk with each, and its own calls
of tools are read.

Where that source is not unpacked (tests/llama_cpp_source.py) they are skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmasos.userland.sdk.dialogue import Message, Setup
from llmasos.userland.sdk.template import ChatTemplate, special
from llmasos.userland.sdk.thoughts import opened_in
from tests.llama_cpp_source import TEMPLATES, WHY
from tests.userland.chat_shapes import NOON, Ledger, user
from tests.userland.published_calls import CALLING, CALLS, called, chat_of

pytestmark = pytest.mark.skipif(not TEMPLATES, reason=WHY)


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_turns_are_what_the_template_renders(file: Path) -> None:
    """Five turns. The model says what the template writes of its answer behind the prompt; where its prompt has opened a
    thought, or stands in no rendering of an answer, what the family's models write there."""
    chat, ledger, messages = chat_of(file), Ledger(), list[Message]()
    template, setup = ChatTemplate(chat.tokenizer), CALLING if "tool_use" in file.stem else Setup(now=NOON)
    options: dict[str, Any] = {"tools": setup.tools, "now": chat.time_of(setup)}
    traits = chat.traits(setup)
    for turn in range(5):
        messages.append(user(f"question {turn} <|im_end|>"))
        log = ledger.say(chat, messages[-1], setup=setup)
        prompt = template.render(messages, prompt=True, **options)
        assert chat.tokenizer.decode(log, special=True) == chat.tokenizer.decode(prompt.ids(), special=True)
        text = f"Answer {turn}."
        answer: Message = {"role": "assistant", "content": text}
        said = text
        if opened_in(prompt.text, traits.marks):
            assert traits.marks is not None
            said = f"so{traits.marks.way}{text}"
            if traits.thoughts == "field":
                answer["reasoning_content"] = "so"
            else:
                answer["content"] = special(f"{traits.marks.open}\n{said}")  # its marks are the model's
        whole = template.render([*messages, answer], prompt=False, **options).text
        if whole.startswith(prompt.text) and text in whole[len(prompt.text) :]:
            said = whole[len(prompt.text) :]
        ids = chat.tokenizer.encode(said, control=True)
        end = next((i + 1 for i, token in enumerate(ids) if token in chat.stop_ids(setup)), 0)
        cut = chat.tokenizer.encode(said[: said.index(text) + len(text)], control=True)
        ledger.answer(ids[:end] or cut)
        messages.append(answer)


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_the_calls_that_a_template_writes_are_read(file: Path) -> None:
    chat = chat_of(file)
    for calls in (CALLS[:1], CALLS):
        written = called(chat, calls)
        if written is None:
            continue
        said, lead = written
        heard = chat.hear(CALLING, chat.tokenizer.encode(said, control=True), lead)
        assert [(one.name, one.arguments) for one in heard.calls] == [(one.name, one.arguments) for one in calls]
    if called(chat, CALLS[:1]) is None:
        pytest.skip("it writes no calls")
