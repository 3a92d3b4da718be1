"""The picture of a schedule: for each device its steps, and for each process when it ran, waited and lost its pages.

Henry Gantt's chart (1910), as textbooks draw schedules. What it shows is read from trace events (rows.py): those of a
simulation that records (`simulate(record=True)`), or those of a running kernel (`python -m llmasos.simulator`).
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llmasos.simulator import border
from llmasos.simulator.rows import Bar, Mark, Reader, Row
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import TraceEvent
from llmasos.userland.programs.table import cells, cut_apart

if TYPE_CHECKING:
    from llmasos.simulator.simulation import Simulation

# How a bar is drawn: its letter in text, its colour in SVG, and what it means.
BARS = {
    "ready": ("·", "#d9a441", "ready, and not planned"),
    "pagein": ("~", "#c65d57", "pagein: waits for frames"),
    "weights": ("w", "#8a6bbd", "weights: waits for its model"),
    "quota": ("q", "#b0569a", "quota: held back by its control group"),
    "device": ("d", "#777777", "device: waits for its driver"),
    "stopped": ("s", "#9a9a9a", "stopped"),
    "prompt": ("▓", "#3f78b5", "computes a prompt"),
    "again": ("▒", "#d07c3a", "computes again what it had lost"),
    "run": ("█", "#3b9c73", "decodes"),
}
# The same of marks; here the first win, and are drawn above the others.
MARKS = {
    "kernel.down": ("K", "#c0392b", "the kernel dies"),
    "sched.fault": ("F", "#c0392b", "a policy is taken out"),
    "driver.down": ("X", "#c0392b", "the driver dies"),
    "proc.exit": ("x", "#444444", "has ended"),
    "mem.preempt": ("!", "#c0392b", "loses its pages"),
    "sched.policy": ("P", "#8a6bbd", "another policy"),
    "driver.up": ("^", "#3b9c73", "the driver is up"),
    "mem.out": (">", "#7d5ba6", "pages are moved out"),
    "mem.in": ("<", "#2d8fa3", "pages are moved in"),
    "proc.fork": ("Y", "#444444", "is forked"),
}
LITTLE = ",", "something, for less than half of the column"
_MOST_LABEL = 20  # cells
_ROW, _BAR, _LEFT, _HEAD = 22, 14, 170, 26  # pixels
_LETTER = 9  # pixels of a mark
_TICK_CELLS, _TICK_PIXELS = 14, 110  # between two numbers of the axis, at least


class Gantt:
    """The chart of a stretch of time, from `begin` to `end` in seconds since the kernel's boot.

    `rows` is what it shows, by device: a list of `Row`, the device's own first, then those of the processes that ran on
    it, by pid. A row has `label`, `pid`, `bars` and `marks`. `text()` and `svg()` draw it, and a notebook does. `names`
    are those of processes, by pid, of which the events need not tell.
    """

    rows: dict[str, list[Row]]

    def __init__(
        self,
        events: Iterable[TraceEvent],
        begin: float | None = None,
        end: float | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        found = Reader(sorted(events, key=lambda event: event.at), names or {})
        last = max((event.at for event in found.events), default=0.0)
        first = min((bar.begin for row in found.rows() for bar in row.bars), default=0.0)
        self.begin = first if begin is None else begin
        self.end = max(last if end is None else end, self.begin)
        self.rows = {}
        for device, rows in found.devices(last).items():
            self.rows[device] = [self._cut(row) for row in rows]

    def _cut(self, row: Row) -> Row:
        bars = [bar for bar in row.bars if bar.end > self.begin and bar.begin < self.end]
        marks = [mark for mark in row.marks if self.begin <= mark.at <= self.end]
        return Row(row.label, row.pid, bars, marks)

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def _labels(self) -> Iterator[str]:
        """Those of all rows, in order, cut so that different ones stay different."""
        yield from cut_apart(
            [printable(row.label, one_line=True) for rows in self.rows.values() for row in rows], _MOST_LABEL
        )

    @border.wants(width=border.whole(20))
    def text(self, width: int = 100) -> str:
        """The chart in characters, a line a row. A device's row has the number of processes in each step."""
        labels = list(self._labels())
        size = max(map(cells, labels), default=0)
        room = max(10, width - size - 1)
        lines, used = [], set()
        for label, row in zip(labels, (row for rows in self.rows.values() for row in rows), strict=True):
            drawn, letters = self._line(row, room)
            used |= letters
            lines.append(f"{label}{' ' * (size - cells(label))} {drawn}".rstrip())
        lines.append(" " * (size + 1) + self._axis(room))
        signs = [*((sign, what) for sign, _, what in (*BARS.values(), *MARKS.values())), LITTLE]
        meanings = [f"{sign} {what}" for sign, what in signs if sign in used]
        meanings.append(f"{self.begin:.3f} to {self.end:.3f} s, a column is {self.seconds / room * 1e3:.3g} ms")
        return "\n".join([*lines, "", "   ".join(meanings)]).rstrip() + "\n"

    def _line(self, row: Row, room: int) -> tuple[str, set[str]]:
        """In each column the sign of what filled most of it; LITTLE where all bars together filled less than half."""
        shares: list[dict[str, float]] = [{} for _ in range(room)]
        wide = self.seconds / room or 1.0
        for bar in row.bars:
            sign = BARS[bar.kind][0]
            if not row.pid:
                sign = str(bar.processes) if bar.processes < 10 else "+"
            for cell in range(self._cell(bar.begin, room), self._cell(bar.end, room) + 1):
                left = self.begin + cell * wide
                share = (min(bar.end, left + wide) - max(bar.begin, left)) / wide
                if share > 0:
                    shares[cell][sign] = shares[cell].get(sign, 0.0) + share
        most = [max(signs, key=lambda sign: signs[sign]) if signs else " " for signs in shares]
        line = [sign if sum(signs.values()) > 0.499 else " " for sign, signs in zip(most, shares, strict=True)]
        for cell, sign in enumerate(most):  # but for what is the end of a longer bar beside it
            if line[cell] == " " != sign and sign not in line[max(0, cell - 1) : cell + 2]:
                line[cell] = LITTLE[0]
        for mark in _weakest_first(row.marks):
            line[self._cell(mark.at, room)] = MARKS[mark.kind][0]
        return "".join(line), set(line)

    def _cell(self, at: float, room: int) -> int:
        part = (at - self.begin) / self.seconds if self.seconds else 0.0
        return min(room - 1, max(0, int(part * room)))

    def _ticks(self, most: int) -> list[tuple[float, str]]:
        """Round moments, `most` at most, and how they are written: multiples of 1, 2 or 5 times a power of ten."""
        if not self.seconds:
            return [(self.begin, f"{self.begin:.3f} s")]
        least = self.seconds / max(1, most)
        power = math.floor(math.log10(least))
        step, digits = next(
            (step, max(0, -place))
            for times, place in ((1, power), (2, power), (5, power), (1, power + 1))
            if (step := times * 10.0**place) >= least * (1 - 1e-9)
        )
        numbers = range(math.ceil(self.begin / step - 1e-9), math.floor(self.end / step + 1e-9) + 1)
        return [(number * step, f"{number * step:.{digits}f} s") for number in numbers]

    def _axis(self, room: int) -> str:
        line = ""
        for at, said in self._ticks(room // _TICK_CELLS):
            cell = self._cell(at, room)
            if cell + 1 + len(said) <= room:
                line = f"{line:<{cell}}|{said}"
        return line

    @border.wants(width=border.whole(300))
    def svg(self, width: int = 1000) -> str:
        """The chart as a picture of that many pixels. What a bar is stands in its tooltip; it is readable on light and on
        dark ground."""
        scale = (width - _LEFT - 10) / (self.seconds or 1.0)
        parts, y, kinds, labels = [], _HEAD, [], self._labels()
        for rows in self.rows.values():
            for row in rows:
                parts += self._drawn(row, next(labels), y, scale)
                kinds += [bar.kind for bar in row.bars if row.pid] + [mark.kind for mark in row.marks]
                y += _ROW
            y += 6
        legend, below = _legend(kinds, y + 8, width)
        ticks = "".join(
            f'<path d="M{x:.1f} 20V{y}" class="tick"/><text x="{x:.1f}" y="16" text-anchor="middle">{said}</text>'
            for x, said in (
                (_LEFT + (at - self.begin) * scale, said) for at, said in self._ticks((width - _LEFT) // _TICK_PIXELS)
            )
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{below}" viewBox="0 0 {width} {below}" '
            'role="img" aria-label="schedule">'
            "<style>text{font:12px ui-monospace,monospace;fill:#333}.device{font-weight:bold}"
            ".tick{stroke:#8884}.mark{font-weight:bold;stroke:#fff;stroke-width:4px;paint-order:stroke}"
            "@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>"
            f"{ticks}{''.join(parts)}{legend}</svg>\n"
        )

    def _repr_svg_(self) -> str:
        """For notebooks."""
        return self.svg()

    def _drawn(self, row: Row, label: str, y: int, scale: float) -> list[str]:
        kind = "" if row.pid else ' class="device"'
        parts = [f'<text x="4" y="{y + 12}"{kind}>{html.escape(label)}<title>{html.escape(row.label)}</title></text>']
        for number, bar in enumerate(row.bars):
            begin, end = max(bar.begin, self.begin), min(bar.end, self.end)
            colour = BARS[bar.kind][1] if row.pid else ("#7f9db9", "#5b7fa3")[number % 2]
            parts.append(
                f'<rect x="{_LEFT + (begin - self.begin) * scale:.2f}" y="{y}" height="{_BAR}" '
                f'width="{max(0.5, (end - begin) * scale):.2f}" fill="{colour}">'
                f"<title>{html.escape(_told(row, bar))}</title></rect>"
            )
        last: dict[float, int] = {}  # those of one moment stand beside each other, the first in the order of MARKS first
        for mark in reversed(_weakest_first(row.marks)):
            last[mark.at] = place = last.get(mark.at, -1) + 1
            x = _LEFT + (mark.at - self.begin) * scale + place * _LETTER
            sign, _, what = MARKS[mark.kind]
            about = " ".join(filter(None, [f"{mark.at:.4f} s:", row.label, what, mark.text]))
            parts.append(_mark(sign, mark.kind, x, y + 12, about))
        return parts


def _weakest_first(marks: Iterable[Mark]) -> list[Mark]:
    order = list(MARKS)
    return sorted(marks, key=lambda mark: -order.index(mark.kind))


def _mark(sign: str, kind: str, x: float, y: int, about: str = "", anchor: str = "middle") -> str:
    title = f"<title>{html.escape(about)}</title>" if about else ""
    place = f'class="mark" x="{x:.2f}" y="{y}" text-anchor="{anchor}" style="fill:{MARKS[kind][1]}"'
    return f"<text {place}>{html.escape(sign)}{title}</text>"


def _told(row: Row, bar: Bar) -> str:
    time = f"{bar.begin:.4f} to {bar.end:.4f} s"
    if not row.pid:
        return f"{time}: step of {bar.processes} processes, {bar.tokens} tokens ({bar.text})"
    tokens = f", {bar.tokens} tokens" if bar.tokens else ""
    again = f", {bar.again} of them again" if bar.again else ""
    return f"{time}: {row.label} {BARS[bar.kind][2]}{tokens}{again}"


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
            parts.append(_mark(sign, kind, x, y + 11, anchor="start"))
        parts.append(f'<text x="{x + 18}" y="{y + 11}">{html.escape(what)}</text>')
        x += size
    return "".join(parts), y + 24


@border.wants(begin=border.number(0, optional=True), end=border.number(0, optional=True))
def gantt(
    source: Simulation | Iterable[TraceEvent | Mapping[str, Any]], begin: float | None = None, end: float | None = None
) -> Gantt:
    """The picture of a schedule, from `begin` to `end`, in seconds since boot (None: from the first step, to the last
    event).

    `source` is a simulation that records, `simulate(record=True)`, or trace events of any kernel, as records or as the
    objects that `llmasos trace --json` prints. Raises EINVAL for a simulation that does not record, and for what is
    neither.
    """
    if begin is not None and end is not None and end < begin:
        raise Errno.EINVAL(f"gantt() end: {end:g} is before begin, {begin:g}")
    if isinstance(source, Iterable):
        return Gantt([event for one in source if (event := _event(one)) is not None], begin, end)
    if not hasattr(source, "recorded"):
        raise border.wanted("gantt() source", "a simulation, or trace events", source)
    if source.recorded is None:
        raise Errno.EINVAL("gantt() source: this simulation does not record; make it with simulate(record=True)")
    names = {process.pid: process.name for process in source.kernel.table}
    return Gantt(source.recorded, begin, source.now if end is None else end, names)


def _event(one: object) -> TraceEvent | None:
    """A trace event, as itself or as JSON has it; None for the note that some were lost."""
    if isinstance(one, Mapping):
        if "lost" in one:
            return None
        with suppress(TypeError):
            return TraceEvent(**one)
    elif isinstance(one, TraceEvent):
        return one
    raise border.wanted("gantt() source", "a simulation, or trace events", one)
