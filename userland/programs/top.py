"""top: the use of the device now: tokens per second of each process, how busy the device is, and its pages.

Rates are differences between two looks at the kernel's counters, as in top(1). On a terminal the screen is redrawn until
`q` or Ctrl-C; elsewhere one look, over the first interval, is printed.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmasos.modelfiles.called import called
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import BootInfo, Kind, ModelInfo, ProcessInfo, State, Stats
from llmasos.syscalls.table import BootInfoCall, Models, StatsCall
from llmasos.userland.programs import ps
from llmasos.userland.programs.figures import bar, duration, rate, size
from llmasos.userland.programs.ps import Kernel
from llmasos.userland.programs.screen import Column, Screen, Table

if TYPE_CHECKING:
    from rich.console import Group

BAR = 24
SECONDS_MIN = 0.1  # between two looks

COLUMNS = (
    Column("PID", right=True, style="bold"),
    Column("NAME", elastic=True),
    Column("STATE"),
    Column("NI", right=True),
    Column("TOK/S", right=True),
    Column("DECODED", right=True),
    Column("TOKENS", right=True),
    Column("PAGES", right=True),
    Column("SHARED", right=True),
    Column("RSS", right=True),
    Column("TIME", right=True),
    Column("MODEL", elastic=True),
)


@dataclass(frozen=True)
class Look:
    """The kernel's counters at one moment (`stats.uptime`)."""

    boot: BootInfo
    stats: Stats
    models: list[ModelInfo]
    rows: list[ProcessInfo]


def look(kernel: Kernel) -> Look:
    """Ask the kernel."""
    return Look(kernel(BootInfoCall()), kernel(StatsCall()), kernel(Models()), ps.processes(kernel))


def summary(before: Look, now: Look) -> list[str]:
    """The lines above the table: the system, then each device, then each model in memory."""
    seconds = now.stats.uptime - before.stats.uptime
    decoded = now.stats.tokens_decoded - before.stats.tokens_decoded
    computed = now.stats.tokens_computed - before.stats.tokens_computed
    states = ", ".join(f"{count} {name}" for name, count in sorted(now.stats.by_state.items()) if count)
    lines = [
        f"up {duration(now.stats.uptime)}   {now.stats.processes} processes ({states})   "
        f"{rate(decoded, seconds)} tok/s decoded, {rate(computed, seconds)} computed"
    ]
    earlier = {device.name: device for device in before.boot.devices}
    known = {model.name: called(model.name) for model in now.models if model.frames}
    names = [*(device.name for device in now.boot.devices), *known.values()]
    width = max(map(len, names), default=0)
    for device in now.boot.devices:
        was = earlier.get(device.name, device)
        busy = (device.busy_seconds - was.busy_seconds) / seconds if seconds > 0 else 0.0
        busy = max(0.0, min(1.0, busy))
        note = (
            device.error if device.state != "up" else f"{device.policy}, {device.ready} ready, {device.restarts} restarts"
        )
        lines.append(f"{device.name:<{width}}  busy [{bar(busy, BAR)}] {busy:4.0%}  {device.state}  {note}")
    for model in now.models:
        if model.frames:
            used = model.frames - model.frames_free - model.frames_cached
            lines.append(
                f"{known[model.name]:<{width}}  KV   [{bar(used / model.frames, BAR)}] {used}/{model.frames} pages of "
                f"{size(model.block_bytes)}, {model.frames_cached} more kept for their prefix"
            )
    return lines


def table(before: Look, now: Look) -> Table:
    """The processes, the busiest first, then those that want the device, then the others by pid."""
    seconds = now.stats.uptime - before.stats.uptime
    earlier = {row.pid: row.usage.computed for row in before.rows}
    speed = {row.pid: row.usage.computed - earlier.get(row.pid, 0) for row in now.rows}
    wants = (State.RUNNING, State.READY)
    shown = Table(COLUMNS)

    def rank(row: ProcessInfo) -> tuple[object, ...]:
        return -speed[row.pid], row.state not in wants, row.kind is not Kind.LLM, row.pid

    for row in sorted(now.rows, key=rank):
        llm = row.kind is Kind.LLM
        shown.add(
            row.pid,
            row.name or row.kind,
            ps.state(row),
            row.nice if llm else "",
            rate(speed[row.pid], seconds) if llm else "",
            row.usage.decoded if llm else "",
            row.length if llm else "",
            row.pages if llm else "",
            row.shared_pages if llm else "",
            size(row.rss) if row.rss else "",
            duration(ps.time(row)),
            called(row.model) or row.kind,
            style=ps.STYLES.get(row.state, ""),
        )
    return shown


def run(screen: Screen, kernel: Kernel, *, seconds: float = 1.0, once: bool = False) -> None:
    """Show the system until `q` or Ctrl-C; with `once`, or without a terminal, print one look and return."""
    before = look(kernel)
    if once or not screen.terminal or not sys.stdin.isatty():
        time.sleep(min(seconds, 0.5))
        now = look(kernel)
        screen.line("\n".join(summary(before, now)))
        screen.line()
        screen.table(table(before, now))
        return
    from rich.live import Live

    now = before
    with _keys() as pressed, Live(console=screen.console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(_picture(before, now, live.console.size.height), refresh=True)
                if pressed(seconds if now is not before else min(seconds, 0.3)) in ("q", "Q", "\x1b", "\x04"):
                    return
                before, now = now, look(kernel)
                if now.boot.os_pid != before.boot.os_pid:  # another kernel counts from zero
                    before = now
        except KeyboardInterrupt:
            return


def _picture(before: Look, now: Look, height: int) -> Group:
    from rich.console import Group
    from rich.text import Text

    lines = summary(before, now)
    shown = table(before, now)
    room = max(1, height - len(lines) - 4)
    hidden = len(shown.rows) - room
    del shown.rows[room:], shown.styles[room:]
    foot = f"{hidden} more processes; q leaves" if hidden > 0 else "q leaves"
    return Group(Text(printable("\n".join(lines))), Text(), shown.rich(), Text(foot, style="dim"))


class _Pressed:
    """Waits for a key for some seconds; empty if there was none."""

    def __call__(self, seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        # One byte, past Python's buffer: text typed ahead belongs to the shell.
        return os.read(sys.stdin.fileno(), 1).decode(errors="replace") if ready else ""


@contextmanager
def _keys() -> Iterator[_Pressed]:
    """Keys as they are pressed, without echo; Ctrl-C stays KeyboardInterrupt."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield _Pressed()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
