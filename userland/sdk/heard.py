"""An answer taken apart: thought, answer and calls, and which ids belong to which.

A stream of ids becomes text token by token. Special tokens are told apart from text that spells them, since only the
tokens can be marks in a family with special marks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llmasos.userland.sdk.call_formats import CallFormat
from llmasos.userland.sdk.calls import NO_SCHEMAS, Schemas
from llmasos.userland.sdk.text import Detokenizer
from llmasos.userland.sdk.thoughts import Part, Reader, ThoughtMarks, opened_in, reader
from llmasos.userland.sdk.tokenizer import Tokenizer
from llmasos.userland.sdk.tool_calls import BadCall, ToolCall


@dataclass(slots=True)
class Heard:
    """An answer. Places are (start, end) in its ids; None if the ids of a part cannot be told from others."""

    thought: str = ""
    answer: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    bad: list[BadCall] = field(default_factory=list)
    thought_at: tuple[int, int] | None = None
    answer_at: tuple[int, int] | None = None
    thought_end: int = 0  # of the ids, where the text behind the last thought begins


class Ear:
    """Takes ids as they arrive; gives the parts of the answer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        reader: Reader,
        before: Sequence[int] = (),
        passed: Mapping[str, str] | None = None,
    ) -> None:
        self.reader = reader
        self._tokenizer = tokenizer
        self._text = Detokenizer(tokenizer.decode, before)
        self._passed = passed or {}  # special tokens that are passed on as text, and their text

    def push(self, i: int) -> list[Part]:
        """The parts that one more id makes certain."""
        text = self._text.push([i])
        if i not in self._tokenizer.special_ids:
            return self.reader.push(text) if text else []
        parts = self.reader.push(text) if text else []
        content = self._tokenizer.added[i].content
        if content in self._passed:
            return [*parts, *self.reader.push(self._passed[content])]
        return [*parts, *self.reader.push(content, special=True)]

    def flush(self) -> list[Part]:
        """The parts that were held back, when no more ids arrive."""
        return [*self.reader.push(self._text.flush()), *self.reader.flush()]


def reader_for(marks: ThoughtMarks | None, formats: Sequence[CallFormat], schemas: Schemas, lead: str) -> Reader:
    """A reader of the answer to a prompt that ends in `lead`."""
    header = lead.rpartition("<|start|>")[2]
    calling = bool(formats) and bool(formats[0].said) and lead.endswith(formats[0].open)
    return reader(marks, formats, schemas, opened=opened_in(lead, marks), header=header, calling=calling)


def heard(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    marks: ThoughtMarks | None = None,
    formats: Sequence[CallFormat] = (),
    schemas: Schemas = NO_SCHEMAS,
    lead: str = "",
) -> Heard:
    """Take a whole answer apart."""
    found = Heard()
    ear = Ear(tokenizer, reader_for(marks, formats, schemas, lead))
    modes: list[str] = []
    for parts in _all(ear, ids, modes):
        for part in parts:
            if part.kind == "thought":
                found.thought += part.text
            elif part.kind == "answer":
                found.answer += part.text
            elif isinstance(part.call, ToolCall):
                found.calls.append(part.call)
            elif part.call is not None:
                found.bad.append(part.call)
    thinking = [i for i, mode in enumerate(modes) if mode.endswith("thought")]
    thought = [i for i, mode in enumerate(modes) if mode.startswith("thought")]
    answering = [i for i, mode in enumerate(modes) if mode.endswith("answer")]
    found.thought_end = thought[-1] + 1 if thought else 0
    found.thought_at = _run(tokenizer, ids, thinking, found.thought)
    found.answer_at = _run(tokenizer, ids, answering, found.answer)
    if not found.calls and not found.bad:
        found.answer_at = _with_control(tokenizer, marks, ids, modes, found)
    return found


def _with_control(
    tokenizer: Tokenizer, marks: ThoughtMarks | None, ids: Sequence[int], modes: Sequence[str], found: Heard
) -> tuple[int, int] | None:
    """The answer's ids, with the control tokens before and behind its text that are its own; that may be all of it."""
    behind = max((i + 1 for i, mode in enumerate(modes) if "thought" in mode or "header" in mode), default=0)
    if modes and all(mode == "header" for mode in modes):  # a header that never became one
        behind = 0
    known = marks.texts if marks is not None else ()
    own = [
        i
        for i in range(behind, len(ids))
        if ids[i] in tokenizer.special_ids and tokenizer.added[ids[i]].content not in known
    ]
    if found.answer_at is not None:
        start, end = found.answer_at
        return min([start, *own]), max([end, *(i + 1 for i in own)])
    if found.answer.strip() or not modes or modes[-1].endswith("thought"):
        return None
    if behind == 0 and any(i in tokenizer.added and tokenizer.added[i].content in known for i in ids):
        return None  # half a header
    while behind < len(ids) and not tokenizer.decode(ids[behind : behind + 1], special=True).strip():
        behind += 1
    return behind, len(ids)


def _all(ear: Ear, ids: Sequence[int], modes: list[str]) -> Iterator[list[Part]]:
    for i in ids:
        before = ear.reader.mode
        yield ear.push(i)
        after = ear.reader.mode
        modes.append(after if after == before else f"{before} to {after}")
    yield ear.flush()


def _run(tokenizer: Tokenizer, ids: Sequence[int], where: Sequence[int], text: str) -> tuple[int, int] | None:
    """The ids, near the positions `where`, whose text is just `text`; None if there are none."""
    wanted = text.strip()
    if not wanted or (not where and not ids):
        return None
    low, high = (where[0], where[-1] + 1) if where else (0, len(ids))
    for start in range(max(0, low - 4), min(low + 2, len(ids))):
        for end in {high, len(ids), high - 1, high + 1}:
            if start < end <= len(ids) and tokenizer.decode(ids[start:end]).strip() == wanted:
                while start < end - 1 and not tokenizer.decode(ids[start : start + 1]).strip(" \n\t\r"):
                    if tokenizer.decode(ids[start + 1 : end]).strip() != wanted:
                        break
                    start += 1
                return start, end
    return None
