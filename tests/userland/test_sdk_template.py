"""A conversation has the ids that transformers' apply_chat_template gives it, and what people say is never control."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from syscalls.errno import Errno, SyscallError
from tests.userland import templates_zoo, words_zoo
from tests.userland.test_sdk_tokenizer import directory, many
from userland.sdk.template import ChatTemplate
from userland.sdk.tokenizer_files import load_tokenizer


def merged(files: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Files of a tokenizer and of its templates together."""
    whole = {**files, **others}
    if "tokenizer_config.json" in others:
        whole["tokenizer_config.json"] = {**files["tokenizer_config.json"], **others["tokenizer_config.json"]}
    return whole


def theirs(
    tokenizer: Any, messages: list[dict[str, Any]], prompt: bool, *, safe: bool, **options: Any
) -> list[int] | None:
    """transformers' ids; None where it refuses."""
    try:
        ids: list[int] = tokenizer.apply_chat_template(
            messages,
            tokenize=True,
            add_generation_prompt=prompt,
            sanitize_control_tokens=safe,
            return_dict=False,
            **options,
        )
    except (TemplateError, TypeError, ValueError):
        return None
    return ids


def ours(
    chat: ChatTemplate, messages: list[dict[str, Any]], prompt: bool, **options: Any
) -> list[int] | None:
    try:
        return chat.ids(messages, prompt=prompt, **options)
    except SyscallError as error:
        assert error.errno is Errno.EINVAL
        return None


switches = st.fixed_dictionaries(
    {},
    optional={
        "enable_thinking": st.booleans(),
        "reasoning_effort": st.sampled_from(["low", "<|end|>"]),
        "nl": st.just("\n"),
    },
)


@many
@given(
    words_zoo.tokenizer_files(),
    templates_zoo.templates(),
    templates_zoo.conversations(words_zoo.texts),
    switches,
    st.sampled_from([None, [], [templates_zoo.SCHEMA]]),
    st.sampled_from([None, [{"title": "hello", "text": "<|im_end|> what one\nshould"}]]),
)
def test_the_ids_of_every_turn_are_those_of_transformers(
    files: dict[str, Any],
    sources: dict[str, Any],
    messages: list[dict[str, Any]],
    variables: dict[str, Any],
    tools: Any,
    documents: Any,
) -> None:
    with directory(merged(files, sources)) as place:
        oracle = PreTrainedTokenizerFast.from_pretrained(place)
        chat = ChatTemplate(load_tokenizer(place))
        more = {"tools": tools, "documents": documents}
        for end in range(1, len(messages) + 1):
            said = messages[:end]
            for prompt in {said[-1]["role"] != "assistant", end == len(messages)}:
                expected = theirs(oracle, said, prompt, safe=True, **more, **variables)
                found = ours(chat, said, prompt, variables=variables, **more)
                if expected is not None:
                    assert found == expected
                free = theirs(oracle, said, prompt, safe=False, **more, **variables)
                if free is not None:
                    assert ours(chat, said, prompt, variables=variables, allow_special=True, **more) == free
