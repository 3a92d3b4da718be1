"""What goes into the kernel core and what comes out: `Kernel.handle(event, now) -> list[Action]`.

The core is a pure state machine. Code that touches a socket, a clock, a process or a file is in kernel/edge. The edge and
the simulator (simulator/) speak to the core in these records only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmasos.drivers.protocol import FromDriver, ToDriver, Trust
from llmasos.kernel.journal.records import Frame
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Budget, GroupSettings, Record, Signal
from llmasos.syscalls.table import Call

# --- in -------------------------------------------------------------------------------------------------------------


class Event(Record):
    """Something that has happened outside."""


class Syscall(Event):
    """A decoded call of connection `peer`, a number that the edge gave and never reuses. Exactly one Reply answers it."""

    peer: int
    seq: int
    call: Call[Any]
    os_pid: int = 0  # of the calling program, as the operating system vouches for it; 0: unknown
    uid: int | None = None  # of its OS process, likewise; None: the kernel's own
    drawn: int = 0  # 63 random bits, where the call asks for some (table.Entry.draws)
    size: int = 0  # bytes of its frame
    tenant: str = ""  # of that uid, whose programs come by the key that this one has shown
    files: frozenset[str] | None = None  # paths that its uid has shown to a shared kernel by descriptors (edge/files.py)
    sandbox: int = 0  # by whose endpoint it has come; 0: by the usual one
    key: bytes = b""  # the public key that it has shown, where it has come from another machine


class Cancel(Event):
    """The caller takes back its call `seq`. If the call still waits, it fails with EINTR."""

    peer: int
    seq: int


class Rejected(Event):
    """The edge has refused a frame (malformed, oversized, unknown version or call) or who sent it (EPERM), and answered
    it; the core counts it."""

    peer: int
    errno: Errno
    reason: str = ""


class Disconnected(Event):
    """A connection has gone for good: its program exits, and its children with it. With `cut` it came from another
    machine and nobody here has ended it: the way may have been cut, and the program may come back by another one."""

    peer: int
    cut: bool = False


class KeyRevoked(Event):
    """Programs that came by this public key come no more."""

    key: bytes


class KeysFound(Event):
    """The public keys by which programs may come, as the kernel finds them when it begins to listen: others may have been
    revoked while none ran."""

    keys: frozenset[bytes]


class FromDevice(Event):
    """A message of a driver's given incarnation; messages of an earlier one are ignored."""

    device: str
    incarnation: int
    message: FromDriver


class DriverPrinted(Event):
    """A line that a driver's OS process printed, for the kernel log; no message of the protocol."""

    device: str
    incarnation: int
    text: str


class DriverExited(Event):
    """A driver's OS process has ended or could not be started. `outside`: a signal ended it that its work cannot
    cause."""

    device: str
    incarnation: int
    reason: str
    outside: bool = False


class OsFigures(Event):
    """psutil's figures of programs and drivers: os_pid -> (resident bytes, cpu seconds); and the edge's own budgets."""

    figures: dict[int, tuple[int, float]]
    budgets: list[Budget] = []


class Noted(Event):
    """A line of the edge's for the kernel log; with `what` it is one of the audit log, too, in the class "rights"."""

    level: str
    text: str
    what: str = ""
    on: dict[str, str | int] = {}


class Tick(Event):
    """The moment of the last WakeAt has come."""


class JournalFails(Event):
    """The journal cannot be written (`reason`), or is whole again (an empty one)."""

    reason: str


class JournalWaits(Event):
    """A sync of the journal has been under way for so many seconds; or, `done`, it has taken them."""

    seconds: float
    done: bool


class JournalGrows(Event):
    """The journal is whole but could not be compacted; the edge will try again."""

    reason: str


class JournalCompacted(Event):
    """The journal was compacted; its bytes before and after."""

    before: int
    after: int


class Audited(Event):
    """The line of the call that waits for it as `ref` is written, or could not be: `trouble`."""

    ref: int
    trouble: str = ""


class Measured(Event):
    """What the edge has found this installation to be: one digest for all files of the package in `place`."""

    digest: str
    files: int
    place: str


class AuditFails(Event):
    """The audit log cannot be written (`reason`), or can be again (an empty one)."""

    reason: str


class Forgotten(Event):
    """What Forget asked for is done, or (`error`) cannot be. `gone` and `left` are lines for people."""

    ref: int
    gone: list[str]
    left: list[str]
    sure: bool
    error: str = ""


class Wall(Event):
    """What the wall clock shows, in nanoseconds since 1970, at least: it never goes back, and goes on while no kernel
    runs. It comes ahead of a call that begins a time by it (table.Entry.dated), and when WallAt asks."""

    at: int


class SandboxOpened(Event):
    """The endpoint of a sandbox is in this directory, or (`error`) cannot be made."""

    number: int
    directory: str = ""
    error: str = ""


class HaltRequest(Event):
    """The kernel is asked to end: by SIGTERM or Ctrl-C, or because its parent has gone. `keep` the journal, so that the
    next kernel goes on with the processes."""

    reason: str
    keep: bool = False


# --- out ------------------------------------------------------------------------------------------------------------


class Action(Record):
    """Something for the edge to do."""


class Reply(Action):
    """The answer to a call: `value` if errno is OK, else `reason`."""

    peer: int
    seq: int
    errno: Errno
    value: Any = None
    reason: str = ""
    changes: bool = False  # the call may have changed something
    told: bool = False  # the position of the journal goes with it
    tells: bool = True  # it tells of what the journal keeps
    synced: bool = False  # what it tells is on the disk first, whatever the journal's `fsync` says


class Send(Action):
    """A message to a driver."""

    device: str
    incarnation: int
    message: ToDriver


class StartDriver(Action):
    """Start the OS process of a device as `incarnation`."""

    device: str
    incarnation: int


class KillDriver(Action):
    """SIGKILL the OS process of a device, which hangs, broke the protocol or was killed by a call; DriverExited
    follows."""

    device: str
    incarnation: int
    reason: str


class SignalProgram(Action):
    """Deliver a signal to the OS process of a connection."""

    peer: int
    signal: Signal


class Log(Action):
    """A line for the boot console; the same line is in dmesg."""

    at: float
    level: str
    text: str


class WakeAt(Action):
    """Send a Tick at this moment of the kernel clock. It replaces the last WakeAt; None: no Tick is wanted."""

    at: int | None  # nanoseconds


class WallAt(Action):
    """Send a Wall when the wall clock shows this, ahead of all that happens later, and every minute until then. It
    replaces the last WallAt; None: none is wanted."""

    at: int | None


class OpenSandbox(Action):
    """Make an endpoint for programs of that uid, or make it again where an earlier kernel had it; SandboxOpened
    follows."""

    number: int
    uid: int


class CloseSandbox(Action):
    """The endpoint of a sandbox goes, and with it the connections that came by it."""

    number: int


class CutOff(Action):
    """End a connection: its program has come by another one, or was ended where no signal reaches it."""

    peer: int
    reason: str


class Halt(Action):
    """All calls are answered, or with `keep` left to the next kernel: close the sockets, end the drivers, empty the
    runtime directory (but `keep` the journal), exit."""

    reason: str
    keep: bool = False


class Append(Action):
    """The changes of this event, for the journal. The edge writes them before it carries out any later action."""

    frame: Frame


class AuditLine(Record):
    """What the audit log says of one thing: who did what to which object. No contents."""

    what: str  # the name of the call, or of what happened by itself
    of: str  # its class
    who: str = ""  # the owner
    pid: int = 0  # of the program, in the process table
    os_pid: int = 0
    on: dict[str, str | int] = {}  # the objects, by the fields that name them
    details: dict[str, Any] = {}
    result: str = ""  # the name of an errno; "asked": it is about to be made; "begun": it waits
    reason: str = ""  # of a refusal


class Audit(Action):
    """A line for the audit log. The edge writes it before it carries out any later action. With `ref` a call waits for
    that: `Audited` follows."""

    line: AuditLine
    ref: int = 0


class Forget(Action):
    """Forget the keys of processes, which have ended, and leave nothing of them in files; a Forgotten with the same `ref`
    follows. `owner` (its name in the journal): forget all that is under its key too, and of its tenants'."""

    ref: int
    pids: list[int]
    owner: str | None = None


# --- configuration of the core --------------------------------------------------------------------------------------


@dataclass(slots=True)
class DeviceConfig:
    """One device. `options` go to its driver's command line untouched. A size of 0 means the one that the driver
    declares."""

    name: str  # empty in the configuration file: its kind and a number, `cpu0`
    kind: str  # cpu, cuda or sim
    kv_bytes: int = 0  # KV memory of the device, for all models together
    image_kv_bytes: int = 0  # the most that one model gets of it; 0: a quarter of it, 1 GiB at most
    weight_bytes: int = 0  # memory for weights; 0: the rest of the first tier
    policy: str = "fair"  # the order in which processes run (docs/policies.md)
    victims: str = "cost"  # which process loses its pages first
    evictions: str = "lru"  # which model's weights go first
    max_runs: int = 0  # processes in one step at most
    step_tokens: int = 0  # tokens in one step at most
    options: dict[str, str] = field(default_factory=dict)  # of its driver


_LEAST_OF_SESSION = 64


@dataclass(slots=True)
class Partition:
    """Owners that have turns on the devices, and frames, of their own; all others together have one more. `turn` is the
    length of a turn in seconds: a step begins with each, and takes no longer."""

    owners: list[str] = field(default_factory=list)  # 1000, or 1000/TENANT; empty: nobody has
    turn: float = 0.05


@dataclass(slots=True)
class KernelConfig:
    """The configuration of the core; boot.py makes it from the configuration file and the command line."""

    devices: list[DeviceConfig]
    models: dict[str, str] = field(default_factory=dict)  # known name -> directory
    default_model: str = "tiny"
    runtime: str = ""
    journal_path: str = ""  # the file of the journal; empty: none is kept
    plain: bool = False  # it is not encrypted, nor are process images
    fsync: str = ""  # when that reaches the disk
    audit: str = ""  # the directory of the audit log; empty: none is kept
    audit_required: list[str] = field(default_factory=list)  # classes of calls that are not made without a line
    trust: Trust | None = None  # which models may be loaded; None: any
    arguments: list[str] = field(default_factory=list)  # of the command that booted it
    user: str = ""  # the user of the sessions: /users/NAME
    uid: int = 0  # that the kernel runs as
    shared: bool = False  # it serves all users of the machine; it opens no file that one of them names by its own right
    operators: list[int] = field(default_factory=list)  # uids that have every right, as root and the kernel's own have
    quota: GroupSettings = field(default_factory=GroupSettings)  # of each other user: the settings of /users/UID,
    quotas: dict[int, GroupSettings] = field(default_factory=dict)  # and of some uids, instead
    show_all: bool = False  # whether everybody sees the rows of all processes, as with Unix's ps
    salt: int = 0  # of the names of that user's KV, unless the journal has one
    os_pid: int = 0
    version: str = ""
    quantum: int = 32  # tokens a process may compute before one of the same class may take its pages
    weight_quantum: float = 0.25  # seconds a model stays in memory, at least, before another takes its place
    aging_seconds: float = 2.0  # a ready process waits no longer than this for a stronger class
    hang_seconds: float = 60.0  # a busy driver without progress is killed after this
    start_seconds: float = 180.0  # a driver must say hello within this
    restart_first: float = 0.1  # seconds before the second restart; doubles, at most restart_max
    restart_max: float = 30.0  # seconds between two starts of a driver, at most
    restart_forgiven: float = 60.0  # a driver up this long starts from restart_first again
    idle_seconds: float = 0.0  # a model that nobody has run for so long leaves memory; 0: it stays
    pagein_seconds: float = 60.0  # a model that cannot be paged in is tried this long; then processes that want it end
    max_processes: int = 200_000  # programs among them
    session_processes: int = 0  # of one program, unless its group says otherwise; 0: a quarter of `max_processes`
    groups: dict[str, GroupSettings] = field(default_factory=dict)  # to be made at boot, by path
    partition: Partition = field(default_factory=Partition)
    grace: float = 30.0  # seconds that programs have to come back after a boot from the journal
    cut_grace: float = 30.0  # and those on other machines after their connection was cut, where a journal is kept
    max_crashes: int = 3  # a process in the step of that many driver deaths in a row is stopped
    trace_events: int = 65_536  # the latest that are kept
    log_lines: int = 4_096  # the latest that `dmesg` shows

    @property
    def most_of_session(self) -> int:
        """Processes that the session of one program may have."""
        return self.session_processes or max(_LEAST_OF_SESSION, self.max_processes // 4)

    def quota_of(self, uid: int) -> GroupSettings:
        """The settings that the group of a user begins with; an operator has a quota only if he is named."""
        return self.quotas.get(uid, GroupSettings() if uid in self.operators else self.quota)
