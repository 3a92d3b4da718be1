"""Arguments and results of system calls: typed records, encoded as msgpack arrays.

Times are seconds (float) of the kernel's monotonic clock; sizes are bytes. A new field is only ever added at a record's
end, with a default, so that older programs go on working.
"""

from __future__ import annotations

import enum
from typing import Annotated, dataclass_transform

import msgspec
from msgspec import Meta

from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno

Token = Annotated[int, Meta(ge=0, le=limits.MAX_TOKEN)]
Tokens = Annotated[list[Token], Meta(max_length=limits.MAX_TOKENS_PER_CALL)]
StopIds = Annotated[list[Token], Meta(max_length=limits.MAX_STOP_IDS)]
Pid = Annotated[int, Meta(ge=1)]
# Programs show names on terminals, which obey control characters (C0, DEL, C1).
PRINTABLE = r"\A[^\x00-\x1f\x7f-\x9f]*\Z"
Name = Annotated[str, Meta(max_length=limits.MAX_NAME, pattern=PRINTABLE)]
ModelName = Annotated[str, Meta(min_length=1, max_length=limits.MAX_PATH, pattern=PRINTABLE)]
FilePath = Annotated[str, Meta(min_length=1, max_length=limits.MAX_PATH, pattern=PRINTABLE)]
Secret = Annotated[bytes, Meta(max_length=limits.MAX_KEY)]  # bytes are secrets: no trace shows them (wire.describe)
Blob = Annotated[bytes, Meta(max_length=limits.MAX_RECORD_BYTES)]
Blobs = Annotated[list[Blob], Meta(max_length=limits.MAX_RECORDS)]
Nice = Annotated[int, Meta(ge=limits.NICE_MIN, le=limits.NICE_MAX)]
Seconds = Annotated[float, Meta(ge=0.0, le=limits.MAX_TIMEOUT)]
PolicyName = Annotated[str, Meta(max_length=limits.MAX_PATH + limits.MAX_NAME, pattern=PRINTABLE)]
# One name of a control group, since a tenant has one of its own.
# `key-NAME` is the owner of what comes by that key (syscalls/curve_keys.py).
TENANT = r"\A(?!\.{1,2}\Z|session-|key-)[A-Za-z0-9_.-]*\Z"
_TENANT = "letters, digits, '_', '.' and '-', and no 'session-' or 'key-' before them"
Tenant = Annotated[str, Meta(max_length=limits.MAX_TENANT, pattern=TENANT, description=_TENANT)]
OWNER = r"\A([0-9]{1,10}(/[A-Za-z0-9_.-]+)?)?\Z"
OwnerName = Annotated[
    str,
    Meta(max_length=limits.MAX_TENANT + 11, pattern=OWNER, description="a user id, or that and a tenant, as 1000/acme"),
]
Handle = Annotated[int, Meta(ge=0)]  # of a grant; those of other users than the caller's are marked, as pids are
GroupPath = Annotated[str, Meta(max_length=limits.MAX_PATH, pattern=PRINTABLE)]
Bytes = Annotated[int, Meta(ge=0, le=(1 << 62))]
Position = Annotated[int, Meta(ge=0, le=limits.MAX_TOKEN)]
Count = Annotated[int, Meta(ge=0, le=limits.MAX_TOKEN)]


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))  # mypy: subclasses are frozen too
class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A value that crosses the wire."""


class State(enum.StrEnum):
    """The states of a process (docs/design.md)."""

    NEW = "new"
    READY = "ready"
    RUNNING = "running"
    BLOCKED = "blocked"
    STOPPED = "stopped"
    ZOMBIE = "zombie"


class WaitFor(enum.StrEnum):
    """What a blocked process waits for."""

    NONE = ""
    INPUT = "input"  # a caller that feeds it or has it decode
    PAGEIN = "pagein"  # frames for its KV
    WEIGHTS = "weights"  # its model
    DEVICE = "device"  # a driver that is being restarted
    QUOTA = "quota"  # its control group: a rate of tokens, or its memory
    CHILD = "child"  # a program in `wait`
    RETURN = "return"  # a program that is away since the kernel was booted or its connection cut, and may have ended


class Kind(enum.StrEnum):
    """The kinds of rows in the process table."""

    INIT = "init"  # pid 1, the kernel itself; orphans become its children
    DRIVER = "driver"  # a device's driver
    PROGRAM = "program"  # a userland program attached to the kernel
    LLM = "llm"  # a model and a token log


class SchedClass(enum.StrEnum):
    """Scheduling classes, strongest first."""

    REALTIME = "realtime"  # while its budget lasts; FAIR from then on until the next period
    FAIR = "fair"
    BATCH = "batch"
    IDLE = "idle"


class Signal(enum.IntEnum):
    """Signals; they take effect at token boundaries. Numbers are Linux's."""

    INT = 2  # interrupts the decode under way; the process stays
    KILL = 9  # ends the process
    TERM = 15  # ends the process
    CHLD = 17  # a child has ended
    CONT = 18  # lets a stopped process go on
    STOP = 19  # stops the process
    XCPU = 24  # from the kernel: the token budget is used up


class Finish(enum.StrEnum):
    """Why a decode ended."""

    NONE = ""  # it has not ended
    STOP = "stop"  # the model sampled a stop id, which is the last token of the log
    LENGTH = "length"  # it appended `max_tokens`
    CONTEXT = "context"  # the context window is full
    BUDGET = "budget"  # the process's token budget is used up
    INTERRUPT = "interrupt"  # SIGINT, or a cancelled call
    DEADLINE = "deadline"  # its time was up
    KILLED = "killed"  # the process was ended
    ERROR = "error"  # the device could not compute it; `reason` of ProcessInfo says why


class Advice(enum.StrEnum):
    """How a model will be used (`advise`)."""

    NORMAL = "normal"  # take back earlier advice, a pin too
    WILLNEED = "willneed"  # load it in the background, unless a model with running processes would have to go
    DONTNEED = "dontneed"  # evict it first; at once, if no process uses it
    PIN = "pin"  # load it likewise, and never evict it


class Right(enum.IntFlag):
    """The rights of a program. It can give them up when it attaches, and never regain them."""

    QUERY = 1  # look: ps, models, stats, trace
    SPAWN = 2  # start processes
    CONTROL = 4  # feed, decode, signal, schedule processes
    MEMORY = 8  # page models in and out
    ADMIN = 16  # policy, shutdown
    SPEAK = 32  # attach for a tenant
    PRIORITY = 64  # schedule stronger than the default: nice below 0, and REALTIME
    ALL = 127


Temperature = Annotated[float, Meta(ge=0.0, le=100.0)]
TopP = Annotated[float, Meta(gt=0.0, le=1.0)]
MinP = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(gt=0.0, le=100.0)]


class Sampler(Record):
    """How to choose the next token from the logits, in this order: repetition penalty (as in CTRL, arXiv:1909.05858, over
    every token of the log), temperature, top-k, min-p, top-p. The random number of a token depends on `(seed, position)`
    only.
    """

    temperature: Temperature = 0.0  # 0: greedy, the token with the greatest penalised logit, the lowest id among equals
    top_k: Count = 0  # 0: off
    top_p: TopP = 1.0  # 1: off
    min_p: MinP = 0.0  # 0: off
    repetition_penalty: Penalty = 1.0  # 1: off
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0


class SamplingDefaults(Record):
    """The sampling that a model's makers advise (its generation_config.json). None: no advice, and off. The kernel passes
    it on; the SDK applies it to the processes that it spawns."""

    temperature: Temperature | None = None
    top_k: Count | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    repetition_penalty: Penalty | None = None


class Limits(Record):
    """Limits of one process; 0: none of its own."""

    context: Count = 0  # tokens its log may hold; the model's window is the outer bound
    tokens: Count = 0  # tokens it may decode in its life (then EDQUOT), those of its parent before the fork included
    pages: Count = 0  # KV frames it may map


class TokenLogprobs(Record):
    """Log-probabilities of one position: log_softmax of the raw fp32 logits, before penalty and temperature."""

    token: Token
    logprob: float  # of `token`
    top_ids: list[Token]  # the likeliest tokens, best first
    top_logprobs: list[float]  # of `top_ids`


class DecodeResult(Record):
    """The tokens that a decode appended. With `max_tokens=0` there are none, and `logprobs` has one entry: for the token
    that would come next, of which `token` is the greedy choice."""

    position: Position  # of the first token in the log
    tokens: Tokens
    finish: Finish  # why it ended
    logprobs: list[TokenLogprobs] = []  # one for each token, if asked for


class ReadResult(Record):
    """A stretch of the log. Read on from `position + len(tokens)`."""

    position: Position  # of the first token
    tokens: Tokens
    decoding: bool  # more tokens are on their way
    finish: Finish  # how the last decode ended
    state: State  # of the process
    length: Count  # of the log


class LogRecord(Record):
    """What a program knows, beyond ids, of the tokens that begin at `position`: roles, tools, messages. The kernel stores
    it with the log and does not read it."""

    position: Position
    data: Blob


class RecordsResult(Record):
    """The records of a log."""

    records: list[LogRecord]  # in the order of their positions
    length: Count  # of the log


class Usage(Record):
    """The resources that a process has used so far."""

    fed: Count = 0  # tokens appended by feed
    decoded: Count = 0  # tokens appended by the model
    computed: Count = 0  # tokens run through the model, recomputation included
    reused: Count = 0  # tokens whose KV prefix sharing found
    steps: Count = 0  # steps of a device that it was in
    preemptions: Count = 0  # times that it lost its pages
    forks: Count = 0  # children that it forked
    device_seconds: float = 0.0  # its share (by tokens) of the steps that it was in
    waits: dict[str, float] = {}  # seconds spent READY ("ready") or BLOCKED, by reason
    refaults: int = 0  # times that it lost its pages while it wanted to run, and got pages again


class ProcessInfo(Record):
    """A row of the process table: an LLM process, a program, a driver, or the kernel."""

    pid: int
    ppid: int  # of its parent
    kind: Kind
    name: str
    state: State
    wait: WaitFor = WaitFor.NONE  # what it waits for, if it is blocked
    model: str = ""  # path of the model that an LLM process runs
    device: str = ""  # name of its device
    sched_class: SchedClass = SchedClass.FAIR
    nice: int = 0
    length: int = 0  # tokens in the log
    cached: int = 0  # of those, tokens whose KV is on the device
    context: int = 0  # tokens the log may hold at most
    pages: int = 0  # frames that it maps
    shared_pages: int = 0  # of those, frames that other processes map too
    decoding: bool = False  # a decode is under way
    finish: Finish = Finish.NONE  # how the last decode ended
    started: float = 0.0  # seconds after boot
    exit_status: int = 0  # of a zombie
    usage: Usage = Usage()
    limits: Limits = Limits()
    os_pid: int = 0  # of programs and drivers
    rss: int = 0  # bytes resident, of programs and drivers
    cpu_seconds: float = 0.0  # of programs and drivers
    seed: int = 0  # of its sampler
    parked: int = 0  # calls that wait for this process
    swapped: int = 0  # pages in a lower tier and in no frame
    group: str = ""  # path of its control group
    errno: Errno = Errno.OK  # of the error that ended its last decode (lost when the kernel dies)
    reason: str = ""  # that error; why it is stopped or held up; what bounds a full context; of a zombie, why it ended
    record_bytes: int = 0  # of its records (`records`)
    budget: float = 0.0  # of a REALTIME process: seconds of its device's time
    period: float = 0.0  # in each so many seconds


class GrantInfo(Record):
    """Rights on a process, or on those of a group, that were handed to another program, or wait for it."""

    handle: int
    pid: int  # of the process; 0: it is on a group
    rights: int  # bits, as of the call `grant`
    to: str  # the owner to whose programs it was given
    holder: int = 0  # pid of the program that has accepted it; 0: none has yet
    parent: int = 0  # handle that it was made of; 0: none, or none that the caller may know
    ticket: bytes = b""  # for `accept`; told once
    group: str = ""
    until: float = 0.0  # seconds since 1970, when it ends; 0: when somebody takes it back
    sandbox: int = 0  # to whose programs it was given
    left: float = 0.0  # seconds until then, by the kernel's wall clock, which never goes back as a machine's may


class SandboxInfo(Record):
    """An endpoint of the kernel for confined programs."""

    sandbox: int
    directory: str  # of its socket, to be had by those who are to be in the sandbox, and by nobody else


class ExitInfo(Record):
    """The end of a process, as `wait` returns it."""

    pid: int
    status: int  # 0 to 255 of an exit, 128 + signal of a death by a signal
    reason: str  # why it ended
    usage: Usage


class ShredInfo(Record):
    """What a destruction has reached: `gone` is gone wherever copies of it are, `left` is what it could not reach.
    `sure`: the keys that are gone cannot be made of old blocks of a disk and a key that is on it."""

    gone: list[str]
    left: list[str]
    sure: bool


class CheckpointInfo(Record):
    """A process image, whole and on the disk."""

    path: str
    bytes: int  # size of the file
    tokens: int  # of the log
    kv_tokens: int  # of those, tokens whose KV is in the file too


class ModelInfo(Record):
    """A model: one that the kernel knows by name, or one in the memory of a device."""

    name: str
    path: str
    dtype: str = ""
    device: str = ""  # empty: in the memory of none
    state: str = "absent"  # absent, loading, resident, streamed (partly in memory), evicted (its KV is there), failed
    progress: float = 0.0  # 0..1 while loading
    architecture: str = ""
    parameters: int = 0
    weight_bytes: int = 0  # of all weights
    vocab: int = 0  # ids of the vocabulary
    context: int = 0  # tokens that a log may hold
    layers: int = 0
    block_tokens: int = 0  # tokens of a page
    block_bytes: int = 0  # KV of a page
    frames: int = 0  # of KV memory; a frame holds a page
    frames_free: int = 0
    frames_cached: int = 0  # unmapped, kept for their prefix
    processes: int = 0  # that run it
    eos_ids: list[int] = []  # ids that end a text
    error: str = ""  # why it failed
    slots: int = 0  # places for pages in lower tiers
    slots_free: int = 0
    stretch: int = 1  # factor of the quantum, above 1 while it thrashes
    lost: float = 0.0  # part of the steps' time that went into bringing pages back, lately
    resident_bytes: int = 0  # of the weights, in memory
    mapped_by: list[int] = []  # the first of the processes that run it
    faults: int = 0  # times that a process wanted to run and found the weights evicted
    pageins: int = 0  # times that its weights were loaded
    evictions: int = 0  # times that its weights were evicted
    pinned: bool = False
    sampling: SamplingDefaults = SamplingDefaults()  # as its makers advise
    stored: str = ""  # how quantised files hold its weights: "gptq, as it is", "fp8, dequantised"
    tier_slots: list[int] = []  # `slots`, of each lower tier of the device
    tier_slots_free: list[int] = []


class Going(Record):
    """A model that would have to make room for another."""

    name: str
    dtype: str
    weight_bytes: int  # in memory
    kv_bytes: int  # of its frames, which go too if no process uses it
    processes: int  # that run it
    active: bool  # a process wants to run it: the model would go when its turn is over


class EstimateInfo(Record):
    """The memory that a model would take on a device, in bytes, and the models that would have to make room for it."""

    name: str
    path: str
    dtype: str
    device: str
    state: str  # as in ModelInfo; absent: not known yet
    architecture: str
    parameters: int
    weight_bytes: int
    kv_bytes_1000: int  # KV of 1,000 tokens
    window: int  # tokens of the model's longest context
    context: int  # tokens of the context that the caller asked about, or of the longest that is possible here
    context_bytes: int  # KV of that context
    total_bytes: int  # all weights, and the KV of that context
    pool_bytes: int  # KV memory that it has, or would get, for all its contexts
    pool_tokens: int  # tokens for which that is
    resident_bytes: int  # of the weights, those that would be in memory; the rest is streamed
    weight_limit: int  # the device's memory for weights; 0: not known
    weight_free: int  # of that, free
    kv_limit: int  # the device's memory for KV
    kv_free: int  # of that, free
    going: list[Going]  # models that would have to make room
    refused: str = ""  # why the model or the context is impossible here all the same; empty: it is possible


class Tier(Record):
    """A kind of memory for KV."""

    name: str  # ram, hbm, host, disk
    size: int  # bytes
    bandwidth: float  # bytes/s; 0 when not measured


class DeviceInfo(Record):
    """A device and its driver."""

    name: str
    kind: str  # cpu, cuda, sim
    state: str  # starting, up, down
    description: str = ""
    pid: int = 0  # of its row in the process table
    os_pid: int = 0  # of the driver
    incarnation: int = 0  # number of the driver's present life
    restarts: int = 0  # of the driver
    tiers: list[Tier] = []
    architectures: list[str] = []
    dtypes: list[str] = []
    features: list[str] = []
    policy: str = ""  # scheduling policy
    max_runs: int = 0  # processes in one step at most
    step_tokens: int = 0  # tokens in one step at most
    ready: int = 0  # processes that want the device
    steps: int = 0
    tokens_computed: int = 0
    tokens_decoded: int = 0
    busy_seconds: float = 0.0
    kv_bytes: int = 0  # memory for KV
    error: str = ""  # why it is down
    weight_bytes: int = 0  # memory for weights at present; 0: not known


class BootInfo(Record):
    """A running kernel, as a program sees it that attaches."""

    version: str
    protocol: int  # version of the wire protocol
    runtime: str  # the runtime directory
    os_pid: int  # of the kernel
    uptime: float
    pid: int  # of the program that asks
    default_model: str
    default_device: str
    policies: list[str]
    devices: list[DeviceInfo]
    ticket: bytes = b""  # by which the next kernel knows the program again; empty: this one keeps no journal
    journal_path: str = ""  # the file of the journal; empty: none is kept
    fsync: str = ""  # when the journal reaches the disk: always, interval (each second), never
    arguments: list[str] = []  # of the command that booted it, without those that say where
    audit: str = ""  # the directory of the audit log; empty: none is kept
    plain: bool = False  # journal and process images are not encrypted


class Budget(Record):
    """A resource of the kernel's own that programs make it spend."""

    name: str
    used: int  # now
    most: int
    refused: int = 0  # times since boot that there was not enough of it
    each: int = 0  # the most for one program (connection, session); 0: no bound of its own
    process: int = 0  # for one OS process
    owner: int = 0  # for one owner
    largest: int = 0  # what the one program or OS process uses that uses most of it
    bytes: bool = False  # amounts are bytes


class Stats(Record):
    """Counters since boot."""

    uptime: float
    calls: int
    errors: int  # calls answered with an errno
    rejected_frames: int  # malformed, oversized, unknown
    processes: int  # in the process table now
    by_state: dict[str, int]  # of those
    spawned: int
    exited: int
    tokens_fed: int
    tokens_computed: int
    tokens_reused: int
    tokens_decoded: int
    steps: int
    preemptions: int
    driver_restarts: int
    calls_by_name: dict[str, int]
    moved_out: int = 0  # pages, to lower tiers
    moved_in: int = 0  # pages, from lower tiers
    refaults: int = 0  # times that a process that wanted to run lost its pages and needed them back
    journal: str = ""  # "kept", or why it is not; empty: there is none
    journal_frames: int = 0  # events that changed something and were written to it
    budgets: list[Budget] = []
    audit: str = ""  # "kept", or why no line can be written; empty: there is no audit log


class Measure(Record):
    """Something that the kernel or a driver has loaded, and the SHA-256 of its files."""

    kind: str  # package, library or model
    name: str
    digest: str  # SHA-256, in hexadecimal digits
    place: str  # where its files are
    device: str = ""  # whose driver has loaded it
    trusted: str = ""  # why it may be loaded; empty: nobody asks ([trust])


class TraceEvent(Record):
    """An event in the kernel. What there is, and what `amount` and `detail` say of each: Events of the trace
    (trace_events.py)."""

    seq: int  # sequence number
    at: float  # seconds after boot
    what: str  # dotted: `proc.spawn`, `sched.step`, `mem.evict`, `call.fork`, ...
    pid: int = 0  # of the process that it concerns
    device: str = ""  # that it happens on
    amount: int = 0  # how much: tokens, pages, bytes, ...; the table of events says which
    detail: str = ""  # the rest, as text; the table of events says what


class TraceResult(Record):
    """A stretch of the trace."""

    events: list[TraceEvent]
    next: int  # sequence number to read on from
    lost: int  # events that were dropped before this program read them


class LogLine(Record):
    """A line of the kernel log."""

    seq: int  # sequence number
    at: float  # seconds after boot
    level: str  # info, warning, error
    text: str


class KvAction(enum.StrEnum):
    """What the kernel does when a process would take its control group over `kv_max`."""

    SPILL = "spill"  # others of the group lose pages, sleeping ones first; the process waits while none can
    WAIT = "wait"  # the process waits until others release pages; if all wait for each other, the last one gives its up
    FAIL = "fail"  # its decode ends with an error
    KILL = "kill"  # the process of the group with the most pages is killed


class GroupSettings(Record):
    """Limits and weight of a control group, for all processes below it together. 0: no limit here."""

    kv_max: Bytes = 0  # bytes of KV in a device's own memory (then `kv_action`)
    kv_high: Bytes = 0  # bytes above which its sleeping processes lose pages first, and growing ones are slowed down
    swap_max: Bytes = 0  # bytes of KV in lower tiers; pages beyond are computed again
    weights_max: Bytes = 0  # bytes of weights of the models that its processes run (then EDQUOT)
    tokens_max: Annotated[float, Meta(ge=0.0, le=1e12)] = 0.0  # tokens a second, new ones; a second's at once
    tokens_total: Bytes = 0  # such tokens in the group's life (then EDQUOT, and decodes end with `budget`)
    pids_max: Count = 0  # processes, programs among them (then EAGAIN)
    cpu_weight: Annotated[int, Meta(ge=limits.MIN_CPU_WEIGHT, le=limits.MAX_CPU_WEIGHT)] = 100  # beside its siblings
    kv_action: KvAction = KvAction.SPILL  # what happens at `kv_max`
    share_prefixes: bool = False  # KV of equal beginnings is shared with other owners whose groups say so too


class PressureInfo(Record):
    """Shares of time lost by waiting, as in Linux's PSI: averages over the last 10, 60 and 300 s, and seconds in all."""

    some: list[float]  # at least one process of the group waited
    some_seconds: float
    full: list[float]  # all processes of the group that had work waited
    full_seconds: float


class GroupInfo(Record):
    """A control group. It is charged for its whole subtree; a frame is charged to the group that mapped it first."""

    path: str
    settings: GroupSettings
    kv: int  # bytes in devices' own memory
    swap: int  # bytes in lower tiers
    weights: int  # bytes
    tokens: int  # computed for the first time, since the group was made
    pids: int  # processes and programs
    processes: list[int]  # pids directly in it
    events: dict[str, int]  # times that a limit took effect: kv_high, kv_max, kv_fail, kv_kill, swap_max, ...
    pressure: dict[str, PressureInfo]  # by resource: cpu, memory, weights, quota


class PolicyOut(Record):
    """A policy of the user's own that was taken out (docs/policies.md)."""

    name: str  # FILE.py:CLASS@DIGEST
    at: float  # when: seconds since 1970
    why: str


class SchedInfo(Record):
    """How a device is scheduled."""

    device: str
    policy: str
    max_runs: int  # processes in one step at most
    step_tokens: int  # tokens in one step at most
    victims: str = ""  # which process loses its pages first
    evictions: str = ""  # which model's weights go first
    taken_out: list[PolicyOut] = []  # policies of the user's own that did wrong, of all devices, the latest last
