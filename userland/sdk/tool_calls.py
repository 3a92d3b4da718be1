"""Tool calls in a model's answer: told apart from its text while it streams, and read into records.

As vLLM's and llama.cpp's tool parsers do; but here a model's form is found out, not configured: by what its template
makes of a call (a form counts if it reads that call back), else by the tokens and words of template and vocabulary. Text
that opens like a call and cannot be read becomes a `BadCall` with the text and the reason; a stream never raises for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmasos.userland.sdk.call_formats import FORMATS, CallFormat
from llmasos.userland.sdk.call_headed import headed
from llmasos.userland.sdk.call_json import read_json
from llmasos.userland.sdk.call_scan import BEGINNING, CloseScan
from llmasos.userland.sdk.call_shapes import Shape
from llmasos.userland.sdk.calls import (
    MOST_CALLS,
    MOST_CHARACTERS,
    NO_SCHEMAS,
    Malformed,
    Schemas,
    ToolCall,
    check,
)
from llmasos.userland.sdk.schemas import properties_of

__all__ = ["BadCall", "CallReader", "ToolCall", "formats_of", "schemas_of"]

_TOOL, _KEY, _VALUE = "zq_tool", "zq_key", "zq value"
_PROBE = ToolCall(_TOOL, {_KEY: _VALUE})
# Possible beginnings of a call without marks; text that cannot become one is text.
_BARE = {
    "{": ('{"name"', '{"type"', '{"function"', '{"parameters"', '{"arguments"'),
    "functools": ("functools[",),
}
_PYTHON_CALL = re.compile(r"\[\s*([A-Za-z_][\w.]*\s*(\(|$)|$)")


@dataclass(slots=True, frozen=True)
class BadCall:
    """Text that the model meant as calls of tools and that is none."""

    text: str  # what it wrote
    reason: str  # why that is no call


Event = str | ToolCall | BadCall


def schemas_of(tools: Sequence[dict[str, Any]]) -> Schemas:
    """The schemas of each tool's parameters, from definitions as templates take them."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        inner = tool.get("function", tool)
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            found[inner["name"]] = properties_of(inner.get("parameters"))
    return found


class CallReader:
    """Reads an answer piece by piece, and gives its text, its calls and its malformed calls in order."""

    def __init__(self, formats: Sequence[CallFormat], schemas: Schemas = NO_SCHEMAS, *, opened: bool = False) -> None:
        self._marked = [form for form in formats if not form.bare]
        self._bare = [form for form in formats if form.bare]
        self._schemas = schemas
        self._held = ""  # a possible beginning of a mark
        self._blank: list[str] = []  # white space that is not part of the text if calls follow
        self._inside: CallFormat | None = None
        self._scan = CloseScan("", "none")
        self._began = False  # whether anything but white space has been given or read
        self._calls = 0
        if opened:
            self._open(formats[0])

    @property
    def inside(self) -> bool:
        """Whether calls have been opened and not closed."""
        return self._inside is not None

    @property
    def marks(self) -> list[str]:
        """The texts that open and close calls."""
        return [mark for form in self._marked for mark in (form.open, form.close) if mark]

    def push(self, piece: str) -> list[Event]:
        """The events of the answer that are certain so far."""
        events: list[Event] = []
        while piece:
            if self._inside is not None:
                found, piece = self._push_inside(self._inside, piece)
            else:
                found, piece = self._push_text(self._held + piece)
            events.extend(found)
        return events

    def flush(self) -> list[Event]:
        """The events that were held back, when no more text arrives."""
        events: list[Event] = []
        form, self._inside = self._inside, None
        if form is None:
            text, self._held, self._blank = "".join(self._blank) + self._held, "", []
            return [text] if text else []
        text = self._scan.text
        if not form.bare:
            return self._read(form, text)
        try:
            return [*events, *self._counted(self._checked(form, self._body(form, text)), text)]
        except Malformed:
            return [*events, text]

    def _open(self, form: CallFormat) -> None:
        self._inside, self._began = form, True
        self._scan = CloseScan(form.close, form.strings)

    def _push_text(self, text: str) -> tuple[list[Event], str]:
        """Take a text outside of calls; gives what is certain of it, and what to take next."""
        self._held = ""
        if not self._began and self._bare:
            stripped = text.lstrip()
            if not stripped:
                self._blank.append(text)
                return [], ""
            form = next((form for form in self._bare if _may_be(form, stripped)), None)
            if form is not None and stripped.startswith(form.open):
                blank, self._blank = "".join(self._blank), []
                self._open(form)
                return [], blank + text
            if form is not None:
                self._held = text
                return [], ""
        at, form = self._opened_at(text)
        if form is not None:
            said = ("".join(self._blank) + text[:at]).rstrip()
            self._blank = []
            self._open(form)
            return ([said] if said else []), text[at + len(form.open) :]
        cut = len(text) - max((begun(text, form.open) for form in self._marked), default=0)
        self._held, text = text[cut:], text[:cut]
        if not self._marked:
            self._blank, said = [], "".join(self._blank) + text
        else:
            said = text.rstrip()
            self._blank.append(text[len(said) :])
            if said:
                behind = self._blank.pop()
                said, self._blank = "".join(self._blank) + said, [behind]
        self._began = self._began or bool(said.strip())
        return ([said] if said else []), ""

    def _opened_at(self, text: str) -> tuple[int, CallFormat | None]:
        """The place where the first calls open, and their form; of several at one place, the longest mark wins."""
        found = [(at, -len(form.open), i) for i, form in enumerate(self._marked) if (at := text.find(form.open)) >= 0]
        if not found:
            return -1, None
        at, _, index = min(found)
        return at, self._marked[index]

    def _push_inside(self, form: CallFormat, piece: str) -> tuple[list[Event], str]:
        """Take a piece of calls; gives the calls that it completes, and what stands behind them."""
        undecided = self._scan.length < BEGINNING
        room = MOST_CHARACTERS + 1 - self._scan.length
        closed = self._scan.push(piece[:room])
        rest = piece[room:]
        if closed is not None:
            self._inside = None
            return self._read(form, closed[0]), closed[1] + rest
        if form.said and (said := form.said.removeprefix(form.open)) and self._scan.length <= 2 * len(said) + len(piece):
            begin = self._scan.text
            if begin.startswith(said):  # a message to the user
                self._inside = None
                return [], begin[len(said) :] + rest
        if form.bare and undecided and not _may_be(form, self._scan.beginning.lstrip()):
            return self._gave_up(self._scan.text, rest)
        if self._scan.length > MOST_CHARACTERS:
            text = self._scan.text
            if form.bare:
                return self._gave_up(text, rest)
            self._inside = None
            return [BadCall(text, f"calls of more than {MOST_CHARACTERS} characters")], rest
        return [], ""

    def _gave_up(self, text: str, rest: str) -> tuple[list[Event], str]:
        """Treat what looked like calls of a form without marks as text."""
        self._inside = None
        return [text], rest

    def _checked(self, form: CallFormat, text: str) -> list[ToolCall]:
        calls = form.read(text, self._schemas)
        for call in calls:
            check({call.name: call.arguments, "id": call.id})
        return calls

    def _read(self, form: CallFormat, text: str) -> list[Event]:
        try:
            return self._counted(self._checked(form, text), text)
        except Malformed as error:
            return [BadCall(form.open + text, str(error))]

    def _counted(self, calls: list[ToolCall], text: str) -> list[Event]:
        self._calls += len(calls)
        if self._calls > MOST_CALLS:
            return [BadCall(text, f"more than {MOST_CALLS} calls in one answer")]
        return list(calls)

    @staticmethod
    def _body(form: CallFormat, text: str) -> str:
        """The text to read a bare form from: its opening belongs to the literal, unless it is a word."""
        stripped = text.lstrip()
        return stripped.removeprefix(form.open) if form.open.isalpha() else stripped


def begun(text: str, mark: str) -> int:
    """The length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def _may_be(form: CallFormat, text: str) -> bool:
    """Whether a text can still become a call of a form without marks; its first characters decide."""
    text = text[:BEGINNING]
    if form.open == "[":
        return bool(_PYTHON_CALL.match(text)) if text.startswith("[") else False
    squeezed = re.sub(r"\s+", "", text[:80])
    return any(squeezed.startswith(start) or start.startswith(squeezed) for start in _BARE[form.open])


# --- which form a model has -----------------------------------------------------------------------------------------


def formats_of(
    written: Callable[[ToolCall], Sequence[str]],
    source: str,
    tokens: Collection[str] = (),
    known: Sequence[CallFormat] = (),
) -> tuple[CallFormat, ...]:
    """The forms in which a model calls. `written` is what the template makes of a message with one call (empty if it
    makes nothing of it; else up to the text's end, without what closes any answer); `source` is the template's text;
    `tokens` are the added tokens of the vocabulary; `known` is the form by the model's makers, of which the template
    shows only how it is written.

    There may be several: the form that the template shows, and one that opens with a token that only calls have.
    """
    texts = written(_PROBE)
    if known:
        return tuple(narrowed(form, texts) for form in known)
    shown = [form for form in FORMATS if any(reads_back(form, text, _PROBE) for text in texts)]
    if not shown and texts:
        learnt = _learnt(texts[-1])
        shown = [learnt] if learnt else []
    marked = [form for form in FORMATS if not form.bare and form.open in tokens and form not in shown]
    if not shown and not marked:
        return tuple(form for form in FORMATS if not form.bare and form.open in source)
    return tuple(narrowed(form, texts) for form in (*shown[:1], *marked))


def narrowed(form: CallFormat, texts: Sequence[str]) -> CallFormat:
    """A form with those of its shapes in which a template has written the probe; with all of them if there is none."""
    shapes = tuple(shape for shape in form.shapes if any(shape.writes(_TOOL, text) for text in texts))
    return replace(form, shapes=shapes or form.shapes)


def reads_back(form: CallFormat, text: str, call: ToolCall) -> bool:
    """Whether a form reads just this call from a text."""
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
        opened, close, middle = head.strip(), after.strip(), between.strip()
        read = headed(rf"(?P<name>[^\s{{]+?)\s*{re.escape(middle)}\s*(?=\{{)", "")
        shape = Shape(opened + "␣", f"«name»␣{middle}␣«args»", "␣" + close)
        return CallFormat("learnt", opened, close, read, strings="json", shapes=(shape,))
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
