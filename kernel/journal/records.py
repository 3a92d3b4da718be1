"""What stands in the journal: records of what has changed, one frame of them for each event of the kernel.

The model is a database's redo log: a record says what is from here on, never how that came about, so reading the
records in order gives the state (state.py). A frame is whole or not there, so an event's consequences come back together
or not at all. Records are msgpack arrays whose first element is the record's number; numbers are never used again.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import (
    Count,
    Finish,
    GroupSettings,
    Limits,
    LogRecord,
    ModelName,
    Name,
    Nice,
    Record,
    Sampler,
    SchedClass,
    TokenLogprobs,
    Usage,
)


class Traits(msgspec.Struct, frozen=True):
    """What a process is, apart from what it does: the fields that a fork copies, and that images and the journal carry.
    `spent` are the tokens of its budget that were used up before it was born here."""

    name: Name
    model: ModelName
    sampler: Sampler
    limits: Limits
    sched_class: SchedClass
    nice: Nice
    once: bool
    spent: Count
    detached: bool = False


def traits_of(record: Traits) -> Traits:
    """The traits in a record that has them among its own fields."""
    return Traits(*(getattr(record, name) for name in Traits.__struct_fields__))


class Entry(Record):
    """What the records share."""


class Secret(Entry, tag=1):
    """The key of programs' tickets."""

    key: bytes


class Pids(Entry, tag=2):
    """The pid that is given out next."""

    next: int


class ProgramHead(Entry, tag=3):
    """A program, from here on."""

    pid: int
    name: str
    rights: int
    group: str


class Doing(Entry, tag=4):
    """A decode under way. It ends when the log has `until` tokens; `deadline` is a time of the frames' clock.

    `program` and `seq` are of the call that waits for it; 0: none does.
    """

    append: bool
    start: int
    until: int
    stop_ids: list[int]
    logprobs: int
    interrupted: Finish
    deadline: float | None
    program: int
    seq: int


class Exited(Entry, tag=5):
    """A zombie's account."""

    status: int
    reason: str
    usage: Usage


class ProcessHead(Traits, frozen=True, array_like=True, kw_only=True, tag=6):
    """All of an LLM process but its log, from here on. `path` and `dtype` are what it runs, `kind` is its device's."""

    pid: int
    owner: int
    group: str
    path: str
    dtype: str
    device: str
    kind: str
    forks: int
    stopped: bool
    finish: Finish
    dying: tuple[int, str] | None
    doing: Doing | None
    exited: Exited | None
    stop_reason: str = ""


class Grown(Entry, tag=7):
    """The log of a process: its first `keep` tokens, then these. `fed` and `decoded` are its account from here on.

    So with the log-probabilities of the decode under way: the first `known` of those there are, then `logprobs`.
    """

    pid: int
    keep: int
    tokens: list[int]
    fed: int
    decoded: int
    known: int = 0
    logprobs: list[TokenLogprobs] = []


class Gone(Entry, tag=8):
    """A pid is no longer in the table."""

    pid: int


class Answer(Entry, tag=9):
    """What a call that may have changed something was answered; `value` is still encoded."""

    program: int
    seq: int
    call: int
    errno: Errno
    value: bytes
    reason: str


class GroupHead(Entry, tag=10):
    """A control group that was made, or set, by a call."""

    path: str
    settings: GroupSettings


class GroupGone(Entry, tag=11):
    path: str


class GroupSpent(Entry, tag=12):
    """Tokens that a group with `tokens_total` has used in its life."""

    path: str
    tokens: int


class DeviceHead(Entry, tag=13):
    """How a device is scheduled, as a call has set it."""

    name: str
    policy: str
    max_runs: int
    step_tokens: int


class Copied(Entry, tag=14):
    """The log of a process, with its records, is the whole log of another: it has just been forked."""

    pid: int
    parent: int


class Noted(Entry, tag=15):
    """The opaque records of a process: the first `keep` of those there were, then these."""

    pid: int
    keep: int
    records: list[LogRecord]


AnyEntry = (
    Secret
    | Pids
    | ProgramHead
    | ProcessHead
    | Grown
    | Copied
    | Noted
    | Gone
    | Answer
    | GroupHead
    | GroupGone
    | GroupSpent
    | DeviceHead
)

Moment = Annotated[float, msgspec.Meta(ge=0.0)]


class Frame(Entry):
    """The records of one event, at a time of the kernel's clock."""

    now: Moment
    entries: list[AnyEntry]


encode = msgspec.msgpack.Encoder().encode
_decode: Any = msgspec.msgpack.Decoder(Frame).decode


class BadFrame(ValueError):
    """Bytes that no kernel of this version has written."""


def decode(body: bytes | memoryview) -> Frame:
    """Raises BadFrame."""
    try:
        frame: Frame = _decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError) as error:
        raise BadFrame(str(error)) from None
    return frame
