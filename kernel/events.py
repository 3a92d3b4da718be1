"""What goes into the kernel core and what comes out: `Kernel.handle(event, now) -> list[Action]`.

The core is a pure state machine. Code that touches a socket, a clock, a process or a file is in kernel/edge. The edge and
the simulator (simulator/) speak to the core in these records only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmasos.drivers.protocol import FromDriver, ToDriver
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


class Cancel(Event):
    """The caller takes back its call `seq`. If the call still waits, it fails with EINTR."""

    peer: int
    seq: int


class Rejected(Event):
    """The edge has refused a frame (malformed, oversized, unknown version or call) and answered it; the core counts
    it."""

    peer: int
    errno: Errno


class Disconnected(Event):
    """A connection has gone for good: its program exits, and its children with it."""

    peer: int


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
    """A line of the edge's for the kernel log."""

    level: str
    text: str


class Tick(Event):
    """The moment of the last WakeAt has come."""


class JournalFails(Event):
    """The journal cannot be written (`reason`), or is whole again (an empty one)."""

    reason: str


class JournalGrows(Event):
    """The journal is whole but could not be compacted; the edge will try again."""

    reason: str


class JournalCompacted(Event):
    """The journal was compacted; its bytes before and after."""

    before: int
    after: int


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


class Halt(Action):
    """All calls are answered, or with `keep` left to the next kernel: close the sockets, end the drivers, empty the
    runtime directory (but `keep` the journal), exit."""

    reason: str
    keep: bool = False


class Append(Action):
    """The changes of this event, for the journal. The edge writes them before it carries out any later action."""

    frame: Frame


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


@dataclass(slots=True)
class KernelConfig:
    """The configuration of the core; boot.py makes it from the configuration file and the command line."""

    devices: list[DeviceConfig]
    models: dict[str, str] = field(default_factory=dict)  # known name -> directory
    default_model: str = "tiny"
    runtime: str = ""
    journal_path: str = ""  # the file of the journal; empty: none is kept
    fsync: str = ""  # when that reaches the disk
    arguments: list[str] = field(default_factory=list)  # of the command that booted it
    user: str = ""  # the user of the sessions: /users/NAME
    uid: int = 0  # that the kernel runs as
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
    groups: dict[str, GroupSettings] = field(default_factory=dict)  # to be made at boot, by path
    grace: float = 30.0  # seconds that programs have to come back after a boot from the journal
    max_crashes: int = 3  # a process in the step of that many driver deaths in a row is stopped
    trace_events: int = 65_536  # the latest that are kept
    log_lines: int = 4_096  # the latest that `dmesg` shows
