"""The model's own ids put into a conversation as its template renders it.

An answer keeps the ids that the model made, which may differ from an encoding of its text. If the template shows all of
an answer, all its ids stand in the result, from the end of the prompt before it to the token that closed it; if the
template leaves out thoughts or writes calls anew, only the ids of the parts that it shows do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from llmasos.userland.sdk.dialogue import Message, Said, Span
from llmasos.userland.sdk.template import Own, Rendering, special
from llmasos.userland.sdk.tokenizer import Token, Tokenizer
from llmasos.userland.sdk.traits import Traits

Kind = Literal["whole", "thought", "answer", "call"]


@dataclass(slots=True, frozen=True)
class Spliced:
    """A conversation as ids, with its messages at their new places. `behind` is where the text after the last answer
    begins (-1: unknown); `end_stayed`: the token that ended that answer is among the ids."""

    ids: list[int]
    said: list[Said]
    behind: int
    end_stayed: bool


@dataclass(slots=True)
class _Piece:
    """Ids of the model in place of a stretch of the rendering."""

    place: Span
    ids: Sequence[int]
    number: int
    kind: Kind


def closed(tokenizer: Tokenizer, traits: Traits, ends: Collection[int], ids: Sequence[int]) -> int:
    """The number of tokens at an answer's end that are not part of it: those of the template's closing that the model
    wrote itself, or the one that ended it. Any other control token is part of it: the answer ended by length."""
    close, added = traits.close, tokenizer.added
    for overlap in range(min(len(close), len(ids)), 0, -1):
        if tuple(ids[-overlap:]) == close[:overlap] and any(i in added for i in close[:overlap]):
            return overlap
    return int(bool(ids) and (ids[-1] in ends or ids[-1] in traits.stops))


class Splice:
    """One conversation: `messages` go to the template, `into` puts ids of `log` into the rendering."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        traits: Traits,
        ends: Collection[int],
        said: Sequence[Said],
        log: Sequence[int],
    ) -> None:
        self._tokenizer = tokenizer
        self._traits = traits
        self._ends = ends
        self._said = said
        self._log = log
        self._slots: list[tuple[int, Kind]] = []  # what each Own in the messages is, in their order
        self._pieces: list[_Piece] = []
        self.messages = [self._message(number, one) for number, one in enumerate(said)]

    def into(self, rendering: Rendering) -> Spliced:
        """The conversation's ids."""
        tokens = rendering.tokens()
        places: dict[int, dict[Kind, Span]] = {}
        for (number, kind), place in zip(self._slots, rendering.places, strict=True):
            if place is not None:
                places.setdefault(number, {})[kind] = place
        made = [number for number, one in enumerate(self._said) if one.made]
        stayed = False
        for number in made:
            stayed = self._find(number, places.get(number, {}), rendering.text, tokens)
        self._pieces.sort(key=lambda piece: piece.place)
        whole = [i for i, piece in enumerate(self._pieces) if piece.kind == "whole"]
        stretches = rendering.stretches([piece.place for piece in self._pieces], whole)
        ids, behind = list(stretches[0]), -1
        spans: dict[int, dict[Kind, Span]] = {number: {} for number in made}
        for piece, after in zip(self._pieces, stretches[1:], strict=True):
            start = len(ids)
            ids += piece.ids
            spans[piece.number][piece.kind] = (start, len(ids))
            behind = len(ids) if piece.number == made[-1] else -1
            ids += after
        said = [_moved(one, spans[number]) if number in spans else one for number, one in enumerate(self._said)]
        return Spliced(ids, said, behind, stayed)

    def _message(self, number: int, one: Said) -> Message:
        """A message for the template, with marks at the places of the model's words."""
        message = dict(one.message)
        if not one.made:
            return dict(special(message)) if one.special else message
        told: Message = {"role": message.pop("role")}
        marks, how = self._traits.marks, self._traits.thoughts
        thought, content = message.pop("reasoning_content", ""), message.pop("content", "")
        if thought and how == "field":
            told["reasoning_content"] = self._own(number, "thought", thought)
        elif thought and how == "text" and one.whole is not None and marks is not None:
            content = f"{marks.open}\n{thought}\n{marks.close}\n\n{content}"
        shown = content or one.answer is not None  # one of control tokens alone has a place too
        told["content"] = self._own(number, "answer", content) if shown else ""
        if message.get("tool_calls"):
            calls = [{**call, "function": dict(call["function"])} for call in message["tool_calls"]]
            if one.whole is not None:
                calls[0]["function"]["name"] = self._own(number, "call", calls[0]["function"]["name"])
            message["tool_calls"] = calls
        return {**told, **message}

    def _own(self, number: int, kind: Kind, text: str) -> Own:
        self._slots.append((number, kind))
        return Own(text, ())

    def _find(self, number: int, places: dict[Kind, Span], text: str, tokens: Sequence[Token]) -> bool:
        """Find the place of an answer's ids: the whole answer if the template shows all of it, else its parts. Returns
        whether the token that ended it stands there."""
        one, calls = self._said[number], bool(self._said[number].message.get("tool_calls"))
        if one.whole is not None and places and self._complete(one, places):
            ids = self._log[slice(*one.whole)]
            closer = ids[len(ids) - self._closed(ids) :]
            start = self._start(text, one, min(place[0] for place in places.values()), "thought" in places)
            end, stayed = _end(text, tokens, max(p[1] for p in places.values()), closer, anywhere=calls)
            if start is not None and (stayed or not calls):
                stays = ids if stayed else ids[: len(ids) - len(closer)]
                self._pieces.append(_Piece((start, end), stays, number, "whole"))
                return stayed
        if "thought" in places and one.thought is not None:
            self._pieces.append(_Piece(places["thought"], self._log[slice(*one.thought)], number, "thought"))
        if "answer" not in places or one.answer is None:
            return False
        last = one.answer[1] if one.whole is None else one.whole[1]
        closer = self._log[last - self._closed(self._log[one.answer[0] : last]) : last]
        ids = self._log[one.answer[0] : min(one.answer[1], last - len(closer))]
        (start, end), stayed = places["answer"], False
        if closer and not calls:
            end, stayed = _end(text, tokens, end, closer, anywhere=False)
        self._pieces.append(_Piece((start, end), [*ids, *closer] if stayed else ids, number, "answer"))
        return stayed

    def _closed(self, ids: Sequence[int]) -> int:
        return closed(self._tokenizer, self._traits, self._ends, ids)

    def _complete(self, one: Said, places: dict[Kind, Span]) -> bool:
        """Whether the template shows the whole answer."""
        thought = bool(one.message.get("reasoning_content")) and self._traits.thoughts != "text"
        calls = bool(one.message.get("tool_calls"))
        return (not thought or "thought" in places) and (not calls or "call" in places)

    def _start(self, text: str, one: Said, first: int, thought: bool) -> int | None:
        """The place where an answer begins: behind the prompt before it, which ends in `lead`, if the rendering has that
        before `first` with only white space between, or what the model wrote there too."""
        at = text.rfind(one.lead, 0, first) if one.lead else -1
        start = at + len(one.lead)
        if at < 0 or one.whole is None or (self._pieces and start < self._pieces[-1].place[1]):
            return None
        between = "".join(text[start:first].split())
        head = one.answer if not thought and self._traits.thoughts != "text" else None
        if head is not None:  # all that precedes the answer's own words must be there, an empty thought too
            said = self._tokenizer.decode(self._log[one.whole[0] : head[0]], special=True)
            return start if "".join(said.split()) == between else None
        said = self._tokenizer.decode(self._log[one.whole[0] : one.whole[0] + 4 * len(between) + 8], special=True)
        return start if "".join(said.split()).startswith(between) else None


def _end(text: str, tokens: Sequence[Token], last: int, closer: Sequence[int], *, anywhere: bool) -> tuple[int, bool]:
    """The place where an answer ends that the rendering shows up to `last`: behind the closing if the template writes
    that next (with `anywhere`: anywhere behind it), else at `last`; and whether it is the former."""
    if not closer:
        return last, False
    for at in range(bisect_left(tokens, last, key=lambda token: token.start), len(tokens)):
        if [token.id for token in tokens[at : at + len(closer)]] == list(closer):
            return tokens[at + len(closer) - 1].end, True
        if not anywhere and text[last : tokens[at].end].strip():
            break
    return last, False


def _moved(one: Said, spans: dict[Kind, Span]) -> Said:
    """A message whose ids stand at other places, or nowhere."""
    whole = spans.get("whole")
    if whole is None or one.whole is None:
        return Said(one.message, None, spans.get("thought"), spans.get("answer"), one.lead)
    by = whole[0] - one.whole[0]

    def shifted(part: Span | None) -> Span | None:
        return None if part is None else (part[0] + by, part[1] + by)

    return Said(one.message, whole, shifted(one.thought), shifted(one.answer), one.lead)
