"""Thoughts, answer and calls in the text of a model, told apart while it streams.

Reasoning models write their thoughts into the same stream as the answer, between marks of their family (`<think>`,
`[THINK]`, channels of harmony). Other engines are configured with the family; here the marks are found in the template
and the vocabulary, and the end of the prompt shows whether a thought is open already, where templates like DeepSeek R1's
open it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from llmasos.userland.sdk.call_formats import CallFormat
from llmasos.userland.sdk.calls import NO_SCHEMAS, Schemas
from llmasos.userland.sdk.tool_calls import BadCall, CallReader, ToolCall, begun, harmony_call

Kind = Literal["thought", "answer", "call"]

# Families' marks: the one that opens a thought, the one that closes it, the text between that and the answer.
_FAMILIES = (
    ("<think>", "</think>", ""),
    ("<thinking>", "</thinking>", ""),
    ("[THINK]", "[/THINK]", ""),
    ("<seed:think>", "</seed:think>", ""),
    ("<mm:think>", "</mm:think>", ""),
    ("<think:opensource>", "</think:opensource>", ""),
    ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_TEXT|>"),
    ("<|channel>thought", "<channel|>", ""),
    ("<|inner_prefix|>", "<|inner_suffix|>", ""),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>", "<|open|>response<|sep|>"),
    ("<|think|>", "<|end|>", "<|begin|>assistant<|content|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", ""),
    ("Here is my thought process:", "Here is my response:", ""),
    ("<thought>", "</thought>", ""),
    ("<reasoning>", "</reasoning>", ""),
    ("<|thinking|>", "<|/thinking|>", ""),
)
_HARMONY = ("<|channel|>", "<|message|>", "<|start|>")
_FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
_CHANNELS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")
# The same with recipients in place of channels: a message to oneself is thought (muse-glimmer).
_RECIPIENTS = ("<|start|>", "<|message|>", "<|eom|>", "<|eot|>")
_TO_SELF, _TO_USER = " to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"


@dataclass(slots=True, frozen=True)
class ThoughtMarks:
    """A family's marks. `way` is the text to feed to bring a thinking model to its answer. `harmony`: messages with
    headers, not marks, whose own marks are `messages`."""

    open: str
    close: str
    behind: str = ""
    way: str = ""
    harmony: bool = False
    messages: tuple[str, ...] = _CHANNELS

    @property
    def recipients(self) -> bool:
        """Whether messages have recipients and no channels."""
        return self.messages == _RECIPIENTS

    @property
    def texts(self) -> tuple[str, ...]:
        return self.messages if self.harmony else (self.open, self.close, self.behind)


@dataclass(slots=True, frozen=True)
class Part:
    """A stretch of a model's text. A `call` has the record, or the fault, and its text as `text`."""

    kind: Kind
    text: str
    call: ToolCall | BadCall | None = None


def marks_of(source: str, tokens: Collection[str], between: str = "") -> ThoughtMarks | None:
    """The marks of a model, from its template's text, else from the added tokens of its vocabulary. `between` is the
    template's text between a thought and the answer behind it, if it writes thoughts at all."""
    if all(mark in source for mark in _HARMONY):
        return ThoughtMarks("<|channel|>analysis<|message|>", "<|end|>", "", _FINAL, harmony=True)
    if all(mark in source for mark in (*_RECIPIENTS, "to=self")):
        return ThoughtMarks(_TO_SELF, "<|eom|>", "", _TO_USER, harmony=True, messages=_RECIPIENTS)
    for text in (source, tokens):
        for start, close, behind in _FAMILIES:
            there = close in between or (close in text and (start in text or text is source))
            if there and (not behind or behind in source):
                way = between if close in between else f"\n{close}\n\n{behind}"
                return ThoughtMarks(start, close, behind, way)
    return None


def opened_in(prompt: str, marks: ThoughtMarks | None) -> bool:
    """Whether a prompt has opened a thought that the model continues."""
    if marks is None or marks.harmony:
        return False
    tail = prompt.rstrip()
    return tail.endswith(marks.open)


class Reader(Protocol):
    """Takes a model's text piece by piece; a piece is text or one special token."""

    @property
    def mode(self) -> str: ...

    @property
    def thinking(self) -> bool: ...

    def push(self, piece: str, *, special: bool = False) -> list[Part]: ...

    def flush(self) -> list[Part]: ...


def reader(
    marks: ThoughtMarks | None,
    formats: Sequence[CallFormat] = (),
    schemas: Schemas = NO_SCHEMAS,
    *,
    opened: bool = False,
    header: str = "",
    calling: bool = False,
) -> Reader:
    """A reader of one answer. `opened`: the prompt has opened a thought; `header`: for harmony, the part of the message's
    header that the prompt has written; `calling`: the prompt has opened a possible call."""
    if marks is not None and marks.harmony:
        if marks.recipients:
            return HarmonyReader(header, marks.messages, lambda: CallReader(formats, schemas))
        return HarmonyReader(header)
    return AnswerReader(marks, CallReader(formats, schemas, opened=calling), opened=opened)


class AnswerReader:
    """Thoughts between marks, and behind them the answer, in which calls may stand."""

    def __init__(self, marks: ThoughtMarks | None, calls: CallReader, *, opened: bool = False) -> None:
        self._marks = marks
        self._calls = calls
        known = [*(marks.texts if marks else ()), *calls.marks]
        self._known = "\0".join(mark for mark in known if mark)
        self._held = ""
        self._mode: Literal["start", "thought", "answer"] = "thought" if opened else "start"
        self._thought = False  # whether this thought has begun to have text
        self._after = False  # whether a thought came before
        if marks is None:
            self._mode = "answer"

    @property
    def mode(self) -> str:
        """Where the reader is: in a `thought`, in the `answer`, or before either (`start`)."""
        return self._mode

    @property
    def thinking(self) -> bool:
        return self._mode == "thought"

    def push(self, piece: str, *, special: bool = False) -> list[Part]:
        """The parts that are certain so far. A special token that is no mark is no text, except in a call, whose form may
        contain it."""
        if special and piece not in self._known and not self._calls.inside:
            return []
        parts: list[Part] = []
        if special and self._mode == "answer" and self._marks and piece == self._marks.open:
            parts = self._told(self._calls.flush())
            self._mode, self._thought = "thought", False
            return parts
        if self._mode == "answer":
            return self._told(self._calls.push(piece))
        self._held += piece
        while (found := self._step()) is not None:
            parts.extend(found)
        return parts

    def flush(self) -> list[Part]:
        """The parts that were held back, when no more text arrives."""
        parts = self.push("")
        text, self._held = self._held, ""
        if self._mode == "thought":
            text = text.rstrip()
            return [*parts, Part("thought", text)] if text else parts
        if self._mode == "start" and self._after:
            text = text.lstrip()
        return [*parts, *self._told([*self._calls.push(text), *self._calls.flush()])]

    def _step(self) -> list[Part] | None:
        marks = self._marks
        if marks is None or self._mode == "answer":
            return None
        if self._mode == "thought":
            return self._think(marks)
        text = self._held.lstrip()
        # A thought that is closed without having been opened is an empty one.
        for mark in (marks.open, marks.behind if self._after else marks.close):
            if mark and text.startswith(mark):
                self._held = text[len(mark) :]
                self._mode, self._thought = ("thought" if mark == marks.open else "start"), False
                self._after = self._after or mark == marks.close
                return []
            if mark.startswith(text):
                return None
        text, self._held, self._mode = (text if self._after else self._held), "", "answer"
        return self._told(self._calls.push(text))

    def _think(self, marks: ThoughtMarks) -> list[Part] | None:
        if not self._thought:
            self._held = self._held.lstrip()
        end = self._held.find(marks.close)
        if end >= 0:
            text, self._held = self._held[:end].rstrip(), self._held[end + len(marks.close) :]
            self._mode, self._after = "start", True
            return [Part("thought", text)] if text else []
        cut = len(self._held[: len(self._held) - begun(self._held, marks.close)].rstrip())
        text, self._held = self._held[:cut], self._held[cut:]
        if not text:
            return None
        self._thought = True
        return [Part("thought", text)]

    @staticmethod
    def _told(events: Sequence[str | ToolCall | BadCall]) -> list[Part]:
        return [_part(event) for event in events]


def _part(event: str | ToolCall | BadCall) -> Part:
    if isinstance(event, str):
        return Part("answer", event)
    return Part("call", event.text if isinstance(event, BadCall) else "", event)


class HarmonyReader:
    """Messages with headers. The channel `analysis`, and a message to oneself, is thought; `final`, and a `commentary`
    without a recipient, is the answer; a message to a tool is a call: arguments in JSON, or what `calls` reads."""

    def __init__(
        self,
        header: str = "",
        marks: Sequence[str] = _CHANNELS,
        calls: Callable[[], CallReader] | None = None,
    ) -> None:
        self._calls = calls
        self._marks = re.compile("|".join(map(re.escape, marks)))
        self._begun = {mark[:end] for mark in marks for end in range(1, len(mark))}
        self._longest = max(map(len, marks))
        self._held = ""
        self._header = header
        self._inside = False  # whether the reader is in a message's body
        self._call = ""

    @property
    def mode(self) -> str:
        """Where the reader is: in a `thought`, in the `answer`, in a `call`, or in a `header`."""
        return self._kind if self._inside else "header"

    @property
    def thinking(self) -> bool:
        """Whether no message with a recipient has begun: the model may think on."""
        return not self._inside or self._kind == "thought"

    @property
    def _kind(self) -> Kind:
        if self._header.endswith(" to=self"):
            return "thought"
        if "to=" in self._header and "to=user" not in self._header:
            return "call"
        return "thought" if "<|channel|>analysis" in self._header else "answer"

    def push(self, piece: str, *, special: bool = False) -> list[Part]:
        if special and not self._marks.fullmatch(piece):
            return []
        self._held += piece
        parts: list[Part] = []
        while found := self._marks.search(self._held):
            parts += self._say(self._held[: found.start()])
            self._held = self._held[found.end() :]
            parts += self._turn(found[0])
        keep = next(
            (n for n in range(min(self._longest, len(self._held)), 0, -1) if self._held[-n:] in self._begun),
            0,
        )
        parts += self._say(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return parts

    def flush(self) -> list[Part]:
        parts = self._say(self._held)
        self._held = ""
        return [*parts, *self._close()]

    def _say(self, text: str) -> list[Part]:
        if not text:
            return []
        if not self._inside:
            self._header += text
            return []
        if self._kind == "call":
            self._call += text
            return []
        return [Part(self._kind, text)]

    def _turn(self, mark: str) -> list[Part]:
        if mark == "<|message|>":
            self._inside = True
            return []
        if mark in ("<|channel|>", "<|constrain|>"):
            self._header += mark
            return []
        parts = self._close()
        self._header = ""
        return parts

    def _close(self) -> list[Part]:
        call, self._call = self._call, ""
        inside, self._inside = self._inside, False
        if not inside or self._kind != "call":
            return []
        if self._calls is None:
            return [_part(harmony_call(self._header, call))]
        reader = self._calls()
        return [_part(event) for event in (*reader.push(call), *reader.flush()) if not isinstance(event, str)]
