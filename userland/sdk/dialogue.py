"""The parts of a conversation that its ids do not show: the roles and texts of messages, the places of the model's own
words, the variables of the template. They are stored with the process as records of its log
(`llmasos.syscalls.records.LogRecord`), one with each feed, so that any program can go on with the conversation, after a
fork or a restore too.

A record holds what its feed added, like an entry of a journal: the conversation is all entries read in order, and cutting
the log removes the entries behind the cut. A cut into the ids of a feed leaves its entry; the digest in it shows that its
ids are no longer whole: its messages count as unsaid, and the rest of its ids is plain text.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import LogRecord

Message = dict[str, Any]  # a chat message: role, content and further fields, as chat templates take them
Span = tuple[int, int]  # of the log, in tokens

_OURS = b"chat\x01"
_MOST_BYTES = 64 << 20  # of one record when it is unpacked
_PACK_FROM = 256  # bytes


class Setup(msgspec.Struct, frozen=True, omit_defaults=True):
    """The variables of the template apart from messages, and the defaults of a turn: `system` begins the conversation,
    `stop` and `max_tokens` end an answer (0: the SDK's default; -1: as much as there is room for). `now` is the time that
    the template may write, in seconds since the epoch: the time of the process's start, or the log would change under
    it."""

    now: float = 0.0
    tools: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = {}
    thoughts: Literal["", "drop", "keep"] = ""  # empty: as the template has it
    template: str | None = None
    thought_tokens: int = -1  # of one answer at most; -1: no bound of its own
    system: str = ""
    stop: list[str] = []
    max_tokens: int = 0

    def tokens(self, given: int | None, otherwise: int, window: int) -> int:
        """The most tokens of an answer: as given, else as set here, else `otherwise`."""
        if given is not None:
            return given
        return window if self.max_tokens < 0 else self.max_tokens or otherwise


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message. For an answer of the model: the places of its own ids in the log, whole and in parts. `special`:
    control tokens that it spells are control tokens."""

    message: Message
    whole: Span | None = None
    thought: Span | None = None
    answer: Span | None = None
    lead: str = ""  # the end of the prompt before it
    special: bool = False

    @property
    def made(self) -> bool:
        return self.whole is not None or self.thought is not None or self.answer is not None


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one feed added to the first `known` messages (-1: to all): `fed` tokens. With `asks` the model answers behind
    them, and `lead` is the end of the prompt that it answers. `digest` is that of the ids (-1: not known)."""

    said: list[Said] = []
    setup: Setup | None = None
    fed: int = 0
    asks: bool = False
    lead: str = ""
    known: int = -1
    digest: int = -1


def digest_of(ids: Sequence[int]) -> int:
    """A number that tells the ids of a feed from others in their place."""
    return zlib.crc32(struct.pack(f"<{len(ids)}I", *ids))


class Dialogue(msgspec.Struct, frozen=True):
    """A conversation so far. The log is the model's from `end` on; with `asked` it answers something there, and `lead` is
    the end of the prompt before that."""

    setup: Setup = Setup()
    said: list[Said] = []
    end: int = 0
    asked: bool = False
    lead: str = ""
    counts: list[tuple[int, int]] = []  # position of each record, and the number of messages up to it
    cut: bool = False  # the log was cut within a feed; the rest of the feed stands at `end` or behind it

    def entry(self, log: Sequence[int]) -> Entry:
        """All of it as one entry, at the beginning of the log."""
        digest = digest_of(log[: self.end])
        return Entry(self.said, self.setup, self.end, self.asked, self.lead, digest=digest)

    def known_before(self, position: int) -> int:
        """The number of messages that stay known when the log is cut to `position`."""
        return max((count for at, count in self.counts if at < position), default=0)


def packed(entry: Entry) -> bytes:
    """An entry as a record's data. Raises EINVAL if it could not be read again."""
    try:
        data = msgspec.msgpack.encode(entry)
        msgspec.msgpack.decode(data, type=Entry)
    except (msgspec.DecodeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SyscallError(
            Errno.EINVAL,
            f"messages, tools and variables are texts, numbers of 64 bits, lists and dictionaries: {error}",
        ) from None
    return _OURS + (b"z" + zlib.compress(data, 6) if len(data) >= _PACK_FROM else b"-" + data)


def _unpacked(data: bytes) -> Entry | None:
    if not data.startswith(_OURS):
        return None  # a record of another program
    form, body = data[len(_OURS) : len(_OURS) + 1], data[len(_OURS) + 1 :]
    try:
        if form == b"z":
            stream = zlib.decompressobj()
            body = stream.decompress(body, _MOST_BYTES)
            if stream.unconsumed_tail:
                raise SyscallError(Errno.E2BIG, f"a record of the conversation unpacks to more than {_MOST_BYTES} bytes")
        return msgspec.msgpack.decode(body, type=Entry)
    except (zlib.error, msgspec.DecodeError) as error:
        raise SyscallError(
            Errno.EIO, f"a record of the conversation cannot be read ({error}); cut the log to before it"
        ) from None


def setup_in(records: Sequence[LogRecord]) -> Setup | None:
    """The setup of the conversation; None if no record is of one. Raises EIO, E2BIG."""
    found = [entry.setup for row in records if (entry := _unpacked(row.data)) is not None]
    return next((setup for setup in reversed(found) if setup is not None), Setup()) if found else None


def dialogue(records: Sequence[LogRecord], log: Sequence[int]) -> Dialogue | None:
    """The conversation in the records of a log; None if no record is of one. An entry into whose ids the log was cut
    counts as unsaid, also when the log has grown again. Raises EIO, E2BIG."""
    entries = [(row.position, entry) for row in records if (entry := _unpacked(row.data)) is not None]
    if not entries:
        return None
    setup, count = setup_in(records) or Setup(), len(entries)
    while entries and not _intact(*entries[-1], log):
        del entries[-1]
    cut = len(entries) < count
    said, counts = list[Said](), list[tuple[int, int]]()
    for position, entry in entries:
        if entry.known >= 0:  # the log was cut behind these messages
            said = said[: entry.known]
            counts = [(at, count) for at, count in counts if count <= entry.known]
        said += entry.said
        counts.append((position, len(said)))
    if not entries:
        return Dialogue(setup, cut=cut)
    position, entry = entries[-1]
    return Dialogue(setup, said, position + entry.fed, entry.asks, entry.lead, counts, cut)


def _intact(position: int, entry: Entry, log: Sequence[int]) -> bool:
    """Whether the ids that an entry fed still stand in the log."""
    fed = log[position : position + entry.fed]
    return len(fed) == entry.fed and entry.digest in (-1, digest_of(fed))
