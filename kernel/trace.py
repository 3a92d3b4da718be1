"""The trace (which process, what, when, how much) and the kernel log, both rings.

Events are recorded only while a program reads them: otherwise `if trace.on: trace.emit(...)` costs one attribute look-up.
The log is always kept, and `dmesg` shows it.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from llmasos.kernel.clock import SECOND
from llmasos.syscalls.records import LogLine, TraceEvent, TraceResult

_LISTEN = 10 * SECOND  # the trace stays on this long after the last reader


class Trace:
    def __init__(self, events: int, lines: int) -> None:
        self.on = False
        self._until = 0
        self._ring: deque[TraceEvent] = deque(maxlen=events)
        self._next = 0
        self._log: deque[LogLine] = deque(maxlen=lines)
        self._next_line = 0

    # --- events ---

    def listen(self, now: int) -> None:
        """A program reads: record from here on."""
        self.on = True
        self._until = now + _LISTEN

    def expire(self, now: int, reader_waits: bool) -> None:
        """Stop recording when no program has read for a while."""
        if self.on and not reader_waits and now > self._until:
            self.on = False

    def emit(self, at: float, what: str, pid: int = 0, device: str = "", amount: int = 0, detail: str = "") -> None:
        self._ring.append(TraceEvent(self._next, at, what, pid, device, amount, detail))
        self._next += 1

    @property
    def end(self) -> int:
        """The sequence number that the next event will have."""
        return self._next

    def read(self, start: int, limit: int) -> TraceResult:
        """Events from `start` on. Events that have fallen out of the ring are counted as lost."""
        first = self._next - len(self._ring)
        begin = max(start, first)
        events = list(islice(self._ring, begin - first, begin - first + limit))
        return TraceResult(events, begin + len(events), begin - start)

    # --- log ---

    def line(self, at: float, level: str, text: str) -> LogLine:
        line = LogLine(self._next_line, at, level, text)
        self._log.append(line)
        self._next_line += 1
        return line

    def lines(self, after: int, limit: int) -> list[LogLine]:
        return [line for line in self._log if line.seq > after][:limit]
