"""A conversation fed turn by turn is, token for token, the conversation rendered whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from syscalls.errno import Errno, SyscallError
from syscalls.records import ModelInfo
from userland.sdk.actions import Language
from userland.sdk.chat import ChatFormat, Message
from userland.sdk.template import ChatTemplate
from userland.sdk.tokenizer import Tokenizer
from userland.sdk.tokenizer_files import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(zoo: Callable[[str], Path]) -> Tokenizer:
    return load_tokenizer(str(zoo("llama")))


def whole(tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    return ChatTemplate(tokenizer).ids(messages, prompt=True)


TURNS: list[Message] = [
    {"role": "user", "content": "My name is Zoë."},
    {"role": "assistant", "content": "Hello Zoë 👋"},
    {"role": "user", "content": "What is it?"},
]


@pytest.mark.parametrize("ended", ["by the model", "cut off"])
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_turns_fed_one_by_one_are_the_conversation_rendered_whole(
    tokenizer: Tokenizer, ended: str, system: str
) -> None:
    chat = ChatFormat(tokenizer, "llama")
    head: list[Message] = [{"role": "system", "content": system}] if system else []
    log = chat.first([*head, TURNS[0]])
    log += tokenizer.encode(TURNS[1]["content"], control=False)
    if ended == "by the model":
        log += chat.stop_ids()
    log += chat.next(TURNS[2]["content"], log[-chat.close_length :])
    assert log == whole(tokenizer, [*head, *TURNS])


def test_instructions_can_be_fed_before_the_first_question(tokenizer: Tokenizer) -> None:
    chat = ChatFormat(tokenizer, "llama")
    log = chat.opening("Be brief.") + chat.after_opening("Be brief.", "Why?")
    assert log == whole(
        tokenizer, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    )


def test_what_no_tokenizer_should_be_given_is_refused_with_the_place_and_the_numbers(
    tokenizer: Tokenizer,
) -> None:
    chat = ChatFormat(tokenizer, "llama", 100)
    info = ModelInfo("llama", "llama", context=100)
    language = Language(info, tokenizer, chat, "")
    for give in (
        language.encode,
        lambda text: chat.next(text, []),
        lambda text: chat.first([{"role": "user", "content": text}]),
    ):
        with pytest.raises(SyscallError) as caught:
            give("\udcff hi")
        assert caught.value.errno is Errno.EINVAL
        assert "U+DCFF" in caught.value.reason
        with pytest.raises(SyscallError) as caught:
            give("a" * 20_000_000)
        assert caught.value.errno is Errno.E2BIG
        assert "100 tokens at most 6400" in caught.value.reason
    assert language.decode(language.encode("a" * 6400)) == "a" * 6400


def rewriting(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer whose template drops earlier answers, as some reasoning models' do."""
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    return Tokenizer(tokenizer.core, replace(tokenizer.settings, templates={"default": template}))


def test_a_template_that_rewrites_the_past_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(SyscallError, match="rewrites earlier turns") as caught:
        ChatFormat(rewriting(tokenizer), "odd")
    assert caught.value.errno is Errno.ENOTSUP
