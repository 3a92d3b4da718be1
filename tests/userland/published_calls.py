"""Conversations with calls of tools, rendered by published templates."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Core

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.chat import ChatFormat
from llmasos.userland.sdk.dialogue import Message, Setup
from llmasos.userland.sdk.tokenizer import Settings, Tokenizer
from llmasos.userland.sdk.tool_calls import ToolCall
from llmasos.userland.sdk.traits import common, told
from tests.userland import words_zoo
from tests.userland.chat_shapes import NOON, user

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
