"""The state of the system: its tables, counters and clock, and what the event being handled has to say.

It is data, with the few functions that every floor above needs to read it and to speak: a number for a request to a
driver, a message, a line of the log, an event of the trace. What may be done with it stands above: requests in desk.py,
marks in marks.py, the states of processes in settle.py, the entry points in core.py.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Any, TypeVar

from llmasos.drivers.protocol import Query, ToDriver
from llmasos.kernel.clock import seconds
from llmasos.kernel.events import Action, KernelConfig, Log, Send
from llmasos.kernel.groups.group import GroupTree
from llmasos.kernel.journal.recorder import Recorder
from llmasos.kernel.objects.auditor import Auditor
from llmasos.kernel.objects.device import Ask, Device
from llmasos.kernel.objects.grant import Grants
from llmasos.kernel.objects.owner import Owner, Owners
from llmasos.kernel.objects.process import INIT_PID, Process, Program
from llmasos.kernel.objects.process_table import ProcessTable
from llmasos.kernel.objects.request import Channel, Request
from llmasos.kernel.objects.sandbox import Sandboxes
from llmasos.kernel.sched.policies import Sources
from llmasos.kernel.spending import Spending
from llmasos.kernel.timers import Timer, Timers
from llmasos.kernel.trace import Trace
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Budget, Kind, Measure

T = TypeVar("T")


class System:
    """All that the kernel knows."""

    def __init__(self, config: KernelConfig) -> None:
        self.config = config
        self.sources = Sources()  # of policies; the edge may give others before `boot`
        self.table = ProcessTable(config.max_processes)
        self.owners = Owners(config.uid, config.salt, config.partition.owners, config.operators)
        self.groups = GroupTree(
            config.user,
            self.owners.operator,
            config.most_of_session,
            config.most_of_session if config.shared else 0,
            config.quota_of,
            parted=self.owners.parts > 1,
        )
        self.grants = Grants()
        self.sandboxes = Sandboxes()
        self.devices: dict[str, Device] = {}
        self.programs: dict[int, Program] = {}  # by peer
        self.away: dict[int, Program] = {}  # by pid, whose connections were cut, and who may come back
        # makes the kernel's own calls
        self.own = Program(INIT_PID, 0, Kind.INIT, "kernel", self.groups.system, 0, peer=-1)
        self.timers = Timers()
        self.trace = Trace(self.owners.operator, config.trace_events, config.log_lines)
        self.traced = Channel()  # woken by trace events
        self.figures: dict[int, tuple[int, float]] = {}
        self.budgets: list[Budget] = []  # of the edge
        self.spending = Spending()
        self.journal = Recorder()
        self.journal_trouble = ""  # why it cannot be written
        self.journal_wait = ""  # why what is written may not be on the disk yet
        self.secret = b""  # key of the programs' tickets; empty: no journal is kept
        self.auditor = Auditor(bool(config.audit), config.audit_required)
        self.package: Measure | None = None  # this installation, once it is measured
        self.measuring = Channel()  # woken then
        self.counters: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.started = 0
        self.now = 0  # of the event being handled, in nanoseconds (clock.py)
        self.wall, self.wall_told = 0, 0  # what the wall clock has shown at least (events.Wall), and `now` at that event
        self.halting = False
        self.keeping = False  # it halts, and the next kernel goes on with its processes
        # of the event being handled: what it has to say, and the marks that reconciling goes by (core.py)
        self.actions: list[Action] = []
        self.stale: OrderedDict[int, Process] = OrderedDict()  # whose state may be another
        self.woken: deque[tuple[Request, SyscallError | None]] = deque()  # to go on, or to fail with the error
        self.pieces: deque[Any] = deque()  # work that goes on in the events to come (pieces.py)
        self.next_piece: Timer | None = None  # when it does
        self.orphans: list[Process] = []  # zombies that init reaps
        self.forgetting: Timer | None = None  # due when the status of a detached process has been kept long enough
        self.shredding: dict[int, Request] = {}  # calls for which the edge forgets keys, by the number of its order
        self.unwatched: dict[str, Device] = {}  # devices that have been idle, and have work now
        self.pumped: dict[str, Device] = {}  # devices that may be able to run their next step
        self.cycle = ""  # marks that did not come to an end
        self._refs = 0
        self._images = 0

    @property
    def uptime(self) -> int:
        return self.now - self.started

    def act(self, action: Action) -> None:
        self.actions.append(action)

    def send(self, device: Device, message: ToDriver) -> None:
        if device.watchdog is None:
            self.unwatched[device.name] = device
        self.actions.append(Send(device.name, device.incarnation, message))

    def ask(self, device: Device, message: Query, wants: type[T], **more: Any) -> Ask[T]:
        """Send a request, which its driver is to answer by a record of type `wants`; `more` are further fields of Ask."""
        device.asked[message.ref] = asked = Ask(message.ref, wants, **more)
        self.send(device, message)
        return asked

    def ref(self) -> int:
        """A number no request to any driver had before."""
        self._refs += 1
        return self._refs

    def new_image_id(self) -> int:
        self._images += 1
        return self._images

    def log(self, level: str, text: str, of: Process | None = None, *, public: bool = False) -> None:
        """A line for the operator; also for whose process it is about (`of`), or for everybody (`public`)."""
        text = printable(text)
        at = seconds(self.uptime)
        self.trace.line(at, level, text, of.owner if of is not None else None, public=public)
        self.actions.append(Log(at, level, pids.told(text) if len(self.owners) > 1 else text))

    def emit(
        self, what: str, pid: int = 0, device: str = "", amount: int = 0, detail: str = "", plain: str | None = None
    ) -> None:
        """Record a trace event of a process, which its owner sees, or of a device, for the operator alone. `plain` is its
        detail for those who may not read the log. Callers check `trace.on` first where building the arguments costs
        something."""
        if self.trace.on:
            self.trace.emit(seconds(self.uptime), what, pid, device, amount, detail, self.owner_of(pid), plain)

    def owner_of(self, pid: int) -> Owner | None:
        """Whose a process is, or was; None: nobody's, or the operator's."""
        process = self.table.find(pid)
        if process is not None:
            return process.owner
        uid = pids.uid_of(pid)
        return self.owners.get(str(uid)) if uid else self.owners.operator

    def device_named(self, name: str) -> Device:
        """The device of that name (empty: the first one), or ENODEV."""
        if not name:
            return next(iter(self.devices.values()))
        if name not in self.devices:
            raise Errno.ENODEV(f"no device {name!r}; there are: {', '.join(self.devices)}")
        return self.devices[name]
