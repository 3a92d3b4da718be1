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
from llmasos.syscalls.records import Kind, ProcessInfo, State
from llmasos.syscalls.table import Call, Ps
from llmasos.userland.programs.figures import duration, rate
from llmasos.userland.programs.screen import Column, Table

R = TypeVar("R")


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

COLUMNS = (
    Column("PID", right=True, style="bold"),
    Column("PPID", right=True),
    Column("KIND"),
    Column("STATE"),
    Column("NI", right=True),
    Column("TOKENS", right=True),
    Column("PAGES", right=True),
    Column("SHARED", right=True),
    Column("SWAP", right=True),
    Column("DECODED", right=True),
    Column("TIME", right=True),
    Column("MODEL", elastic=True),
    Column("NAME", elastic=True),
)


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


def state(info: ProcessInfo) -> str:
    """`running`, `blocked:input`, `zombie(137)`, ..."""
    if info.state is State.ZOMBIE:
        return f"zombie({info.exit_status})"
    return f"{info.state}:{info.wait}" if info.wait else str(info.state)


def time(info: ProcessInfo) -> float:
    """The seconds that a process has cost: of the device for an LLM process, of the CPU for the others."""
    return info.usage.device_seconds if info.kind is Kind.LLM else info.cpu_seconds


def table(rows: list[ProcessInfo]) -> Table:
    """`ps` as a table."""
    shown = Table(COLUMNS)
    for info in rows:
        llm = info.kind is Kind.LLM
        shown.add(
            info.pid,
            info.ppid,
            info.kind,
            state(info),
            info.nice if llm else "",
            info.length if llm else "",
            info.pages if llm else "",
            info.shared_pages if llm else "",
            info.swapped if llm else "",
            info.usage.decoded if llm else "",
            duration(time(info)),
            called(info.model),
            info.name,
            style=STYLES.get(info.state, ""),
        )
    return shown


def details(info: ProcessInfo) -> list[tuple[str, str]]:
    """A process in detail, as pairs."""
    used, limit = info.usage, info.limits
    pairs: list[tuple[str, Any]] = [
        ("pid", info.pid),
        ("parent", info.ppid),
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
            ("context", f"{info.length} of {info.context} tokens, {info.cached} of them cached"),
            ("pages", f"{info.pages}, {info.shared_pages} of them shared; {info.swapped} swapped out"),
            ("decoding", "yes" if info.decoding else f"no ({info.finish or 'not yet'})"),
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
                f"{duration(used.device_seconds)} ({rate(used.computed, used.device_seconds)} tok/s)",
            ),
            ("waited", waits or "-"),
            (
                "limits",
                f"context {limit.context or '-'}, tokens {limit.tokens or '-'}, pages {limit.pages or '-'}",
            ),
            ("seed", info.seed),
        ]
    else:
        from llmasos.userland.programs.figures import size

        pairs += [
            ("os pid", info.os_pid),
            ("resident", size(info.rss)),
            ("cpu time", duration(info.cpu_seconds)),
        ]
    return [(name, str(value)) for name, value in pairs]
