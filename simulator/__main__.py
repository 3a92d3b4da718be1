"""`python -m llmasos.simulator`: draw the schedule of a running kernel, for as long as one listens (chart.py)."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from llmasos.simulator.chart import Gantt
from llmasos.syscalls import blocking, limits
from llmasos.syscalls.constraint import span
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import TraceEvent
from llmasos.syscalls.table import Ps, Trace


def listen(where: str | Path | None, duration: float) -> tuple[list[TraceEvent], dict[int, str]]:
    """The trace events of a running kernel for so many seconds, and the names of the processes that were there before.
    Raises SyscallError."""
    found: list[TraceEvent] = []
    with blocking.connect(where, name="gantt") as kernel:
        names: dict[int, str] = {}
        while rows := kernel(Ps(after=max(names, default=0))):
            names |= {row.pid: row.name for row in rows}
        start, end = -1, time.monotonic() + duration
        while (left := end - time.monotonic()) > 0:
            result = kernel(Trace(start=start, timeout=left))
            found += result.events
            start = result.next
    return found, names


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llmasos.simulator", description="Draw a kernel's schedule.")
    parser.add_argument("--runtime", metavar="DIR", help="the kernel's runtime directory")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to listen (default: 2)")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="write a picture instead of text")
    parser.add_argument("--width", type=int, default=100, help="characters of the text (default: 100)")
    args = parser.parse_args(arguments)
    if not 0 < args.seconds <= limits.MAX_TIMEOUT:
        most = span(0, limits.MAX_TIMEOUT, above=True)
        parser.error(f"argument --seconds: wanted {most}, found {args.seconds:g}")
    try:
        events, names = listen(args.runtime, args.seconds)
        chart = Gantt(events, names=names)
        if not chart.rows:
            print(f"nothing ran in these {args.seconds:g} s")
        elif args.svg is None:
            print(chart.text(args.width), end="", flush=True)
        else:
            args.svg.write_text(chart.svg())
    except SyscallError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{parser.prog}: {args.svg or 'the chart'} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
