"""What goes into the kernel core and what comes out: `Kernel.handle(event, now) -> list[Action]`.

The core is a pure state machine; everything that touches a socket, a clock, a process or a file is at the edge
(server.py) or in the simulator (tests and benchmarks), which both speak only these records.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from llmasos.drivers.protocol import FromDriver, ToDriver
from llmasos.kernel.journal.records import Frame
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import GroupSettings, Signal
from llmasos.syscalls.table import Call

# --- in -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Syscall:
    """A decoded call of connection `peer` (a number the edge chose; never reused). Answered by exactly one Reply."""

    peer: int
    seq: int
    call: Call[Any]
    os_pid: int = 0  # of the calling program, as the operating system vouches for it; 0: unknown


@dataclass(slots=True, frozen=True)
class Cancel:
    """The caller takes back its call `seq`: if it is still waiting it is answered EINTR."""

    peer: int
    seq: int


@dataclass(slots=True, frozen=True)
class Rejected:
    """The edge answered a frame itself (malformed, oversized, unknown version or call); counted here."""

    peer: int
    errno: Errno


@dataclass(slots=True, frozen=True)
class Disconnected:
    """A connection has gone for good: its program exits, and its children with it."""

    peer: int


@dataclass(slots=True, frozen=True)
class FromDevice:
    """A message of a driver's given incarnation; messages of an earlier one are ignored."""

    device: str
    incarnation: int
    message: FromDriver


@dataclass(slots=True, frozen=True)
class DriverPrinted:
    """A line a driver's OS process wrote to its output or error, for the kernel log; no message of the protocol."""

    device: str
    incarnation: int
    text: str


@dataclass(slots=True, frozen=True)
class DriverExited:
    """A driver's OS process has ended (or could not be started); `outside`: by a signal that its work has not caused."""

    device: str
    incarnation: int
    reason: str
    outside: bool = False


@dataclass(slots=True, frozen=True)
class OsFigures:
    """psutil's figures of programs and drivers: os_pid -> (resident bytes, cpu seconds)."""

    figures: dict[int, tuple[int, float]]


@dataclass(slots=True, frozen=True)
class Tick:
    """A wanted moment (WakeAt) has come."""


@dataclass(slots=True, frozen=True)
class JournalFails:
    """The journal cannot be written, or (without a reason) is whole again."""

    reason: str


@dataclass(slots=True, frozen=True)
class JournalGrows:
    """The journal is whole, but could not be written anew; that will be tried again."""

    reason: str


@dataclass(slots=True, frozen=True)
class JournalCompacted:
    """The journal was written anew; its bytes before and after."""

    before: int
    after: int


@dataclass(slots=True, frozen=True)
class HaltRequest:
    """The operating system asks the kernel to end (SIGTERM, Ctrl-C, the parent is gone)."""

    reason: str


Event = (
    Syscall
    | Cancel
    | Rejected
    | Disconnected
    | FromDevice
    | DriverPrinted
    | DriverExited
    | OsFigures
    | Tick
    | HaltRequest
    | JournalFails
    | JournalGrows
    | JournalCompacted
)

# --- out ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Reply:
    """The answer to a call: `value` if errno is OK, else `reason`."""

    peer: int
    seq: int
    errno: Errno
    value: Any = None
    reason: str = ""
    changes: bool = False  # it is of a call that may have changed something


@dataclass(slots=True, frozen=True)
class Send:
    """A message to a driver."""

    device: str
    incarnation: int
    message: ToDriver


@dataclass(slots=True, frozen=True)
class StartDriver:
    """Start the OS process of a device as `incarnation`."""

    device: str
    incarnation: int


@dataclass(slots=True, frozen=True)
class KillDriver:
    """SIGKILL the OS process of a device (it hangs, or was asked to); DriverExited follows."""

    device: str
    incarnation: int
    reason: str


@dataclass(slots=True, frozen=True)
class SignalProgram:
    """Deliver a signal to a userland program's OS process."""

    os_pid: int
    signal: Signal


@dataclass(slots=True, frozen=True)
class Log:
    """A line for the boot console; the same line is in dmesg."""

    at: float
    level: str
    text: str


@dataclass(slots=True, frozen=True)
class WakeAt:
    """Send a Tick at this time (seconds of the kernel clock); replaces an earlier wish. None: no wish."""

    at: float | None


@dataclass(slots=True, frozen=True)
class Halt:
    """Everything is answered: close the sockets, end the drivers, empty the runtime directory, exit."""

    reason: str


@dataclass(slots=True, frozen=True)
class Append:
    """What this event has changed, for the journal. It must be written before any later action is carried out."""

    frame: Frame


Action = Append | Reply | Send | StartDriver | KillDriver | SignalProgram | Log | WakeAt | Halt


# --- configuration of the core --------------------------------------------------------------------------------------


@dataclass(slots=True)
class DeviceConfig:
    """One driver. `options` go to its command line untouched; sizes 0 mean: what the driver declares."""

    name: str
    kind: str
    kv_bytes: int = 0  # KV memory of the device, all models together
    image_kv_bytes: int = 0  # of it, what one model gets at most
    weight_bytes: int = 0  # memory for weights; 0: what KV leaves of the first tier
    policy: str = "fair"
    victims: str = "cost"  # who loses its pages first (kernel/memory/victims.py)
    evictions: str = "lru"  # whose weights go first (kernel/memory/evictions.py)
    max_runs: int = 0
    step_tokens: int = 0
    options: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class JournalConfig:
    """Where the journal is kept, and when it is to be on the disk (kernel/edge/journal_keeper.py)."""

    directory: str
    fsync: Literal["always", "interval", "never"] = "interval"


@dataclass(slots=True)
class KernelConfig:
    """What the core needs to know; boot.py makes it from the configuration file and the command line."""

    devices: list[DeviceConfig]
    models: dict[str, str] = field(default_factory=dict)  # known name -> directory
    default_model: str = "tiny"
    runtime: str = ""
    user: str = ""  # whose sessions these are
    os_pid: int = 0
    version: str = ""
    quantum: int = 32  # tokens a process may compute before one of the same class may take its pages
    weight_quantum: float = 0.25  # seconds a model stays in memory, at least, before another takes its place
    aging_seconds: float = 2.0  # a ready process waits no longer than this for a stronger class
    hang_seconds: float = 60.0  # a busy driver without progress is killed after this
    start_seconds: float = 180.0  # a driver must say hello within this
    restart_first: float = 0.1  # seconds before the second restart; doubles, at most restart_max
    restart_max: float = 30.0
    restart_forgiven: float = 60.0  # a driver up this long starts from restart_first again
    pagein_seconds: float = 60.0  # a model that cannot be paged in is tried for so long before who wants it is ended
    max_processes: int = 200_000
    groups: dict[str, GroupSettings] = field(default_factory=dict)  # to be made at boot, by path
    journal: JournalConfig | None = None  # none is kept
    grace: float = 30.0  # seconds that programs have to come back after a boot from the journal
    max_crashes: int = 3  # a process in the step of that many driver deaths in a row is stopped
    trace_events: int = 65_536
    log_lines: int = 4_096
