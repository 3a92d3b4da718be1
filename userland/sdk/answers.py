"""The answers of a process, as scripts: stream the text up to a stop string, with thoughts and calls told apart.

Positions and lengths are in tokens of the process's log. A stop string that is one added token is a stop id; one that
contains a special token is looked for in text with the special tokens in it. Both are looked for in the answer, not in
thoughts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish, ReadResult, Sampler, Signal
from llmasos.syscalls.table import Decode, Feed, Getinfo, Kill, Read, Truncate
from llmasos.userland.sdk.actions import Language, before, until_idle
from llmasos.userland.sdk.heard import Ear, reader_for
from llmasos.userland.sdk.script import Piece, Script, Stream, ask, interrupt
from llmasos.userland.sdk.text import StopStrings
from llmasos.userland.sdk.thoughts import Part, Reader

T = TypeVar("T")

_SIGNS = 0x100000  # private use characters stand for special tokens in text that is searched for stop strings


@dataclass(slots=True, frozen=True)
class Stops:
    """Stop strings in the form in which they are looked for: `ids`, for those that are one token; `texts`, with signs in
    place of special tokens; and the special tokens that must be passed on as signs."""

    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    signs: dict[str, str] = field(default_factory=dict)

    def without_signs(self, text: str) -> str:
        """A text as the consumer gets it, without special tokens."""
        for sign in self.signs.values():
            text = text.replace(sign, "")
        return text

    def spelled(self, text: str) -> str:
        """A text with its special tokens as they are written."""
        for token, sign in self.signs.items():
            text = text.replace(sign, token)
        return text


def stops_of(language: Language, stops: Sequence[str]) -> Stops:
    """Stop strings in a model's vocabulary."""
    if not stops:
        return Stops()
    added = {token.content: i for i, token in language.tokenizer.added.items()}
    special = [language.tokenizer.added[i].content for i in sorted(language.tokenizer.special_ids)]
    signs = {token: chr(_SIGNS + number) for number, token in enumerate(special) if number < 0xFFFD}
    texts, used = list[str](), dict[str, str]()
    for stop in stops:
        if stop in added:
            continue
        for token in sorted(special, key=len, reverse=True):
            if token in stop and token in signs:
                stop, used[token] = stop.replace(token, signs[token]), signs[token]
        texts.append(stop)
    return Stops(tuple(added[stop] for stop in stops if stop in added), tuple(texts), used)


@dataclass(slots=True)
class Listening:
    """How to listen to an answer from `position` of the log on. `reader` makes readers for it; `ends` are the stop ids of
    its decode that are no text. After `budget` tokens of thought, feed `way`, and decode the rest of `left`. `undo` takes
    back the turn that it answers, if it has not begun."""

    position: int
    reader: Callable[[], Reader]
    ends: frozenset[int] = frozenset()
    stops: Stops = field(default_factory=Stops)
    budget: int = -1
    way: Sequence[int] = ()
    left: int = 0
    decode: Decode | None = None
    undo: Callable[[], Script[None]] | None = None


@dataclass(slots=True, frozen=True)
class Ended:
    """How an answer ended: `position`, where it begins in the log; `tokens` that it has there."""

    finish: Finish
    position: int
    tokens: int


def plain() -> Reader:
    """A reader of text that tells nothing apart."""
    return reader_for(None, (), {}, "")


def ends_of(language: Language, stop_ids: Sequence[int]) -> frozenset[int]:
    """The stop ids that are no text: added tokens."""
    return frozenset(i for i in stop_ids if i in language.tokenizer.added)


def follow(language: Language, pid: int, listening: Listening) -> Stream[Ended]:
    """The parts of a decode under way, piece by piece.

    At a stop string, interrupts the decode and cuts the log to the text before the string.
    """
    lead = yield from before(language, pid, listening.position)
    stops, start = listening.stops, listening.position
    ear, watch = Ear(language.tokenizer, listening.reader(), lead, stops.signs), StopStrings(stops.texts)
    ids: list[int] = []
    while True:
        result: ReadResult = yield from ask(Read(pid, start + len(ids)))
        ids.extend(result.tokens)
        last = not result.decoding and start + len(ids) >= result.length
        parts: list[Part] = []
        for i, token in enumerate(result.tokens, 1):
            if token not in listening.ends or i < len(result.tokens) or not last:
                parts += ear.push(token)
        goes_on = last and result.finish is Finish.LENGTH and listening.left > 0
        if last and not goes_on:
            parts += ear.flush()
        yield from _given(parts, watch, stops, last=last and not goes_on)
        if watch.stopped:
            left = yield from _cut(language, pid, listening, lead, watch.given)
            return Ended(Finish.STOP, start, left - start)
        if goes_on and listening.decode is not None:
            if ear.reader.thinking and listening.way:
                yield from ask(Feed(pid, list(listening.way)))
                for token in listening.way:
                    yield from _given(ear.push(token), watch, stops, last=False)
                ids.extend(listening.way)
            left, listening.left = listening.left, 0
            yield from ask(_more(listening.decode, left))
            continue
        if last:
            yield from failures(pid, result.finish)
            if result.finish is Finish.STOP and ids and ids[-1] in stops.ids:
                ids.pop()
                yield from ask(Truncate(pid, start + len(ids)))
            return Ended(result.finish, start, len(ids))


def _more(decode: Decode, tokens: int) -> Decode:
    """The decode of `tokens` more that continues `decode`."""
    return Decode(decode.pid, tokens, decode.stop_ids, deadline=decode.deadline, wait=False)


def _given(parts: Sequence[Part], watch: StopStrings, stops: Stops, *, last: bool) -> Stream[None]:
    """The pieces of these parts; of the answer's text, as much as is certain."""
    for part in parts:
        if part.kind != "answer":
            if not watch.stopped:
                yield Piece(part.text, part.kind, part.call)
        elif text := stops.without_signs(watch.push(part.text)):
            yield Piece(text)
    if last and not watch.stopped and (text := stops.without_signs(watch.flush())):
        yield Piece(text)


def interrupting(pid: int, stream: Stream[T]) -> Stream[T]:
    """A stream that owns a decode: an error on the way (a tokenizer's, say) interrupts the decode."""
    try:
        return (yield from stream)
    except GeneratorExit:  # the runner of the script interrupts
        raise
    except Exception:  # whatever it is, it is raised again
        with suppress(SyscallError):  # the process has ended, or the kernel has
            yield from ask(Kill(pid, Signal.INT))
        raise


def failures(pid: int, finish: Finish) -> Script[None]:
    """Raise the error that ended a decode early. The text so far stays in the log."""
    if finish not in (Finish.ERROR, Finish.KILLED):
        return
    try:
        info = yield from ask(Getinfo(pid))
    except SyscallError as error:
        if error.errno is not Errno.ESRCH:
            raise
        raise SyscallError(Errno.ESRCH, f"process {pid} was ended while it decoded, and is gone") from None
    if finish is Finish.KILLED:
        raise SyscallError(Errno.ESRCH, f"process {pid} was ended while it decoded: {info.reason}")
    raise SyscallError(info.errno or Errno.EIO, info.reason or "the decode failed; the kernel log says why")


def _cut(language: Language, pid: int, listening: Listening, lead: Sequence[int], characters: int) -> Script[int]:
    """Interrupt, and cut the log so that its answer has just the first `characters`; returns its length then."""
    yield from ask(Kill(pid, Signal.INT))
    ended = yield from until_idle(pid, listening.position)
    ids = ended.tokens

    def said(count: int) -> str:
        ear = Ear(language.tokenizer, listening.reader(), lead, listening.stops.signs)
        parts = [part for i in ids[:count] for part in ear.push(i)] + ear.flush()
        return "".join(part.text for part in parts if part.kind == "answer")

    text = said(len(ids))[:characters]
    low, high = 0, len(ids)  # the most ids whose text is no longer
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text.startswith(said(middle)) else (low, middle - 1)
    yield from ask(Truncate(pid, listening.position + low))
    length = listening.position + low
    rest = text[len(said(low)) :]
    if rest:  # the stop string began inside of a token
        control = stops_in(rest, listening.stops)
        again = language.encode(listening.stops.spelled(rest), control=control)
        yield from ask(Feed(pid, again))
        length += len(again)
    return length


def stops_in(text: str, stops: Stops) -> bool:
    """Whether a text has signs of special tokens in it."""
    return any(sign in text for sign in stops.signs.values())


def stream(
    language: Language,
    pid: int,
    max_tokens: int,
    stops: Sequence[str] = (),
    sampler: Sampler | None = None,
    deadline: float | None = None,
) -> Stream[Ended]:
    """Let the process continue its log, and stream the text."""
    wanted = stops_of(language, stops)
    stop_ids = sorted({*language.stop_ids, *wanted.ids})
    started = yield from ask(Decode(pid, max_tokens, stop_ids, sampler=sampler, deadline=deadline, wait=False))
    listening = Listening(started.position, plain, ends_of(language, stop_ids), wanted)
    return (yield from interrupting(pid, follow(language, pid, listening)))


def generate(
    language: Language,
    pid: int,
    max_tokens: int,
    stops: Sequence[str] = (),
    sampler: Sampler | None = None,
    deadline: float | None = None,
) -> Script[str]:
    """Let the process continue its log, and return the whole text."""
    stop_ids = language.stop_ids
    try:
        if stops:
            pieces, _ = yield from gathered(stream(language, pid, max_tokens, stops, sampler, deadline))
            return "".join(piece.text for piece in pieces)
        result = yield from ask(Decode(pid, max_tokens, stop_ids, sampler=sampler, deadline=deadline))
    except (SyscallError, GeneratorExit):
        raise
    except BaseException:  # Ctrl-C, cancellation: the decode has lost its caller
        yield from interrupt(pid)
        raise
    yield from failures(pid, result.finish)
    lead = yield from before(language, pid, result.position)
    ended = bool(result.tokens) and result.tokens[-1] in ends_of(language, stop_ids)
    return language.decode_after(lead, result.tokens[:-1] if ended else result.tokens)


def gathered(stream: Stream[T]) -> Script[tuple[list[Piece], T]]:
    """The pieces of a stream, as one list, and what it returns: a stream made into a script."""
    pieces: list[Piece] = []
    try:
        request = next(stream)
        while True:
            if isinstance(request, Piece):
                pieces.append(request)
                request = next(stream)
                continue
            try:
                result = yield request
            except GeneratorExit:  # it may make no more calls
                stream.close()
                raise
            except BaseException as error:  # it is the stream's
                request = stream.throw(error)
            else:
                request = stream.send(result)
    except StopIteration as end:
        return pieces, end.value
