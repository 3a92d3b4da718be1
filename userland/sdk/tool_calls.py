"""Tool calls in what a model says: told apart from its text while it streams, and read into records.

As vLLM's and llama.cpp's tool parsers do; here a model's form is found out rather than configured: by what its template
makes of a call (a form counts if it reads that call back), else by the tokens and words that the template and vocabulary
have. What opens like a call and cannot be read is given as a `BadCall` with its text and the reason; nothing raises out
of a stream.
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
# How a call without marks may begin, as far as it has come: what cannot go on so is text.
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
        self._held = ""  # what may begin a mark
        self._blank: list[str] = []  # white space that is no part of the text if calls follow
        self._inside: CallFormat | None = None
        self._scan = CloseScan("", "none")
        self._began = False  # whether something that is no white space has been given or read
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
        """What is certain of the answer so far."""
        events: list[Event] = []
        while piece:
            if self._inside is not None:
                found, piece = self._push_inside(self._inside, piece)
            else:
                found, piece = self._push_text(self._held + piece)
            events.extend(found)
        return events

    def flush(self) -> list[Event]:
        """What was held back, when no more comes."""
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
        """Takes a text outside of calls; gives what it certainly says, and what is to be taken next."""
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
        """Where the first calls are opened, and of what form; of several at one place the longest mark counts."""
        found = [(at, -len(form.open), i) for i, form in enumerate(self._marked) if (at := text.find(form.open)) >= 0]
        if not found:
            return -1, None
        at, _, index = min(found)
        return at, self._marked[index]

    def _push_inside(self, form: CallFormat, piece: str) -> tuple[list[Event], str]:
        """Takes a piece of calls; gives what it completes, and what stands behind the calls."""
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
        """What looked like calls of a form without marks is text."""
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
        """What a bare form is read from: its opening belongs to the literal, unless it is a word."""
        stripped = text.lstrip()
        return stripped.removeprefix(form.open) if form.open.isalpha() else stripped


def begun(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def _may_be(form: CallFormat, text: str) -> bool:
    """Whether a text can still become a call of a form without marks; its first characters tell."""
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
    """The forms in which a model calls. `written` gives what the template makes of a message with one call (nothing, if
    it makes nothing of it; else to the text's end, and without what closes any answer), `source` is the template's own
    text, `tokens` are the added tokens of the vocabulary, `known` what
    the model's makers say themselves, of which the template shows only how it is written.

    More than one can come out: what the template shows, and what opens with a token that only calls have.
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
    """A form with those of its shapes that a template has written the probe in; with all, if it has none of them."""
    shapes = tuple(shape for shape in form.shapes if any(shape.writes(_TOOL, text) for text in texts))
    return replace(form, shapes=shapes or form.shapes)


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
