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
from llmasos.syscalls.table import Trace


def listen(where: str | Path | None, duration: float) -> list[TraceEvent]:
    """The trace events of a running kernel for so many seconds. Raises SyscallError."""
    found: list[TraceEvent] = []
    with blocking.connect(where, name="gantt") as kernel:
        start, end = -1, time.monotonic() + duration
        while (left := end - time.monotonic()) > 0:
            result = kernel(Trace(start=start, timeout=left))
            found += result.events
            start = result.next
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llmasos.simulator", description="Draw a kernel's schedule.")
    parser.add_argument("--runtime", metavar="DIR", help="the kernel's runtime directory")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to listen (default: 2)")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="write a picture instead of text")
    parser.add_argument("--width", type=int, default=100, help="characters of the text (default: 100)")
    args = parser.parse_args(arguments)
    if not 0 <= args.seconds <= limits.MAX_TIMEOUT:
        parser.error(f"argument --seconds: wanted {span(0, limits.MAX_TIMEOUT)}, found {args.seconds:g}")
    try:
        chart = Gantt(listen(args.runtime, args.seconds))
        if args.svg is None:
            print(chart.text(args.width), end="")
        else:
            args.svg.write_text(chart.svg())
    except SyscallError as error:
        print(f"gantt: {error.reason}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"gantt: {args.svg} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
