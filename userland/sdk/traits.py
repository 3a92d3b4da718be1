"""What a chat template does with answers, found out by rendering probes: how it marks thoughts and calls, what it leaves
out of the past, what ends an answer.

Other engines have tables of model families for this; a template shows it itself. Only what it does not show (the marks of
thoughts in a template that leaves them out, say) is looked up by the family's words in its text and vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from llmasos.syscalls.errno import SyscallError
from llmasos.userland.sdk.call_formats import CallFormat
from llmasos.userland.sdk.dialogue import Message
from llmasos.userland.sdk.response_template import fields_of
from llmasos.userland.sdk.template import Own, Rendering
from llmasos.userland.sdk.thoughts import ThoughtMarks, marks_of
from llmasos.userland.sdk.tokenizer import Tokenizer
from llmasos.userland.sdk.tool_calls import ToolCall, formats_of

USER, ANSWER, NEXT, THOUGHT = "alpha", "beta", "gamma", "delta"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string", "description": "At what."}},
            "required": ["at"],
        },
    },
}
_CALL = ToolCall("look", {"at": "it"})


@dataclass(slots=True, frozen=True)
class Traits:
    """What a template does with answers. `stops`: the added tokens that close one; `thoughts`: whether it takes them as a
    field of their own, leaves them out, or has them as part of the text; `close`: the ids behind an answer that do not
    depend on what follows; `gap`: whether a thought that it leaves out leaves its white space behind."""

    marks: ThoughtMarks | None
    formats: tuple[CallFormat, ...]
    stops: tuple[int, ...]
    thoughts: Literal["field", "dropped", "text"]
    close: tuple[int, ...]
    gap: bool


class Renders(Protocol):
    """Renders messages; with `tooled` there is a tool among the tools even if there are none. Raises SyscallError."""

    def __call__(self, messages: Sequence[Message], *, prompt: bool = False, tooled: bool = False) -> Rendering: ...


def traits_of(tokenizer: Tokenizer, source: str, render: Renders) -> Traits:
    """The traits of a template whose text is `source`."""
    probe = _Probe(tokenizer, render)
    tokens = {added.content for added in tokenizer.added.values()}
    shown, between = probe.thought_shown()
    marks = marks_of(source, tokens, between)
    thoughts: Literal["field", "dropped", "text"] = "field" if shown else "text"
    if not shown and marks is not None and marks.close in source and not probe.thought_stays(marks):
        thoughts = "dropped"
    gap = thoughts == "dropped" and marks is not None and probe.leaves_gap(marks)
    template = fields_of(tokenizer.settings.response_template)
    formats = formats_of(probe.written, source, tokens, template.calls)
    return Traits(template.thought or marks, formats, tuple(probe.stops()), thoughts, probe.close(), gap)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def told(call: ToolCall, number: int) -> dict[str, Any]:
    """A call as templates take it. A call without an id gets one of nine letters and digits, as Mistral's want it."""
    name = call.id or f"call{number:05d}"
    return {"id": name, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The length of the common beginning of two sequences."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(i for i in range(most) if one[i] != other[i])


class _Probe:
    """Renderings of small conversations; one that the template does not take shows nothing."""

    def __init__(self, tokenizer: Tokenizer, render: Renders) -> None:
        self._tokenizer = tokenizer
        self._render = render

    def _try(self, messages: Sequence[Message], *, prompt: bool = False, tooled: bool = False) -> Rendering | None:
        try:
            return self._render(messages, prompt=prompt, tooled=tooled)
        except SyscallError:
            return None

    def thought_shown(self) -> tuple[bool, str]:
        """Whether the template writes a thought that is given beside an answer's text, and what it writes between the
        two."""
        answer = {"role": "assistant", "reasoning_content": Own(THOUGHT, ()), "content": Own(ANSWER, ())}
        called = {**answer, "tool_calls": [told(_CALL, 0)]}
        for message in (answer, called):
            rendering = self._try([user(USER), message])
            if rendering is not None and (thought := rendering.places[0]) is not None:
                place = rendering.places[1]
                between = rendering.text[thought[1] : place[0]] if place and place[0] > thought[1] else ""
                return True, between
        return False, ""

    def thought_stays(self, marks: ThoughtMarks) -> bool:
        """Whether a thought that is part of an answer's text stays in it when the conversation has gone on."""
        text = f"{marks.open}\n{THOUGHT}\n{marks.close}\n\n{ANSWER}"
        rendering = self._try([user(USER), {"role": "assistant", "content": text}, user(NEXT)], prompt=True)
        return rendering is not None and THOUGHT in rendering.text

    def leaves_gap(self, marks: ThoughtMarks) -> bool:
        """Whether the white space between a thought and the answer stays when the thought is left out."""
        text = f"{marks.open}\n{THOUGHT}\n{marks.close}\n\n{ANSWER}"
        texts = [
            found.plain if found else ""
            for content in (text, f"\n\n{ANSWER}", ANSWER)
            for found in [self._try([user(USER), {"role": "assistant", "content": content}, user(NEXT)], prompt=True)]
        ]
        return texts[0] == texts[1] != texts[2]

    def written(self, call: ToolCall) -> list[str]:
        """The template's text of an answer with one call, to its end and without what closes any answer."""
        asked = [user(USER)]
        for content in ("", None):
            answer: Message = {"role": "assistant", "content": content, "tool_calls": [told(call, 0)]}
            rendering = self._try([*asked, answer], tooled=True)
            if rendering is None or call.name not in rendering.plain:
                continue
            plain = self._try([*asked, {"role": "assistant", "content": ANSWER}], tooled=True)
            prompt = self._try(asked, prompt=True, tooled=True)
            text = rendering.plain
            head = prompt.plain if prompt else ""
            text = text[len(head) :] if head and text.startswith(head) else text[text.rfind(USER) + len(USER) :]
            closed = plain.plain if plain else ""
            same = common(text[::-1], closed[::-1])
            return [text, text[: len(text) - same]]
        return []

    def close(self) -> tuple[int, ...]:
        """The ids behind an answer that are the same whether it is the last or not. None where a role's opening closes it
        (GLM)."""
        answered = [user(USER), {"role": "assistant", "content": Own(ANSWER, ())}]
        last, first = self._try(answered), self._try([*answered, user(NEXT)], prompt=True)
        if last is None or first is None or last.places[0] is None or first.places[0] is None:
            return ()
        ids = first.after(0)
        return tuple(ids[: common(ids, last.after(0))])

    def stops(self) -> list[int]:
        """The added tokens with which the template closes a last answer, with or without a call, except those that it
        also writes between thoughts, calls and answer."""
        own = {"role": "assistant", "content": Own(ANSWER, ())}
        call = told(_CALL, 0)
        found: list[int] = []
        plain = self._try([user(USER), own])
        if plain is not None and (place := plain.places[0]) is not None:
            for token in plain.tokens():
                if token.start >= place[1] and plain.text[token.start : token.end].strip():
                    if token.id in self._tokenizer.added:
                        found.append(token.id)
                    break
        named = {**call, "function": {**call["function"], "name": Own("look", ())}}
        asked = {"role": "assistant", "content": "", "tool_calls": [named]}
        called = self._try([user(USER), asked], tooled=True)
        if called is not None and called.places[0] is not None:
            behind = [t for t in called.tokens() if called.text[t.start : t.end].strip()]
            if behind and behind[-1].id in self._tokenizer.added and behind[-1].start >= called.places[0][1]:
                found.append(behind[-1].id)
        between: set[int] = set()
        thought = {"reasoning_content": Own(THOUGHT, ())}
        for message in (
            {"role": "assistant", **thought, "content": Own(ANSWER, ())},
            {"role": "assistant", **thought, "content": "", "tool_calls": [named]},
            {**own, "tool_calls": [named]},
        ):
            both = self._try([user(USER), message], tooled=True)
            if both is not None and len(both.places) == 2 and None not in both.places:
                (low, high) = sorted(place for place in both.places if place is not None)
                between |= {t.id for t in both.tokens() if t.start >= low[1] and t.end <= high[0]}
        return [i for i in dict.fromkeys(found) if i not in between]
