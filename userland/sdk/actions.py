"""Models and their vocabularies, and what a program can see of a process and do to it without hearing an answer: scripts
for both faces.

Positions and lengths are in tokens of the process's log. Characters are dealt with here and in text.py; the kernel sees
ids. Answers are in answers.py, conversations in turns.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_READ
from llmasos.syscalls.records import ModelInfo, Pid, ReadResult, Signal
from llmasos.syscalls.table import (
    Getinfo,
    Kill,
    Models,
    Pagein,
    Read,
    Wait,
)
from llmasos.userland.sdk import sim_words
from llmasos.userland.sdk.chat import ChatFormat
from llmasos.userland.sdk.dialogue import Setup
from llmasos.userland.sdk.script import Script, ask
from llmasos.userland.sdk.text import (
    BEFORE,
    begins_apart,
    checked,
    decode_after,
    encode_after,
)
from llmasos.userland.sdk.tokenizer import Tokenizer
from llmasos.userland.sdk.tokenizer_files import load_tokenizer

T = TypeVar("T")

MAX_TOKENS = 256  # of an answer, by default


@dataclass(slots=True, frozen=True)
class Language:
    """A model's language: its tokenizer, the ids that end a text, and its chat format if it has one."""

    model: ModelInfo
    tokenizer: Tokenizer
    chat: ChatFormat | None  # None: it has no chat template, or several without a default
    why_no_chat: str  # in words
    named: ChatFormat | None = None  # of a model with several templates and no default; a conversation names one

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end an answer; see `stops`."""
        return self.stops(None)

    def stops(self, setup: Setup | None) -> list[int]:
        """The ids that end an answer: those that the model's files name, and the one by which the chat template closes
        it."""
        chat = self.chat_of(setup.template if setup else None)
        return sorted({*self.model.eos_ids, *(chat.stop_ids(setup) if chat else ())})

    def encode(self, text: str, *, begin: bool = False, control: bool = False) -> list[int]:
        """The ids of a text. `begin` adds what the tokenizer puts before a text (a BOS token, say); with `control`, text
        that spells a control token becomes that token. Raises E2BIG, and EINVAL for text that no tokenizer should get
        (see `text.checked`)."""
        checked(text, self.model.context)
        if text and not begin and begins_apart(self.tokenizer):
            return encode_after(self.tokenizer, text, control=control)
        return self.tokenizer.encode(text, control=control, begin=begin)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids; with `special`, special tokens are written too."""
        return self.tokenizer.decode(ids, special=special)

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text of `ids` where they follow the ids `before`."""
        return decode_after(self.decode, before, ids)

    def chat_of(self, template: str | None) -> ChatFormat | None:
        """The chat format of a conversation that names this template (None: it names none); None if there is none."""
        return self.chat or (self.named if template is not None else None)

    def must_chat(self, template: str | None = None) -> ChatFormat:
        """The same; raises ENOTSUP if there is none."""
        chat = self.chat_of(template)
        if chat is None:
            raise SyscallError(Errno.ENOTSUP, self.why_no_chat)
        return chat


def language_of(info: ModelInfo) -> Language:
    """The language of a model, from its tokenizer's files. Raises ENOENT or EIO if there are none."""
    simulated = info.architecture == sim_words.ARCHITECTURE
    tokenizer = sim_words.sim_tokenizer(info.vocab) if simulated else load_tokenizer(info.path)
    chat = _chat_of(tokenizer, info.name, info.context, tuple(info.eos_ids))
    if isinstance(chat, SyscallError):
        return Language(info, tokenizer, None, chat.reason)
    if chat.named_only:
        names = ", ".join(sorted(tokenizer.settings.templates))
        why = f"the model has several chat templates and no default; name one (chat_template=...): {names}"
        return Language(info, tokenizer, None, why, chat)
    return Language(info, tokenizer, chat, "")


@functools.lru_cache(maxsize=16)
def _chat_of(tokenizer: Tokenizer, name: str, window: int, ends: tuple[int, ...]) -> ChatFormat | SyscallError:
    """A model's chat format, or why it has none. The cache is safe: changed files make another tokenizer."""
    try:
        return ChatFormat(tokenizer, name, window, ends)
    except SyscallError as error:  # a broken or missing template matters only to a chat
        return error


def model_of(name: str, dtype: str = "", device: str = "") -> Script[ModelInfo]:
    """A model's row; the model is brought into memory if it is not there."""
    return ask(Pagein(name, device, dtype))


def model_in_memory(name: str, device: str = "") -> Script[ModelInfo]:
    """The row of a model that a process runs on this device (empty: any); its weights may be evicted. After a boot from
    the journal, waits until the driver has described the model. Raises ENOENT if there is none of this name or path."""
    rows = yield from ask(Models())
    there = [row for row in rows if row.device and name in (row.name, row.path) and device in ("", row.device)]
    for row in there:
        if row.vocab:
            return row
    for row in there:
        return (yield from ask(Pagein(row.path, row.device, row.dtype)))
    raise SyscallError(Errno.ENOENT, f"no model {name!r} is in memory; `models` lists them")


def log_of(pid: int, position: int = 0) -> Script[list[int]]:
    """The token log from a position to its present end; does not wait for more."""
    info = yield from ask(Getinfo(pid))
    if position >= info.length:
        return []
    tokens: list[int] = []
    end = info.length
    while position + len(tokens) < end:  # an answer has no more than so many
        start = position + len(tokens)
        result: ReadResult = yield from ask(Read(pid, start, min(MAX_READ, end - start)))
        tokens += result.tokens
        end = min(end, result.length)  # somebody may have cut it
    return tokens


def before(language: Language, pid: int, position: int) -> Script[list[int]]:
    """The ids before a position on which the text there depends; none if the tokenizer has no such dependence."""
    if position == 0 or not begins_apart(language.tokenizer):
        return []
    start = max(0, position - BEFORE)
    result = yield from ask(Read(pid, start, limit=position - start))
    return list(result.tokens)


def until_idle(pid: int, position: int) -> Script[ReadResult]:
    """Wait until the process has ended its decode; returns what it appended from `position` on."""
    tokens: list[int] = []
    while True:
        result: ReadResult = yield from ask(Read(pid, position + len(tokens)))
        tokens.extend(result.tokens)
        if not result.decoding and position + len(tokens) >= result.length:
            return ReadResult(position, tokens, False, result.finish, result.state, result.length)


def idle(pid: int) -> Script[None]:
    """Wait until the process has no decode under way, whoever began it."""
    while True:
        found: ReadResult = yield from ask(Read(pid, -1))
        if not found.decoding:
            return


def end(pids: Sequence[Pid], signal: Signal = Signal.KILL) -> Script[None]:
    """End processes of this program and reap them; passes over those that have ended already."""
    for pid in pids:
        try:
            yield from ask(Kill(pid, signal))
        except SyscallError as error:
            if error.errno is not Errno.ESRCH:
                raise
        try:
            yield from ask(Wait(pid))
        except SyscallError as error:
            if error.errno is not Errno.ECHILD:  # another program's, detached, or reaped already
                raise
