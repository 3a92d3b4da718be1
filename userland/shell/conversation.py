"""A conversation read back from a token log: whose text is which, by the model's own chat template.

A conversation may have been held by another program, or before a crash, and then the log is all there is. So the turns
are found by the text that the template puts between them, which rendering a probe shows. A log that the template did not
make is one turn of plain text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.printable import printable
from llmasos.userland.sdk import turns
from llmasos.userland.sdk.actions import Language
from llmasos.userland.sdk.dialogue import Dialogue, Message
from llmasos.userland.sdk.system import Process
from llmasos.userland.sdk.template import ChatTemplate

YOU, SYSTEM = "you", "system"
_USER, _ANSWER, _NEXT = "alpha", "beta", "gamma"


@dataclass(frozen=True)
class Turn:
    """The text of one side, and its thought before it. `who` is empty for text that belongs to no side."""

    who: str
    text: str
    thought: str = ""


@dataclass(frozen=True)
class Marks:
    """The text that a template puts around turns: before a user's text (not the first), and between that and the
    answer."""

    before_user: str
    before_answer: str
    special: re.Pattern[str]


def marks(language: Language) -> Marks | None:
    """The marks of a model's template; None if it has none that can be used."""
    if language.chat is None:
        return None

    def render(*turns: tuple[str, str], prompt: bool = False) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        return ChatTemplate(language.tokenizer).render(messages, prompt=prompt).plain

    first = ("user", _USER), ("assistant", _ANSWER)
    try:
        asked, answered = render(first[0], prompt=True), render(*first)
        again = render(*first, ("user", _NEXT), prompt=True)
    except SyscallError:  # a template that takes no such conversation
        return None
    if _USER not in asked or _NEXT not in again or not again.startswith(answered):
        return None
    before_answer = asked[asked.index(_USER) + len(_USER) :]
    before_user = again[len(answered) : again.index(_NEXT)]
    if not before_answer or not before_user:
        return None
    special = [re.escape(language.tokenizer.added[i].content) for i in language.tokenizer.special_ids]
    return Marks(before_user, before_answer, re.compile("|".join(special) or r"(?!)"))


def known_turns(known: Dialogue, answer: Message | None, name: str) -> list[Turn]:
    """The turns of a recorded conversation, with the present answer."""
    names = {"user": YOU, "assistant": name}
    messages = [one.message for one in known.said] + ([] if answer is None else [answer])
    return [
        Turn(
            names.get(message["role"], str(message["role"])),
            text.strip(),
            str(message.get("reasoning_content") or "").strip(),
        )
        for message in messages
        if isinstance(text := message.get("content"), str)
    ]


def turns_in(text: str, found: Marks | None, name: str) -> list[Turn]:
    """The turns of a log's `text` (with its special tokens); `name` gives the answers."""
    if found is None or found.before_user not in text:
        return [Turn("", _clean(text, found))]
    said: list[Turn] = []
    pieces = text.split(found.before_answer)
    for number, piece in enumerate(pieces):
        before, mark, user = piece.rpartition(found.before_user)
        last = number == len(pieces) - 1
        if not mark:
            before, user = piece, ""
        head = _clean(before, found)
        if number == 0:
            if head:
                said.append(Turn(SYSTEM, head))
        elif head or last:
            said.append(Turn(name, head))
        if mark:
            said.append(Turn(YOU, _clean(user, found)))
    return said


def read_back(agent: Process, tokens: list[int], *, raw: bool) -> list[Turn]:
    """The turns of a process's log; `raw`: as one, with its special tokens."""
    language = agent.language
    text = language.decode(tokens, special=True)
    if raw:
        return [Turn("", text)]
    known = agent.system.run(turns.known_of(agent.pid)).dialogue
    if known is not None and known.said and language.chat is not None and known.end <= len(tokens):
        speaks = known.asked or known.end < len(tokens)
        answer = language.chat.answered(known, tokens).message if speaks else None
        return known_turns(known, answer, printable(agent.info().name, one_line=True))
    return turns_in(text, marks(language), printable(agent.info().name, one_line=True))


def _clean(text: str, found: Marks | None) -> str:
    return (found.special.sub("", text) if found else text).strip()


def render(said: list[Turn]) -> str:
    """The turns as lines: `alice: Nice to meet you.` A thought stands in lines of its own before it."""
    return "\n".join((f"{turn.who}: " if turn.who else "") + "\n".join(lines(turn)) for turn in said)


def lines(turn: Turn) -> list[str]:
    """The thought of a turn, if it has one, and its text."""
    return [turn.thought, turn.text] if turn.thought else [turn.text]
