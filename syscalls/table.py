"""Every system call, declared once: number, name, arguments, result, errors, right needed.

Client stubs (`await kernel(Spawn(model="tiny"))` is typed `int`), the kernel's dispatch, decoding for strace, permission
bits and the manual page (docs/syscalls.md) all come from these records. seL4's interface files are the model. Numbers are
ABI: never reused, never changed. Arguments are only ever added at the end, with a default.

A call that blocks takes a `timeout` or ends when what it waits for ends; every one can be cancelled by its caller and
is then answered with EINTR.
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
    GroupInfo,
    GroupPath,
    GroupSettings,
    Limits,
    LogLine,
    ModelInfo,
    ModelName,
    Name,
    Nice,
    Pid,
    Position,
    ProcessInfo,
    ReadResult,
    RecordsResult,
    Right,
    Sampler,
    SchedClass,
    SchedInfo,
    Seconds,
    Secret,
    Signal,
    Stats,
    StopIds,
    Tokens,
    TraceResult,
)

R = TypeVar("R")
C = TypeVar("C", bound="Call[Any]")


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))  # mypy: subclasses are frozen too
class Call(msgspec.Struct, Generic[R], array_like=True, frozen=True, forbid_unknown_fields=True):
    """The arguments of one system call; `R` is the type of its result."""


class Names(enum.Enum):
    """What a field of a call names. The kernel finds the object, tests that the caller may have it, and hands it to the
    call's handler (kernel/calls/lookup.py)."""

    PROCESS = enum.auto()  # a living process of any kind; 0: the caller
    ROW = enum.auto()  # a row of the process table, zombies included; 0: the caller
    MEMBER = (
        enum.auto()
    )  # a living program or LLM process in the caller's control group, or anywhere with ADMIN; 0: the caller
    LLM = enum.auto()  # a living LLM process
    LOG = enum.auto()  # an LLM process, zombies included: their logs can be read until they are reaped
    RUNNER = enum.auto()  # a living LLM process that has its model
    DEVICE = enum.auto()  # empty: the default device, or none if it is `optional`
    MODEL = enum.auto()  # a known name, which stands for a path, or a path
    FILE = enum.auto()  # an absolute path
    GROUP = enum.auto()  # a control group, by its path from the caller's own or from the root
    PLACE = enum.auto()  # a group that the caller may put processes into: below its own, or anywhere with ADMIN
    RULED = enum.auto()  # a group that the caller may change: strictly below its own, or anywhere with ADMIN
    PARENT = (
        enum.auto()
    )  # the group that a new one is to be in, and the new one's name; the caller may change what is in it


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
    touches: tuple[Touches, ...]


TABLE: dict[int, Entry] = {}
BY_NAME: dict[str, Entry] = {}
BY_RECORD: dict[type[Call[Any]], Entry] = {}


def _call(
    number: int, family: str, right: Right, *errors: Errno, blocks: bool = False, touches: tuple[Touches, ...] = ()
) -> Callable[[type[C]], type[C]]:
    """Enter a record into the table. Any call can also fail with the errors in `COMMON`."""

    def enter(record: type[C]) -> type[C]:
        name = "".join("_" + c.lower() if c.isupper() else c for c in record.__name__.removesuffix("Call")).lstrip("_")
        result = get_args(record.__orig_bases__[0])[0]  # type: ignore[attr-defined]
        entry = Entry(number, name, family, record, result, errors, right, blocks, touches)
        if number in TABLE or name in BY_NAME:
            raise ValueError(f"system call {number} ({name}) is declared twice")
        TABLE[number] = BY_NAME[name] = BY_RECORD[record] = entry
        return record

    return enter


COMMON = (Errno.EINVAL, Errno.ENOSYS, Errno.EPERM, Errno.EPROTO, Errno.EMSGSIZE, Errno.EPIPE, Errno.EINTR, Errno.EAGAIN)

E = Errno

_DEVICE = Touches("device", Names.DEVICE)
_MODEL = Touches("model", Names.MODEL)
_FILE = Touches("path", Names.FILE)
_AT_BOUNDARY = Touches("pid", Names.RUNNER, When.BOUNDARY)
_IDLE_AT_BOUNDARY = Touches("pid", Names.RUNNER, When.BOUNDARY, idle=True)

# --- system ---------------------------------------------------------------------------------------------------------


@_call(1, "system", Right(0), Errno.ESRCH)
class Attach(Call[BootInfo]):
    """Become a program of this kernel; must be a connection's first call. `rights` is what the program keeps.

    Calling it again on the same connection gives up further rights and returns the same pid. With the `ticket` that
    BootInfo gave in an earlier life of this kernel the program is taken up again: its pid, rights and processes. It then
    sends its unanswered calls again under their old sequence numbers; what had been done is not done twice. ESRCH: the
    ticket is of no program that is expected back. EAGAIN: the program is attached by another connection still.
    """

    name: Name = ""
    rights: Annotated[int, Meta(ge=0, le=int(Right.ALL))] = int(Right.ALL)
    ticket: Annotated[bytes, Meta(max_length=limits.MAX_TICKET)] = b""


@_call(2, "system", Right(0))
class Null(Call[None]):
    """Do nothing, and be answered: the round trip that benchmarks measure, and a liveness check."""


@_call(3, "system", Right.QUERY)
class BootInfoCall(Call[BootInfo]):
    """What was booted: version, devices, policies, runtime directory."""


@_call(4, "system", Right.QUERY)
class StatsCall(Call[Stats]):
    """Counters since boot."""


@_call(5, "system", Right.QUERY, blocks=True)
class Trace(Call[TraceResult]):
    """Events of the trace from sequence number `start` on (-1: from now), waiting up to `timeout` for the first.

    Tracing is on while somebody reads: from the first call until ten seconds after the last one.
    """

    start: int = -1
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_LIST)] = limits.MAX_LIST
    timeout: Seconds = 0.0


@_call(6, "system", Right.QUERY)
class Dmesg(Call[list[LogLine]]):
    """Lines of the kernel log after sequence number `after`."""

    after: int = -1
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_LIST)] = limits.MAX_LIST


@_call(7, "system", Right.ADMIN)
class Shutdown(Call[None]):
    """Halt: every process is killed, drivers end, the runtime directory is emptied."""


@_call(8, "system", Right.ADMIN, E.ENODEV, touches=(_DEVICE,))
class Sched(Call[SchedInfo]):
    """Change (or with empty arguments only report) how a device is scheduled. Takes effect with the next step."""

    device: Name = ""  # empty: the default device
    policy: Name = ""
    max_runs: Annotated[int, Meta(ge=0, le=limits.MAX_RUNS)] = 0
    step_tokens: Annotated[int, Meta(ge=0, le=limits.MAX_STEP_TOKENS)] = 0


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
    blocks=True,
    touches=(_DEVICE, Touches("group", Names.PLACE), _MODEL),
)
class Spawn(Call[int]):
    """Start an LLM process on a model with `tokens` as its first context, and return its pid once the model is in memory.

    The process is a child of the calling program and is killed with it unless `detached`. With `once`, it exits when
    its first decode ends. The default seed is derived from the pid. `group` is relative to the program's own group.
    `records` stand at position 0 (see `feed`).
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


@_call(21, "process", Right.SPAWN, E.ESRCH, E.EBUSY, E.ENOMEM, E.EDQUOT, touches=(_AT_BOUNDARY,))
class Fork(Call[list[int]]):
    """Copy a process at its next token boundary `count` times; pages are shared copy-on-write. Returns the pids.

    A child continues what the parent is doing: if the parent is decoding, so does the child. Its sampler's seed is
    derived from the parent's and the child's index, unless `same_seed`. Children of a fork belong to the calling program,
    and to its control group.
    """

    pid: Pid
    count: Annotated[int, Meta(ge=1, le=limits.MAX_FORK)] = 1
    same_seed: bool = False
    detached: bool = False


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
    blocks=True,
    touches=(Touches("pid", Names.RUNNER, When.BOUNDARY, idle=True, alone=True), _MODEL),
)
class Exec(Call[None]):
    """Swap the model under an idle process; pid, limits, class, group, sampler and parent stay. Its tokens stay if the
    vocabulary has the same size, or are replaced by `tokens` if given. Whether vocabularies of one size are the same is
    for the caller to know: the kernel sees ids, no words. Records stay with tokens that stay; with `tokens`, `records`
    take the place of all there were, at position 0. On any error the process is as it was; EAGAIN: its log no
    longer has the `length` that is given, so that the `tokens` are not what it says."""

    pid: Pid
    model: ModelName
    tokens: Tokens | None = None
    dtype: Name = ""
    length: Annotated[int, Meta(ge=-1, le=limits.MAX_TOKEN)] = -1  # of the log from which `tokens` were made
    records: Blobs = []


@_call(23, "process", Right.CONTROL, E.ESRCH, touches=(Touches("pid", Names.PROCESS),))
class Exit(Call[None]):
    """End a process with a status; `pid` 0 is the calling program itself (its children end with it)."""

    pid: Annotated[int, Meta(ge=0)] = 0
    status: Annotated[int, Meta(ge=0, le=255)] = 0


@_call(24, "process", Right.CONTROL, E.ECHILD, E.ETIME, blocks=True)
class Wait(Call[ExitInfo]):
    """Wait until a child (`pid` 0: any) of the calling program has exited, and reap it."""

    pid: Annotated[int, Meta(ge=0)] = 0
    timeout: Seconds | None = None


@_call(25, "process", Right.CONTROL, E.ESRCH, touches=(Touches("pid", Names.PROCESS),))
class Kill(Call[None]):
    """Send a signal. To a program it is delivered by the operating system; KILL to a driver has it restarted."""

    pid: Pid
    signal: Signal = Signal.TERM


@_call(26, "process", Right.QUERY, E.ESRCH, touches=(Touches("pid", Names.ROW),))
class Getinfo(Call[ProcessInfo]):
    """Everything known of one process; `pid` 0 is the calling program."""

    pid: Annotated[int, Meta(ge=0)] = 0


@_call(27, "process", Right.QUERY)
class Ps(Call[list[ProcessInfo]]):
    """The process table in order of pid, after pid `after`, at most `limit` rows."""

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
    blocks=True,
    touches=(Touches("pid", Names.LLM), Touches("device", Names.DEVICE, optional=True)),
)
class Setsched(Call[None]):
    """Change nice value, class and device; what is None or empty stays.

    To another `device` a process is moved as it runs: its decode goes on, those who read it or wait for it notice
    nothing, and on a device of the same kind its tokens are those it would have had. Answered once it lives there. Its KV
    goes with it if that device computes in the same way; else its log is computed again, and the kernel log says why. On
    any error it is where it was, and nothing is changed; so it is if the call is cancelled in time. ERESTART: the driver
    there is down, or died meanwhile.
    """

    pid: Pid
    nice: Nice | None = None
    sched_class: SchedClass | None = None
    device: Name = ""


@_call(29, "process", Right.CONTROL, E.ESRCH, touches=(Touches("pid", Names.LLM),))
class Setlimits(Call[Limits]):
    """Replace the limits of a process and return the old ones; None only reports. A token budget given here counts
    what the process itself has decoded, not what its parent had before a fork."""

    pid: Pid
    limits: Limits | None = None


# --- context --------------------------------------------------------------------------------------------------------


@_call(
    40,
    "context",
    Right.CONTROL,
    E.ESRCH,
    E.E2BIG,
    E.EBUSY,
    touches=(Touches("pid", Names.RUNNER, When.IN_TURN, idle=True),),
)
class Feed(Call[int]):
    """Append tokens to the log of a process that is not decoding; returns the new length.

    `records` are kept with the process as they are, at the position where the tokens begin (there may be none): what a
    program must know of the log beyond ids, so that any other can go on with it. They are read with `records`, copied by
    a fork, and go where the log goes; a cut takes those at and behind it. E2BIG: a process has too many or too long ones.
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
    blocks=True,
    touches=(_IDLE_AT_BOUNDARY,),
)
class Decode(Call[DecodeResult]):
    """Let the model append up to `max_tokens` tokens; answered when that has ended (`finish` says how).

    `max_tokens=0` appends nothing and reports the next token's log-probabilities. A token in `stop_ids` ends the decode
    and stays in the log. `sampler` replaces the process's own from here on. With `wait=False` the call returns at once;
    follow with `read`. Passing `deadline` seconds ends the decode with what it has. Cancelling this call interrupts it.
    """

    pid: Pid
    max_tokens: Count
    stop_ids: StopIds = []
    sampler: Sampler | None = None
    logprobs: Annotated[int, Meta(ge=0, le=limits.MAX_LOGPROBS)] = 0
    deadline: Seconds | None = None
    wait: bool = True


@_call(42, "context", Right.CONTROL, E.ESRCH, E.ETIME, blocks=True, touches=(Touches("pid", Names.LOG),))
class Read(Call[ReadResult]):
    """Tokens of the log from `position` on (-1: its end), at most `limit`.

    If there are none yet, waits while the process is decoding (with `follow`: also while it is idle) up to `timeout`
    (then ETIME). Any position can be read again: a client that reconnects loses nothing.
    """

    pid: Pid
    position: Annotated[int, Meta(ge=-1, le=limits.MAX_TOKEN)] = 0
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS_PER_CALL)] = limits.MAX_TOKENS_PER_CALL
    timeout: Seconds | None = None
    follow: bool = False


@_call(43, "context", Right.CONTROL, E.ESRCH, E.EBUSY, E.EINVAL, touches=(_IDLE_AT_BOUNDARY,))
class Truncate(Call[int]):
    """Cut the log of a process that is not decoding down to `length` tokens; returns the new length. A record belongs to
    the tokens that begin at its position: those at `length` and behind it are gone too."""

    pid: Pid
    length: Position


@_call(44, "context", Right.CONTROL, E.ESRCH, touches=(Touches("pid", Names.LOG),))
class Records(Call[RecordsResult]):
    """The records of a process (see `feed`) at `position` of its log and behind it. There are never so many that one
    answer could not have them all."""

    pid: Pid
    position: Position = 0


# --- memory ---------------------------------------------------------------------------------------------------------


@_call(60, "memory", Right.QUERY)
class Models(Call[list[ModelInfo]]):
    """The models this kernel knows by name, and those in memory."""


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
)
class Pagein(Call[ModelInfo]):
    """Bring a model (a known name, a directory, or a hub name) into a device's memory; returns once it is there."""

    model: ModelName
    device: Name = ""
    dtype: Name = ""


@_call(62, "memory", Right.MEMORY, E.ENOENT, E.EBUSY, E.ENODEV, blocks=True, touches=(_DEVICE, _MODEL))
class Evict(Call[None]):
    """Take a model that no process uses out of memory. With `force` its weights go even if processes use it, once the
    step on the device is done; their KV stays, and the weights come back when one of them wants to run."""

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
    touches=(_DEVICE, _MODEL),
)
class Advise(Call[None]):
    """Say how a model will be used, as madvise and mlock do for memory. It does not wait for weights: WILLNEED and PIN
    return when the model's configuration has been read, DONTNEED and NORMAL at once."""

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
    """What a model would take, and who would have to go for it as things are. Its configuration is read; nothing is
    loaded, and nobody goes. `context`: tokens of a context to count with; 0: as many as it can have here."""

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
    touches=(_AT_BOUNDARY, _FILE),
)
class Checkpoint(Call[CheckpointInfo]):
    """Write the image of a process, as it is at its next token boundary, to the file `path` (absolute); it goes on
    meanwhile. Answered when the image is on the disk, under its name, whole; the driver of its device writes it.

    The image is the token log, the sampler, the limits, what is left of a decode under way, and, with `kv`, the KV there
    is. With `key`, a passphrase, it is encrypted. An image that has the name already is replaced; any other file is not.
    EPERM: the file may not be written there. EIO: it could not be, for want of space, say; nothing is left of it then.
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
    blocks=True,
    touches=(_FILE, Touches("device", Names.DEVICE, optional=True)),
)
class Restore(Call[int]):
    """Start a process from the image in the file `path` (absolute); returns its pid once it goes on where the other was.

    It is a child of the calling program. `device` is where (empty: where it was; if that is not here, the
    default device; if that does not start, one that does), `name` what it is called and `model` what it runs (empty: as
    before); its dtype is that of the image. The KV of the image is used if
    it is of the same model and was computed in the same way as here; else the log is computed again, and the kernel log
    says why. EPERM: the passphrase (`key`) is wrong or missing. EIO: the file is so damaged that nothing can be started.
    """

    path: FilePath
    name: Name = ""
    device: Name = ""
    detached: bool = False
    key: Secret = b""
    model: Annotated[str, Meta(max_length=limits.MAX_PATH, pattern=PRINTABLE)] = ""


# --- groups ---------------------------------------------------------------------------------------------------------


@_call(80, "group", Right.CONTROL, E.ENOENT, touches=(Touches("path", Names.PARENT),))
class GroupCreate(Call[GroupInfo]):
    """Make a control group; the one it is to be in must exist. A path without a leading slash is relative to the
    program's own group. Groups that are not below that need the right ADMIN, here as in the calls that follow."""

    path: GroupPath
    settings: GroupSettings = GroupSettings()


@_call(81, "group", Right.CONTROL, E.ENOENT, touches=(Touches("path", Names.RULED),))
class GroupSet(Call[GroupSettings]):
    """Replace the settings of a group, all at once, and return the old ones. KV above a lowered limit is taken from the
    group's sleepers at once, and from others when they grow."""

    path: GroupPath
    settings: GroupSettings


@_call(82, "group", Right.QUERY, E.ENOENT, touches=(Touches("path", Names.GROUP),))
class GroupStat(Call[list[GroupInfo]]):
    """A group, and with `below` all groups in it, parents first; of these the first `start` are left out."""

    path: GroupPath = "/"
    below: bool = False
    start: Count = 0
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_LIST)] = limits.MAX_LIST


@_call(83, "group", Right.CONTROL, E.ENOENT, E.EBUSY, touches=(Touches("path", Names.RULED),))
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
    touches=(Touches("pid", Names.MEMBER, When.BOUNDARY), Touches("path", Names.PLACE)),
)
class GroupMove(Call[None]):
    """Move a process (0: the calling program) into a group; its children stay where they are. Its frames and places go
    with it, but for frames that others map too."""

    pid: Annotated[int, Meta(ge=0)]
    path: GroupPath


# Number 0 is not a call of its own: it cancels the caller's call with the given sequence number (see wire.py).
CANCEL = 0
