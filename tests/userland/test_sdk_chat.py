"""A conversation fed turn by turn is, token for token, the conversation as transformers renders it whole, with the ids
that the model made where its answers stand."""

from __future__ import annotations

import functools
import os
import tempfile
from dataclasses import replace
from datetime import datetime
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Core
from transformers import PreTrainedTokenizerFast

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import ModelInfo
from llmasos.userland.sdk.actions import Language
from llmasos.userland.sdk.chat import ChatFormat
from llmasos.userland.sdk.dialogue import Dialogue, Message, Setup
from llmasos.userland.sdk.tokenizer import Tokenizer
from llmasos.userland.sdk.tokenizer_files import load_tokenizer
from tests.userland import words_zoo
from tests.userland.chat_shapes import NOON, SHAPES, Ledger, Shape, user

# As many as CI has time for: ten seconds, others in each run. LLMASOS_EXAMPLES=20000 is the whole.
EXAMPLES = int(os.environ.get("LLMASOS_EXAMPLES", "600"))
many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
fewer = settings(many, max_examples=EXAMPLES // 10)
READ = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
)  # ids of an answer that say how it is read
MARKS = ["<|start|>", "<|message|>", "<|observation|>", "[gMASK]", "<think>", "</think>", "[INST]", "[/INST]"]


# Ids of an answer are the same whatever stands before it, a thought or the prompt.
CONTEXT_FREE = ("byte-level", "byte-level, split")


def spoken_in(words: str) -> list[tuple[str, bool]]:
    """The shapes that can be compared with such a tokenizer, and whether answers end by themselves. With a space before
    the end it would be the answer's own and the template's, if it did not."""
    return [
        (name, ended)
        for name, shape in sorted(SHAPES.items())
        for ended in (True, False)
        if (not shape.thought or words in CONTEXT_FREE) and (ended or "after" not in name)
    ]


@functools.cache
def core(name: str) -> Core:
    found = Core.from_str(words_zoo.core_json(name))
    found.add_tokens([AddedToken(token, special=True) for token in [*words_zoo.PIECES[:2], *words_zoo.SPECIAL]])
    found.add_tokens([AddedToken(token, special=i % 2 == 0, normalized=False) for i, token in enumerate(MARKS)])
    return found


@functools.cache
def both(words: str, shape: str) -> tuple[Tokenizer, Any]:
    """A tokenizer with a template, and transformers' of the same."""
    theirs = PreTrainedTokenizerFast(tokenizer_object=core(words), bos_token="<s>", eos_token="</s>")
    theirs.chat_template = SHAPES[shape].source
    with tempfile.TemporaryDirectory() as place:
        theirs.save_pretrained(place)
        return load_tokenizer(place), theirs


@functools.cache
def chat_of(words: str, shape: str) -> ChatFormat:
    tokenizer = both(words, shape)[0]
    return ChatFormat(tokenizer, shape, ends=[i for end in SHAPES[shape].ends if (i := tokenizer.id_of(end)) is not None])


def rendered(theirs: Any, messages: list[Message], *, prompt: bool) -> list[int]:
    """The ids that transformers gives."""
    with patch("transformers.utils.chat_template_utils.datetime") as clock:
        clock.now.return_value = datetime.fromtimestamp(NOON)
        try:
            ids: list[int] = theirs.apply_chat_template(
                messages, add_generation_prompt=prompt, sanitize_control_tokens=True, return_dict=False
            )
        except ValueError as error:  # a vocabulary that can write a control token in no other way
            assume("Can't sanitize" not in str(error))
            raise
    return ids


said = words_zoo.texts.map(lambda text: text if text.strip() else f"{text}the")
answers = words_zoo.tame.map(lambda text: text.strip() or "yes")


# --- the log is the rendering ---------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("words", sorted(words_zoo.CORES))
@settings(many, max_examples=EXAMPLES // len(words_zoo.CORES))
@given(
    data=st.data(),
    system=st.none() | answers,
    turns=st.lists(st.tuples(said, answers, st.none() | answers), min_size=2, max_size=5),
)
def test_five_turns_are_what_transformers_renders(
    words: str, data: st.DataObject, system: str | None, turns: list[tuple[str, str, str | None]]
) -> None:
    """A model that writes just what its template would, with and without the token that ends it."""
    name, ended = data.draw(st.sampled_from(spoken_in(words)))
    shape = SHAPES[name]
    _, theirs = both(words, name)
    chat, ledger = chat_of(words, name), Ledger()
    messages: list[Message] = []
    if system is not None and shape.system:
        messages.append({"role": "system", "content": system})
    begun = list(messages)
    for question, answer, thought in turns:
        if thought is None and shape.thought.startswith("{}"):
            thought = "so"  # the prompt has begun one
        messages.append(user(question))
        log = ledger.say(chat, *begun, messages[-1])
        begun = []
        assert log == rendered(theirs, messages, prompt=True)
        written = spoken(theirs, messages, shape, answer, thought, log, ended=ended)
        ledger.answer(written)
        message: Message = {"role": "assistant", "content": answer}
        if thought and shape.thought:
            message["reasoning_content"] = message["thinking"] = thought
            if shape.thought.startswith("{}"):  # a family whose thoughts are part of the text
                message["content"] = f"<think>\n{thought}\n</think>\n\n{answer}"
        messages.append(message)


def spoken(
    theirs: Any,
    messages: list[Message],
    shape: Shape,
    answer: str,
    thought: str | None,
    log: list[int],
    *,
    ended: bool,
) -> list[int]:
    """The ids of an answer: those by which the template goes on from the prompt; where it writes no such thing (a thought
    that it drops), those of the text that the family's models write."""
    whole = rendered(theirs, [*messages, {"role": "assistant", "content": answer}, user("x")], prompt=True)
    stops = [theirs.convert_tokens_to_ids(end) for end in shape.ends]
    if thought is None or not shape.thought:
        assume(whole[: len(log)] == log or bool(shape.thought))
    if whole[: len(log)] == log and not (thought and shape.thought):
        ids = whole[len(log) :]
        end = next((i for i, token in enumerate(ids) if token in stops or token == ids_of_end(theirs, shape)), None)
        assume(end is not None)
        assert end is not None
        return ids[: end + 1] if ended and ids[end] in stops else ids[:end]
    before = shape.thought.format(thought)
    marker = theirs.encode("\n", add_special_tokens=False)
    ids = theirs.encode("\n" + before + answer, add_special_tokens=False)
    assume(ids[: len(marker)] == marker)
    return [*ids[len(marker) :], *(stops[:1] if ended else [])]


def ids_of_end(theirs: Any, shape: Shape) -> int:
    token: int = theirs.convert_tokens_to_ids("<|end|>" if "<|return|>" in shape.ends else shape.ends[0])
    return token


@fewer
@given(
    st.sampled_from(["byte-level", "metaspace first", "gemma", "unigram"]),
    st.sampled_from(
        [
            "chatml",
            "trimmed",
            "space before the answer",
            "no system role",
            "an eos at the very end",
            "a role's opening ends the answer",
        ]
    ),
    st.lists(said, min_size=2, max_size=5),
    st.booleans(),
    st.data(),
)
def test_an_answer_keeps_the_ids_that_the_model_made(
    words: str, name: str, questions: list[str], ended: bool, data: st.DataObject
) -> None:
    """Whatever they are: models with random weights make ids that no text is encoded to, control tokens among them."""
    ours, _ = both(words, name)
    chat, ledger = chat_of(words, name), Ledger()
    stop = ours.id_of(SHAPES[name].ends[0])
    assert stop is not None
    ends = {ours.id_of(end) for end in SHAPES[name].ends}
    special = [i for i, token in ours.added.items() if i not in ends and token.content not in READ]
    made = st.lists(st.integers(3, 60) | st.sampled_from(special), min_size=1, max_size=8)
    turns = [(question, data.draw(made)) for question in questions]
    before: list[int] = []
    for question, ids in turns:
        log = list(ledger.say(chat, user(question)))
        assert log[: len(before)] == before  # it only grows
        if before:
            new = log[len(before) :]
            assert new[:1] != [stop] if ended else new[:1] == [stop] or not ours.decode(new[:1], special=True).strip()
        ledger.answer([*ids, *([stop] if ended else [])])
        before = list(ledger.log)
    assert ledger.cuts == 0


@pytest.mark.parametrize("name", ["chatml", "an eos at the very end"])
def test_instructions_are_known_once_whether_or_not_they_can_be_fed_before_a_question(name: str) -> None:
    chat, ledger = chat_of("byte-level", name), Ledger()
    told = {"role": "system", "content": "be brief"}
    ledger.say(chat, told)
    assert bool(ledger.log) == (name == "chatml")
    log = ledger.say(chat, user("hello"))
    assert log == chat.first([told, user("hello")], Setup(now=NOON))
    assert [one.message for one in ledger.known.said] == [told, user("hello")]
    ledger.answer([5, 6])
    ledger.say(chat, user("next"))
    assert [one.message["role"] for one in ledger.known.said] == ["system", "user", "assistant", "user"]


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("chatml", ["<|im_end|>"]),
        ("trimmed", ["<|eot|>"]),
        ("an eos at the very end", ["<|end|>"]),
        ("space before and after the answer", ["</s>"]),
        ("channels", ["<|return|>"]),  # <|end|> closes thoughts as well
        ("a role's opening ends the answer", []),
    ],
)
def test_the_added_token_that_closes_the_last_answer_ends_it(name: str, ends: list[str]) -> None:
    chat = chat_of("byte-level", name)
    assert [chat.tokenizer.added[i].content for i in chat.stop_ids()] == ends


def log_after(name: str, answer: str, question: Message, *, setup: Setup | None = None) -> str:
    """What the log says after an answer and another turn."""
    chat, ledger = chat_of("byte-level", name), Ledger()
    ledger.say(chat, user("the"), setup=setup)
    before = len(ledger.log)
    ledger.answer(chat.tokenizer.encode(answer, control=True))
    ledger.say(chat, question)
    return chat.tokenizer.decode(ledger.log[before - 1 :], special=True)


@pytest.mark.parametrize(
    ("name", "answer", "question", "expected"),
    [
        ("chatml", "yes", user("no"), "\nyes<|im_end|>\n<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\n"),
        ("chatml", "yes<|im_end|>", user("x"), "\nyes<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"),
        ("chatml", "yes</s>", user("no"), "\nyes<|im_end|>\n<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\n"),
        ("a role's opening ends the answer", "yes<|user|>", user("no"), "\nyes<|user|>\nno<|assistant|>\n"),
        ("a role's opening ends the answer", "yes<|observation|>", user("no"), "\nyes<|user|>\nno<|assistant|>\n"),
        ("a role's opening ends the answer", "yes", user("no"), "\nyes<|user|>\nno<|assistant|>\n"),
        (
            "a role's opening ends the answer", "yes<|observation|>", {"role": "tool", "content": "no"},
            "\nyes<|observation|>\nno<|assistant|>\n",
        ),
        (
            "channels", "<|channel|>final<|message|>yes<|return|>", user("no"),
            "t<|channel|>final<|message|>yes<|end|><|start|>user<|message|>no<|end|><|start|>assistant",
        ),
        (
            "channels",
            "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>",
            user("no"),
            "t<|channel|>final<|message|>yes<|end|><|start|>user<|message|>no<|end|><|start|>assistant",
        ),
        ("chatml", "<|eot|>", user("x"), "\n<|eot|><|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"),
        ("chatml", "a<|eot|>", user("x"), "\na<|eot|><|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"),
        (
            "thoughts in the last answer only", "<think>\nso\n</think>\n\n<|eot|>yes<|eot|>", user("no"),
            "\n<|eot|>yes<|eot|><|im_end|>\n<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("a thought in the prompt", "so\n</think>\n\n<|eot|>", user("x"), "<|eot|></s><|user|>x<|assistant|><think>\n"),
        (
            "channels", "<|eot|>yes", user("no"),
            "t<|channel|>final<|message|><|eot|>yes<|end|><|start|>user<|message|>no<|end|><|start|>assistant",
        ),
        ("an eos at the very end", "yes", user("no"), "\nyes<|end|>\n<|user|>\nno<|end|>\n<|assistant|>\n"),
    ],
)  # fmt: skip
def test_an_answer_is_closed_by_what_the_template_writes_behind_it(
    name: str, answer: str, question: Message, expected: str
) -> None:
    assert log_after(name, answer, question) == expected


def test_thoughts_stay_where_they_are_kept_by_the_templates_own_switch() -> None:
    said = "<think>\nso\n</think>\n\nyes<|im_end|>"
    name = "thoughts in the last answer only"
    assert "so" not in log_after(name, said, user("no"))
    kept = log_after(name, said, user("no"), setup=Setup(now=NOON, thoughts="keep"))
    assert kept.startswith("\n" + said + "\n<|im_start|>user")


@pytest.mark.parametrize(
    ("said", "closing"),
    [
        ("so\n</think>\n\nyes</s>", ""),
        ("so\n</think>\n\n<|eot|>", "</s>"),
        ("so", "</s>"),
    ],
)
def test_thoughts_stay_with_keep_where_a_template_has_no_switch_too(said: str, closing: str) -> None:
    kept = log_after("a thought in the prompt", said, user("no"), setup=Setup(now=NOON, thoughts="keep"))
    assert kept == "\n" + said + closing + "<|user|>no<|assistant|><think>\n"


def test_a_thought_that_is_kept_is_closed_once() -> None:
    name, keep = "thoughts in the last answer only", Setup(now=NOON, thoughts="keep")
    for said, closing in (("<think>\nso\n</think>\n\n", ""), ("<think>\nso", "\n</think>\n\n")):
        kept = log_after(name, said, user("no"), setup=keep)
        assert kept == f"\n{said}{closing}<|im_end|>\n<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\n"


# --- what a template does not take ----------------------------------------------------------------------------------


def test_a_template_says_itself_what_it_does_not_take() -> None:
    chat, ledger = chat_of("byte-level", "no system role"), Ledger()
    ledger.say(chat, user("the"))
    ledger.answer(chat.tokenizer.encode("yes", control=True))
    with pytest.raises(SyscallError, match="Roles must alternate") as caught:
        chat.next(ledger.known, ledger.log, [{"role": "assistant", "content": "x"}])
    assert caught.value.errno is Errno.EINVAL


def test_instructions_for_a_template_without_them_go_before_the_first_question() -> None:
    chat, ledger = chat_of("byte-level", "no system role"), Ledger()
    ledger.say(chat, {"role": "system", "content": "hello"})
    assert ledger.log == []
    ledger.say(chat, user("the"))
    told = chat.tokenizer.decode(ledger.log, special=True)
    assert told == "<s><|im_start|>user\nhello\n\nthe<|im_end|>\n<|im_start|>model\n"


def test_instructions_can_be_fed_before_the_first_question() -> None:
    chat, ledger = chat_of("byte-level", "chatml"), Ledger()
    told = list(ledger.say(chat, {"role": "system", "content": "hello"}))
    assert chat.tokenizer.decode(told, special=True) == "<|im_start|>system\nhello<|im_end|>\n"
    assert ledger.say(chat, user("the"))[: len(told)] == told


def test_a_cut_into_a_turn_makes_it_unsaid() -> None:
    chat, ledger = chat_of("byte-level", "chatml"), Ledger()
    ledger.say(chat, user("the"))
    ledger.answer([5])
    before = list(ledger.log)
    ledger.say(chat, user("no"))
    ledger.truncate(len(before) + 3)
    assert [said.message["content"] for said in ledger.known.said] == ["the"]
    ledger.truncate(len(before))
    assert ledger.known.asked


def test_what_no_tokenizer_should_be_given_is_refused_with_the_place_and_the_numbers() -> None:
    tokenizer = both("byte-level", "chatml")[0]
    chat = ChatFormat(tokenizer, "m", 100)
    language = Language(ModelInfo("m", "m", context=100), tokenizer, chat, "")
    for give in (
        language.encode,
        lambda text: chat.next(Dialogue(Setup()), [], [user(text)]),
        lambda text: chat.first([user(text)]),
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


def test_a_model_without_a_template_says_so_and_one_with_a_broken_one_says_what_is_broken() -> None:
    tokenizer = both("byte-level", "chatml")[0]
    for templates, errno, words in (
        ({}, Errno.ENOTSUP, "no chat template"),
        ({"default": "{% for %}"}, Errno.EINVAL, "template"),
    ):
        with pytest.raises(SyscallError, match=words) as caught:
            ChatFormat(Tokenizer(tokenizer.core, replace(tokenizer.settings, templates=templates)), "m")
        assert caught.value.errno is errno
