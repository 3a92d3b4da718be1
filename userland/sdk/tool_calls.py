"""Tool calls in what a model says: told apart from its text while it streams, and read into records.

As vLLM's and llama.cpp's tool parsers do; here a model's form is found out rather than configured: by what its template
makes of a call (a form counts if it reads that call back), else by the tokens and words that the template and vocabulary
have. What opens like a call and cannot be read is given as a `BadCall` with its text and the reason; nothing raises out
of a stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from userland.sdk.call_formats import FORMATS, CallFormat, Headed
from userland.sdk.call_json import read_json
from userland.sdk.calls import MOST_CALLS, MOST_CHARACTERS, NO_SCHEMAS, Malformed, Schemas, ToolCall

__all__ = ["BadCall", "CallReader", "ToolCall", "formats_of", "schemas_of"]

_TOOL, _KEY, _VALUE = "zq_tool", "zq_key", "zq value"
_PROBE = ToolCall(_TOOL, {_KEY: _VALUE})
# How a call without marks may begin, as far as it has come: what cannot go on so is text.
_BARE = {
    "{": ('{"name"', '{"type"', '{"function"', '{"parameters"', '{"arguments"'),
    "functools": ("functools[",),
}
_PYTHON_CALL = re.compile(r"\[\s*([A-Za-z_][\w.]*\s*(\(|$)|$)")


@dataclass(slots=True, frozen=True)
class BadCall:
    """What was meant as calls and is none: its text, and why."""

    text: str
    reason: str


Event = str | ToolCall | BadCall


def schemas_of(tools: Sequence[dict[str, Any]]) -> Schemas:
    """The parameters' schemas of each tool, of definitions as templates take them."""
    found: dict[str, dict[str, Any]] = {}
    for tool in tools:
        inner = tool.get("function", tool)
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            parameters = inner.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, dict) else None
            found[inner["name"]] = properties if isinstance(properties, dict) else {}
    return found


class CallReader:
    """Takes an answer in pieces; gives its text, its calls and its malformed calls, in order."""

    def __init__(self, formats: Sequence[CallFormat], schemas: Schemas = NO_SCHEMAS) -> None:
        self._marked = [form for form in formats if not form.bare]
        self._bare = [form for form in formats if form.bare]
        self._schemas = schemas
        self._held = ""
        self._inside: CallFormat | None = None
        self._began = False  # whether something that is no white space has been given or read
        self._calls = 0

    @property
    def inside(self) -> bool:
        """Whether calls have been opened and not closed."""
        return self._inside is not None

    @property
    def marks(self) -> list[str]:
        """The texts that open and close calls."""
        return [mark for form in self._marked for mark in (form.open, form.close) if mark]

    def push(self, piece: str) -> list[Event]:
        """What is certain of the answer so far."""
        self._held += piece
        events: list[Event] = []
        while (found := self._step()) is not None:
            events.extend(found)
        return events

    def flush(self) -> list[Event]:
        """What was held back, when no more comes."""
        events = self.push("")
        text, self._held = self._held, ""
        form, self._inside = self._inside, None
        if form is None:
            if text:
                events.append(text)
            return events
        if form.bare:
            try:
                return [*events, *self._counted(form.read(self._body(form, text), self._schemas), text)]
            except Malformed:
                return [*events, text]
        return [*events, *self._read(form, text)]

    def _step(self) -> list[Event] | None:
        """One thing that can be told from the text held; None: no more can."""
        if self._inside is not None:
            return self._step_inside(self._inside)
        if not self._held:
            return None
        if not self._began and self._bare:
            stripped = self._held.lstrip()
            if not stripped:
                return None
            form = next((form for form in self._bare if _may_be(form, stripped)), None)
            if form is not None and stripped.startswith(form.open):
                self._inside, self._began = form, True
                return []
            if form is not None:
                return None
        return self._step_text()

    def _step_text(self) -> list[Event] | None:
        opened = min(
            (
                (at, -len(form.open), i)
                for i, form in enumerate(self._marked)
                if (at := self._held.find(form.open)) >= 0
            ),
            default=None,
        )
        if opened is not None:
            at, _, index = opened
            form = self._marked[index]
            text, self._held = self._held[:at].rstrip(), self._held[at + len(form.open) :]
            self._inside, self._began = form, True
            return [text] if text else []
        keep = max((begun(self._held, form.open) for form in self._marked), default=0)
        cut = len(self._held) - keep
        if self._marked:  # white space before a call is no part of the text
            cut = len(self._held[:cut].rstrip())
        text, self._held = self._held[:cut], self._held[cut:]
        if not text:
            return None
        self._began = True
        return [text]

    def _step_inside(self, form: CallFormat) -> list[Event] | None:
        if form.bare:
            if not _may_be(form, self._held.lstrip()) or len(self._held) > MOST_CHARACTERS:
                text, self._held, self._inside = self._held, "", None
                return [text]
            return None
        end = _end(form, self._held)
        if end < 0:
            if len(self._held) > MOST_CHARACTERS:
                text, self._held, self._inside = self._held, "", None
                return [BadCall(text, f"calls of more than {MOST_CHARACTERS} characters")]
            return None
        text, self._held = self._held[:end], self._held[end + len(form.close) :]
        self._inside = None
        return self._read(form, text)

    def _read(self, form: CallFormat, text: str) -> list[Event]:
        try:
            return self._counted(form.read(text, self._schemas), text)
        except Malformed as error:
            return [BadCall(form.open + text, str(error))]

    def _counted(self, calls: list[ToolCall], text: str) -> list[Event]:
        self._calls += len(calls)
        if self._calls > MOST_CALLS:
            return [BadCall(text, f"more than {MOST_CALLS} calls in one answer")]
        return list(calls)

    @staticmethod
    def _body(form: CallFormat, text: str) -> str:
        """What a bare form is read from: its opening belongs to the literal, unless it is a word."""
        stripped = text.lstrip()
        return stripped.removeprefix(form.open) if form.open.isalpha() else stripped


def begun(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def _may_be(form: CallFormat, text: str) -> bool:
    """Whether a text can still become a call of a form without marks."""
    if form.open == "[":
        return bool(_PYTHON_CALL.match(text)) if text.startswith("[") else False
    squeezed = re.sub(r"\s+", "", text[:80])
    return any(squeezed.startswith(start) or start.startswith(squeezed) for start in _BARE[form.open])


def _end(form: CallFormat, text: str) -> int:
    """Where the mark that closes calls stands; one within a string of JSON is text of that string. -1: it does not."""
    if not form.close:
        return -1
    end = text.find(form.close)
    if text.lstrip()[:1] not in ("{", "["):
        return end
    at, quoted = 0, False
    while end >= 0:
        while at < end:
            if text[at] == "\\" and quoted:
                at += 1
            elif text[at] == '"':
                quoted = not quoted
            at += 1
        if not quoted:
            return end
        end = text.find(form.close, max(end + 1, at))
    return -1


# --- which form a model has -----------------------------------------------------------------------------------------


def formats_of(
    written: Callable[[ToolCall], Sequence[str]], source: str, tokens: Collection[str] = ()
) -> tuple[CallFormat, ...]:
    """The forms in which a model calls. `written` gives what the template makes of a message with one call (nothing, if
    it makes nothing of it; else to the text's end, and without what closes any answer), `source` is the template's own
    text, `tokens` are the added tokens of the vocabulary.

    More than one can come out: what the template shows, and what opens with a token that only calls have.
    """
    texts = written(_PROBE)
    shown = [form for form in FORMATS if any(reads_back(form, text, _PROBE) for text in texts)]
    if not shown and texts:
        learnt = _learnt(texts[-1])
        shown = [learnt] if learnt else []
    marked = [form for form in FORMATS if not form.bare and form.open in tokens and form not in shown]
    if not shown and not marked:
        return tuple(form for form in FORMATS if not form.bare and form.open in source)
    return (*shown[:1], *marked)


def reads_back(form: CallFormat, text: str, call: ToolCall) -> bool:
    """Whether a form finds just this call in a text."""
    reader = CallReader([form])
    found = [event for event in (*reader.push(text), *reader.flush()) if not isinstance(event, str)]
    return (
        len(found) == 1
        and isinstance(found[0], ToolCall)
        and (found[0].name, found[0].arguments) == (call.name, call.arguments)
    )


def _learnt(text: str) -> CallFormat | None:
    """A form seen once: a header, the name, something, the arguments as JSON, an end."""
    for written in (json.dumps(_PROBE.arguments), json.dumps(_PROBE.arguments, separators=(",", ":"))):
        before, mark, after = text.partition(written)
        head, name, between = before.rpartition(_TOOL)
        if not mark or not name or not head.strip():
            continue
        close = after.strip()
        call = re.escape(between.strip())
        pattern = rf"\s*(?P<name>[^\s{{]+?)\s*{call}\s*(?P<arguments>\{{.*\}})\s*\Z"
        return CallFormat("learnt", head.strip(), close, Headed(re.compile(pattern, re.DOTALL)))
    return None


def harmony_call(header: str, body: str) -> ToolCall | BadCall:
    """A call of harmony: its header names the recipient (`to=functions.look`), its body is JSON."""
    found = re.search(r"to=([^\s<]+)", header)
    if not found:
        return BadCall(body, "a call names no recipient")
    name = found[1].removeprefix("functions.")
    try:
        return read_json(json.dumps({"name": name, "arguments": body}))[0]
    except Malformed as error:
        return BadCall(body, str(error))
