"""Every system call, declared once: number, name, arguments, result, errors, right needed.

Client stubs (`await kernel(Spawn(model="tiny"))` is typed `int`), the kernel's dispatch, decoding for strace, permission
bits and the manual page (docs/syscalls.md) all come from these records. seL4's interface files are the model. Numbers are
ABI: never reused, never changed. Arguments are only ever added at the end, with a default.

A call that blocks takes a `timeout`, or ends when the process or device that it waits for ends. A caller can cancel any
call, which is then answered with EINTR.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, dataclass_transform, get_args

import msgspec
from msgspec import Meta

from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import (
    PRINTABLE,
    Advice,
    Blobs,
    BootInfo,
    CheckpointInfo,
    Count,
    DecodeResult,
    EstimateInfo,
    ExitInfo,
    FilePath,
    GrantInfo,
    GroupInfo,
    GroupPath,
    GroupSettings,
    Handle,
    Limits,
    LogLine,
    Measure,
    ModelInfo,
    ModelName,
    Name,
    Nice,
    OwnerName,
    Pid,
    PolicyName,
    Position,
    ProcessInfo,
    ReadResult,
    RecordsResult,
    Right,
    Sampler,
    SandboxInfo,
    SchedClass,
    SchedInfo,
    Seconds,
    Secret,
    ShredInfo,
    Signal,
    Stats,
    StopIds,
    Tenant,
    Tokens,
    TraceResult,
)

R = TypeVar("R")
C = TypeVar("C", bound="Call[Any]")


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))  # mypy: subclasses are frozen too
class Call(msgspec.Struct, Generic[R], array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """The arguments of one system call; `R` is the type of its result."""


class Names(enum.IntEnum):
    """What a field of a call names. The kernel finds the object, tests that the caller may have it, and hands it to the
    call's handler (kernel/calls/lookup.py)."""

    PROCESS = enum.auto()  # a living process of any kind; 0: the caller
    ROW = enum.auto()  # a row of the process table, zombies included; 0: the caller
    CHILD = enum.auto()  # a row for which the caller may wait; 0: none
    MEMBER = (
        enum.auto()
    )  # a living program or LLM process in the caller's control group, or anywhere with ADMIN; 0: the caller
    LLM = enum.auto()  # a living LLM process
    LOG = enum.auto()  # an LLM process, zombies included: their logs can be read until they are reaped
    RUNNER = enum.auto()  # a living LLM process that has its model
    DEVICE = enum.auto()  # empty: the default device, or none if it is `optional`
    MODEL = enum.auto()  # a known name, which stands for a path, or a path
    FILE = enum.auto()  # an absolute path of a file to read
    TARGET = enum.auto()  # an absolute path at which a file is written
    GROUP = enum.auto()  # a control group, by its path from the caller's own or from the root
    PLACE = enum.auto()  # a group that the caller may put processes into: below its own, or anywhere with ADMIN
    RULED = enum.auto()  # a group that the caller may change: strictly below its own, or anywhere with ADMIN
    # (ADMIN is the operator's; for programs of other users the owner of a group decides.)
    PARENT = (
        enum.auto()
    )  # the group that a new one is to be in, and the new one's name; the caller may change what is in it
    OWNER = enum.auto()  # a user or tenant, whose processes are as the caller's own


class Needs(enum.IntFlag):
    """The rights on an object that a call may need (kernel/rights.py). Its owner has all of them, and so has the
    machine's operator; others have none, and to them it is not there, except where a rule lets them see it."""

    NONE = 0
    SEE = 1  # it is there for the caller; without it the call fails as if it were not
    READ = 2  # read its log, all of it
    CONTROL = 4  # have it do something: feed, decode, signal; put something into it
    LIMITS = 8  # change its limits, and its part of the device
    CHARGE = 16  # have it pay: run on the device, in the group, with the model
    ADMINISTER = 32  # what others feel too: how a device is scheduled, a model in use
    ALL = 63


class More(NamedTuple):
    """What a call needs besides if a field has a value."""

    field: str
    needs: Needs
    value: Any = None  # None: any but the empty one


class When(enum.Enum):
    """When a call may have the process that it names."""

    NOW = enum.auto()
    IN_TURN = enum.auto()  # not before the calls that wait for a token boundary of it
    BOUNDARY = enum.auto()  # at a token boundary: it is in no step


class Touches(NamedTuple):
    """An object that a call touches: the field that names it, and what must hold of it before the handler is called. All
    of it is tested again whenever a call that has waited goes on."""

    field: str
    what: Names
    when: When = When.NOW
    idle: bool = False  # EBUSY while it decodes
    alone: bool = False  # EBUSY while another call gives it another model or device
    optional: bool = False  # an empty field names no object
    needs: Needs = Needs.SEE
    more: tuple[More, ...] = ()


class Entry(NamedTuple):
    """One row of the table."""

    number: int
    name: str
    family: str
    record: type[Call[Any]]
    result: Any
    errors: tuple[Errno, ...]
    right: Right
    blocks: bool
    changes: bool  # done twice it has another effect than done once, so the kernel keeps its answer
    touches: tuple[Touches, ...]
    draws: bool = False  # random bits come with it (kernel/events.py, Syscall)
    audit: str = ""  # the class under which the audit log has it; empty: it has only what was refused
    tells: bool = True  # its answer tells of what the journal keeps, and must not be ahead of it
    synced: bool = False  # it is answered when the journal is on the disk, whatever `fsync` says
    dated: str = ""  # the field whose time is the wall clock's, which the kernel is told of ahead of the call


TABLE: dict[int, Entry] = {}
BY_NAME: dict[str, Entry] = {}
BY_RECORD: dict[type[Call[Any]], Entry] = {}


def _call(
    number: int,
    family: str,
    right: Right,
    *errors: Errno,
    blocks: bool = False,
    draws: bool = False,
    changes: bool = False,
    tells: bool = True,
    touches: tuple[Touches, ...] = (),
    audit: str = "",
    synced: bool = False,
    dated: str = "",
) -> Callable[[type[C]], type[C]]:
    """Enter a record into the table. Any call can also fail with the errors in `COMMON`."""

    def enter(record: type[C]) -> type[C]:
        name = "".join("_" + c.lower() if c.isupper() else c for c in record.__name__.removesuffix("Call")).lstrip("_")
        result = get_args(record.__orig_bases__[0])[0]  # type: ignore[attr-defined]  # Call[R]
        failing = errors if not audit or Errno.EIO in errors else (*errors, Errno.EIO)  # its line cannot be written
        kept = draws, audit, tells, synced, dated
        entry = Entry(number, name, family, record, result, failing, right, blocks, changes, touches, *kept)
        if number in TABLE or name in BY_NAME:
            raise ValueError(f"system call {number} ({name}) is declared twice")
        TABLE[number] = BY_NAME[name] = BY_RECORD[record] = entry
        return record

    return enter


COMMON = (Errno.EINVAL, Errno.ENOSYS, Errno.EPERM, Errno.EPROTO, Errno.EMSGSIZE, Errno.EPIPE, Errno.EINTR, Errno.EAGAIN)

E = Errno

N = Needs

_DEVICE = Touches("device", Names.DEVICE, needs=N.CHARGE)
_MODEL = Touches("model", Names.MODEL, needs=N.CHARGE)
_FILE = Touches("path", Names.FILE)


def _process(what: Names, needs: Needs, when: When = When.NOW, **more: Any) -> Touches:
    return Touches("pid", what, when, needs=needs, **more)


def _group(what: Names, needs: Needs, field: str = "path") -> Touches:
    return Touches(field, what, needs=needs)


# --- system ---------------------------------------------------------------------------------------------------------


@_call(1, "system", Right(0), Errno.ESRCH, Errno.ESTALE, Errno.EDQUOT, draws=True, audit="sessions")
class Attach(Call[BootInfo]):
    """Become a program of this kernel; a connection's first call. `rights` are the rights that the program keeps.

    A second call on the same connection gives up further rights and returns the same pid. With the `ticket` of the
    BootInfo that this kernel gave before it died, the program gets back its pid, rights and processes. It then sends its
    unanswered calls again under their old sequence numbers; the kernel does nothing twice. So does a program on another
    machine whose connection was cut while its kernel ran (`leave`), by the key that it had come by. ESRCH: no program
    with this ticket is expected back. EAGAIN: another connection is still attached as this program; from another machine
    the newer connection takes the place of the older.

    The program, and what it makes, belongs to the uid of its OS process, or with `tenant` to this tenant of that uid, for
    whom the program speaks from here on (right SPEAK): it sees and reaches what is the tenant's, and nothing of the
    uid's. Programs of the uid have every right over its tenants.
    With `seen`, answers have a fifth element if a journal is kept: its position. A program that comes back shows the
    last one that it has had (0: none). ESTALE: the journal that this kernel read ends before it, so answers that the
    program has had are lost; with `seen` 0 it is taken up nevertheless, and goes on with what there is.

    A `confined` program has nothing of its own but itself: it sees init, itself, and the processes that it was granted
    (`accept`), and makes only calls that name nothing else. That is for good, and its rights are QUERY and CONTROL at
    most. It is the program that gives these up: whoever can start another connection is not held by it, unless the one
    by which it came is a sandbox's (`sandbox_open`), where all are confined.
    """

    name: Name = ""
    rights: Annotated[int, Meta(ge=0, le=int(Right.ALL))] = int(Right.ALL)
    ticket: Annotated[bytes, Meta(max_length=limits.MAX_TICKET)] = b""
    tenant: Tenant = ""
    seen: Annotated[int, Meta(ge=-1)] = -1
    confined: bool = False


@_call(2, "system", Right(0), tells=False)
class Null(Call[None]):
    """Do nothing and answer: the round trip that benchmarks measure, and a check that the kernel lives."""


@_call(3, "system", Right.QUERY, tells=False)
class BootInfoCall(Call[BootInfo]):
    """The running kernel: its version, devices, policies and runtime directory."""


@_call(4, "system", Right.QUERY, tells=False)
class StatsCall(Call[Stats]):
    """Counters since boot."""


@_call(5, "system", Right.QUERY, blocks=True, tells=False)
class Trace(Call[TraceResult]):
    """Events of the trace from sequence number `start` on (-1: from now). Waits up to `timeout` for the first.

    What there is stands in the table of its events: all for the machine's operator, for others those of their own
    processes. Tokens in them are for programs that could `read` them too (right CONTROL); others get lengths. The kernel
    traces while a program reads: from its first call until ten seconds after the last one.
    """

    start: int = -1
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_LIST)] = limits.MAX_LIST
    timeout: Seconds = 0.0


@_call(6, "system", Right.QUERY, tells=False)
class Dmesg(Call[list[LogLine]]):
    """Lines of the kernel log after sequence number `after`: all for the machine's operator, for others those about
    their own processes and those that concern everybody."""

    after: int = -1
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_LIST)] = limits.MAX_LIST


@_call(7, "system", Right.ADMIN, E.ENOTSUP, audit="system")
class Shutdown(Call[None]):
    """Halt: kill every process, end the drivers, empty the runtime directory.

    With `keep` the processes are not ended: their journal stays, and the next kernel goes on with them. ENOTSUP: no
    journal is kept, or it cannot be written now.
    """

    keep: bool = False


@_call(
    8,
    "system",
    Right.ADMIN,
    E.ENODEV,
    E.ENOENT,
    E.EIO,
    changes=True,
    touches=(_DEVICE._replace(needs=N.ADMINISTER),),
    audit="system",
)
class Sched(Call[SchedInfo]):
    """Set how a device is scheduled, from its next step on, and return the settings in force. An empty or zero argument
    changes nothing. A policy is one of `boot_info`'s, or `/PATH/FILE.py:CLASS`, a module of the kernel's own user: the
    kernel keeps its text, checks it, and takes it out again if it does wrong (docs/policies.md)."""

    device: Name = ""  # empty: the default device
    policy: PolicyName = ""  # the order in which processes run
    max_runs: Annotated[int, Meta(ge=0, le=limits.MAX_RUNS)] = 0
    step_tokens: Annotated[int, Meta(ge=0, le=limits.MAX_STEP_TOKENS)] = 0
    victims: PolicyName = ""  # which process loses its pages first
    evictions: PolicyName = ""  # which model's weights go first


@_call(19, "system", Right.QUERY, E.ETIME, blocks=True)
class Inventory(Call[list[Measure]]):
    """What this kernel consists of and has loaded: package, native libraries and models, by their digests. It is a report
    that the kernel makes of itself, and no attestation. Waits until the package has been measured after a boot."""


# --- process --------------------------------------------------------------------------------------------------------


@_call(
    20,
    "process",
    Right.SPAWN,
    E.ENOENT,
    E.ENOEXEC,
    E.E2BIG,
    E.ENOMEM,
    E.ENODEV,
    E.EIO,
    E.ENOTSUP,
    E.EDQUOT,
    E.EBUSY,
    changes=True,
    blocks=True,
    draws=True,
    touches=(_DEVICE, _group(Names.PLACE, N.CHARGE, "group"), _MODEL),
    audit="processes",
)
class Spawn(Call[int]):
    """Start an LLM process on a model with `tokens` as its first context, and return its pid once the model is in memory.

    The process is a child of the calling program and is killed with it; a `detached` one is a child of init and lives on
    (see `detach`). With `once` it exits when its first decode ends. The kernel draws the seed of a process that is
    given no sampler. `group` is relative to the program's own group. `records` are those of position 0 (see `feed`). A
    nice value below 0 and REALTIME need the right PRIORITY; `budget` and `period` are those of a REALTIME process (see
    `setsched`).
    """

    model: ModelName
    tokens: Tokens = []
    sampler: Sampler | None = None
    name: Name = ""
    sched_class: SchedClass = SchedClass.FAIR
    nice: Nice = 0
    limits: Limits = Limits()
    once: bool = False
    detached: bool = False
    device: Name = ""
    dtype: Name = ""  # empty: the device's default; else fp32, bf16, int8, int4
    group: GroupPath = ""  # empty: that of the program
    records: Blobs = []
    budget: Seconds = 0.0
    period: Seconds = 0.0


@_call(
    21,
    "process",
    Right.SPAWN,
    E.ESRCH,
    E.EBUSY,
    E.ENOMEM,
    E.EDQUOT,
    changes=True,
    touches=(_process(Names.RUNNER, N.READ, When.BOUNDARY),),
    audit="processes",
)
class Fork(Call[list[int]]):
    """Copy a process `count` times at its next token boundary, and return the pids. Pages are shared copy-on-write.

    A child goes on as its parent does: it decodes if the parent is decoding. Its sampler's seed is derived from the
    parent's seed and the child's index, unless `same_seed`. The children belong to the calling program, or `detached` to
    init, and to the program's control group. `name` is theirs; several are called NAME-1, NAME-2 and so on. Children of a
    REALTIME process are FAIR; a nice value below 0 goes over to them only by a caller with the right PRIORITY.
    """

    pid: Pid
    count: Annotated[int, Meta(ge=1, le=limits.MAX_FORK)] = 1
    same_seed: bool = False
    detached: bool = False
    name: Name = ""  # empty: the parent's


@_call(
    22,
    "process",
    Right.CONTROL,
    E.ESRCH,
    E.EBUSY,
    E.ENOENT,
    E.ENOEXEC,
    E.E2BIG,
    E.ENOMEM,
    E.ENODEV,
    E.EIO,
    E.ENOTSUP,
    E.EDQUOT,
    changes=True,
    blocks=True,
    touches=(_process(Names.RUNNER, N.CONTROL, When.BOUNDARY, idle=True, alone=True), _MODEL),
    audit="processes",
)
class Exec(Call[None]):
    """Give an idle process another model; its pid, limits, class, group, sampler and parent stay.

    Its tokens stay if the new vocabulary has the same size; `tokens` replace them. The caller must know whether two
    vocabularies of one size are the same: the kernel sees ids, not words. Records stay with the tokens that stay; with
    `tokens`, `records` replace them all, at position 0. After an error the process is as it was. EAGAIN: its log no
    longer has the given `length`, so the caller made `tokens` from an older log.
    """

    pid: Pid
    model: ModelName
    tokens: Tokens | None = None
    dtype: Name = ""
    length: Annotated[int, Meta(ge=-1, le=limits.MAX_TOKEN)] = -1  # of the log from which `tokens` were made
    records: Blobs = []


@_call(
    23, "process", Right.CONTROL, E.ESRCH, changes=True, touches=(_process(Names.PROCESS, N.CONTROL),), audit="processes"
)
class Exit(Call[None]):
    """End a process with a status. `pid` 0 is the calling program itself; its children end with it."""

    pid: Annotated[int, Meta(ge=0)] = 0
    status: Annotated[int, Meta(ge=0, le=255)] = 0


@_call(
    24,
    "process",
    Right.CONTROL,
    E.ECHILD,
    E.ETIME,
    changes=True,
    blocks=True,
    touches=(_process(Names.CHILD, N.CONTROL),),
)
class Wait(Call[ExitInfo]):
    """Wait until a process has exited, and reap it: a child of the calling program (`pid` 0: any), or a detached process,
    which any program may wait for.

    The exit status of a detached process is kept for an hour; of more than a thousand the oldest are dropped. Of several
    programs that wait for one, the first that called gets it. ECHILD: another program's child, or nobody knows the pid.
    """

    pid: Annotated[int, Meta(ge=0)] = 0
    timeout: Seconds | None = None


@_call(
    25, "process", Right.CONTROL, E.ESRCH, changes=True, touches=(_process(Names.PROCESS, N.CONTROL),), audit="processes"
)
class Kill(Call[None]):
    """Send a signal. The operating system delivers a program's; the kernel restarts a driver that is killed."""

    pid: Pid
    signal: Signal = Signal.TERM


@_call(26, "process", Right.QUERY, E.ESRCH, touches=(_process(Names.ROW, N.SEE),))
class Getinfo(Call[ProcessInfo]):
    """One process's row of the process table. `pid` 0 is the calling program."""

    pid: Annotated[int, Meta(ge=0)] = 0


@_call(27, "process", Right.QUERY)
class Ps(Call[list[ProcessInfo]]):
    """At most `limit` rows of the process table that the caller may see, in order of pid, from the first pid above
    `after` on."""

    after: Annotated[int, Meta(ge=0)] = 0
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_LIST)] = limits.MAX_LIST


@_call(
    28,
    "process",
    Right.CONTROL,
    E.ESRCH,
    E.EBUSY,
    E.ENOENT,
    E.ENOEXEC,
    E.E2BIG,
    E.ENOMEM,
    E.ENODEV,
    E.EIO,
    E.ENOTSUP,
    E.EDQUOT,
    E.ERESTART,
    changes=True,
    blocks=True,
    touches=(
        _process(Names.LLM, N.LIMITS, more=(More("device", N.READ),)),
        Touches("device", Names.DEVICE, optional=True, needs=N.CHARGE),
    ),
    audit="processes",
)
class Setsched(Call[None]):
    """Set nice value, class and device of a process. None and empty change nothing.

    A REALTIME process may use `budget` seconds of its device's time in each `period` seconds before all others; with 0
    these are as before, or 0.01 in 0.1 s. What it used in a step is its share of the step by tokens. When the budget is
    used up it is FAIR until the next period. EBUSY: more than 0.8 of the device's time would be reserved; the reason says
    by whom. To get stronger than the default (REALTIME, or a nice value below 0) needs the right PRIORITY.

    A process moves to another `device` while it runs: its decode goes on, programs that read it or wait for it notice
    nothing, and on a device of the same kind its tokens do not change. The call is answered when the process has arrived.
    The KV goes along if the new device computes in the same way; else it computes the log again, and the kernel log says
    why. After an error, or a cancellation in time, the process is where it was and nothing has changed. ERESTART: the
    driver of the new device is down, or died meanwhile.
    """

    pid: Pid
    nice: Nice | None = None
    sched_class: SchedClass | None = None
    device: Name = ""
    budget: Seconds = 0.0
    period: Seconds = 0.0


@_call(29, "process", Right.CONTROL, E.ESRCH, changes=True, touches=(_process(Names.LLM, N.LIMITS),), audit="limits")
class Setlimits(Call[Limits]):
    """Replace the limits of a process and return the old ones; None changes nothing. A token budget set here counts the
    tokens that the process itself has decoded, not those of its parent before a fork."""

    pid: Pid
    limits: Limits | None = None


@_call(30, "process", Right.CONTROL, E.ESRCH, changes=True, touches=(_process(Names.LLM, N.CONTROL),), audit="processes")
class Detach(Call[None]):
    """Make a process a child of init: it lives on when the program that started it ends, and any program may `wait` for
    it. Harmless if it is so already."""

    pid: Pid


@_call(31, "process", Right.CONTROL, E.ESRCH, changes=True, touches=(_process(Names.LLM, N.CONTROL),), audit="processes")
class Rename(Call[str]):
    """Give a process another name, and return the old one. Names are for people: several processes may have the same."""

    pid: Pid
    name: Annotated[str, Meta(min_length=1, max_length=limits.MAX_NAME, pattern=PRINTABLE)]


@_call(
    32,
    "process",
    Right.CONTROL,
    E.ESRCH,
    E.EBUSY,
    E.EIO,
    E.ERESTART,
    changes=True,
    blocks=True,
    touches=(_process(Names.LOG, N.CONTROL),),
    audit="files",
)
class Shred(Call[ShredInfo]):
    """End an LLM process and destroy what it has said: its log, its records, the answers about it, its KV in frames and
    in lower tiers, and the keys under which the journal and the process images that this kernel wrote of it are.

    Answered when that is done and on the disk; what could not be reached is listed. Children that were forked from it,
    and whoever has read it, keep what they have. It is done even if the caller takes the call back.
    """

    pid: Pid


@_call(
    33,
    "process",
    Right.CONTROL,
    E.ESRCH,
    E.EIO,
    E.ERESTART,
    changes=True,
    blocks=True,
    touches=(Touches("owner", Names.OWNER, needs=Needs.CONTROL),),
    audit="files",
)
class ShredOwner(Call[ShredInfo]):
    """End all LLM processes of a user (`owner` is his user id) and of the tenants whom he speaks for, or of one tenant
    (`1000/acme`), and destroy what they have said, as `shred` does; and destroy his keys, so that all process images that
    were encrypted under them are gone, whichever kernel of its user wrote them.

    Answered when that is done and on the disk. What his programs start meanwhile is not part of it, and they stay
    connected. ESRCH: there is no such owner here, or he is not for the caller to destroy.
    """

    owner: OwnerName


# --- context --------------------------------------------------------------------------------------------------------


@_call(
    40,
    "context",
    Right.CONTROL,
    E.ESRCH,
    E.E2BIG,
    E.EBUSY,
    changes=True,
    touches=(_process(Names.RUNNER, N.CONTROL, When.IN_TURN, idle=True),),
)
class Feed(Call[int]):
    """Append tokens to the log of a process that is not decoding, and return the new length.

    The kernel stores `records` with the process, at the position where the tokens begin (which may be none): what a
    program knows of the log beyond ids, so that another program can go on with it. The call `records` reads them, a fork
    copies them, they go where the log goes, and truncating the log removes those at the cut and behind it. E2BIG: the
    records of the process are too many or too long.
    """

    pid: Pid
    tokens: Tokens
    records: Blobs = []


@_call(
    41,
    "context",
    Right.CONTROL,
    E.ESRCH,
    E.EBUSY,
    E.EDQUOT,
    E.E2BIG,
    E.EIO,
    E.ENOTSUP,
    changes=True,
    blocks=True,
    touches=(_process(Names.RUNNER, N.CONTROL | N.READ, When.BOUNDARY, idle=True),),
)
class Decode(Call[DecodeResult]):
    """Let the model append up to `max_tokens` tokens. Answered when the decode has ended; `finish` says how.

    `max_tokens=0` appends nothing and reports the next token's log-probabilities. A token in `stop_ids` ends the decode
    and stays in the log. `sampler` replaces the process's own from here on. With `wait=False` the call returns at once,
    and `read` follows the decode. After `deadline` seconds the decode ends with the tokens that it has. Cancelling this
    call interrupts the decode.
    """

    pid: Pid
    max_tokens: Count
    stop_ids: StopIds = []
    sampler: Sampler | None = None
    logprobs: Annotated[int, Meta(ge=0, le=limits.MAX_LOGPROBS)] = 0
    deadline: Seconds | None = None
    wait: bool = True


@_call(42, "context", Right.CONTROL, E.ESRCH, E.EBUSY, E.ETIME, blocks=True, touches=(_process(Names.LOG, N.READ),))
class Read(Call[ReadResult]):
    """At most `limit` tokens of the log, from `position` on (-1: its end), and no more than 65,536 in one answer: whoever
    wants more reads on from there, until what he has reaches `length`.

    If there are none yet, waits while the process is decoding (with `follow`: also while it is idle), for `timeout` at
    most (then ETIME). Any position can be read again, so a client that reconnects loses nothing. EBUSY: after a boot the
    process has not got its model back, so there will be no more.
    """

    pid: Pid
    position: Annotated[int, Meta(ge=-1, le=limits.MAX_TOKEN)] = 0
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS_PER_CALL)] = limits.MAX_TOKENS_PER_CALL
    timeout: Seconds | None = None
    follow: bool = False


@_call(
    43,
    "context",
    Right.CONTROL,
    E.ESRCH,
    E.EBUSY,
    E.EINVAL,
    changes=True,
    touches=(_process(Names.RUNNER, N.CONTROL, When.BOUNDARY, idle=True),),
)
class Truncate(Call[int]):
    """Cut the log of a process that is not decoding down to `length` tokens, and return the new length. The records at
    `length` and behind it go too: a record belongs to the tokens that begin at its position."""

    pid: Pid
    length: Position


@_call(44, "context", Right.CONTROL, E.ESRCH, touches=(_process(Names.LOG, N.READ),))
class Records(Call[RecordsResult]):
    """The records of a process (see `feed`) at `position` of its log and behind it. One answer has room for all of
    them."""

    pid: Pid
    position: Position = 0


# --- memory ---------------------------------------------------------------------------------------------------------


@_call(60, "memory", Right.QUERY, tells=False)
class Models(Call[list[ModelInfo]]):
    """The models that this kernel knows by name, and of those in memory the ones that the caller's user has asked for and
    those of processes that it was granted. A confined program gets to know these alone."""


@_call(
    61,
    "memory",
    Right.MEMORY,
    E.ENOENT,
    E.ENOEXEC,
    E.ENOMEM,
    E.ENODEV,
    E.EIO,
    E.ENOTSUP,
    blocks=True,
    touches=(_DEVICE, _MODEL),
    audit="models",
)
class Pagein(Call[ModelInfo]):
    """Bring a model into a device's memory, and return its row once it is there. `model` is a known name, a directory, a
    GGUF file, or a name of the hub."""

    model: ModelName
    device: Name = ""
    dtype: Name = ""


@_call(
    62,
    "memory",
    Right.MEMORY,
    E.ENOENT,
    E.EBUSY,
    E.ENODEV,
    changes=True,
    blocks=True,
    touches=(_DEVICE, _MODEL._replace(needs=N.ADMINISTER)),
    audit="models",
)
class Evict(Call[None]):
    """Take a model that no process uses out of memory. With `force` the weights of a model in use go too, after the step
    under way; its processes keep their KV, and the weights come back when one of them wants to run."""

    model: ModelName
    device: Name = ""
    dtype: Name = ""
    force: bool = False


@_call(
    65,
    "memory",
    Right.MEMORY,
    E.ENOENT,
    E.ENOEXEC,
    E.ENOMEM,
    E.ENODEV,
    E.EIO,
    E.ENOTSUP,
    E.EBUSY,
    blocks=True,
    touches=(
        _DEVICE._replace(more=(More("advice", N.ADMINISTER, Advice.PIN),)),
        _MODEL._replace(
            more=(More("advice", N.ADMINISTER, Advice.DONTNEED), More("advice", N.ADMINISTER, Advice.NORMAL))
        ),
    ),
    audit="models",
)
class Advise(Call[None]):
    """Say how a model will be used, as madvise and mlock do for memory. The call does not wait for weights: WILLNEED and
    PIN return when the driver has read the model's configuration, DONTNEED and NORMAL at once."""

    model: ModelName
    advice: Advice
    device: Name = ""
    dtype: Name = ""


@_call(
    66,
    "memory",
    Right.MEMORY,
    E.ENOENT,
    E.ENOEXEC,
    E.ENOMEM,
    E.ENODEV,
    E.EIO,
    E.ENOTSUP,
    E.ERESTART,
    blocks=True,
    touches=(_DEVICE, _MODEL),
)
class Estimate(Call[EstimateInfo]):
    """The memory that a model would take, and the models that would have to make room for it now. The driver reads its
    configuration; nothing is loaded or evicted. `context`: tokens of the context to reckon with (0: the longest
    possible)."""

    model: ModelName
    device: Name = ""
    dtype: Name = ""
    context: Count = 0


@_call(
    63,
    "memory",
    Right.MEMORY | Right.CONTROL,
    E.ESRCH,
    E.EBUSY,
    E.ENOENT,
    E.EIO,
    E.E2BIG,
    E.ENOMEM,
    E.ENOTSUP,
    E.ERESTART,
    blocks=True,
    touches=(_process(Names.RUNNER, N.READ, When.BOUNDARY), Touches("path", Names.TARGET)),
    audit="files",
)
class Checkpoint(Call[CheckpointInfo]):
    """Write the image of a process, at its next token boundary, to the file `path` (absolute). The process goes on
    meanwhile. The driver of its device writes the image; the call is answered when the whole file is on the disk under
    its name.

    The image holds the token log, the sampler, the limits, the rest of a decode under way, and with `kv` the KV that
    there is. `key`, a passphrase, encrypts it. The call replaces an image of this name, but no other file. EPERM: it may
    not write there. EIO: it could not write (the disk is full, say), and left nothing behind.
    """

    pid: Pid
    path: FilePath
    kv: bool = True
    key: Secret = b""


@_call(
    64,
    "memory",
    Right.MEMORY | Right.SPAWN,
    E.EDQUOT,
    E.ENOENT,
    E.ENOEXEC,
    E.E2BIG,
    E.ENOMEM,
    E.ENODEV,
    E.EIO,
    E.ENOTSUP,
    E.ERESTART,
    changes=True,
    blocks=True,
    touches=(_FILE, Touches("device", Names.DEVICE, optional=True, needs=N.CHARGE), _MODEL._replace(optional=True)),
    audit="files",
)
class Restore(Call[int]):
    """Start a process from the image in the file `path` (absolute), and return its pid once it goes on where the other
    was.

    It is a child of the calling program. An empty `name` or `model` means that of the image; an empty `device` means the
    image's too, else the default device, else one that starts. The dtype is that of the image. The KV of the image is
    used if it belongs to the same model and this device computes in the same way; else the log is computed again, and the
    kernel log says why. EPERM: the passphrase (`key`) is wrong or missing. EIO: the file is too damaged to start from.
    """

    path: FilePath
    name: Name = ""
    device: Name = ""
    detached: bool = False
    key: Secret = b""
    model: Annotated[str, Meta(max_length=limits.MAX_PATH, pattern=PRINTABLE)] = ""


# --- groups ---------------------------------------------------------------------------------------------------------


@_call(80, "group", Right.CONTROL, E.ENOENT, changes=True, touches=(_group(Names.PARENT, N.CONTROL),), audit="limits")
class GroupCreate(Call[GroupInfo]):
    """Make a control group in a group that exists. A path without a leading slash is relative to the program's own group.
    Groups that are not below that one need the right ADMIN, in this call and in the following ones."""

    path: GroupPath
    settings: GroupSettings = GroupSettings()


@_call(81, "group", Right.CONTROL, E.ENOENT, changes=True, touches=(_group(Names.RULED, N.LIMITS),), audit="limits")
class GroupSet(Call[GroupSettings]):
    """Replace all settings of a group, and return the old ones. A lowered limit takes KV from the group's idle processes
    at once, and from its others when they grow."""

    path: GroupPath
    settings: GroupSettings


@_call(82, "group", Right.QUERY, E.ENOENT, touches=(_group(Names.GROUP, N.SEE),))
class GroupStat(Call[list[GroupInfo]]):
    """A group, and with `below` all groups below it, parents first. `start` skips the first rows, `limit` bounds their
    number. Of a group that is not the caller's only the number of processes is told, and of those above his own the
    settings."""

    path: GroupPath = "/"
    below: bool = False
    start: Count = 0
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_LIST)] = limits.MAX_LIST


@_call(
    83,
    "group",
    Right.CONTROL,
    E.ENOENT,
    E.EBUSY,
    changes=True,
    touches=(_group(Names.RULED, N.ADMINISTER),),
    audit="limits",
)
class GroupRemove(Call[None]):
    """Remove a group that has neither processes nor groups in it."""

    path: GroupPath


@_call(
    84,
    "group",
    Right.CONTROL,
    E.ENOENT,
    E.ESRCH,
    E.EDQUOT,
    E.EBUSY,
    changes=True,
    touches=(_process(Names.MEMBER, N.CONTROL | N.LIMITS, When.BOUNDARY), _group(Names.PLACE, N.CHARGE)),
    audit="limits",
)
class GroupMove(Call[None]):
    """Move a process (0: the calling program) into a group of its own owner, or of one who is over that; its children
    stay where they are. The charges for its frames and swap slots go with it, except for frames that other processes map
    too."""

    pid: Annotated[int, Meta(ge=0)]
    path: GroupPath


@_call(85, "group", Right.CONTROL, E.ENOENT, changes=True, touches=(_group(Names.PLACE, N.CONTROL),), audit="processes")
class GroupKill(Call[int]):
    """Send a signal to all LLM processes of a group and of the groups below it, at once: no step begins between the first
    and the last, however many there are. KILL and TERM end those too that come in meanwhile. Returns how many there were.
    Of very many, a call that is cancelled, or whose program ends, may have reached some only."""

    path: GroupPath
    signal: Signal = Signal.TERM


# --- rights ---------------------------------------------------------------------------------------------------------

# The rights that can be handed on: those that calls on processes need.
HANDED = int(Needs.SEE | Needs.READ | Needs.CONTROL | Needs.LIMITS)
Handed = Annotated[int, Meta(ge=1, le=HANDED)]


@_call(
    100,
    "rights",
    Right.CONTROL,
    E.ESRCH,
    E.ENOENT,
    E.EBUSY,
    E.EDQUOT,
    changes=True,
    draws=True,
    dated="seconds",
    touches=(
        _process(Names.LLM, N.SEE, optional=True),
        Touches("group", Names.GROUP, optional=True, needs=N.SEE),
    ),
    audit="rights",
)
class Grant(Call[GrantInfo]):
    """Hand rights on an LLM process to another program; or, with `pid` 0, on those of a `group`: on all that are in it or
    in a group in it at the time of each call, so on those that come later, and on none that has left. `rights` are bits:
    1 see it, 2 read its log, 4 control it, 8 change its limits; one must have them oneself, and sees what one has any
    right on.

    The answer has a ticket. It is good once, and only for a program of the owner `to` (a uid, or `uid/tenant`), which
    gives it to `accept`. Who has a right by a grant can pass on as much of it, or less, and so on; each grant is made of
    the one before it, and ends no later. `revoke` takes a grant back with all that was made of it. It also ends with the
    program that holds it, with the process or group, and, if `seconds` is not 0, after so many: by the wall clock, which
    goes on while no kernel runs. With `sandbox`, one that the caller has opened, there is no ticket and nothing in `to`:
    each program of the sandbox has it at once. EDQUOT: there are too many grants, or this one was passed on too often.
    ENOENT: no such group.
    """

    pid: Annotated[int, Meta(ge=0)]
    to: OwnerName
    rights: Handed
    group: GroupPath = ""
    seconds: Annotated[float, Meta(ge=0.0, le=limits.MAX_GRANT_SECONDS)] = 0.0
    sandbox: Handle = 0


@_call(101, "rights", Right.QUERY, E.ESRCH, E.EDQUOT, changes=True, audit="rights")
class Accept(Call[GrantInfo]):
    """Take what a ticket of `grant` gives: the process is there for the calling program from here on, under the pid of
    the answer. ESRCH: no grant waits under this ticket for a program of this owner."""

    ticket: Annotated[bytes, Meta(max_length=limits.MAX_TICKET)]


@_call(102, "rights", Right.QUERY)
class Grants(Call[list[GrantInfo]]):
    """At most `limit` grants that the caller holds or may take back, from the first handle above `after` on."""

    after: Handle = 0
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_LIST)] = limits.MAX_LIST


@_call(103, "rights", Right.QUERY, E.ESRCH, changes=True, audit="rights", synced=True)
class Revoke(Call[int]):
    """Take back a grant and all that was made of it, at once, and return how many these were.

    Whoever owns the process may, and who holds the grant or one that it was made of. Calls that wait by it fail with
    EPERM before this one is answered, and the journal is on the disk, whatever its `fsync` says. What was read, and what
    was forked or written to a file, is not reached.
    """

    handle: Annotated[int, Meta(ge=1)]


@_call(
    104,
    "rights",
    Right.CONTROL,
    E.EIO,
    E.ENOTSUP,
    blocks=True,
    changes=True,
    draws=True,
    audit="rights",
)
class SandboxOpen(Call[SandboxInfo]):
    """Open an endpoint at which programs are confined, whatever they say: a socket in a directory of its own. Who is to
    start a program that can do no more than it was granted starts it where the host shows it this directory, and no other
    of the kernel's. Its programs are of the caller's owner and in the caller's group, and each has what `grant` gives the
    sandbox. It is closed with the caller. EIO: the socket cannot be made. ENOTSUP: the caller is on another machine."""


@_call(105, "rights", Right.CONTROL, E.ESRCH, changes=True, audit="rights", synced=True)
class SandboxClose(Call[None]):
    """Close a sandbox: its socket goes, its programs' connections end, and the grants that were made for it are taken
    back. ESRCH: it is none of the caller's."""

    sandbox: Handle


@_call(106, "system", Right(0), tells=False)
class Leave(Call[None]):
    """End this program as the end of its connection does: the kernel ends its processes but the detached.

    Who comes from another machine says so before it closes its connection. One that ends without this may have been cut
    on its way: where a journal is kept its program, its processes and its calls go on for a while (`[net] grace`), and
    belong to it again if it comes back by the same key and shows its ticket."""


PROCESSES = frozenset({Names.PROCESS, Names.ROW, Names.CHILD, Names.MEMBER, Names.LLM, Names.LOG, Names.RUNNER})

# The calls of a confined program: those that name processes alone, and these.
_PLAIN: frozenset[type[Call[Any]]] = frozenset(
    {Attach, Leave, Null, BootInfoCall, Ps, Models, Grant, Accept, Grants, Revoke}
)
CONFINED: frozenset[type[Call[Any]]] = _PLAIN | {
    row.record for row in TABLE.values() if row.touches and all(touches.what in PROCESSES for touches in row.touches)
}


# Number 0 is no call of its own: it cancels the caller's call with the given sequence number (see wire.py).
CANCEL = 0
