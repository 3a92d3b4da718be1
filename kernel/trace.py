"""The trace (which process, what, when, how much) and the kernel log, both rings; an owner has rings of his own.

Events are recorded only while a program reads them: otherwise `if trace.on: trace.emit(...)` costs one attribute look-up.
The log is always kept, and `dmesg` shows it. The machine's operator sees all; another owner what is his, and the lines of
the log that are for everybody, under sequence numbers of his own: gaps would tell what others do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice

from msgspec.structs import replace

from llmasos.kernel.clock import SECOND
from llmasos.kernel.objects.owner import Owner
from llmasos.syscalls.records import LogLine, TraceEvent, TraceResult

_LISTEN = 10 * SECOND  # the trace stays on this long after the last reader


@dataclass(slots=True)
class _Ring:
    """The events that an owner sees, each with what its detail is for those who may not read the log that it is of."""

    events: deque[tuple[TraceEvent, str | None]]
    until: int = -1  # it is recorded
    next: int = 0


@dataclass(slots=True)
class _Lines:
    lines: deque[LogLine] = field(default_factory=deque)
    next: int = 0

    def add(self, line: LogLine) -> LogLine:
        line = replace(line, seq=self.next)
        self.lines.append(line)
        self.next += 1
        return line


class Trace:
    def __init__(self, operator: Owner, events: int, lines: int) -> None:
        self.on = False
        self._operator = operator
        self._events, self._lines = events, lines
        self._rings: dict[Owner, _Ring] = {}
        self._logs: dict[Owner, _Lines] = {}
        self._public: deque[LogLine] = deque(maxlen=lines)
        self._log(operator)
        self._listen(operator)

    # --- events ---

    def _listen(self, owner: Owner) -> _Ring:
        if owner not in self._rings:
            self._rings[owner] = _Ring(deque(maxlen=self._events))
        return self._rings[owner]

    def listen(self, now: int, owner: Owner | None = None) -> None:
        """A program of that owner (None: the operator) reads: record from here on."""
        self.on = True
        self._listen(owner or self._operator).until = now + _LISTEN

    def expire(self, now: int, waiting: Collection[Owner]) -> None:
        """Stop recording for an owner, none of whose programs waits or has read for a while."""
        for owner, ring in self._rings.items():
            if ring.until >= 0 and now > ring.until and owner not in waiting:
                ring.until = -1
                if not owner.operator:
                    ring.events.clear()
        self.on = any(ring.until >= 0 for ring in self._rings.values())

    def emit(
        self,
        at: float,
        what: str,
        pid: int = 0,
        device: str = "",
        amount: int = 0,
        detail: str = "",
        owner: Owner | None = None,
        plain: str | None = None,
    ) -> None:
        """Record an event of a thing of `owner`; None: for the operator alone. `plain` is its detail for those who may
        not read logs; None: the same."""
        for reader, ring in self._rings.items():
            if ring.until >= 0 and (reader.operator or (owner is not None and reader.over(owner))):
                ring.events.append((TraceEvent(ring.next, at, what, pid, device, amount, detail), plain))
                ring.next += 1

    @property
    def end(self) -> int:
        """The sequence number that the operator's next event will have."""
        return self.end_of(self._operator)

    def end_of(self, owner: Owner) -> int:
        return self._listen(owner).next

    def read(self, start: int, limit: int, owner: Owner | None = None, *, content: bool = True) -> TraceResult:
        """Events from `start` on, as that owner sees them. Those that have fallen out of the ring count as lost."""
        ring = self._listen(owner or self._operator)
        first = ring.next - len(ring.events)
        begin = max(start, first)
        found = islice(ring.events, begin - first, begin - first + limit)
        events = [event if content or plain is None else replace(event, detail=plain) for event, plain in found]
        return TraceResult(events, begin + len(events), begin - start)

    # --- log ---

    def _log(self, owner: Owner) -> _Lines:
        if owner not in self._logs:
            self._logs[owner] = log = _Lines(deque(maxlen=self._lines))
            for line in self._public:
                log.add(line)
        return self._logs[owner]

    def line(self, at: float, level: str, text: str, owner: Owner | None = None, *, public: bool = False) -> LogLine:
        """A line about a thing of `owner`; None: for the operator alone, unless it is `public`."""
        line = LogLine(0, at, level, text)
        if owner is not None:
            self._log(owner)  # a new one begins with the public lines, and this is not yet one of them
        if public:
            self._public.append(line)
        for reader, log in self._logs.items():
            if reader.operator or public or (owner is not None and reader.over(owner)):
                log.add(line)
        return line

    def lines(self, after: int, limit: int, owner: Owner | None = None) -> list[LogLine]:
        return [line for line in self._log(owner or self._operator).lines if line.seq > after][:limit]
