"""ps: the process table, a row for each process: LLM processes, and the programs and drivers attached to the kernel.

The columns are those of ps(1) where there is a counterpart. STATE adds what a blocked process waits for; TOKENS is the
length of its log (its "memory image"), PAGES the KV frames that it maps, SHARED those of them that other processes map
too; SWAP counts pages in a lower tier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from llmasos.modelfiles.called import called
from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.pids import shown
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Kind, ProcessInfo, State
from llmasos.syscalls.table import Call, GroupStat, Ps
from llmasos.userland.programs.figures import duration, rate, size
from llmasos.userland.programs.listing import Field, Listing
from llmasos.userland.programs.table import NAME

R = TypeVar("R")
_INIT = 1  # init's pid


class Kernel(Protocol):
    """Anything that answers system calls, blocking: `kernel(Ps())`."""

    def __call__(self, call: Call[R], /) -> R:
        """Raises SyscallError."""


STYLES = {
    State.RUNNING: "green",
    State.READY: "cyan",
    State.STOPPED: "yellow",
    State.ZOMBIE: "red",
}


def processes(kernel: Kernel, accept: Callable[[ProcessInfo], bool] = lambda _: True) -> list[ProcessInfo]:
    """The whole process table, in as many calls as it takes."""
    rows: list[ProcessInfo] = []
    after = 0
    while True:
        page = kernel(Ps(after=after, limit=limits.MAX_LIST))
        rows += [row for row in page if accept(row)]
        if len(page) < limits.MAX_LIST:
            return rows
        after = page[-1].pid


def exited(info: ProcessInfo) -> bool:
    """Whether it is an agent that outlived its program and has ended: the kernel keeps its status for who asks."""
    return info.kind is Kind.LLM and info.state is State.ZOMBIE and info.ppid == _INIT


def not_shown(count: int) -> str:
    """What is said of exited agents that are left out."""
    them = ("it", "") if count == 1 else ("them", "s")
    return f"{count} exited agent{them[1]} not shown: `wait NAME` tells how; `ps --all` shows {them[0]}"


def unseen(kernel: Kernel, rows: list[ProcessInfo]) -> str:
    """What is said of other users' processes, of which only their number is told; empty: there are none."""
    groups = {"/".join(row.group.split("/")[:3]) for row in rows}
    try:
        homes = [info for info in kernel(GroupStat("/users", below=True)) if info.path.count("/") == 2]
    except SyscallError as error:
        if error.errno is Errno.EPERM:  # this program is confined, and does not get to know groups
            return ""
        raise
    counts = [f"{info.pids} in {info.path}" for info in homes if info.pids and info.path not in groups]
    return f"processes of others: {', '.join(counts)}" if counts else ""


def state(info: ProcessInfo) -> str:
    """`running`, `blocked:input`, `zombie(137)`, ..."""
    if info.state is State.ZOMBIE:
        return f"zombie({info.exit_status})"
    return f"{info.state}:{info.wait}" if info.wait else str(info.state)


def time(info: ProcessInfo) -> float:
    """The seconds that a process has cost: of the device for an LLM process, of the CPU for the others."""
    return info.usage.device_seconds if info.kind is Kind.LLM else info.cpu_seconds


def _llm(of: Callable[[ProcessInfo], object]) -> Callable[[ProcessInfo], object]:
    """A cell that only LLM processes have."""
    return lambda info: of(info) if info.kind is Kind.LLM else ""


def budget(info: ProcessInfo) -> str:
    """The part of its device's time that a REALTIME process has reserved."""
    return f"{1000 * info.budget:g}/{1000 * info.period:g} ms" if info.period else ""


LISTING: Listing[ProcessInfo] = Listing(
    (
        Field("PID", "pid", shown=lambda info: shown(info.pid), right=True, style="bold", keep=NAME),
        Field("PPID", "ppid", shown=lambda info: shown(info.ppid), right=True, keep=3),
        Field("KIND", "kind", keep=5),
        Field("STATE", "state", shown=state, keep=8),
        Field("NI", "nice", shown=_llm(lambda info: info.nice), right=True, keep=4),
        Field("TOKENS", "length", shown=_llm(lambda info: info.length), right=True, keep=6),
        Field("PAGES", "pages", shown=_llm(lambda info: info.pages), right=True, keep=4),
        Field("SHARED", "shared_pages", shown=_llm(lambda info: info.shared_pages), right=True, keep=2),
        Field("SWAP", "swapped", shown=_llm(lambda info: info.swapped), right=True, keep=2),
        Field("DECODED", "usage.decoded", shown=_llm(lambda info: info.usage.decoded), right=True, keep=4),
        Field("TIME", "seconds", shown=lambda info: duration(time(info)), value=time, right=True, keep=5),
        Field("GROUP", "group", usual=False, keep=6, elastic=True, least=10),
        Field("DEVICE", "device", usual=False),
        Field("CLASS", "sched_class", shown=_llm(lambda info: info.sched_class), usual=False),
        Field("BUDGET", "budget", shown=budget, usual=False),
        Field("CONTEXT", "context", shown=_llm(lambda info: info.context), right=True, usual=False),
        Field("CACHED", "cached", shown=_llm(lambda info: info.cached), right=True, usual=False),
        Field("FED", "usage.fed", shown=_llm(lambda info: info.usage.fed), right=True, usual=False),
        Field("STARTED", "started", shown=lambda info: duration(info.started), right=True, usual=False),
        Field("SEED", "seed", shown=_llm(lambda info: info.seed), right=True, usual=False),
        Field("OS PID", "os_pid", shown=lambda info: info.os_pid or "", right=True, usual=False),
        Field("RSS", "rss", shown=lambda info: size(info.rss) if info.rss else "", right=True, usual=False),
        Field("MODEL", "model", shown=lambda info: called(info.model), elastic=True, keep=7, least=12),
        Field("NAME", "name", elastic=True, keep=NAME),
    ),
    style=lambda info: STYLES.get(info.state, ""),
)


def details(info: ProcessInfo) -> list[tuple[str, str]]:
    """A process in detail, as pairs."""
    used, limit = info.usage, info.limits
    pairs: list[tuple[str, Any]] = [
        ("pid", shown(info.pid)),
        ("parent", shown(info.ppid)),
        ("name", info.name or "-"),
        ("kind", info.kind),
        ("state", state(info)),
        ("group", info.group or "-"),
        ("started", f"{duration(info.started)} after boot"),
    ]
    if info.kind is Kind.LLM:
        waits = ", ".join(f"{name} {duration(s)}" for name, s in sorted(used.waits.items()) if s >= 0.05)
        pairs += [
            ("model", f"{called(info.model)} on {info.device}"),
            ("class, nice", f"{info.sched_class}, {info.nice}"),
            *([("budget", f"{budget(info)} of the time of {info.device}")] if info.period else []),
            ("context", f"{info.length} of {info.context} tokens, {info.cached} of them cached"),
            ("pages", f"{info.pages}, {info.shared_pages} of them shared; {info.swapped} swapped out"),
            ("decoding", "yes" if info.decoding else f"no ({info.finish or 'not yet'})"),
            *([("reason", printable(info.reason, one_line=True))] if info.reason else []),
            (
                "tokens",
                f"fed {used.fed}, decoded {used.decoded}, computed {used.computed}, reused {used.reused}",
            ),
            (
                "scheduling",
                f"steps {used.steps}, preemptions {used.preemptions}, refaults {used.refaults}, "
                f"forks {used.forks}, waiting calls {info.parked}",
            ),
            (
                "device time",
                f"{duration(used.device_seconds)} ({rate(used.computed, used.device_seconds)} tok/s computed, "
                "what was computed again included)",
            ),
            ("waited", waits or "-"),
            (
                "limits",
                f"context {limit.context or '-'}, tokens {limit.tokens or '-'}, pages {limit.pages or '-'}",
            ),
            ("seed", info.seed),
        ]
    else:
        pairs += [
            ("os pid", info.os_pid),
            ("resident", size(info.rss)),
            ("cpu time", duration(info.cpu_seconds)),
        ]
    return [(name, str(value)) for name, value in pairs]
