"""models, devices, stats, uptime, policy: the kernel's tables and counters since boot."""

from __future__ import annotations

from llmasos.modelfiles.called import called
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Advice, BootInfo, DeviceInfo, ModelInfo, SchedInfo, Stats
from llmasos.userland.programs.figures import duration, number, rate, size
from llmasos.userland.programs.screen import Column, Table

_MODEL_STYLES = {
    "resident": "green",
    "streamed": "green",
    "loading": "cyan",
    "evicted": "yellow",
    "failed": "red",
}
_DEVICE_STYLES = {"up": "green", "starting": "cyan", "down": "red"}


def models(rows: list[ModelInfo]) -> Table:
    """The models that the kernel knows by name, and those on a device: their weights (RESIDENT: in memory), the times
    that a process found them evicted (FAULTS), their KV frames, and the processes that map them."""
    shown = Table(
        (
            Column("MODEL", style="bold", elastic=True),
            Column("STATE"),
            Column("DEVICE"),
            Column("DTYPE"),
            Column("ARCH"),
            Column("PARAMS", right=True),
            Column("WEIGHTS", right=True),
            Column("RESIDENT", right=True),
            Column("FAULTS", right=True),
            Column("CONTEXT", right=True),
            Column("KV PAGES"),
            Column("PROCS", right=True),
            Column("MAPPED BY", elastic=True),
            Column("PATH", elastic=True),
        )
    )
    for info in rows:
        state = f"loading {info.progress:.0%}" if info.state == "loading" else info.state
        if info.stretch > 1:
            state += f", thrashes ({info.lost:.0%})"
        more = info.processes - len(info.mapped_by)
        mapped = " ".join([*map(str, info.mapped_by), *([f"and {more} more"] if more > 0 else [])])
        used = info.frames - info.frames_free - info.frames_cached
        shown.add(
            called(info.name),
            f"{state}, pinned" if info.pinned else state,
            info.device or "-",
            f"{info.dtype} ({info.stored})" if info.stored else info.dtype or "-",
            info.architecture or "-",
            number(info.parameters) if info.parameters else "-",
            size(info.weight_bytes) if info.weight_bytes else "-",
            size(info.resident_bytes) if info.resident_bytes else "-",
            info.faults if info.device else "-",
            info.context or "-",
            f"{used}/{info.frames}" if info.frames else "-",
            info.processes,
            mapped or "-",
            info.error or info.path,
            style=_MODEL_STYLES.get(info.state, ""),
        )
    return shown


def advice_named(word: str) -> Advice:
    """`willneed`, `WILLNEED`. Raises EINVAL with the list."""
    if word.lower() not in set(Advice):
        raise SyscallError(Errno.EINVAL, f"there is no advice {word!r}; there are {', '.join(Advice)}")
    return Advice(word.lower())


def devices(rows: list[DeviceInfo]) -> Table:
    """The devices: their drivers, memory and work."""
    shown = Table(
        (
            Column("DEVICE", style="bold"),
            Column("KIND"),
            Column("STATE"),
            Column("PID", right=True),
            Column("OS PID", right=True),
            Column("RESTARTS", right=True),
            Column("POLICY"),
            Column("RUNS", right=True),
            Column("KV", right=True),
            Column("WEIGHTS", right=True),
            Column("STEPS", right=True),
            Column("TOKENS", right=True),
            Column("TOK/S", right=True),
            Column("WHAT IT IS", elastic=True),
        )
    )
    for info in rows:
        shown.add(
            info.name,
            info.kind,
            info.state,
            info.pid,
            info.os_pid,
            info.restarts,
            info.policy,
            info.max_runs,
            size(info.kv_bytes),
            size(info.weight_bytes) if info.weight_bytes else "-",
            number(info.steps),
            number(info.tokens_computed),
            rate(info.tokens_computed, info.busy_seconds),
            info.error or info.description,
            style=_DEVICE_STYLES.get(info.state, ""),
        )
    return shown


def scheduling(info: SchedInfo, policies: list[str]) -> list[tuple[str, str]]:
    """The scheduling of a device; the policy in use is marked."""
    policies = policies if info.policy in policies else [*policies, info.policy]  # it was loaded just now
    return [
        ("device", info.device),
        ("policy", " ".join(f"[{name}]" if name == info.policy else name for name in policies)),
        ("processes a step", str(info.max_runs)),
        ("tokens a step", str(info.step_tokens)),
        ("victims", info.victims),
        ("evictions", info.evictions),
    ]


def stats(info: Stats) -> list[tuple[str, str]]:
    """Counters since boot, as pairs."""
    states = ", ".join(f"{name} {count}" for name, count in sorted(info.by_state.items()) if count)
    calls = sorted(info.calls_by_name.items(), key=lambda item: -item[1])[:8]
    computed = info.tokens_computed + info.tokens_reused
    reused = info.tokens_reused / computed if computed else 0.0
    return [
        ("uptime", duration(info.uptime)),
        ("processes", f"{info.processes} ({states or 'none'}); {info.spawned} spawned, {info.exited} exited"),
        ("tokens", f"fed {number(info.tokens_fed)}, computed {number(info.tokens_computed)}, "
                   f"decoded {number(info.tokens_decoded)}"),
        ("prefix reuse", f"{number(info.tokens_reused)} tokens ({reused:.0%} of what was needed)"),
        ("swap", f"{number(info.moved_out)} pages moved out, {number(info.moved_in)} moved in; {info.refaults} refaults"),
        ("steps", f"{number(info.steps)}, {info.preemptions} preemptions, {info.driver_restarts} driver restarts"),
        ("system calls", f"{number(info.calls)}, {info.errors} failed, {info.rejected_frames} frames rejected"),
        ("most called", ", ".join(f"{name} {count}" for name, count in calls)),
    ]  # fmt: skip


def uptime(boot: BootInfo, counters: Stats) -> str:
    """`up 3:07, 5 processes, 812 tokens decoded, cpu0 up`."""
    drivers = ", ".join(f"{device.name} {device.state}" for device in boot.devices)
    return (
        f"up {duration(counters.uptime)}, {counters.processes} processes, "
        f"{number(counters.tokens_decoded)} tokens decoded, {drivers}"
    )
