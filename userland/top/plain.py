"""One look in plain text, for a pipe or a file: the system, its devices, the models in memory, and the processes."""

from __future__ import annotations

from llmasos.modelfiles.called import called
from llmasos.syscalls.policy_file import shown_policy
from llmasos.syscalls.records import Kind, ProcessInfo, State
from llmasos.userland.programs import ps
from llmasos.userland.programs.figures import bar, duration, rate, size
from llmasos.userland.programs.screen import Column, Screen, Table
from llmasos.userland.top.sample import Sample

BAR = 24

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


def summary(before: Sample, now: Sample) -> list[str]:
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
            device.error
            if device.state != "up"
            else f"{shown_policy(device.policy)}, {device.ready} ready, {device.restarts} restarts"
        )
        lines.append(f"{device.name:<{width}}  busy [{bar(busy, BAR)}] {busy:4.0%}  {device.state}  {note}")
    several = len(now.boot.devices) > 1
    for model in now.models:
        if model.frames:
            used = model.frames - model.frames_free - model.frames_cached
            lines.append(
                f"{known[model.name]:<{width}}  KV   [{bar(used / model.frames, BAR)}] {used}/{model.frames} pages of "
                f"{size(model.block_bytes)}, {model.frames_cached} more kept for their prefix"
                + (f", on {model.device}" if several else "")
            )
    return lines


def table(before: Sample, now: Sample) -> Table:
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


def show(screen: Screen, before: Sample, now: Sample) -> None:
    """Print how it is now; the rates are those since `before`."""
    screen.line("\n".join(summary(before, now)))
    screen.line()
    screen.table(table(before, now))
