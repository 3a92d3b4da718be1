"""The records of the journal: what has changed, one frame for each event of the kernel.

The model is a database's redo log. A record says what holds from here on, never how it came about, so reading the records
in order gives the state (state.py). A frame is whole or not there, so an event's consequences come back together or not
at all. Records are msgpack arrays whose first element is the record's number; numbers are never used again.
"""

from __future__ import annotations

from typing import Annotated

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


class Traits(msgspec.Struct, frozen=True, gc=False):
    """What a process is, apart from what it does: the fields that a fork copies and that images and the journal carry.
    `spent`: how many tokens of its budget were used up before it was born here."""

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
    """The traits of a record that has them among its own fields."""
    return Traits(*(getattr(record, name) for name in Traits.__struct_fields__))


class Entry(Record):
    """The base of all records."""


class Secret(Entry, tag=1):
    """The key of programs' tickets."""

    key: bytes


class Pids(Entry, tag=2):
    """The next new pid of a user; 0: of the operator."""

    next: int
    space: int = 0


class ProgramHead(Entry, tag=3):
    """A program as it is from here on."""

    pid: int
    name: str
    rights: int
    group: str
    owner: str = ""  # empty: the user that the kernel runs as
    confined: bool = False
    sandbox: int = 0  # by whose endpoint it came
    key: bytes = b""  # the public key by which it has come from another machine


class Doing(Entry, tag=4):
    """A decode under way. It ends when the log has `until` tokens; `deadline` is a time of the frames' clock.

    `program` and `seq` name the call that waits for it; 0: none does.
    """

    append: bool
    start: int
    until: int
    stop_ids: list[int]
    logprobs: int
    interrupted: Finish
    deadline: int | None
    program: int
    seq: int


class Exited(Entry, tag=5):
    """A zombie's account."""

    status: int
    reason: str
    usage: Usage


class ProcessHead(Traits, frozen=True, array_like=True, kw_only=True, tag=6):
    """An LLM process as it is from here on, without its log. It runs `path` in `dtype` on a device of `kind`."""

    pid: int
    parent: int
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
    owner: str = ""  # empty: the user that the kernel runs as
    reserve: tuple[int, int] = (0, 0)  # of a REALTIME process: budget and period, in nanoseconds


class Grown(Entry, tag=7):
    """The log of a process: its first `keep` tokens, then these. `fed` and `decoded` are its account from here on.

    Likewise the log-probabilities of the decode under way: the first `known` of the earlier ones, then `logprobs`.
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
    """The answer to a call that may have changed something; `value` is still encoded. `about`: the LLM process that it
    tells of, or 0."""

    program: int
    seq: int
    call: int
    errno: Errno
    value: bytes
    reason: str
    about: int = 0


class GroupHead(Entry, tag=10):
    """A control group that a call has made or set."""

    path: str
    settings: GroupSettings


class GroupGone(Entry, tag=11):
    path: str


class GroupSpent(Entry, tag=12):
    """Tokens that a group with `tokens_total` has used in its life."""

    path: str
    tokens: int


class DeviceHead(Entry, tag=13):
    """How a device is scheduled, since a call has set it or it has policies of the user's own. An empty name: as
    configured."""

    name: str
    policy: str
    max_runs: int
    step_tokens: int
    victims: str = ""
    evictions: str = ""


class Copied(Entry, tag=14):
    """A process was just forked: its log and its opaque records are those of another, whole."""

    pid: int
    parent: int


class Began(Entry, tag=20):
    """A kernel writes from here on. `ends` are the last positions of those before it, `machine` names the boot of the
    machine that it runs in."""

    ends: list[int]
    machine: str


class Noted(Entry, tag=15):
    """The opaque records of a process: the first `keep` of the earlier ones, then these."""

    pid: int
    keep: int
    records: list[LogRecord]


class OwnerHead(Entry, tag=16):
    """An owner, with the salt of the names of its KV. An empty name: the user that the kernel runs as."""

    name: str
    salt: int


class Sealed(Entry, tag=21):
    """A Grown, a Noted or an Answer about process `pid`, under that process's key of this name, at byte `at` of its
    stream. Only files have it (kernel/edge/journal_seal.py)."""

    pid: int
    name: bytes
    at: int
    data: bytes


class Shredded(Entry, tag=22):
    """What a process has said is destroyed: its log, its records, and the answers about it."""

    pid: int


class Granted(Entry, tag=23):
    """A grant as it is from here on, on process `pid`, or on `group`. Owners are named as in OwnerHead. `parent` 0: it is
    of the first; `holder` 0: it waits under its ticket, whose `secret` is there only then. `until`: a time of the wall
    clock in nanoseconds; 0: none. `sandbox`: to whose programs it is passed on."""

    number: int
    pid: int
    rights: int
    maker: str
    to: str
    parent: int
    secret: int
    holder: int
    group: str = ""
    until: int = 0
    sandbox: int = 0


class Revoked(Entry, tag=24):
    """These grants are gone."""

    numbers: list[int]


class Clock(Entry, tag=25):
    """What the wall clock has shown, in nanoseconds: it shows no less from here on."""

    at: int


class SandboxHead(Entry, tag=26):
    """A program has a sandbox of this number from here on; `starter` 0: it is gone."""

    number: int
    starter: int


AnyEntry = (
    Secret
    | Pids
    | ProgramHead
    | ProcessHead
    | Grown
    | Copied
    | Noted
    | Sealed
    | Began
    | Shredded
    | Granted
    | Revoked
    | Clock
    | SandboxHead
    | Gone
    | Answer
    | GroupHead
    | GroupGone
    | GroupSpent
    | DeviceHead
    | OwnerHead
)

Moment = Annotated[int, msgspec.Meta(ge=0)]  # nanoseconds


class Frame(Entry):
    """The records of one event, at a time of the kernel's clock. `position`: see positions.py; 0: from before there were
    any."""

    now: Moment
    entries: list[AnyEntry]
    position: int = 0


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


class BadFrame(ValueError):
    """No kernel of this version has written these bytes."""


def decode(body: bytes | memoryview) -> Frame:
    """Raises BadFrame."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError) as error:
        raise BadFrame(str(error)) from None
