"""What a process says, up to what ends it: stop ids, stop strings, and end tokens that are no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Core

from llmasos.syscalls.records import Finish, ModelInfo, ReadResult, State
from llmasos.syscalls.table import Feed, Kill, Read, Truncate
from llmasos.userland.sdk.actions import Language
from llmasos.userland.sdk.answers import Listening, ends_of, follow, plain, stops_of
from llmasos.userland.sdk.heard import reader_for
from llmasos.userland.sdk.script import Piece
from llmasos.userland.sdk.thoughts import ThoughtMarks
from llmasos.userland.sdk.tokenizer import Settings, Tokenizer
from tests.userland import words_zoo


@pytest.fixture(scope="module")
def language() -> Language:
    core = Core.from_str(words_zoo.core_json("byte-level"))
    core.add_tokens([AddedToken(token, special=True) for token in ("<|end|>", "<|x|>", "<think>", "</think>")])
    core.add_tokens([AddedToken("<|plain|>", special=False)])
    return Language(ModelInfo("m", "m", context=100), Tokenizer(core, Settings()), None, "")


def listen(
    language: Language, text: str, stop: Sequence[str] = (), *, together: int = 1, thinks: bool = False
) -> tuple[str, str | None]:
    """What is given of a decode that says `text`, and what its log says afterwards (None: all)."""
    wanted = stops_of(language, stop)
    ids = language.encode(text, control=True)
    end = next((i + 1 for i, token in enumerate(ids) if token in wanted.ids), None)
    ids = ids[:end]
    marks = ThoughtMarks("<think>", "</think>") if thinks else None
    reader = (lambda: reader_for(marks, (), {}, "")) if thinks else plain
    script = follow(language, 1, Listening(0, reader, ends_of(language, wanted.ids), wanted))
    given, log, cut, answer = "", list(ids), False, None
    try:
        while True:
            request: Any = script.send(answer)
            answer = None
            match request:
                case Piece():
                    given += request.text if request.kind == "answer" else ""
                case Read():
                    tokens = ids[request.position :][:together]
                    last = request.position + len(tokens) == len(ids)
                    finish = Finish.STOP if end else Finish.LENGTH
                    answer = ReadResult(request.position, tokens, not last, finish, State.BLOCKED, len(ids))
                case Truncate():
                    log, cut = log[: request.length], True
                case Feed():
                    log += request.tokens
                case Kill():
                    pass
    except StopIteration:
        return given, language.decode(log, special=True) if cut else None


@pytest.mark.parametrize("together", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "stop", "given", "log"),
    [
        ("hello<|end|>", ["<|end|>"], "hello", "hello"),  # one added token is a stop id
        ("hello<|plain|>", ["<|plain|>"], "hello", "hello"),
        ("hello<|x|> then<|end|>", ["<|x|> then"], "hello", "hello"),  # one with a special token in it
        ("hello then<|end|> now", ["then<|end|>"], "hello ", "hello "),
        ("hello<|x|> now", ["<|x|> then"], "hello now", None),
        ("hello world", ["wor"], "hello ", "hello "),  # begun inside a token
        ("hello", ["END"], "hello", None),
        ("the END", ["END"], "the ", "the "),
        ("ENd it", ["END"], "ENd it", None),
    ],
)
def test_a_stop_string_ends_the_text_before_it(
    language: Language, text: str, stop: list[str], given: str, log: str | None, together: int
) -> None:
    assert listen(language, text, stop, together=together) == (given, log)


def test_stop_strings_are_looked_for_in_the_answer_not_in_thoughts(language: Language) -> None:
    said = "<think>the END</think>hello END and"
    assert listen(language, said, ["END"], thinks=True) == ("hello ", "<think>the END</think>hello ")


def test_a_stop_string_that_is_one_added_token_is_a_stop_id(language: Language) -> None:
    stops = stops_of(language, ["<|end|>", "<|plain|>", "x<|end|>", "END"])
    assert set(stops.ids) == {language.tokenizer.id_of("<|end|>"), language.tokenizer.id_of("<|plain|>")}
    assert len(stops.texts) == 2
    assert stops.texts[1] == "END"


def test_an_end_token_is_no_text_even_if_it_is_not_special(language: Language) -> None:
    token = language.tokenizer.id_of("<|plain|>")
    assert token is not None
    assert ends_of(language, [token, 5]) == {token}  # 5 is a word
    assert replace(Listening(0, plain)).ends == frozenset()
