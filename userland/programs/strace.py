"""strace: the kernel's work, decoded: system calls with their arguments, and the events that they cause.

Linux's strace stops a process at each call; here the kernel writes one typed event stream (trace.py) and this program
reads it, so that only the recording itself takes time. Calls are printed as Python would write them, the other events
(`sched.step`, `mem.preempt`, ...) with device and amount.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.pids import shown
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Right, TraceEvent
from llmasos.syscalls.table import BY_NAME, Trace
from llmasos.userland.programs.listing import one_line
from llmasos.userland.programs.ps import Kernel
from llmasos.userland.programs.screen import Screen
from llmasos.userland.programs.table import cut

POLL_SECONDS = 0.5
_STYLES = {
    "call": "cyan",
    "ret": "dim",
    "proc": "green",
    "mem": "magenta",
    "sched": "dim",
    "driver": "yellow",
}


def events(kernel: Kernel, start: int = -1) -> Iterator[TraceEvent | int]:
    """Trace events without end; an int is the number of events that were lost before the next one."""
    while True:
        try:
            result = kernel(Trace(start=start, timeout=POLL_SECONDS))
        except SyscallError as error:
            if error.errno is not Errno.ETIME:
                raise
            continue
        if result.lost:
            yield result.lost
        yield from result.events
        start = result.next


def concerns(event: TraceEvent, pid: int, mine: int, *, looks: bool = True) -> bool:
    """Whether an event belongs to process `pid` (0: all); the reading of the trace (by `mine`) does not count, and
    without `looks` neither does any call that only looks."""
    family, _, name = event.what.partition(".")
    if event.pid == mine and name == "trace":
        return False
    if not looks and family in ("call", "ret") and only_looks(name):
        return False
    return pid == 0 or event.pid == pid or _argument(event) == pid or _in_step(event, pid)


def only_looks(name: str) -> bool:
    """Whether a system call changes nothing and waits for nothing: `getinfo`, `ps`, `models`, ..."""
    entry = BY_NAME.get(name)
    return entry is not None and not entry.changes and not entry.right & ~Right.QUERY and name != "attach"


def _argument(event: TraceEvent) -> int:
    """The pid that a call is about: `feed(pid=5, ...)` concerns 5, whichever program calls."""
    _, found, rest = event.detail.partition("(pid=")
    digits = rest.partition(",")[0].rstrip(")")
    return int(digits) if found and digits.isdigit() else 0


def _in_step(event: TraceEvent, pid: int) -> bool:
    """Whether a step (`5+1,6+1`: process 5 with one token, process 6 with one) computes process `pid`."""
    return event.what == "sched.step" and f",{shown(pid)}+" in f",{event.detail}"


def describe(event: TraceEvent) -> str:
    """An event without its time: `fork(pid=3, count=2)`, `sched.step cpu0 16`, ..."""
    family, _, name = event.what.partition(".")
    if family == "call":
        return event.detail
    if family == "ret":
        return f"{name} = {event.detail}"
    parts = [event.what]
    if event.device:
        parts.append(event.device)
    if event.amount:
        parts.append(str(event.amount))
    if event.detail:
        parts.append(event.detail)
    return " ".join(parts)


def show(screen: Screen, event: TraceEvent | int, *, whole: bool = True, as_json: bool = False) -> None:
    """Print an event; unless `whole`, in one line of a terminal, which ends with `…` where there is more."""
    if as_json:
        one_line(screen, {"lost": event} if isinstance(event, int) else event)
        return
    if isinstance(event, int):
        screen.line(f"... {event} events lost ...", "yellow")
        return
    screen.write(f"{event.at:12.6f} ", "dim")
    screen.write(f"{shown(event.pid) if event.pid else '-':>6}  ", "bold")
    said = printable(describe(event), one_line=True)
    if screen.terminal and not whole:
        said = cut(said, screen.width - 21)
    screen.line(said, _STYLES.get(event.what.partition(".")[0], ""), indent=" " * 21)


def follow(
    screen: Screen,
    kernel: Kernel,
    pid: int,
    mine: int,
    done: Callable[[], bool] = lambda: False,
    count: int = 0,
    *,
    whole: bool = True,
    as_json: bool = False,
) -> None:
    """Print events of process `pid` (0: all) until `done()`, Ctrl-C, or `count` of them (0: no end); unless `whole`
    without calls that only look, and each in one line."""
    shown = 0
    for event in events(kernel):
        if done():
            return
        if isinstance(event, int) or concerns(event, pid, mine, looks=whole):
            show(screen, event, whole=whole, as_json=as_json)
            shown += 1
            if count and shown >= count:
                return
