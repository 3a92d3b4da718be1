"""What can be done with a process, as scripts: generate, stream, say, grow, end. Both faces run these.

Positions and lengths are tokens of the process's log. Everything about characters happens here and in text.py; the kernel
sees ids.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from syscalls.errno import Errno, SyscallError
from syscalls.records import Finish, ModelInfo, Pid, ReadResult, Sampler, Signal
from syscalls.table import (
    Decode,
    Feed,
    Getinfo,
    Kill,
    Models,
    Pagein,
    Read,
    Truncate,
    Wait,
)
from userland.sdk.chat import ChatFormat, Message
from userland.sdk.script import Piece, Script, Stream, ask
from userland.sdk.text import (
    BEFORE,
    Detokenizer,
    StopStrings,
    begins_apart,
    checked,
    decode_after,
    encode_after,
)
from userland.sdk.tokenizer import Tokenizer
from userland.sdk.tokenizer_files import load_tokenizer

T = TypeVar("T")

MAX_TOKENS = 256  # of an answer, where nothing else is said


@dataclass(slots=True, frozen=True)
class Language:
    """A model's words: its tokenizer, what ends a text, and (where it has one) its chat format."""

    model: ModelInfo
    tokenizer: Tokenizer
    chat: ChatFormat | None
    why_no_chat: str

    @property
    def stop_ids(self) -> list[int]:
        chat = self.chat.stop_ids() if self.chat else []
        return sorted({*self.model.eos_ids, *chat})

    def encode(self, text: str, *, begin: bool = False, control: bool = False) -> list[int]:
        """Ids of a text; `begin` adds what the tokenizer puts before a text (a BOS token, say). What spells a control
        token is that token only with `control`. Raises E2BIG, EINVAL for what no tokenizer should be given (see
        `text.checked`)."""
        checked(text, self.model.context)
        if text and not begin and begins_apart(self.tokenizer):
            return encode_after(self.tokenizer, text, control=control)
        return self.tokenizer.encode(text, control=control, begin=begin)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return self.tokenizer.decode(ids, special=special)

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Text of ids as they stand behind others."""
        return decode_after(self.decode, before, ids)

    def must_chat(self) -> ChatFormat:
        if self.chat is None:
            raise SyscallError(Errno.ENOTSUP, self.why_no_chat)
        return self.chat


def language_of(info: ModelInfo) -> Language:
    """Load a model's tokenizer. Raises ENOENT or EIO if there is none."""
    chat = _chat_of(info.path, info.name, info.context)
    known, why = (None, chat.reason) if isinstance(chat, SyscallError) else (chat, "")
    return Language(info, load_tokenizer(info.path), known, why)


@functools.lru_cache(maxsize=16)
def _chat_of(path: str, name: str, window: int) -> ChatFormat | SyscallError:
    """A model's chat format, or why it has none."""
    tokenizer = load_tokenizer(path)
    try:
        return ChatFormat(tokenizer, name, window)
    except SyscallError as error:  # a template that is broken or missing matters to whoever wants to chat
        return error


def model_of(name: str, dtype: str = "", device: str = "") -> Script[ModelInfo]:
    """A model, brought into memory if it is not there."""
    return ask(Pagein(name, device, dtype))


def model_in_memory(name: str, device: str = "") -> Script[ModelInfo]:
    """The row of a model that some process runs, on that device (empty: any), its weights in memory, out, or on their way
    back. One that the driver has yet to tell of, as after a boot from the journal, is waited for. ENOENT: there is none
    of that name or path."""
    rows = yield from ask(Models())
    there = [
        row for row in rows if row.device and name in (row.name, row.path) and device in ("", row.device)
    ]
    for row in there:
        if row.vocab:
            return row
    for row in there:
        return (yield from ask(Pagein(row.path, row.device, row.dtype)))
    raise SyscallError(Errno.ENOENT, f"no model {name!r} is in memory; `models` lists them")


def log_of(pid: int, position: int = 0) -> Script[list[int]]:
    """The token log from a position to its present end, without waiting for more."""
    info = yield from ask(Getinfo(pid))
    if position >= info.length:
        return []
    result = yield from ask(Read(pid, position))
    return list(result.tokens)


def before(language: Language, pid: int, position: int) -> Script[list[int]]:
    """The ids before a position that its text depends on; none for tokenizers where it does not."""
    if position == 0 or not begins_apart(language.tokenizer):
        return []
    start = max(0, position - BEFORE)
    result = yield from ask(Read(pid, start, limit=position - start))
    return list(result.tokens)


def settle(pid: int, position: int) -> Script[ReadResult]:
    """Wait until the process has ended its decode; what it appended from `position` on."""
    tokens: list[int] = []
    while True:
        result: ReadResult = yield from ask(Read(pid, position + len(tokens)))
        tokens.extend(result.tokens)
        if not result.decoding:
            return ReadResult(position, tokens, False, result.finish, result.state, result.length)


def follow(language: Language, pid: int, position: int, stops: Sequence[str] = ()) -> Stream[Finish]:
    """The text of a decode under way, piece by piece, from a position of the log.

    At a stop string the decode is interrupted and the log cut to the text before it.
    """
    lead = yield from before(language, pid, position)
    detokenizer, watch = Detokenizer(language.decode, lead), StopStrings(stops)
    ids: list[int] = []
    while True:
        result: ReadResult = yield from ask(Read(pid, position + len(ids)))
        ids.extend(result.tokens)
        text = watch.push(detokenizer.push(result.tokens))
        last = not result.decoding and position + len(ids) >= result.length
        if last and not watch.stopped:
            text += watch.push(detokenizer.flush())
            text += watch.flush()
        if text:
            yield Piece(text)
        if watch.stopped:
            yield from _cut(language, pid, position, lead, watch.given)
            return Finish.STOP
        if last:
            yield from _failures(pid, result.finish)
            return result.finish


def _interrupting(pid: int, stream: Stream[T]) -> Stream[T]:
    """A stream of a decode that was begun for it: an error on the way (a tokenizer's, say) does not leave it decoding."""
    try:
        return (yield from stream)
    except GeneratorExit:  # whoever runs the script interrupts
        raise
    except Exception:
        with suppress(SyscallError):  # it has gone, or the kernel has
            yield from ask(Kill(pid, Signal.INT))
        raise


def _failures(pid: int, finish: Finish) -> Script[None]:
    """Raise what ended a decode that could not come to its end; what its text so far is the process still has."""
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


def _cut(language: Language, pid: int, position: int, lead: Sequence[int], characters: int) -> Script[None]:
    """Interrupt, and cut the log so that from `position` on it says just the first `characters`."""
    yield from ask(Kill(pid, Signal.INT))
    settled = yield from settle(pid, position)
    ids = settled.tokens
    text = language.decode_after(lead, ids)[:characters]
    keep = len(ids)
    while keep and not text.startswith(language.decode_after(lead, ids[:keep])):
        keep -= 1
    yield from ask(Truncate(pid, position + keep))
    rest = text[len(language.decode_after(lead, ids[:keep])) :]
    if rest:  # the stop string began inside a token
        yield from ask(Feed(pid, language.encode(rest)))


def stream(
    language: Language,
    pid: int,
    max_tokens: int,
    stops: Sequence[str] = (),
    sampler: Sampler | None = None,
    deadline: float | None = None,
) -> Stream[Finish]:
    """Let the process go on, giving the text as it comes."""
    started = yield from ask(
        Decode(pid, max_tokens, language.stop_ids, sampler=sampler, deadline=deadline, wait=False)
    )
    return (yield from _interrupting(pid, follow(language, pid, started.position, stops)))


def generate(
    language: Language,
    pid: int,
    max_tokens: int,
    stops: Sequence[str] = (),
    sampler: Sampler | None = None,
    deadline: float | None = None,
) -> Script[str]:
    """Let the process go on; the whole text at the end."""
    if stops:
        try:
            return (yield from _joined(stream(language, pid, max_tokens, stops, sampler, deadline)))
        except (SyscallError, GeneratorExit):
            raise
        except BaseException:  # Ctrl-C, cancellation: nobody waits for the rest
            yield from ask(Kill(pid, Signal.INT))
            raise
    result = yield from ask(Decode(pid, max_tokens, language.stop_ids, sampler=sampler, deadline=deadline))
    yield from _failures(pid, result.finish)
    lead = yield from before(language, pid, result.position)
    return language.decode_after(lead, result.tokens)


def _joined(pieces: Stream[Finish]) -> Script[str]:
    """A stream as a script: its pieces together."""
    text: list[str] = []
    try:
        request = next(pieces)
        while True:
            if isinstance(request, Piece):
                text.append(request.text)
                request = next(pieces)
                continue
            try:
                result = yield request
            except SyscallError as error:
                request = pieces.throw(error)
            else:
                request = pieces.send(result)
    except StopIteration:
        return "".join(text)


def ask_next(language: Language, pid: int, text: str, system: str = "") -> Script[int]:
    """Feed a user's text as the next turn of the conversation; returns the length of the log."""
    chat = language.must_chat()
    info = yield from ask(Getinfo(pid))
    if info.length == 0:
        ids = chat.first(conversation(text, system))
    else:
        end = yield from log_of(pid, max(0, info.length - chat.close_length))
        opened = chat.opening(system) if system else []
        only_opened = bool(opened) and info.length == len(opened)
        ids = chat.after_opening(system, text) if only_opened else chat.next(text, end)
    return (yield from ask(Feed(pid, ids)))


def conversation(text: str, system: str = "") -> list[Message]:
    """The messages of a first question."""
    head: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": text}]


def say(
    language: Language,
    pid: int,
    text: str,
    max_tokens: int,
    stops: Sequence[str] = (),
    sampler: Sampler | None = None,
    system: str = "",
    deadline: float | None = None,
) -> Stream[Finish]:
    """Say something to the process and stream its answer. If it may not answer, its context is as it was."""
    turn = ask_next(language, pid, text, system)
    position = yield from begin_answer(language, pid, turn, max_tokens, sampler, deadline)
    return (yield from _interrupting(pid, follow(language, pid, position, stops)))


def begin_answer(
    language: Language,
    pid: int,
    turn: Script[int],
    max_tokens: int,
    sampler: Sampler | None = None,
    deadline: float | None = None,
) -> Script[int]:
    """Feed what `turn` feeds and let the process go on; returns the position where its answer begins.

    If the decode is refused (EDQUOT, E2BIG, ...) what was fed is taken back, unless others have changed the log since.
    """
    before_turn = yield from ask(Getinfo(pid))
    length = yield from turn
    decode = Decode(pid, max_tokens, language.stop_ids, sampler=sampler, deadline=deadline, wait=False)
    try:
        started = yield from ask(decode)
    except SyscallError:
        yield from _take_back(pid, length, before_turn.length)
        raise
    return started.position


def _take_back(pid: int, length: int, to: int) -> Script[None]:
    """Cut a log of `length` tokens down `to` fewer; one of another length is left alone."""
    try:
        info = yield from ask(Getinfo(pid))
        if info.length == length and not info.decoding:
            yield from ask(Truncate(pid, to))
    except SyscallError as error:
        if error.errno not in (Errno.ESRCH, Errno.EBUSY, Errno.EPIPE):  # gone, or another's turn now
            raise


def end(pids: Sequence[Pid], signal: Signal = Signal.KILL) -> Script[None]:
    """End processes of this program and reap them; those that have gone already are passed over."""
    for pid in pids:
        try:
            yield from ask(Kill(pid, signal))
        except SyscallError as error:
            if error.errno is not Errno.ESRCH:
                raise
        try:
            yield from ask(Wait(pid))
        except SyscallError as error:
            if error.errno is not Errno.ECHILD:  # another's, detached, or reaped already
                raise
