"""The picture of a schedule: for each device its steps, and for each process when it ran, waited and lost its pages.

Henry Gantt's chart (1910), as textbooks draw schedules. It is made of trace events: those of a simulation that records
(`simulate(record=True)`), or those of a running kernel, read by the call `trace` (`python -m llmasos.simulator` does so).
A running kernel's trace does not tell states, so there a process between two runs is shown as nothing.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmasos.simulator import border
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import TraceEvent

if TYPE_CHECKING:
    from llmasos.simulator.simulation import Simulation

STATE = "proc.state"  # an event of simulations only: a process has a new state
# How a bar is drawn: its letter in text, its colour in SVG, and what it means; the later win in a cell of the text.
BARS = {
    "ready": ("·", "#d9a441", "ready, and not planned"),
    "pagein": ("~", "#c65d57", "waits for frames"),
    "weights": ("w", "#8a6bbd", "waits for a model's weights"),
    "quota": ("q", "#b0569a", "held back by its control group"),
    "device": ("d", "#777777", "waits for its driver"),
    "stopped": ("s", "#9a9a9a", "stopped"),
    "prompt": ("▓", "#3f78b5", "computes a prompt"),
    "run": ("█", "#3b9c73", "decodes"),
}
MARKS = {
    "mem.preempt": ("!", "#c0392b", "loses its pages"),
    "mem.out": (">", "#7d5ba6", "pages are moved out"),
    "mem.in": ("<", "#2d8fa3", "pages are moved in"),
    "proc.exit": ("x", "#444444", "has ended"),
    "driver.down": ("X", "#c0392b", "the driver dies"),
    "driver.up": ("^", "#3b9c73", "the driver is up"),
    "sched.policy": ("P", "#8a6bbd", "another policy"),
    "sched.fault": ("F", "#c0392b", "a policy is taken out"),
}
_MOST_LABEL = 20
_ROW, _BAR, _LEFT, _HEAD = 22, 14, 170, 26  # pixels


@dataclass(slots=True)
class Bar:
    """A stretch of time of a process, or a step of a device. `amount`: tokens."""

    kind: str
    begin: float
    end: float
    amount: int = 0
    text: str = ""


@dataclass(slots=True)
class Mark:
    """Something that happens at a moment. `amount`: pages."""

    kind: str
    at: float
    amount: int = 0
    text: str = ""


@dataclass(slots=True)
class Row:
    label: str
    pid: int = 0  # 0: the device itself
    bars: list[Bar] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


class Gantt:
    """The chart of a stretch of time, in seconds since the kernel's boot. `rows`: for each device its own row, then those
    of the processes that ran on it, by pid."""

    def __init__(self, events: Iterable[TraceEvent], begin: float | None = None, end: float | None = None) -> None:
        found = _Reader(sorted(events, key=lambda event: event.at))
        last = max((event.at for event in found.events), default=0.0)
        first = min((bar.begin for row in found.rows() for bar in row.bars), default=0.0)
        self.begin = first if begin is None else begin
        self.end = max(last if end is None else end, self.begin)
        self.rows: dict[str, list[Row]] = {}
        for device, rows in found.devices(last).items():
            self.rows[device] = [self._cut(row) for row in rows]

    def _cut(self, row: Row) -> Row:
        bars = [bar for bar in row.bars if bar.end > self.begin and bar.begin < self.end]
        marks = [mark for mark in row.marks if self.begin <= mark.at <= self.end]
        return Row(row.label, row.pid, bars, marks)

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    @border.wants(width=border.whole(20))
    def text(self, width: int = 100) -> str:
        """The chart in characters, a line a row. A device's row has the number of processes in each step."""
        label = min(_MOST_LABEL, max((len(row.label) for rows in self.rows.values() for row in rows), default=0))
        cells = max(10, width - label - 1)
        lines, used = [], set()
        for rows in self.rows.values():
            for row in rows:
                drawn, letters = self._line(row, cells)
                used |= letters
                lines.append(f"{row.label[:label]:<{label}} {drawn}".rstrip())
        lines.append(" " * (label + 1) + self._axis(cells))
        meanings = [f"{sign} {what}" for sign, _, what in (*BARS.values(), *MARKS.values()) if sign in used]
        return "\n".join([*lines, "", "   ".join(meanings)]).rstrip() + "\n"

    def _line(self, row: Row, cells: int) -> tuple[str, set[str]]:
        line, order = [" "] * cells, list(BARS)
        for bar in sorted(row.bars, key=lambda bar: order.index(bar.kind)):
            sign = BARS[bar.kind][0]
            if not row.pid:
                sign = str(bar.amount) if bar.amount < 10 else "+"
            first = self._cell(bar.begin, cells)
            for cell in range(first, max(first + 1, self._cell(bar.end, cells))):
                line[cell] = sign
        for mark in row.marks:
            line[self._cell(mark.at, cells)] = MARKS[mark.kind][0]
        return "".join(line), set(line)

    def _cell(self, at: float, cells: int) -> int:
        part = (at - self.begin) / self.seconds if self.seconds else 0.0
        return min(cells - 1, max(0, int(part * cells)))

    def _axis(self, cells: int) -> str:
        left, right = f"{self.begin:.3f} s", f"{self.end:.3f} s"
        return left + right.rjust(max(1, cells - len(left)))

    @border.wants(width=border.whole(300))
    def svg(self, width: int = 1000) -> str:
        """The chart as a picture of that many pixels. What a bar is stands in its tooltip; it is readable on light and on
        dark ground."""
        scale = (width - _LEFT - 10) / (self.seconds or 1.0)
        parts, y, kinds = [], _HEAD, []
        for rows in self.rows.values():
            for row in rows:
                parts += self._drawn(row, y, scale)
                kinds += [bar.kind for bar in row.bars if row.pid] + [mark.kind for mark in row.marks]
                y += _ROW
            y += 6
        legend, below = _legend(kinds, y + 8, width)
        ticks = "".join(
            f'<text x="{_LEFT + (width - _LEFT - 10) * part:.1f}" y="16" text-anchor="{anchor}">{at:.3f} s</text>'
            for part, anchor, at in ((0, "start", self.begin), (1, "end", self.end))
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{below}" viewBox="0 0 {width} {below}" '
            'role="img" aria-label="schedule">'
            "<style>text{font:12px ui-monospace,monospace;fill:#333}.device{font-weight:bold}"
            "@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>"
            f"{ticks}{''.join(parts)}{legend}</svg>\n"
        )

    def _repr_svg_(self) -> str:
        """For notebooks."""
        return self.svg()

    def _drawn(self, row: Row, y: int, scale: float) -> list[str]:
        kind = "" if row.pid else ' class="device"'
        parts = [f'<text x="4" y="{y + 12}"{kind}>{html.escape(row.label[:_MOST_LABEL])}</text>']
        for number, bar in enumerate(row.bars):
            begin, end = max(bar.begin, self.begin), min(bar.end, self.end)
            colour = BARS[bar.kind][1] if row.pid else ("#7f9db9", "#5b7fa3")[number % 2]
            parts.append(
                f'<rect x="{_LEFT + (begin - self.begin) * scale:.2f}" y="{y}" height="{_BAR}" '
                f'width="{max(0.5, (end - begin) * scale):.2f}" fill="{colour}">'
                f"<title>{html.escape(_told(row, bar))}</title></rect>"
            )
        for mark in row.marks:
            sign, colour, what = MARKS[mark.kind]
            x = _LEFT + (mark.at - self.begin) * scale
            about = " ".join(filter(None, [f"{mark.at:.4f} s:", row.label, what, mark.text]))
            parts.append(
                f'<text x="{x:.2f}" y="{y + 12}" text-anchor="middle" style="fill:{colour};font-weight:bold">'
                f"{html.escape(sign)}<title>{html.escape(about)}</title></text>"
            )
        return parts


def _told(row: Row, bar: Bar) -> str:
    time = f"{bar.begin:.4f} to {bar.end:.4f} s"
    if not row.pid:
        return f"{time}: step of {bar.amount} processes ({bar.text})"
    tokens = f", {bar.amount} tokens" if bar.amount else ""
    return f"{time}: {row.label} {BARS[bar.kind][2]}{tokens}"


def _legend(kinds: Iterable[str], y: int, width: int) -> tuple[str, int]:
    """The meanings of what is drawn; and how far down that goes."""
    parts, x, there = [], 4, set(kinds)
    for kind, (sign, colour, what) in {**BARS, **MARKS}.items():
        if kind not in there:
            continue
        size = 34 + 8 * len(what)
        if x + size > width:
            x, y = 4, y + 20
        if kind in BARS:
            parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>')
        else:
            parts.append(f'<text x="{x}" y="{y + 11}" style="fill:{colour};font-weight:bold">{html.escape(sign)}</text>')
        parts.append(f'<text x="{x + 18}" y="{y + 11}">{html.escape(what)}</text>')
        x += size
    return "".join(parts), y + 24


class _Reader:
    """Rows from events in the order of time."""

    def __init__(self, events: list[TraceEvent]) -> None:
        self.events = events
        self._rows: dict[tuple[str, int], Row] = {}
        self._names: dict[int, str] = {}
        self._flying: dict[str, tuple[float, str]] = {}  # device -> when its step began, and of whom it is
        self._states: dict[int, tuple[str, str, float]] = {}  # pid -> device, state, since
        for event in events:
            self._read(event)

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
                self._flying[event.device] = event.at, event.detail
                self._row(event.device)
            case "sched.done":
                self._landed(event.device, event.at)
            case "proc.state":
                self._left(event.pid, event.at)
                if event.detail in BARS:
                    self._states[event.pid] = event.device, event.detail, event.at
            case what if what in MARKS:
                self._marked(event)
                if what == "driver.down":
                    self._landed(event.device, event.at)

    def _marked(self, event: TraceEvent) -> None:
        device, pid = event.device, event.pid
        if event.what.startswith(("driver.", "sched.")):
            pid = 0
        elif not device:  # the trace does not say where a process ends: where it last was
            device = next((d for d, p in reversed(self._rows) if p == pid), "")
        if device:
            pages = f"{event.amount} pages" if event.what.startswith("mem.") else event.detail
            self._row(device, pid).marks.append(Mark(event.what, event.at, event.amount, pages))

    def _landed(self, device: str, at: float) -> None:
        """The step that a device had in flight, if any, has ended."""
        if device not in self._flying:
            return
        began, who = self._flying.pop(device)
        runs = [(int(pid), int(tokens)) for pid, tokens in (one.split("+") for one in who.split(",") if one)]
        if runs:
            self._row(device).bars.append(Bar("run", began, at, len(runs), who))
        for pid, tokens in runs:
            self._row(device, pid).bars.append(Bar("run" if tokens == 1 else "prompt", began, at, tokens))

    def _left(self, pid: int, at: float) -> None:
        """A process has left the state that it was in."""
        if pid in self._states:
            device, state, since = self._states.pop(pid)
            if at > since:
                self._row(device, pid).bars.append(Bar(state, since, at))


@border.wants(begin=border.number(0, optional=True), end=border.number(0, optional=True))
def gantt(source: Simulation | Iterable[TraceEvent], begin: float | None = None, end: float | None = None) -> Gantt:
    """The picture of a schedule, from `begin` to `end`, in seconds since boot (None: from the first step, to the last
    event).

    `source` is a simulation that records, `simulate(record=True)`, or trace events of any kernel. Raises EINVAL for a
    simulation that does not record, and for what is neither.
    """
    if begin is not None and end is not None and end < begin:
        raise Errno.EINVAL(f"gantt() end: {end:g} is before begin, {begin:g}")
    if isinstance(source, Iterable):
        source = list(source)
        if odd := next((event for event in source if not isinstance(event, TraceEvent)), None):
            raise border.wanted("gantt() source", "a simulation, or trace events", odd)
        return Gantt(source, begin, end)
    if not hasattr(source, "recorded"):
        raise border.wanted("gantt() source", "a simulation, or trace events", source)
    if source.recorded is None:
        raise Errno.EINVAL("gantt() source: this simulation does not record; make it with simulate(record=True)")
    return Gantt(source.recorded, begin, source.now if end is None else end)
