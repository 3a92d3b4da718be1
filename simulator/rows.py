"""A schedule as data: what devices and processes did when, from trace events. chart.py draws it.

The events are those of a simulation that records, or those of a running kernel, read by the call `trace`. A running
kernel's trace does not tell states, so there a process between two runs has no bar.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llmasos.syscalls.records import TraceEvent

STATE = "proc.state"  # an event of simulations only: a process has a new state
KILLED = "kernel.down"  # and another: the kernel is killed; an event for each device
STATES = ("ready", "pagein", "weights", "quota", "device", "stopped")  # kinds of bars: `ps` says `blocked:` before most
MARKS = (  # kinds of marks, by the event that they show
    KILLED,
    "sched.fault",
    "driver.down",
    "proc.exit",
    "mem.preempt",
    "sched.policy",
    "driver.up",
    "mem.out",
    "mem.in",
    "proc.fork",
)


@dataclass(slots=True)
class Bar:
    """A stretch of time: a step of a device, a run of a process in it, or a state of a process.

    `kind`: of a device `run`; of a process `run` (it decodes a token), `prompt` (it computes more than one), `again` (it
    computes tokens that it had computed before and lost), or the state that it was in (STATES). `begin` and `end` are
    seconds since boot. `tokens` were computed; `again` of them had been before. `processes` were in the step of a device.
    """

    kind: str
    begin: float
    end: float
    tokens: int = 0
    again: int = 0
    processes: int = 0
    text: str = ""  # of a device: who was in the step, `PID+TOKENS,...`


@dataclass(slots=True)
class Mark:
    """Something that happens at a moment. `kind`: the name of its event (MARKS). `pages`: lost, moved out or in."""

    kind: str
    at: float
    pages: int = 0
    text: str = ""


@dataclass(slots=True)
class Row:
    """A device (`pid` 0), or a process on it."""

    label: str
    pid: int = 0
    bars: list[Bar] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


@dataclass(slots=True)
class _Step:
    began: float
    who: str
    again: dict[int, int] = field(default_factory=dict)  # pid -> tokens


class Reader:
    """Rows from events in the order of time. `names` are known beside what events say."""

    def __init__(self, events: list[TraceEvent], names: Mapping[int, str]) -> None:
        self.events = events
        self._rows: dict[tuple[str, int], Row] = {}
        self._names: dict[int, str] = {}
        self._flying: dict[str, _Step] = {}  # by device
        self._states: dict[int, tuple[str, str, float]] = {}  # pid -> device, state, since
        for event in events:
            self._read(event)
        self._names |= names

    def rows(self) -> Iterable[Row]:
        return self._rows.values()

    def devices(self, end: float) -> dict[str, list[Row]]:
        for device in list(self._flying):
            self._landed(device, end)
        for pid in list(self._states):
            self._left(pid, end)
        found: defaultdict[str, list[Row]] = defaultdict(list)
        for (device, _), row in sorted(self._rows.items()):
            if device:
                found[device].append(row)
        for rows in found.values():
            for row in rows:
                row.label = f"{row.pid} {self._names.get(row.pid, '')}".rstrip() if row.pid else row.label
                row.bars.sort(key=lambda bar: bar.begin)
        return dict(found)

    def _row(self, device: str, pid: int = 0) -> Row:
        return self._rows.setdefault((device, pid), Row(device, pid))

    def _read(self, event: TraceEvent) -> None:
        match event.what:
            case "proc.spawn":
                self._names[event.pid] = event.detail
            case "sched.step":
                self._landed(event.device, event.at)
                self._flying[event.device] = _Step(event.at, event.detail)
                self._row(event.device)
            case "sched.again":
                if event.device in self._flying:
                    self._flying[event.device].again[event.pid] = event.amount
            case "sched.done":
                self._landed(event.device, event.at)
            case "proc.state":
                self._left(event.pid, event.at)
                if event.detail in STATES:
                    self._states[event.pid] = event.device, event.detail, event.at
            case what if what in MARKS:
                self._marked(event)
                if what == "proc.fork":  # `of PID`
                    self._names[event.pid] = self._names.get(int(event.detail.rpartition(" ")[2]), "")
                if what in ("driver.down", KILLED):
                    self._landed(event.device, event.at)
                if what == KILLED:
                    for pid in [pid for pid, (device, *_) in self._states.items() if device == event.device]:
                        self._left(pid, event.at)

    def _marked(self, event: TraceEvent) -> None:
        device, pid = event.device, event.pid
        if event.what.startswith(("driver.", "sched.", "kernel.")):
            pid = 0
        elif not device:  # the trace does not say where a process ends: where it last was
            device = next((d for d, p in reversed(self._rows) if p == pid), "")
        if device:
            pages = event.amount if event.what.startswith("mem.") else 0
            text = f"{pages} pages" if pages else event.detail
            self._row(device, pid).marks.append(Mark(event.what, event.at, pages, text))

    def _landed(self, device: str, at: float) -> None:
        """The step that a device had in flight, if any, has ended."""
        if device not in self._flying:
            return
        step = self._flying.pop(device)
        runs = [(int(pid), int(tokens)) for pid, tokens in (one.split("+") for one in step.who.split(",") if one)]
        if runs:
            sums = sum(tokens for _, tokens in runs), sum(step.again.values())
            self._row(device).bars.append(Bar("run", step.began, at, *sums, len(runs), step.who))
        for pid, tokens in runs:
            again = step.again.get(pid, 0)
            kind = "again" if again else "run" if tokens == 1 else "prompt"
            self._row(device, pid).bars.append(Bar(kind, step.began, at, tokens, again))

    def _left(self, pid: int, at: float) -> None:
        """A process has left the state that it was in."""
        if pid in self._states:
            device, state, since = self._states.pop(pid)
            if at > since:
                self._row(device, pid).bars.append(Bar(state, since, at))
