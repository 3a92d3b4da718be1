"""Published chat templates (those that llama-cpp-python's source brings along): one can talk with each, and its own calls
of tools are read.

Where that source is not unpacked (tests/llama_cpp_source.py) they are skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Core

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.chat import ChatFormat
from llmasos.userland.sdk.dialogue import Message, Setup
from llmasos.userland.sdk.template import ChatTemplate, special
from llmasos.userland.sdk.thoughts import opened_in
from llmasos.userland.sdk.tokenizer import Settings, Tokenizer
from llmasos.userland.sdk.tool_calls import ToolCall
from llmasos.userland.sdk.traits import common, told
from tests.llama_cpp_source import TEMPLATES, WHY
from tests.userland import words_zoo
from tests.userland.chat_shapes import NOON, Ledger, user

CALLING = Setup(
    now=NOON,
    tools=[
        {
            "type": "function",
            "function": {
                "name": "look",
                "description": "Look.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "at": {"type": "string", "description": "At what."},
                        "n": {"type": "integer", "description": "n"},
                    },
                    "required": ["at"],
                },
            },
        }
    ],
)
pytestmark = pytest.mark.skipif(not TEMPLATES, reason=WHY)


def chat_of(file: Path) -> ChatFormat:
    """A template's format on a byte-level tokenizer that has its marks as added tokens."""
    source = file.read_text(encoding="utf-8")
    core = Core.from_str(words_zoo.core_json("byte-level"))
    marks = set(
        re.findall(r"<[|\uff5c]?[A-Za-z_\u2581]{2,30}[|\uff5c]?>|\[/?[A-Z_]{3,20}\]|</think>|</assistant>", source)
    )
    core.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in ["<s>", "</s>", *sorted(marks)]])
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    try:
        return ChatFormat(Tokenizer(core, Settings(named=named, templates={"default": source})), file.stem)
    except SyscallError as error:
        if error.errno is not Errno.EINVAL:
            raise
        pytest.skip(f"it renders nothing of a question alone: {error.reason}")


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


CALLS = [ToolCall("look", {"at": "x y", "n": 2}), ToolCall("look", {"at": "z"})]


def called(chat: ChatFormat, calls: Sequence[ToolCall]) -> tuple[str, str] | None:
    """What a template writes of an answer with calls, up to what closes any answer, and the end of the prompt before it;
    None if it writes nothing of them."""
    asked = [user("alpha")]
    for content in ("", None):
        for as_text in (False, True):
            told_calls = [told(call, i) for i, call in enumerate(calls)]
            for one in told_calls:
                arguments = one["function"]["arguments"]
                one["function"]["arguments"] = json.dumps(arguments) if as_text else arguments
            answer: Message = {"role": "assistant", "content": content, "tool_calls": told_calls}
            try:
                text = chat.render(CALLING, [*asked, answer]).plain
                plain = chat.render(CALLING, [*asked, {"role": "assistant", "content": "beta"}]).plain
                prompt = chat.render(CALLING, asked, prompt=True).plain
            except SyscallError:
                continue
            if any(str(value) not in text for call in calls for value in call.arguments.values()):
                continue
            start = common(text, prompt)
            begun = text.startswith(prompt)
            head = text[start:] if begun else text[text.rindex("alpha") + 5 :]
            behind = (
                common(head[::-1], plain[::-1])
                if not chat.traits(CALLING).formats[:1] or not (chat.traits(CALLING).formats[0].close)
                else 0
            )
            return head[: len(head) - behind], prompt[-24:] if begun else ""
    return None


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
