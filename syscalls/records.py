"""What system calls take and return: typed records, encoded as msgpack arrays.

Shapes are in the docstrings; times are seconds (float) of the kernel's monotonic clock, sizes are bytes. A
field is only ever added at a record's end, with a default: that is what keeps older programs working.
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
# Names are shown on terminals, which obey control characters (C0, DEL, C1).
PRINTABLE = r"\A[^\x00-\x1f\x7f-\x9f]*\Z"
Name = Annotated[str, Meta(max_length=limits.MAX_NAME, pattern=PRINTABLE)]
ModelName = Annotated[str, Meta(min_length=1, max_length=limits.MAX_PATH, pattern=PRINTABLE)]
FilePath = Annotated[str, Meta(min_length=1, max_length=limits.MAX_PATH, pattern=PRINTABLE)]
Secret = Annotated[bytes, Meta(max_length=limits.MAX_KEY)]  # bytes are secrets: no trace shows them (wire.describe)
Blob = Annotated[bytes, Meta(max_length=limits.MAX_RECORD_BYTES)]
Blobs = Annotated[list[Blob], Meta(max_length=limits.MAX_RECORDS)]
Nice = Annotated[int, Meta(ge=limits.NICE_MIN, le=limits.NICE_MAX)]
Seconds = Annotated[float, Meta(ge=0.0, le=limits.MAX_TIMEOUT)]
GroupPath = Annotated[str, Meta(max_length=limits.MAX_PATH, pattern=PRINTABLE)]
Bytes = Annotated[int, Meta(ge=0, le=(1 << 62))]
Position = Annotated[int, Meta(ge=0, le=limits.MAX_TOKEN)]
Count = Annotated[int, Meta(ge=0, le=limits.MAX_TOKEN)]


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))  # mypy: subclasses are frozen too
class Record(msgspec.Struct, array_like=True, frozen=True):
    """A value that crosses the wire."""


class State(enum.StrEnum):
    """The states of a process (design section 3)."""

    NEW = "new"
    READY = "ready"
    RUNNING = "running"
    BLOCKED = "blocked"
    STOPPED = "stopped"
    ZOMBIE = "zombie"


class WaitFor(enum.StrEnum):
    """What a blocked process waits for."""

    NONE = ""
    INPUT = "input"  # nothing to do until fed or told to decode
    PAGEIN = "pagein"  # frames for its KV
    WEIGHTS = "weights"  # its model
    DEVICE = "device"  # a driver that is being restarted
    QUOTA = "quota"  # its control group: a rate of tokens, or its memory
    CHILD = "child"  # a program in `wait`


class Kind(enum.StrEnum):
    """What a row of the process table stands for."""

    INIT = "init"  # pid 1, the kernel itself; orphans become its children
    DRIVER = "driver"
    PROGRAM = "program"  # a userland program attached to the kernel
    LLM = "llm"


class SchedClass(enum.StrEnum):
    """Scheduling classes, strongest first."""

    REALTIME = "realtime"
    FAIR = "fair"
    BATCH = "batch"
    IDLE = "idle"


class Signal(enum.IntEnum):
    """Signals; they take effect at token boundaries. Numbers are Linux's."""

    INT = 2  # interrupts the running decode; the process stays
    KILL = 9
    TERM = 15
    CHLD = 17
    CONT = 18
    STOP = 19
    XCPU = 24  # sent by the kernel: the token budget is used up


class Finish(enum.StrEnum):
    """Why a decode ended."""

    NONE = ""  # it has not
    STOP = "stop"  # a stop id was sampled (it is the last token of the log)
    LENGTH = "length"  # max_tokens were decoded
    CONTEXT = "context"  # the context window is full
    BUDGET = "budget"  # the process's token budget is used up
    INTERRUPT = "interrupt"  # SIGINT or a cancelled call
    DEADLINE = "deadline"
    KILLED = "killed"
    ERROR = "error"  # the device could not compute it; `dmesg` says why


class Advice(enum.StrEnum):
    """How a model will be used (`advise`)."""

    NORMAL = "normal"  # takes back what was advised, a pin too
    WILLNEED = "willneed"  # page it in in the background, if no model whose processes run must go for it
    DONTNEED = "dontneed"  # it is the first to go; at once, if nobody uses it
    PIN = "pin"  # page it in likewise, and let it not be evicted


class Right(enum.IntFlag):
    """What a program may do; a program can give rights up when it attaches, never gain them later."""

    QUERY = 1  # look: ps, models, stats, trace
    SPAWN = 2  # start processes
    CONTROL = 4  # feed, decode, signal, schedule processes
    MEMORY = 8  # page models in and out
    ADMIN = 16  # policy, shutdown
    ALL = 31


Temperature = Annotated[float, Meta(ge=0.0, le=100.0)]
TopP = Annotated[float, Meta(gt=0.0, le=1.0)]
MinP = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(gt=0.0, le=100.0)]


class Sampler(Record):
    """How the next token is chosen from the logits, in this order: repetition penalty (as in CTRL,
    arXiv:1909.05858, over every token of the log), temperature, top-k, min-p, top-p. `temperature=0` is
    greedy: the token with the greatest penalised logit, the lowest id among equals. The random number of a
    token depends on `(seed, position)` only.
    """

    temperature: Temperature = 0.0
    top_k: Count = 0  # 0: off
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    repetition_penalty: Penalty = 1.0
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0


class SamplingDefaults(Record):
    """How a model's makers want it to be sampled where the caller does not say (its generation_config.json). None: they
    say nothing of it, and it is off. The kernel passes them on; the SDK gives them to the processes it spawns."""

    temperature: Temperature | None = None
    top_k: Count | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    repetition_penalty: Penalty | None = None


class Limits(Record):
    """Limits of one process; 0 means: none of its own."""

    context: Count = 0  # tokens its log may hold; the model's window is the outer bound
    tokens: Count = 0  # tokens it may decode in its life (then EDQUOT); what its parent had used at a fork counts
    pages: Count = 0  # KV frames it may map


class TokenLogprobs(Record):
    """Log-probabilities of one position: log_softmax of the raw fp32 logits, before penalty and
    temperature."""

    token: Token
    logprob: float
    top_ids: list[Token]
    top_logprobs: list[float]


class DecodeResult(Record):
    """What a decode appended: `tokens` stand in the log from `position`. With `max_tokens=0`, `tokens` is
    empty and `logprobs` holds one entry for the token that would come next (its `token` is the greedy
    choice)."""

    position: Position
    tokens: Tokens
    finish: Finish
    logprobs: list[TokenLogprobs] = []


class ReadResult(Record):
    """A stretch of the log. `position` is that of the first token; read on from `position + len(tokens)`.

    `decoding` is True while more tokens are on their way; `finish` is how the last decode ended.
    """

    position: Position
    tokens: Tokens
    decoding: bool
    finish: Finish
    state: State
    length: Count


class LogRecord(Record):
    """What a program has to know beyond ids of the tokens that begin at `position`: roles, tools, messages. The kernel
    keeps it with the log and never looks into it."""

    position: Position
    data: Blob


class RecordsResult(Record):
    """Records in the order in which they came, which is that of their positions; `length` is that of the log now."""

    records: list[LogRecord]
    length: Count


class Usage(Record):
    """What a process has used so far."""

    fed: Count = 0  # tokens appended by feed
    decoded: Count = 0  # tokens appended by the model
    computed: Count = 0  # tokens run through the model, recomputation included
    reused: Count = 0  # tokens whose KV was found by prefix sharing
    steps: Count = 0
    preemptions: Count = 0  # times its pages were taken
    forks: Count = 0
    device_seconds: float = 0.0  # its share (by tokens) of the steps it was in
    waits: dict[str, float] = {}  # seconds spent READY ("ready") or BLOCKED, by reason
    refaults: int = 0  # times it lost its pages while it wanted to run, and got pages again


class ProcessInfo(Record):
    pid: int
    ppid: int
    kind: Kind
    name: str
    state: State
    wait: WaitFor = WaitFor.NONE
    model: str = ""
    device: str = ""
    sched_class: SchedClass = SchedClass.FAIR
    nice: int = 0
    length: int = 0  # tokens in the log
    cached: int = 0  # of those, tokens whose KV is on the device
    context: int = 0  # tokens the log may hold at most
    pages: int = 0
    shared_pages: int = 0  # of those, mapped by other processes too
    decoding: bool = False
    finish: Finish = Finish.NONE
    started: float = 0.0  # seconds after boot
    exit_status: int = 0
    usage: Usage = Usage()
    limits: Limits = Limits()
    os_pid: int = 0  # of programs and drivers
    rss: int = 0  # bytes resident, of programs and drivers
    cpu_seconds: float = 0.0
    seed: int = 0
    parked: int = 0  # calls waiting on this process
    swapped: int = 0  # pages in a lower tier and in no frame
    group: str = ""  # path of its control group
    errno: Errno = Errno.OK  # of its last decode, where that ended with an error (forgotten when the kernel dies)
    reason: str = ""  # that in words; of a zombie, why it has ended
    record_bytes: int = 0  # of its records (`records`)


class ExitInfo(Record):
    """What `wait` collects. `status` is 0..255 for an exit, 128 + signal for a death by signal."""

    pid: int
    status: int
    reason: str
    usage: Usage


class CheckpointInfo(Record):
    """A process image that has been written: it is on the disk, whole."""

    path: str
    bytes: int
    tokens: int  # of the log
    kv_tokens: int  # of those, tokens whose KV is in it too


class ModelInfo(Record):
    name: str
    path: str
    dtype: str = ""
    device: str = ""
    state: str = "absent"  # absent, loading, resident, streamed (a part is in memory), evicted (its KV is there), failed
    progress: float = 0.0  # 0..1 while loading
    architecture: str = ""
    parameters: int = 0
    weight_bytes: int = 0
    vocab: int = 0
    context: int = 0
    layers: int = 0
    block_tokens: int = 0
    block_bytes: int = 0
    frames: int = 0
    frames_free: int = 0
    frames_cached: int = 0  # unmapped, kept for their prefix
    processes: int = 0
    eos_ids: list[int] = []
    error: str = ""
    slots: int = 0  # places for frames in lower tiers
    slots_free: int = 0
    stretch: int = 1  # what the quantum is multiplied by, since it thrashes
    lost: float = 0.0  # part of the steps' time that went into bringing back pages, lately
    resident_bytes: int = 0  # of the weights, in memory
    mapped_by: list[int] = []  # the first of the processes that run it
    faults: int = 0  # times that a process wanted to run and the weights had been evicted
    pageins: int = 0
    evictions: int = 0
    pinned: bool = False
    sampling: SamplingDefaults = SamplingDefaults()
    stored: str = ""  # how quantised files hold its weights: "gptq, as it is", "fp8, dequantised"


class Going(Record):
    """A model that would have to go for another. Its frames go too if no process uses it (`kv_bytes`)."""

    name: str
    dtype: str
    weight_bytes: int  # in memory
    kv_bytes: int
    processes: int
    active: bool  # a process wants to run it: it would go when its turn is over


class EstimateInfo(Record):
    """What a model would take on a device, and who would have to go for it; bytes. `total_bytes` is what its weights take
    together with the KV of one context of `context` tokens; KV is set aside for `pool_tokens`, of all its contexts."""

    name: str
    path: str
    dtype: str
    device: str
    state: str  # as in ModelInfo; absent: not known yet
    architecture: str
    parameters: int
    weight_bytes: int
    kv_bytes_1000: int  # of 1,000 tokens
    window: int  # tokens of a context, as the model has it
    context: int  # tokens that were asked about, or as many as a context can have here
    context_bytes: int  # of their KV
    total_bytes: int
    pool_bytes: int  # KV memory that it has, or would be given
    pool_tokens: int
    resident_bytes: int  # of the weights, what would be in memory; less than all: the rest is streamed
    weight_limit: int  # memory for weights; 0: not known
    weight_free: int  # of that, taken by nobody
    kv_limit: int  # memory for KV
    kv_free: int
    going: list[Going]
    refused: str = ""  # why it, or a context so long, cannot be had here even so; empty: it can


class Tier(Record):
    name: str  # ram, hbm, host, disk
    size: int  # bytes
    bandwidth: float  # bytes/s; 0 when not measured


class DeviceInfo(Record):
    name: str
    kind: str  # cpu, cuda, sim
    state: str  # starting, up, down
    description: str = ""
    pid: int = 0  # of its row in the process table
    os_pid: int = 0
    incarnation: int = 0
    restarts: int = 0
    tiers: list[Tier] = []
    architectures: list[str] = []
    dtypes: list[str] = []
    features: list[str] = []
    policy: str = ""
    max_runs: int = 0  # processes in one step at most
    step_tokens: int = 0  # tokens in one step at most
    ready: int = 0  # processes that want the device
    steps: int = 0
    tokens_computed: int = 0
    tokens_decoded: int = 0
    busy_seconds: float = 0.0
    kv_bytes: int = 0  # memory for KV
    error: str = ""
    weight_bytes: int = 0  # memory for weights, as things are; 0: not known


class BootInfo(Record):
    version: str
    protocol: int
    runtime: str  # the runtime directory
    os_pid: int
    uptime: float
    pid: int  # of the program that asks
    default_model: str
    default_device: str
    policies: list[str]
    devices: list[DeviceInfo]
    ticket: bytes = b""  # with it the program is known again after the kernel has died; empty: no journal is kept


class Stats(Record):
    """Counters since boot."""

    uptime: float
    calls: int
    errors: int
    rejected_frames: int  # malformed, oversized, unknown
    processes: int
    by_state: dict[str, int]
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
    moved_out: int = 0  # frames, to lower tiers
    moved_in: int = 0
    refaults: int = 0  # times a process that wanted to run lost its pages and had to have them back
    journal: str = ""  # "kept", or why it cannot be; empty: there is none
    journal_frames: int = 0  # events that have changed something, and were written to it


class TraceEvent(Record):
    """Who, what, when, how much. `what` is dotted: `proc.spawn`, `sched.step`, `mem.evict`, `call.fork`,
    ..."""

    seq: int
    at: float  # seconds after boot
    what: str
    pid: int = 0
    device: str = ""
    amount: int = 0
    detail: str = ""


class TraceResult(Record):
    events: list[TraceEvent]
    next: int  # where to read on
    lost: int  # events dropped before they were read


class LogLine(Record):
    seq: int
    at: float
    level: str  # info, warning, error
    text: str


class KvAction(enum.StrEnum):
    """What happens when a process would take its control group over `kv_max`."""

    SPILL = "spill"  # others of the group lose pages, those that sleep first; it waits while none can
    WAIT = "wait"  # it waits until others of the group have released some (they may wait for it, too)
    FAIL = "fail"  # its decode ends with an error
    KILL = "kill"  # the process of the group with the most pages is killed


class GroupSettings(Record):
    """Limits and weight of a control group; they hold for all processes below it together. 0 means: no limit here."""

    kv_max: Bytes = 0  # bytes of KV in a device's own memory; what happens then is `kv_action`
    kv_high: Bytes = 0  # above it the group's sleepers lose their pages first, and what still grows is slowed down
    swap_max: Bytes = 0  # bytes of KV in lower tiers; the rest is computed again
    weights_max: Bytes = 0  # bytes of weights of the models its processes map (then EDQUOT)
    tokens_max: Annotated[float, Meta(ge=0.0, le=1e12)] = 0.0  # tokens per second, computed for the first time
    tokens_total: Bytes = 0  # of these in the group's life (then EDQUOT, and decodes end with `budget`)
    pids_max: Count = 0  # processes, programs among them (then EAGAIN)
    cpu_weight: Annotated[int, Meta(ge=limits.MIN_CPU_WEIGHT, le=limits.MAX_CPU_WEIGHT)] = 100  # beside its siblings
    kv_action: KvAction = KvAction.SPILL


class PressureInfo(Record):
    """Shares of time lost by waiting, as in Linux's PSI: averages over the last 10, 60 and 300 s, and seconds in all.

    `some`: at least one process of the group waited; `full`: all of it that had anything to do.
    """

    some: list[float]
    some_seconds: float
    full: list[float]
    full_seconds: float


class GroupInfo(Record):
    """A control group. Charges are those of the whole subtree; a frame is charged to the group that mapped it first."""

    path: str
    settings: GroupSettings
    kv: int  # bytes
    swap: int
    weights: int
    tokens: int  # computed for the first time, since the group was made
    pids: int
    processes: list[int]  # pids directly in it
    events: dict[str, int]  # how often which limit took effect: kv_high, kv_max, kv_fail, kv_kill, swap_max, ...
    pressure: dict[str, PressureInfo]  # by resource: cpu, memory, weights, quota


class SchedInfo(Record):
    device: str
    policy: str
    max_runs: int
    step_tokens: int
