"""Grammars of calls for a model and for a process: the form of its calls, its tools, and what the prompt has begun."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llmasos.userland.sdk.actions import Language
from llmasos.userland.sdk.arguments import definitions
from llmasos.userland.sdk.call_formats import HARMONY_FORM, RECIPIENTS_FORM, CallFormat
from llmasos.userland.sdk.call_grammar import REQUIRED, call_grammar
from llmasos.userland.sdk.chat import ChatFormat
from llmasos.userland.sdk.dialogue import Setup
from llmasos.userland.sdk.script import Script
from llmasos.userland.sdk.traits import USER, user
from llmasos.userland.sdk.turns import known_of


def grammar_for(chat: ChatFormat, setup: Setup, *, choice: str = REQUIRED, parallel: bool = True) -> str:
    """The grammar of an answer of a model that calls the tools of `setup`; see `call_grammar.call_grammar`."""
    special = {chat.tokenizer.added[i].content: i for i in chat.tokenizer.special_ids}
    forms, opened = forms_of(chat, setup)
    return call_grammar(forms, setup.tools or (), choice=choice, parallel=parallel, special=special, opened=opened)


def forms_of(chat: ChatFormat, setup: Setup) -> tuple[Sequence[CallFormat], bool]:
    """The forms in which a model calls, and whether its prompt has opened a possible call."""
    traits = chat.traits(setup)
    forms = traits.formats
    if traits.marks is not None and traits.marks.harmony:
        forms = (RECIPIENTS_FORM if traits.marks.recipients else HARMONY_FORM,)
    if not forms or not forms[0].said or not forms[0].open:
        return forms, False
    return forms, chat.render(setup, [user(USER)], prompt=True).plain.endswith(forms[0].open)


def grammar_of(
    language: Language,
    pid: int,
    tools: Sequence[Mapping[str, Any]] | None = None,
    choice: str = REQUIRED,
    *,
    parallel: bool = True,
) -> Script[str]:
    """The grammar for a process's next answer, of its own tools unless others are given."""
    known = (yield from known_of(pid)).dialogue
    setup = known.setup if known is not None else Setup(now=time.time())
    if tools is not None:
        setup = msgspec.structs.replace(setup, tools=definitions(tools))
    return grammar_for(language.must_chat(setup.template), setup, choice=choice, parallel=parallel)
