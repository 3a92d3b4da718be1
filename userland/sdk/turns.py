"""Conversations with processes, as scripts: feed messages by the chat template, and follow the answer.

A conversation's roles, tools and messages are stored with the process (dialogue.py), so another program, a fork or a
restored image goes on with it. A turn that cannot be fed or answered leaves the log as it was.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish, LogRecord, Sampler
from llmasos.syscalls.table import Decode, Feed, Getinfo, Records, Truncate
from llmasos.userland.sdk.actions import MAX_TOKENS, Language, idle, log_of
from llmasos.userland.sdk.answers import Ended, Listening, ends_of, follow, gathered, interrupting, plain, stops_of
from llmasos.userland.sdk.arguments import count, text
from llmasos.userland.sdk.chat import Turn
from llmasos.userland.sdk.dialogue import Dialogue, Entry, Message, Setup, dialogue, packed, setup_in
from llmasos.userland.sdk.heard import reader_for
from llmasos.userland.sdk.script import (
    CLEANUP_SECONDS,
    Listener,
    Piece,
    Request,
    Script,
    Stream,
    ask,
    interrupt,
)
from llmasos.userland.sdk.template import special
from llmasos.userland.sdk.tool_calls import BadCall, ToolCall, schemas_of

T = TypeVar("T")
Y = TypeVar("Y")
Left = Callable[[], bool]  # whether the consumer of a turn has left it, so that the turn is about to end


@dataclass(slots=True)
class Answer:
    """What a model said in one turn."""

    text: str = ""  # the answer, without thoughts and calls
    thought: str = ""  # what it thought before it answered
    calls: list[ToolCall] = field(default_factory=list)  # of tools, in their order
    bad: list[BadCall] = field(default_factory=list)  # what it meant as calls and is none
    hint: str = ""  # of a conversation near its window: what to do
    finish: Finish = Finish.NONE  # why it ended: STOP by itself; LENGTH, BUDGET and CONTEXT cut it short
    tokens: int = 0  # that it has in the log, thoughts and its end included
    prompt_tokens: int = 0  # of the log before it: all that the model has read


@dataclass(slots=True, frozen=True)
class Fed:
    """What a turn has done to the log, and how to undo it."""

    length: int  # of the log now
    keep: int  # of the old log, tokens that stayed
    setup: Setup | None = None
    lead: str = ""  # the end of the prompt, which the model continues
    log: list[int] = field(default_factory=list)  # the old tokens behind `keep`
    records: list[LogRecord] = field(default_factory=list)  # the old records behind `keep`


@dataclass(slots=True, frozen=True)
class Known:
    """The conversation of a process as far as its records tell it; its records, and its log if there are records."""

    dialogue: Dialogue | None
    records: list[LogRecord]
    length: int
    log: list[int]


def known_of(pid: int) -> Script[Known]:
    """The conversation of a process, from its records."""
    info = yield from ask(Getinfo(pid))
    if not info.record_bytes:
        return Known(None, [], info.length, [])
    found = yield from ask(Records(pid))
    log = yield from log_of(pid)
    return Known(dialogue(found.records, log), found.records, len(log), log)


def messages(language: Language, pid: int) -> Script[list[Message]]:
    """What was said in a conversation, the answer under way too."""
    there = yield from known_of(pid)
    known = there.dialogue
    if known is None:
        return []
    said = [dict(one.message) for one in known.said]
    if known.asked or len(there.log) > known.end:
        said.append(dict(language.must_chat(known.setup.template).answered(known, there.log).message))
    return said


def cut(pid: int, length: int) -> Script[int]:
    """Cut the log down to `length` tokens. The template's variables stay, even if nothing else does."""
    setup = None
    if length == 0:
        with suppress(SyscallError):  # a record that cannot be read goes too
            setup = setup_in((yield from ask(Records(pid))).records)
    left = yield from ask(Truncate(pid, length))
    if setup is not None:
        yield from ask(Feed(pid, [], [packed(Entry(setup=setup))]))
    return left


def say_next(
    language: Language,
    pid: int,
    messages: Sequence[Message],
    system: str = "",
    setup: Setup | None = None,
    *,
    allow_special: bool = False,
) -> Script[Fed]:
    """Feed messages as the next turn of the conversation. `system` and `setup` are for a conversation that begins. With
    `allow_special`, control tokens that the messages spell are control tokens."""
    there = yield from known_of(pid)
    known, length, log = there.dialogue, there.length, there.log
    begun = known.setup if known is not None else setup
    chat = language.must_chat(begun.template if begun else None)
    # What was fed before the conversation began stays, and so does the rest of a question that was cut.
    if length and (known is None or not known.said or (known.cut and not known.asked)):
        begun = known.setup if known is not None else None
        end = log or (yield from log_of(pid, max(0, length - chat.close_length)))
        ids = chat.continued(end, [special(dict(m)) for m in messages] if allow_special else messages, begun)
        return Fed((yield from ask(Feed(pid, ids))), length, begun)
    first = system or (begun.system if begun is not None and not instructs(messages) else "")
    head: list[Message] = [{"role": "system", "content": first}] if first else []
    if known is None:
        turn = chat.begin([*head, *messages], setup or Setup(now=time.time()), allow_special=allow_special)
        setup = turn.entry.setup
    else:
        told = messages if known.said else [*head, *messages]
        turn, setup = chat.next(known, log, told, allow_special=allow_special), known.setup
    return (yield from _fed(pid, turn, setup, log, there.records))


def instructs(messages: Sequence[Message]) -> bool:
    """Whether they begin with instructions (a system or developer message)."""
    return bool(messages) and messages[0].get("role") in ("system", "developer")


def text_next(language: Language, pid: int, text: str) -> Script[Fed]:
    """Feed plain text to continue, for a model without a chat template."""
    there = yield from known_of(pid)
    setup = there.dialogue.setup if there.dialogue is not None else None
    return Fed((yield from ask(Feed(pid, language.encode(text)))), there.length, setup)


class Talking(dict[int, Left]):
    """The processes whose answers a program hears. The answers of those in `shown` a notebook hears, to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: set[int] = set()


def alone(talking: Talking, pid: int, script: Generator[Y, Any, T]) -> Generator[Y | Request, Any, T]:
    """Run a script that has a process to itself: a turn is several calls, and no other turn may come between them.
    Raises EBUSY if this program hears an answer of it (`talking`); waits for a turn that its consumer has left, and for
    one that a notebook shows, since nobody else can."""
    mine: Left = yield Listener()
    until = time.monotonic() + CLEANUP_SECONDS
    while (other := talking.get(pid)) is not None:
        if pid in talking.shown:
            yield from idle(pid)
        elif not other() or time.monotonic() >= until:
            break
        yield from ask(Getinfo(pid))
    mine = partial(mine)  # so that no other one is identical
    try:
        if talking.setdefault(pid, mine) is not mine:
            raise SyscallError(
                Errno.EBUSY,
                f"this program is talking to process {pid} already; hear that answer to its end (or close it) first, or "
                "fork the process and talk to each",
            )
        return (yield from script)
    finally:  # Ctrl-C arrives in calls of functions, and there is none here
        if pid in talking and talking[pid] is mine:
            del talking[pid]


def _fed(pid: int, turn: Turn, setup: Setup | None, log: list[int], records: list[LogRecord]) -> Script[Fed]:
    """Carry out a turn; after an error the log is as it was."""
    cut = [record for record in records if record.position >= turn.keep]
    was = Fed(len(log), turn.keep, setup, turn.entry.lead, log[turn.keep :], cut)
    try:
        if turn.keep < len(log):
            yield from ask(Truncate(pid, turn.keep))
        length = yield from ask(Feed(pid, turn.ids, [packed(turn.entry)]))
    except GeneratorExit:  # it may make no more calls
        raise
    except SyscallError:
        yield from _undo(pid, was, (turn.keep,))
        raise
    except BaseException:  # Ctrl-C, cancellation: the kernel may have done it already
        yield from _undo(pid, was, (turn.keep, turn.keep + len(turn.ids)))
        raise
    return Fed(length, turn.keep, setup, turn.entry.lead, was.log, cut)


def rewrite(pid: int, ids: list[int], entry: Entry, there: Known) -> Script[int]:
    """Make a conversation another one; returns the log's length. After an error the log is as it was."""
    fed = yield from _fed(pid, Turn(0, ids, entry), entry.setup, there.log, there.records)
    return fed.length


def _undo(pid: int, was: Fed, lengths: Sequence[int]) -> Script[None]:
    """Make the log what it was before a turn, if it has one of these lengths; else another program has changed it
    since."""
    try:
        info = yield from ask(Getinfo(pid))
        if info.length in lengths and not info.decoding:
            yield from ask(Truncate(pid, was.keep))  # the records at its end go too
            yield from _put_back(pid, was)
    except SyscallError as error:
        if error.errno not in (Errno.ESRCH, Errno.EBUSY, Errno.EPIPE):  # ended, or in another program's turn now
            raise


def _put_back(pid: int, was: Fed) -> Script[None]:
    """Feed the cut tokens again, with their records where they were."""
    marks = sorted({was.keep, *(record.position for record in was.records), was.keep + len(was.log)})
    for start, end in itertools.pairwise([*marks, marks[-1]]):
        data = [record.data for record in was.records if record.position == start]
        if data or end > start:
            yield from ask(Feed(pid, was.log[start - was.keep : end - was.keep], data))


def undo(pid: int, fed: Fed) -> Script[None]:
    """Make the log what it was before a turn, unless another program has changed it since."""
    yield from _undo(pid, fed, (fed.length,))


def begin_answer(
    language: Language,
    pid: int,
    turn: Script[Fed],
    max_tokens: int | None,
    stops: Sequence[str] = (),
    sampler: Sampler | None = None,
    deadline: float | None = None,
) -> Script[Listening]:
    """Feed what `turn` feeds, start the decode, and return how to listen to its answer. Without `max_tokens` or stop
    strings, the process's own defaults hold.

    If the decode is refused (EDQUOT, E2BIG, ...), takes the feed back, unless another program has changed the log since.
    """
    given = None if max_tokens is None else count(max_tokens, "max_tokens")
    wanted = stops_of(language, stops)
    fed = yield from turn
    setup = fed.setup or Setup()
    max_tokens = setup.tokens(given, MAX_TOKENS, language.model.context)
    wanted = wanted if stops else stops_of(language, setup.stop)
    listening = listening_to(language, fed.length, fed.setup, fed.lead)
    listening.stops = wanted
    stop_ids = sorted({*language.stops(fed.setup), *wanted.ids})
    listening.ends = ends_of(language, stop_ids)
    first = max_tokens if listening.budget < 0 else min(max_tokens, max(1, listening.budget))
    listening.left = max_tokens - first
    decode = Decode(pid, first, stop_ids, sampler=sampler, deadline=deadline, wait=False)
    listening.decode = decode
    listening.undo = partial(undo, pid, fed)
    try:
        yield from ask(decode)
    except GeneratorExit:  # the runner of the script interrupts
        raise
    except Exception:
        yield from undo(pid, fed)
        raise
    except BaseException:  # Ctrl-C, cancellation: it may have begun, and nobody has heard of it
        yield from interrupt(pid)
        yield from undo(pid, fed)
        raise
    return listening


def listening_to(language: Language, position: int, setup: Setup | None, lead: str) -> Listening:
    """How to listen to an answer at a position, to a prompt that ends in `lead`."""
    chat = language.chat_of(setup.template) if setup is not None else None
    if setup is None or chat is None:
        return Listening(position, plain)
    traits, schemas = chat.traits(setup), schemas_of(setup.tools or ())
    marks = traits.marks
    listening = Listening(position, lambda: reader_for(marks, traits.formats, schemas, lead))
    if setup.thought_tokens >= 0 and marks is not None:
        listening.budget = setup.thought_tokens
        listening.way = language.encode(marks.way, control=True)
    return listening


def say(
    language: Language,
    pid: int,
    messages: Sequence[Message],
    max_tokens: int | None,
    stops: Sequence[str] = (),
    sampler: Sampler | None = None,
    system: str = "",
    deadline: float | None = None,
    *,
    allow_special: bool = False,
) -> Stream[Ended]:
    """Say something to the process and stream its answer. If it may not answer, or its consumer leaves before it has
    begun, its context is as it was."""
    turn = say_next(language, pid, messages, system, allow_special=allow_special)
    listening = yield from begin_answer(language, pid, turn, max_tokens, stops, sampler, deadline)
    try:
        return (yield from interrupting(pid, follow(language, pid, listening)))
    except (Exception, GeneratorExit):
        raise
    except BaseException:  # Ctrl-C, cancellation, no more time
        yield from interrupt(pid)
        if listening.undo is not None:
            yield from listening.undo()
        raise


def follow_at(language: Language, pid: int, position: int) -> Stream[Ended]:
    """Stream the text from a position of the log to the end of the decode under way. If an answer begins there, its
    thoughts and calls are told apart."""
    known = (yield from known_of(pid)).dialogue
    listening = Listening(position, plain)
    if known is not None and known.asked and known.end == position:
        listening = listening_to(language, position, known.setup, known.lead)
        listening.budget = -1
        listening.ends = ends_of(language, language.stops(known.setup))
    return (yield from follow(language, pid, listening))


def answered(stream: Stream[Ended]) -> Script[Answer]:
    """A whole answer."""
    pieces, ended = yield from gathered(stream)
    answer = answer_of(pieces)
    answer.finish, answer.tokens, answer.prompt_tokens = ended.finish, ended.tokens, ended.position
    return answer


def answer_of(pieces: Sequence[Piece]) -> Answer:
    """The pieces of an answer, put together."""
    answer = Answer()
    for piece in pieces:
        if piece.kind == "thought":
            answer.thought += piece.text
        elif piece.kind == "answer":
            answer.text += piece.text
        elif isinstance(piece.call, ToolCall):
            answer.calls.append(piece.call)
        elif piece.call is not None:
            answer.bad.append(piece.call)
    return answer


def results_of(results: Sequence[tuple[ToolCall, str]]) -> list[Message]:
    """The results of tools, as messages. Raises EINVAL if there are none, and for what is no call."""
    pairs = list(results)
    if not pairs:
        raise SyscallError(Errno.EINVAL, "there are no results to reply with; each is a pair of a call and its result")
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], ToolCall)):
            raise SyscallError(
                Errno.EINVAL,
                f"a result is a pair: a call (ToolCall, of an answer's `calls`) and what came of it; found {pair!r:.60}",
            )
    return [result_of(call, text(result), i) for i, (call, result) in enumerate(pairs)]


def result_of(call: ToolCall, result: str, number: int = 0) -> Message:
    """The result of a tool, as a message."""
    return {
        "role": "tool",
        "name": call.name,
        "tool_call_id": call.id or f"call{number:05d}",
        "content": result,
    }
