"""Grammars of calls for the published chat templates: what a template writes of a call is in its model's grammar,
whatever the arguments are, and what the grammar lets a decoder say is read.

Where those templates are not unpacked (tests/llama_cpp_source.py), or llguidance is not installed, they are skipped.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.userland.sdk.call_choice import forms_of, grammar_for
from llmasos.userland.sdk.call_grammar import call_grammar
from llmasos.userland.sdk.chat import ChatFormat
from llmasos.userland.sdk.tool_calls import ToolCall
from tests.llama_cpp_source import TEMPLATES, WHY
from tests.userland.grammar_oracle import Oracle
from tests.userland.published_calls import CALLING, CALLS, called, chat_of

pytestmark = pytest.mark.skipif(not TEMPLATES, reason=WHY)


class Model:
    """A template's forms, an oracle with the special tokens of its calls, and the grammar of its calls."""

    def __init__(self, file: Path) -> None:
        self.chat: ChatFormat = chat_of(file)
        self.forms, self.opened = forms_of(self.chat, CALLING)
        special = [self.chat.tokenizer.added[i].content for i in sorted(self.chat.tokenizer.special_ids)]
        self.oracle = Oracle(special)
        self.grammar = ""
        if self.forms:
            self.grammar = call_grammar(self.forms, CALLING.tools or (), special=self.oracle.ids, opened=self.opened)

    def read(self, text: str, lead: str = "") -> list[tuple[str, dict[str, Any]]]:
        """The calls that are read from an answer."""
        found = self.chat.hear(CALLING, self.chat.tokenizer.encode(text, control=True), lead)
        return [(call.name, call.arguments) for call in found.calls] if not found.bad else []

    def refusals(self, said: str) -> list[str]:
        """Where the grammar stops in an answer, from each place where its calls may begin to each where they may end."""
        marks = [self.forms[0].open, "<|channel|>commentary", " to="] if self.forms[0].open else [" to=", "<|channel|>c"]
        starts = [0] if self.opened else [at for mark in marks if mark and (at := said.find(mark)) >= 0][:1]
        close = self.forms[0].close
        ends = [m.end() for m in re.finditer(re.escape(close), said)] if close else [len(said.rstrip()), len(said)]
        return [self.oracle.refusal(self.grammar, said[start:end]) for start in starts for end in ends]


MODELS: dict[Path, Model] = {}


def model_of(file: Path) -> Model:
    if file not in MODELS:
        MODELS[file] = Model(file)
    return MODELS[file]


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_the_calls_that_a_template_writes_are_in_its_grammar(file: Path) -> None:
    model, some = model_of(file), False
    for calls in (CALLS[:1], CALLS):
        if (written := called(model.chat, calls)) is not None:
            some = True
            refusals = model.refusals(written[0])
            assert "" in refusals, (written[0], model.grammar)
            assert len(model.forms[0].shapes) == 1 or model.forms[0].name == "harmony"
    if not some:
        pytest.skip("it writes no calls")


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_what_a_grammar_lets_a_decoder_say_is_read_by_its_model(file: Path) -> None:
    model, read = model_of(file), 0
    if not model.forms:
        pytest.skip("it shows no calls")
    styles = [shape.arguments for shape in model.forms[0].shapes]
    ends = [end for style in styles for end in (style.close.replace("«key»", "at"), style.quote)]
    lead = model.forms[0].open if model.opened else ""
    for seed in range(40):
        said = model.oracle.said(model.grammar, seed, [*filter(None, ends)], 600)
        if said is None:  # it went on and on
            continue
        if read > 3:
            break
        calls = model.read(said, lead)
        assert calls, (said, model.grammar)
        for name, arguments in calls:
            read += 1
            assert name == "look"
            assert set(arguments) <= {"at", "n"}
            assert isinstance(arguments["at"], str)
            assert type(arguments.get("n", 0)) is int
    assert read
    assert grammar_for(model.chat, CALLING)  # with the ids of its own vocabulary


# No 7F: llguidance wants it escaped in JSON, which templates do not.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t\\\"'<>/{}[]"), max_size=12)


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_a_call_that_comes_back_from_its_template_is_in_the_grammar_whatever_it_says(file: Path) -> None:
    model = model_of(file)
    if called(model.chat, CALLS[:1]) is None:
        pytest.skip("it writes no calls")
    came_back = 0

    @given(TEXT, st.none() | st.integers(-(10**15), 10**15))
    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def holds(at: str, n: int | None) -> None:
        nonlocal came_back
        call = ToolCall("look", {"at": at} if n is None else {"at": at, "n": n})
        written = called(model.chat, [call])
        if written is None or model.read(*written) != [(call.name, call.arguments)]:
            return  # templates that trim, or that escape nothing: it is another call then
        came_back += 1
        assert "" in model.refusals(written[0]), (written[0], model.grammar)

    holds()
    assert came_back
