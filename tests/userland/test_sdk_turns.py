"""Conversations with processes of a booted system: what is known of them goes where the process goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from syscalls.errno import Errno, SyscallError
from syscalls.records import Limits
from syscalls.table import Records
from tests import models_zoo
from tests.userland.chat_shapes import SHAPES
from userland.sdk.script import run
from userland.sdk.system import Process, System
from userland.sdk.template import ChatTemplate
from userland.sdk.tokenizer_files import load_tokenizer
from userland.sdk.tool_calls import ToolCall
from userland.sdk.turns import known_of

THINKING = (
    SHAPES["thoughts in the last answer only"]
    .source.replace("<|im_start|>", "<|user|>")
    .replace("<|im_end|>", "<|end|>")
    .replace("assistant\n{% if enable", "assistant\n{% if opens %}<think>\n{% endif %}{% if enable")
)
ADDED = {"<think>": 261, "</think>": 262, "<|stop|>": 263}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with random weights whose template is a reasoning model's, with added tokens that are not special."""
    place = models_zoo.build("llama", tmp_path_factory.mktemp("thinking") / "model")
    (place / "chat_template.jinja").write_text(THINKING)
    words = json.loads((place / "tokenizer.json").read_text())
    words["added_tokens"] += [
        {
            "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": False,
        }
        for token, i in ADDED.items()
    ]  # fmt: skip
    (place / "tokenizer.json").write_text(json.dumps(words))
    return str(place)


@pytest.fixture
def process(cpu_system: System, model: str) -> Iterator[Process]:
    with cpu_system.spawn(model, system="Be brief.") as found:
        yield found


def test_what_was_said_is_known_to_any_program_and_to_a_fork(cpu_system: System, process: Process) -> None:
    process.turn("one", 5)
    (child,) = process.fork()
    for one in (process, child, cpu_system.process(process.pid)):
        known, _, _ = run(cpu_system.kernel, known_of(one.pid))
        assert known is not None
        assert [said.message["role"] for said in known.said] == ["system", "user"]
        assert known.end + 5 == len(one.tokens)
    child.turn("two", 5)
    known, _, _ = run(cpu_system.kernel, known_of(child.pid))
    assert known is not None
    assert [said.message["role"] for said in known.said] == ["system", "user", "assistant", "user"]
    child.end()


def test_what_was_said_is_known_to_a_restored_process(
    cpu_system: System, process: Process, tmp_path: Path
) -> None:
    process.turn("one", 5)
    process.checkpoint(tmp_path / "image")
    with cpu_system.restore(tmp_path / "image") as restored:
        before = restored.tokens
        restored.turn("two", 5)
        assert restored.tokens[: len(before)] == before
        process.turn("two", 5)
        assert restored.tokens[:-5] == process.tokens[:-5]


def test_the_log_of_three_turns_is_the_templates_rendering(process: Process) -> None:
    words = ChatTemplate(load_tokenizer(process.model.path))
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    for number, question in enumerate(("one <|end|>", "two", "three")):
        messages.append({"role": "user", "content": question})
        process.turn(question, 1)
        log = process.tokens[:-1]
        assert log == words.ids(messages, prompt=True)
        process.truncate(len(log))  # and as if the model had said something
        process.feed_ids(process.language.encode(f"answer {number}"))
        messages.append({"role": "assistant", "content": f"answer {number}"})


def test_a_turn_that_the_template_refuses_changes_nothing(cpu_system: System, process: Process) -> None:
    process.turn("one", 3)
    before, records = process.tokens, cpu_system(Records(process.pid))
    with pytest.raises(SyscallError, match="a message has a role") as caught:
        process.turn([{"role": "stranger", "content": "x"}])
    assert caught.value.errno is Errno.EINVAL
    assert (process.tokens, cpu_system(Records(process.pid))) == (before, records)


def test_a_turn_that_may_not_be_answered_changes_nothing(cpu_system: System, process: Process) -> None:
    process.turn("one", 3)
    cpu_system.run(_thought(process))  # so that the next turn must cut the log
    before, records = process.tokens, cpu_system(Records(process.pid))
    process.limits(Limits(tokens=3))
    with pytest.raises(SyscallError) as caught:
        process.turn("two", 3)
    assert caught.value.errno is Errno.EDQUOT
    assert (process.tokens, cpu_system(Records(process.pid))) == (before, records)


def _thought(process: Process) -> Any:
    """Feed a thought and an answer, as if the model had said them."""
    from syscalls.table import Feed
    from userland.sdk.script import ask

    ids = process.language.encode("<think>\nhm\n</think>\n\nyes<|end|>", control=True)
    return (yield from ask(Feed(process.pid, ids)))


def test_thoughts_are_cut_from_the_log_when_the_template_drops_them_and_stay_with_keep(
    cpu_system: System, model: str
) -> None:
    for thoughts, stays in (("drop", False), ("keep", True)):
        with cpu_system.spawn(model, thoughts=thoughts) as process:  # type: ignore[arg-type]
            process.turn("one", 1)
            process.truncate(len(process.tokens) - 1)
            cpu_system.run(_thought(process))
            before = process.tokens
            process.turn("two", 1)
            text = process.language.decode(process.tokens, special=True)
            assert ("<think>\nhm\n</think>" in text) == stays
            assert "yes<|end|>\n<|user|>user\ntwo" in text
            assert (process.tokens[: len(before)] == before) == stays


def test_a_budget_of_thoughts_brings_the_model_to_its_answer(cpu_system: System, model: str) -> None:
    """Its way to the answer is fed, and what is left of the tokens is the answer's."""
    way = load_tokenizer(model).encode("\n</think>\n\n", control=True)
    with cpu_system.spawn(model, thought_tokens=4, template={"opens": True}) as process:
        answer = process.turn("one", 12)
        log = process.tokens
        known, _, _ = run(cpu_system.kernel, known_of(process.pid))
        assert known is not None
        said = log[known.end :]
        assert said[4 : 4 + len(way)] == way
        assert len(said) == 12 + len(way) or said[-1] == models_zoo.EOS
        words = process.language
        assert answer.thought == words.decode(said[:4]).strip()
        assert answer.text.strip() == words.decode(said[4 + len(way) :]).strip()


def test_what_a_tool_answered_goes_into_the_conversation(cpu_system: System, model: str) -> None:
    tools = [
        {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    ]
    with cpu_system.spawn(model, tools=tools) as process:
        process.turn("look", 1)
        process.truncate(len(process.tokens) - 1)
        ids = process.language.encode(
            '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call><|end|>', control=True
        )
        process.feed_ids(ids)
        before = process.tokens
        process.reply_tool(ToolCall("look"), "a cat", 1)
        assert process.tokens[: len(before)] == before  # the call keeps the ids in which it was made
        text = process.language.decode(process.tokens[len(before) : -1], special=True)
        assert text == "\n<|user|>tool\na cat<|end|>\n<|user|>assistant\n"


def test_a_template_without_a_switch_for_thoughts_says_what_it_looked_for(
    cpu_system: System, zoo: Callable[[str], Path]
) -> None:
    with pytest.raises(SyscallError, match="no switch for thinking=True") as caught:
        cpu_system.spawn(str(zoo("llama")), thinking=True)
    assert caught.value.errno is Errno.EINVAL


def test_a_log_without_records_can_be_talked_to(cpu_system: System, zoo: Callable[[str], Path]) -> None:
    language = load_tokenizer(str(zoo("llama")))
    ids = language.encode("<|user|>hi<|end|><|assistant|>yes", control=True)
    with cpu_system.spawn(str(zoo("llama")), ids) as process:
        process.turn("and?", 1)
        assert process.language.decode(process.tokens[:-1], special=True) == (
            "<|user|>hi<|end|><|assistant|>yes<|end|><|user|>and?<|end|><|assistant|>"
        )
