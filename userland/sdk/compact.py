"""Conversations near their window: a hint that it comes, and compaction, which lets them go on.

What other systems do in the program (drop the oldest, or have them summarised), done with a process's own template: the
outcome is a conversation as if it had been held so, and any program can go on with it. Everything that can fail is done
before the log is touched; then the log is cut and fed in one turn, which is taken back if the feed is refused
(turns.rewrite).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Getinfo, Spawn
from llmasos.userland.sdk import actions, turns
from llmasos.userland.sdk.actions import Language
from llmasos.userland.sdk.chat import ChatFormat
from llmasos.userland.sdk.dialogue import Entry, Message, Setup, packed
from llmasos.userland.sdk.script import Script, ask

T = TypeVar("T")
Y = TypeVar("Y")

NEAR = 0.85  # of the window
SUMMARY_PART = 8  # a summary takes at most this part of the window, and
SUMMARY_TOKENS = 512  # so many tokens
ASKED = "Summarise our conversation so far in a few sentences: who I am, what was said, and what was decided."


def hint_of(length: int, window: int) -> str:
    """What to tell of a log of `length` tokens in a window of `window`; empty while there is room."""
    if not window or length < NEAR * window:
        return ""
    return (
        f"the conversation has {length} of {window} tokens; `compact` makes room by the model's own summary of its older "
        "turns, or drops them"
    )


def hinting(stream: Generator[Y, Any, T], pid: int, tell: Callable[[str], None]) -> Generator[Any, Any, T]:
    """A stream that calls `tell` with the hint of the log that it leaves behind."""
    found = yield from stream
    with suppress(SyscallError):  # a process that was spawned `once` has ended
        info = yield from ask(Getinfo(pid))
        tell(hint_of(info.length, info.context))
    return found


def compacted(language: Language, pid: int, drop: bool | int, keep: int) -> Script[int]:
    """Make room in a conversation; returns the log's new length. See `Process.compact`."""
    if keep < 0:
        raise SyscallError(Errno.EINVAL, f"keep: 0 or more turns, found {keep}")
    if drop is not True and drop is not False and drop < 1:
        raise SyscallError(Errno.EINVAL, f"drop: True, or 1 or more turns, found {drop}")
    there = yield from turns.known_of(pid)
    row = yield from ask(Getinfo(pid))
    if row.decoding:
        raise SyscallError(Errno.EBUSY, f"process {pid} ({row.name}) is decoding; wait for that, or interrupt it first")
    known = there.dialogue
    if known is None or not known.said or (known.cut and not known.asked):
        raise SyscallError(
            Errno.EINVAL, f"process {pid} ({row.name}) holds no conversation; `truncate` cuts a log of plain text"
        )
    chat = language.must_chat(known.setup.template)
    said = [one.message for one in known.said]
    if known.asked or len(there.log) > known.end:
        said.append(chat.answered(known, there.log).message)
    head, talks = parted(said)
    most = len(talks) - keep if isinstance(drop, bool) else min(drop, len(talks) - keep)
    if most < 1:
        raise SyscallError(
            Errno.EINVAL,
            f"there is nothing to compact: the turns of the conversation are {len(talks)}, and the last {keep} stay",
        )
    older, kept = talks[:most], talks[most:]
    lead: list[Message] = []
    if drop is False:
        text = yield from _summary(language, chat, row.group, known.setup, head, older)
        lead = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": text}]
    messages = [*head, *lead, *(message for talk in kept for message in talk)]
    turn = chat.begin(messages, known.setup) if messages else None
    if turn is None:
        ids, entry = [], Entry(setup=known.setup)
    else:
        ids, entry = turn.ids, turn.entry
    if len(ids) >= len(there.log):
        raise SyscallError(
            Errno.EINVAL,
            f"nothing would be won: {len(there.log)} tokens would become {len(ids)}; keep fewer turns, or drop them",
        )
    yield from _unchanged(pid, len(there.log))
    return (yield from turns.rewrite(pid, ids, entry, there))


def parted(said: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The instructions at the beginning of a conversation, and its turns: each begins with what a user says."""
    start = next((i for i, one in enumerate(said) if one.get("role") not in ("system", "developer")), len(said))
    talks: list[list[Message]] = []
    for message in said[start:]:
        if message.get("role") == "user" or not talks:
            talks.append([])
        talks[-1].append(message)
    return list(said[:start]), talks


def _summary(
    language: Language,
    chat: ChatFormat,
    group: str,
    setup: Setup,
    head: list[Message],
    older: list[list[Message]],
) -> Script[str]:
    """The model's own words for these turns. Where they and the question do not fit into the window together, they are
    summarised in parts, each with the summary of those before."""
    window = language.model.context
    tokens = max(16, min(SUMMARY_TOKENS, window // SUMMARY_PART))
    plain = msgspec.structs.replace(setup, tools=None, thoughts="", stop=[], max_tokens=0)
    question: Message = {"role": "user", "content": ASKED}
    so_far: list[Message] = []
    text = ""
    while older:
        part, rest = older, list[list[Message]]()
        while True:
            messages = [*head, *so_far, *(message for talk in part for message in talk), question]
            if len(chat.first(messages, plain)) + tokens <= window:
                break
            if len(part) == 1:
                raise SyscallError(
                    Errno.E2BIG, "one turn alone is too long to be summarised in this window; drop it (drop=1, --drop)"
                )
            half = (len(part) + 1) // 2
            part, rest = part[:half], [*part[half:], *rest]
        text = yield from _asked(language, group, plain, messages, tokens)
        so_far = [question, {"role": "assistant", "content": text}]
        older = rest
    return text


def _asked(language: Language, group: str, setup: Setup, messages: list[Message], tokens: int) -> Script[str]:
    """The answer of a process of its own to these messages."""
    model = language.model
    held = [packed(Entry(setup=setup))]
    pid = yield from ask(
        Spawn(model.path, name="compact", device=model.device, dtype=model.dtype, group=group, records=held)
    )
    try:
        answer = yield from turns.answered(turns.say(language, pid, messages, tokens))
    except GeneratorExit:  # the runner of this script has gone
        raise
    except BaseException:  # Ctrl-C, cancellation and a timeout too
        yield from actions.end([pid])
        raise
    yield from actions.end([pid])
    text = answer.text.strip()
    if not text:
        raise SyscallError(
            Errno.EIO, "the model made no summary of its older turns; drop them instead (drop=True, --drop)"
        )
    return text


def _unchanged(pid: int, length: int) -> Script[None]:
    info = yield from ask(Getinfo(pid))
    if info.length != length or info.decoding:
        raise SyscallError(
            Errno.EAGAIN, f"another program has talked to process {pid} ({info.name}) meanwhile; compact it again"
        )
