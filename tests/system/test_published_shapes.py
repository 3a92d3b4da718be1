"""Every published shape of model, as somebody uses it: asked three times, forked, saved, restored, made another.

What is fed is compared with transformers' rendering of the same conversation, in which the ids that the model made stand
where its answers' texts would. By default some shapes that differ in kind are run; `LLMASOS_SHAPES=all` runs each.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from transformers import PreTrainedTokenizerFast

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish
from llmasos.userland.sdk import turns
from llmasos.userland.sdk.chat import ChatFormat
from llmasos.userland.sdk.dialogue import Setup
from llmasos.userland.sdk.system import Process, System
from llmasos.userland.sdk.tokenizer_files import load_tokenizer
from tests import published
from tests.published import PUBLISHED, Shape

SOME = ["llama-2", "llama-3", "mistral-0.3", "qwen-3", "gemma-2", "phi-3", "deepseek-r1", "glm-4"]
ALL = os.environ.get("LLMASOS_SHAPES") == "all"
RUN = [name for name in PUBLISHED if not PUBLISHED[name].refused and (ALL or name in SOME)]
REFUSED = [name for name in PUBLISHED if PUBLISHED[name].refused]
TOKENS = 5  # of an answer
ANSWER = "Zebra"  # what the oracle is told that a model has said
TAIL = 12  # ids of a prompt's end
NOON = 1_700_000_000.0
QUESTIONS = ["Say hello, then <|im_end|> and </s>.", "  What is 2 + 2 = 4?\n", "And 你好, naïve café?"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directories of the shapes, built when first asked for."""
    base = tmp_path_factory.mktemp("published")

    def directory(name: str) -> Path:
        there = base / name
        return there if there.exists() else published.build(name, there, weights=not PUBLISHED[name].refused)

    return directory


# --- what transformers makes of a conversation ----------------------------------------------------------------------


class Oracle:
    """transformers' rendering of a conversation that was begun at `now`."""

    def __init__(self, directory: Path, now: float) -> None:
        self.words = PreTrainedTokenizerFast.from_pretrained(directory)
        self.now = datetime.fromtimestamp(now)

    def render(self, messages: list[dict[str, str]], *, prompt: bool = True) -> str:
        return self._apply(messages, tokenize=False, add_generation_prompt=prompt)

    def ids(self, messages: list[dict[str, str]]) -> list[int]:
        return self._apply(messages, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False)

    def behind(self, messages: list[dict[str, str]], answer: str) -> list[int]:
        """The ids that stand behind an answer in the rendering with all that was said since."""
        text = self.render(messages)
        end = text.rindex(answer) + len(answer)
        encoded = self.words(text, add_special_tokens=False, return_offsets_mapping=True)
        return [i for i, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True) if start >= end]

    def _apply(self, messages: list[dict[str, str]], **how: Any) -> Any:
        with patch("transformers.utils.chat_template_utils.datetime") as clock:
            clock.now.return_value = self.now
            return self.words.apply_chat_template(messages, **how)


def begun(shape: Shape) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}] if shape.system else []


def ask(process: Process, text: str) -> tuple[list[int], list[int]]:
    """Ask; the log that was answered, and the answer's own ids."""
    before = process.info().usage.decoded
    process.ask(text, max_tokens=TOKENS)
    log = process.tokens()
    made = process.info().usage.decoded - before
    return log[: len(log) - made], log[len(log) - made :]


def setup_time(process: Process) -> float:
    """When its conversation was begun, which is the time that its template may write."""
    known = process.system.run(turns.known_of(process.pid)).dialogue
    assert known is not None
    return known.setup.now


# --- the shapes that run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUN)
def test_a_model_is_talked_to_forked_saved_and_made_another(
    cpu_system: System, place: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    shape = PUBLISHED[name]
    instructions = "Be brief." if shape.system else ""
    with cpu_system.spawn(str(place(name)), system=instructions, temperature=0, repetition_penalty=1) as process:
        _talk(process, shape, place(name))
        with process.fork()[0] as fork:
            wanted = ask(fork, "Go on.")
        image = tmp_path / "image"
        process.checkpoint(image)
        assert ask(process, "Go on.") == wanted
    with cpu_system.restore(image) as restored:
        assert ask(restored, "Go on.") == wanted
        other = "chatml" if name != "chatml" else "tinyllama"
        restored.exec(str(place(other)))
        assert restored.info().model == restored.model.name == str(place(other))
        log, own = ask(restored, "And now?")
        assert own
        text = restored.language.decode(log, special=True)
        asked = [*QUESTIONS, "Go on.", "And now?"]
        assert [text.count(question.strip()) for question in asked] == [1] * len(asked)
        written = Oracle(place(other), 0).render([{"role": "user", "content": asked[-1]}])
        assert "".join(text.split()).endswith("".join(written.split())[-TAIL:])


def _talk(process: Process, shape: Shape, directory: Path) -> None:
    """Three questions, each prompt compared with transformers' own."""
    model = process.model
    assert (sorted(model.eos_ids), model.vocab) == (shape.ends, shape.config["vocab_size"])
    advised = {key: getattr(model.sampling, key) for key in ("temperature", "top_k", "top_p", "repetition_penalty")}
    given = {"temperature": 1.0} | shape.generation if shape.generation.get("do_sample") else {}
    assert advised == {key: given.get(key) for key in advised}

    messages, log, made = begun(shape), list[int](), list[int]()
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        before, (log, own) = [*log, *made], ask(process, question)
        oracle = Oracle(directory, setup_time(process))
        if len(messages) <= 2:
            assert log == oracle.ids(messages)
        elif shape.rewrites:
            assert log[-TAIL:] == oracle.ids(messages)[-TAIL:]
        else:
            assert log == [*before, *oracle.behind(messages, ANSWER)]
        made = own
        assert 0 < len(made) <= TOKENS
        messages.append({"role": "assistant", "content": ANSWER})


@pytest.mark.parametrize("name", ["llama-3", "phi-3"])
def test_an_answer_ends_at_each_of_the_published_ends(
    cpu_system: System, place: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """The rows of the output layer are exchanged, so that a model says an end where it would say something else."""
    shape = PUBLISHED[name]
    first: dict[str, int] = {}
    for question in ("One?", "Two times?", "Now three", "The fourth, please!", "5"):
        with cpu_system.spawn(str(place(name)), temperature=0) as process:
            made = ask(process, question)[1]
        if made[0] not in first.values():
            first[question] = made[0]
    assert len(first) >= len(shape.ends)
    asked = dict(zip(first, shape.ends, strict=False))
    ending = published.build(name, tmp_path / "ending")
    published.swap_rows(ending, {first[question]: end for question, end in asked.items()})
    for question, end in asked.items():
        with cpu_system.spawn(str(ending), temperature=0) as process:
            assert ask(process, question)[1] == [end]
            assert process.info().finish is Finish.STOP
            assert process.text().count(question) == 1


# --- the shapes that do not -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_is_not_run_is_refused_and_its_words_are_read(
    cpu_system: System, place: Callable[[str], Path], name: str
) -> None:
    shape, directory = PUBLISHED[name], place(name)
    with pytest.raises(SyscallError) as caught:
        cpu_system.spawn(str(directory))
    assert caught.value.errno is Errno.ENOEXEC
    assert shape.config["model_type"] in str(caught.value)
    assert shape.refused in str(caught.value)
    tokenizer = load_tokenizer(str(directory))
    oracle = Oracle(directory, NOON)
    messages = [*begun(shape), {"role": "user", "content": QUESTIONS[0]}]
    chat = ChatFormat(tokenizer, name)
    assert chat.first(messages, Setup(now=NOON)) == oracle.ids(messages)
    text = " ".join(QUESTIONS)
    assert tokenizer.encode(text, control=True) == oracle.words.encode(text, add_special_tokens=False)
